//! The Kafka publisher on a real broker.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

#[path = "kafka/proxy.rs"]
mod proxy;

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proxy::{Mood, Proxy};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::time::timeout;
use tombstream_connectors::kafka::{self, KafkaPublisher, KafkaPublisherConfig, Setting};
use tombstream_model::{Disposition, Message, PublishError, Publisher};
use tombstream_testing::conformance::publisher::{self, PublisherFixture};
use uuid::Uuid;

/// No test waits longer than this for anything.
const BOUND: Duration = Duration::from_secs(60);

fn brokers() -> String {
    std::env::var("TOMBSTREAM_TEST_KAFKA_BROKERS").expect(
        "TOMBSTREAM_TEST_KAFKA_BROKERS is not set: `cargo xtask test` starts a broker and sets it",
    )
}

fn client() -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", brokers());
    client
}

/// A topic under a random name.
struct Topic {
    name: Arc<str>,
    partitions: i32,
}

impl Topic {
    fn unmade() -> Self {
        Self { name: format!("published-{}", Uuid::new_v4()).into(), partitions: 0 }
    }

    async fn new(partitions: i32) -> Self {
        Self::with(partitions, "1000000").await
    }

    async fn with(partitions: i32, bytes_max: &str) -> Self {
        let topic = Self { partitions, ..Self::unmade() };
        topic.make(bytes_max).await;
        topic
    }

    async fn make(&self, bytes_max: &str) {
        let admin: AdminClient<DefaultClientContext> = client().create().unwrap();
        let new = NewTopic::new(&self.name, self.partitions, TopicReplication::Fixed(1))
            .set("max.message.bytes", bytes_max);
        let made = admin.create_topics([&new], &AdminOptions::new()).await.unwrap();
        made.into_iter().for_each(|made| {
            made.unwrap();
        });
    }

    fn message(&self, key: &str, value: &str) -> Message {
        let bytes = |text: &str| Some(Bytes::copy_from_slice(text.as_bytes()));
        Message { topic: Arc::clone(&self.name), key: bytes(key), value: bytes(value) }
    }

    fn numbers(&self, range: std::ops::Range<usize>) -> Vec<Message> {
        range.map(|number| self.message("k", &format!("{number:06}"))).collect()
    }

    /// Everything in the topic, by partition.
    fn read(&self) -> Vec<Vec<Message>> {
        let consumer: BaseConsumer = client().set("group.id", "reader").create().unwrap();
        let mut all = TopicPartitionList::new();
        let mut left = 0;
        for partition in 0..self.partitions {
            let marks = consumer.fetch_watermarks(&self.name, partition, BOUND);
            let (low, high) = marks.unwrap();
            left += high - low;
            all.add_partition_offset(&self.name, partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&all).unwrap();
        let mut partitions = vec![Vec::new(); self.partitions as usize];
        while left > 0 {
            let message = consumer.poll(BOUND).expect("a message in time").unwrap();
            let own = |bytes: Option<&[u8]>| bytes.map(Bytes::copy_from_slice);
            partitions[message.partition() as usize].push(Message {
                topic: Arc::clone(&self.name),
                key: own(message.key()),
                value: own(message.payload()),
            });
            left -= 1;
        }
        partitions
    }
}

impl PublisherFixture for Topic {
    type Publisher = KafkaPublisher;

    async fn open(&self) -> KafkaPublisher {
        publisher(&brokers(), &[])
    }

    fn topic(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    async fn published(&self) -> Vec<Vec<Message>> {
        self.read()
    }

    fn tombstone(&self) -> Option<Bytes> {
        None
    }
}

fn publisher(brokers: &str, settings: &[(&str, i64)]) -> KafkaPublisher {
    let mut config = KafkaPublisherConfig::new(brokers);
    // A topic made this moment is not known to every thread of the broker.
    config.settings.insert("topic.metadata.refresh.interval.ms".into(), Setting::Integer(300));
    for (name, value) in settings {
        config.settings.insert((*name).into(), Setting::Integer(*value));
    }
    KafkaPublisher::new(config).unwrap()
}

async fn publish(publisher: &KafkaPublisher, batch: Vec<Message>) -> Result<(), PublishError> {
    timeout(BOUND, publisher.publish(batch)).await.expect("publishing ends in time")
}

fn said(error: &PublishError) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

fn values(messages: &[Message]) -> Vec<Option<Bytes>> {
    messages.iter().map(|message| message.value.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_publisher_conforms() {
    publisher::all_is_there_when_publish_returns(&Topic::new(3).await).await;
    publisher::the_order_of_a_key_is_kept(&Topic::new(3).await).await;
    publisher::keys_and_values_pass_byte_for_byte(&Topic::new(3).await).await;
    publisher::a_dropped_batch_is_published_again_and_nothing_is_lost(&Topic::new(3).await).await;
    publisher::an_empty_batch_is_published(&Topic::new(3).await).await;
}

/// `org.apache.kafka.common.utils.Utils.murmur2`, and its `toPositive`.
fn murmur2(bytes: &[u8]) -> u32 {
    let mix = |k: u32| {
        let k = k.wrapping_mul(0x5bd1_e995);
        (k ^ (k >> 24)).wrapping_mul(0x5bd1_e995)
    };
    let mut h = 0x9747_b28c ^ u32::try_from(bytes.len()).unwrap();
    let (words, rest) = bytes.as_chunks::<4>();
    for word in words {
        h = h.wrapping_mul(0x5bd1_e995) ^ mix(u32::from_le_bytes(*word));
    }
    if !rest.is_empty() {
        for (at, byte) in rest.iter().enumerate() {
            h ^= u32::from(*byte) << (8 * at);
        }
        h = h.wrapping_mul(0x5bd1_e995);
    }
    h = (h ^ (h >> 13)).wrapping_mul(0x5bd1_e995);
    h ^ (h >> 15)
}

/// The vectors of Kafka's own `UtilsTest.testMurmur2`.
const VECTORS: [(&str, i32); 6] = [
    ("21", -973_932_308),
    ("foobar", -790_332_482),
    ("a-little-bit-long-string", -985_981_536),
    ("a-little-bit-longer-string", -1_486_304_829),
    ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
    ("abc", 479_470_107),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_key_goes_to_the_partition_where_java_would_put_it() {
    for (key, hash) in VECTORS {
        assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
    }
    let topic = Topic::new(7).await;
    let mut keys: Vec<String> = VECTORS.iter().map(|(key, _)| (*key).to_owned()).collect();
    keys.extend((0..200).map(|number| format!("{{\"id\":{number}}}")));
    let batch = keys.iter().map(|key| topic.message(key, "v")).collect();
    publish(&publisher(&brokers(), &[]), batch).await.unwrap();
    let partitions = topic.read();
    assert_eq!(partitions.concat().len(), keys.len());
    for (number, messages) in partitions.iter().enumerate() {
        for message in messages {
            let hash = murmur2(message.key.as_ref().unwrap());
            assert_eq!((hash & 0x7fff_ffff) as usize % 7, number, "{:?}", message.key);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_repeats_nothing() {
    let topic = Topic::new(1).await;
    let proxy = Proxy::start(&brokers()).await;
    let publisher = publisher(&proxy.address, &[("reconnect.backoff.max.ms", 100)]);
    publish(&publisher, topic.numbers(0..10)).await.unwrap();
    proxy.set(Mood::Deaf);
    let publishing = publish(&publisher, topic.numbers(10..500));
    let opening = async {
        // Until the broker has what it could not say it has.
        while topic.read()[0].len() < 500 {
            tokio::task::yield_now().await;
        }
        proxy.set(Mood::Open);
    };
    let opening = async { timeout(BOUND, opening).await.expect("all of it arrives") };
    let (published, ()) = tokio::join!(publishing, opening);
    published.unwrap();
    publish(&publisher, topic.numbers(500..510)).await.unwrap();
    assert_eq!(values(&topic.read()[0]), values(&topic.numbers(0..510)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_goes_away_in_between_loses_nothing_and_the_last_ones_are_in_order() {
    let topic = Topic::new(1).await;
    let proxy = Proxy::start(&brokers()).await;
    let settings = [
        ("message.timeout.ms", 300),
        ("reconnect.backoff.ms", 10),
        ("reconnect.backoff.max.ms", 50),
    ];
    let publisher = publisher(&proxy.address, &settings);
    let mut failed = 0;
    for round in 0..30_usize {
        let batch = topic.numbers(round * 200..round * 200 + 200);
        let mood = [Mood::Open, Mood::Away, Mood::Deaf][round % 3];
        let trouble = async {
            tokio::time::sleep(Duration::from_micros(round as u64 * 100)).await;
            proxy.set(mood);
        };
        let (first, ()) = tokio::join!(publish(&publisher, batch.clone()), trouble);
        let mut published = first;
        while let Err(error) = published {
            assert_eq!(error.disposition(), Disposition::Retry, "{}", said(&error));
            failed += 1;
            proxy.set(Mood::Open);
            published = publish(&publisher, batch.clone()).await;
        }
        proxy.set(Mood::Open);
    }
    assert!(failed > 0, "no batch failed, so nothing was tried");
    let there = values(&topic.read()[0]);
    let last: Vec<usize> = values(&topic.numbers(0..6_000))
        .iter()
        .map(|value| there.iter().rposition(|it| it == value).expect("none is lost"))
        .collect();
    assert!(last.is_sorted(), "what was published last is out of order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_does_not_exist_is_named_and_taken_once_it_is_made() {
    let topic = Topic { partitions: 2, ..Topic::unmade() };
    let settings = [("topic.metadata.propagation.max.ms", 500), ("message.timeout.ms", 3_000)];
    let publisher = publisher(&brokers(), &settings);
    let error = publish(&publisher, topic.numbers(0..3)).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Retry);
    let said = said(&error);
    assert!(said.contains(&*topic.name) && said.contains("create it"), "{said}");
    topic.make("1000000").await;
    let taken = async { while publish(&publisher, topic.numbers(0..3)).await.is_err() {} };
    timeout(BOUND, taken).await.unwrap();
    assert_eq!(topic.read().concat().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_the_topic_does_not_take_halts_and_says_what_to_raise() {
    let topic = Topic::with(1, "10000").await;
    let publisher = publisher(&brokers(), &[]);
    // Not to be compressed.
    let noise: Vec<u8> = (0..50_000).flat_map(|_| Uuid::new_v4().into_bytes()).collect();
    let mut large = topic.message("k", "");
    large.value = Some(noise.into());
    let error = publish(&publisher, vec![large]).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Halt);
    assert!(error.to_string().contains("max.message.bytes"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_the_brokers_and_what_is_wrong_with_topics_and_makes_none() {
    let there = Topic::new(3).await;
    let missing = Topic::unmade();
    let mut config = KafkaPublisherConfig::new(brokers());
    config.settings.insert("allow.auto.create.topics".into(), Setting::Boolean(true));
    let topics = [there.name.to_string(), missing.name.to_string()];
    let look = || kafka::check_publisher(&config, &topics);
    let facts = timeout(BOUND, look()).await.unwrap().unwrap();
    assert_eq!(facts.brokers, [brokers()]);
    assert_eq!((facts.topics[0].partitions, &facts.topics[0].problem), (3, &None));
    let facts = timeout(BOUND, look()).await.unwrap().unwrap();
    let problem = facts.topics[1].problem.as_ref().unwrap();
    assert!(problem.contains("create it"), "{problem}");
}
