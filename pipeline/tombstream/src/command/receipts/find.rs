//! `receipts find`: one deletion's part of the chain, with its proof.

use anyhow::{Context as _, anyhow};
use tombstream_connectors::postgres::{prove, receipts_of};
use tombstream_model::DeletionId;

use crate::command::Failure;
use crate::command::hold::RowArg;
use crate::config::Config;
use crate::wiring;

pub(super) async fn find(
    config: &Config,
    deletion: Option<i64>,
    row: Option<RowArg>,
) -> Result<(), Failure> {
    let pool = wiring::connect_ledger(&config.database, "tombstream-receipts").await?;
    let unread = "the receipts can't be read; is the ledger migrated (`tombstream migrate`)?";
    let found = match (deletion, row) {
        (Some(deletion), _) => vec![DeletionId(deletion)],
        (None, Some(row)) => {
            let (relation, key) = row.find(config)?;
            let keyed = wiring::keyed_hash(config)?;
            receipts_of(&pool, &relation.name, &key, keyed.as_ref()).await.context(unread)?
        }
        (None, None) => Vec::new(),
    };
    let mut is_any = false;
    for deletion in found {
        for proof in prove(&pool, deletion).await.context(unread)? {
            is_any = true;
            println!("{}", proof.text());
            if !proof.is_sealed() {
                eprintln!(
                    "deletion {deletion}: not sealed yet, so nothing proves this; `run` seals it"
                );
            }
        }
    }
    if is_any {
        return Ok(());
    }
    let hint = match config.receipts.secret {
        Some(_) => "",
        None => "; receipts of hashed keys are found with [receipts] secret alone",
    };
    Err(Failure::Other(anyhow!("there is no such receipt{hint}")))
}
