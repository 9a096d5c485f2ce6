//! Finalizing: the row goes, the receipt is written, in one transaction.
//!
//! Invariant (S3): it re-checks what the claim checked, on a fresh snapshot behind the rows' locks, and
//! removes a row only if its flag's value is the claimed one and the ledger's targets are all
//! confirmed for *this* deletion under the current token.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use tracing::warn;

use tombstream_model::{
    Ending, HashedAddress, Key, LedgerError, Outcome, ReceiptAddress, ReceiptTarget, Relation,
    RelationId, Settled,
};

use super::ledger::{PgLedger, Prepared, TargetEntry};
use super::moved::forget_sql;
use super::pool::ledger_error;
use super::resume::report_late;
use super::statement::{begin_by_key, json};
use super::table::{BY_KEY, Table, is_held, key_arrays, literal};

/// No lock of the rows themselves is waited for, but foreign keys and triggers wait for others'. Short,
/// since a batch is halved with each wait. A deferred constraint speaks before the commit, behind whose
/// error the rows are still locked for a while.
fn begin(keys: usize) -> &'static str {
    begin_by_key!(keys, "; set local lock_timeout = '200ms'; set constraints all immediate")
}

/// What stands for words of a store that held a key, where receipts name nobody.
const WITHHELD: &str = "(withheld: it named the key)";

/// The finalizing statements for one relation.
#[derive(Debug)]
pub(super) struct FinalizeSql {
    lock: Arc<str>,
    remove: Arc<str>,
}

impl FinalizeSql {
    pub(super) fn new(relation: &Relation) -> Self {
        let table = Table::new(relation);
        let lock = format!(
            "select {key} from {name} t join {keys} on {matches} \
             order by {order} for update of t skip locked",
            key = table.key("t"),
            name = table.name(),
            keys = table.unnest_keys(1),
            matches = table.matches_keys("t"),
            order = table.key_list("t"),
        );
        Self { lock: lock.into(), remove: remove_sql(relation).into() }
    }
}

/// Decides, removes the rows, closes the deletions and writes the receipts.
///
/// `ending` says locked from gone: a row that was not locked and is still there is another's to
/// finish with; one that is not there was removed by another hand. A row that was locked and is still
/// there was kept by a trigger: trying again would never end. A newer life is seen now, for its grace.
///
/// What goes, and what went, is looked up by `in`, which is hashed (`is true` keeps it so): as a join the planner, who
/// expects one row of each, compares each with each. And a row is removed at its place, where the lock keeps it. By its
/// key or its flag the planner, whose statistics may be of a day when the table was empty, would read the whole table, or
/// all rows that a million of one mistake share a flag with, for each of the batch.
fn remove_sql(relation: &Relation) -> String {
    let table = Table::new(relation);
    let relation_name = literal(&relation.name);
    format!(
        "with i as ( \
             select * from unnest($1::bigint[], $2::bigint[], $3::text[], $4::boolean[], $5::text[], $6::text[]) \
                 as i(id, token, targets, locked, hashed_key, hashed_targets) \
         ), \
         held as ( \
             select d.id, d.key, d.flag, d.removed, d.waived, d.flip_lsn, d.claimed_at, d.cause, d.targets as planned, \
                 i.targets::jsonb as targets, i.locked, d.hidden_at, i.hashed_key, i.hashed_targets, \
                 pg_current_wal_insert_lsn() as locked_lsn \
             from i cross join lateral (select d.* from tombstream.deletion d where d.id = i.id \
                 and d.state = 'claimed' and d.lease_token = i.token and d.relation = {relation_name} \
                 for update skip locked) d \
         ), \
         decided as ( \
             select held.*, t.tombstream_of, t.tombstream_at, case \
                 when {is_held} then 'later' \
                 when exists (select from tombstream.pause p where p.relation = {relation_name}) \
                     then 'later' \
                 when not held.locked and {row_there} then 'later' \
                 when {row_there} and held.removed is not null then 'superseded' \
                 when {row_there} and not coalesce({is_set}, false) then 'late_restore' \
                 when {row_there} and {flag} is distinct from {claimed_flag} then 'superseded' \
                 when jsonb_array_length(held.targets) <> jsonb_array_length(held.planned) \
                     or exists ( \
                         select from jsonb_array_elements(held.planned) with ordinality p(entry, n) \
                         where p.entry -> 'address' is distinct from \
                                 held.targets -> (p.n::int - 1) -> 'address' \
                             or p.entry -> 'store' is distinct from \
                                 held.targets -> (p.n::int - 1) -> 'store' \
                             or coalesce(held.targets -> (p.n::int - 1) -> 'outcome' ->> 'verdict', '') \
                                 not in ('deleted', 'absent', 'waived')) then 'later' \
                 when {row_there} then 'finalized' \
                 else 'row_gone' end as ending \
             from held left join lateral ( \
                 select t.*, t.tableoid as tombstream_of, t.ctid as tombstream_at from {name} t \
                 where {matches} {BY_KEY}) t on true \
         ), \
         removed as ( \
             delete from {name} t \
             where t.ctid = any (array(select tombstream_at from decided where ending = 'finalized')) \
                 and ((t.tableoid, t.ctid, {flag}) in ( \
                     select d.tombstream_of, d.tombstream_at, {claimed_flag_d} from decided d \
                     where d.ending = 'finalized')) is true \
             returning t.tableoid as tombstream_of, t.ctid as tombstream_at \
         ), \
         ended as ( \
             select d.*, case when d.ending = 'finalized' \
                     and (d.tombstream_of, d.tombstream_at) not in (table removed) then 'kept' \
                 else d.ending end as outcome \
             from decided d \
         ), \
         closed as ( \
             update tombstream.deletion d set \
                 state = case e.outcome when 'late_restore' then 'late_restore' \
                     when 'superseded' then 'superseded' else 'finalized' end, \
                 reason = case e.outcome \
                     when 'late_restore' then 'the row came back to life after the claim' \
                     when 'superseded' then case when e.removed is null \
                         then 'the flag has another value than the claimed one' \
                         else 'the key was used anew' end end, \
                 targets = e.targets, closed_at = clock_timestamp(), lease_until = null \
             from ended e where d.id = e.id and e.outcome not in ('later', 'kept') \
             returning d.key, d.state, d.removed \
         ), \
         reopened as ( \
             insert into tombstream.deletion (relation, key, state, first_seen) \
             select {relation_name}, key, 'pending', clock_timestamp() from closed \
             where state = 'superseded' and removed is null \
         ), \
         kept as ( \
             update tombstream.deletion d set state = 'parked', targets = e.targets, \
                 lease_until = null, reason = 'the database keeps the row: a trigger, a rule or a \
policy does not let it go' \
             from ended e where d.id = e.id and e.outcome = 'kept' \
         ), \
         deferred as ( \
             update tombstream.deletion d set targets = e.targets, lease_until = null, \
                 due_at = clock_timestamp() + make_interval(secs => least(300, 2 ^ least(d.attempts, 9))) \
             from ended e where d.id = e.id and e.outcome = 'later' \
         ), \
         {forget}receipts as ( \
             insert into tombstream.receipt \
                 (deletion_id, relation, key, flag, flip_lsn, hidden_at, claimed_at, row_gone, targets, \
                 locked_lsn, removed_lsn, waived, hashed, cause) \
             select id, {relation_name}, case when hashed_key is null then key else array[hashed_key] end, flag, flip_lsn, hidden_at, claimed_at, \
                 outcome = 'row_gone', coalesce(hashed_targets::jsonb, targets), \
                 locked_lsn, pg_current_wal_insert_lsn(), waived, hashed_key is not null, cause \
             from ended where outcome in ('finalized', 'row_gone') order by id \
         ) \
         select id, outcome from ended",
        forget = forget_sql(relation),
        is_held = is_held(&relation_name, "held.key"),
        name = table.name(),
        row_there = format!("{} is not null", table.key_columns("t").next().unwrap_or_default()),
        is_set = table.is_set("t"),
        flag = table.flag("t"),
        claimed_flag = table.flag_value("held.flag"),
        claimed_flag_d = table.flag_value("d.flag"),
        matches = table.matches_array("t", "held.key"),
    )
}

/// Why a transaction did not finalize its batch.
enum Failure {
    Ledger(LedgerError),
    /// A row's removal was refused: by a foreign key, a trigger, a constraint.
    Row(sqlx::Error),
    /// A row's removal waited for a lock.
    Locked,
}

/// Whether the removal of a row was refused, or the statement as a whole can't run.
///
/// Triggers raise codes of their own, and fail in every way: what is not known to be the server's state
/// (08 connection, 25 transaction, 26 statement, 40 rollback, 53 resources, 55 not now, 57 operator, 58
/// system, XX internal) or the schema (28, 3D, 3F, 42: no row's fault) is of a row.
fn refused(error: sqlx::Error) -> Failure {
    const OF_NO_ROW: [&str; 13] =
        ["08", "25", "26", "28", "3D", "3F", "40", "42", "53", "55", "57", "58", "XX"];
    let of_the_row = match &error {
        sqlx::Error::Database(database) => database
            .code()
            .is_some_and(|code| !OF_NO_ROW.iter().any(|class| code.starts_with(class))),
        _ => false,
    };
    match &error {
        sqlx::Error::Database(database) if database.code().as_deref() == Some("55P03") => {
            Failure::Locked
        }
        _ if of_the_row => Failure::Row(error),
        _ => Failure::Ledger(ledger_error(error)),
    }
}

impl PgLedger {
    /// A batch that the database refuses is halved until the refused rows are alone: 499 of 500 go,
    /// one is parked with the reason.
    pub(super) async fn finalize_batch(
        &self,
        relation: RelationId,
        batch: &[Settled],
    ) -> Result<Vec<Ending>, LedgerError> {
        if self.absent_too_often(relation, batch).await? {
            return Ok(vec![Ending::Paused; batch.len()]);
        }
        let mut endings = vec![Ending::Later; batch.len()];
        let mut open: Vec<_> = std::iter::once(0..batch.len()).collect();
        while let Some(range) = open.pop() {
            let part = &batch[range.clone()];
            match self.finalize_part(relation, part).await {
                Ok(done) => endings[range].clone_from_slice(&done),
                Err(Failure::Ledger(error)) => return Err(error),
                // Another's transaction holds what would go along, a child say: the sweep comes again.
                Err(Failure::Locked) if part.len() == 1 => self.record_owed(part).await?,
                Err(Failure::Row(error)) if part.len() == 1 => {
                    self.park(relation, &part[0], &error).await?;
                    endings[range].fill(Ending::Parked);
                }
                Err(Failure::Row(_) | Failure::Locked) => {
                    let middle = range.start + part.len() / 2;
                    open.push(middle..range.end);
                    open.push(range.start..middle);
                }
            }
        }
        Ok(endings)
    }

    async fn finalize_part(
        &self,
        relation: RelationId,
        batch: &[Settled],
    ) -> Result<Vec<Ending>, Failure> {
        let failed = |error| Failure::Ledger(ledger_error(error));
        let prepared = self.prepared(relation);
        let mut transaction = self.statements.begin(begin(batch.len())).await.map_err(failed)?;
        let endings = match self.try_finalize(&mut transaction, prepared, batch).await {
            Ok(endings) => endings,
            Err(failure) => {
                // Awaited: a rollback in the background would hold the rows' locks against the halves.
                transaction.rollback().await.map_err(failed)?;
                return Err(failure);
            }
        };
        transaction.commit().await.map_err(refused)?;
        let late: Vec<i64> = batch
            .iter()
            .zip(&endings)
            .filter(|(_, ending)| **ending == Ending::LateRestore)
            .map(|(settled, _)| settled.claimed.id.0)
            .collect();
        report_late(prepared, &late);
        Ok(endings)
    }

    async fn try_finalize(
        &self,
        connection: &mut PgConnection,
        prepared: &Prepared,
        batch: &[Settled],
    ) -> Result<Vec<Ending>, Failure> {
        let failed = |error| Failure::Ledger(ledger_error(error));
        let locked = self.lock_rows(connection, prepared, batch).await.map_err(failed)?;
        self.remove(connection, prepared, batch, &locked).await.map_err(refused)
    }

    /// Locks the rows in key order, and gives the keys of those that were not another's, sorted.
    async fn lock_rows(
        &self,
        connection: &mut PgConnection,
        prepared: &Prepared,
        batch: &[Settled],
    ) -> Result<Vec<Key>, sqlx::Error> {
        let sql = AssertSqlSafe(Arc::clone(&prepared.finalize.lock));
        let mut query = self.statements.scalar::<Vec<String>>(sql);
        for column in
            key_arrays(&prepared.relation, batch.iter().map(|settled| &settled.claimed.key))
        {
            query = query.bind(column);
        }
        let mut keys: Vec<Key> =
            query.fetch_all(connection).await?.into_iter().map(Key::from_postgres).collect();
        keys.sort_unstable();
        Ok(keys)
    }

    async fn remove(
        &self,
        connection: &mut PgConnection,
        prepared: &Prepared,
        batch: &[Settled],
        locked: &[Key],
    ) -> Result<Vec<Ending>, sqlx::Error> {
        let ids: Vec<i64> = batch.iter().map(|settled| settled.claimed.id.0).collect();
        let tokens: Vec<i64> = batch.iter().map(|settled| settled.claimed.fence.token).collect();
        let targets =
            batch.iter().map(|settled| self.entries(settled)).collect::<Result<Vec<_>, _>>()?;
        let (mut hashed_keys, mut hashed_targets) = (Vec::new(), Vec::new());
        for settled in batch {
            let hashed = self.hashed(&prepared.relation, settled)?;
            let (key, targets) = hashed.map_or((None, None), |it| (Some(it.0), Some(it.1)));
            hashed_keys.push(key);
            hashed_targets.push(targets);
        }
        let mine: Vec<bool> = batch
            .iter()
            .map(|settled| locked.binary_search(&settled.claimed.key).is_ok())
            .collect();
        let rows = self
            .statements
            .query(AssertSqlSafe(Arc::clone(&prepared.finalize.remove)))
            .bind(&ids)
            .bind(tokens)
            .bind(targets)
            .bind(mine)
            .bind(hashed_keys)
            .bind(hashed_targets)
            .fetch_all(connection)
            .await?;
        let mut ended = HashMap::with_capacity(rows.len());
        for row in rows {
            let id: i64 = row.try_get(0)?;
            let ending = match row.try_get::<String, _>(1)?.as_str() {
                "finalized" => Ending::Finalized,
                "row_gone" => Ending::FinalizedRowGone,
                "late_restore" => Ending::LateRestore,
                "superseded" => Ending::Superseded,
                "kept" => {
                    let relation = prepared.relation.name.to_string();
                    metrics::counter!("tombstream_parked_total", "relation" => relation)
                        .increment(1);
                    warn!(relation = %prepared.relation.name, deletion = id, "deletion parked: the database keeps the row");
                    Ending::Parked
                }
                _ => Ending::Later,
            };
            ended.insert(id, ending);
        }
        // A deletion that the statement did not see is another owner's, or is closed.
        Ok(ids.iter().map(|id| ended.get(id).cloned().unwrap_or(Ending::Fenced)).collect())
    }

    /// A settled deletion's targets with their outcomes, as the ledger keeps them.
    pub(super) fn entries(&self, settled: &Settled) -> Result<String, sqlx::Error> {
        let entries: Vec<TargetEntry> = settled
            .claimed
            .targets
            .iter()
            .enumerate()
            .map(|(n, claimed)| TargetEntry {
                store: self.store_name(claimed.target.store).to_string(),
                address: claimed.target.address.clone(),
                outcome: settled.outcomes.get(n).cloned().map(without_zeros),
            })
            .collect();
        json(&entries)
    }

    /// What stands on the receipt for key and targets, where it may name nobody.
    ///
    /// Invariant (S9): no key and no address in the clear, in what a store said neither;
    /// `connectors/tests/live/receipts.rs::a_hashed_receipt_names_nobody_and_is_found_by_its_key`.
    fn hashed(
        &self,
        relation: &Relation,
        settled: &Settled,
    ) -> Result<Option<(String, String)>, sqlx::Error> {
        let Some(keyed) = &self.keyed else { return Ok(None) };
        let claimed = &settled.claimed;
        let targets = claimed.targets.iter().enumerate().map(|(n, it)| {
            let address = &it.target.address;
            let names: Vec<&str> = claimed.key.columns().chain(address.values()).collect();
            let hashed = HashedAddress { hashed: keyed.address(&relation.name, address) };
            ReceiptTarget {
                store: self.store_name(it.target.store).to_string(),
                address: ReceiptAddress::Hashed(hashed),
                outcome: settled.outcomes.get(n).cloned().map(without_zeros).map(|outcome| {
                    let tells = names.iter().any(|name| outcome.said.contains(name));
                    Outcome { said: if tells { WITHHELD.into() } else { outcome.said }, ..outcome }
                }),
            }
        });
        let targets = json(&targets.collect::<Vec<_>>())?;
        Ok(Some((keyed.key(&relation.name, &claimed.key).to_string(), targets)))
    }

    /// Keeps a deletion whose row the database refuses to remove for a person.
    async fn park(
        &self,
        relation: RelationId,
        settled: &Settled,
        error: &sqlx::Error,
    ) -> Result<(), LedgerError> {
        let prepared = self.prepared(relation);
        let reason = format!("the database refuses to remove the row: {error}");
        warn!(relation = %prepared.relation.name, deletion = %settled.claimed.id, reason, "deletion parked");
        metrics::counter!("tombstream_parked_total", "relation" => prepared.relation.name.to_string())
            .increment(1);
        let mut transaction = self.statements.begin(begin(1)).await.map_err(ledger_error)?;
        sqlx::query(
            "update tombstream.deletion set state = 'parked', reason = $3, targets = $4::jsonb, \
                 lease_until = null \
             where id = $1 and state = 'claimed' and lease_token = $2",
        )
        .persistent(false)
        .bind(settled.claimed.id.0)
        .bind(settled.claimed.fence.token)
        .bind(reason)
        .bind(self.entries(settled).map_err(ledger_error)?)
        .execute(&mut *transaction)
        .await
        .map_err(ledger_error)?;
        transaction.commit().await.map_err(ledger_error)
    }
}

/// Postgres has no text with a zero byte, in jsonb neither.
fn without_zeros(mut outcome: Outcome) -> Outcome {
    if outcome.said.contains('\0') {
        outcome.said = outcome.said.replace('\0', "\u{fffd}").into();
    }
    outcome
}
