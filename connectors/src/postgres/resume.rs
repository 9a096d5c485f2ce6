//! Taking over: claimed and hidden deletions whose lease is over, or which owe something and are due again.
//!
//! This starts at the ledger and locks no row of a relation: it would wait out, or deadlock with, an
//! application's open restore. It only *reads* whether a row came back to life, which can happen
//! where no trigger refused it (S2): what remains is then not destroyed.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use tracing::error;

use tombstream_model::{Claimed, DeletionId, Fence, LedgerError, Relation};

use super::ledger::{ClaimedRow, PgLedger, Prepared};
use super::pool::ledger_error;
use super::statement::BEGIN;
use super::table::{Table, is_held};

/// Takes the ledger's rows in key order, skipping what others hold, and writes a new lease. Relations
/// of another process are left to it: a lease that nobody works on keeps them from it. A hold that came
/// after the claim stops what is left to destroy.
static TAKE: LazyLock<Arc<str>> = LazyLock::new(|| {
    let held = is_held("d.relation", "d.key");
    format!(
        "\
    with due as ( \
        select d.id from tombstream.deletion d \
        where d.id = any($1) and d.relation = any($4) and (d.state = 'claimed' \
                or d.state = 'hidden' and (d.lease_until is not null or d.due_at is not null)) \
            and (d.lease_until is null or d.lease_until < clock_timestamp()) \
            and (d.due_at is null or d.due_at <= clock_timestamp()) \
            and not exists (select from tombstream.pause p where p.relation = d.relation) \
            and not {held} \
        order by d.relation, d.key for update of d skip locked \
    ), \
    token as materialized (select nextval('tombstream.lease_token') as token) \
    update tombstream.deletion d set lease_owner = $2, lease_token = token.token, \
        lease_until = clock_timestamp() + make_interval(secs => $3), attempts = d.attempts + 1, \
        due_at = null \
    from due cross join token where d.id = due.id \
    returning {}",
        ClaimedRow::RETURNED
    )
    .into()
});

/// The statement that finds rows which came back to life.
#[derive(Debug)]
pub(super) struct ResumeSql {
    late: Arc<str>,
}

impl ResumeSql {
    pub(super) fn new(relation: &Relation) -> Self {
        let table = Table::new(relation);
        let alive = format!("({}) is not true", table.is_set("t"));
        let late = format!(
            "with back as ( \
                 update tombstream.deletion d set closed_at = clock_timestamp(), lease_until = null, \
                     state = case when d.state = 'hidden' then 'cancelled' \
                         when d.removed is not null then 'superseded' else 'late_restore' end, \
                     reason = case when d.state = 'hidden' then 'restored, with no guard to tell of it' \
                         when d.removed is not null then 'the key was used anew' \
                         else 'the row came back to life after the claim' end \
                 from {name} t \
                 where d.id = any($1) and d.state in ('claimed', 'hidden') and {matches} \
                     and ({alive} or d.removed is not null) \
                 returning d.id, d.relation, d.key, d.state, d.targets \
             ), \
             asked as ( \
                 insert into tombstream.rehydrate (deletion_id, relation, key, targets, ready_at) \
                 select id, relation, key, targets, clock_timestamp() from back \
                 where state = 'cancelled' on conflict do nothing \
             ) \
             select id, state = 'late_restore' from back",
            name = table.name(),
            matches = table.matches_array("t", "d.key"),
        );
        Self { late: late.into() }
    }
}

impl PgLedger {
    pub(super) async fn resume_batch(
        &self,
        batch: &[DeletionId],
    ) -> Result<Vec<Claimed>, LedgerError> {
        let ids: Vec<i64> = batch.iter().map(|id| id.0).collect();
        let until = Instant::now() + self.config.lease;
        let mut transaction = self.statements.begin(BEGIN).await.map_err(ledger_error)?;
        let mut taken = self.take(&mut transaction, &ids).await.map_err(ledger_error)?;
        let late = self.end_late(&mut transaction, &taken).await.map_err(ledger_error)?;
        taken.retain(|(row, _)| !late.contains(&row.id));
        self.add_stores(&mut transaction, &mut taken).await.map_err(ledger_error)?;
        transaction.commit().await.map_err(ledger_error)?;
        Ok(taken
            .into_iter()
            .filter_map(|(row, token)| self.claimed(row, Fence { token, until }, false))
            .collect())
    }

    async fn take(
        &self,
        connection: &mut PgConnection,
        ids: &[i64],
    ) -> Result<Vec<(ClaimedRow, i64)>, sqlx::Error> {
        let rows = self
            .statements
            .query(AssertSqlSafe(Arc::clone(&TAKE)))
            .bind(ids)
            .bind(&self.config.owner)
            .bind(self.lease_seconds())
            .bind(self.relation_names())
            .fetch_all(connection)
            .await?;
        rows.iter().map(ClaimedRow::read).collect()
    }

    /// Ends those whose row is alive again, and says which.
    async fn end_late(
        &self,
        connection: &mut PgConnection,
        taken: &[(ClaimedRow, i64)],
    ) -> Result<Vec<i64>, sqlx::Error> {
        let mut of_relation: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
        for (row, _) in taken {
            of_relation.entry(&row.relation).or_default().push(row.id);
        }
        let mut late = Vec::new();
        for (name, ids) in of_relation {
            let Some((_, prepared)) = self.relation_named(name) else { continue };
            let sql = AssertSqlSafe(Arc::clone(&prepared.resume.late));
            let rows = self.statements.query(sql).bind(ids).fetch_all(&mut *connection).await?;
            let mut too_late = Vec::new();
            for row in rows {
                let id = row.try_get(0)?;
                late.push(id);
                if row.try_get(1)? {
                    too_late.push(id);
                }
            }
            report_late(prepared, &too_late);
        }
        Ok(late)
    }
}

/// A restore that came too late is never silent.
pub(super) fn report_late(prepared: &Prepared, deletions: &[i64]) {
    if deletions.is_empty() {
        return;
    }
    let relation = prepared.relation.name.to_string();
    metrics::counter!("tombstream_late_restores_total", "relation" => relation)
        .increment(deletions.len() as u64);
    error!(relation = %prepared.relation.name, ?deletions, "restored after the claim: copies may be gone; install the guard trigger");
}
