//! The ledger's schema, brought to this binary's version.
//!
//! One transaction of simple queries and unnamed statements, behind a lock that ends with it, so that
//! it runs through a pooler too. sqlx's own runner locks the session and leaves named statements there.

use std::time::Instant;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{Executor, PgConnection, PgPool};

use super::statement::{BEGIN, whole};

/// The schema's history, embedded in the binary.
static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");

/// What a fresh database gets first: where the history is kept, in sqlx's form.
const HISTORY: &str = "\
    create schema if not exists tombstream; \
    create table if not exists tombstream.migration ( \
        version bigint primary key, \
        description text not null, \
        installed_on timestamptz not null default now(), \
        success boolean not null, \
        checksum bytea not null, \
        execution_time bigint not null \
    )";

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

impl From<sqlx::Error> for MigrateFailure {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(MigrateError::Execute(error))
    }
}

/// Brings the schema `tombstream` to this binary's version, or leaves it as it was. Several processes
/// may do it at once.
pub async fn migrate(pool: &PgPool) -> Result<(), MigrateFailure> {
    let mut transaction = whole(pool, BEGIN).await?;
    let alone = "select pg_advisory_xact_lock(hashtextextended('tombstream.migration', 0))";
    transaction.execute(alone).await?;
    transaction.execute(HISTORY).await?;
    let applied: Vec<(i64, Vec<u8>)> =
        sqlx::query_as("select version, checksum from tombstream.migration order by version")
            .persistent(false)
            .fetch_all(&mut *transaction)
            .await?;
    for (version, checksum) in &applied {
        match MIGRATIONS.iter().find(|known| known.version == *version) {
            None => return Err(MigrateFailure::Newer(*version)),
            Some(known) if *known.checksum != **checksum => {
                return Err(MigrateFailure::Failed(MigrateError::VersionMismatch(*version)));
            }
            Some(_) => {}
        }
    }
    for migration in MIGRATIONS.iter() {
        if !applied.iter().any(|(version, _)| *version == migration.version) {
            apply(&mut transaction, migration).await?;
        }
    }
    transaction.commit().await?;
    Ok(())
}

async fn apply(
    connection: &mut PgConnection,
    migration: &sqlx::migrate::Migration,
) -> Result<(), MigrateFailure> {
    let begun = Instant::now();
    let failed =
        |error| MigrateFailure::Failed(MigrateError::ExecuteMigration(error, migration.version));
    connection.execute(sqlx::raw_sql(migration.sql.clone())).await.map_err(failed)?;
    sqlx::query(
        "insert into tombstream.migration (version, description, success, checksum, execution_time) \
         values ($1, $2, true, $3, $4)",
    )
    .persistent(false)
    .bind(migration.version)
    .bind(&*migration.description)
    .bind(&*migration.checksum)
    .bind(i64::try_from(begun.elapsed().as_nanos()).unwrap_or(i64::MAX))
    .execute(connection)
    .await?;
    Ok(())
}

/// The migrations that this binary has, oldest first.
pub(super) fn known_migrations() -> impl Iterator<Item = i64> {
    MIGRATIONS.iter().map(|migration| migration.version)
}
