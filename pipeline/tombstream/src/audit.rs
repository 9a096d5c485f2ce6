//! The audit beside a pipeline that runs: one task for each store, so that one that is down stops its own part
//! only; and the same looks for the keys that a replay meets.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tombstream_connectors::ReplayProgress;
use tombstream_connectors::postgres::{Audit, AuditError, Bygone, Count, Tally};
use tombstream_dataflow::ErasedSink;
use tombstream_model::{Key, Outcome, Presence, RelationId, Sink, SinkError, StoreId, Target};
use tracing::{info, warn};

use crate::config::Config;
use crate::wiring;

/// The longest rest between two rounds; a quarter of the shortest lag, where that is less.
const REST_MAX: Duration = Duration::from_secs(60);
/// The longest wait after a round that failed.
const FAILED_WAIT_MAX: Duration = Duration::from_secs(300);

/// A store's sink of which no more is known.
pub(crate) struct Looking(pub(crate) Arc<dyn ErasedSink>);

impl Sink for Looking {
    async fn destroy(&self, batch: &[Target]) -> Result<Vec<Outcome>, SinkError> {
        self.0.destroy(batch).await
    }

    async fn look(&self, batch: &[Target]) -> Result<Vec<Presence>, SinkError> {
        self.0.look(batch).await
    }

    fn batch_max(&self) -> usize {
        self.0.batch_max()
    }
}

/// Begins the audit of every store that is to be audited.
pub(crate) fn spawn(
    tasks: &mut JoinSet<()>,
    config: &Config,
    pool: &PgPool,
    sinks: &[Arc<dyn ErasedSink>],
) {
    let Some(shortest) = config.audit.after.iter().min() else { return };
    let rest = (*shortest / 4).min(REST_MAX);
    let audit = Arc::new(wiring::audit(config, pool.clone()));
    for ((store, sink), id) in config.stores.iter().zip(sinks).zip(0..) {
        if store.audit {
            let sink = Looking(Arc::clone(sink));
            let patience = store.timeout;
            tasks.spawn(watch(
                Arc::clone(&audit),
                store.name.clone(),
                StoreId(id),
                sink,
                patience,
                rest,
            ));
        }
    }
}

async fn watch(
    audit: Arc<Audit>,
    name: String,
    store: StoreId,
    sink: Looking,
    patience: Duration,
    rest: Duration,
) {
    let mut wait = rest;
    loop {
        tokio::time::sleep(wait).await;
        match audit.round(store, &sink, patience).await {
            Ok(round) => wait = if round.has_more { Duration::ZERO } else { rest },
            Err(failed) => {
                wait = (wait.max(Duration::from_secs(1)) * 2).min(FAILED_WAIT_MAX);
                let again_s = wait.as_secs();
                match &failed {
                    AuditError::Store { said, retry_after } => {
                        wait = wait.max(retry_after.unwrap_or_default());
                        warn!(store = name, error = said, again_s, "a store can't be audited");
                    }
                    // The stages say so, too.
                    AuditError::Ledger(_) => {
                        let error = crate::command::chain(&failed);
                        info!(store = name, error, again_s, "a store can't be audited");
                    }
                }
            }
        }
    }
}

/// How often a store is asked about the same keys that a replay brought.
const TRIES_MAX: u32 = 8;

/// The stores, asked about the keys that a replay finds finalized. By default none.
#[derive(Debug, Default)]
pub(crate) struct Reverify {
    stores: Vec<mpsc::UnboundedSender<(RelationId, Arc<[Key]>)>>,
    progress: Arc<ReplayProgress>,
}

impl Reverify {
    /// A task for each store that is audited. What waits for them holds up the replay's reading.
    pub(crate) fn start(
        config: &Config,
        pool: PgPool,
        progress: &Arc<ReplayProgress>,
        tally: &Arc<Tally>,
    ) -> anyhow::Result<Self> {
        let audit = Arc::new(wiring::audit(config, pool));
        let mut stores = Vec::new();
        for (store, id) in config.stores.iter().zip(0..) {
            if !store.audit || !store.kind.can_look() {
                continue;
            }
            let (to, keys) = mpsc::unbounded_channel();
            let asked = Asked {
                audit: Arc::clone(&audit),
                name: store.name.clone(),
                store: StoreId(id),
                sink: Looking(wiring::store_sink(store)?),
                patience: store.timeout,
                tally: Arc::clone(tally),
            };
            tokio::spawn(asked.run(keys, Arc::clone(progress)));
            stores.push(to);
        }
        Ok(Self { stores, progress: Arc::clone(progress) })
    }
}

impl Bygone for Reverify {
    fn finalized(&self, relation: RelationId, keys: Vec<Key>) {
        let keys: Arc<[Key]> = keys.into();
        for store in &self.stores {
            self.progress.add_behind(keys.len() as u64);
            if store.send((relation, Arc::clone(&keys))).is_err() {
                self.progress.sub_behind(keys.len() as u64);
            }
        }
    }
}

/// One store of a replay that asks.
struct Asked {
    audit: Arc<Audit>,
    name: String,
    store: StoreId,
    sink: Looking,
    patience: Duration,
    tally: Arc<Tally>,
}

impl Asked {
    async fn run(
        self,
        mut keys: mpsc::UnboundedReceiver<(RelationId, Arc<[Key]>)>,
        progress: Arc<ReplayProgress>,
    ) {
        while let Some((relation, keys)) = keys.recv().await {
            self.look(relation, &keys).await;
            progress.sub_behind(keys.len() as u64);
        }
    }

    async fn look(&self, relation: RelationId, keys: &[Key]) {
        let mut wait = Duration::from_millis(200);
        for attempt in 1..=TRIES_MAX {
            let looked =
                self.audit.keys(relation, self.store, &self.sink, self.patience, keys).await;
            match looked {
                Ok(found) => {
                    self.tally.add(Count::Looked, found.looked);
                    self.tally.add(Count::Resurrected, found.resurrected + found.known);
                    self.tally.add(Count::Reused, found.reused);
                    self.tally.add(Count::Unclear, found.unclear);
                    return;
                }
                Err(failed) => {
                    let error = crate::command::chain(&failed);
                    warn!(store = self.name, attempt, error, "finalized keys can't be looked at");
                    tokio::time::sleep(wait).await;
                    wait *= 2;
                }
            }
        }
        self.tally.add(Count::Unclear, keys.len() as u64);
    }
}
