//! `tombstream api`: the REST interface, until it is told to stop.

use anyhow::Context as _;
use tokio::net::TcpListener;
use tombstream_connectors::postgres::{self, LedgerVersion};
use tracing::{info, warn};

use crate::config::Config;
use crate::shutdown::Signals;
use crate::telemetry::Metrics;
use crate::wiring;

pub(super) async fn api(config: Config) -> anyhow::Result<()> {
    let signals = Signals::listen().context("signals")?;
    let metrics = Metrics::install().context("metrics")?;
    until(signals, config, metrics).await
}

/// Refuses a ledger that is newer than this binary. A database that is away, or not migrated yet, is
/// waited for: `/readyz` says so.
async fn known(pool: &sqlx::PgPool) -> anyhow::Result<()> {
    match postgres::check_version(pool).await {
        Err(newer @ LedgerVersion::Newer(_)) => Err(newer.into()),
        Err(other) => {
            warn!(error = %super::chain(&other), "the ledger is not ready yet");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// The api, until `signals` end it.
pub(super) async fn until(
    mut signals: Signals,
    config: Config,
    metrics: Metrics,
) -> anyhow::Result<()> {
    let served = wiring::api(&config, &metrics)?;
    let listen = config.api.listen;
    tombstream_api::check_bind(listen, served.tokens.is_some())?;
    if served.relations.is_empty() {
        warn!("no relation has a section `api`: there is nothing to serve but the process itself");
    }
    let pool = wiring::api_pool(&config).await?;
    known(&pool).await?;
    let router = tombstream_api::router(pool, served)?;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("api.listen: {listen} can't be listened on"))?;
    info!(%listen, "serving");

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let told = async move {
        // Either way there is nothing more to wait for.
        drop(stopped.await);
    };
    let mut serving = std::pin::pin!(tombstream_api::serve(listener, router, told));
    let signal = tokio::select! {
        served = &mut serving => return served.context("the listener ended"),
        signal = signals.next() => signal,
    };
    info!(signal, "stopping: answers under way are still given");
    drop(stop);
    tokio::select! {
        served = &mut serving => served.context("the listener ended"),
        signal = signals.next() => {
            warn!(signal, "leaving at once");
            anyhow::bail!("left with requests under way")
        }
    }
}
