//! Deletions of what was finalized before: copies that came back, and what somebody orders to be destroyed
//! again. There is no row to flag, so they are written down here and go the way of hard deletes (`removed.rs`).
//!
//! Invariant (S1): nothing is destroyed here. A key that has a row again is another life's, and is left alone;
//! what is written down is looked at once more by its claim; `a_key_that_is_used_anew_keeps_its_copies`.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use tombstream_model::{Address, DeletionCause, Key, Relation};

use super::claim::keys_json;
use super::removed::is_again;
use super::statement::json;
use super::table::{Table, literal};

/// A key of which something is to be destroyed again.
#[derive(Clone, Debug)]
pub(super) struct Again {
    /// Which. Each key once in a batch.
    pub(super) key: Key,
    /// Where: the store's name, and the address in it.
    pub(super) targets: Vec<(String, Address)>,
    /// Why a person must look first, if so: it is parked.
    pub(super) refusal: Option<String>,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// There is an open deletion with these targets now.
    New,
    /// There was one before.
    Known,
    /// The key has a row: what is there may be that row's.
    Reused,
    /// Another deletion of the key is open and has no part in these targets: look again when it is closed.
    Waits,
}

/// An entry of `deletion.targets` before its outcome.
#[derive(serde::Serialize)]
struct Entry<'a> {
    store: &'a str,
    address: &'a Address,
}

/// One statement: rows as they are now, open deletions that have the targets already, and what is new. What is
/// still to be claimed of the same kind is added to.
fn open_sql(relation: &Relation) -> String {
    let table = Table::new(relation);
    let name = literal(&relation.name);
    format!(
        "with i as materialized ( \
             select array(select jsonb_array_elements_text(u.key::jsonb)) as key, \
                 u.targets::jsonb as targets, u.refusal, u.n \
             from unnest($1::text[], $2::text[], $3::text[]) with ordinality \
                 as u(key, targets, refusal, n) \
         ), \
         looked as materialized ( \
             select i.*, exists (select from {table} t where {matches}) as there, \
                 exists (select from tombstream.deletion d where d.relation = {name} and d.key = i.key \
                     and d.state in ('pending', 'hidden', 'claimed', 'parked') \
                     and d.targets @> i.targets) as known \
             from i \
         ), \
         opened as ( \
             insert into tombstream.deletion as d \
                 (relation, key, state, removed, cause, targets, reason, due_at) \
             select {name}, key, case when refusal is null then 'pending' else 'parked' end, '{{}}', $4, \
                 targets, refusal, clock_timestamp() + make_interval(secs => $5) \
             from looked where not there and not known order by key \
             on conflict (relation, key) where state in ('pending', 'hidden', 'claimed', 'parked') \
             do update set targets = d.targets || coalesce( \
                 (select jsonb_agg(e) from jsonb_array_elements(excluded.targets) e \
                     where not d.targets @> jsonb_build_array(e)), '[]') \
             where d.claimed_at is null and d.state in ('pending', 'parked') and d.removed is not null and {again} \
             returning d.key \
         ) \
         select looked.there, looked.known, opened.key is not null \
         from looked left join opened on opened.key = looked.key order by looked.n",
        table = table.name(),
        matches = table.matches_array("t", "i.key"),
        again = is_again("d"),
    )
}

/// Writes down, for keys of `relation`, what is to be destroyed again. It may be claimed after `wait`: whoever
/// fills a store before the row is there has had time to bring the row. Says in the same order what became
/// of each.
pub(super) async fn open_again(
    connection: &mut PgConnection,
    relation: &Relation,
    batch: &[Again],
    cause: DeletionCause,
    wait: Duration,
) -> Result<Vec<Opened>, sqlx::Error> {
    if batch.is_empty() {
        return Ok(Vec::new());
    }
    let targets = |again: &Again| {
        let entries = again.targets.iter().map(|(store, address)| Entry { store, address });
        json(&entries.collect::<Vec<_>>())
    };
    let rows = sqlx::query(AssertSqlSafe(open_sql(relation))) // Identifiers and literals quoted.
        .persistent(false)
        .bind(keys_json(batch.iter().map(|again| &again.key))?)
        .bind(batch.iter().map(targets).collect::<Result<Vec<_>, _>>()?)
        .bind(batch.iter().map(|again| again.refusal.as_deref()).collect::<Vec<_>>())
        .bind(cause.as_str())
        .bind(wait.as_secs_f64())
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| {
            Ok(match (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?) {
                (true, _, _) => Opened::Reused,
                (false, true, _) => Opened::Known,
                (false, false, true) => Opened::New,
                (false, false, false) => Opened::Waits,
            })
        })
        .collect()
}
