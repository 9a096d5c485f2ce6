//! The ledger's deletions, range by range of their numbers: open ones, closed ones, archived ones, and the
//! receipts of those whose archive was dropped.

use std::sync::Arc;

use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Row as _};

use tombstream_model::{
    DeletionId, Key, ListedDeletion, ListingError, ListingPart, Relation, State,
};

use super::super::pool::ledger_error;
use super::super::table::{Table, literal};
use super::{PAGE, Shared};

/// A range of deletions.
#[derive(Debug)]
pub struct DeletionPart {
    shared: Arc<Shared>,
    after: i64,
    upto: i64,
    /// The receipts of a range come behind its deletions.
    begin: i64,
    is_receipts: bool,
    has_ended: bool,
}

/// An entry of `targets`. The address is read leniently: what can't be read is no place to compare.
#[derive(serde::Deserialize)]
struct Entry {
    store: String,
    #[serde(default)]
    address: Value,
}

/// What is selected of a deletion `d`: number, relation, key, state, targets, and whether it has not moved for
/// so many seconds.
fn deletion_columns(settle: &str) -> String {
    format!(
        "d.id, d.relation, d.key, d.state, coalesce(d.targets, '[]') as targets, \
         coalesce(d.closed_at, d.claimed_at, d.hidden_at, d.first_seen) \
             <= now() - make_interval(secs => {settle})"
    )
}

/// The same of a receipt `r` whose deletion is in no table any more.
fn receipt_columns(settle: &str) -> String {
    format!(
        "r.deletion_id, r.relation, r.key, 'finalized', r.targets, \
         r.finalized_at <= now() - make_interval(secs => {settle})"
    )
}

const NO_DELETION: &str =
    "not exists (select from tombstream.deletion_all d where d.id = r.deletion_id)";

fn page_sql(is_receipts: bool) -> String {
    match is_receipts {
        false => format!(
            "select {} from tombstream.deletion_all d where d.id > $1 and d.id <= $2 \
                 and d.relation = any($3) order by d.id limit $4",
            deletion_columns("0")
        ),
        true => format!(
            "select {} from tombstream.receipt r where r.deletion_id > $1 and r.deletion_id <= $2 \
                 and r.relation = any($3) and {NO_DELETION} order by r.deletion_id limit $4",
            receipt_columns("0")
        ),
    }
}

/// Every deletion of some keys; `$1` is the settle window in seconds.
pub(super) fn by_key_sql(relation: &Relation) -> String {
    let keys = Table::new(relation).unnest_keys(2);
    let key: Vec<_> = (0..relation.key.len()).map(|n| format!("k.k{n}")).collect();
    let key = format!("array[{}]", key.join(", "));
    let name = literal(&relation.name);
    format!(
        "select {deletion} from {keys} join tombstream.deletion_all d \
             on d.relation = {name} and d.key = {key} \
         union all \
         select {receipt} from {keys} join tombstream.receipt r \
             on r.relation = {name} and r.key = {key} where {NO_DELETION}",
        deletion = deletion_columns("$1"),
        receipt = receipt_columns("$1"),
    )
}

/// None: of a relation that is not configured, or in a state that this release does not know.
pub(super) fn read(shared: &Shared, row: &PgRow) -> Result<Option<ListedDeletion>, sqlx::Error> {
    let relation: String = row.try_get(1)?;
    let state: String = row.try_get(3)?;
    let state = State::ALL.into_iter().find(|known| known.as_str() == state);
    let (Some(relation), Some(state)) = (shared.by_name.get(&relation), state) else {
        return Ok(None);
    };
    let Json(targets): Json<Vec<Entry>> = row.try_get(4)?;
    let addresses = targets.into_iter().filter_map(|target| {
        let store = shared.stores.get(&target.store)?;
        Some((*store, serde_json::from_value(target.address).ok()?))
    });
    Ok(Some(ListedDeletion {
        id: DeletionId(row.try_get(0)?),
        relation: *relation,
        key: Key::from_postgres(row.try_get::<Vec<String>, _>(2)?),
        state,
        is_settled: row.try_get(5)?,
        addresses: addresses.collect(),
    }))
}

/// Ranges of as many numbers each.
pub(super) async fn parts(
    shared: &Arc<Shared>,
    count: usize,
) -> Result<Vec<DeletionPart>, sqlx::Error> {
    const SPAN: &str = "select coalesce(min(s.first), 1) - 1, coalesce(max(s.last), 0) from ( \
             select min(id) as first, max(id) as last from tombstream.deletion \
             union all select min(id), max(id) from tombstream.deletion_archive \
             union all select min(deletion_id), max(deletion_id) from tombstream.receipt) s";
    let mut session = shared.statements.session().await?;
    let row = shared.statements.query(SPAN).fetch_one(&mut *session).await?;
    session.end().await?;
    let (before, last): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    let count = i64::try_from(count.max(1)).unwrap_or(1).min((last - before) / PAGE).max(1);
    let bound = |nth: i64| before + (last - before) / count * nth;
    let part = |nth: i64| DeletionPart {
        shared: Arc::clone(shared),
        begin: bound(nth),
        after: bound(nth),
        // What begins while this runs belongs to a row that is seen, or is suspected and looked at again.
        upto: if nth + 1 == count { i64::MAX } else { bound(nth + 1) },
        is_receipts: false,
        has_ended: false,
    };
    Ok((0..count).map(part).collect())
}

impl ListingPart for DeletionPart {
    type Item = ListedDeletion;

    async fn next(&mut self) -> Result<Option<Vec<ListedDeletion>>, ListingError> {
        if self.has_ended {
            return Ok(None);
        }
        let names: Vec<&String> = self.shared.by_name.keys().collect();
        let page = async {
            let mut session = self.shared.statements.session().await?;
            let rows = self
                .shared
                .statements
                .query(AssertSqlSafe(page_sql(self.is_receipts)))
                .bind(self.after)
                .bind(self.upto)
                .bind(names)
                .bind(PAGE)
                .fetch_all(&mut *session)
                .await?;
            session.end().await?;
            let last: Option<i64> = rows.last().map(|row| row.try_get(0)).transpose()?;
            let listed = rows.iter().map(|row| read(&self.shared, row));
            Ok((rows.len(), last, listed.collect::<Result<Vec<_>, sqlx::Error>>()?))
        };
        let (count, last, listed) = page.await.map_err(ledger_error)?;
        if let Some(last) = last {
            self.after = last;
        }
        if i64::try_from(count).is_ok_and(|count| count < PAGE) {
            self.has_ended = self.is_receipts;
            self.is_receipts = true;
            self.after = self.begin;
        }
        Ok(Some(listed.into_iter().flatten().collect()))
    }
}
