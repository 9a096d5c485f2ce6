//! What `run` begins by the clock: whose turn it is, and how the last run went.
//!
//! Owned here: the lease of each name, and when it is due. Left to others: what is run.
//!
//! A lease, as a batch job has (`job.rs`), and no advisory lock: that is a session's, which a pooler takes away, or a
//! transaction's, which would hold up vacuum for as long as a comparison takes.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgPool;
use sqlx::types::Json;
use tokio::time::sleep;
use tracing::warn;

use super::statement::{BEGIN, whole};

/// How long a turn stays with a process that says nothing.
const LEASE: Duration = Duration::from_secs(15);
/// How often it says something.
const RENEW: Duration = Duration::from_secs(4);
/// How soon what failed is tried again, where its interval is longer.
const AGAIN: Duration = Duration::from_secs(15 * 60);

/// One process's turn at a name.
#[derive(Debug)]
pub struct ScheduledTurn {
    pool: PgPool,
    name: &'static str,
    token: i64,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScheduledResult {
    /// Nothing is wrong.
    Ok,
    /// It found something that is wrong.
    Found,
    /// It could not be done.
    Failed,
}

impl ScheduledResult {
    /// The ledger's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Found => "found",
            Self::Failed => "failed",
        }
    }
}

/// A name as the ledger has it.
#[derive(Clone, Debug, Serialize, sqlx::FromRow)]
pub struct ScheduleRow {
    /// Its name.
    pub name: String,
    /// How often it is begun.
    pub every_seconds: f64,
    /// In how many seconds it is begun next; below zero, it is overdue.
    pub due_in_seconds: f64,
    /// Who runs it now.
    pub run_by: Option<String>,
    /// How long ago it ended last.
    pub ended_seconds_ago: Option<f64>,
    /// How long that took.
    pub took_seconds: Option<f64>,
    /// `ok`, `found` or `failed`.
    pub result: Option<String>,
    /// What came of it.
    pub detail: Json<serde_json::Value>,
    /// How often it was run.
    pub runs: i64,
    /// How often it failed.
    pub failures: i64,
    /// When it ended last.
    pub ended_at: Option<DateTime<Utc>>,
}

pub(super) const ROWS: &str = "\
    select s.name, (s.every_ms / 1000.0)::float8 as every_seconds, \
        extract(epoch from s.due_at - clock_timestamp())::float8 as due_in_seconds, \
        case when s.lease_until > clock_timestamp() then s.lease_owner end as run_by, \
        extract(epoch from clock_timestamp() - s.ended_at)::float8 as ended_seconds_ago, \
        case when s.ended_at >= s.begun_at or s.lease_until is null \
            then extract(epoch from s.ended_at - s.begun_at)::float8 end as took_seconds, \
        s.result, s.detail, s.runs, s.failures, s.ended_at \
    from tombstream.schedule s order by s.name";

/// Every name that was ever begun by the clock.
pub async fn schedules(pool: &PgPool) -> Result<Vec<ScheduleRow>, sqlx::Error> {
    let mut transaction = whole(pool, BEGIN).await?;
    let rows = sqlx::query_as(ROWS).persistent(false).fetch_all(&mut *transaction).await?;
    transaction.rollback().await?;
    Ok(rows)
}

/// Takes the turn at `name`, if it is due and nobody is at it. A name that is new is due at once, so that whoever
/// writes it down sees whether it works.
///
/// Invariant: one process at a time is at a name, and a killed one's turn goes to another;
/// `two_processes_have_one_owner_and_a_killed_one_is_followed`.
pub async fn take_turn(
    pool: &PgPool,
    name: &'static str,
    every: Duration,
    owner: &str,
) -> Result<Option<ScheduledTurn>, sqlx::Error> {
    let every_ms = i64::try_from(every.as_millis()).unwrap_or(i64::MAX);
    let mut transaction = whole(pool, BEGIN).await?;
    sqlx::query(
        "insert into tombstream.schedule as s (name, every_ms, due_at) values ($1, $2, now()) \
         on conflict (name) do update set every_ms = excluded.every_ms, \
             due_at = coalesce(s.begun_at, now()) + make_interval(secs => excluded.every_ms / 1000.0) \
             where s.every_ms <> excluded.every_ms",
    )
    .persistent(false)
    .bind(name)
    .bind(every_ms)
    .execute(&mut *transaction)
    .await?;
    let token = sqlx::query_scalar(
        "update tombstream.schedule s set lease_owner = $2, lease_token = s.lease_token + 1, \
             lease_until = clock_timestamp() + make_interval(secs => $3), begun_at = clock_timestamp() \
         where s.name = $1 and s.due_at <= clock_timestamp() \
             and (s.lease_until is null or s.lease_until < clock_timestamp()) \
         returning s.lease_token",
    )
    .persistent(false)
    .bind(name)
    .bind(owner)
    .bind(LEASE.as_secs_f64())
    .fetch_optional(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(token.map(|token| ScheduledTurn { pool: pool.clone(), name, token }))
}

impl ScheduledTurn {
    /// Renews the lease, and ends when the turn went to another process.
    pub async fn lost(&self) {
        loop {
            sleep(RENEW).await;
            match self.renew().await {
                Ok(true) => {}
                Ok(false) => return,
                // How it ended is written under its token alone.
                Err(error) => warn!(job = self.name, error = %error, "a turn was not renewed"),
            }
        }
    }

    async fn renew(&self) -> Result<bool, sqlx::Error> {
        let mut transaction = whole(&self.pool, BEGIN).await?;
        let renewed = sqlx::query(
            "update tombstream.schedule set lease_until = clock_timestamp() + make_interval(secs => $3) \
             where name = $1 and lease_token = $2",
        )
        .persistent(false)
        .bind(self.name)
        .bind(self.token)
        .bind(LEASE.as_secs_f64())
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(renewed.rows_affected() == 1)
    }

    /// Gives the turn back, with what came of it. What failed is due again soon.
    pub async fn end(
        &self,
        result: ScheduledResult,
        detail: serde_json::Value,
    ) -> Result<(), sqlx::Error> {
        let mut transaction = whole(&self.pool, BEGIN).await?;
        sqlx::query(
            "update tombstream.schedule s set lease_until = null, ended_at = clock_timestamp(), result = $3, \
                 detail = $4, runs = s.runs + 1, failures = s.failures + ($3 = 'failed')::int, \
                 due_at = case when $3 = 'failed' \
                     then clock_timestamp() + least(make_interval(secs => s.every_ms / 1000.0), \
                         make_interval(secs => $5)) \
                     else greatest(s.begun_at + make_interval(secs => s.every_ms / 1000.0), clock_timestamp()) end \
             where s.name = $1 and s.lease_token = $2",
        )
        .persistent(false)
        .bind(self.name)
        .bind(self.token)
        .bind(result.as_str())
        .bind(Json(detail))
        .bind(AGAIN.as_secs_f64())
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await
    }
}
