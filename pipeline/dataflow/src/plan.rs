//! What a pipeline is made of, before it runs: its parts and its limits.
//!
//! Owns the defaults and their reasons. Where a configuration file's values come from is the
//! binary's business.

use std::sync::Arc;
use std::time::Duration;

use tombstream_model::{Ledger, LetterLimits, Relation, StoreId};

use crate::port::{ErasedSink, ErasedSource};
use crate::server::ServerClock;

/// Everything that one process's pipeline is made of.
pub struct Pipeline<L: Ledger> {
    /// The limits.
    pub config: Config,
    /// The relations; a `RelationId` is an index into them.
    pub relations: Arc<[Relation]>,
    /// The ledger.
    pub ledger: Arc<L>,
    /// The stores; a `StoreId` is an index into them.
    pub stores: Vec<Store>,
    /// The sources: topics, the sweep, jobs. They fail, and are committed, each on its own.
    pub sources: Vec<Box<dyn ErasedSource>>,
}

/// The limits of a pipeline.
#[derive(Clone, Debug)]
pub struct Config {
    /// Timely workers. Two: decoding is the cost, and one worker decodes a million events a second.
    pub workers: usize,
    /// Most events read and not yet durable: the backpressure, and the bound of every queue behind
    /// it. 20,000 events of 1 kB are 20 MB, and feed 100 ms of the fastest decoder.
    pub in_flight_max: usize,
    /// How long an epoch stays open after its first record. 20 ms: short beside any store's answer,
    /// long beside the cost of an epoch.
    pub epoch_wait: Duration,
    /// Most records of one epoch. 4,096: five epochs fit into the permits, so that one is read
    /// while others are settled.
    pub epoch_items_max: usize,
    /// How many keys each worker's dedupe remembers, rounded up to what its tables hold. 100,000 take
    /// some 4 MB; forgetting costs a look of the claim and nothing else.
    pub dedupe_keys_max: usize,
    /// Which life of the log the events' positions are from.
    pub server: ServerClock,
    /// The claims. 500 keys lock and decide in milliseconds; four batches in flight a worker.
    pub claim: StageConfig,
    /// The takeovers of open deletions. Small batches: what is owed must stay below live traffic.
    pub resume: StageConfig,
    /// The removal of rows, with receipts.
    pub finalize: StageConfig,
    /// What is recorded as owed.
    pub owe: StageConfig,
    /// Dead letters.
    pub bury: StageConfig,
    /// How much of them is kept.
    pub letters: LetterLimits,
    /// The first and the longest wait of a source that failed.
    pub source_retry_wait_min: Duration,
    /// See `source_retry_wait_min`.
    pub source_retry_wait_max: Duration,
    /// Longest wait for one commit of a source; then it is tried again. Nothing else waits for it.
    pub commit_timeout: Duration,
}

/// One asynchronous stage.
#[derive(Clone, Debug)]
pub struct StageConfig {
    /// Most items of a batch.
    pub items_max: usize,
    /// Longest wait of a batch that is not full, and only while another is in flight. A lone item
    /// goes at once.
    pub linger: Duration,
    /// Longest wait of a batch that what is on its way would fill, whatever else is in flight. Zero waits for nothing.
    pub gather: Duration,
    /// Most batches in flight, for each worker; for a store also the most requests at a time.
    pub in_flight_max: usize,
    /// Longest wait for the answer to one attempt.
    pub timeout: Duration,
    /// Longest wait for all attempts of a batch at a store; then the rest is owed. The ledger's
    /// stages have none: what can't be written down yet is tried until it can.
    pub deadline: Duration,
    /// The wait after the first failure; each next one is twice as long, with jitter …
    pub retry_wait_min: Duration,
    /// … up to this.
    pub retry_wait_max: Duration,
}

/// A store as the dataflow sees it.
pub struct Store {
    /// Its place in the configuration.
    pub id: StoreId,
    /// Its name in metrics, logs and health.
    pub name: Arc<str>,
    /// Where its copies are destroyed.
    pub sink: Arc<dyn ErasedSink>,
    /// Its limits.
    pub config: StoreConfig,
}

/// The limits of one store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Its stage. `items_max` is lowered to the sink's own `batch_max`.
    pub stage: StageConfig,
    /// How long nothing but failures may come back before the store is marked down and everything
    /// for it is owed at once (L3). 30 s: longer than a failover of most stores, shorter than a lease.
    pub unavailable_after: Duration,
    /// How often one batch probes a store that is down.
    pub probe_wait: Duration,
    /// Whether its verdicts are looked up afterwards (S6).
    pub verify: Verify,
}

/// How much of what a store says is looked up afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Every confirmed target.
    ReadBack,
    /// About one target in so many, and at least one of each answer; when one of them contradicts
    /// the answer, all of them.
    Sample {
        /// One in how many.
        one_in: u32,
    },
    /// None.
    Trust,
}

/// Why a pipeline does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A limit that can't be.
    #[error("{name} must not be zero")]
    Zero {
        /// Which one.
        name: &'static str,
    },
    /// A store's place is not its id.
    #[error("store `{name}` has id {id}, but stands at place {place}")]
    StoreOrder {
        /// The store.
        name: Arc<str>,
        /// Its id.
        id: u16,
        /// Its place.
        place: usize,
    },
    /// A relation names a store that is not there.
    #[error("relation `{relation}` has a target in store {store}, which is not configured")]
    UnknownStore {
        /// The relation.
        relation: Arc<str>,
        /// The store's id.
        store: u16,
    },
    /// No thread could be started.
    #[error("workers did not start: {0}")]
    Workers(String),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: 2,
            in_flight_max: 20_000,
            epoch_wait: Duration::from_millis(20),
            epoch_items_max: 4_096,
            dedupe_keys_max: 100_000,
            server: ServerClock::default(),
            claim: StageConfig::ledger(),
            resume: StageConfig { items_max: 100, in_flight_max: 1, ..StageConfig::ledger() },
            finalize: StageConfig::ledger(),
            owe: StageConfig::ledger(),
            bury: StageConfig { items_max: 100, in_flight_max: 1, ..StageConfig::ledger() },
            letters: LetterLimits::default(),
            source_retry_wait_min: Duration::from_millis(200),
            source_retry_wait_max: Duration::from_secs(10),
            commit_timeout: Duration::from_secs(10),
        }
    }
}

impl StageConfig {
    /// For a stage that asks the ledger: 500 rows are one transaction of some milliseconds, two in
    /// flight a worker keep Postgres busy without holding many locks, and an attempt that takes
    /// 30 s has met a lock or a dead server. `deadline` is not used.
    pub fn ledger() -> Self {
        Self {
            items_max: 500,
            linger: Duration::from_millis(5),
            gather: Duration::ZERO,
            in_flight_max: 2,
            timeout: Duration::from_secs(30),
            deadline: Duration::MAX,
            retry_wait_min: Duration::from_millis(50),
            retry_wait_max: Duration::from_secs(5),
        }
    }

    /// For a stage that asks a store: 1,000 is the most S3 takes in one request, and two claims fill it, or ten where
    /// most of what they look at was deleted before (a replay); 5 s are more than these take on a busy server, and nobody
    /// waits for a single row of a backlog; four in flight hide its latency; an attempt of 10 s has met a dead
    /// server; and 30 s for all of them leave a good third of a lease of 60 s for what comes after.
    pub fn store() -> Self {
        Self {
            items_max: 1_000,
            linger: Duration::from_millis(5),
            gather: Duration::from_secs(5),
            in_flight_max: 4,
            timeout: Duration::from_secs(10),
            deadline: Duration::from_secs(30),
            retry_wait_min: Duration::from_millis(100),
            retry_wait_max: Duration::from_secs(5),
        }
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            stage: StageConfig::store(),
            unavailable_after: Duration::from_secs(30),
            probe_wait: Duration::from_secs(5),
            verify: Verify::ReadBack,
        }
    }
}

impl<L: Ledger> Pipeline<L> {
    /// Refuses what can't run.
    pub(crate) fn check(&self) -> Result<(), StartError> {
        let nonzero =
            |name, value| if value == 0 { Err(StartError::Zero { name }) } else { Ok(()) };
        nonzero("workers", self.config.workers)?;
        nonzero("in_flight_max", self.config.in_flight_max)?;
        nonzero("epoch_items_max", self.config.epoch_items_max)?;
        nonzero("dedupe_keys_max", self.config.dedupe_keys_max)?;
        let ledger = [
            &self.config.claim,
            &self.config.resume,
            &self.config.finalize,
            &self.config.owe,
            &self.config.bury,
        ];
        for stage in ledger.into_iter().chain(self.stores.iter().map(|store| &store.config.stage)) {
            nonzero("items_max of a stage", stage.items_max)?;
            nonzero("in_flight_max of a stage", stage.in_flight_max)?;
        }
        for (place, store) in self.stores.iter().enumerate() {
            nonzero("batch_max of a store", store.sink.batch_max())?;
            if usize::from(store.id.0) != place {
                let name = Arc::clone(&store.name);
                return Err(StartError::StoreOrder { name, id: store.id.0, place });
            }
        }
        for relation in self.relations.iter() {
            for target in &relation.targets {
                if usize::from(target.store.0) >= self.stores.len() {
                    let relation = Arc::clone(&relation.name);
                    return Err(StartError::UnknownStore { relation, store: target.store.0 });
                }
            }
        }
        Ok(())
    }
}
