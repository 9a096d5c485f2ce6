//! What is looked after beside the dataflow: the server's generation, closed deletions, the chain of receipts,
//! notices to be published, what is audited (`audit.rs`) and archived (`archive.rs`), and what is begun by the clock
//! (`schedule.rs`). Nothing of it holds up a deletion.

use std::time::Duration;

use sqlx::PgPool;
use tokio::task::JoinSet;
use tombstream_connectors::postgres::{self, RehydrateError, Sealer, Turn};
use tombstream_model::{Disposition, Publisher};
use tracing::{error, info, warn};

#[cfg(feature = "parquet")]
use crate::archive::Archivist;
use crate::audit;
use crate::command::ledger;
use crate::config::Config;
use crate::schedule;
use crate::wiring::{self, Watched};

/// How often the server is asked which life of it this is.
const LOOK: Duration = Duration::from_secs(10);
/// How often what waits is counted: some partial indexes are read, and alarms look every minute or so.
const COUNT: Duration = Duration::from_secs(30);
/// How often receipts are sealed: a block, and so a proof, is so old at most.
const SEAL: Duration = Duration::from_secs(1);
/// The longest wait after receipts could not be sealed.
const SEAL_WAIT_MAX: Duration = Duration::from_secs(60);
/// How often notices are looked for.
const TELL: Duration = Duration::from_secs(1);
/// The longest wait after notices could not be told.
const TELL_WAIT_MAX: Duration = Duration::from_secs(60);

/// Tasks that end when this is dropped.
pub(crate) struct Upkeep {
    _tasks: JoinSet<()>,
}

impl Upkeep {
    pub(crate) fn start(config: &Config, pool: PgPool, watched: Watched) -> anyhow::Result<Self> {
        let mut tasks = JoinSet::new();
        audit::spawn(&mut tasks, config, &pool, &watched.sinks);
        schedule::spawn(&mut tasks, config, &pool, &watched.sinks);
        tasks.spawn(watch(watched));
        tasks.spawn(ledger::tidy_hourly(pool.clone(), config.ledger.retention));
        tasks.spawn(seal(Sealer::new(pool.clone())));
        let names = config.relations.iter().map(|relation| relation.name.to_string()).collect();
        tasks.spawn(count(pool.clone(), names));
        #[cfg(feature = "parquet")]
        if let Some(section) = &config.archive {
            tasks.spawn(Archivist::new(config, section, pool.clone())?.run());
        }
        if let Some(section) = &config.rehydrate {
            let publisher = wiring::rehydrate_publisher(&section.settings)?;
            tasks.spawn(tell(pool, publisher, section.topic.clone()));
        }
        Ok(Self { _tasks: tasks })
    }
}

/// After a failover the positions of the old life order nothing, and events of its last moments may be lost.
async fn watch(watched: Watched) {
    loop {
        tokio::time::sleep(LOOK).await;
        match watched.ledger.generation().await {
            Ok(seen) => {
                if watched.server.set(seen.generation, seen.written) {
                    warn!(
                        generation = seen.generation.0,
                        "another server or timeline: what was seen before orders nothing; the sweep looks \
                         at every flag now"
                    );
                    watched.bell.ring();
                }
            }
            // The stages say so, too.
            Err(failed) => info!(error = %failed, "the server's generation can't be asked"),
        }
    }
}

/// Seals receipts, in whichever process is first.
async fn seal(mut sealer: Sealer) {
    let mut wait = SEAL;
    loop {
        tokio::time::sleep(wait).await;
        wait = match sealer.turn().await {
            Ok(Turn::Sealed(entries)) => {
                metrics::counter!("tombstream_receipts_sealed_total")
                    .increment(entries.unsigned_abs());
                // What is left of a large rest goes at once; what was written meanwhile waits.
                if entries >= Sealer::BLOCK_MAX { Duration::ZERO } else { SEAL }
            }
            Ok(Turn::Nothing | Turn::Waits | Turn::Another) => SEAL,
            Err(failed) => {
                warn!(error = super::command::chain(&failed), "receipts are not sealed");
                (wait.max(SEAL) * 2).min(SEAL_WAIT_MAX)
            }
        };
    }
}

/// Gauges of what waits in the ledger. Every process shows the same.
async fn count(pool: PgPool, relations: Vec<String>) {
    loop {
        match postgres::waiting(&pool).await {
            Ok(waiting) => {
                for name in &relations {
                    let of = waiting.iter().find(|waiting| waiting.relation == *name);
                    let of = of.cloned().unwrap_or_default();
                    for (gauge, value) in [
                        ("tombstream_breaker_tripped", i64::from(of.tripped_at.is_some())),
                        ("tombstream_kept_back", of.kept_back),
                        ("tombstream_holds_active", of.holds),
                        ("tombstream_parked", of.parked),
                        ("tombstream_hidden", of.hidden),
                        ("tombstream_rehydrations_open", of.rehydrations),
                    ] {
                        metrics::gauge!(gauge, "relation" => name.clone()).set(value as f64);
                    }
                }
            }
            Err(failed) => info!(error = %failed, "what waits can't be counted"),
        }
        match postgres::sealing(&pool).await {
            Ok(sealing) => {
                metrics::gauge!("tombstream_receipts_unsealed").set(sealing.unsealed as f64);
                let waits = sealing.waits_seconds.unwrap_or_default();
                metrics::gauge!("tombstream_receipts_unsealed_seconds").set(waits);
                let age = sealing.age_seconds.unwrap_or_default();
                metrics::gauge!("tombstream_receipts_block_age_seconds").set(age);
            }
            Err(failed) => info!(error = %failed, "the unsealed receipts can't be counted"),
        }
        tokio::time::sleep(COUNT).await;
    }
}

async fn tell(pool: PgPool, publisher: impl Publisher, topic: String) {
    let mut wait = TELL;
    loop {
        tokio::time::sleep(wait).await;
        match postgres::publish_rehydrations(&pool, &publisher, &topic).await {
            Ok(0) => wait = TELL,
            Ok(notices) => {
                info!(notices, topic, "rehydrate notices published");
                metrics::counter!("tombstream_rehydrate_published_total").increment(notices as u64);
                wait = Duration::ZERO;
            }
            Err(failed) => {
                wait = (wait.max(TELL) * 2).min(TELL_WAIT_MAX);
                let text = super::command::chain(&failed);
                let needs_a_person = matches!(
                    &failed,
                    RehydrateError::Publish(error) if error.disposition() == Disposition::Halt
                );
                if needs_a_person {
                    error!(error = text, topic, "rehydrate notices are not published");
                } else {
                    warn!(error = text, topic, "rehydrate notices are not published yet");
                }
            }
        }
    }
}
