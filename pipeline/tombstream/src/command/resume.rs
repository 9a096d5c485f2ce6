//! `tombstream resume`: ends a relation's pause, after its addresses were looked at.

use anyhow::Context as _;
use tombstream_model::RelationId;

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
    let pool = wiring::connect_ledger(&config.database, "tombstream-resume").await?;
    let place = config.relations.iter().position(|relation| *relation.name == *args.relation);
    let relation = RelationId(u16::try_from(place.context("chosen above")?)?);
    let resumed = wiring::ledger(&config, wiring::ledger_config(&config), pool)?
        .resume_relation(relation)
        .await
        .context("the ledger can't be written; is it migrated (`tombstream migrate`)?")?;
    if resumed.was_paused {
        println!("{} goes on; its absent share is counted anew", args.relation);
    } else {
        println!("{} was not paused", args.relation);
    }
    if resumed.corrected > 0 {
        println!("{} claimed deletions got the addresses of this configuration", resumed.corrected);
    }
    Ok(())
}
