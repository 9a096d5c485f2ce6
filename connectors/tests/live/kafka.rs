//! The Kafka source on a real broker.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

#[path = "kafka/replay.rs"]
mod replay;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use metrics::{KeyName, Metadata, SharedString, Unit};
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::time::timeout;
use tombstream_connectors::kafka::{self, Gap, KafkaConfig, KafkaSource, Setting};
use tombstream_model::{Event, Mark, Polled, Records, Source, SourceError};
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
    client.set("bootstrap.servers", brokers()).set("message.max.bytes", "20000000");
    client
}

/// A topic under a random name, and a group for it.
struct Topic {
    name: String,
    group: String,
    admin: AdminClient<DefaultClientContext>,
    producer: FutureProducer,
}

impl Topic {
    async fn new(partitions: i32) -> Self {
        let name = format!("test-{}", Uuid::new_v4());
        let topic = Self {
            group: format!("group-{name}"),
            name,
            admin: client().create().unwrap(),
            producer: client().create().unwrap(),
        };
        topic.create(partitions).await;
        topic
    }

    async fn create(&self, partitions: i32) {
        let new = NewTopic::new(&self.name, partitions, TopicReplication::Fixed(1))
            .set("max.message.bytes", "20000000");
        let made = self.admin.create_topics([&new], &AdminOptions::new()).await.unwrap();
        made.into_iter().for_each(|made| {
            made.unwrap();
        });
        // Made is not yet known to every thread of the broker.
        timeout(BOUND, async {
            while self.facts().await.topics[0].partitions.len() != partitions as usize {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
    }

    async fn facts(&self) -> kafka::KafkaFacts {
        let config = self.config();
        let asked = kafka::check(&config, std::slice::from_ref(&self.name));
        match timeout(BOUND, asked).await.unwrap() {
            Ok(facts) => facts,
            // A partition made this moment has no leader yet.
            Err(kafka::KafkaCheckError::LookUp { .. }) => kafka::KafkaFacts {
                brokers: Vec::new(),
                topics: vec![kafka::TopicFacts {
                    topic: self.name.clone(),
                    partitions: Vec::new(),
                    problem: None,
                }],
            },
            Err(error) => panic!("{error}"),
        }
    }

    fn config(&self) -> KafkaConfig {
        let mut config = KafkaConfig::new(&self.group, brokers());
        for (name, value) in [
            ("session.timeout.ms", 6_000),
            ("heartbeat.interval.ms", 500),
            ("topic.metadata.refresh.interval.ms", 500),
            ("fetch.wait.max.ms", 50),
        ] {
            config.settings.insert(name.into(), Setting::Integer(value));
        }
        config
    }

    fn source(&self) -> KafkaSource {
        self.source_with(&self.config())
    }

    fn source_with(&self, config: &KafkaConfig) -> KafkaSource {
        let none = |gap: &Gap| panic!("no gap was expected, but {gap:?}");
        KafkaSource::new(config, std::slice::from_ref(&self.name), none).unwrap()
    }

    /// A source that keeps the gaps that it reports.
    fn source_with_gaps(&self, config: &KafkaConfig) -> (KafkaSource, Arc<Mutex<Vec<Gap>>>) {
        let gaps = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&gaps);
        let on_gap = move |gap: &Gap| kept.lock().unwrap().push(gap.clone());
        (KafkaSource::new(config, std::slice::from_ref(&self.name), on_gap).unwrap(), gaps)
    }

    async fn send(&self, partition: i32, values: impl IntoIterator<Item = String>) {
        let values: Vec<String> = values.into_iter().collect();
        let mut sent = Vec::new();
        for value in &values {
            let record = FutureRecord::<str, str>::to(&self.name);
            let record = record.partition(partition).key(&value[..1]).payload(value);
            sent.push(self.producer.send_result(record).unwrap());
        }
        for sent in sent {
            sent.await.unwrap().unwrap();
        }
    }

    async fn delete_before(&self, partition: i32, offset: i64) {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(&self.name, partition, Offset::Offset(offset)).unwrap();
        self.admin.delete_records(&offsets, &AdminOptions::new()).await.unwrap();
    }

    /// What the group committed, by partition.
    async fn committed(&self) -> BTreeMap<i32, Option<i64>> {
        let facts = self.facts().await;
        let partitions = facts.topics[0].partitions.iter();
        partitions.map(|partition| (partition.partition, partition.committed)).collect()
    }

    /// Commits in the name of the group, from outside of it.
    fn commit_by_hand(&self, partition: i32, offset: i64) {
        let consumer: BaseConsumer =
            client().set("group.id", &self.group).create().expect("a consumer");
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(&self.name, partition, Offset::Offset(offset)).unwrap();
        consumer.commit(&offsets, CommitMode::Sync).unwrap();
    }
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

fn events(polled: &Polled) -> &[Event] {
    match &polled.records {
        Records::Events(events) => events,
        other => panic!("kafka brings events, not {other:?}"),
    }
}

fn value(event: &Event) -> String {
    String::from_utf8(event.value.clone().unwrap().to_vec()).unwrap()
}

async fn next(source: &mut KafkaSource) -> Polled {
    timeout(BOUND, source.next()).await.expect("an event in time").unwrap()
}

/// Polls until there are `count` events. Marks are one a partition, the newest.
async fn read(source: &mut KafkaSource, count: usize) -> (Vec<Event>, Vec<Mark>) {
    let mut all = Vec::new();
    let mut marks = BTreeMap::new();
    while all.len() < count {
        let polled = next(source).await;
        assert!(!polled.records.is_empty() && !polled.marks.is_empty());
        all.extend_from_slice(events(&polled));
        for mark in polled.marks {
            marks.insert(mark.partition, mark);
        }
    }
    assert_eq!(all.len(), count, "more came than was sent");
    (all, marks.into_values().collect())
}

async fn values(source: &mut KafkaSource, count: usize) -> Vec<String> {
    read(source, count).await.0.iter().map(value).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_without_offsets_reads_from_the_beginning() {
    let topic = Topic::new(1).await;
    topic.send(0, numbers(0..10)).await;
    assert_eq!(values(&mut topic.source(), 10).await, numbers(0..10));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_committed_comes_again() {
    let topic = Topic::new(1).await;
    topic.send(0, numbers(0..10)).await;
    {
        let mut source = topic.source();
        let (_, marks) = read(&mut source, 10).await;
        let half = vec![Mark { next: 4, ..marks[0].clone() }];
        source.commit(half).await.unwrap();
        assert_eq!(topic.committed().await, BTreeMap::from([(0, Some(4))]));
    }
    assert_eq!(values(&mut topic.source(), 6).await, numbers(4..10));
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_only_go_forward() {
    let topic = Topic::new(1).await;
    topic.send(0, numbers(0..10)).await;
    let mut source = topic.source();
    let (_, marks) = read(&mut source, 10).await;
    let at = |next| vec![Mark { next, ..marks[0].clone() }];
    source.commit(at(8)).await.unwrap();
    source.commit(at(3)).await.unwrap();
    drop(source);
    assert_eq!(topic.committed().await, BTreeMap::from([(0, Some(8))]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_handed_in_is_committed_on_the_way_out() {
    let topic = Topic::new(1).await;
    topic.send(0, numbers(0..2_000)).await;
    let mut source = topic.source();
    let (_, marks) = read(&mut source, 2_000).await;
    // Nobody waits for an answer, so an early commit is on its way while the last is handed in.
    for next in 1..=2_000 {
        let mark = Mark { next, ..marks[0].clone() };
        assert!(source.commit(vec![mark]).now_or_never().is_none_or(|early| early.is_ok()));
    }
    drop(source);
    assert_eq!(topic.committed().await, BTreeMap::from([(0, Some(2_000))]));
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_come_in_batches_with_one_mark_for_each_partition() {
    let topic = Topic::new(2).await;
    for partition in 0..2 {
        topic.send(partition, numbers(0..5_000)).await;
    }
    let mut source = topic.source();
    let (mut count, mut polls) = (0, 0);
    while count < 10_000 {
        let polled = next(&mut source).await;
        let mut last = BTreeMap::new();
        for event in events(&polled) {
            last.insert(event.origin.partition, event.origin.offset + 1);
        }
        let marks: Vec<_> = polled.marks.iter().map(|mark| (mark.partition, mark.next)).collect();
        assert_eq!(BTreeMap::from_iter(marks.clone()), last);
        assert_eq!(marks.len(), last.len());
        assert!(polled.records.len() <= 1_000);
        count += polled.records.len();
        polls += 1;
    }
    assert!(polls < 200, "{polls} polls for 10,000 messages");
}

#[tokio::test(flavor = "multi_thread")]
async fn null_keys_and_null_values_pass_as_they_are() {
    let topic = Topic::new(1).await;
    let record = || FutureRecord::<str, str>::to(&topic.name).partition(0);
    for record in [record(), record().key("k"), record().payload("v"), record().key("").payload("")]
    {
        topic.producer.send(record, BOUND).await.unwrap();
    }
    let (all, _) = read(&mut topic.source(), 4).await;
    let text = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map(|bytes| bytes.to_vec());
    let pairs: Vec<_> = all.iter().map(|event| (text(&event.key), text(&event.value))).collect();
    let some = |text: &str| Some(text.as_bytes().to_vec());
    assert_eq!(pairs, [(None, None), (some("k"), None), (None, some("v")), (some(""), some(""))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_ten_megabytes_arrives_whole() {
    let topic = Topic::new(1).await;
    let big = "x".repeat(10_000_000);
    topic.send(0, ["before".into(), big.clone(), "after".into()]).await;
    let mut config = topic.config();
    config.buffer_bytes_max = 1.try_into().unwrap();
    let got = values(&mut topic.source_with(&config), 3).await;
    assert!(got == ["before", big.as_str(), "after"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_next_loses_nothing() {
    let topic = Topic::new(1).await;
    let mut source = topic.source();
    let sending = tokio::spawn(async move {
        for part in 0..100 {
            topic.send(0, numbers(part * 20..part * 20 + 20)).await;
        }
        topic
    });
    let (mut got, mut dropped) = (Vec::new(), 0);
    let all = async {
        while got.len() < 2_000 {
            match timeout(Duration::from_micros(300), source.next()).await {
                Ok(polled) => got.extend(events(&polled.unwrap()).iter().map(value)),
                Err(_) => dropped += 1,
            }
        }
    };
    timeout(BOUND, all).await.unwrap();
    assert!(dropped > 0, "nothing was dropped, so nothing was tried");
    assert_eq!(got, numbers(0..2_000));
    sending.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_committed_offset_beyond_the_end_is_reported_and_read_from_the_beginning() {
    let topic = Topic::new(1).await;
    topic.send(0, numbers(0..5)).await;
    topic.commit_by_hand(0, 1_000);
    assert!(topic.facts().await.topics[0].partitions[0].out_of_range);
    let (mut source, gaps) = topic.source_with_gaps(&topic.config());
    let (all, marks) = read(&mut source, 5).await;
    assert_eq!(all.iter().map(value).collect::<Vec<_>>(), numbers(0..5));
    let gap = Gap { topic: topic.name.clone(), partition: 0, committed: 1_000, low: 0, high: 5 };
    assert_eq!(*gaps.lock().unwrap(), [gap]);
    // The group has to come back into the log, though that is a smaller offset.
    source.commit(marks).await.unwrap();
    drop(source);
    assert_eq!(topic.committed().await, BTreeMap::from([(0, Some(5))]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_committed_offset_below_the_log_is_reported_and_read_from_the_beginning() {
    let topic = Topic::new(1).await;
    topic.send(0, numbers(0..10)).await;
    topic.commit_by_hand(0, 2);
    topic.delete_before(0, 6).await;
    let (mut source, gaps) = topic.source_with_gaps(&topic.config());
    assert_eq!(values(&mut source, 4).await, numbers(6..10));
    let gap = Gap { topic: topic.name.clone(), partition: 0, committed: 2, low: 6, high: 10 };
    assert_eq!(*gaps.lock().unwrap(), [gap]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_cut_while_it_is_read_is_reported_and_read_on() {
    let topic = Topic::new(1).await;
    let text = |number: usize| format!("{number:010}").repeat(1_000);
    topic.send(0, (0..2_000).map(text)).await;
    // Small buffers, so that most of the log is not fetched yet when it is cut.
    let mut config = topic.config();
    config.buffer_bytes_max = 100_000.try_into().unwrap();
    for (name, value) in [
        ("queued.max.messages.kbytes", 1_024),
        ("message.max.bytes", 100_000),
        ("fetch.max.bytes", 500_000),
        ("fetch.message.max.bytes", 500_000),
    ] {
        config.settings.insert(name.into(), Setting::Integer(value));
    }
    let (mut source, gaps) = topic.source_with_gaps(&config);
    let mut offsets: Vec<i64> = Vec::new();
    let note = |offsets: &mut Vec<i64>, polled: &Polled| {
        offsets.extend(events(polled).iter().map(|event| event.origin.offset));
    };
    let first = next(&mut source).await;
    note(&mut offsets, &first);
    topic.delete_before(0, 1_900).await;
    let mut marks = first.marks.clone();
    while offsets.last() != Some(&1_999) {
        let polled = next(&mut source).await;
        note(&mut offsets, &polled);
        marks = polled.marks;
    }
    let cut = offsets.iter().position(|offset| *offset == 1_900).unwrap();
    assert!(cut < 1_000, "{cut} were read before the cut was noticed");
    assert!(offsets[..cut].iter().enumerate().all(|(index, offset)| index as i64 == *offset));
    assert!(offsets[cut..].iter().zip(1_900..).all(|(offset, expected)| *offset == expected));
    let gaps = gaps.lock().unwrap().clone();
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert_eq!((gaps[0].committed, gaps[0].low), (cut as i64, 1_900));
    // Marks from before the gap are dead, those after it count.
    assert!(marks[0].assignment > first.marks[0].assignment);
    source.commit(first.marks).await.unwrap();
    assert_eq!(topic.committed().await, BTreeMap::from([(0, None)]));
    source.commit(marks).await.unwrap();
    assert_eq!(topic.committed().await, BTreeMap::from([(0, Some(2_000))]));
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_of_a_dead_assignment_are_not_committed() {
    let topic = Topic::new(4).await;
    for partition in 0..4 {
        topic.send(partition, numbers(0..10)).await;
    }
    let mut first = topic.source();
    let (_, marks) = read(&mut first, 40).await;
    assert_eq!(marks.len(), 4);
    // Nothing was committed, so the second reads its two partitions again.
    let mut second = topic.source();
    let (again, moved) = read(&mut second, 20).await;
    assert_eq!((again.len(), moved.len()), (20, 2));
    first.commit(marks).await.unwrap();
    let moved: BTreeSet<i32> = moved.iter().map(|mark| mark.partition).collect();
    for (partition, committed) in topic.committed().await {
        let expected = if moved.contains(&partition) { None } else { Some(10) };
        assert_eq!(committed, expected, "partition {partition}");
    }
    // The partitions that stayed went on under the same assignment, and come only once.
    for partition in 0..4 {
        topic.send(partition, numbers(10..11)).await;
    }
    let (more, _) = read(&mut first, 2).await;
    assert!(more.iter().all(|event| !moved.contains(&event.origin.partition)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_of_a_partition_that_went_is_forgotten() {
    let topic = Topic::new(4).await;
    for partition in 0..4 {
        topic.send(partition, numbers(0..10)).await;
    }
    // Room for all of it, of which one poll takes a quarter.
    let mut config = topic.config();
    config.items_max = 10.try_into().unwrap();
    let mut first = topic.source_with(&config);
    next(&mut first).await;
    let mut second = topic.source();
    let (_, moved) = read(&mut second, 20).await;
    let moved: BTreeSet<i32> = moved.iter().map(|mark| mark.partition).collect();
    let stayed: Vec<i32> = (0..4).filter(|partition| !moved.contains(partition)).collect();
    for partition in &stayed {
        topic.send(*partition, ["last".to_owned()]).await;
    }
    let mut last = 0;
    while last < stayed.len() {
        let polled = next(&mut first).await;
        last += events(&polled).iter().filter(|event| value(event) == "last").count();
        assert!(polled.marks.iter().all(|mark| stayed.contains(&mark.partition)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_grows_and_shrinks_loses_nothing() {
    let topic = Arc::new(Topic::new(4).await);
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let mut members = Vec::new();
    let (stop, stopped) = tokio::sync::watch::channel(0);
    let member = |number: usize| {
        let (mut source, seen, mut stopped) = (topic.source(), Arc::clone(&seen), stopped.clone());
        tokio::spawn(async move {
            loop {
                let polled = tokio::select! {
                    polled = source.next() => polled.unwrap(),
                    _ = stopped.wait_for(|first| number < *first) => return,
                };
                let mut all = Vec::new();
                for event in events(&polled) {
                    all.push((event.origin.partition, event.origin.offset));
                }
                seen.lock().unwrap().extend(all);
                source.commit(polled.marks).await.unwrap();
            }
        })
    };
    for round in 0..4 {
        if round < 2 {
            members.push(member(round));
        } else if round == 2 {
            stop.send(1).unwrap();
        }
        for partition in 0..4 {
            topic.send(partition, numbers(0..500)).await;
        }
        let all = async {
            while seen.lock().unwrap().len() < (round + 1) * 2_000 {
                tokio::task::yield_now().await;
            }
        };
        timeout(BOUND, all).await.unwrap_or_else(|_| {
            panic!("round {round}: {} of {} seen", seen.lock().unwrap().len(), (round + 1) * 2_000)
        });
    }
    stop.send(usize::MAX).unwrap();
    for member in members {
        member.await.unwrap();
    }
    let all: BTreeMap<_, _> = (0..4).map(|partition| (partition, Some(2_000))).collect();
    assert_eq!(topic.committed().await, all);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebalance_is_answered_while_nobody_asks_for_events() {
    let topic = Topic::new(2).await;
    for partition in 0..2 {
        topic.send(partition, numbers(0..2_000)).await;
    }
    let mut config = topic.config();
    config.items_max = 10.try_into().unwrap();
    let mut first = topic.source_with(&config);
    let mut seen = BTreeSet::new();
    let note = |seen: &mut BTreeSet<_>, polled: &Polled| {
        seen.extend(
            events(polled).iter().map(|event| (event.origin.partition, event.origin.offset)),
        );
    };
    note(&mut seen, &next(&mut first).await);
    // The first is full now, and is not asked again until the second has its partition whole.
    let mut second = topic.source();
    let (all, marks) = read(&mut second, 2_000).await;
    assert_eq!(marks.len(), 1);
    seen.extend(all.iter().map(|event| (event.origin.partition, event.origin.offset)));
    while seen.len() < 4_000 {
        let polled = next(&mut first).await;
        // What it had of the partition that went is forgotten.
        assert!(polled.marks.iter().all(|mark| mark.partition != marks[0].partition));
        note(&mut seen, &polled);
    }
    // It was paused when it went; it is not when it comes back.
    drop(second);
    let (_, back) = read(&mut first, 2_000).await;
    assert_eq!((back.len(), back[0].partition), (1, marks[0].partition));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_topic_stops_alone_and_comes_again_after_a_restart() {
    let (one, two) = (Topic::new(2).await, Topic::new(1).await);
    let names = [one.name.clone(), two.name.clone()];
    let open = || KafkaSource::new(&one.config(), &names, |gap| panic!("{gap:?}")).unwrap();
    let mut source = open();
    one.send(0, numbers(0..1)).await;
    two.send(0, numbers(0..1)).await;
    let mut marks = BTreeMap::new();
    while marks.len() < 2 {
        for mark in next(&mut source).await.marks {
            marks.insert(mark.topic.to_string(), mark);
        }
    }
    source.pause(&one.name).unwrap();
    source.commit(marks.into_values().collect()).await.unwrap();
    one.send(0, numbers(1..100)).await;
    one.send(1, numbers(0..100)).await;
    for number in 1..50 {
        two.send(0, numbers(number..number + 1)).await;
        let polled = next(&mut source).await;
        assert!(events(&polled).iter().all(|event| *event.origin.topic == *two.name));
        source.commit(polled.marks).await.unwrap();
    }
    drop(source);
    let mut source = open();
    let (all, _) = read(&mut source, 199).await;
    assert!(all.iter().all(|event| *event.origin.topic == *one.name));
    drop(source);
    // Paused before anything was assigned.
    let mut source = open();
    source.pause(&one.name).unwrap();
    two.send(0, numbers(50..51)).await;
    assert!(events(&next(&mut source).await).iter().all(|event| *event.origin.topic == *two.name));
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_are_added_are_read() {
    let topic = Topic::new(2).await;
    topic.send(0, numbers(0..1)).await;
    let mut source = topic.source();
    assert_eq!(values(&mut source, 1).await, numbers(0..1));
    let more = NewPartitions::new(&topic.name, 4);
    topic.admin.create_partitions([&more], &AdminOptions::new()).await.unwrap();
    let wait = async {
        while topic.facts().await.topics[0].partitions.len() < 4 {
            tokio::task::yield_now().await;
        }
    };
    timeout(BOUND, wait).await.unwrap();
    let producer: FutureProducer = client().create().unwrap();
    let record = FutureRecord::<str, str>::to(&topic.name).partition(3).key("k").payload("late");
    producer.send(record, BOUND).await.unwrap();
    assert_eq!(values(&mut source, 1).await, ["late"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_made_later_is_waited_for() {
    let topic = Topic::new(1).await;
    let later = Topic { name: format!("{}-later", topic.name), ..topic };
    let mut source = later.source();
    let facts = later.facts().await;
    assert!(facts.topics[0].problem.as_ref().unwrap().contains("does not exist"));
    assert!(!facts.brokers.is_empty());
    let early = timeout(Duration::from_secs(2), source.next()).await;
    assert!(early.is_err(), "{early:?}");
    // Asking has not made it.
    assert!(later.facts().await.topics[0].partitions.is_empty());
    later.create(1).await;
    later.send(0, numbers(0..3)).await;
    assert_eq!(values(&mut source, 3).await, numbers(0..3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_not_there_is_unavailable_and_said_by_the_check() {
    let config = KafkaConfig::new("nobody", "127.0.0.1:1");
    let topics = ["nothing".to_owned()];
    let mut source = KafkaSource::new(&config, &topics, |_| {}).unwrap();
    let error = timeout(BOUND, source.next()).await.unwrap().unwrap_err();
    assert!(matches!(error, SourceError::Unavailable(_)), "{error:?}");
    drop(source);
    let error = timeout(BOUND, kafka::check(&config, &topics)).await.unwrap().unwrap_err();
    let message = error.to_string();
    assert!(message.contains("127.0.0.1:1") && message.contains("refused"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_check_tells_partitions_offsets_and_lag() {
    let topic = Topic::new(2).await;
    topic.send(1, numbers(0..7)).await;
    topic.commit_by_hand(1, 3);
    let facts = topic.facts().await;
    assert_eq!(facts.brokers, [brokers()]);
    let partitions = &facts.topics[0].partitions;
    let lags: Vec<_> = partitions.iter().map(|one| (one.committed, one.lag)).collect();
    assert_eq!(lags, [(None, 0), (Some(3), 4)]);
    assert_eq!(facts.topics[0].problem, None);
}

/// Keeps the gauges of this process, by name and labels.
struct Gauges(Mutex<BTreeMap<String, Arc<AtomicU64>>>);

static GAUGES: Gauges = Gauges(Mutex::new(BTreeMap::new()));

impl metrics::Recorder for &'static Gauges {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &metrics::Key, _: &Metadata<'_>) -> metrics::Counter {
        metrics::Counter::noop()
    }

    fn register_gauge(&self, key: &metrics::Key, _: &Metadata<'_>) -> metrics::Gauge {
        let labels: Vec<_> = key.labels().map(metrics::Label::value).collect();
        let name = format!("{} {}", key.name(), labels.join(" "));
        metrics::Gauge::from_arc(Arc::clone(self.0.lock().unwrap().entry(name).or_default()))
    }

    fn register_histogram(&self, _: &metrics::Key, _: &Metadata<'_>) -> metrics::Histogram {
        metrics::Histogram::noop()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_by_partition_is_in_the_metrics() {
    metrics::set_global_recorder(&GAUGES).unwrap();
    let topic = Topic::new(2).await;
    topic.send(1, numbers(0..7)).await;
    let lag = async |partition: i32, expected: f64| {
        let name = format!("tombstream_kafka_lag {} {partition}", topic.name);
        let reached = async {
            while GAUGES.0.lock().unwrap().get(&name).is_none_or(|gauge| {
                f64::from_bits(gauge.load(Ordering::Relaxed)).to_bits() != expected.to_bits()
            }) {
                tokio::task::yield_now().await;
            }
        };
        timeout(BOUND, reached).await.unwrap_or_else(|_| panic!("{name} is never {expected}"));
    };
    let mut config = topic.config();
    config.settings.insert("statistics.interval.ms".into(), Setting::Integer(100));
    let mut source = topic.source_with(&config);
    let (_, marks) = read(&mut source, 7).await;
    // Read is not committed.
    lag(1, 7.0).await;
    lag(0, 0.0).await;
    source.commit(vec![Mark { next: 5, ..marks[0].clone() }]).await.unwrap();
    lag(1, 2.0).await;
    // What went to another process is that one's.
    drop(source);
    lag(1, 0.0).await;
}
