//! `tombstream resume`: ends a relation's pause.

use anyhow::Context as _;
use tombstream_connectors::postgres;

use super::migrate::chosen;
use crate::config::Config;
use crate::wiring;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The relation.
    relation: String,
}

pub(super) async fn resume(config: Config, args: Args) -> anyhow::Result<()> {
    chosen(&config, Some(&args.relation))?;
    let pool = wiring::connect(&config.database, "tombstream-resume").await?;
    let was_paused = postgres::resume_relation(&pool, &args.relation)
        .await
        .context("the ledger can't be written; is it migrated (`tombstream migrate`)?")?;
    if was_paused {
        println!("{} goes on; its absent share is counted anew", args.relation);
    } else {
        println!("{} was not paused", args.relation);
    }
    Ok(())
}
