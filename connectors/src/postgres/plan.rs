//! What is pending: how many flagged rows there are, what each waits for, and when the next ones are due.
//!
//! Owned here: one read of a relation's flagged rows through the flag's own index, and of its part of the ledger, all
//! of one snapshot. Left to others: one row's story (`explain`), and what is closed (`status`). How many bytes the
//! copies have is the stores' to say: the ledger does not know it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};

use tombstream_model::{BreakerLimits, FlagKind, Relation};

use super::guard::is_guarded;
use super::statement::whole;
use super::table::{Table, interval, literal};

/// One snapshot, in which nothing can be written, and no longer than this.
const BEGIN: &str =
    "begin isolation level repeatable read read only; set local statement_timeout = '120s'";

/// What is pending of one relation.
#[derive(Clone, Debug, Serialize)]
pub struct Planned {
    /// The relation's name.
    pub relation: String,
    /// When it was looked at, by Postgres's clock.
    pub at: DateTime<Utc>,
    /// Flagged rows, each counted once.
    pub rows: PlannedRows,
    /// Flagged rows by the time since their flag.
    pub ages: PlannedAges,
    /// Copies of flagged rows by store: what the templates name, a copy each.
    pub stores: Vec<PlannedStore>,
    /// Why nothing of it is claimed at all.
    pub paused: Option<String>,
    /// Active holds, also of rows that are not flagged.
    pub holds: i64,
    /// What the breaker would say.
    pub breaker: Option<PlannedBreaker>,
}

/// Flagged rows by what they wait for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct PlannedRows {
    /// All of them.
    pub flagged: i64,
    /// Due: the next look of the sweep, or a backfill, brings them to the claim.
    pub due: i64,
    /// In grace, and due within an hour.
    pub due_in_hour: i64,
    /// In grace, and due within a day, but not an hour.
    pub due_in_day: i64,
    /// Within 7 days, but not one.
    pub due_in_week: i64,
    /// Later.
    pub due_later: i64,
    /// When the next one that is in grace is due.
    pub next_due: Option<DateTime<Utc>>,
    /// In grace, with recoverable copies gone already.
    pub hidden: i64,
    /// Claimed, and not finished: their copies are going.
    pub claimed: i64,
    /// Of the claimed ones: a store owes something.
    pub owed: i64,
    /// They need a person.
    pub parked: i64,
    /// Kept by a hold.
    pub held: i64,
    /// Kept back by the breaker, undecided.
    pub kept_back: i64,
    /// Grace begins when the pipeline first sees them: nothing vouches for their flag's time.
    pub unseen: i64,
}

/// Flagged rows by age. Rows whose flag tells no time are of no age.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct PlannedAges {
    /// When the oldest was flagged.
    pub oldest: Option<DateTime<Utc>>,
    /// Up to an hour.
    pub hour: i64,
    /// Up to a day, above an hour.
    pub day: i64,
    /// Up to 30 days.
    pub month: i64,
    /// Up to 365 days.
    pub year: i64,
    /// More.
    pub older: i64,
}

/// What is pending in one store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedStore {
    /// Its name.
    pub name: String,
    /// How many copies of flagged rows the templates name in it.
    pub copies: i64,
    /// Of those, targets that it owes: open claims that it has not confirmed in time.
    pub owed: i64,
}

/// What a relation's breaker has left.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedBreaker {
    /// Since when it is tripped, and why.
    pub tripped: Option<String>,
    /// Claims that count for the window.
    pub spent: i64,
    /// How many more may be claimed now. None: no limit of the window.
    pub left: Option<i64>,
    /// Whether claiming all that is due at once, as a backfill without a rate may, would trip it.
    pub trips: bool,
}

/// What is pending of `relation`. `stores` are the configuration's names.
pub async fn plan(
    pool: &PgPool,
    relation: &Relation,
    stores: &[&str],
) -> Result<Planned, sqlx::Error> {
    let mut snapshot = whole(pool, BEGIN).await?;
    let (rows, ages, at) = flagged(&mut snapshot, relation).await?;
    let owed: Vec<(String, i64)> = sqlx::query_as(
        "select t.entry ->> 'store', count(*) \
         from tombstream.deletion d cross join jsonb_array_elements(d.targets) as t(entry) \
         where d.relation = $1 and d.state = 'claimed' and d.lease_until is null \
             and coalesce(t.entry -> 'outcome' ->> 'verdict', '') not in ('deleted', 'absent', 'waived') \
         group by 1",
    )
    .persistent(false)
    .bind(&*relation.name)
    .fetch_all(&mut *snapshot)
    .await?;
    let (paused, holds): (Option<String>, i64) = sqlx::query_as(
        "select (select reason from tombstream.pause where relation = $1), \
             (select count(*) from tombstream.hold where relation = $1 and released_at is null \
                 and (until is null or until > now()))",
    )
    .persistent(false)
    .bind(&*relation.name)
    .fetch_one(&mut *snapshot)
    .await?;
    let breaker = match &relation.breaker {
        Some(limits) => Some(breaker(&mut snapshot, relation, limits, rows.due).await?),
        None => None,
    };
    snapshot.rollback().await?;
    let of_stores = stores.iter().zip(0_u16..).filter_map(|(name, store)| {
        let templates = relation.targets.iter().filter(|target| target.store.0 == store).count();
        let owed = owed.iter().find(|(known, _)| known == name).map_or(0, |(_, owed)| *owed);
        (templates > 0).then(|| PlannedStore {
            name: (*name).to_owned(),
            copies: rows.flagged * templates as i64,
            owed,
        })
    });
    Ok(Planned {
        relation: relation.name.to_string(),
        at,
        stores: of_stores.collect(),
        rows,
        ages,
        paused,
        holds,
        breaker,
    })
}

async fn flagged(
    connection: &mut PgConnection,
    relation: &Relation,
) -> Result<(PlannedRows, PlannedAges, DateTime<Utc>), sqlx::Error> {
    #[derive(sqlx::FromRow)]
    struct Found {
        #[sqlx(flatten)]
        rows: PlannedRows,
        #[sqlx(flatten)]
        ages: PlannedAges,
        at: DateTime<Utc>,
    }
    let found: Found = sqlx::query_as(AssertSqlSafe(flagged_sql(relation)))
        .persistent(false)
        .fetch_one(connection)
        .await?;
    Ok((found.rows, found.ages, found.at))
}

/// One pass over the flag's index, joined with what of it is open in the ledger. What is in no state of the ledger is
/// told by its flag alone, as the claim does: `since` is the same as there.
fn flagged_sql(relation: &Relation) -> String {
    let table = Table::new(relation);
    let name = literal(&relation.name);
    let vouched = match relation.flag.kind {
        FlagKind::Boolean => "false".to_owned(),
        FlagKind::TimestampTz | FlagKind::Timestamp { .. } => is_guarded(relation, "before"),
    };
    // Beyond what a clock holds it would fail to be read.
    let shown = |at: &str| {
        format!(
            "case when {at} > '4000-01-01 BC'::timestamptz and {at} < '200000-01-01'::timestamptz then {at} end"
        )
    };
    let grace = interval(relation.grace);
    let waits = "stands = 'waits'";
    let before = |length: &str| format!("since <= now() + interval '{length}' - {grace}");
    format!(
        "with vouched as materialized (select {vouched} as vouched), \
         f as materialized ( \
             select t.at, d.state, d.owes, d.hidden, \
                 case when vouched.vouched then greatest(t.at, d.first_seen) \
                     else greatest(t.at, d.first_seen, case when d.first_seen is null then 'infinity'::timestamptz end) end as since, \
                 not vouched.vouched and d.first_seen is null as unseen, \
                 coalesce(d.kept_back, false) as kept_back, h.key is not null as held \
             from (select {key} as key, {at} as at from {table} t where {is_set}) t cross join vouched \
             left join ( \
                 select d.key, d.state, d.first_seen, d.state = 'claimed' and d.lease_until is null as owes, \
                     d.hidden_at is not null as hidden, \
                     d.kept_back_at is not null and d.approved_at is null as kept_back \
                 from tombstream.deletion d where d.relation = {name} \
                     and d.state in ('pending', 'hidden', 'claimed', 'parked') \
             ) d on d.key = t.key \
             left join ( \
                 select distinct h.key from tombstream.hold h where h.relation = {name} \
                     and h.released_at is null and (h.until is null or h.until > now()) \
             ) h on h.key = t.key \
         ), \
         s as ( \
             select f.*, case when state = 'claimed' then 'claimed' when state = 'parked' then 'parked' \
                 when held then 'held' when kept_back then 'kept_back' when unseen then 'unseen' \
                 when since <= now() - {grace} then 'due' else 'waits' end as stands \
             from f \
         ) \
         select now() as at, count(*) as flagged, count(*) filter (where stands = 'due') as due, \
             count(*) filter (where {waits} and {hour}) as due_in_hour, \
             count(*) filter (where {waits} and {day} and not {hour}) as due_in_day, \
             count(*) filter (where {waits} and {week} and not {day}) as due_in_week, \
             count(*) filter (where {waits} and not {week}) as due_later, \
             {next} + {grace} as next_due, \
             count(*) filter (where state = 'hidden' and {waits}) as hidden, \
             count(*) filter (where stands = 'claimed') as claimed, \
             count(*) filter (where owes) as owed, \
             count(*) filter (where stands = 'parked') as parked, \
             count(*) filter (where stands = 'held') as held, \
             count(*) filter (where stands = 'kept_back') as kept_back, \
             count(*) filter (where stands = 'unseen') as unseen, \
             {oldest} as oldest, \
             count(*) filter (where s.at > now() - interval '1 hour') as hour, \
             count(*) filter (where s.at <= now() - interval '1 hour' and s.at > now() - interval '1 day') as day, \
             count(*) filter (where s.at <= now() - interval '1 day' and s.at > now() - interval '30 days') as month, \
             count(*) filter (where s.at <= now() - interval '30 days' and s.at > now() - interval '365 days') as year, \
             count(*) filter (where s.at <= now() - interval '365 days') as older \
         from s",
        key = table.key("t"),
        at = table.flag_at("t"),
        table = table.name(),
        is_set = table.is_set("t"),
        hour = before("1 hour"),
        day = before("1 day"),
        week = before("7 days"),
        next = shown(&format!("(min(since) filter (where {waits}))")),
        oldest = shown("min(s.at)"),
    )
}

/// What `tombstream.spend` would say. It writes, so its sums are made here again; the slots that it would forget are
/// not counted.
async fn breaker(
    connection: &mut PgConnection,
    relation: &Relation,
    limits: &BreakerLimits,
    due: i64,
) -> Result<PlannedBreaker, sqlx::Error> {
    let (tripped, rows, spent): (Option<String>, Option<i64>, i64) = sqlx::query_as(
        "select b.reason, b.row_count, (select coalesce(sum(s.claims), 0)::bigint \
                 from tombstream.breaker_spent s where s.relation = $1 and s.\"limit\" = 'window' \
                     and s.slot + make_interval(secs => $2) * 61 / 60 >= clock_timestamp()) \
         from (values (1)) one left join lateral ( \
             select case when tripped_at is not null then coalesce(reason, 'no reason is known') end as reason, \
                 row_count from tombstream.breaker where relation = $1 \
         ) b on true",
    )
    .persistent(false)
    .bind(&*relation.name)
    .bind(limits.window.as_secs_f64())
    .fetch_one(connection)
    .await?;
    Ok(judge(limits, tripped, rows, spent, due))
}

/// The judgement alone. The share is of the rows that the breaker counted last; what it never counted is not judged.
fn judge(
    limits: &BreakerLimits,
    tripped: Option<String>,
    rows: Option<i64>,
    spent: i64,
    due: i64,
) -> PlannedBreaker {
    let number = |limit: u64| i64::try_from(limit).unwrap_or(i64::MAX);
    let of_claims = limits.claims_max.map(number);
    let of_share = limits
        .share_max
        .zip(rows)
        .map(|(share, rows)| ((rows as f64 * share) as i64).max(number(BreakerLimits::SHARE_FROM)));
    let most = of_claims.into_iter().chain(of_share).min();
    let left = most.map(|most| if tripped.is_some() { 0 } else { (most - spent).max(0) });
    let of_rate = limits
        .rate_max
        .map(|rate| number(rate.saturating_mul(BreakerLimits::RATE_WINDOW.as_secs())));
    let trips = tripped.is_some()
        || left.is_some_and(|left| due > left)
        || of_rate.is_some_and(|rate| due > rate);
    PlannedBreaker { tripped, spent, left, trips }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LIMITS: BreakerLimits = BreakerLimits {
        claims_max: Some(1_000),
        window: Duration::from_secs(3600),
        share_max: None,
        rate_max: None,
    };

    #[test]
    fn the_breaker_says_what_is_left_and_whether_all_that_is_due_trips_it() {
        let judged = |limits: &BreakerLimits, due| judge(limits, None, Some(5_000), 400, due);
        assert_eq!((judged(&LIMITS, 600).left, judged(&LIMITS, 600).trips), (Some(600), false));
        assert!(judged(&LIMITS, 601).trips);
        let share = BreakerLimits { share_max: Some(0.1), ..LIMITS };
        assert_eq!((judged(&share, 100).left, judged(&share, 101).trips), (Some(100), true));
        let rate = BreakerLimits { claims_max: None, rate_max: Some(50), ..LIMITS };
        assert_eq!((judged(&rate, 500).left, judged(&rate, 500).trips), (None, false));
        assert!(judged(&rate, 501).trips);
        let tripped = judge(&LIMITS, Some("much".into()), None, 0, 0);
        assert_eq!((tripped.left, tripped.trips), (Some(0), true));
    }
}
