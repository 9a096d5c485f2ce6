//! A pipeline with everything in memory, and bounded waits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tombstream_dataflow::{
    Config, ErasedSink, ErasedSource, Pipeline, Running, StageConfig, Store, StoreConfig, Verify,
};
use tombstream_model::{
    Address, Candidate, Cause, Flag, FlagKind, Found, Generation, Key, KeyColumn, KeyKind, Lsn,
    OnHardDelete, Position, Relation, RelationId, StoreId,
};
use tombstream_testing::memory::{MemoryLedger, MemorySink, Row, SourceControl};

pub(crate) const RELATION: RelationId = RelationId(0);

/// The most that any wait of a test takes.
pub(crate) const BOUND: Duration = Duration::from_secs(30);

pub(crate) fn key(number: usize) -> Key {
    Key::from_postgres([number.to_string()])
}

pub(crate) fn address(store: usize, key: &Key) -> Address {
    Address::Object { bucket: format!("store-{store}").into(), key: format!("{key}/original") }
}

/// A candidate that an event brought.
pub(crate) fn event(number: usize, lsn: u64) -> Candidate {
    let position = Position { generation: Generation(0), lsn: Lsn(lsn), order: 0 };
    Candidate { position: Some(position), cause: Cause::Event, ..swept(number) }
}

/// A candidate that the sweep brought.
pub(crate) fn swept(number: usize) -> Candidate {
    Candidate {
        relation: RELATION,
        key: key(number),
        position: None,
        cause: Cause::Sweep,
        found: Found::Flagged,
        removed: None,
    }
}

pub(crate) fn relation() -> Relation {
    Relation {
        name: "documents".into(),
        schema: "public".to_owned(),
        table: "documents".to_owned(),
        key: vec![KeyColumn { name: "id".to_owned(), kind: KeyKind::Bigint }],
        flag: Flag { column: "deleted_at".to_owned(), kind: FlagKind::TimestampTz },
        targets: Vec::new(),
        grace: Duration::ZERO,
        hide: None,
        breaker: None,
        on_hard_delete: OnHardDelete::Ignore,
        key_reuse_forbidden: false,
        topics: vec!["app.public.documents".to_owned()],
        allow_cascade: Vec::new(),
    }
}

/// Everything of a test's pipeline that outlives it.
pub(crate) struct Rig {
    pub(crate) ledger: Arc<MemoryLedger>,
    pub(crate) sinks: Vec<Arc<MemorySink>>,
    pub(crate) sources: Vec<SourceControl>,
    pub(crate) config: Config,
    pub(crate) store: StoreConfig,
}

impl Rig {
    /// So many stores and sources, two workers, short waits.
    pub(crate) fn new(stores: usize, sources: usize) -> Self {
        Self::with_lease(stores, sources, Duration::from_secs(60))
    }

    /// Claims that hold for so long.
    pub(crate) fn with_lease(stores: usize, sources: usize, lease: Duration) -> Self {
        let targets = move |_, key: &Key| {
            (0..stores).map(|store| (StoreId(store as u16), address(store, key))).collect()
        };
        let ledger = StageConfig {
            items_max: 50,
            linger: Duration::from_millis(2),
            gather: Duration::ZERO,
            in_flight_max: 2,
            timeout: Duration::from_secs(5),
            deadline: Duration::MAX,
            retry_wait_min: Duration::from_millis(5),
            retry_wait_max: Duration::from_millis(50),
        };
        let config = Config {
            workers: 2,
            in_flight_max: 1_000,
            epoch_wait: Duration::from_millis(2),
            epoch_items_max: 200,
            dedupe_keys_max: 10_000,
            claim: ledger.clone(),
            resume: ledger.clone(),
            finalize: ledger.clone(),
            owe: ledger.clone(),
            bury: ledger.clone(),
            source_retry_wait_min: Duration::from_millis(5),
            source_retry_wait_max: Duration::from_millis(50),
            commit_timeout: Duration::from_secs(5),
            ..Config::default()
        };
        let store = StoreConfig {
            stage: StageConfig {
                timeout: Duration::from_millis(200),
                deadline: Duration::from_secs(2),
                gather: Duration::from_millis(20),
                ..ledger
            },
            unavailable_after: Duration::from_millis(500),
            probe_wait: Duration::from_millis(50),
            verify: Verify::ReadBack,
        };
        Self {
            ledger: Arc::new(MemoryLedger::new(lease, targets)),
            sinks: (0..stores).map(|_| MemorySink::shared(1_000)).collect(),
            sources: (0..sources).map(|at| SourceControl::new(&format!("topic-{at}"))).collect(),
            config,
            store,
        }
    }

    pub(crate) fn start(&self) -> Running {
        let store = |(at, sink): (usize, &Arc<MemorySink>)| Store {
            id: StoreId(at as u16),
            name: format!("store-{at}").into(),
            sink: Arc::clone(sink) as Arc<dyn ErasedSink>,
            config: self.store.clone(),
        };
        let source = |it: &SourceControl| Box::new(it.open()) as Box<dyn ErasedSource>;
        let pipeline = Pipeline {
            config: self.config.clone(),
            relations: Arc::new([relation()]),
            ledger: Arc::clone(&self.ledger),
            stores: self.sinks.iter().enumerate().map(store).collect(),
            sources: self.sources.iter().map(source).collect(),
        };
        pipeline.start(tokio::runtime::Handle::current()).expect("a pipeline starts")
    }

    /// Soft-deleted rows, with their copies in all stores.
    pub(crate) fn flag(&self, keys: impl IntoIterator<Item = usize>) {
        for number in keys {
            let key = key(number);
            for (store, sink) in self.sinks.iter().enumerate() {
                sink.put(address(store, &key));
            }
            self.ledger.put(RELATION, key, Row::flagged());
        }
    }

    /// Whether everything of a source is committed.
    pub(crate) fn is_committed(&self, source: usize) -> bool {
        let source = &self.sources[source];
        source.committed() == source.polls()
    }

    pub(crate) async fn committed(&self) {
        for source in 0..self.sources.len() {
            until("everything is committed", || self.is_committed(source)).await;
        }
    }
}

/// Waits until `condition` is true, and fails with `what` if it takes too long.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < BOUND, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
