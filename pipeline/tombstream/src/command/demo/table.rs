//! The demo's table, as its application sees it.

use std::collections::HashMap;

use anyhow::Context as _;
use sqlx::{PgPool, Row as _};
use uuid::Uuid;

use super::document::Document;

/// The same table that the compose file has.
const TABLE: &str = include_str!("../../../../../deploy/compose/documents.sql");

/// A row as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoredRow {
    pub(super) name: String,
    pub(super) uploaded_at: i64,
    pub(super) is_flagged: bool,
}

impl StoredRow {
    /// As it was seeded.
    pub(super) fn of(document: &Document) -> Self {
        Self { name: document.name(), uploaded_at: document.uploaded_at(), is_flagged: false }
    }
}

pub(super) async fn make(pool: &PgPool) -> anyhow::Result<()> {
    sqlx::raw_sql(TABLE).execute(pool).await.context("the table can't be made")?;
    Ok(())
}

pub(super) async fn put(pool: &PgPool, documents: &[Document]) -> anyhow::Result<()> {
    let ids: Vec<Uuid> = documents.iter().map(|document| document.id).collect();
    let names: Vec<String> = documents.iter().map(Document::name).collect();
    let times: Vec<i64> = documents.iter().map(Document::uploaded_at).collect();
    sqlx::query(
        "insert into documents (id, name, uploaded_at) \
         select id, name, to_timestamp(at) \
         from unnest($1::uuid[], $2::text[], $3::bigint[]) as seed (id, name, at)",
    )
    .bind(ids)
    .bind(names)
    .bind(times)
    .execute(pool)
    .await
    .context("the rows can't be seeded")?;
    Ok(())
}

pub(super) async fn count(pool: &PgPool) -> anyhow::Result<usize> {
    let count: i64 = sqlx::query_scalar("select count(*) from documents").fetch_one(pool).await?;
    usize::try_from(count).context("a negative count")
}

pub(super) async fn list(pool: &PgPool) -> anyhow::Result<HashMap<Uuid, StoredRow>> {
    let rows = sqlx::query(
        "select id, name, extract(epoch from uploaded_at)::bigint as at, \
         deleted_at is not null as flagged from documents",
    )
    .fetch_all(pool)
    .await
    .context("the rows can't be listed")?;
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
