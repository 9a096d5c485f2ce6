//! Connections, and what their errors mean.

use std::str::FromStr;
use std::time::Duration;

use sqlx::Connection as _;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};

use tombstream_model::LedgerError;

/// Opens a pool. Connecting is tried at once, so that a wrong address is said at the start.
///
/// Without `prepared_statements` it goes through a pooler, as [`for_a_pooler`] says; the ledger and the
/// sweep have to be told so as well. Times are in UTC and ISO whatever the server's settings: sqlx asks for both.
pub async fn connect(
    url: &str,
    pool_max: u32,
    prepared_statements: bool,
    application_name: &str,
) -> Result<PgPool, sqlx::Error> {
    let mut options = PgConnectOptions::from_str(url)?.application_name(application_name);
    if !prepared_statements {
        options = for_a_pooler(options);
    }
    let pool = PgPoolOptions::new()
        .max_connections(pool_max)
        .acquire_timeout(Duration::from_secs(10))
        .connect_with(options.clone())
        .await;
    match pool {
        // The pool knocks again and again, and does not say what it was told.
        Err(sqlx::Error::PoolTimedOut) => Err(told(&options).await),
        other => other,
    }
}

/// What pgbouncer in transaction mode takes: no start-up parameter that it does not know. (No statement
/// here reads a float's last digits.) That statements have no names is each statement's own affair: sqlx
/// gives them names without a cache, too.
pub fn for_a_pooler(options: PgConnectOptions) -> PgConnectOptions {
    options.statement_cache_capacity(0).extra_float_digits(None)
}

/// What one more attempt is told. A server that lets it in now was too late all the same.
async fn told(options: &PgConnectOptions) -> sqlx::Error {
    let attempt = PgConnection::connect_with(options);
    match tokio::time::timeout(Duration::from_secs(5), attempt).await {
        Ok(Err(error)) => error,
        Ok(Ok(_)) | Err(_) => sqlx::Error::PoolTimedOut,
    }
}

/// Whether trying again later may help. Everything that is not plainly a refusal may.
pub(super) fn ledger_error(error: sqlx::Error) -> LedgerError {
    let refused = match &error {
        sqlx::Error::Database(database) => database.code().is_some_and(|code| {
            // Classes: 22 data, 23 constraint, 28 authorization, 3D/3F no such database or schema,
            // 42 syntax or privilege, P0 raised by a trigger, 2B/2F/38/39 routines, 44 check option.
            ["22", "23", "28", "2B", "2F", "38", "39", "3D", "3F", "42", "44", "P0", "TS"]
                .iter()
                .any(|class| code.starts_with(class))
        }),
        sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::Encode(_)
        | sqlx::Error::Decode(_)
        | sqlx::Error::TypeNotFound { .. } => true,
        _ => false,
    };
    if refused {
        LedgerError::Refused(Box::new(error))
    } else {
        LedgerError::Unavailable(Box::new(error))
    }
}
