//! Statements on the pool: prepared or not, and again when that may help.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Connection, PgPool, Postgres};

use crate::error::{ApiError, Fault};

/// Most attempts at one request. Contention on one row ends with the other's commit.
const ATTEMPTS_MAX: u32 = 4;

/// Longest wait for a connection, so that a caller learns soon that the database is down.
const ACQUIRE_MAX: Duration = Duration::from_secs(3);

/// The pool, and how statements are sent.
#[derive(Clone)]
pub(crate) struct Db {
    pool: PgPool,
    prepared: bool,
    acquire_max: Duration,
}

/// The attempts at one request.
pub(crate) struct Attempts {
    made: u32,
    /// Whether a lost answer may be asked for again.
    repeatable: bool,
    /// Whether connections are tried before they are used.
    careful: bool,
}

/// How the api's pool should be made: connections are not tried before each use, which would be a
/// second round trip for each request; a request that finds a broken one is tried again.
pub fn pool_options() -> PgPoolOptions {
    PgPoolOptions::new().test_before_acquire(false)
}

/// `options` with a server-side limit on what a request may take: without it a statement that waits
/// for a lock keeps its connection long after the caller got its 504.
///
/// Not for pgbouncer, which refuses such options; set the role's `statement_timeout` there.
pub fn connect_options(options: PgConnectOptions, timeout: Duration) -> PgConnectOptions {
    let limit = format!("{}ms", timeout.as_millis().max(1));
    options.application_name("tombstream-api").options([
        ("statement_timeout", limit.as_str()),
        ("idle_in_transaction_session_timeout", limit.as_str()),
    ])
}

impl Attempts {
    /// For what is idempotent: reads, flags, restores.
    pub(crate) fn repeatable() -> Self {
        Self { made: 0, repeatable: true, careful: false }
    }

    /// For what a repetition would do twice. Its connection is tried first.
    pub(crate) fn once() -> Self {
        Self { made: 0, repeatable: false, careful: true }
    }

    /// Whether another attempt is to be made after `error`. Waits a little before it, longer each
    /// time, and by chance, so that those who met don't meet again.
    pub(crate) async fn again(&mut self, error: &ApiError) -> bool {
        let worth_it = match error.fault() {
            Some(Fault::Contention) => true,
            Some(Fault::Lost) => {
                self.careful = true;
                self.repeatable
            }
            _ => false,
        };
        worth_it && self.wait().await
    }

    /// As [`Self::again`], after something else that another attempt may mend.
    pub(crate) async fn wait(&mut self) -> bool {
        self.made += 1;
        if self.made >= ATTEMPTS_MAX {
            return false;
        }
        let most = 10 << self.made;
        let wait = Duration::from_millis(rand::rng().random_range(1..=most));
        tokio::time::sleep(wait).await;
        true
    }
}

impl Db {
    pub(crate) fn new(pool: PgPool, prepared: bool, timeout: Duration) -> Self {
        Self { pool, prepared, acquire_max: ACQUIRE_MAX.min(timeout / 2) }
    }

    /// A statement that was made at start.
    pub(crate) fn query(&self, sql: &Arc<str>) -> Query<'static, Postgres, PgArguments> {
        sqlx::query(AssertSqlSafe(Arc::clone(sql))).persistent(self.prepared)
    }

    /// A statement that is the same for every relation.
    pub(crate) fn fixed(&self, sql: &'static str) -> Query<'static, Postgres, PgArguments> {
        sqlx::query(sql).persistent(self.prepared)
    }

    /// A connection, which was tried if the last one of `attempts` was broken.
    pub(crate) async fn acquire(
        &self,
        attempts: &Attempts,
    ) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        let mut tries = if attempts.careful { self.pool.size() } else { 0 };
        loop {
            let acquired = tokio::time::timeout(self.acquire_max, self.pool.acquire()).await;
            let mut connection = acquired.map_err(|_| sqlx::Error::PoolTimedOut)??;
            if tries == 0 || connection.ping().await.is_ok() {
                return Ok(connection);
            }
            drop(connection.detach());
            tries -= 1;
        }
    }

    /// The pool, for a function that makes its own transactions: after a look whether a connection is to be
    /// had, and is whole where `attempts` are careful.
    pub(crate) async fn pool(&self, attempts: &Attempts) -> Result<&PgPool, sqlx::Error> {
        drop(self.acquire(attempts).await?);
        Ok(&self.pool)
    }

    /// Runs one statement that gives at most one row.
    ///
    /// It is one round trip, and its own transaction. Where statements can't stay prepared it is
    /// wrapped in one, since preparing and running it must meet the same server.
    pub(crate) async fn optional(
        &self,
        attempts: &Attempts,
        query: Query<'static, Postgres, PgArguments>,
    ) -> Result<Option<PgRow>, sqlx::Error> {
        let mut connection = self.acquire(attempts).await?;
        if self.prepared {
            return query.fetch_optional(&mut *connection).await;
        }
        let mut transaction = connection.begin().await?;
        let row = query.fetch_optional(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(row)
    }

    /// Runs one statement that gives exactly one row.
    pub(crate) async fn one(
        &self,
        attempts: &Attempts,
        query: Query<'static, Postgres, PgArguments>,
    ) -> Result<PgRow, sqlx::Error> {
        self.optional(attempts, query).await?.ok_or(sqlx::Error::RowNotFound)
    }

    /// Runs one statement that gives rows.
    pub(crate) async fn all(
        &self,
        attempts: &Attempts,
        query: Query<'static, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        let mut connection = self.acquire(attempts).await?;
        if self.prepared {
            return query.fetch_all(&mut *connection).await;
        }
        let mut transaction = connection.begin().await?;
        let rows = query.fetch_all(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(rows)
    }
}
