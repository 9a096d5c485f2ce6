//! How an export of receipts and this ledger stand to each other, and what of the server's numbers can be compared.

use sqlx::{PgConnection, PgPool, Row as _};

use tombstream_model::{Hash, Relation};

use super::super::statement::whole;
use super::super::table::{Table, literal};
use super::judge::Lineage;
use super::sql::READ;
use super::{ChainStanding, ReEraseError};

/// Reads both. `blocks` are the hashes of the export's blocks, from the first on.
pub(super) async fn read(
    pool: &PgPool,
    blocks: &[Hash],
) -> Result<(Lineage, ChainStanding), ReEraseError> {
    let mut transaction = whole(pool, READ).await?;
    let standing = standing(&mut transaction, blocks).await?;
    let was_imported: bool =
        sqlx::query_scalar("select exists (select from tombstream.receipt r where r.imported)")
            .persistent(false)
            .fetch_one(&mut *transaction)
            .await?;
    let shared_transaction = shared(&mut transaction, standing.last_entry).await?;
    transaction.rollback().await?;
    let export = i64::try_from(blocks.len()).unwrap_or(i64::MAX);
    let was_set_back = was_imported || standing.common < export;
    let lineage = Lineage { shared_transaction, was_set_back, had_tables_alone: false };
    Ok((lineage, standing))
}

/// Both have the blocks up to one, and none behind it: a block holds the hash of the one before.
pub(in super::super) async fn standing(
    connection: &mut PgConnection,
    blocks: &[Hash],
) -> Result<ChainStanding, sqlx::Error> {
    let own: i64 =
        sqlx::query_scalar("select coalesce(max(number), 0) from tombstream.receipt_block")
            .persistent(false)
            .fetch_one(&mut *connection)
            .await?;
    let (mut common, mut last_entry) = (0, 0);
    let mut differs = i64::try_from(blocks.len()).unwrap_or(i64::MAX).min(own) + 1;
    while differs - common > 1 {
        let middle = common + (differs - common) / 2;
        let row =
            sqlx::query("select hash, last_entry from tombstream.receipt_block where number = $1")
                .persistent(false)
                .bind(middle)
                .fetch_optional(&mut *connection)
                .await?;
        let place = usize::try_from(middle - 1).unwrap_or(usize::MAX);
        let is_same = match (&row, blocks.get(place)) {
            (Some(row), Some(hash)) => row.try_get::<Vec<u8>, _>(0)? == hash.0,
            _ => false,
        };
        match row {
            Some(row) if is_same => (common, last_entry) = (middle, row.try_get(1)?),
            _ => differs = middle,
        }
    }
    Ok(ChainStanding { common, own, last_entry })
}

/// The newest transaction of this ledger's own receipts that the export has, too. Only where the server is the one
/// that they were written on, and no other one came in between: else its numbers are others.
async fn shared(
    connection: &mut PgConnection,
    last_entry: i64,
) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "select r.transaction_id::text::bigint from tombstream.receipt r, tombstream.generation g \
         where g.source = 'postgres' and not r.imported and r.entry <= $1 and r.finalized_at >= g.since \
             and g.identity ->> 'system_identifier' = (pg_control_system()).system_identifier::text \
         order by r.transaction_id desc limit 1",
    )
    .persistent(false)
    .bind(last_entry)
    .fetch_optional(connection)
    .await
}

/// A column that tells when a row came to be is a point in time, whatever the session's zone.
pub(super) async fn check_columns(
    pool: &PgPool,
    relations: &[Relation],
    created: &[Option<String>],
) -> Result<(), ReEraseError> {
    let mut transaction = whole(pool, READ).await?;
    for (relation, column) in relations.iter().zip(created) {
        let Some(column) = column else { continue };
        let kind: Option<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
            "select a.atttypid::regtype::text from pg_catalog.pg_attribute a \
             where a.attrelid = to_regclass({}) and a.attname = $1 and a.attnum > 0 and not a.attisdropped",
            literal(&Table::new(relation).name())
        )))
        .persistent(false)
        .bind(column)
        .fetch_optional(&mut *transaction)
        .await?;
        let name = &relation.name;
        match kind.as_deref() {
            Some("timestamp with time zone") => {}
            Some(kind) => {
                return Err(ReEraseError::Refused(format!(
                    "relation {name}: created = {column:?} is of type {kind}; it must be timestamptz"
                )));
            }
            None => {
                return Err(ReEraseError::Refused(format!(
                    "relation {name}: there is no column {column:?}, which created names"
                )));
            }
        }
    }
    transaction.rollback().await?;
    Ok(())
}
