//! Rows that another hand removed. Their copies are left (`on_hard_delete = "ignore"`: counted, and said) or
//! destroyed like those of a flagged row.
//!
//! There is no row to lock, so a claim takes an advisory lock of the key's bucket, which whoever brings a row
//! to life under that key shares (`arrival.rs`), and claims only what its deciding statement sees no row of
//! (S5). What can't be claimed now waits in the ledger, since no sweep of the table finds it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use tracing::{error, warn};

use tombstream_model::{
    Candidate, Cause, Claimed, Fence, Key, LedgerError, OnHardDelete, Relation, RemovedRow,
};

use super::arrival::bucket;
use super::claim::{Refusal, keys_json};
use super::decide::{KEPT_BACK, budget_sql, is_hiding};
use super::guard::is_guarded;
use super::ledger::{ClaimedRow, PgLedger, Prepared, TargetEntry, waived_stores};
use super::pool::ledger_error;
use super::statement::{begin_by_key, json};
use super::table::{BY_KEY, OPEN_STATES, Table, interval, is_held, key_arrays, literal};

/// The statements over rows that are gone.
#[derive(Debug)]
pub(super) struct RemovedSql {
    vanished: Arc<str>,
    record: Arc<str>,
    lock: Arc<str>,
    due: Arc<str>,
    claim: Arc<str>,
    close: Arc<str>,
}

impl RemovedSql {
    pub(super) fn new(relation: &Relation) -> Self {
        Self {
            vanished: vanished_sql(relation).into(),
            record: record_sql(relation).into(),
            lock: lock_sql(relation).into(),
            due: due_sql(relation).into(),
            claim: claim_sql(relation).into(),
            close: close_sql(relation).into(),
        }
    }
}

/// Whether a deletion of ours removed the row of `key`, as of an event at `lsn`: the receipt says where the
/// log stood then. One that is claimed tells its own end.
fn is_ours(name: &str, key: &str, hashed: &str, lsn: &str) -> String {
    format!(
        "(exists (select from tombstream.receipt r where r.relation = {name} \
             and {of_key} \
             and ({lsn} is null or r.removed_lsn is null or {lsn} <= r.removed_lsn)) \
         or exists (select from tombstream.deletion d where d.relation = {name} and d.key = {key} \
             and d.claimed_at is not null and d.state in ('claimed', 'parked')))",
        of_key = is_of_key(key, hashed),
    )
}

/// Whether the receipt `r` is of a key, in the clear or as its hash (null where there is none).
pub(super) fn is_of_key(key: &str, hashed: &str) -> String {
    format!("(r.key = {key} or r.key = array[{hashed}] and r.hashed)")
}

/// Closes the receipts of the deletions that made these events: the row was locked from locked_lsn to removed_lsn,
/// so no other removal of the key can be there. A key in the clear and its hash are looked for as two keys, so that
/// an index finds both; as a join, statistics of a day with few receipts would have all of them read for each batch
/// (`a_removal_that_comes_back_costs_its_own_receipt`).
fn close_sql(relation: &Relation) -> String {
    format!(
        "with i as materialized ( \
             select array(select jsonb_array_elements_text(u.key::jsonb)) as key, \
                 u.hashed, u.lsn::pg_lsn as lsn \
             from unnest($1::text[], $2::text[], $3::text[]) as u(key, hashed, lsn) \
         ) \
         insert into tombstream.receipt_closed (deletion_id, removed_lsn) \
         select r.deletion_id, min(i.lsn) from i \
             cross join lateral (values (i.key, false), (array[i.hashed], true)) as k(key, hashed) \
             cross join lateral (select r.deletion_id from tombstream.receipt r \
                 where r.relation = {name} and r.key = k.key and (not k.hashed or r.hashed) \
                     and not r.row_gone and i.lsn between r.locked_lsn and r.removed_lsn {BY_KEY}) r \
         group by r.deletion_id order by r.deletion_id \
         on conflict do nothing",
        name = literal(&relation.name),
    )
}

/// Of keys whose row was removed: those that are gone, and that no deletion of ours removed. What
/// waited for them is closed: it would lend its first sight to a later life of the key. What waited for a
/// row that is alive, where no guard told of the restore, is closed too.
fn vanished_sql(relation: &Relation) -> String {
    let table = Table::new(relation);
    let name = literal(&relation.name);
    let arrays: Vec<_> = (0..relation.key.len()).map(|n| format!("k.k{n}")).collect();
    let key = format!("array[{}]", arrays.join(", "));
    format!(
        "with looked as ( \
             select {key} as key, k.hashed, t.there, t.alive \
             from {keys} left join lateral ( \
                 select true as there, ({is_set}) is not true as alive from {table} t where {matches} \
             ) t on true \
         ), \
         gone as (select key from looked where there is null and not {ours}), \
         waited as ( \
             select d.id, looked.there is not null as restored \
             from looked cross join lateral (select d.id, {is_hiding} as hiding from tombstream.deletion d \
                 where d.relation = {name} and d.key = looked.key and d.state in {OPEN_STATES} \
                     and d.state <> 'claimed' and d.claimed_at is null and d.removed is null \
                 for update skip locked) d \
             where looked.there is null and not d.hiding or looked.alive \
         ), \
         closed as ( \
             update tombstream.deletion d set state = 'cancelled', closed_at = clock_timestamp(), \
                 reason = case when restored then 'restored, with no guard to tell of it' \
                     else 'another hand removed the row before the claim' end \
             from waited where d.id = waited.id \
             returning d.id, d.relation, d.key, d.targets, d.hidden_at, d.lease_until, d.lease_token, restored \
         ), \
         asked as ( \
             insert into tombstream.rehydrate (deletion_id, relation, key, targets, ready_at, lease_token) \
             select id, relation, key, targets, greatest(lease_until, clock_timestamp()), lease_token \
             from closed where restored and hidden_at is not null \
         ) \
         select key from gone",
        keys = table.unnest_keys_with(1, "hashed"),
        is_hiding = is_hiding("d"),
        table = table.name(),
        is_set = table.is_set("t"),
        matches = table.matches_keys("t"),
        ours = is_ours(&name, "looked.key", "looked.hashed", "null::pg_lsn"),
    )
}

/// Writes down which rows are gone: the keys as JSON, what the event told of their columns, its place in the
/// log. What waited for a flagged row goes on as it was, with its first sight.
fn record_sql(relation: &Relation) -> String {
    let table = Table::new(relation);
    let name = literal(&relation.name);
    format!(
        "with i as materialized ( \
             select array(select jsonb_array_elements_text(u.key::jsonb)) as key, \
                 u.removed::jsonb as removed, u.lsn::pg_lsn as lsn, u.hashed \
             from unnest($1::text[], $2::text[], $3::text[], $4::text[]) as u(key, removed, lsn, hashed) \
         ) \
         insert into tombstream.deletion as d (relation, key, state, removed, flip_lsn, cause) \
         select {name}, i.key, 'pending', coalesce(i.removed, '{{}}'), i.lsn, 'hard_delete' from i \
         where not exists (select from {table} t where {matches}) and not {ours} \
             and not exists (select from tombstream.moved_key m \
                 where m.relation = {name} and m.key = i.key) \
             and (i.removed is not null or exists (select from tombstream.deletion o \
                 where o.relation = {name} and o.key = i.key and o.claimed_at is null \
                     and o.state in ('pending', 'hidden', 'parked'))) \
         order by i.key \
         on conflict (relation, key) where state in ('pending', 'hidden', 'claimed', 'parked') \
         do update set removed = excluded.removed, cause = excluded.cause \
             where d.claimed_at is null and (d.cause in ('flag', 'hard_delete') or d.removed is null) \
                 and (d.removed is null or d.removed = '{{}}') \
         returning d.key",
        table = table.name(),
        matches = table.matches_array("t", "i.key"),
        ours = is_ours(&name, "i.key", "i.hashed", "i.lsn"),
    )
}

/// Takes the buckets' locks, in their order, and gives the keys that got one. Not waited for: whoever holds
/// one is bringing a row to life.
fn lock_sql(relation: &Relation) -> String {
    let name = literal(&relation.name);
    format!(
        "with i as materialized ( \
             select array(select jsonb_array_elements_text(u.key::jsonb)) as key \
             from unnest($1::text[]) as u(key) \
             order by pg_catalog.hashtextextended( \
                 array(select jsonb_array_elements_text(u.key::jsonb))::text, 0) & 1023 \
         ) \
         select key from i where pg_catalog.pg_try_advisory_xact_lock({bucket})",
        bucket = bucket(&name, "i.key"),
    )
}

/// Of keys whose bucket is locked: what is due. The columns beside the key are what they were only under
/// REPLICA IDENTITY FULL, and spelled as Postgres spells them only where they are texts, numbers or uuids.
fn due_sql(relation: &Relation) -> String {
    let table = Table::new(relation);
    let name = literal(&relation.name);
    let root = literal(&table.name());
    format!(
        "select d.id, d.key, d.removed, d.waived, \
             not exists (select from pg_catalog.pg_class c where c.relkind in ('r', 'p') \
                 and (c.oid = to_regclass({root}) and c.relkind = 'r' or c.oid in ( \
                     select p.relid from pg_catalog.pg_partition_tree(to_regclass({root})) p where p.isleaf)) \
                 and c.relreplident <> 'f') as is_whole, \
             array(select a.attname::text from pg_catalog.pg_attribute a \
                 where a.attrelid = to_regclass({root}) and a.attnum > 0 and a.atttypid in ( \
                     'text'::regtype, 'varchar'::regtype, 'uuid'::regtype, 'int2'::regtype, \
                     'int4'::regtype, 'int8'::regtype)) as plain, \
             {guarded} as is_guarded, {again} as is_again \
         from ( \
                 select distinct array(select jsonb_array_elements_text(u.key::jsonb)) as key \
                 from unnest($1::text[]) as u(key)) i \
             cross join lateral (select d.* from tombstream.deletion d \
                 where d.relation = {name} and d.key = i.key and d.state in {OPEN_STATES} {BY_KEY}) d \
         where d.removed is not null and d.state in ('pending', 'hidden') \
             and {due} and (d.kept_back_at is null or d.approved_at is not null) \
             and not {held} and not {is_hiding} \
             and not exists (select from tombstream.pause p where p.relation = {name})",
        guarded = keeps_keys(relation),
        is_hiding = is_hiding("d"),
        again = is_again("d"),
        due = is_due(relation),
        held = is_held(&name, "d.key"),
    )
}

/// Whether a deletion is of what was destroyed before: its addresses are known, and nobody waits for it.
/// [`DeletionCause::is_again`](tombstream_model::DeletionCause::is_again), in SQL.
pub(super) fn is_again(alias: &str) -> String {
    format!("{alias}.cause in ('resurrected', 're_erase', 'orphan')")
}

/// Whether a deletion without a row has waited long enough. What is destroyed again had its grace before;
/// its own short wait is its `due_at`. (Of a hidden one that is when its hide is driven again, which keeps no claim
/// waiting.)
pub(super) fn is_due(relation: &Relation) -> String {
    format!(
        "case when {} then d.due_at is null or d.due_at <= clock_timestamp() \
             else d.first_seen <= now() - {} end",
        is_again("d"),
        interval(relation.grace),
    )
}

/// Whether no row comes to life under a key whose copies are being destroyed: the guard over arriving rows is
/// there as a whole, or no key is ever used again.
///
/// Invariant (S5): the trigger of inserted rows alone is not enough, since where hard deletes are ignored
/// it looks at flagged ones only; `without_the_guard_over_arriving_rows_what_is_found_is_parked`.
fn keeps_keys(relation: &Relation) -> String {
    match relation.key_reuse_forbidden {
        true => "true".to_owned(),
        false => {
            format!("({} and {})", is_guarded(relation, "arrived"), is_guarded(relation, "moved"))
        }
    }
}

/// Decides on a fresh snapshot: a key that has a row is another life's. What is destroyed again goes with the
/// targets that its row has when it is locked: the audit may have added one since it was looked at
/// (`a_copy_that_is_found_while_another_is_being_claimed_is_not_lost`).
fn claim_sql(relation: &Relation) -> String {
    let table = Table::new(relation);
    let name = literal(&relation.name);
    let asked = "select count(*) as asked from decided where due = 'claimed' and spends";
    let budget = budget_sql(relation, asked);
    format!(
        "with token as materialized (select nextval('tombstream.lease_token') as token), \
         decided as ( \
             select d.id, i.targets::jsonb as targets, i.refusal, \
                 d.approved_at is null and d.hidden_at is null and not {again} as spends, case \
                 when exists (select from {table} t where {matches}) then 'superseded' \
                 when {held} then 'pending' \
                 when i.refusal is not null then 'parked' \
                 else 'claimed' end as due \
             from tombstream.deletion d \
             join unnest($1::bigint[], $2::text[], $3::text[]) as i(id, targets, refusal) on d.id = i.id \
             where d.state in ('pending', 'hidden') and d.removed is not null \
         ), \
         budget as materialized ({budget}), \
         mine as ( \
             select decided.*, due = 'claimed' and spends and budget.refusal is not null as refused, \
                 due = 'claimed' and not (spends and budget.refusal is not null) as goes \
             from decided cross join budget where due <> 'pending' \
         ) \
         update tombstream.deletion d set \
             state = case when mine.refused then d.state else mine.due end, \
             reason = case mine.due when 'superseded' then 'the key was used anew' else mine.refusal end, \
             closed_at = case mine.due when 'superseded' then clock_timestamp() end, \
             targets = case when not goes then d.targets when {again} then ( \
                     select coalesce(jsonb_agg(t.entry order by t.n), '[]') \
                     from jsonb_array_elements(d.targets) with ordinality as t(entry, n) \
                     where not d.waived ? (t.entry ->> 'store')) \
                 else mine.targets end, \
             lease_owner = case when goes then $4 end, \
             lease_token = case when goes then token.token end, \
             lease_until = case when goes then clock_timestamp() + make_interval(secs => $5) end, \
             attempts = case when goes then 1 else d.attempts end, \
             due_at = case when goes then null else d.due_at end, \
             claimed_at = case when goes then clock_timestamp() end, \
             kept_back_at = case when refused then clock_timestamp() else d.kept_back_at end \
         from mine cross join token where d.id = mine.id and d.state in ('pending', 'hidden') \
         returning {returned}, {KEPT_BACK}",
        again = is_again("d"),
        returned = ClaimedRow::RETURNED,
        table = table.name(),
        matches = table.matches_array("t", "d.key"),
        held = is_held(&name, "d.key"),
    )
}

fn unguarded(reason: &str) -> Refusal {
    Refusal { store: String::new(), reason: reason.to_owned() }
}

/// A removed row that is due.
struct Due {
    id: i64,
    targets: Result<Vec<TargetEntry>, Refusal>,
}

impl PgLedger {
    /// What becomes of keys whose row was removed. Where hard deletes are ignored, what the sweep brings
    /// may be a copy that came back.
    pub(super) async fn claim_removed(
        &self,
        prepared: &Prepared,
        removed: &[&Candidate],
    ) -> Result<Vec<Claimed>, LedgerError> {
        self.close_receipts(prepared, removed).await?;
        match prepared.relation.on_hard_delete {
            OnHardDelete::Ignore => {
                let keys: Vec<&Key> = removed.iter().map(|candidate| &candidate.key).collect();
                self.report_vanished(prepared, &keys).await?;
                let swept: Vec<&Candidate> =
                    removed.iter().copied().filter(|it| it.cause == Cause::Sweep).collect();
                match swept.is_empty() {
                    true => Ok(Vec::new()),
                    false => self.claim_waiting(prepared, &swept).await,
                }
            }
            OnHardDelete::Destroy => self.claim_hard_deleted(prepared, removed).await,
        }
    }

    /// What of this is the end of a deletion of ours is its second entry, with the place in the log (S9).
    async fn close_receipts(
        &self,
        prepared: &Prepared,
        removed: &[&Candidate],
    ) -> Result<(), LedgerError> {
        let told: Vec<_> =
            removed.iter().filter_map(|it| Some((&it.key, it.position?.lsn))).collect();
        if told.is_empty() {
            return Ok(());
        }
        let keys = keys_json(told.iter().map(|(key, _)| *key)).map_err(ledger_error)?;
        let lsns: Vec<String> = told.iter().map(|(_, lsn)| lsn.to_string()).collect();
        let hashes = self.key_hashes(prepared, told.iter().map(|(key, _)| *key));
        let sql = AssertSqlSafe(Arc::clone(&prepared.removed.close));
        let query = self.statements.query(sql).bind(keys).bind(hashes).bind(lsns);
        let mut session = self.statements.session().await.map_err(ledger_error)?;
        query.execute(&mut *session).await.map_err(ledger_error)?;
        session.end().await.map_err(ledger_error)
    }

    /// What stands for each key on a receipt, where that is not the key.
    pub(super) fn key_hashes<'k>(
        &self,
        prepared: &Prepared,
        keys: impl Iterator<Item = &'k Key>,
    ) -> Vec<Option<String>> {
        let name = &prepared.relation.name;
        let hash = |key: &Key| Some(self.keyed.as_ref()?.key(name, key).to_string());
        keys.map(hash).collect()
    }

    /// A hard delete of a row that no deletion of ours removed leaves its copies behind: counted and
    /// alarmed, whatever `on_hard_delete` says (S3). Tombstream's own removal comes back here too.
    async fn report_vanished(
        &self,
        prepared: &Prepared,
        removed: &[&Key],
    ) -> Result<(), LedgerError> {
        let sql = AssertSqlSafe(Arc::clone(&prepared.removed.vanished));
        let mut query = self.statements.scalar::<Vec<String>>(sql);
        for column in key_arrays(&prepared.relation, removed.iter().copied()) {
            query = query.bind(column);
        }
        query = query.bind(self.key_hashes(prepared, removed.iter().copied()));
        let mut session = self.statements.session().await.map_err(ledger_error)?;
        let vanished = query.fetch_all(&mut *session).await.map_err(ledger_error)?;
        session.end().await.map_err(ledger_error)?;
        if let Some(first) = vanished.first() {
            let relation = prepared.relation.name.to_string();
            metrics::counter!("tombstream_hard_deleted_total", "relation" => relation)
                .increment(vanished.len() as u64);
            error!(
                relation = %prepared.relation.name,
                rows = vanished.len(),
                first = %Key::from_postgres(first.clone()),
                "rows were hard-deleted by another hand: their copies are left"
            );
        }
        Ok(())
    }

    /// Claims what was written down already and is due.
    async fn claim_waiting(
        &self,
        prepared: &Prepared,
        keys: &[&Candidate],
    ) -> Result<Vec<Claimed>, LedgerError> {
        let until = Instant::now() + self.config.lease;
        let mut transaction =
            self.statements.begin(begin_by_key!(keys.len(), "")).await.map_err(ledger_error)?;
        let claimed =
            self.take_due(&mut transaction, prepared, keys).await.map_err(ledger_error)?;
        transaction.commit().await.map_err(ledger_error)?;
        Ok(self.fenced(claimed, until))
    }

    async fn claim_hard_deleted(
        &self,
        prepared: &Prepared,
        removed: &[&Candidate],
    ) -> Result<Vec<Claimed>, LedgerError> {
        let until = Instant::now() + self.config.lease;
        let mut transaction =
            self.statements.begin(begin_by_key!(removed.len(), "")).await.map_err(ledger_error)?;
        let recorded =
            self.record(&mut transaction, prepared, removed).await.map_err(ledger_error)?;
        if recorded > 0 {
            let relation = prepared.relation.name.to_string();
            metrics::counter!("tombstream_hard_deleted_total", "relation" => relation)
                .increment(recorded);
            warn!(relation = %prepared.relation.name, rows = recorded, "rows were hard-deleted: their copies will be destroyed");
        }
        let claimed =
            self.take_due(&mut transaction, prepared, removed).await.map_err(ledger_error)?;
        transaction.commit().await.map_err(ledger_error)?;
        Ok(self.fenced(claimed, until))
    }

    async fn take_due(
        &self,
        connection: &mut PgConnection,
        prepared: &Prepared,
        removed: &[&Candidate],
    ) -> Result<Vec<(ClaimedRow, i64)>, sqlx::Error> {
        let due = self.due(&mut *connection, prepared, removed).await?;
        match due.is_empty() {
            true => Ok(Vec::new()),
            false => self.take_removed(connection, prepared, &due).await,
        }
    }

    /// What is destroyed again is no first attempt: that it is absent says nothing of a template (S6).
    fn fenced(&self, claimed: Vec<(ClaimedRow, i64)>, until: Instant) -> Vec<Claimed> {
        claimed
            .into_iter()
            .filter_map(|(row, token)| {
                let is_first = !row.cause.is_again();
                self.claimed(row, Fence { token, until }, is_first)
            })
            .collect()
    }

    async fn record(
        &self,
        connection: &mut PgConnection,
        prepared: &Prepared,
        removed: &[&Candidate],
    ) -> Result<u64, sqlx::Error> {
        let names = &prepared.claim.columns;
        let told = |row: &RemovedRow| {
            let known =
                names.iter().zip(row).filter_map(|(name, value)| Some((name, value.as_ref()?)));
            json(&known.collect::<BTreeMap<_, _>>())
        };
        let rows = removed
            .iter()
            .map(|candidate| candidate.removed.as_ref().map(told).transpose())
            .collect::<Result<Vec<_>, _>>()?;
        let lsns: Vec<Option<String>> = removed
            .iter()
            .map(|candidate| candidate.position.map(|position| position.lsn.to_string()))
            .collect();
        let sql = AssertSqlSafe(Arc::clone(&prepared.removed.record));
        let query = self
            .statements
            .query(sql)
            .bind(keys_json(removed.iter().map(|it| &it.key))?)
            .bind(rows)
            .bind(lsns)
            .bind(self.key_hashes(prepared, removed.iter().map(|it| &it.key)));
        Ok(query.fetch_all(connection).await?.len() as u64)
    }

    /// What is due of those whose bucket this transaction holds, with the addresses of their copies.
    async fn due(
        &self,
        connection: &mut PgConnection,
        prepared: &Prepared,
        removed: &[&Candidate],
    ) -> Result<Vec<Due>, sqlx::Error> {
        let sql = AssertSqlSafe(Arc::clone(&prepared.removed.lock));
        let locked: Vec<Vec<String>> = self
            .statements
            .scalar(sql)
            .bind(keys_json(removed.iter().map(|it| &it.key))?)
            .fetch_all(&mut *connection)
            .await?;
        let locked = locked.iter().map(json).collect::<Result<Vec<_>, _>>()?;
        let sql = AssertSqlSafe(Arc::clone(&prepared.removed.due));
        let rows = self.statements.query(sql).bind(locked).fetch_all(connection).await?;
        rows.iter()
            .map(|row| {
                let Json(told) = row.try_get::<Json<BTreeMap<String, Option<String>>>, _>(2)?;
                let (is_whole, plain) = (row.try_get(4)?, row.try_get::<Vec<String>, _>(5)?);
                let key: Vec<String> = row.try_get(1)?;
                let of_key: BTreeMap<&str, &String> =
                    prepared.relation.key.iter().map(|column| &*column.name).zip(&key).collect();
                let value = |name: &String| match of_key.get(name.as_str()) {
                    Some(text) => Some((*text).clone()),
                    None if is_whole && plain.contains(name) => told.get(name).cloned().flatten(),
                    None => None,
                };
                let values: Vec<Option<String>> =
                    prepared.claim.columns.iter().map(value).collect();
                let targets = match (row.try_get(6)?, row.try_get(7)?) {
                    (true, true) => Ok(Vec::new()),
                    (true, false) => self.resolve(prepared, &values, &waived_stores(row, 3)?),
                    (false, true) => Err(unguarded(
                        "a copy came back, and nothing keeps its key from being used while it is \
                         destroyed: write key_reuse = \"forbidden\" if no key is ever used again, or \
                         on_hard_delete = \"destroy\" and run `tombstream migrate`; then retry",
                    )),
                    (false, false) => Err(unguarded(
                        "nothing keeps the key of a hard-deleted row from being used while its copies \
                         are destroyed: run `tombstream migrate`, then retry",
                    )),
                };
                Ok(Due { id: row.try_get(0)?, targets })
            })
            .collect()
    }

    async fn take_removed(
        &self,
        connection: &mut PgConnection,
        prepared: &Prepared,
        due: &[Due],
    ) -> Result<Vec<(ClaimedRow, i64)>, sqlx::Error> {
        let ids: Vec<i64> = due.iter().map(|due| due.id).collect();
        let targets = due
            .iter()
            .map(|due| json(due.targets.as_deref().unwrap_or_default()))
            .collect::<Result<Vec<_>, _>>()?;
        let refusals: Vec<Option<&str>> =
            due.iter().map(|due| due.targets.as_ref().err().map(|it| &*it.reason)).collect();
        let rows = self
            .statements
            .query(AssertSqlSafe(Arc::clone(&prepared.removed.claim)))
            .bind(ids)
            .bind(targets)
            .bind(refusals)
            .bind(&self.config.owner)
            .bind(self.lease_seconds())
            .fetch_all(connection)
            .await?;
        self.taken(prepared, &rows, |row| Ok(row.try_get::<&str, _>("state")? == "claimed"))
    }
}
