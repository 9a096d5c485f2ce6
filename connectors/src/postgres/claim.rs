//! The claim: the point of no return, taken on the row as it is.
//!
//! Invariant (S1): one READ COMMITTED transaction of two statements. The first locks the rows in key
//! order and skips what others have locked; the second decides on a fresh snapshot. One statement
//! alone is a race: a hold committed between its snapshot and its lock would not be seen.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use std::sync::Arc;
use tracing::{error, warn};

use tombstream_model::{
    Candidate, Claimed, Fence, Found, Key, LedgerError, Position, Relation, RelationId, Row,
};

use super::correct::is_same;
use super::decide::decide_sql;
use super::ledger::{ClaimedRow, PgLedger, Prepared, TargetEntry, waived_stores};
use super::moved::{former_columns, former_sql};
use super::pool::ledger_error;
use super::statement::{begin_by_key, json};
use super::table::{BY_KEY, OPEN_STATES, Table, key_arrays, literal};

/// The claim's statements for one relation.
#[derive(Debug)]
pub(super) struct ClaimSql {
    lock: Arc<str>,
    decide: Arc<str>,
    /// The columns that the templates name.
    pub(super) columns: Vec<String>,
}

/// A row that this transaction has locked, with the addresses of its copies.
struct Locked {
    key: Key,
    flag: String,
    flag_at: Option<String>,
    targets: Vec<TargetEntry>,
    /// Why it must not be sent (S8), and to which store: it is parked instead.
    refusal: Option<Refusal>,
}

/// A store for which a row gives no safe address.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) store: String,
    pub(super) reason: String,
}

impl ClaimSql {
    pub(super) fn new(relation: &Relation) -> Self {
        let table = Table::new(relation);
        let columns: Vec<String> =
            relation.template_columns().into_iter().map(str::to_owned).collect();
        let lock = format!(
            "select {key}, {flag}::text, ({flag_at})::text, \
                 (select d.waived from tombstream.deletion d where d.relation = {relation} \
                     and d.key = {key} and d.state in ('pending', 'hidden', 'parked') \
                     and d.waived <> '{{}}'), {former}{shown} \
             from {name} t join {keys} on {matches} \
             where {is_set} and not exists (select from ( \
                 select d.state from tombstream.deletion d where d.relation = {relation} \
                     and d.key = {key} and d.state in {OPEN_STATES} {BY_KEY}) o where o.state = 'claimed') \
             order by {order} for no key update of t skip locked",
            shown = table.template_columns("t"),
            relation = literal(&relation.name),
            former = former_sql(relation, &table.key("t")),
            key = table.key("t"),
            flag = table.flag("t"),
            flag_at = table.flag_at("t"),
            name = table.name(),
            keys = table.unnest_keys(1),
            matches = table.matches_keys("t"),
            is_set = table.is_set("t"),
            order = table.key_list("t"),
        );
        Self { lock: lock.into(), decide: decide_sql(relation).into(), columns }
    }
}

/// Keys as the statements take them: each a list of its columns.
pub(super) fn keys_json<'k>(
    keys: impl Iterator<Item = &'k Key>,
) -> Result<Vec<String>, sqlx::Error> {
    keys.map(|key| json(&key.columns().collect::<Vec<_>>())).collect()
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
        self.archive(prepared, batch).await?;
        let mut flagged: HashMap<&Key, Option<Position>> = HashMap::with_capacity(batch.len());
        let (mut removed, mut truncated) = (Vec::new(), Vec::new());
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
                Found::Removed => removed.push(candidate),
                Found::Truncated => truncated.push(candidate),
            }
        }
        if !truncated.is_empty() {
            self.pause_truncated(prepared, &truncated).await?;
        }
        let mut claimed = Vec::new();
        if !removed.is_empty() {
            claimed = self.claim_removed(prepared, &removed).await?;
        }
        if flagged.is_empty() {
            return Ok(claimed);
        }
        self.count_rows(prepared).await?;
        // Started before anything is sent, so that the fence never outlives the lease.
        let until = Instant::now() + self.config.lease;
        let mut transaction =
            self.statements.begin(begin_by_key!(flagged.len(), "")).await.map_err(ledger_error)?;
        let locked = self.lock(&mut transaction, prepared, &flagged).await.map_err(ledger_error)?;
        if locked.is_empty() {
            transaction.rollback().await.map_err(ledger_error)?;
            return Ok(claimed);
        }
        let rows = self
            .decide(&mut transaction, prepared, &flagged, &locked)
            .await
            .map_err(ledger_error)?;
        transaction.commit().await.map_err(ledger_error)?;
        // A row that came back out of a backup left no copies behind: it is no first attempt (S6).
        let fenced = |(row, token): (ClaimedRow, i64)| {
            let is_first = !row.cause.is_again();
            self.claimed(row, Fence { token, until }, is_first)
        };
        claimed.extend(rows.into_iter().filter_map(fenced));
        Ok(claimed)
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
        let resolved = self.addresses(prepared, row, 4, &waived_stores(row, 3)?)?;
        let refusal = resolved.as_ref().err().cloned();
        Ok(Locked {
            key: Key::from_postgres(row.try_get::<Vec<String>, _>(0)?),
            flag: row.try_get(1)?,
            flag_at: row.try_get(2)?,
            targets: resolved.unwrap_or_default(),
            refusal,
        })
    }

    /// The addresses of a row's copies, now and formerly, whose former columns are at `place` and whose
    /// template columns follow; or why there are none that are safe. A store that an operator waived has
    /// none. What was no safe address formerly never held a copy.
    pub(super) fn addresses(
        &self,
        prepared: &Prepared,
        row: &PgRow,
        place: usize,
        waived: &BTreeSet<String>,
    ) -> Result<Result<Vec<TargetEntry>, Refusal>, sqlx::Error> {
        let texts = (0..prepared.claim.columns.len())
            .map(|n| row.try_get::<Option<String>, _>(n + place + 1))
            .collect::<Result<Vec<_>, _>>()?;
        let mut resolved = self.resolve(prepared, &texts, waived);
        if let Ok(targets) = &mut resolved {
            for former in former_columns(prepared, row, place)? {
                for target in self.resolve(prepared, &former, waived).unwrap_or_default() {
                    if !targets.iter().any(|known| is_same(known, &target)) {
                        targets.push(target);
                    }
                }
            }
        }
        Ok(resolved)
    }

    /// The addresses that the values of the templates' columns give.
    pub(super) fn resolve(
        &self,
        prepared: &Prepared,
        values: &[Option<String>],
        waived: &BTreeSet<String>,
    ) -> Result<Vec<TargetEntry>, Refusal> {
        let columns: Vec<&str> = prepared.claim.columns.iter().map(String::as_str).collect();
        let values: Vec<Option<&str>> = values.iter().map(Option::as_deref).collect();
        let row = Row { columns: &columns, values: &values };
        let named = prepared
            .relation
            .targets
            .iter()
            .map(|template| (self.store_name(template.store).to_string(), template));
        named
            .filter(|(store, _)| !waived.contains(store))
            .map(|(store, template)| match template.address.resolve(row) {
                Ok(address) => Ok(TargetEntry { store, address, outcome: None }),
                Err(error) => {
                    let reason = format!("no address in store {store}: {error}");
                    Err(Refusal { store, reason })
                }
            })
            .collect()
    }

    async fn decide(
        &self,
        connection: &mut PgConnection,
        prepared: &Prepared,
        flagged: &HashMap<&Key, Option<Position>>,
        locked: &[Locked],
    ) -> Result<Vec<(ClaimedRow, i64)>, sqlx::Error> {
        let keys = keys_json(locked.iter().map(|row| &row.key))?;
        let targets = locked.iter().map(|row| json(&row.targets)).collect::<Result<Vec<_>, _>>()?;
        let hides = locked
            .iter()
            .map(|row| {
                let of_early = |entry: &&TargetEntry| self.is_hidden_first(prepared, &entry.store);
                json(&row.targets.iter().filter(of_early).collect::<Vec<_>>())
            })
            .collect::<Result<Vec<_>, _>>()?;
        let flags: Vec<&str> = locked.iter().map(|row| row.flag.as_str()).collect();
        let flags_at: Vec<Option<&str>> = locked.iter().map(|row| row.flag_at.as_deref()).collect();
        let of_refusal = |show: fn(&Refusal) -> &str| -> Vec<Option<&str>> {
            locked.iter().map(|row| row.refusal.as_ref().map(show)).collect()
        };
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
            .bind(hides)
            .bind(lsns)
            .bind(of_refusal(|refusal| &refusal.reason))
            .bind(of_refusal(|refusal| &refusal.store))
            .bind(&self.config.owner)
            .bind(self.lease_seconds())
            .fetch_all(connection)
            .await?;
        // What was hidden before and is looked at again is no new hide.
        let goes = |row: &PgRow| Ok(row.try_get::<i32, _>("attempts")? == 1);
        self.taken(prepared, &rows, goes)
    }

    /// What a deciding statement claimed or hid, of the rows that `goes` lets through; and says what it parked
    /// or kept back.
    pub(super) fn taken(
        &self,
        prepared: &Prepared,
        rows: &[PgRow],
        goes: impl Fn(&PgRow) -> Result<bool, sqlx::Error>,
    ) -> Result<Vec<(ClaimedRow, i64)>, sqlx::Error> {
        let mut taken = Vec::with_capacity(rows.len());
        let mut kept_back = 0;
        for row in rows {
            kept_back += u64::from(row.try_get::<Option<bool>, _>("kept_back")? == Some(true));
            match row.try_get::<&str, _>("state")? {
                "claimed" | "hidden" if goes(row)? => taken.push(ClaimedRow::read(row)?),
                "parked" => self.report_parked(prepared, row.try_get("id")?),
                _ => {}
            }
        }
        if kept_back > 0 {
            self.report_kept_back(prepared, kept_back);
        }
        Ok(taken)
    }

    /// What needs a person is never silent.
    pub(super) fn report_parked(&self, prepared: &Prepared, deletion: i64) {
        let relation = prepared.relation.name.to_string();
        metrics::counter!("tombstream_parked_total", "relation" => relation.clone()).increment(1);
        warn!(relation, deletion, "deletion parked: no safe address");
    }

    /// A tripped breaker is never silent.
    fn report_kept_back(&self, prepared: &Prepared, deletions: u64) {
        let relation = prepared.relation.name.to_string();
        metrics::counter!("tombstream_kept_back_total", "relation" => relation.clone())
            .increment(deletions);
        error!(
            relation,
            deletions,
            "the breaker is tripped: nothing more is claimed; look with `tombstream breaker show`, \
             then approve or reject"
        );
    }
}
