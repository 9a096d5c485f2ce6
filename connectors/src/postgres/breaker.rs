//! How many rows a relation has, for a breaker whose limit is a share of them.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use sqlx::AssertSqlSafe;

use tombstream_model::LedgerError;

use super::ledger::{PgLedger, Prepared};
use super::pool::ledger_error;
use super::statement::BEGIN;
use super::table::{Table, literal};

/// How old the count may be. A share is no fine measure, and a count of a table that was never analysed reads
/// all of it.
const AGE_MAX: Duration = Duration::from_secs(300);

/// Postgres's own estimate, over all partitions; null while one of them was never analysed.
fn estimate_sql(table: &str) -> String {
    let root = literal(table);
    format!(
        "select case when bool_and(c.reltuples >= 0) then sum(c.reltuples)::bigint end \
         from pg_catalog.pg_class c where c.oid = to_regclass({root}) and c.relkind = 'r' \
             or c.oid in (select p.relid \
                 from pg_catalog.pg_partition_tree(to_regclass({root})) p where p.isleaf)"
    )
}

const NOTE: &str = "\
    insert into tombstream.breaker as b (relation, row_count, counted_at) values ($1, $2, now()) \
    on conflict (relation) do update set row_count = excluded.row_count, counted_at = now() \
    where b.tripped_at is null";

impl PgLedger {
    /// Counts the relation's rows, if its breaker asks for it and the count is old. In a transaction of its
    /// own, before the claim's: nobody waits for the breaker's row meanwhile.
    pub(super) async fn count_rows(&self, prepared: &Prepared) -> Result<(), LedgerError> {
        let limits = prepared.relation.breaker.as_ref();
        if limits.is_none_or(|limits| limits.share_max.is_none()) {
            return Ok(());
        }
        let counted = *prepared.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.is_some_and(|at| at.elapsed() < AGE_MAX) {
            return Ok(());
        }
        let table = Table::new(&prepared.relation).name();
        let mut transaction = self.statements.begin(BEGIN).await.map_err(ledger_error)?;
        let estimate = AssertSqlSafe(estimate_sql(&table));
        let estimated: Option<i64> = sqlx::query_scalar(estimate)
            .persistent(false)
            .fetch_one(&mut *transaction)
            .await
            .map_err(ledger_error)?;
        let rows = match estimated {
            Some(rows) => rows,
            None => sqlx::query_scalar(AssertSqlSafe(format!("select count(*) from {table}")))
                .persistent(false)
                .fetch_one(&mut *transaction)
                .await
                .map_err(ledger_error)?,
        };
        sqlx::query(NOTE)
            .persistent(false)
            .bind(&*prepared.relation.name)
            .bind(rows)
            .execute(&mut *transaction)
            .await
            .map_err(ledger_error)?;
        transaction.commit().await.map_err(ledger_error)?;
        *prepared.counted.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Ok(())
    }
}
