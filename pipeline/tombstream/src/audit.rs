//! The audit beside a pipeline that runs: one task for each store, so that one that is down stops its own part
//! only.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use tokio::task::JoinSet;
use tombstream_connectors::postgres::{Audit, AuditError};
use tombstream_dataflow::ErasedSink;
use tombstream_model::{Outcome, Presence, Sink, SinkError, StoreId, Target};
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
