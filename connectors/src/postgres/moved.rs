//! Copies that were left behind when a column of their address changed: noted by a trigger, so that the claim
//! finds them whatever the replica identity is, and whether an event came or not (S8).
//!
//! Only where the key stays. The address of another key may be another row's by now.

use std::collections::BTreeMap;

use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use tracing::error;

use tombstream_model::{Candidate, LedgerError, Relation};

use super::guard::{bounded, function_sql, row, trigger_name};
use super::ledger::{PgLedger, Prepared};
use super::pool::ledger_error;
use super::statement::BEGIN;
use super::table::{Table, ident, literal};

/// The columns beside the key that the templates name.
fn tracked(relation: &Relation) -> Vec<&str> {
    let is_key = |name: &str| relation.key.iter().any(|column| column.name == name);
    relation.template_columns().into_iter().filter(|name| !is_key(name)).collect()
}

/// Whether a row's address can change while its key does not.
pub(super) fn is_tracked(relation: &Relation) -> bool {
    !tracked(relation).is_empty()
}

/// The statements that note former addresses; or that take the trigger away where the key is all there is to
/// an address.
pub(super) fn moved_sql(relation: &Relation) -> Vec<String> {
    let table = Table::new(relation);
    let name = table.name();
    let trigger = ident(&trigger_name("address"));
    let columns = tracked(relation);
    if columns.is_empty() {
        return vec![format!("drop trigger if exists {trigger} on {name}")];
    }
    let function = format!("tombstream.{}", ident(&bounded("address_", &relation.name)));
    let list = |alias: &str| {
        let columns: Vec<_> = columns.iter().map(|it| format!("{alias}.{}", ident(it))).collect();
        format!("row({})", columns.join(", "))
    };
    let told: Vec<_> = relation
        .template_columns()
        .iter()
        .map(|column| format!("{}, old.{}::text", literal(column), ident(column)))
        .collect();
    let body = format!(
        "begin \
             insert into tombstream.former_address (relation, key, columns) \
             values ({relation}, {key}, jsonb_build_object({told})) on conflict do nothing; \
             return null; \
         end",
        relation = literal(&relation.name),
        key = table.key("old"),
        told = told.join(", "),
    );
    vec![
        function_sql(&function, &body),
        format!(
            "create or replace trigger {trigger} after update on {name} for each row \
             when ({old_key} is not distinct from {new_key} and {old} is distinct from {new}) \
             execute function {function}()",
            old_key = row(&table, "old"),
            new_key = row(&table, "new"),
            old = list("old"),
            new = list("new"),
        ),
        format!("alter table {name} enable always trigger {trigger}"),
    ]
}

/// What a row's templates named before, as a list of objects; null where nothing is tracked.
pub(super) fn former_sql(relation: &Relation, key: &str) -> String {
    if tracked(relation).is_empty() {
        return "null::jsonb".to_owned();
    }
    format!(
        "(select jsonb_agg(f.columns order by f.at) from tombstream.former_address f \
             where f.relation = {} and f.key = {key})",
        literal(&relation.name)
    )
}

/// The part of a statement that forgets them with their row; `ended` has the keys and their outcome.
pub(super) fn forget_sql(relation: &Relation) -> String {
    if tracked(relation).is_empty() {
        return String::new();
    }
    format!(
        "forgotten as ( \
             delete from tombstream.former_address f using ended e \
             where f.relation = {} and f.key = e.key and e.outcome in ('finalized', 'row_gone') \
         ), ",
        literal(&relation.name)
    )
}

/// Columns of a row, by name.
type Columns = BTreeMap<String, Option<String>>;

/// A row's former columns, in the order of the templates'.
pub(super) fn former_columns(
    prepared: &Prepared,
    row: &PgRow,
    place: usize,
) -> Result<Vec<Vec<Option<String>>>, sqlx::Error> {
    let columns: Vec<&str> = prepared.claim.columns.iter().map(AsRef::as_ref).collect();
    former_in_order(&columns, row, place)
}

/// The same, in the order of `columns`.
pub(super) fn former_in_order(
    columns: &[&str],
    row: &PgRow,
    place: usize,
) -> Result<Vec<Vec<Option<String>>>, sqlx::Error> {
    let former: Option<Json<Vec<Columns>>> = row.try_get(place)?;
    let in_order =
        |mut told: Columns| columns.iter().map(|name| told.remove(*name).flatten()).collect();
    Ok(former.map(|Json(all)| all.into_iter().map(in_order).collect()).unwrap_or_default())
}

impl PgLedger {
    /// A truncated relation has no rows to ask any more, and copies of all of them: it pauses until a person
    /// has looked. A truncation that is told again pauses nothing.
    pub(super) async fn pause_truncated(
        &self,
        prepared: &Prepared,
        truncated: &[&Candidate],
    ) -> Result<(), LedgerError> {
        let mut transaction = self.statements.begin(BEGIN).await.map_err(ledger_error)?;
        let mut is_new = false;
        for candidate in truncated {
            let lsn = candidate.position.map(|position| position.lsn.to_string());
            is_new |=
                note(&mut transaction, &prepared.relation.name, lsn).await.map_err(ledger_error)?;
        }
        if is_new {
            error!(
                relation = %prepared.relation.name,
                "the relation was truncated and is paused: copies of its rows are left; look, then `tombstream resume`"
            );
        }
        transaction.commit().await.map_err(ledger_error)
    }
}

async fn note(
    connection: &mut PgConnection,
    relation: &str,
    lsn: Option<String>,
) -> Result<bool, sqlx::Error> {
    const NOTE: &str = "\
        with new as ( \
            insert into tombstream.truncation (relation, lsn) \
            values ($1, coalesce($2::pg_lsn, pg_current_wal_insert_lsn())) on conflict do nothing \
            returning relation, lsn \
        ) \
        insert into tombstream.pause (relation, reason, detail) \
        select relation, 'truncated', jsonb_build_object('lsn', lsn) from new \
        on conflict (relation) do nothing returning 1";
    let paused = sqlx::query(AssertSqlSafe(NOTE))
        .persistent(false)
        .bind(relation)
        .bind(lsn)
        .fetch_optional(connection)
        .await?;
    Ok(paused.is_some())
}
