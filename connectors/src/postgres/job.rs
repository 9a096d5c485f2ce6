//! Batch jobs in the ledger: who runs which, what it was asked, and how far it is.
//!
//! Owned here: the name's lease and its positions. Left to others: what a job reads (`backfill.rs`).
//!
//! A lease, not an advisory lock: those belong to a session, and behind a pooler nobody has one. It is renewed
//! while its process lives, and every write asks for its token, so that a process which was taken for dead writes
//! nothing any more.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::types::Json;
use sqlx::{PgPool, Row as _};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::statement::{BEGIN, whole};

/// How long a name stays with a process that says nothing: long beside a pause of Postgres's, short for a person
/// who starts a killed job again.
const LEASE: Duration = Duration::from_secs(15);
/// How often it says something.
const RENEW: Duration = Duration::from_secs(4);

/// Why a job can't be run, or go on.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// Another process runs it.
    #[error(
        "job {name} is run by {owner} (begun {begun_at}): one process at a time runs a name; stop that one, or \
         give this job another name"
    )]
    Taken {
        /// The job.
        name: String,
        /// Who runs it.
        owner: String,
        /// Since when the job is there.
        begun_at: DateTime<Utc>,
    },
    /// The name stands for something else.
    #[error(
        "job {name} was asked for something else ({kind} {spec}): give this one another name, or forget that one \
         with `tombstream jobs forget {name}`"
    )]
    Other {
        /// The job.
        name: String,
        /// Its kind.
        kind: String,
        /// What it was asked.
        spec: serde_json::Value,
    },
    /// It is done.
    #[error(
        "job {name} is done (since {done_at}): to do it again, forget it with `tombstream jobs forget {name}`"
    )]
    Done {
        /// The job.
        name: String,
        /// Since when.
        done_at: DateTime<Utc>,
    },
    /// The name went to another process.
    #[error("job {0} is run by another process now: this one was taken for dead")]
    Lost(String),
    /// What was asked for can't be done.
    #[error("{0}")]
    Refused(String),
    /// The database.
    #[error("the ledger can't be asked")]
    Database(#[from] sqlx::Error),
}

/// A job as the ledger has it.
#[derive(Clone, Debug, Serialize, sqlx::FromRow)]
pub struct JobRow {
    /// Its name.
    pub name: String,
    /// What it does.
    pub kind: String,
    /// What it was asked.
    #[sqlx(json)]
    pub spec: serde_json::Value,
    /// `running`, `stopped` or `done`. One that was killed is `running` with no lease.
    pub state: String,
    /// Who runs it, or did last.
    pub owner: Option<String>,
    /// Whether a process runs it now.
    pub is_run: bool,
    /// How many rows there were to look at when it was planned.
    pub total: Option<i64>,
    /// How many were looked at.
    pub looked_at: i64,
    /// What became of them.
    #[sqlx(json)]
    pub counts: BTreeMap<String, u64>,
    /// Why it is stopped.
    pub reason: Option<String>,
    /// When it began.
    pub begun_at: DateTime<Utc>,
    /// When it was moved on last.
    pub at: DateTime<Utc>,
    /// When it was done.
    pub done_at: Option<DateTime<Utc>>,
}

const ROWS: &str = "\
    select j.name, j.kind, j.spec, j.state, j.owner, \
        coalesce(j.lease_until > clock_timestamp(), false) as is_run, j.total, \
        (select coalesce(sum(r.looked_at), 0)::bigint from tombstream.job_range r where r.job = j.name) as looked_at, \
        j.counts, j.reason, j.begun_at, j.at, j.done_at \
    from tombstream.job j where $1::text is null or j.name = $1 order by j.begun_at, j.name";

/// Every job, oldest first; or the one of this name.
pub async fn jobs(pool: &PgPool, name: Option<&str>) -> Result<Vec<JobRow>, sqlx::Error> {
    let mut transaction = whole(pool, BEGIN).await?;
    let rows =
        sqlx::query_as(ROWS).persistent(false).bind(name).fetch_all(&mut *transaction).await?;
    transaction.rollback().await?;
    Ok(rows)
}

/// Forgets a job that no process runs, with its positions. Says whether there was one.
pub async fn forget_job(pool: &PgPool, name: &str) -> Result<bool, JobError> {
    let mut transaction = whole(pool, BEGIN).await?;
    let forgotten = sqlx::query(
        "delete from tombstream.job where name = $1 \
             and (lease_until is null or lease_until <= clock_timestamp())",
    )
    .persistent(false)
    .bind(name)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    if forgotten.rows_affected() > 0 {
        return Ok(true);
    }
    match jobs(pool, Some(name)).await?.into_iter().next() {
        Some(job) => Err(taken(job)),
        None => Ok(false),
    }
}

fn taken(job: JobRow) -> JobError {
    let owner = job.owner.unwrap_or_else(|| "somebody".to_owned());
    JobError::Taken { name: job.name, owner, begun_at: job.begun_at }
}

/// A job that this process runs. Dropped, it is renewed no more, and its name is free when the lease is over.
#[derive(Debug)]
pub struct Job {
    pool: PgPool,
    name: String,
    token: i64,
    /// What earlier processes counted.
    before: BTreeMap<String, u64>,
    begun_at: DateTime<Utc>,
    total: Option<i64>,
    lost: watch::Receiver<bool>,
    renewal: JoinHandle<()>,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

/// How far a range is.
#[derive(Clone, Debug)]
pub(super) struct Moved {
    pub(super) range: i32,
    /// The last row of it that is durable.
    pub(super) at: Option<serde_json::Value>,
    pub(super) looked_at: i64,
    pub(super) is_done: bool,
}

impl Job {
    /// Takes the job's name, making the job if there is none. One that another process holds is waited for while
    /// its lease ends: whoever lives renews it meanwhile, and is named.
    ///
    /// Invariant: at most one process runs a name; `a_name_is_run_by_one_process_and_the_second_hears_by_whom`.
    pub async fn take(
        pool: &PgPool,
        name: &str,
        kind: &str,
        spec: &serde_json::Value,
        owner: &str,
    ) -> Result<Self, JobError> {
        let waited = Instant::now();
        let mut seen: Option<DateTime<Utc>> = None;
        loop {
            let mut transaction = whole(pool, BEGIN).await?;
            sqlx::query(
                "insert into tombstream.job (name, kind, spec) values ($1, $2, $3) on conflict do nothing",
            )
            .persistent(false)
            .bind(name)
            .bind(kind)
            .bind(Json(spec))
            .execute(&mut *transaction)
            .await?;
            let row = sqlx::query(
                "select kind, spec, begun_at, done_at, counts, total, lease_until, \
                     coalesce(lease_until > clock_timestamp(), false) as is_run \
                 from tombstream.job where name = $1 for update",
            )
            .persistent(false)
            .bind(name)
            .fetch_one(&mut *transaction)
            .await?;
            let (known, asked): (String, Json<serde_json::Value>) =
                (row.try_get("kind")?, row.try_get("spec")?);
            if known != kind || asked.0 != *spec {
                let name = name.to_owned();
                return Err(JobError::Other { name, kind: known, spec: asked.0 });
            }
            if let Some(done_at) = row.try_get("done_at")? {
                return Err(JobError::Done { name: name.to_owned(), done_at });
            }
            if row.try_get("is_run")? {
                transaction.rollback().await?;
                let until: Option<DateTime<Utc>> = row.try_get("lease_until")?;
                if seen.is_some() && seen != until || waited.elapsed() > LEASE * 2 {
                    let job = jobs(pool, Some(name)).await?.into_iter().next();
                    return Err(job.map_or_else(|| JobError::Lost(name.to_owned()), taken));
                }
                seen = until;
                sleep(Duration::from_millis(200)).await;
                continue;
            }
            let token: i64 = sqlx::query_scalar(
                "update tombstream.job set token = token + 1, owner = $2, state = 'running', reason = null, \
                     at = now(), lease_until = clock_timestamp() + make_interval(secs => $3) \
                 where name = $1 returning token",
            )
            .persistent(false)
            .bind(name)
            .bind(owner)
            .bind(LEASE.as_secs_f64())
            .fetch_one(&mut *transaction)
            .await?;
            transaction.commit().await?;
            let (lost_to, lost) = watch::channel(false);
            return Ok(Self {
                pool: pool.clone(),
                name: name.to_owned(),
                token,
                before: row.try_get::<Json<_>, _>("counts")?.0,
                begun_at: row.try_get("begun_at")?,
                total: row.try_get("total")?,
                lost,
                renewal: tokio::spawn(renew(pool.clone(), name.to_owned(), token, lost_to)),
            });
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many rows there were to look at when it was planned. None: it is not.
    pub(super) fn total(&self) -> Option<i64> {
        self.total
    }

    /// When the job was begun, by Postgres's clock.
    pub(super) fn begun_at(&self) -> DateTime<Utc> {
        self.begun_at
    }

    /// The lease's number. It grows with each process.
    pub(super) fn token(&self) -> i64 {
        self.token
    }

    /// What earlier processes counted.
    pub fn before(&self) -> &BTreeMap<String, u64> {
        &self.before
    }

    /// Whether the name went to another process.
    pub(super) fn is_lost(&self) -> bool {
        *self.lost.borrow()
    }

    /// Writes the plan: the ranges, and how many rows are in them.
    pub(super) async fn plan(
        &mut self,
        total: i64,
        ranges: &[(serde_json::Value, serde_json::Value)],
    ) -> Result<(), JobError> {
        let (after, upto): (Vec<_>, Vec<_>) =
            ranges.iter().map(|(after, upto)| (text(after), text(upto))).unzip();
        let mut transaction = whole(&self.pool, BEGIN).await?;
        self.mine(&mut transaction).await?;
        sqlx::query("update tombstream.job set total = $2 where name = $1")
            .persistent(false)
            .bind(&self.name)
            .bind(total)
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "insert into tombstream.job_range (job, range, after, upto) \
             select $1, n - 1, a::jsonb, u::jsonb from unnest($2::text[], $3::text[]) \
                 with ordinality as i(a, u, n)",
        )
        .persistent(false)
        .bind(&self.name)
        .bind(after)
        .bind(upto)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        self.total = Some(total);
        Ok(())
    }

    /// The ranges that are not done: number, where each goes on, where it ends, and what was looked at.
    pub(super) async fn ranges(
        &self,
    ) -> Result<Vec<(i32, Option<serde_json::Value>, Option<serde_json::Value>, i64)>, JobError>
    {
        let mut transaction = whole(&self.pool, BEGIN).await?;
        let rows = sqlx::query(
            "select range, coalesce(at, after) as after, upto, looked_at from tombstream.job_range \
             where job = $1 and not is_done order by range",
        )
        .persistent(false)
        .bind(&self.name)
        .fetch_all(&mut *transaction)
        .await?;
        transaction.rollback().await?;
        let json = |row: &sqlx::postgres::PgRow, at: usize| {
            row.try_get::<Option<Json<serde_json::Value>>, _>(at).map(|it| it.map(|json| json.0))
        };
        let read = |row: &sqlx::postgres::PgRow| {
            Ok((row.try_get(0)?, json(row, 1)?, json(row, 2)?, row.try_get(3)?))
        };
        rows.iter().map(read).collect::<Result<_, sqlx::Error>>().map_err(JobError::Database)
    }

    /// How many rows were looked at, in all ranges.
    pub(super) async fn looked_at(&self) -> Result<i64, JobError> {
        let mut transaction = whole(&self.pool, BEGIN).await?;
        let sum = sqlx::query_scalar(
            "select coalesce(sum(looked_at), 0)::bigint from tombstream.job_range where job = $1",
        )
        .persistent(false)
        .bind(&self.name)
        .fetch_one(&mut *transaction)
        .await?;
        transaction.rollback().await?;
        Ok(sum)
    }

    /// Moves ranges on: everything up to there is durable. Says nothing where the name went to another process.
    pub(super) async fn moved(
        &self,
        moved: &[Moved],
        counts: &BTreeMap<String, u64>,
    ) -> Result<(), JobError> {
        let mut transaction = whole(&self.pool, BEGIN).await?;
        self.moved_within(&mut transaction, moved, counts).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// The same, in the transaction that makes it durable.
    pub(super) async fn moved_within(
        &self,
        connection: &mut sqlx::PgConnection,
        moved: &[Moved],
        counts: &BTreeMap<String, u64>,
    ) -> Result<(), JobError> {
        self.mine(&mut *connection).await?;
        self.count(&mut *connection, counts).await?;
        sqlx::query(
            "update tombstream.job_range r set at = coalesce(i.at::jsonb, r.at), looked_at = i.looked_at, \
                 is_done = i.is_done \
             from unnest($2::integer[], $3::text[], $4::bigint[], $5::boolean[]) \
                 as i(range, at, looked_at, is_done) \
             where r.job = $1 and r.range = i.range",
        )
        .persistent(false)
        .bind(&self.name)
        .bind(moved.iter().map(|it| it.range).collect::<Vec<_>>())
        .bind(moved.iter().map(|it| it.at.as_ref().and_then(text)).collect::<Vec<_>>())
        .bind(moved.iter().map(|it| it.looked_at).collect::<Vec<_>>())
        .bind(moved.iter().map(|it| it.is_done).collect::<Vec<_>>())
        .execute(connection)
        .await?;
        Ok(())
    }

    /// Gives the name back: done, or stopped for a reason.
    pub async fn end(
        &self,
        counts: &BTreeMap<String, u64>,
        stopped: Option<&str>,
    ) -> Result<(), JobError> {
        self.renewal.abort();
        let mut transaction = whole(&self.pool, BEGIN).await?;
        self.mine(&mut transaction).await?;
        self.count(&mut transaction, counts).await?;
        sqlx::query(
            "update tombstream.job set lease_until = null, reason = $2, \
                 state = case when $2::text is null then 'done' else 'stopped' end, \
                 done_at = case when $2::text is null then clock_timestamp() end \
             where name = $1",
        )
        .persistent(false)
        .bind(&self.name)
        .bind(stopped)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Locks the job, if it is this process's still.
    async fn mine(&self, connection: &mut sqlx::PgConnection) -> Result<(), JobError> {
        let mine: Option<i32> = sqlx::query_scalar(
            "select 1 from tombstream.job where name = $1 and token = $2 for update",
        )
        .persistent(false)
        .bind(&self.name)
        .bind(self.token)
        .fetch_optional(connection)
        .await?;
        mine.map(drop).ok_or_else(|| JobError::Lost(self.name.clone()))
    }

    async fn count(
        &self,
        connection: &mut sqlx::PgConnection,
        counts: &BTreeMap<String, u64>,
    ) -> Result<(), JobError> {
        let mut all = self.before.clone();
        for (name, count) in counts {
            *all.entry(name.clone()).or_default() += count;
        }
        sqlx::query("update tombstream.job set counts = $2, at = now() where name = $1")
            .persistent(false)
            .bind(&self.name)
            .bind(Json(all))
            .execute(connection)
            .await?;
        Ok(())
    }
}

fn text(json: &serde_json::Value) -> Option<String> {
    (!json.is_null()).then(|| json.to_string())
}

/// Renews the lease until the name is another's.
async fn renew(pool: PgPool, name: String, token: i64, lost: watch::Sender<bool>) {
    loop {
        sleep(RENEW).await;
        match renew_once(&pool, &name, token).await {
            Ok(true) => {}
            Ok(false) => {
                lost.send_replace(true);
                return;
            }
            // Its writes ask for the token, so that nothing is lost by going on.
            Err(error) => warn!(job = name, error = %error, "the job's lease was not renewed"),
        }
    }
}

async fn renew_once(pool: &PgPool, name: &str, token: i64) -> Result<bool, sqlx::Error> {
    let mut transaction = whole(pool, BEGIN).await?;
    let renewed = sqlx::query(
        "update tombstream.job set lease_until = clock_timestamp() + make_interval(secs => $3) \
         where name = $1 and token = $2",
    )
    .persistent(false)
    .bind(name)
    .bind(token)
    .bind(LEASE.as_secs_f64())
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(renewed.rows_affected() == 1)
}
