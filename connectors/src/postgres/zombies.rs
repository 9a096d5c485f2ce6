//! Copies that a comparison found of finalized rows, or of no row at all, written down to be destroyed.
//!
//! Owned here: from findings to deletions without a row (`again.rs` decides which). Left to others: the claim,
//! which looks once more whether the key has a row.

use sqlx::PgPool;

use tombstream_model::{Address, DeletionCause, Key, LedgerError, Relation};

use super::again::{Again, Opened, open_again};
use super::pool::ledger_error;
use super::statement::{BEGIN, whole};

/// What is there of a finalized row.
#[derive(Clone, Debug)]
pub struct Zombie {
    /// Which row. Each key once in a batch.
    pub key: Key,
    /// Where: the store's name, and the address in it.
    pub targets: Vec<(String, Address)>,
    /// No template of today leads to one of them: it may be another row's by now, so a person looks first.
    pub is_elsewhere: bool,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZombiesOpened {
    /// There is an open deletion of these.
    pub opened: u64,
    /// Of those, parked.
    pub parked: u64,
    /// Their keys have rows again: left alone.
    pub reused: u64,
    /// Another deletion of the key is open: look again when it is closed.
    pub waits: u64,
}

const NOT_ITS_OWN: &str = "the templates do not lead to an address that the copy was found at, so it may be another \
     row's: look, then retry or waive";

/// Writes a deletion down for each of `batch`, that may be claimed at once. `cause` says whether they are of finalized
/// rows, or orphans of which a person approved.
pub async fn open_zombies(
    pool: &PgPool,
    relation: &Relation,
    batch: &[Zombie],
    cause: DeletionCause,
) -> Result<ZombiesOpened, LedgerError> {
    let again = |zombie: &Zombie| Again {
        key: zombie.key.clone(),
        targets: zombie.targets.clone(),
        // Invariant (S1, S8): what no template gives to this key is destroyed by nobody but a person's order;
        // `a_zombie_at_a_place_that_no_template_leads_to_is_parked`.
        refusal: zombie.is_elsewhere.then(|| NOT_ITS_OWN.to_owned()),
    };
    let asked: Vec<Again> = batch.iter().map(again).collect();
    let opened = async {
        let mut transaction = whole(pool, BEGIN).await?;
        let wait = std::time::Duration::ZERO;
        let opened = open_again(&mut transaction, relation, &asked, cause, wait).await?;
        transaction.commit().await?;
        Ok(opened)
    };
    let mut all = ZombiesOpened::default();
    for (opened, zombie) in opened.await.map_err(ledger_error)?.into_iter().zip(batch) {
        match opened {
            Opened::New | Opened::Known => {
                all.opened += 1;
                all.parked += u64::from(zombie.is_elsewhere);
            }
            Opened::Reused => all.reused += 1,
            Opened::Waits => all.waits += 1,
        }
    }
    Ok(all)
}

/// Keeps who approved of which report's orphans, and how many those are.
pub async fn order_orphans(
    pool: &PgPool,
    relations: &[Relation],
    actor: &str,
    report: &str,
    orphans: u64,
) -> Result<(), LedgerError> {
    let ordered = async {
        let mut transaction = whole(pool, BEGIN).await?;
        sqlx::query(
            "insert into tombstream.operator_order (actor, action, relation, detail) \
             select $1, 'approve-orphans', r, jsonb_build_object('report', $3, 'orphans', $4) \
             from unnest($2::text[]) as r",
        )
        .persistent(false)
        .bind(actor)
        .bind(relations.iter().map(|relation| &*relation.name).collect::<Vec<_>>())
        .bind(report)
        .bind(i64::try_from(orphans).unwrap_or(i64::MAX))
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await
    };
    ordered.await.map_err(ledger_error)
}
