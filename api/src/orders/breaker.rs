//! A relation's breaker: what it kept back, and what an operator decides about it.
//!
//! Both decisions go through the kept-back set in chunks, each its own transaction: a claim waits for the breaker's
//! row with its relation rows locked, so that one transaction over a million rows would stop the application. What
//! was decided stays so; the rest is decided by ordering the same again. Memory holds one chunk.

use std::ops::ControlFlow;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row as _};
use tombstream_model::{BreakerLimits, FlagKind, Relation};

use super::{OrderError, begin, bulk, check_text, end, is_of_a_row, note, query};
use crate::sql::{Table, quote_literal};

/// Kept-back deletions that are approved in one transaction.
const APPROVED_AT_ONCE: i64 = 5_000;
/// Rows that are restored in one transaction.
const RESTORED_AT_ONCE: i64 = 1_000;
/// Minutes of the histogram.
const MINUTES: i64 = 10;

/// What is kept back and undecided: the predicate of the index `deletion_kept_back`.
const UNDECIDED: &str =
    "d.kept_back_at is not null and d.approved_at is null and d.state in ('pending', 'hidden')";

/// A relation's breaker.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Breaker {
    /// The relation's name.
    pub relation: String,
    /// Since when nothing more is claimed. None: it is not tripped.
    pub tripped_at: Option<DateTime<Utc>>,
    /// Why.
    pub reason: Option<String>,
    /// How many deletions are kept back and undecided. They wait also where the breaker is not tripped.
    pub waiting: i64,
    /// The highest number among them: given to approve and reject, it decides exactly those that were looked at.
    pub up_to: Option<i64>,
    /// Claims that count for the window.
    pub spent: i64,
    /// The minutes in which most of the waiting rows were flagged.
    pub minutes: Vec<Minute>,
    /// Waiting rows whose flag tells no time: booleans, rows that are gone.
    pub without_time: i64,
}

/// How many of the waiting rows were flagged in one minute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Minute {
    /// Its begin.
    pub minute: String,
    /// How many.
    pub rows: i64,
}

/// Which of the kept-back deletions are decided. All conditions hold together; none: all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Those with a number up to this one.
    pub up_to: Option<i64>,
    /// Those whose row's flag is not before this.
    pub from: Option<DateTime<Utc>>,
    /// Those whose row's flag is before this.
    pub to: Option<DateTime<Utc>>,
}

/// How far a decision has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Decided {
    /// Approved, or restored.
    pub decided: u64,
    /// Deletions without a row to be restored (it is gone, or alive), which a reject cancelled.
    pub cancelled: u64,
    /// Rows that a rule of the database would not let be restored.
    pub refused: u64,
    /// What the database said of the first of them.
    pub refusal: Option<String>,
    /// How many are kept back still.
    pub waiting: i64,
    /// Whether the breaker was reset, since none is.
    pub reset: bool,
}

/// The breaker of `relation` as it stands.
pub async fn show(pool: &PgPool, relation: &Relation) -> Result<Breaker, OrderError> {
    let mut snapshot = pool.begin_with("begin isolation level repeatable read read only").await?;
    let window = relation.breaker.as_ref().map_or(0.0, |limits| limits.window.as_secs_f64());
    let sql = format!(
        "select b.tripped_at, b.reason, w.waiting, w.up_to, \
             {spent} as spent \
         from (select count(*) as waiting, max(d.id) as up_to from tombstream.deletion d \
             where d.relation = $1 and {UNDECIDED}) as w \
         left join tombstream.breaker b on b.relation = $1",
        spent = spent_sql("window", "$2"),
    );
    let row = query(AssertSqlSafe(sql)).bind(&*relation.name).bind(window);
    let row = row.fetch_one(&mut *snapshot).await?;
    let table = Table::new(relation);
    // The relation is written out: with a parameter the partial index would be no choice for a generic plan.
    let sql = format!(
        "select to_char(minute at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI\"Z\"') as minute, rows, \
             coalesce(sum(rows) filter (where minute is null) over (), 0)::bigint as without_time \
         from (select date_trunc('minute', r.at) as minute, count(*) as rows \
             from tombstream.deletion d left join ( \
                 select {key} as key, {at} as at from {name} as r where {is_set} \
             ) as r on r.key = d.key \
             where d.relation = {relation} and {UNDECIDED} group by 1) as m \
         order by minute is null, rows desc, minute limit $1",
        key = table.key,
        at = table.at,
        name = table.name,
        is_set = table.is_set,
        relation = quote_literal(&relation.name),
    );
    let rows = query(AssertSqlSafe(sql)).bind(MINUTES).fetch_all(&mut *snapshot).await?;
    snapshot.rollback().await?;
    let mut minutes = Vec::new();
    let mut without_time = 0;
    for row in rows {
        without_time = row.try_get("without_time")?;
        if let Some(minute) = row.try_get("minute")? {
            minutes.push(Minute { minute, rows: row.try_get("rows")? });
        }
    }
    Ok(Breaker {
        relation: relation.name.to_string(),
        tripped_at: row.try_get("tripped_at")?,
        reason: row.try_get("reason")?,
        waiting: row.try_get("waiting")?,
        up_to: row.try_get("up_to")?,
        spent: row.try_get("spent")?,
        minutes,
        without_time,
    })
}

/// Lets the chosen ones go on: they spend nothing of the budget. `progress` may end it after any chunk.
pub async fn approve(
    pool: &PgPool,
    relation: &Relation,
    chosen: Chosen,
    actor: &str,
    mut progress: impl FnMut(&Decided) -> ControlFlow<()>,
) -> Result<Decided, OrderError> {
    check(relation, chosen, actor)?;
    let table = Table::new(relation);
    let sql = format!(
        "with page as materialized ({page}), chosen as ( \
             select d.id from tombstream.deletion d join page on page.id = d.id \
             where {UNDECIDED} and {span} order by d.key for update of d skip locked \
         ), approved as ( \
             update tombstream.deletion d set approved_at = clock_timestamp() from chosen \
             where d.id = chosen.id returning d.id \
         ) \
         select (select max(id) from page) as last, (select count(*) from approved) as approved",
        page = page_sql(),
        span = span_sql(&table, "page.key"),
    );
    let mut decided = Decided::default();
    let mut after = 0_i64;
    loop {
        let mut transaction = begin(pool).await?;
        lock_breaker(&mut transaction, relation).await?;
        let row = query(AssertSqlSafe(sql.clone())).bind(&*relation.name).bind(after);
        let row = row.bind(chosen.up_to).bind(APPROVED_AT_ONCE).bind(chosen.from).bind(chosen.to);
        let row = row.fetch_one(&mut *transaction).await?;
        let Some(last) = row.try_get::<Option<i64>, _>("last")? else {
            transaction.rollback().await?;
            break;
        };
        let approved: i64 = row.try_get("approved")?;
        if approved > 0 {
            let detail = detail(chosen, approved);
            note(&mut transaction, (actor, "approve"), &relation.name, (None, None), detail)
                .await?;
        }
        transaction.commit().await?;
        after = last;
        decided.decided += approved.unsigned_abs();
        if progress(&decided).is_break() {
            break;
        }
    }
    reset(pool, relation, decided).await
}

/// Restores the rows of the chosen ones. `progress` may end it after any chunk.
pub async fn reject(
    pool: &PgPool,
    relation: &Relation,
    chosen: Chosen,
    actor: &str,
    mut progress: impl FnMut(&Decided) -> ControlFlow<()>,
) -> Result<Decided, OrderError> {
    check(relation, chosen, actor)?;
    let rejected = Rejected::new(relation, chosen, actor);
    let mut decided = Decided::default();
    let mut after = 0_i64;
    loop {
        let mut transaction = begin(pool).await?;
        let page = query(AssertSqlSafe(page_sql())).bind(&*relation.name).bind(after);
        let page =
            page.bind(chosen.up_to).bind(RESTORED_AT_ONCE).fetch_all(&mut *transaction).await?;
        transaction.rollback().await?;
        let ids = page.iter().map(|row| row.try_get("id")).collect::<Result<Vec<i64>, _>>()?;
        let Some(last) = ids.last() else { break };
        after = *last;
        // Where one row is to blame, the others are restored without it: halves, until it stands alone.
        let mut parts = vec![ids];
        while let Some(ids) = parts.pop() {
            match rejected.restore(pool, &ids).await {
                Ok((restored, cancelled)) => {
                    decided.decided += restored;
                    decided.cancelled += cancelled;
                }
                Err(error) if !is_of_a_row(&error) => return Err(error.into()),
                Err(error) if ids.len() == 1 => {
                    decided.refused += 1;
                    decided.refusal.get_or_insert_with(|| match error.as_database_error() {
                        Some(error) => format!("deletion {}: {}", ids[0], error.message()),
                        None => format!("deletion {}: {error}", ids[0]),
                    });
                }
                Err(_) => {
                    let half = ids.len() / 2;
                    parts.push(ids[half..].to_vec());
                    parts.push(ids[..half].to_vec());
                }
            }
        }
        if progress(&decided).is_break() {
            break;
        }
    }
    reset(pool, relation, decided).await
}

/// The statements that restore a chunk's rows.
struct Rejected<'a> {
    relation: &'a Relation,
    chosen: Chosen,
    actor: &'a str,
    lock: String,
    restore: String,
}

impl<'a> Rejected<'a> {
    fn new(relation: &'a Relation, chosen: Chosen, actor: &'a str) -> Self {
        let table = Table::new(relation);
        let lock = format!(
            "select d.id from tombstream.deletion d join {name} as r on {matches} \
             where d.id = any($1) and {is_set} order by {order} for no key update of r skip locked",
            name = table.name,
            matches = table.matches("d.key"),
            is_set = table.is_set,
            order = table.key_list,
        );
        // Invariant (S1): on a snapshot that is newer than the locks, so that what was approved and claimed
        // meanwhile is left; `what_is_approved_meanwhile_is_not_rejected`.
        let restore = format!(
            "with k as materialized ( \
                 select d.id, d.key from tombstream.deletion d \
                 where d.id = any($2) and d.relation = $1 and {UNDECIDED} \
             ), revived as ( \
                 update {name} as r set {column} = {unset} from k \
                 where k.id = any($3) and {matches} and {is_set} and {in_span} \
                 returning {key} as key, {is_unset} as alive \
             ), noted as ( \
                 insert into tombstream.flip (relation, key, action, actor) \
                 select $1, key, 'restore', $6 from revived where alive \
             ) \
             select k.id, k.key, exists (select from revived where revived.key = k.key and alive) as restored, \
                 $4::timestamptz is null and $5::timestamptz is null \
                     and not exists (select from {name} as r where {matches} and {is_set}) as is_moot \
             from k",
            name = table.name,
            column = table.column,
            unset = table.unset,
            matches = table.matches("k.key"),
            is_set = table.is_set,
            is_unset = table.is_unset,
            key = table.key,
            in_span = in_span(&table, "$4", "$5"),
        );
        Self { relation, chosen, actor, lock, restore }
    }

    /// Restores what is flagged and nobody else has locked; cancels what has no row to be restored. In one
    /// transaction; gives how many each.
    async fn restore(&self, pool: &PgPool, ids: &[i64]) -> Result<(u64, u64), sqlx::Error> {
        let mut transaction = begin(pool).await?;
        let restored = self.restore_within(&mut transaction, ids).await;
        end(transaction, restored).await
    }

    async fn restore_within(
        &self,
        connection: &mut PgConnection,
        ids: &[i64],
    ) -> Result<(u64, u64), sqlx::Error> {
        let lock = query(AssertSqlSafe(self.lock.clone())).bind(ids);
        let locked = lock.fetch_all(&mut *connection).await?;
        let locked = locked.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i64>, _>>()?;
        let rows = query(AssertSqlSafe(self.restore.clone())).bind(&*self.relation.name).bind(ids);
        let rows = rows.bind(locked).bind(self.chosen.from).bind(self.chosen.to).bind(self.actor);
        let mut restored: Vec<Vec<String>> = Vec::new();
        let mut moot: Vec<i64> = Vec::new();
        for row in rows.fetch_all(&mut *connection).await? {
            if row.try_get("restored")? {
                restored.push(row.try_get("key")?);
            } else if row.try_get("is_moot")? {
                moot.push(row.try_get("id")?);
            }
        }
        let keys: Vec<&[String]> = restored.iter().map(Vec::as_slice).collect();
        bulk::cancel(&mut *connection, self.relation, &keys).await?;
        let cancelled = self.cancel(&mut *connection, &moot).await?;
        if !keys.is_empty() || cancelled > 0 {
            let detail = detail(self.chosen, keys.len() as i64);
            let order = (self.actor, "reject");
            note(&mut *connection, order, &self.relation.name, (None, None), detail).await?;
        }
        Ok((keys.len() as u64, cancelled))
    }

    /// Ends deletions without a flagged row: of a hard delete, whose copies then stay, or of a row that came back
    /// where no guard told of it.
    async fn cancel(&self, connection: &mut PgConnection, ids: &[i64]) -> Result<u64, sqlx::Error> {
        let sql = format!(
            "with gone as ( \
                 select d.id from tombstream.deletion d where d.id = any($1) and {UNDECIDED} \
                 order by d.key for update of d skip locked \
             ), cancelled as ( \
                 update tombstream.deletion d set state = 'cancelled', closed_at = clock_timestamp(), \
                     reason = concat('rejected by ', $2::text, \
                         case when d.removed is not null then '; the row was removed by another hand: its copies are left' \
                             else '; no flagged row was there to be restored' end) \
                 from gone where d.id = gone.id \
                 returning d.id, d.hidden_at is not null and d.removed is null as is_hidden \
             ) \
             select id, is_hidden from cancelled"
        );
        let rows = query(AssertSqlSafe(sql)).bind(ids).bind(self.actor);
        let rows = rows.fetch_all(&mut *connection).await?;
        let mut hidden = Vec::new();
        for row in &rows {
            if row.try_get("is_hidden")? {
                hidden.push(row.try_get("id")?);
            }
        }
        bulk::rehydrate(connection, hidden).await?;
        Ok(rows.len() as u64)
    }
}

/// Resets the breaker if nothing is undecided any more, and counts what is.
async fn reset(
    pool: &PgPool,
    relation: &Relation,
    mut decided: Decided,
) -> Result<Decided, OrderError> {
    let mut transaction = begin(pool).await?;
    // A claim that trips it holds this lock until what it kept back is to be seen.
    lock_breaker(&mut transaction, relation).await?;
    let sql =
        format!("select count(*) from tombstream.deletion d where d.relation = $1 and {UNDECIDED}");
    let row = query(AssertSqlSafe(sql)).bind(&*relation.name).fetch_one(&mut *transaction).await?;
    decided.waiting = row.try_get(0)?;
    if decided.waiting == 0 {
        let sql = "with spent as (delete from tombstream.breaker_spent where relation = $1) \
                   update tombstream.breaker set tripped_at = null, reason = null \
                   where relation = $1 and tripped_at is not null";
        let reset = query(sql).bind(&*relation.name).execute(&mut *transaction).await?;
        decided.reset = reset.rows_affected() > 0;
    }
    transaction.commit().await?;
    Ok(decided)
}

async fn lock_breaker(
    connection: &mut PgConnection,
    relation: &Relation,
) -> Result<(), sqlx::Error> {
    let sql = "select from tombstream.breaker where relation = $1 for update";
    query(sql).bind(&*relation.name).execute(connection).await?;
    Ok(())
}

fn check(relation: &Relation, chosen: Chosen, actor: &str) -> Result<(), OrderError> {
    check_text("the actor", actor)?;
    let by_time = chosen.from.is_some() || chosen.to.is_some();
    if by_time && relation.flag.kind == FlagKind::Boolean {
        return Err(OrderError::Wrong(format!(
            "the flag of {} is a boolean, which tells no time: decide by up_to, or all",
            relation.name
        )));
    }
    if let (Some(from), Some(to)) = (chosen.from, chosen.to)
        && from >= to
    {
        return Err(OrderError::Wrong("nothing is from a time until before it: from < to".into()));
    }
    Ok(())
}

/// `$1` relation, `$2` id, `$3` up to, `$4` limit. The next of what is kept back.
fn page_sql() -> String {
    format!(
        "select d.id, d.key from tombstream.deletion d \
         where d.relation = $1 and {UNDECIDED} and d.id > $2 and ($3::bigint is null or d.id <= $3) \
         order by d.id limit $4"
    )
}

/// Whether the row of a kept-back deletion was flagged in the span from `$5` to `$6`; true without a span.
fn span_sql(table: &Table<'_>, key: &str) -> String {
    format!(
        "($5::timestamptz is null and $6::timestamptz is null or exists (select from {} as r where {} and {} and {}))",
        table.name,
        table.matches(key),
        table.is_set,
        in_span(table, "$5", "$6"),
    )
}

/// What of relation `$1` was spent within a limit's window, whose seconds are the parameter `window`: as
/// `tombstream.spend` counts it.
pub(super) fn spent_sql(limit: &str, window: &str) -> String {
    format!(
        "coalesce((select sum(s.claims) from tombstream.breaker_spent s where s.relation = $1 \
             and s.\"limit\" = '{limit}' \
             and s.slot + make_interval(secs => {window}::float8 * 61 / 60) >= clock_timestamp()), 0)::bigint"
    )
}

fn in_span(table: &Table<'_>, from: &str, to: &str) -> String {
    let at = &table.at;
    format!(
        "({from}::timestamptz is null or {at} >= {from}) and ({to}::timestamptz is null or {at} < {to})"
    )
}

fn detail(chosen: Chosen, decided: i64) -> serde_json::Value {
    json!({"up_to": chosen.up_to, "from": chosen.from, "to": chosen.to, "decided": decided})
}

/// A relation's limits, for people.
pub fn limits(limits: &BreakerLimits) -> String {
    let mut parts = Vec::new();
    let window = limits.window.as_secs();
    if let Some(max) = limits.claims_max {
        parts.push(format!("claims_max {max} within {window} s"));
    }
    if let Some(share) = limits.share_max {
        parts.push(format!("share_max {share} within {window} s"));
    }
    if let Some(rate) = limits.rate_max {
        parts.push(format!("rate_max {rate} a second"));
    }
    parts.join(", ")
}
