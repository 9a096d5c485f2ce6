//! How a statement is sent: prepared once for a session, or, behind a pooler, parsed anew each time.
//!
//! A pooler in transaction mode gives every transaction another of the server's sessions. A named
//! statement then meets another client's of that name, and an unnamed one is bound where it was not
//! parsed. So there none has a name, and each runs inside a transaction
//! (`a_deletion_goes_its_whole_way_behind_a_pooler`). What is asked once in a while does so everywhere.

use std::ops::{Deref, DerefMut};

use serde::Serialize;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::{Query, QueryScalar};
use sqlx::{FromRow, PgConnection, PgPool, Postgres, SqlSafeStr, Transaction};

/// Of a claim, of taking over, of counting: decisions are on fresh snapshots, whatever a role's default is.
pub(super) const BEGIN: &str = "begin isolation level read committed";

/// The begin of what is decided and written for so many keys, and what else it sets. These statements are long: planned
/// anew for each batch, they cost a lone deletion more than all the rest. So for few keys they are planned once a session,
/// whatever the keys are. Such a plan may be of a time when a table was all but empty, until its statistics change or the
/// session ends: too long for many keys, which are left to the planner. (To force a plan of their own would force one on
/// each row's triggers, too.)
macro_rules! begin_by_key {
    ($keys:expr, $also:literal) => {{
        const FEW: &str = concat!(
            "begin isolation level read committed; set local plan_cache_mode = force_generic_plan; ",
            "set local enable_seqscan = off; set local jit = off",
            $also
        );
        const MANY: &str =
            concat!("begin isolation level read committed; set local jit = off", $also);
        if $keys <= $crate::postgres::statement::FEW_KEYS { FEW } else { MANY }
    }};
}
pub(super) use begin_by_key;

/// So many keys share one plan.
pub(super) const FEW_KEYS: usize = 16;

/// A value as a parameter of type text that the statement casts to json.
pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> Result<String, sqlx::Error> {
    serde_json::to_string(value).map_err(|error| sqlx::Error::Encode(Box::new(error)))
}

/// The pool, and how statements are sent on it.
#[derive(Clone, Debug)]
pub(super) struct Statements {
    pool: PgPool,
    prepared: bool,
}

/// A connection for one statement.
pub(super) enum Session {
    /// The statement is its own transaction: one round trip.
    Alone(PoolConnection<Postgres>),
    /// It is parsed and run in one, so that both meet the same session of the server.
    Wrapped(Transaction<'static, Postgres>),
}

impl Statements {
    pub(super) fn new(pool: PgPool, prepared: bool) -> Self {
        Self { pool, prepared }
    }

    /// A statement. It runs on a [`Self::session`] or in a transaction.
    pub(super) fn query<'q>(&self, sql: impl SqlSafeStr) -> Query<'q, Postgres, PgArguments> {
        sqlx::query(sql).persistent(self.prepared)
    }

    /// A statement whose rows have one column.
    pub(super) fn scalar<'q, O>(
        &self,
        sql: impl SqlSafeStr,
    ) -> QueryScalar<'q, Postgres, O, PgArguments>
    where
        (O,): for<'r> FromRow<'r, PgRow>,
    {
        sqlx::query_scalar(sql).persistent(self.prepared)
    }

    /// A connection for one statement; [`Session::end`] makes it durable.
    pub(super) async fn session(&self) -> Result<Session, sqlx::Error> {
        Ok(if self.prepared {
            Session::Alone(self.pool.acquire().await?)
        } else {
            Session::Wrapped(self.begin(BEGIN).await?)
        })
    }

    /// A transaction, begun by `begin`.
    pub(super) async fn begin(
        &self,
        begin: &'static str,
    ) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        whole(&self.pool, begin).await
    }
}

/// Begins a transaction, or has not begun one.
///
/// sqlx gives a connection back to the pool in the middle of its `begin` when the future is dropped just then, and
/// rolls nothing back: whoever gets it next writes into a transaction that nobody commits. Sources and stages
/// drop futures all the time. So the `begin` has a task of its own, which is carried through; a transaction that
/// nobody waits for any more is rolled back where it is dropped.
///
/// Invariant (S7): `a_begin_that_is_given_up_leaves_no_transaction_behind`.
pub(super) async fn whole(
    pool: &PgPool,
    begin: &'static str,
) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
    let pool = pool.clone();
    carried(async move { pool.begin_with(begin).await }).await
}

/// Work with a task of its own: it is carried through, whoever still waits for it.
pub(super) async fn carried<T: Send + 'static>(
    work: impl Future<Output = Result<T, sqlx::Error>> + Send + 'static,
) -> Result<T, sqlx::Error> {
    tokio::spawn(work).await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
}

impl Session {
    pub(super) async fn end(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Alone(_) => Ok(()),
            Self::Wrapped(transaction) => transaction.commit().await,
        }
    }
}

impl Deref for Session {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        match self {
            Self::Alone(connection) => connection,
            Self::Wrapped(transaction) => transaction,
        }
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut PgConnection {
        match self {
            Self::Alone(connection) => connection,
            Self::Wrapped(transaction) => transaction,
        }
    }
}
