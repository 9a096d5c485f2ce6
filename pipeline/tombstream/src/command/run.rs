//! `tombstream run`: the pipeline, until it is told to stop.

use anyhow::{Context as _, bail};
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tombstream_connectors::postgres::{self, Severity};
use tombstream_dataflow::Running;
use tombstream_model::FlagKind;
use tracing::{error, info, warn};

use crate::config::Config;
use crate::shutdown::Signals;
use crate::telemetry::Metrics;
use crate::upkeep::Upkeep;
use crate::{http, wiring};

/// Questions of `/healthz` and `/readyz` that may wait for their answer.
const ASKS_MAX: usize = 64;

pub(super) async fn run(config: Config) -> anyhow::Result<()> {
    // From here on no signal is lost, however long the start takes.
    let signals = Signals::listen().context("signals")?;
    let metrics = Metrics::install().context("metrics")?;
    until(signals, config, metrics).await
}

/// The pipeline, until `signals` end it.
pub(super) async fn until(
    mut signals: Signals,
    config: Config,
    metrics: Metrics,
) -> anyhow::Result<()> {
    let listen = config.pipeline.listen;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("pipeline.listen: {listen} can't be listened on"))?;

    // Ended when this is left.
    let (running, _upkeep) = tokio::select! {
        running = start(&config) => running?,
        signal = signals.next() => {
            info!(signal, "told to stop before it had started");
            return Ok(());
        }
    };
    let (asks, mut asked) = mpsc::channel::<http::Ask>(ASKS_MAX);
    let port = http::serve(listener, metrics, asks, config.pipeline.epoch_age_max);
    tokio::spawn(async move {
        if let Err(error) = port.await {
            error!(error = %error, "the pipeline's port ended");
        }
    });
    info!(%listen, relations = config.relations.len(), stores = config.stores.len(), "running");

    let signal = loop {
        tokio::select! {
            broken = running.broken() => {
                error!(error = %broken, "the pipeline broke; what was not committed is read again");
                return Err(broken.into());
            }
            signal = signals.next() => break signal,
            Some(ask) = asked.recv() => {
                if ask.send(running.health()).is_err() {
                    warn!("who asked for the health did not wait");
                }
            }
        }
    };
    drop(asked);
    stop(running, signal, &config, &mut signals).await
}

async fn start(config: &Config) -> anyhow::Result<(Running, Upkeep)> {
    let pool = ready(config, "tombstream").await?;
    let (pipeline, watched) = wiring::pipeline(config, pool.clone()).await?;
    let upkeep = Upkeep::start(config, pool, watched)?;
    Ok((pipeline.start(tokio::runtime::Handle::current())?, upkeep))
}

/// Opens the database, and refuses what no pipeline may run on, a job's as little as this one.
pub(super) async fn ready(config: &Config, who: &str) -> anyhow::Result<PgPool> {
    let pool = wiring::connect(&config.database, who).await?;
    fit(config, &pool).await?;
    Ok(pool)
}

/// Refuses a database in which less would be kept than a pipeline must keep, and warns of less.
pub(super) async fn fit(config: &Config, pool: &PgPool) -> anyhow::Result<()> {
    let mut findings =
        postgres::check_ledger(pool).await.context("the ledger can't be looked at")?;
    // A ledger of another version is told of its version alone.
    if findings.iter().all(|finding| finding.severity != Severity::Error) {
        let rights = postgres::check_rights(pool, &config.relations).await;
        findings.extend(rights.context("the login's rights can't be looked at")?);
    }
    for relation in config.relations.iter() {
        // Not left to `check --live` alone: a removed row would touch living children (S3).
        let references = postgres::references(pool, relation, &config.relations).await;
        findings.extend(references.with_context(|| format!("relation {}", relation.name))?);
        // It runs without, but promises less: a late restore is noticed, not refused (S2).
        for guard in postgres::guards(pool, relation).await.context("the guard triggers")? {
            if guard.severity != Severity::Good && relation.flag.kind == FlagKind::Boolean {
                // True tells no two lives apart: only the guard does.
                bail!("relation {}: its flag is a boolean, and {}", relation.name, guard.text);
            }
            if guard.severity != Severity::Good {
                warn!(relation = %relation.name, "{}", guard.text);
            }
        }
    }
    for finding in findings {
        match finding.severity {
            Severity::Good => {}
            Severity::Warning => warn!("{}", finding.text),
            Severity::Error => bail!("{}", finding.text),
        }
    }
    if let Some(former) = wiring::former_stores(config, pool).await?.into_iter().next() {
        bail!("{former}");
    }
    Ok(())
}

/// Stops polling, drains, commits and leaves, in `drain_max`; a second signal leaves at once. What
/// is left then is read again by the next process, or found by the sweep (S7).
async fn stop(
    running: Running,
    signal: &str,
    config: &Config,
    signals: &mut Signals,
) -> anyhow::Result<()> {
    let drain = config.pipeline.drain_max;
    info!(signal, drain_s = drain.as_secs_f64(), "stopping: no more is read");
    tokio::select! {
        stopped = running.stop(drain) => {
            let stopped = stopped?;
            if stopped.drained {
                info!("stopped; everything that was read is durable");
            } else {
                let epochs = stopped.epochs_open;
                warn!(epochs, "stopped before everything was durable; it is read again");
            }
            Ok(())
        }
        signal = signals.next() => {
            warn!(signal, "leaving at once; what was not committed is read again");
            bail!("left without draining")
        }
    }
}
