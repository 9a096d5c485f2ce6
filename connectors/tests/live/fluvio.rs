//! The Fluvio source and publisher on a real cluster, which is to be on this machine.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

#[path = "fluvio/proxy.rs"]
mod proxy;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fluvio::consumer::ConsumerConfigExt;
use fluvio::dataplane::record::RecordKey;
use fluvio::metadata::topic::{
    CleanupPolicy, CompressionAlgorithm, ReplicaSpec, SegmentBasedPolicy, TopicReplicaParam,
    TopicSpec, TopicStorageConfig,
};
use fluvio::{Fluvio, FluvioClusterConfig, Offset};
use futures::{FutureExt, StreamExt};
use proxy::{Mood, Proxy};
use tokio::time::timeout;
use tombstream_connectors::fluvio::{
    self as connector, FluvioCompression, FluvioConfig, FluvioPublisher, FluvioPublisherConfig,
    FluvioSource, FluvioTopic, Gap,
};
use tombstream_model::{
    Disposition, Event, Mark, Message, Polled, PublishError, Publisher, Records, Source,
};
use tombstream_testing::conformance::publisher::{self, PublisherFixture};
use tombstream_testing::conformance::source::{self, SourceFixture};
use uuid::Uuid;

/// No test waits longer than this for anything.
const BOUND: Duration = Duration::from_secs(60);

fn endpoint() -> String {
    std::env::var("TOMBSTREAM_TEST_FLUVIO_ENDPOINT").expect(
        "TOMBSTREAM_TEST_FLUVIO_ENDPOINT is not set: name the controller of a Fluvio cluster on \
         this machine, such as 127.0.0.1:9003; nothing here can start one",
    )
}

async fn client() -> Fluvio {
    let config = FluvioClusterConfig::new(endpoint());
    let connected = Fluvio::connect_with_config(&config);
    timeout(BOUND, connected).await.expect("a cluster that answers").unwrap()
}

/// A topic under a random name, and a consumer for it.
struct Topic {
    name: String,
    partitions: u32,
    consumer: String,
    client: Fluvio,
}

impl Topic {
    async fn unmade(partitions: u32) -> Self {
        let name = format!("test-{}", Uuid::new_v4());
        Self { consumer: format!("consumer-{name}"), name, partitions, client: client().await }
    }

    async fn new(partitions: u32) -> Self {
        Self::with(partitions, |_| {}).await
    }

    async fn with(partitions: u32, change: impl FnOnce(&mut TopicSpec)) -> Self {
        let topic = Self::unmade(partitions).await;
        topic.make(change).await;
        topic
    }

    async fn make(&self, change: impl FnOnce(&mut TopicSpec)) {
        let replicas = TopicReplicaParam::new(self.partitions, 1, false);
        let mut spec = TopicSpec::from(ReplicaSpec::Computed(replicas));
        change(&mut spec);
        // A controller that is busy may not answer, and make it all the same.
        let mut said = None;
        let made = async {
            while self
                .facts()
                .await
                .is_none_or(|it| it.partitions.len() != self.partitions as usize)
            {
                let admin = self.client.admin().await;
                let create = admin.create(self.name.clone(), false, spec.clone());
                if let Ok(Err(error)) = timeout(Duration::from_secs(5), create).await {
                    said = Some(error);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(BOUND, made).await.is_err() {
            panic!("topic {} was not made: {said:?}", self.name);
        }
    }

    async fn facts(&self) -> Option<connector::FluvioTopicFacts> {
        let facts = connector::check(&self.config(), std::slice::from_ref(&self.name)).await;
        facts.ok()?.topics.pop().filter(|topic| topic.problem.is_none())
    }

    fn config(&self) -> FluvioConfig {
        FluvioConfig::new(endpoint(), &self.consumer)
    }

    fn source(&self) -> FluvioSource {
        self.source_with(&self.config())
    }

    fn source_with(&self, config: &FluvioConfig) -> FluvioSource {
        let none = |gap: &Gap| panic!("no gap was expected, but {gap:?}");
        FluvioSource::new(config, std::slice::from_ref(&self.name), none).unwrap()
    }

    /// A source that keeps the gaps that it reports.
    fn source_with_gaps(&self) -> (FluvioSource, Arc<Mutex<Vec<Gap>>>) {
        let gaps = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&gaps);
        let on_gap = move |gap: &Gap| kept.lock().unwrap().push(gap.clone());
        let names = std::slice::from_ref(&self.name);
        (FluvioSource::new(&self.config(), names, on_gap).unwrap(), gaps)
    }

    /// Sends by Fluvio's own producer, and waits until all of it is there.
    async fn send(&self, records: Vec<(RecordKey, Vec<u8>)>) {
        let producer = self.client.topic_producer(&self.name).await.unwrap();
        for (key, value) in records {
            producer.send(key, value).await.unwrap();
        }
        producer.flush().await.unwrap();
    }

    async fn send_numbers(&self, range: std::ops::Range<usize>) {
        let record = |number: usize| (RecordKey::from("k"), number.to_string().into());
        self.send(range.map(record).collect()).await;
    }

    /// What the consumer's next events are, by partition, as the cluster has it.
    async fn committed(&self) -> BTreeMap<u32, i64> {
        let all = self.client.consumer_offsets().await.unwrap();
        let own = all.into_iter().filter(|it| it.consumer_id == self.consumer);
        own.map(|it| (it.partition, it.offset + 1)).collect()
    }

    /// Everything in the topic by Fluvio's own consumer, by partition.
    async fn read(&self) -> Vec<Vec<Message>> {
        let mut partitions = Vec::new();
        for partition in 0..self.partitions {
            let config = ConsumerConfigExt::builder()
                .topic(&self.name)
                .partition(partition)
                .offset_start(Offset::beginning())
                .disable_continuous(true)
                .max_bytes(64 << 20)
                .build()
                .unwrap();
            // Its stream of an empty partition never ends.
            let facts = self.facts().await.unwrap();
            let mut messages = Vec::new();
            if facts.partitions[partition as usize].high > 0 {
                let mut records = self.client.consumer_with_config(config).await.unwrap();
                while let Some(record) = timeout(BOUND, records.next()).await.unwrap() {
                    let record = record.unwrap();
                    messages.push(Message {
                        topic: self.name.as_str().into(),
                        key: record.key().map(Bytes::copy_from_slice),
                        value: Some(Bytes::copy_from_slice(record.value())),
                    });
                }
            }
            partitions.push(messages);
        }
        partitions
    }

    fn message(&self, key: &str, value: &str) -> Message {
        let bytes = |text: &str| Some(Bytes::copy_from_slice(text.as_bytes()));
        Message { topic: self.name.as_str().into(), key: bytes(key), value: bytes(value) }
    }

    fn messages(&self, range: std::ops::Range<usize>) -> Vec<Message> {
        range.map(|number| self.message("k", &format!("{number:06}"))).collect()
    }
}

impl SourceFixture for Topic {
    type Source = FluvioSource;

    async fn open(&self) -> FluvioSource {
        self.source()
    }

    async fn append(&self, values: &[String]) {
        let mut records = Vec::new();
        for value in values {
            records.push((RecordKey::NULL, value.clone().into()));
        }
        self.send(records).await;
    }
}

impl PublisherFixture for Topic {
    type Publisher = FluvioPublisher;

    async fn open(&self) -> FluvioPublisher {
        FluvioPublisher::new(FluvioPublisherConfig::new(endpoint())).unwrap()
    }

    fn topic(&self) -> Arc<str> {
        self.name.as_str().into()
    }

    async fn published(&self) -> Vec<Vec<Message>> {
        self.read().await
    }

    fn tombstone(&self) -> Option<Bytes> {
        Some(Bytes::new())
    }
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

fn events(polled: &Polled) -> &[Event] {
    match &polled.records {
        Records::Events(events) => events,
        other => panic!("fluvio brings events, not {other:?}"),
    }
}

fn value(event: &Event) -> String {
    String::from_utf8(event.value.clone().unwrap().to_vec()).unwrap()
}

/// Polls until there are `count` events, through errors that pass. Marks are one a partition, the newest.
async fn read(source: &mut FluvioSource, count: usize) -> (Vec<Event>, Vec<Mark>) {
    let mut all = Vec::new();
    let mut marks = BTreeMap::new();
    while all.len() < count {
        let polled = match timeout(BOUND, source.next()).await.expect("an event in time") {
            Ok(polled) => polled,
            Err(error) => {
                assert_eq!(error.disposition(), Disposition::Retry, "{error}");
                continue;
            }
        };
        assert!(!polled.records.is_empty() && !polled.marks.is_empty());
        all.extend_from_slice(events(&polled));
        for mark in polled.marks {
            marks.insert((mark.topic.to_string(), mark.partition), mark);
        }
    }
    assert_eq!(all.len(), count, "more came than was sent");
    (all, marks.into_values().collect())
}

async fn values(source: &mut FluvioSource, count: usize) -> Vec<String> {
    read(source, count).await.0.iter().map(value).collect()
}

async fn publish(publisher: &FluvioPublisher, batch: Vec<Message>) -> Result<(), PublishError> {
    timeout(BOUND, publisher.publish(batch)).await.expect("publishing ends in time")
}

fn said(error: &PublishError) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_conforms() {
    source::everything_comes_with_marks(&Topic::new(2).await).await;
    source::what_is_not_committed_comes_again(&Topic::new(2).await).await;
    source::what_is_committed_does_not_come_again(&Topic::new(2).await).await;
    source::a_commit_covers_no_more_than_its_marks(&Topic::new(2).await).await;
    source::dropping_next_loses_nothing(&Topic::new(2).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_publisher_conforms() {
    publisher::all_is_there_when_publish_returns(&Topic::new(3).await).await;
    publisher::the_order_of_a_key_is_kept(&Topic::new(3).await).await;
    publisher::keys_and_values_pass_byte_for_byte(&Topic::new(3).await).await;
    publisher::a_dropped_batch_is_published_again_and_nothing_is_lost(&Topic::new(3).await).await;
    publisher::an_empty_batch_is_published(&Topic::new(3).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_partitions_of_several_topics_are_read_in_the_order_of_each() {
    let (one, other) = (Topic::new(3).await, Topic::new(1).await);
    for topic in [&one, &other] {
        let records = (0..3_000).map(|number: usize| {
            (RecordKey::from(format!("key-{}", number % 17)), format!("{number:06}").into())
        });
        topic.send(records.collect()).await;
    }
    let topics = [one.name.clone(), other.name.clone()];
    let mut source = FluvioSource::new(&one.config(), &topics, |gap| panic!("{gap:?}")).unwrap();
    let (all, _) = read(&mut source, 6_000).await;
    let mut places = BTreeSet::new();
    let mut last: BTreeMap<_, i64> = BTreeMap::new();
    for event in &all {
        let origin = &event.origin;
        places.insert((origin.topic.to_string(), origin.partition));
        let next = last.entry((origin.topic.to_string(), origin.partition)).or_default();
        assert_eq!(origin.offset, *next, "{origin:?}");
        *next += 1;
    }
    assert_eq!(places.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_is_in_the_cluster_and_only_goes_forward() {
    let topic = Topic::new(1).await;
    topic.send_numbers(0..10).await;
    let mut source = topic.source();
    let (_, marks) = read(&mut source, 10).await;
    assert_eq!(topic.committed().await, BTreeMap::new());
    let at = |next| vec![Mark { next, ..marks[0].clone() }];
    source.commit(at(8)).await.unwrap();
    assert_eq!(topic.committed().await, BTreeMap::from([(0, 8)]));
    source.commit(at(3)).await.unwrap();
    drop(source);
    assert_eq!(topic.committed().await, BTreeMap::from([(0, 8)]));
    assert_eq!(values(&mut topic.source(), 2).await, numbers(8..10));
    let facts = topic.facts().await.unwrap();
    let partition = &facts.partitions[0];
    assert_eq!((partition.low, partition.high), (0, 10));
    assert_eq!((partition.committed, partition.lag), (Some(8), 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_handed_in_is_committed_on_the_way_out() {
    let topic = Topic::new(1).await;
    topic.send_numbers(0..500).await;
    let mut source = topic.source();
    let (_, marks) = read(&mut source, 500).await;
    for next in 1..=500 {
        let mark = Mark { next, ..marks[0].clone() };
        assert!(source.commit(vec![mark]).now_or_never().is_none_or(|early| early.is_ok()));
    }
    drop(source);
    assert_eq!(topic.committed().await, BTreeMap::from([(0, 500)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_value_is_a_tombstone_and_every_codec_is_read() {
    let codecs = [
        CompressionAlgorithm::Gzip,
        CompressionAlgorithm::Snappy,
        CompressionAlgorithm::Lz4,
        CompressionAlgorithm::Zstd,
    ];
    for codec in codecs {
        let topic = Topic::with(1, |spec| spec.set_compression_type(codec.clone())).await;
        // The topic's codec, whatever we are told.
        let mut config = FluvioPublisherConfig::new(endpoint());
        config.compression = FluvioCompression::Gzip;
        let publisher = FluvioPublisher::new(config).unwrap();
        let mut batch = topic.messages(0..3);
        batch[1].value = None;
        publish(&publisher, batch).await.unwrap();
        let (all, _) = read(&mut topic.source(), 3).await;
        let found: Vec<_> = all.iter().map(|event| event.value.as_deref()).collect();
        assert_eq!(found, [Some(&b"000000"[..]), None, Some(b"000002")], "{codec:?}");
        assert_eq!(all[1].key.as_deref(), Some(&b"k"[..]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_goes_to_the_partition_where_fluvio_would_put_it() {
    let (own, fluvios) = (Topic::new(7).await, Topic::new(7).await);
    let keys: Vec<String> = (0..200).map(|number| format!("{{\"id\":{number}}}")).collect();
    let batch = keys.iter().map(|key| own.message(key, "v")).collect();
    let publisher = FluvioPublisher::new(FluvioPublisherConfig::new(endpoint())).unwrap();
    publish(&publisher, batch).await.unwrap();
    let records = keys.iter().map(|key| (RecordKey::from(key.as_str()), b"v".to_vec()));
    fluvios.send(records.collect()).await;
    let keys = |partitions: Vec<Vec<Message>>| -> Vec<Vec<Option<Bytes>>> {
        partitions.into_iter().map(|all| all.into_iter().map(|it| it.key).collect()).collect()
    };
    assert_eq!(keys(own.read().await), keys(fluvios.read().await));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_larger_than_one_answer_arrives_whole() {
    let topic = Topic::new(1).await;
    let publisher = FluvioPublisher::new(FluvioPublisherConfig::new(endpoint())).unwrap();
    let big = "x".repeat(5_000_000);
    let batch = ["before", &big, "after"].map(|value| topic.message("k", value)).to_vec();
    publish(&publisher, batch).await.unwrap();
    let mut config = topic.config();
    config.buffer_bytes_max = 1.try_into().unwrap();
    let got = values(&mut topic.source_with(&config), 3).await;
    assert!(got == ["before", big.as_str(), "after"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_asks_for_is_not_read_and_commits_go_on() {
    let topic = Topic::new(2).await;
    let text = |number: usize| format!("{number:010}").repeat(100);
    let records = (0..20_000).map(|number| (RecordKey::NULL, text(number).into()));
    topic.send(records.collect()).await;
    let proxy = Proxy::start(&endpoint(), &topic.client).await;
    let mut config = FluvioConfig::new(&proxy.endpoint, &topic.consumer);
    config.items_max = 10.try_into().unwrap();
    config.buffer_bytes_max = 50_000.try_into().unwrap();
    let mut source = topic.source_with(&config);
    let first = timeout(BOUND, source.next()).await.unwrap().unwrap();
    assert!(first.records.len() <= 10);
    // The buffer is full, and stays so while commits are answered.
    for mark in &first.marks {
        source.commit(vec![mark.clone()]).await.unwrap();
    }
    let expected =
        first.marks.iter().map(|mark| (u32::try_from(mark.partition).unwrap(), mark.next));
    assert_eq!(topic.committed().await, expected.collect());
    // Without the cluster nothing comes but what was kept: the buffer, and an answer of 1 MiB for each
    // partition. Each event has 1,000 bytes.
    proxy.set(Mood::Away);
    let mut kept = 0;
    while let Ok(polled) = timeout(BOUND, source.next()).await.unwrap() {
        kept += polled.records.len();
    }
    assert!(kept <= 2_300, "{kept} were kept");
    proxy.set(Mood::Open);
    let left = 20_000 - first.records.len() - kept;
    assert_eq!(read(&mut source, left).await.0.len(), left);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_topic_stops_alone_and_comes_again_after_a_restart() {
    let (stays, stops) = (Topic::new(1).await, Topic::new(1).await);
    stays.send_numbers(0..5).await;
    stops.send_numbers(0..5).await;
    let topics = [stays.name.clone(), stops.name.clone()];
    let open = || FluvioSource::new(&stays.config(), &topics, |gap| panic!("{gap:?}")).unwrap();
    let mut source = open();
    let (_, marks) = read(&mut source, 10).await;
    source.pause(&stops.name).unwrap();
    stops.send_numbers(5..10).await;
    stays.send_numbers(5..10).await;
    let (more, later) = read(&mut source, 5).await;
    assert!(more.iter().all(|event| *event.origin.topic == *stays.name));
    // What was read before is committed all the same.
    source.commit([marks, later].concat()).await.unwrap();
    drop(source);
    let (again, _) = read(&mut open(), 5).await;
    assert!(again.iter().all(|event| *event.origin.topic == *stops.name));
    assert_eq!(again.iter().map(value).collect::<Vec<_>>(), numbers(5..10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_made_later_is_waited_for() {
    let (there, later) = (Topic::new(1).await, Topic::unmade(1).await);
    let topics = [there.name.clone(), later.name.clone()];
    let mut source = FluvioSource::new(&there.config(), &topics, |gap| panic!("{gap:?}")).unwrap();
    there.send_numbers(0..3).await;
    assert_eq!(values(&mut source, 3).await, numbers(0..3));
    later.make(|_| {}).await;
    later.send_numbers(3..6).await;
    assert_eq!(values(&mut source, 3).await, numbers(3..6));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_committed_offset_beyond_the_end_is_reported_and_read_from_the_beginning() {
    let topic = Topic::new(1).await;
    topic.send_numbers(0..10).await;
    let mut source = topic.source();
    let (_, marks) = read(&mut source, 10).await;
    // As it is left by an unclean change of leaders.
    source.commit(vec![Mark { next: 1_000, ..marks[0].clone() }]).await.unwrap();
    drop(source);
    assert!(topic.facts().await.unwrap().partitions[0].out_of_range);
    let (mut source, gaps) = topic.source_with_gaps();
    let (all, marks) = read(&mut source, 10).await;
    assert_eq!(all.iter().map(value).collect::<Vec<_>>(), numbers(0..10));
    let gap = Gap { topic: topic.name.clone(), partition: 0, committed: 1_000, low: 0, high: 10 };
    assert_eq!(*gaps.lock().unwrap(), [gap]);
    // The consumer has to come back into the log, though that is a smaller offset.
    source.commit(marks).await.unwrap();
    assert_eq!(topic.committed().await, BTreeMap::from([(0, 10)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_before_our_place_is_not_believed_at_once() {
    let topic = Topic::new(1).await;
    topic.send_numbers(0..10).await;
    let mut source = topic.source();
    let (_, marks) = read(&mut source, 10).await;
    source.commit(vec![Mark { next: 15, ..marks[0].clone() }]).await.unwrap();
    drop(source);
    // So it looks when a new leader does not know yet what the one before it had confirmed.
    let mut source = topic.source();
    assert!(timeout(Duration::from_secs(2), source.next()).await.is_err());
    topic.send_numbers(10..20).await;
    assert_eq!(values(&mut source, 5).await, numbers(15..20));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_removed_is_reported_and_read_from_the_beginning() {
    let topic = Topic::with(1, |spec| {
        spec.set_cleanup_policy(CleanupPolicy::Segment(SegmentBasedPolicy { time_in_seconds: 10 }));
        spec.set_storage(TopicStorageConfig {
            segment_size: Some(100_000),
            max_partition_size: Some(400_000),
        });
    })
    .await;
    topic.send_numbers(0..10).await;
    let mut source = topic.source();
    let (_, marks) = read(&mut source, 10).await;
    let half = vec![Mark { next: 4, ..marks[0].clone() }];
    source.commit(half).await.unwrap();
    drop(source);
    // Until the segment with the consumer's place is gone.
    let gone = async {
        loop {
            topic.send(vec![(RecordKey::NULL, vec![b'x'; 90_000])]).await;
            let facts = topic.facts().await;
            if facts.is_some_and(|facts| facts.partitions[0].low > 4) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    timeout(3 * BOUND, gone).await.expect("retention removes segments");
    let (mut source, gaps) = topic.source_with_gaps();
    let first = timeout(BOUND, source.next()).await.unwrap().unwrap();
    let gaps = gaps.lock().unwrap().clone();
    assert_eq!((gaps.len(), gaps[0].committed), (1, 4));
    assert_eq!(events(&first)[0].origin.offset, gaps[0].low);
    assert!(gaps[0].low > 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_goes_away_in_between_loses_and_repeats_no_event_and_commits_go_on() {
    let topic = Topic::new(2).await;
    let proxy = Proxy::start(&endpoint(), &topic.client).await;
    let config = FluvioConfig::new(&proxy.endpoint, &topic.consumer);
    let mut source = topic.source_with(&config);
    let mut all = Vec::new();
    for (round, mood) in [Mood::Away, Mood::Deaf, Mood::Silent].into_iter().enumerate() {
        let sent = round * 200..round * 200 + 100;
        let records = numbers(sent).into_iter().map(|it| (RecordKey::NULL, it.into()));
        topic.send(records.collect()).await;
        let (some, marks) = read(&mut source, 100).await;
        all.extend(some.iter().map(value));
        proxy.set(mood);
        let sent = round * 200 + 100..round * 200 + 200;
        let records = numbers(sent).into_iter().map(|it| (RecordKey::NULL, it.into()));
        topic.send(records.collect()).await;
        // What is handed in meanwhile is sent once the cluster is back.
        let error = source.commit(marks).await.unwrap_err();
        assert_eq!(error.disposition(), Disposition::Retry);
        proxy.set(Mood::Open);
        let (some, marks) = read(&mut source, 100).await;
        all.extend(some.iter().map(value));
        source.commit(marks).await.unwrap();
        let committed: i64 = topic.committed().await.values().sum();
        assert_eq!(committed, (round as i64 + 1) * 200, "{mood:?}");
    }
    all.sort_by_key(|value| value.parse::<usize>().unwrap());
    assert_eq!(all, numbers(0..600));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_after_a_reconnection_needs_no_new_event() {
    let topic = Topic::new(1).await;
    topic.send_numbers(0..10).await;
    let proxy = Proxy::start(&endpoint(), &topic.client).await;
    let mut source = topic.source_with(&FluvioConfig::new(&proxy.endpoint, &topic.consumer));
    let (_, marks) = read(&mut source, 10).await;
    proxy.set(Mood::Away);
    // Until the reader has noticed.
    let noticed = timeout(BOUND, source.next()).await.unwrap();
    assert_eq!(noticed.unwrap_err().disposition(), Disposition::Retry);
    proxy.set(Mood::Open);
    source.commit(marks).await.unwrap();
    assert_eq!(topic.committed().await, BTreeMap::from([(0, 10)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_not_there_is_unavailable_and_said() {
    let config = FluvioConfig::new("127.0.0.1:1", "nobody");
    let mut source = FluvioSource::new(&config, &["t".into()], |_| {}).unwrap();
    let error = timeout(BOUND, source.next()).await.unwrap().unwrap_err();
    assert_eq!(error.disposition(), Disposition::Retry);
    let said = error.source().unwrap().to_string();
    assert!(said.contains("127.0.0.1:1"), "{said}");
    let error = connector::check(&config, &["t".into()]).await.unwrap_err();
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_whose_cluster_goes_away_loses_nothing_and_the_last_ones_are_in_order() {
    let topic = Topic::new(1).await;
    let proxy = Proxy::start(&endpoint(), &topic.client).await;
    let publisher = FluvioPublisher::new(FluvioPublisherConfig::new(&proxy.endpoint)).unwrap();
    let mut failed = 0;
    for round in 0..30_usize {
        let batch = topic.messages(round * 200..round * 200 + 200);
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
    let there: Vec<_> = topic.read().await.concat().into_iter().map(|it| it.value).collect();
    let last: Vec<usize> = topic
        .messages(0..6_000)
        .iter()
        .map(|it| there.iter().rposition(|value| *value == it.value).expect("none is lost"))
        .collect();
    assert!(last.is_sorted(), "what was published last is out of order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_named_or_made_as_configured() {
    let topic = Topic::unmade(3).await;
    let mut config = FluvioPublisherConfig::new(endpoint());
    let publisher = FluvioPublisher::new(config.clone()).unwrap();
    let error = publish(&publisher, topic.messages(0..3)).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Retry);
    let text = said(&error);
    assert!(text.contains(&topic.name) && text.contains("create it"), "{text}");
    let names = [topic.name.clone()];
    let facts = connector::check_publisher(&config, &names).await.unwrap();
    assert!(facts.topics[0].problem.is_some());
    let one = |number| NonZeroU32::new(number).unwrap();
    config.create = Some(FluvioTopic { partitions: one(3), replicas: one(1) });
    assert!(connector::check_publisher(&config, &names).await.unwrap().topics[0].problem.is_none());
    let publisher = FluvioPublisher::new(config).unwrap();
    let taken = async { while publish(&publisher, topic.messages(0..3)).await.is_err() {} };
    timeout(BOUND, taken).await.unwrap();
    assert_eq!(topic.read().await.concat().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_the_topic_does_not_take_halts_and_says_what_to_raise() {
    let storage =
        TopicStorageConfig { segment_size: Some(10_000), max_partition_size: Some(40_000) };
    let topic = Topic::with(1, |spec| spec.set_storage(storage)).await;
    let publisher = FluvioPublisher::new(FluvioPublisherConfig::new(endpoint())).unwrap();
    let error = publish(&publisher, vec![topic.message("k", &"x".repeat(50_000))]).await;
    let error = error.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Halt);
    assert!(error.to_string().contains("too large"), "{error}");
    // Many small ones pass, though together they are more than a segment holds.
    let batch: Vec<Message> =
        (0..100).map(|it| topic.message("k", &format!("{it:04}").repeat(250))).collect();
    publish(&publisher, batch.clone()).await.unwrap();
    let values = |all: &[Message]| all.iter().map(|it| it.value.clone()).collect::<Vec<_>>();
    assert_eq!(values(&topic.read().await.concat()), values(&batch));
}
