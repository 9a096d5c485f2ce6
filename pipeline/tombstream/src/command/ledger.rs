//! `tombstream ledger`: what is closed goes to the archive, and what is too old is dropped. `run` does the
//! same every hour.

use std::time::Duration;

use anyhow::Context as _;
use sqlx::PgPool;
use tombstream_connectors::postgres::{self, Retention};
use tracing::{info, warn};

use crate::config::Config;
use crate::wiring;

/// How often `run` tidies. What is due in an hour is a few batches.
const EVERY: Duration = Duration::from_secs(3_600);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Move closed deletions to the archive, and drop months of it, as [ledger] says.
    Tidy,
}

pub(super) async fn ledger(config: Config, args: Args) -> anyhow::Result<()> {
    let pool = wiring::connect_ledger(&config.database, "tombstream-ledger").await?;
    match args.command {
        Command::Tidy => {
            let tidied = postgres::tidy(&pool, config.ledger.retention).await.context(
                "the ledger can't be tidied: this login must own it or be a member of \
                 tombstream_pipeline (`tombstream migrate --roles`)",
            )?;
            println!("{} closed deletions moved to the archive", tidied.moved);
            for month in tidied.dropped {
                println!("dropped tombstream.{month}");
            }
            if tidied.is_another {
                println!("another process is at it, and does the rest");
            }
        }
    }
    Ok(())
}

/// Tidies every hour, for as long as the process lives. A round that fails is made good by the next.
pub(crate) async fn tidy_hourly(pool: PgPool, retention: Retention) {
    let mut hour = tokio::time::interval(EVERY);
    hour.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        hour.tick().await;
        match postgres::tidy(&pool, retention).await {
            Ok(tidied) if tidied.moved > 0 || !tidied.dropped.is_empty() => {
                info!(moved = tidied.moved, dropped = ?tidied.dropped, "closed deletions archived");
            }
            Ok(_) => {}
            Err(error) => {
                warn!(error = %super::chain(&error), "the ledger was not tidied; again in an hour");
            }
        }
    }
}
