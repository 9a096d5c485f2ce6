//! What a [`Publisher`] must do, whatever broker is behind it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;
use tombstream_model::{Message, Publisher};

/// The most that a check waits for one thing.
const BOUND: Duration = Duration::from_secs(60);

/// A topic that the checks can publish to and read back.
///
/// Each check wants a fixture whose topic is empty; it has several partitions where the broker has any.
pub trait PublisherFixture: Send + Sync {
    /// The publisher.
    type Publisher: Publisher;

    /// Opens a publisher.
    fn open(&self) -> impl Future<Output = Self::Publisher> + Send;

    /// The topic.
    fn topic(&self) -> Arc<str>;

    /// Everything that is in the topic now, partition by partition, in the order of each.
    fn published(&self) -> impl Future<Output = Vec<Vec<Message>>> + Send;

    /// What a value that is none comes back as: none, where the broker has null values.
    fn tombstone(&self) -> Option<Bytes>;
}

/// When publishing returns, all of it is there, once.
pub async fn all_is_there_when_publish_returns<F: PublisherFixture>(fixture: &F) {
    let publisher = fixture.open().await;
    let mut sent = Vec::new();
    for batch in 0..3 {
        let batch: Vec<Message> = (0..500)
            .map(|at| message(fixture, &format!("key-{}", at % 7), &format!("{batch}-{at}")))
            .collect();
        sent.extend(batch.iter().cloned());
        publish(&publisher, batch).await;
        let mut there = fixture.published().await.concat();
        there.sort_by(|one, other| one.value.cmp(&other.value));
        sent.sort_by(|one, other| one.value.cmp(&other.value));
        assert_eq!(there, sent);
    }
}

/// Messages of one key are in one partition, in the order of publishing.
pub async fn the_order_of_a_key_is_kept<F: PublisherFixture>(fixture: &F) {
    let publisher = fixture.open().await;
    for batch in 0..4 {
        let batch = (0..1_000)
            .map(|at| message(fixture, &format!("key-{}", at % 13), &number(batch * 1_000 + at)));
        publish(&publisher, batch.collect()).await;
    }
    let partitions = fixture.published().await;
    for key in 0..13 {
        let key = Bytes::from(format!("key-{key}"));
        let of_key = |message: &&Message| message.key.as_ref() == Some(&key);
        let mut with = partitions.iter().filter(|messages| messages.iter().any(|it| of_key(&it)));
        let (one, other) = (with.next(), with.next());
        assert!(other.is_none(), "{key:?} is in several partitions");
        let one = one.expect("the key was published");
        let values: Vec<_> = one.iter().filter(of_key).map(|it| &it.value).collect();
        assert!(values.is_sorted(), "{key:?} is out of order");
    }
}

/// Keys and values pass byte for byte: missing, empty, not utf-8, large.
pub async fn keys_and_values_pass_byte_for_byte<F: PublisherFixture>(fixture: &F) {
    let publisher = fixture.open().await;
    let bytes = |bytes: &'static [u8]| Some(Bytes::from_static(bytes));
    let large = Some(Bytes::from(vec![7; 500_000]));
    let pairs = [
        (bytes(b"1"), None),
        (bytes(b"2"), bytes(b"\xff\x00\xfe")),
        (bytes(b"\x00\xff"), bytes(b"value")),
        (bytes(b"3"), bytes(b"")),
        (bytes(b"4"), large),
        (None, bytes(b"keyless")),
    ];
    let topic = fixture.topic();
    let batch: Vec<Message> = pairs
        .into_iter()
        .map(|(key, value)| Message { topic: Arc::clone(&topic), key, value })
        .collect();
    publish(&publisher, batch.clone()).await;
    let there = fixture.published().await.concat();
    assert_eq!(there.len(), batch.len());
    for mut message in batch {
        message.value = message.value.or_else(|| fixture.tombstone());
        assert!(there.contains(&message), "key {:?} is not there as it was", message.key);
    }
}

/// A batch whose publishing was dropped, at any moment, is published again: nothing is lost, and the
/// last messages of a key are in order.
pub async fn a_dropped_batch_is_published_again_and_nothing_is_lost<F: PublisherFixture>(
    fixture: &F,
) {
    let publisher = fixture.open().await;
    let mut all = Vec::new();
    let mut micros = 1;
    for batch in 0..20 {
        let batch: Vec<Message> =
            (0..50).map(|at| message(fixture, "key", &number(batch * 50 + at))).collect();
        all.extend(batch.iter().map(|message| message.value.clone()));
        let first = publisher.publish(batch.clone());
        let ended = timeout(Duration::from_micros(micros), first).await;
        if !ended.is_ok_and(|published| published.is_ok()) {
            publish(&publisher, batch).await;
        }
        micros = if micros > 20_000 { 1 } else { micros * 3 };
    }
    let there = fixture.published().await.concat();
    let mut last = BTreeMap::new();
    for (at, message) in there.iter().enumerate() {
        last.insert(at, &message.value);
    }
    // Each value's last place.
    let places: BTreeMap<_, _> = last.into_iter().map(|(at, value)| (value, at)).collect();
    let places: Vec<_> = all
        .iter()
        .map(|value| places.get(value).unwrap_or_else(|| panic!("{value:?} is lost")))
        .collect();
    assert!(places.is_sorted(), "what was published last is out of order");
}

/// A batch with nothing in it is published.
pub async fn an_empty_batch_is_published<F: PublisherFixture>(fixture: &F) {
    publish(&fixture.open().await, Vec::new()).await;
    assert_eq!(fixture.published().await.concat(), []);
}

async fn publish<P: Publisher>(publisher: &P, batch: Vec<Message>) {
    let published = timeout(BOUND, publisher.publish(batch)).await;
    published.expect("publishing ends in time").expect("the broker takes it");
}

fn message<F: PublisherFixture>(fixture: &F, key: &str, value: &str) -> Message {
    Message {
        topic: fixture.topic(),
        key: Some(Bytes::copy_from_slice(key.as_bytes())),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
    }
}

/// A number as a text that sorts like it.
fn number(number: usize) -> String {
    format!("{number:08}")
}
