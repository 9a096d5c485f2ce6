//! The implementations in memory pass the checks that the real ones must pass.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tombstream_model::{
    Address, Candidate, Cause, DeletionId, Fence, Found, Key, Message, PublishError, Publisher,
    RelationId, StoreId, Target,
};
use tombstream_testing::conformance::ledger::LedgerFixture;
use tombstream_testing::conformance::publisher::PublisherFixture;
use tombstream_testing::conformance::sink::SinkFixture;
use tombstream_testing::conformance::source::SourceFixture;
use tombstream_testing::conformance::{ledger, publisher, sink, source};
use tombstream_testing::memory::{
    MemoryLedger, MemoryPublisher, MemorySink, MemorySource, Row, SourceControl,
};

fn object(name: &str) -> Address {
    Address::Object { bucket: "bucket".into(), key: name.to_owned() }
}

struct Sink(MemorySink);

impl Sink {
    fn target(name: &str) -> Target {
        let until = Instant::now() + Duration::from_secs(600);
        Target {
            deletion: DeletionId(1),
            store: StoreId(0),
            address: object(name),
            fence: Fence { token: 1, until },
            lsn: None,
        }
    }
}

impl SinkFixture for Sink {
    type Sink = MemorySink;

    fn sink(&self) -> &MemorySink {
        &self.0
    }

    async fn put(&self, name: &str) -> Target {
        self.0.put(object(name));
        Self::target(name)
    }

    async fn never(&self, name: &str) -> Target {
        Self::target(name)
    }

    async fn exists(&self, target: &Target) -> bool {
        self.0.exists(&target.address)
    }
}

#[tokio::test]
async fn the_sink_conforms() {
    sink::all(&Sink(MemorySink::new(100))).await;
    sink::all(&Sink(MemorySink::new(1))).await;
}

struct Source(SourceControl);

impl SourceFixture for Source {
    type Source = MemorySource;

    async fn open(&self) -> MemorySource {
        self.0.open()
    }

    async fn append(&self, values: &[String]) {
        self.0.values(values.iter().cloned());
    }
}

#[tokio::test]
async fn the_source_conforms() {
    let new = || Source(SourceControl::new("topic"));
    source::everything_comes_with_marks(&new()).await;
    source::what_is_not_committed_comes_again(&new()).await;
    source::what_is_committed_does_not_come_again(&new()).await;
    source::a_commit_covers_no_more_than_its_marks(&new()).await;
    source::dropping_next_loses_nothing(&new()).await;
}

struct Broker(MemoryPublisher);

impl PublisherFixture for Broker {
    type Publisher = MemoryPublisher;

    async fn open(&self) -> MemoryPublisher {
        self.0.clone()
    }

    fn topic(&self) -> Arc<str> {
        "topic".into()
    }

    async fn published(&self) -> Vec<Vec<Message>> {
        vec![self.0.published()]
    }

    fn tombstone(&self) -> Option<Bytes> {
        None
    }
}

#[tokio::test]
async fn the_publisher_conforms() {
    let new = || Broker(MemoryPublisher::new());
    publisher::all_is_there_when_publish_returns(&new()).await;
    publisher::the_order_of_a_key_is_kept(&new()).await;
    publisher::keys_and_values_pass_byte_for_byte(&new()).await;
    publisher::a_dropped_batch_is_published_again_and_nothing_is_lost(&new()).await;
    publisher::an_empty_batch_is_published(&new()).await;
}

#[tokio::test]
async fn a_publisher_fails_as_it_is_told_and_may_have_taken_a_part() {
    let broker = MemoryPublisher::new();
    let message = Message { topic: "topic".into(), key: None, value: None };
    broker.fail_next_after(1, PublishError::Unavailable("away".into()));
    let batch = vec![message.clone(), message];
    assert!(broker.publish(batch.clone()).await.is_err());
    assert_eq!(broker.published().len(), 1);
    broker.publish(batch).await.unwrap();
    assert_eq!((broker.published().len(), broker.calls()), (3, 2));
}

const RELATION: RelationId = RelationId(0);

struct Ledger(MemoryLedger);

impl LedgerFixture for Ledger {
    type Ledger = MemoryLedger;

    fn ledger(&self) -> &MemoryLedger {
        &self.0
    }

    async fn row(&self, number: usize, flagged: bool) -> Candidate {
        let key = Key::from_postgres([number.to_string()]);
        let row = if flagged { Row::flagged() } else { Row::default() };
        self.0.put(RELATION, key.clone(), row);
        Candidate {
            relation: RELATION,
            key,
            position: None,
            cause: Cause::Sweep,
            found: Found::Flagged,
            removed: None,
        }
    }

    async fn flag(&self, row: &Candidate, flagged: bool) {
        let now = if flagged { Row::flagged() } else { Row::default() };
        self.0.put(RELATION, row.key.clone(), now);
    }

    async fn remove(&self, row: &Candidate) {
        self.0.remove(RELATION, &row.key);
    }

    async fn exists(&self, row: &Candidate) -> bool {
        self.0.row(RELATION, &row.key).is_some()
    }

    async fn make_due(&self) {}

    async fn buried(&self, topic: &str) -> usize {
        self.0.buried().iter().filter(|origin| &*origin.topic == topic).count()
    }
}

#[tokio::test]
async fn the_ledger_conforms() {
    let targets = |_, key: &Key| {
        vec![(StoreId(0), object(&format!("{key}/a"))), (StoreId(1), object(&format!("{key}/b")))]
    };
    ledger::all(&Ledger(MemoryLedger::new(Duration::from_secs(600), targets))).await;
}
