//! Retention: closed deletions go to the archive, and months of it that are too old are dropped.
//!
//! Receipts stay. What is moved is said by the ledger's own functions (`0006_retention.sql`), which run as
//! its owner: the pipeline's login may not delete a deletion, and makes no tables.

use std::time::Duration;

use sqlx::PgPool;

use super::statement::{BEGIN, whole};

/// Deletions of one transaction: some ten milliseconds, so that no claim waits long for a page.
const BATCH: i64 = 1_000;

/// How long what is closed is kept where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// How long a closed deletion stays beside the open ones.
    pub closed_keep: Duration,
    /// How long it stays in the archive after that, by whole months; none: for ever.
    pub archive_keep: Option<Duration>,
}

/// What one round did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tidied {
    /// Deletions that went to the archive.
    pub moved: u64,
    /// Months of the archive that were dropped, by their tables' names.
    pub dropped: Vec<String>,
    /// Another process was at it: the rest is its own.
    pub is_another: bool,
}

/// Moves what is closed long enough, batch by batch, then drops what is too old. Killed half-way, it has
/// done whole batches.
pub async fn tidy(pool: &PgPool, retention: Retention) -> Result<Tidied, sqlx::Error> {
    let mut tidied = Tidied::default();
    loop {
        let mut transaction = whole(pool, BEGIN).await?;
        let moved: Option<i64> =
            sqlx::query_scalar("select tombstream.archive_closed(make_interval(secs => $1), $2)")
                .persistent(false)
                .bind(retention.closed_keep.as_secs_f64())
                .bind(BATCH)
                .fetch_one(&mut *transaction)
                .await?;
        transaction.commit().await?;
        let Some(moved) = moved else {
            tidied.is_another = true;
            return Ok(tidied);
        };
        tidied.moved += u64::try_from(moved).unwrap_or_default();
        if moved < BATCH {
            break;
        }
    }
    if let Some(keep) = retention.archive_keep {
        // Dropping a month waits for its readers, and whoever comes then waits behind it.
        let begin = "begin isolation level read committed; set local lock_timeout = '5s'";
        let mut transaction = whole(pool, begin).await?;
        tidied.dropped =
            sqlx::query_scalar("select tombstream.drop_archive(make_interval(secs => $1))")
                .persistent(false)
                .bind(keep.as_secs_f64())
                .fetch_all(&mut *transaction)
                .await?;
        transaction.commit().await?;
    }
    Ok(tidied)
}
