//! Which version the ledger has, beside the one that this binary knows.

use super::statement::whole;
use sqlx::{PgConnection, PgPool};

use super::migrate::known_migrations;

/// What to do about a ledger that this login may not read.
pub(super) const UNREADABLE: &str = "this login may not read the ledger: run `tombstream migrate \
    --roles` as the tables' owner, then `grant tombstream_pipeline to` the pipeline's login, or \
    `grant tombstream_api to` the api's";

/// Why this binary must leave the ledger alone.
#[derive(Debug, thiserror::Error)]
pub enum LedgerVersion {
    /// The ledger knows a migration that this binary does not.
    #[error(
        "the ledger is newer than this binary (it has migration {0}): run the newer tombstream"
    )]
    Newer(i64),
    /// It lacks a migration, or is not there.
    #[error("the ledger is not migrated: run `tombstream migrate`")]
    Older,
    /// The login has no right to read it.
    #[error("{UNREADABLE}")]
    Unreadable,
    /// The database did not say.
    #[error("the ledger can't be read")]
    Failed(#[from] sqlx::Error),
}

/// Whether the ledger has this binary's version. A newer one may mean things by its rows that this
/// binary does not know, and an older one lacks what its statements name.
pub async fn check_version(pool: &PgPool) -> Result<(), LedgerVersion> {
    let mut transaction = whole(pool, "begin").await?;
    match is_readable(&mut transaction).await? {
        None => return Err(LedgerVersion::Older),
        Some(false) => return Err(LedgerVersion::Unreadable),
        Some(true) => {}
    }
    let applied: Option<i64> =
        sqlx::query_scalar("select max(version) from tombstream.migration where success")
            .persistent(false)
            .fetch_one(&mut *transaction)
            .await?;
    transaction.rollback().await?;
    let known = known_migrations().last().unwrap_or(0);
    match applied.unwrap_or(0) {
        applied if applied > known => Err(LedgerVersion::Newer(applied)),
        applied if applied < known => Err(LedgerVersion::Older),
        _ => Ok(()),
    }
}

/// Whether the ledger's history may be read; none where there is no ledger. By the catalog: naming a
/// schema without the right to use it is an error.
pub(super) async fn is_readable(
    connection: &mut PgConnection,
) -> Result<Option<bool>, sqlx::Error> {
    sqlx::query_scalar(
        "select has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select') \
         from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
         where n.nspname = 'tombstream' and c.relname = 'migration'",
    )
    .persistent(false)
    .fetch_optional(connection)
    .await
}
