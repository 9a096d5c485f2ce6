//! `tombstream stores`: the stores that the ledger knows, and a person's word about one that is gone.

use anyhow::{Context as _, bail};
use tombstream_connectors::postgres;

use super::migrate::chosen;
use crate::config::Config;
use crate::wiring;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Open deletions go on without this store's proof, and `run` starts without it.
    Waive {
        /// The store, as it was called in the configuration.
        store: String,
        /// Whose copies were there.
        #[arg(long, value_name = "NAME")]
        relation: String,
        /// Why nothing is there any more. Every receipt that has no proof of this store says it.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// Who says so.
        #[arg(long, value_name = "WHO")]
        actor: String,
    },
}

pub(super) async fn stores(config: Config, args: Args) -> anyhow::Result<()> {
    let Command::Waive { store, relation, reason, actor } = args.command;
    chosen(&config, Some(&relation))?;
    if config.stores.iter().any(|known| known.name == store) {
        let targets = config.relations.iter().find(|known| *known.name == *relation);
        let is_target = targets.is_some_and(|known| {
            known.targets.iter().any(|it| config.stores[usize::from(it.store.0)].name == store)
        });
        if is_target {
            bail!(
                "store {store} is a target of relation {relation}: take it out of the configuration first, or \
                 waive single deletions with `tombstream parked waive`"
            );
        }
    }
    let pool = wiring::connect_ledger(&config.database, "tombstream-stores").await?;
    let waived = postgres::waive_store(&pool, &relation, &store, &actor, &reason)
        .await
        .context("the ledger can't be written; is it migrated (`tombstream migrate`)?")?;
    if !waived.was_known {
        bail!("relation {relation} never had copies in a store {store}");
    }
    println!(
        "store {store} is waived for {relation}; {} open deletions go on without it",
        waived.deletions
    );
    Ok(())
}
