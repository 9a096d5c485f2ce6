//! Many rows at once: flagged or restored, at most [`KEYS_MAX`] in one transaction.
//!
//! Rows are locked first, in the order of their keys, and decided on in a later statement: as a single restore.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row as _};
use tombstream_model::{BreakerLimits, Key, KeyKind, Relation};

use super::breaker::spent_sql;
use super::{OrderError, begin, check_text, end, note, query};
use crate::sql::{self, Table};

/// Most keys of one order.
pub const KEYS_MAX: usize = 1_000;

/// What became of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Became {
    /// The text of each key column.
    pub key: Vec<String>,
    /// Of a flag: `flagged`, `already`, `not_found`, and `kept` where a trigger of the application kept the row
    /// as it was. Of a restore: `restored`, `alive`, `claimed`, `not_found`, `kept`.
    pub became: String,
}

/// The keys of a JSON array: of one column its value, of several an array.
pub fn keys(relation: &Relation, values: &[Value]) -> Result<Vec<Key>, OrderError> {
    if values.is_empty() || values.len() > KEYS_MAX {
        let found = values.len();
        return Err(OrderError::Wrong(format!(
            "{found} keys: from 1 to {KEYS_MAX} are taken at once"
        )));
    }
    values.iter().enumerate().map(|(place, value)| key(relation, place, value)).collect()
}

fn key(relation: &Relation, place: usize, value: &Value) -> Result<Key, OrderError> {
    let wrong = |why: String| OrderError::Wrong(format!("key {place} (from 0): {why}"));
    let values = match value {
        Value::Array(values) => values.as_slice(),
        one => std::slice::from_ref(one),
    };
    let text = |(kind, value): (KeyKind, &Value)| match (kind, value) {
        (_, Value::String(text)) => Ok(text.clone()),
        (KeyKind::Bigint, Value::Number(number)) => Ok(number.to_string()),
        (_, _) => Err(wrong("a column is a text, or a number where it is one".into())),
    };
    if values.len() != relation.key.len() {
        let (found, expected) = (values.len(), relation.key.len());
        return Err(wrong(format!("{found} key columns, expected {expected}")));
    }
    let texts: Vec<String> =
        relation.key_kinds().zip(values).map(text).collect::<Result<_, _>>()?;
    super::key(relation, texts.iter().map(String::as_str)).map_err(|error| wrong(error.to_string()))
}

/// Flags the rows of `keys`. Refused as a whole while the relation's breaker is tripped, or if it has not
/// that much left. A hold is no obstacle: it keeps the row, not the flag.
pub async fn flag(
    pool: &PgPool,
    relation: &Relation,
    keys: &[Key],
    actor: &str,
) -> Result<Vec<Became>, OrderError> {
    check_text("the actor", actor)?;
    let mut transaction = begin(pool).await?;
    let became = flag_all(&mut transaction, relation, keys, actor).await;
    end(transaction, became).await
}

async fn flag_all(
    connection: &mut PgConnection,
    relation: &Relation,
    keys: &[Key],
    actor: &str,
) -> Result<Vec<Became>, OrderError> {
    let table = Table::new(relation);
    ask_breaker(connection, relation, keys).await?;
    lock(connection, &table, keys).await?;
    let sql = format!(
        "with k as materialized ({KEYS}), flipped as ( \
             update {name} as r set {column} = {set} from k where {matches} and {is_unset} \
             returning {key} as key, {is_set} as set \
         ), noted as ( \
             insert into tombstream.flip (relation, key, action, actor) \
             select $2, key, 'flag', $3 from flipped where set \
         ) \
         select k.key, case \
             when k.key in (select key from flipped where set) then 'flagged' \
             when exists (select from {name} as r where {matches} and {is_set}) then 'already' \
             when exists (select from {name} as r where {matches}) then 'kept' \
             when (select d.state from tombstream.deletion as d where d.relation = $2 and d.key = k.key \
                 order by d.id desc limit 1) in ({gone}) then 'already' \
             else 'not_found' end as became \
         from k",
        name = table.name,
        column = table.column,
        set = table.set,
        matches = table.matches("k.key"),
        is_set = table.is_set,
        is_unset = table.is_unset,
        key = table.key,
        gone = sql::TRUE_WITHOUT_ROW,
    );
    let became = decide(connection, sql, relation, keys, actor).await?;
    finish(connection, relation, ("bulk_flag", actor), &became).await?;
    Ok(became)
}

/// Restores the rows of `keys`, but those whose deletion is claimed.
pub async fn restore(
    pool: &PgPool,
    relation: &Relation,
    keys: &[Key],
    actor: &str,
) -> Result<Vec<Became>, OrderError> {
    check_text("the actor", actor)?;
    let mut transaction = begin(pool).await?;
    let became = restore_all(&mut transaction, relation, keys, actor).await;
    end(transaction, became).await
}

async fn restore_all(
    connection: &mut PgConnection,
    relation: &Relation,
    keys: &[Key],
    actor: &str,
) -> Result<Vec<Became>, OrderError> {
    let table = Table::new(relation);
    lock(connection, &table, keys).await?;
    let sql = format!(
        "with k as materialized ( \
             select k.key, exists (select from tombstream.deletion d where d.relation = $2 and d.key = k.key \
                 and d.claimed_at is not null and d.state in ('claimed', 'parked')) as claimed \
             from ({KEYS}) as k \
         ), revived as ( \
             update {name} as r set {column} = {unset} from k \
             where {matches} and {is_set} and not k.claimed \
             returning {key} as key, {is_unset} as alive \
         ), noted as ( \
             insert into tombstream.flip (relation, key, action, actor) \
             select $2, key, 'restore', $3 from revived where alive \
         ) \
         select k.key, case \
             when k.claimed then 'claimed' \
             when k.key in (select key from revived where alive) then 'restored' \
             when exists (select from {name} as r where {matches} and {is_set}) then 'kept' \
             when exists (select from {name} as r where {matches}) then 'alive' \
             when (select d.state = 'finalized' from tombstream.deletion as d \
                 where d.relation = $2 and d.key = k.key order by d.id desc limit 1) then 'claimed' \
             else 'not_found' end as became \
         from k",
        name = table.name,
        column = table.column,
        unset = table.unset,
        matches = table.matches("k.key"),
        is_set = table.is_set,
        is_unset = table.is_unset,
        key = table.key,
    );
    let became = decide(connection, sql, relation, keys, actor).await?;
    let alive: Vec<&[String]> = became
        .iter()
        .filter(|one| matches!(one.became.as_str(), "restored" | "alive"))
        .map(|one| one.key.as_slice())
        .collect();
    cancel(connection, relation, &alive).await?;
    finish(connection, relation, ("bulk_restore", actor), &became).await?;
    Ok(became)
}

/// `$1`: each key once, as JSON.
const KEYS: &str = "select array(select jsonb_array_elements_text(u.key::jsonb)) as key \
                    from unnest($1::text[]) as u(key)";

/// Each key once, as the statements take them.
fn texts<'a>(keys: impl Iterator<Item = Vec<&'a str>>) -> Vec<String> {
    let unique: BTreeSet<Vec<&str>> = keys.collect();
    unique.iter().map(|key| json!(key).to_string()).collect()
}

fn unique(keys: &[Key]) -> Vec<String> {
    texts(keys.iter().map(|key| key.columns().collect()))
}

async fn lock(
    connection: &mut PgConnection,
    table: &Table<'_>,
    keys: &[Key],
) -> Result<(), sqlx::Error> {
    let sql = format!(
        "with k as materialized ({KEYS}) \
         select from {name} as r join k on {matches} order by {order} for no key update of r",
        name = table.name,
        matches = table.matches("k.key"),
        order = table.key_list,
    );
    query(AssertSqlSafe(sql)).bind(unique(keys)).execute(connection).await?;
    Ok(())
}

/// Runs the deciding statement, and answers in the order of the keys.
async fn decide(
    connection: &mut PgConnection,
    sql: String,
    relation: &Relation,
    keys: &[Key],
    actor: &str,
) -> Result<Vec<Became>, sqlx::Error> {
    let rows = query(AssertSqlSafe(sql)).bind(unique(keys)).bind(&*relation.name).bind(actor);
    let mut became = std::collections::HashMap::new();
    for row in rows.fetch_all(connection).await? {
        became.insert(
            Key::from_postgres(row.try_get::<Vec<String>, _>("key")?),
            row.try_get("became")?,
        );
    }
    let one = |key: &Key| {
        let became: Option<&String> = became.get(key);
        let became = became.ok_or(sqlx::Error::RowNotFound)?.clone();
        Ok(Became { key: super::columns(key), became })
    };
    keys.iter().map(one).collect()
}

/// Cancels what restored rows' deletions were, and asks for what was hidden. The guard trigger has done so
/// already where it is installed.
pub(super) async fn cancel(
    connection: &mut PgConnection,
    relation: &Relation,
    keys: &[&[String]],
) -> Result<(), sqlx::Error> {
    let sql = format!(
        "with k as materialized ({KEYS}), cancelled as ( \
             update tombstream.deletion d set state = 'cancelled', closed_at = clock_timestamp() from k \
             where d.relation = $2 and d.key = k.key and d.claimed_at is null \
                 and d.state in ('pending', 'hidden', 'parked') \
             returning d.id, d.hidden_at \
         ) \
         select id from cancelled where hidden_at is not null"
    );
    let keys = texts(keys.iter().map(|key| key.iter().map(String::as_str).collect()));
    let rows = query(AssertSqlSafe(sql)).bind(keys).bind(&*relation.name);
    let rows = rows.fetch_all(&mut *connection).await?;
    rehydrate(connection, rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?).await
}

/// Asks for the hidden copies of cancelled deletions.
pub(super) async fn rehydrate(
    connection: &mut PgConnection,
    hidden: Vec<i64>,
) -> Result<(), sqlx::Error> {
    if !hidden.is_empty() {
        query(sql::REHYDRATE).bind(hidden).execute(connection).await?;
    }
    Ok(())
}

/// Writes down the order, with how many became what.
async fn finish(
    connection: &mut PgConnection,
    relation: &Relation,
    (action, actor): (&str, &str),
    became: &[Became],
) -> Result<(), sqlx::Error> {
    let mut detail = std::collections::BTreeMap::new();
    for one in became {
        *detail.entry(one.became.as_str()).or_insert(0) += 1;
    }
    note(connection, (actor, action), &relation.name, (None, None), json!(detail)).await
}

/// Reads what the breaker has left, and spends nothing: the claim does. What is flagged and not claimed yet does
/// not count, so this refuses what is certain to be refused later, and no more.
async fn ask_breaker(
    connection: &mut PgConnection,
    relation: &Relation,
    keys: &[Key],
) -> Result<(), OrderError> {
    let wanted = unique(keys).len() as i64;
    let limits = relation.breaker.as_ref();
    let window = limits.map_or(0.0, |limits| limits.window.as_secs_f64());
    let rate_window = BreakerLimits::RATE_WINDOW.as_secs_f64();
    let sql = format!(
        "select b.tripped_at is not null as tripped, b.reason, b.row_count, {} as spent, {} as spent_now \
         from (values (1)) as one left join tombstream.breaker b on b.relation = $1",
        spent_sql("window", "$2"),
        spent_sql("rate", "$3"),
    );
    let row = query(AssertSqlSafe(sql)).bind(&*relation.name).bind(window).bind(rate_window);
    let row = row.fetch_one(connection).await?;
    if row.try_get::<Option<bool>, _>("tripped")? == Some(true) {
        let reason: Option<String> = row.try_get("reason")?;
        return Err(OrderError::Breaker(format!(
            "the breaker of {} is tripped: {}; see `tombstream breaker show {}`",
            relation.name,
            reason.unwrap_or_default(),
            relation.name
        )));
    }
    let Some(limits) = limits else { return Ok(()) };
    let spent: i64 = row.try_get("spent")?;
    let spent_now: i64 = row.try_get("spent_now")?;
    let rows: Option<i64> = row.try_get("row_count")?;
    let left =
        |limit: u64, spent: i64| i64::try_from(limit).unwrap_or(i64::MAX).saturating_sub(spent);
    let too_many = |name: &str, left: i64| {
        OrderError::Breaker(format!(
            "{wanted} keys are more than the breaker of {} has left: {name} allows {} now",
            relation.name,
            left.max(0)
        ))
    };
    if let Some(max) = limits.claims_max
        && wanted > left(max, spent)
    {
        return Err(too_many("claims_max", left(max, spent)));
    }
    let rate =
        limits.rate_max.map(|rate| rate.saturating_mul(BreakerLimits::RATE_WINDOW.as_secs()));
    if let Some(max) = rate
        && wanted > left(max, spent_now)
    {
        return Err(too_many("rate_max", left(max, spent_now)));
    }
    if let Some(share) = limits.share_max
        && spent + wanted > i64::try_from(BreakerLimits::SHARE_FROM).unwrap_or(i64::MAX)
        && (spent + wanted) as f64 > share * rows.unwrap_or(0) as f64
    {
        let free = (share * rows.unwrap_or(0) as f64) as i64;
        let free = free.max(i64::try_from(BreakerLimits::SHARE_FROM).unwrap_or(i64::MAX));
        return Err(too_many("share_max", free - spent));
    }
    Ok(())
}
