//! Rehydrations: rows that were restored after copies were hidden, for whoever fills the stores again.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, PgPool, Row as _};
use tombstream_model::Key;

use super::{OrderError, begin, check_text, end, note, query, shown};

/// A restored row whose hidden copies are to be made again.
#[derive(Clone, Debug, PartialEq, Serialize, FromRow)]
pub struct Rehydration {
    /// Its number.
    pub id: i64,
    /// The deletion that was cancelled.
    pub deletion_id: i64,
    /// The relation's name.
    pub relation: String,
    /// The text of each key column.
    pub key: Vec<String>,
    /// What was hidden, with the last answers.
    pub targets: Value,
    /// When the row was restored.
    pub restored_at: DateTime<Utc>,
    /// From when on nothing destroys any more.
    pub ready_at: DateTime<Utc>,
    /// When it was published to the topic, if one is configured.
    pub published_at: Option<DateTime<Utc>>,
    /// When somebody said that the copies are there again.
    pub done_at: Option<DateTime<Utc>>,
    /// Who did.
    pub done_by: Option<String>,
}

/// Those with a number above `after`, oldest first, at most `limit`. `open`: only those that are ready and not
/// done.
pub async fn list(
    pool: &PgPool,
    relation: Option<&str>,
    open: bool,
    after: i64,
    limit: i64,
) -> Result<Vec<Rehydration>, OrderError> {
    let mut transaction = begin(pool).await?;
    let is_open = if open { "done_at is null and ready_at <= clock_timestamp()" } else { "true" };
    let sql = format!(
        "select id, deletion_id, relation, key, targets, restored_at, ready_at, published_at, done_at, done_by \
         from tombstream.rehydrate where {is_open} and id > $1 and ($2::text is null or relation = $2) \
         order by id limit $3"
    );
    let rows = query(AssertSqlSafe(sql)).bind(after).bind(relation).bind(limit);
    let rows = rows.fetch_all(&mut *transaction).await?;
    transaction.rollback().await?;
    Ok(rows.iter().map(Rehydration::from_row).collect::<Result<_, _>>()?)
}

/// Notes that the copies are there again; once more changes nothing. Refused while a hide may still destroy:
/// what is filled then may go again.
pub async fn done(
    pool: &PgPool,
    relation: Option<&str>,
    id: i64,
    actor: &str,
) -> Result<Rehydration, OrderError> {
    check_text("the actor", actor)?;
    let mut transaction = begin(pool).await?;
    let done = note_done(&mut transaction, relation, id, actor).await;
    end(transaction, done).await
}

async fn note_done(
    connection: &mut PgConnection,
    relation: Option<&str>,
    id: i64,
    actor: &str,
) -> Result<Rehydration, OrderError> {
    let sql = "select id, deletion_id, relation, key, targets, restored_at, ready_at, published_at, done_at, done_by, \
                   ready_at <= clock_timestamp() as is_ready \
               from tombstream.rehydrate where id = $1 and ($2::text is null or relation = $2) for update";
    let row: Option<PgRow> =
        query(sql).bind(id).bind(relation).fetch_optional(&mut *connection).await?;
    let Some(row) = row else {
        return Err(OrderError::Missing(format!("there is no rehydration {id}")));
    };
    let mut known = Rehydration::from_row(&row)?;
    if known.done_at.is_some() {
        return Ok(known);
    }
    if !row.try_get::<bool, _>("is_ready")? {
        return Err(OrderError::Refused(format!(
            "a hide may still destroy copies until {}: fill the stores after that",
            shown(known.ready_at)
        )));
    }
    let sql = "update tombstream.rehydrate set done_at = clock_timestamp(), done_by = $2 where id = $1 \
               returning done_at";
    let row = query(sql).bind(id).bind(actor).fetch_one(&mut *connection).await?;
    known.done_at = row.try_get(0)?;
    known.done_by = Some(actor.to_owned());
    let key = Key::from_postgres(known.key.clone());
    let of = (Some(&key), Some(known.deletion_id));
    note(connection, (actor, "rehydrated"), &known.relation, of, json!({"rehydration": id}))
        .await?;
    Ok(known)
}
