//! Rehydrate notices: a deletion was restored after its recoverable copies were hidden. Written by the guard, told
//! here.

use serde::Serialize;
use sqlx::types::{Json, JsonValue};
use sqlx::{PgPool, Row as _};

use tombstream_model::{Message, PublishError, Publisher};

use super::statement::{BEGIN, json, whole};

/// Notices of one turn.
const BATCH: i64 = 100;

/// Why notices could not be told.
#[derive(Debug, thiserror::Error)]
pub enum RehydrateError {
    /// The ledger could not be read or written.
    #[error("the ledger's notices can't be read")]
    Ledger(#[from] sqlx::Error),
    /// The broker did not take them.
    #[error("the notices can't be published")]
    Publish(#[from] PublishError),
}

/// What a notice says, as JSON.
#[derive(Serialize)]
struct Notice {
    id: i64,
    deletion_id: i64,
    relation: String,
    key: Vec<String>,
    restored_at: String,
    /// Where the copies were: what fills these stores fills them again.
    targets: JsonValue,
}

/// Publishes what is ready, oldest first, and notes it. Gives how many. A crash in between tells some twice:
/// `id` tells them apart.
pub async fn publish_rehydrations(
    pool: &PgPool,
    publisher: &impl Publisher,
    topic: &str,
) -> Result<usize, RehydrateError> {
    let mut transaction = whole(pool, BEGIN).await?;
    let rows = sqlx::query(
        "select id, deletion_id, relation, key, \
             to_char(restored_at at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), \
             (select coalesce(jsonb_agg(t - 'outcome'), '[]') from jsonb_array_elements(targets) t) \
         from tombstream.rehydrate \
         where published_at is null and ready_at <= clock_timestamp() \
         order by ready_at, id limit $1 for update skip locked",
    )
    .persistent(false)
    .bind(BATCH)
    .fetch_all(&mut *transaction)
    .await?;
    if rows.is_empty() {
        transaction.rollback().await?;
        return Ok(0);
    }
    let (mut ids, mut messages) = (Vec::new(), Vec::new());
    for row in &rows {
        let notice = Notice {
            id: row.try_get(0)?,
            deletion_id: row.try_get(1)?,
            relation: row.try_get(2)?,
            key: row.try_get(3)?,
            restored_at: row.try_get(4)?,
            targets: row.try_get::<Json<JsonValue>, _>(5)?.0,
        };
        messages.push(Message {
            topic: topic.into(),
            key: Some(json(&notice.key)?.into()),
            value: Some(json(&notice)?.into()),
        });
        ids.push(notice.id);
    }
    publisher.publish(messages).await?;
    sqlx::query(
        "update tombstream.rehydrate set published_at = clock_timestamp() where id = any($1)",
    )
    .persistent(false)
    .bind(&ids)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(ids.len())
}
