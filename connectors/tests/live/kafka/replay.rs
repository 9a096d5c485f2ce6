//! Parts of topics, read once.

use chrono::{DateTime, Utc};
use tombstream_connectors::kafka::{KafkaReplay, KafkaSpan, OffsetSpan};

use super::*;

impl Topic {
    async fn replay(&self, span: KafkaSpan) -> Result<KafkaReplay, kafka::KafkaReplayError> {
        timeout(BOUND, KafkaReplay::open(&self.config(), span)).await.unwrap()
    }

    fn whole(&self) -> KafkaSpan {
        KafkaSpan { topics: vec![self.name.clone()], ..KafkaSpan::default() }
    }

    fn stretch(&self, partition: i32, first: i64, last: Option<i64>) -> KafkaSpan {
        let topic = self.name.clone();
        let offsets = vec![OffsetSpan { topic, partition, first, last }];
        KafkaSpan { offsets, ..KafkaSpan::default() }
    }

    async fn send_at(&self, partition: i32, value: &str, at: DateTime<Utc>) {
        let record = FutureRecord::<str, str>::to(&self.name).partition(partition).payload(value);
        self.producer.send(record.timestamp(at.timestamp_millis()), BOUND).await.unwrap();
    }
}

/// Everything up to its end, by partition.
async fn all(mut replay: KafkaReplay) -> BTreeMap<i32, Vec<String>> {
    let mut read: BTreeMap<i32, Vec<String>> = BTreeMap::new();
    while !replay.has_ended() {
        let polled = timeout(BOUND, replay.next()).await.expect("an event in time").unwrap();
        assert!(polled.marks.is_empty(), "there is nothing to commit");
        for event in events(&polled) {
            read.entry(event.origin.partition).or_default().push(value(event));
        }
    }
    read
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_reads_to_the_end_that_was_there_when_it_began() {
    let topic = Topic::new(3).await;
    for partition in 0..2 {
        topic.send(partition, numbers(0..2_500)).await;
    }
    let replay = topic.replay(topic.whole()).await.unwrap();
    assert_eq!(replay.total(), 5_000);
    topic.send(0, numbers(2_500..2_600)).await;
    let expected = BTreeMap::from([(0, numbers(0..2_500)), (1, numbers(0..2_500))]);
    assert_eq!(all(replay).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_moves_no_group() {
    let topic = Topic::new(1).await;
    topic.send(0, numbers(0..50)).await;
    topic.commit_by_hand(0, 20);
    let mut live = topic.source();
    let (_, marks) = read(&mut live, 30).await;
    let replayed = all(topic.replay(topic.whole()).await.unwrap()).await;
    assert_eq!(replayed[&0], numbers(0..50));
    assert_eq!(topic.committed().await, BTreeMap::from([(0, Some(20))]));
    // Nor was the live member sent away: its assignment still commits.
    live.commit(marks).await.unwrap();
    assert_eq!(topic.committed().await, BTreeMap::from([(0, Some(50))]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_of_offsets_takes_both_ends_and_no_more() {
    let topic = Topic::new(2).await;
    topic.send(0, numbers(0..100)).await;
    topic.send(1, numbers(0..100)).await;
    let read = all(topic.replay(topic.stretch(1, 10, Some(19))).await.unwrap()).await;
    assert_eq!(read, BTreeMap::from([(1, numbers(10..20))]));
    let read = all(topic.replay(topic.stretch(0, 95, None)).await.unwrap()).await;
    assert_eq!(read, BTreeMap::from([(0, numbers(95..100))]));
    let read = all(topic.replay(topic.stretch(0, 100, None)).await.unwrap()).await;
    assert!(read.is_empty());
    let one = KafkaSpan { partitions: vec![1], ..topic.whole() };
    assert_eq!(all(topic.replay(one).await.unwrap()).await, BTreeMap::from([(1, numbers(0..100))]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_by_time_takes_what_was_written_within_it() {
    let topic = Topic::new(1).await;
    let at = |seconds: i64| DateTime::from_timestamp(1_750_000_000 + seconds, 0).unwrap();
    for second in 0..10 {
        topic.send_at(0, &second.to_string(), at(second)).await;
    }
    let of = async |from: Option<i64>, to: Option<i64>| {
        let span = KafkaSpan { from: from.map(at), to: to.map(at), ..topic.whole() };
        all(topic.replay(span).await.unwrap()).await.remove(&0).unwrap_or_default()
    };
    assert_eq!(of(Some(3), Some(6)).await, numbers(3..6));
    assert_eq!(of(None, Some(6)).await, numbers(0..6));
    assert_eq!(of(Some(8), None).await, numbers(8..10));
    assert_eq!(of(Some(-100), Some(1_000)).await, numbers(0..10));
    assert!(of(Some(100), None).await.is_empty());
    assert!(of(Some(6), Some(3)).await.is_empty());
}

/// What retention took must not look like "read": it is refused, and the sweep or the archive has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_of_what_is_not_in_the_log_is_refused() {
    let topic = Topic::new(1).await;
    topic.send(0, numbers(0..100)).await;
    topic.delete_before(0, 40).await;
    let refused = async |span| match topic.replay(span).await {
        Err(error) => error.to_string(),
        Ok(_) => panic!("it was not refused"),
    };
    let said = refused(topic.stretch(0, 10, Some(60))).await;
    assert!(said.contains("has the offsets 40 to 100, and 10 is none of them"), "{said}");
    refused(topic.stretch(0, 101, None)).await;
    let said = refused(KafkaSpan { partitions: vec![7], ..topic.whole() }).await;
    assert!(said.contains("has 1 partitions"), "{said}");
    let none = KafkaSpan { topics: vec![format!("{}-none", topic.name)], ..KafkaSpan::default() };
    assert!(refused(none).await.contains("there is no topic"));
    assert_eq!(all(topic.replay(topic.whole()).await.unwrap()).await[&0], numbers(40..100));
}
