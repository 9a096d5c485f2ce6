//! What operators order and see: holds, parked work, the breaker, bulk flags, rehydrations, and what a deletion
//! waits for.
//!
//! Owned here: the statements, over the relations' rows and the ledger. The routes and the binary's commands are
//! thin over them. Left to others: who may order (the api's tokens, whoever may run the binary) and obeying (the
//! claim, the sweep).
//!
//! Lock order, as everywhere: relation row, breaker row, ledger row. Every order leaves one row of
//! `tombstream.operator_order` in each of its transactions. No statement here is prepared for a session: people
//! order seldom, and a pooler may stand between.

pub mod breaker;
pub mod bulk;
pub mod explain;
pub mod hold;
pub mod parked;
pub mod rehydrate;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{PgConnection, PgPool, Postgres, SqlSafeStr, Transaction};
use tombstream_model::{Key, Relation};

use crate::error::Fault;
use crate::key;

/// Longest case, reason or name of an actor, in bytes: it is for a person to read.
const TEXT_MAX: usize = 1_000;

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// What it is about is not there.
    #[error("{0}")]
    Missing(String),
    /// It is there, but not so that this can be done.
    #[error("{0}")]
    Refused(String),
    /// The order itself makes no sense.
    #[error("{0}")]
    Wrong(String),
    /// The relation's breaker stops more flags.
    #[error("{0}")]
    Breaker(String),
    /// The database.
    #[error("the ledger can't be read or written; is it migrated (`tombstream migrate`)?")]
    Database(#[from] sqlx::Error),
}

/// The canonical key of texts, as a command line or a path has them.
pub fn key<'a>(
    relation: &Relation,
    texts: impl ExactSizeIterator<Item = &'a str>,
) -> Result<Key, OrderError> {
    let texts: Vec<&str> = texts.collect();
    key::parse_texts(relation, texts)
        .map(Key::from_postgres)
        .map_err(|error| OrderError::Wrong(error.to_string()))
}

/// Decisions are made on fresh snapshots, whatever the role's default is.
async fn begin(pool: &PgPool) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
    pool.begin_with("begin isolation level read committed").await
}

/// Ends a transaction as its work ended. A dropped one is rolled back some time later, and its locks would turn
/// away who comes next.
async fn end<T, E: From<sqlx::Error>>(
    transaction: Transaction<'_, Postgres>,
    worked: Result<T, E>,
) -> Result<T, E> {
    match worked {
        Ok(done) => {
            transaction.commit().await?;
            Ok(done)
        }
        Err(error) => {
            if let Err(lost) = transaction.rollback().await {
                tracing::debug!(error = %lost, "not rolled back: the connection is gone");
            }
            Err(error)
        }
    }
}

fn query<'q>(sql: impl SqlSafeStr) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(sql).persistent(false)
}

/// The key as a statement takes it.
fn columns(key: &Key) -> Vec<String> {
    key.columns().map(str::to_owned).collect()
}

/// A text that a person gave: there, short, and one that Postgres can keep.
fn check_text(what: &str, text: &str) -> Result<(), OrderError> {
    let wrong = if text.trim().is_empty() {
        "is empty".to_owned()
    } else if text.len() > TEXT_MAX {
        format!("is longer than {TEXT_MAX} bytes")
    } else if text.contains('\0') {
        "holds a zero byte".to_owned()
    } else {
        return Ok(());
    };
    Err(OrderError::Wrong(format!("{what} {wrong}")))
}

/// Writes down who ordered what.
async fn note(
    connection: &mut PgConnection,
    (actor, action): (&str, &str),
    relation: &str,
    (key, deletion): (Option<&Key>, Option<i64>),
    detail: Value,
) -> Result<(), sqlx::Error> {
    let sql = "insert into tombstream.operator_order (actor, action, relation, key, deletion_id, detail, at) \
               values ($1, $2, $3, $4, $5, $6, clock_timestamp())";
    let query = query(sql).bind(actor).bind(action).bind(relation);
    let query = query.bind(key.map(columns)).bind(deletion).bind(detail);
    query.execute(connection).await?;
    Ok(())
}

/// Whether one row alone may be to blame for `error`: a rule of the application's, or the guard.
fn is_of_a_row(error: &sqlx::Error) -> bool {
    match Fault::of(error) {
        Fault::Claimed | Fault::Value | Fault::Duplicate | Fault::Refused => true,
        Fault::Contention | Fault::Lost | Fault::Unavailable | Fault::Timeout | Fault::Internal => {
            false
        }
    }
}

/// A time as people read it.
fn shown(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}
