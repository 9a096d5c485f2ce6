//! The demo's table, in a database of its own; and the ledger's receipts, for the times.

use super::document::Document;
use anyhow::{Context, Result};
use sqlx::Row;
use std::collections::HashMap;
use tombstream_e2e::Database;
use uuid::Uuid;

const DEMO: &str = include_str!("../../../deploy/compose/documents.sql");

pub(super) struct Table {
    pub(super) database: Database,
}

/// A row as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredRow {
    pub(super) name: String,
    pub(super) uploaded_at: i64,
    pub(super) is_flagged: bool,
}

/// What the receipts say of time.
#[derive(Debug, Default)]
pub(super) struct Times {
    /// From the flag's value to the finalizing transaction, both by Postgres's clock.
    pub(super) flip_to_gone_ms: Vec<f64>,
    /// From the first flag to the last finalizing.
    pub(super) whole_s: f64,
}

impl Table {
    pub(super) async fn make(server_url: &str, name: &str) -> Result<Self> {
        let database = Database::make(server_url, name).await?;
        let made = sqlx::raw_sql(DEMO).execute(database.pool()).await;
        made.context("deploy/compose/documents.sql")?;
        Ok(Self { database })
    }

    pub(super) async fn seed(&self, documents: &[Document]) -> Result<()> {
        for some in documents.chunks(5_000) {
            let ids: Vec<Uuid> = some.iter().map(|document| document.id).collect();
            let names: Vec<String> = some.iter().map(Document::name).collect();
            let times: Vec<i64> = some.iter().map(Document::uploaded_at).collect();
            sqlx::query(
                "insert into documents (id, name, uploaded_at) \
                 select id, name, to_timestamp(at) \
                 from unnest($1::uuid[], $2::text[], $3::bigint[]) as seed (id, name, at)",
            )
            .bind(ids)
            .bind(names)
            .bind(times)
            .execute(self.database.pool())
            .await?;
        }
        Ok(())
    }

    pub(super) async fn count(&self) -> Result<usize> {
        let count: i64 = sqlx::query_scalar("select count(*) from documents")
            .fetch_one(self.database.pool())
            .await?;
        usize::try_from(count).context("a negative count")
    }

    pub(super) async fn list(&self) -> Result<HashMap<Uuid, StoredRow>> {
        let rows = sqlx::query(
            "select id, name, extract(epoch from uploaded_at)::bigint as at, \
             deleted_at is not null as flagged from documents",
        )
        .fetch_all(self.database.pool())
        .await?;
        rows.iter()
            .map(|row| {
                let stored = StoredRow {
                    name: row.try_get("name")?,
                    uploaded_at: row.try_get("at")?,
                    is_flagged: row.try_get("flagged")?,
                };
                Ok((row.try_get("id")?, stored))
            })
            .collect()
    }

    pub(super) async fn times(&self) -> Result<Times> {
        let rows: Vec<f64> = sqlx::query_scalar(
            "select (1000 * extract(epoch from finalized_at - flag::timestamptz))::float8 \
             from tombstream.receipt order by 1",
        )
        .fetch_all(self.database.pool())
        .await?;
        let whole: Option<f64> = sqlx::query_scalar(
            "select extract(epoch from max(finalized_at) - min(flag::timestamptz))::float8 \
             from tombstream.receipt",
        )
        .fetch_one(self.database.pool())
        .await?;
        Ok(Times { flip_to_gone_ms: rows, whole_s: whole.unwrap_or_default() })
    }
}
