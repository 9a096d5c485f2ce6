//! Connections, and the ledger's schema.

use std::str::FromStr;
use std::time::Duration;

use sqlx::Connection as _;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};

use tombstream_model::LedgerError;

/// The ledger's schema, one history, embedded in the binary.
static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");

/// Why the ledger could not be brought to this version.
#[derive(Debug, thiserror::Error)]
pub enum MigrateFailure {
    /// The ledger knows a migration that this binary does not.
    #[error(
        "the ledger is newer than this binary (it has migration {0}): run the newer tombstream"
    )]
    Newer(i64),
    /// A migration failed, or one that was applied has been edited since.
    #[error("the ledger's schema could not be migrated")]
    Failed(#[source] MigrateError),
}

/// Opens a pool. Connecting is tried at once, so that a wrong address is said at the start.
///
/// Without `prepared_statements` every statement is parsed anew, as pgbouncer needs it in
/// transaction mode. Times are in UTC and ISO whatever the server's settings: sqlx asks for both.
pub async fn connect(
    url: &str,
    pool_max: u32,
    prepared_statements: bool,
    application_name: &str,
) -> Result<PgPool, sqlx::Error> {
    let mut options = PgConnectOptions::from_str(url)?.application_name(application_name);
    if !prepared_statements {
        options = options.statement_cache_capacity(0);
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

/// What one more attempt is told. A server that lets it in now was too late all the same.
async fn told(options: &PgConnectOptions) -> sqlx::Error {
    let attempt = PgConnection::connect_with(options);
    match tokio::time::timeout(Duration::from_secs(5), attempt).await {
        Ok(Err(error)) => error,
        Ok(Ok(_)) | Err(_) => sqlx::Error::PoolTimedOut,
    }
}

/// Brings the schema `tombstream` to this binary's version. Several processes may do it at once.
pub async fn migrate(pool: &PgPool) -> Result<(), MigrateFailure> {
    migrator().run(pool).await.map_err(|error| match error {
        MigrateError::VersionMissing(version) => MigrateFailure::Newer(version),
        other => MigrateFailure::Failed(other),
    })
}

fn migrator() -> Migrator {
    let mut migrator = Migrator { migrations: MIGRATIONS.migrations.clone(), ..Migrator::DEFAULT };
    migrator.create_schema("tombstream");
    migrator.dangerous_set_table_name("tombstream.migration");
    migrator
}

/// The migrations that this binary has, oldest first.
pub(super) fn known_migrations() -> impl Iterator<Item = i64> {
    MIGRATIONS.iter().map(|migration| migration.version)
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
