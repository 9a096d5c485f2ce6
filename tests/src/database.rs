//! A database of its own on the real Postgres.

use anyhow::{Context, Result};
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use std::str::FromStr;

/// A throw-away database. [`Database::remove`] drops it; nothing else does.
pub struct Database {
    server: PgPool,
    pool: PgPool,
    name: String,
    url: String,
}

impl Database {
    /// Makes an empty one of that name.
    pub async fn make(server_url: &str, name: &str) -> Result<Self> {
        let server = PgPoolOptions::new()
            .max_connections(2)
            .connect(server_url)
            .await
            .context("can't reach Postgres")?;
        sqlx::query(AssertSqlSafe(format!("create database \"{name}\""))).execute(&server).await?;
        let options = PgConnectOptions::from_str(server_url)?.database(name);
        let pool = PgPoolOptions::new().max_connections(4).connect_with(options).await?;
        let (base, _) = server_url.rsplit_once('/').context("an address without a database")?;
        Ok(Self { server, pool, name: name.to_owned(), url: format!("{base}/{name}") })
    }

    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether a process reads the slot: Debezium does once its snapshot is done.
    pub async fn slot_is_read(&self, slot: &str) -> Result<bool> {
        let active: Option<bool> =
            sqlx::query_scalar("select active from pg_replication_slots where slot_name = $1")
                .bind(slot)
                .fetch_optional(&self.server)
                .await?;
        Ok(active.unwrap_or(false))
    }

    /// Drops the slot; true once it is not there. A slot in use can't be dropped yet.
    pub async fn drop_slot(&self, slot: &str) -> Result<bool> {
        sqlx::query(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots \
             where slot_name = $1 and not active",
        )
        .bind(slot)
        .execute(&self.server)
        .await?;
        let left: i64 =
            sqlx::query_scalar("select count(*) from pg_replication_slots where slot_name = $1")
                .bind(slot)
                .fetch_one(&self.server)
                .await?;
        Ok(left == 0)
    }

    /// Drops it, whoever is connected.
    pub async fn remove(&self) -> Result<()> {
        self.pool.close().await;
        let drop = format!("drop database if exists \"{}\" with (force)", self.name);
        sqlx::query(AssertSqlSafe(drop)).execute(&self.server).await?;
        Ok(())
    }
}
