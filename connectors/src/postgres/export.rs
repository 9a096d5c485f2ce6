//! The receipts, read out of the ledger.

use std::collections::BTreeMap;

use sqlx::types::Json;
use sqlx::{PgPool, Postgres, Transaction};

use tombstream_model::{DeletionId, Receipt, ReceiptTarget, Waiver};

use super::ledger::cause;

/// Receipts of one page: some hundred kilobytes.
const PAGE: i64 = 1_000;

/// All receipts in the order of their deletions, of one snapshot: a deletion with a lower number may be
/// finalized while others are read, and would be missing between them.
#[derive(Debug)]
pub struct ReceiptExport {
    snapshot: Transaction<'static, Postgres>,
    after: i64,
}

#[derive(sqlx::FromRow)]
struct ReceiptRow {
    deletion_id: i64,
    relation: String,
    key: Vec<String>,
    cause: Option<String>,
    flag: Option<String>,
    flip_lsn: Option<String>,
    claimed_at: chrono::DateTime<chrono::Utc>,
    finalized_at: chrono::DateTime<chrono::Utc>,
    transaction_id: String,
    row_gone: bool,
    targets: Json<Vec<ReceiptTarget>>,
    waived: Json<BTreeMap<String, Waiver>>,
}

impl ReceiptExport {
    /// Takes the snapshot.
    pub async fn begin(pool: &PgPool) -> Result<Self, sqlx::Error> {
        let begin = "begin isolation level repeatable read read only";
        Ok(Self { snapshot: pool.begin_with(begin).await?, after: 0 })
    }

    /// The next page; an empty one is the last.
    pub async fn page(&mut self) -> Result<Vec<Receipt>, sqlx::Error> {
        let rows: Vec<ReceiptRow> = sqlx::query_as(
            "select deletion_id, relation, key, cause, flag, flip_lsn::text, claimed_at, finalized_at, \
                 transaction_id::text, row_gone, targets, waived \
             from tombstream.receipt where deletion_id > $1 order by deletion_id limit $2",
        )
        .persistent(false)
        .bind(self.after)
        .bind(PAGE)
        .fetch_all(&mut *self.snapshot)
        .await?;
        if let Some(last) = rows.last() {
            self.after = last.deletion_id;
        }
        rows.into_iter().map(receipt).collect()
    }
}

fn receipt(row: ReceiptRow) -> Result<Receipt, sqlx::Error> {
    Ok(Receipt {
        deletion_id: DeletionId(row.deletion_id),
        relation: row.relation,
        key: row.key,
        cause: row.cause.as_deref().map(cause).transpose()?,
        flag: row.flag,
        flip_lsn: row.flip_lsn,
        claimed_at: row.claimed_at,
        finalized_at: row.finalized_at,
        transaction_id: row.transaction_id,
        row_gone: row.row_gone,
        targets: row.targets.0,
        waived: row.waived.0,
    })
}
