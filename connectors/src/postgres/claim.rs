//! The claim: the point of no return, taken on the row as it is.
//!
//! Invariant (S1): one READ COMMITTED transaction of two statements. The first locks the rows in key
//! order and skips what others have locked; the second decides on a fresh snapshot. One statement
//! alone is a race: a hold committed between its snapshot and its lock would not be seen.

use std::collections::HashMap;
use std::time::Instant;

use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use std::sync::Arc;
use tracing::{error, warn};

use tombstream_model::{
    Candidate, Claimed, Fence, Found, Key, LedgerError, Position, Relation, RelationId, Row,
};

use super::guard::trigger_name;
use super::ledger::{ClaimedRow, PgLedger, Prepared, TargetEntry};
use super::pool::ledger_error;
use super::statement::BEGIN;
use super::table::{Table, is_held, key_arrays, literal};

/// The claim's statements for one relation.
#[derive(Debug)]
pub(super) struct ClaimSql {
    lock: Arc<str>,
    decide: Arc<str>,
    vanished: Arc<str>,
    /// The columns that the templates name.
    pub(super) columns: Vec<String>,
}

/// A row that this transaction has locked, with the addresses of its copies.
struct Locked {
    key: Key,
    flag: String,
    flag_at: Option<String>,
    targets: Vec<TargetEntry>,
    /// Why it must not be sent (S8): it is parked instead.
    refusal: Option<String>,
}

impl ClaimSql {
    pub(super) fn new(relation: &Relation) -> Self {
        let table = Table::new(relation);
        let columns: Vec<String> =
            relation.template_columns().into_iter().map(str::to_owned).collect();
        let shown: String = columns
            .iter()
            .map(|column| format!(", t.{}::text", super::table::ident(column)))
            .collect();
        let lock = format!(
            "select {key}, {flag}::text, ({flag_at})::text{shown} \
             from {name} t join {keys} on {matches} \
             where {is_set} and not exists (select from tombstream.deletion d \
                 where d.relation = {relation} and d.key = {key} and d.state = 'claimed') \
             order by {order} for no key update of t skip locked",
            relation = literal(&relation.name),
            key = table.key("t"),
            flag = table.flag("t"),
            flag_at = table.flag_at("t"),
            name = table.name(),
            keys = table.unnest_keys(1),
            matches = table.matches_keys("t"),
            is_set = table.is_set("t"),
            order = table.key_list("t"),
        );
        Self {
            lock: lock.into(),
            decide: decide_sql(relation).into(),
            vanished: vanished_sql(relation).into(),
            columns,
        }
    }
}

/// Decides on a fresh snapshot, and writes: one ledger row for each key that is claimed, parked, or
/// has to wait where nothing else would remember it.
///
/// What is parked of an earlier life of a key, whose flag had another value, is closed; what is parked
/// for an address that is safe now goes on. What is claimed already is not even locked: an event and the
/// sweep bring the same key, and its finalizing would skip what the second claim holds and wait for the
/// lease's end, its outcomes lost (`what_is_claimed_is_not_locked_again`).
///
/// Where no guard vouches that the flag was set at the time it tells, grace runs from first sight (L4).
/// Nothing is added to a flag: its sum may be out of range.
fn decide_sql(relation: &Relation) -> String {
    let table = Table::new(relation);
    let name = literal(&relation.name);
    let grace = format!("interval '{} milliseconds'", relation.grace.as_millis());
    let vouched = format!(
        "exists (select from pg_catalog.pg_trigger g where g.tgrelid = to_regclass({}) \
             and g.tgname = {} and g.tgenabled = 'A')",
        literal(&table.name()),
        literal(&trigger_name("before")),
    );
    format!(
        "with token as materialized (select nextval('tombstream.lease_token') as token), \
         c as ( \
             select array(select jsonb_array_elements_text(u.key::jsonb)) as key, u.flag, \
                 u.flag_at::timestamptz as flag_at, u.targets::jsonb as targets, \
                 u.lsn::pg_lsn as lsn, u.refusal \
             from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[]) \
                 as u(key, flag, flag_at, targets, lsn, refusal) \
         ), \
         decided as ( \
             select c.*, case \
                 when c.refusal is not null then 'parked' \
                 when {held} then 'pending' \
                 when greatest(c.flag_at, coalesce(case when not d.outlived then d.first_seen end, \
                     case when not {vouched} or c.flag_at is null then now() end)) > now() - {grace} \
                     then 'pending' \
                 else 'claimed' end as state, \
                 case when d.outlived then d.id end as outlived \
             from c left join lateral ( \
                 select d.id, d.first_seen, d.state = 'claimed' as taken, d.state = 'parked' \
                     and {claimed_flag} is distinct from {flag} as outlived \
                 from tombstream.deletion d where d.relation = {name} and d.key = c.key \
                     and d.state in ('pending', 'hidden', 'claimed', 'parked') \
             ) d on true \
             where d.taken is not true \
                 and not exists (select from tombstream.pause p where p.relation = {name}) \
         ), \
         closed as ( \
             update tombstream.deletion d set state = 'superseded', closed_at = clock_timestamp(), \
                 reason = concat_ws('; ', 'the key was used anew', d.reason) \
             from decided where d.id = decided.outlived returning d.id \
         ) \
         insert into tombstream.deletion as d (relation, key, state, flag, flip_lsn, targets, reason, \
             lease_owner, lease_token, lease_until, attempts, claimed_at) \
         select {name}, key, state, flag, lsn, targets, refusal, \
             case state when 'claimed' then $7 end, \
             case state when 'claimed' then token.token end, \
             case state when 'claimed' then clock_timestamp() + make_interval(secs => $8) end, \
             case state when 'claimed' then 1 else 0 end, \
             case state when 'claimed' then clock_timestamp() end \
         from decided cross join token where (select count(*) from closed) >= 0 order by key \
         on conflict (relation, key) where state in ('pending', 'hidden', 'claimed', 'parked') \
         do update set state = excluded.state, flag = excluded.flag, \
             flip_lsn = coalesce(excluded.flip_lsn, d.flip_lsn), targets = excluded.targets, \
             reason = excluded.reason, lease_owner = excluded.lease_owner, \
             lease_token = excluded.lease_token, lease_until = excluded.lease_until, \
             attempts = excluded.attempts, claimed_at = excluded.claimed_at \
             where d.state in ('pending', 'hidden', 'parked') and d.claimed_at is null \
                 and excluded.state in ('claimed', 'parked') \
                 and (d.state <> 'parked' or excluded.state <> 'parked' \
                     or d.reason is distinct from excluded.reason) \
         returning d.id, d.relation, d.key, d.state, d.flag, d.flip_lsn::text, d.targets, \
             d.lease_token",
        held = is_held(&name, "c.key"),
        flag = table.flag_value("c.flag"),
        claimed_flag = table.flag_value("d.flag"),
    )
}

/// Of keys whose row was removed: those that are gone, and that no deletion of ours removed. What
/// waited for them is closed: it would lend its first sight to a later life of the key.
fn vanished_sql(relation: &Relation) -> String {
    let table = Table::new(relation);
    let name = literal(&relation.name);
    let arrays: Vec<_> = (0..relation.key.len()).map(|n| format!("k.k{n}")).collect();
    format!(
        "with gone as ( \
             select array[{key}] as key from {keys} \
             where not exists (select from {table} t where {matches}) \
             and not exists (select from tombstream.deletion d where d.relation = {name} \
                 and d.key = array[{key}] and d.claimed_at is not null \
                 and not exists (select from tombstream.deletion o where o.relation = {name} \
                     and o.key = d.key and o.id > d.id and o.claimed_at is null \
                     and o.state in ('pending', 'hidden', 'parked'))) \
         ), \
         waited as ( \
             select d.id from tombstream.deletion d join gone on d.key = gone.key \
             where d.relation = {name} and d.claimed_at is null \
                 and d.state in ('pending', 'hidden', 'parked') \
             order by d.key for update of d skip locked \
         ), \
         closed as ( \
             update tombstream.deletion d set state = 'cancelled', closed_at = clock_timestamp(), \
                 reason = 'another hand removed the row before the claim' \
             from waited where d.id = waited.id \
         ) \
         select key from gone",
        key = arrays.join(", "),
        keys = table.unnest_keys(1),
        table = table.name(),
        matches = table.matches_keys("t"),
    )
}

/// Postgres indexes at most 2,704 bytes; a longer key would fail its whole batch, for ever.
fn too_long(key: &Key) -> bool {
    key.columns().map(|column| column.len() + 8).sum::<usize>() > 2_400
}

impl PgLedger {
    pub(super) async fn claim_batch(
        &self,
        relation: RelationId,
        batch: &[Candidate],
    ) -> Result<Vec<Claimed>, LedgerError> {
        let prepared = self.prepared(relation);
        let mut flagged: HashMap<&Key, Option<Position>> = HashMap::with_capacity(batch.len());
        let mut removed = Vec::new();
        for candidate in batch {
            match candidate.found {
                Found::Flagged if too_long(&candidate.key) => {
                    let relation = &prepared.relation.name;
                    error!(%relation, key = %candidate.key, "the key is too long for the ledger: the row stays, flagged");
                }
                Found::Flagged => {
                    let known = flagged.entry(&candidate.key).or_default();
                    *known = (*known).max(candidate.position);
                }
                Found::Removed => removed.push(&candidate.key),
            }
        }
        if !removed.is_empty() {
            self.report_vanished(prepared, &removed).await?;
        }
        if flagged.is_empty() {
            return Ok(Vec::new());
        }
        // Started before anything is sent, so that the fence never outlives the lease.
        let until = Instant::now() + self.config.lease;
        let mut transaction = self.statements.begin(BEGIN).await.map_err(ledger_error)?;
        let locked = self.lock(&mut transaction, prepared, &flagged).await.map_err(ledger_error)?;
        if locked.is_empty() {
            transaction.rollback().await.map_err(ledger_error)?;
            return Ok(Vec::new());
        }
        let rows = self
            .decide(&mut transaction, prepared, &flagged, &locked)
            .await
            .map_err(ledger_error)?;
        transaction.commit().await.map_err(ledger_error)?;
        Ok(rows
            .into_iter()
            .filter_map(|(row, token)| self.claimed(row, Fence { token, until }, true))
            .collect())
    }

    async fn lock(
        &self,
        connection: &mut PgConnection,
        prepared: &Prepared,
        flagged: &HashMap<&Key, Option<Position>>,
    ) -> Result<Vec<Locked>, sqlx::Error> {
        let mut query = self.statements.query(AssertSqlSafe(Arc::clone(&prepared.claim.lock)));
        for column in key_arrays(&prepared.relation, flagged.keys().copied()) {
            query = query.bind(column);
        }
        let rows = query.fetch_all(connection).await?;
        rows.iter().map(|row| self.locked(prepared, row)).collect()
    }

    /// The addresses come from the locked row itself, so nobody changes a templated column between
    /// here and the ledger's entry.
    fn locked(&self, prepared: &Prepared, row: &PgRow) -> Result<Locked, sqlx::Error> {
        let resolved = self.addresses(prepared, row, 3)?;
        let refusal = resolved.as_ref().err().cloned();
        Ok(Locked {
            key: Key::from_postgres(row.try_get::<Vec<String>, _>(0)?),
            flag: row.try_get(1)?,
            flag_at: row.try_get(2)?,
            targets: resolved.unwrap_or_default(),
            refusal,
        })
    }

    /// The addresses of a row's copies, whose template columns begin at `first`; or why there are none
    /// that are safe.
    pub(super) fn addresses(
        &self,
        prepared: &Prepared,
        row: &PgRow,
        first: usize,
    ) -> Result<Result<Vec<TargetEntry>, String>, sqlx::Error> {
        let names = &prepared.claim.columns;
        let texts = (0..names.len())
            .map(|n| row.try_get::<Option<String>, _>(n + first))
            .collect::<Result<Vec<_>, _>>()?;
        let columns: Vec<&str> = names.iter().map(String::as_str).collect();
        let values: Vec<Option<&str>> = texts.iter().map(Option::as_deref).collect();
        let columns = Row { columns: &columns, values: &values };
        Ok(prepared
            .relation
            .targets
            .iter()
            .map(|template| {
                let store = self.store_name(template.store).to_owned();
                match template.address.resolve(columns) {
                    Ok(address) => Ok(TargetEntry { store, address, outcome: None }),
                    Err(error) => Err(format!("no address in store {store}: {error}")),
                }
            })
            .collect())
    }

    async fn decide(
        &self,
        connection: &mut PgConnection,
        prepared: &Prepared,
        flagged: &HashMap<&Key, Option<Position>>,
        locked: &[Locked],
    ) -> Result<Vec<(ClaimedRow, i64)>, sqlx::Error> {
        let json = |error: serde_json::Error| sqlx::Error::Encode(Box::new(error));
        let keys = locked
            .iter()
            .map(|row| serde_json::to_string(&row.key.columns().collect::<Vec<_>>()).map_err(json))
            .collect::<Result<Vec<_>, _>>()?;
        let targets = locked
            .iter()
            .map(|row| serde_json::to_string(&row.targets).map_err(json))
            .collect::<Result<Vec<_>, _>>()?;
        let flags: Vec<&str> = locked.iter().map(|row| row.flag.as_str()).collect();
        let flags_at: Vec<Option<&str>> = locked.iter().map(|row| row.flag_at.as_deref()).collect();
        let refusals: Vec<Option<&str>> = locked.iter().map(|row| row.refusal.as_deref()).collect();
        let lsns: Vec<Option<String>> = locked
            .iter()
            .map(|row| flagged.get(&row.key).copied().flatten().map(|at| at.lsn.to_string()))
            .collect();
        let rows = self
            .statements
            .query(AssertSqlSafe(Arc::clone(&prepared.claim.decide)))
            .bind(keys)
            .bind(flags)
            .bind(flags_at)
            .bind(targets)
            .bind(lsns)
            .bind(refusals)
            .bind(&self.config.owner)
            .bind(self.lease_seconds())
            .fetch_all(connection)
            .await?;
        let mut claimed = Vec::with_capacity(rows.len());
        for row in rows {
            match row.try_get::<String, _>(3)?.as_str() {
                "claimed" => claimed.push((
                    ClaimedRow {
                        id: row.try_get(0)?,
                        relation: row.try_get(1)?,
                        key: row.try_get(2)?,
                        flag: row.try_get(4)?,
                        lsn: row.try_get(5)?,
                        targets: row.try_get::<Json<Vec<TargetEntry>>, _>(6)?.0,
                    },
                    row.try_get(7)?,
                )),
                "parked" => {
                    metrics::counter!("tombstream_parked_total", "relation" => prepared.relation.name.to_string())
                        .increment(1);
                    warn!(relation = %prepared.relation.name, deletion = row.try_get::<i64, _>(0)?, "deletion parked: no safe address");
                }
                _ => {}
            }
        }
        Ok(claimed)
    }

    /// A hard delete of a row that no deletion of ours removed leaves its copies behind: counted and
    /// alarmed, whatever `on_hard_delete` says (S3). Tombstream's own removal comes back here too.
    async fn report_vanished(
        &self,
        prepared: &Prepared,
        removed: &[&Key],
    ) -> Result<(), LedgerError> {
        let sql = AssertSqlSafe(Arc::clone(&prepared.claim.vanished));
        let mut query = self.statements.scalar::<Vec<String>>(sql);
        for column in key_arrays(&prepared.relation, removed.iter().copied()) {
            query = query.bind(column);
        }
        let mut session = self.statements.session().await.map_err(ledger_error)?;
        let vanished = query.fetch_all(&mut *session).await.map_err(ledger_error)?;
        session.end().await.map_err(ledger_error)?;
        if !vanished.is_empty() {
            let relation = prepared.relation.name.to_string();
            metrics::counter!("tombstream_hard_deleted_total", "relation" => relation)
                .increment(vanished.len() as u64);
            error!(
                relation = %prepared.relation.name,
                rows = vanished.len(),
                first = %Key::from_postgres(vanished[0].clone()),
                "flagged rows were hard-deleted by another hand: their copies are left"
            );
        }
        Ok(())
    }
}
