//! Entries and blocks of the chain, as they are read out of the ledger: by the sealer and by the export alike, so
//! that both hash the same bytes.

use sqlx::postgres::PgRow;
use sqlx::types::{Json, JsonValue};
use sqlx::{PgConnection, Row as _};

use tombstream_model::{Block, Closed, DeletionId, Entry, Hash, NotCanonical};

/// Why entries could not be read.
#[derive(Debug, thiserror::Error)]
pub enum EntriesError {
    /// The ledger could not be read.
    #[error("the ledger's receipts can't be read")]
    Ledger(#[from] sqlx::Error),
    /// A receipt holds what can't be spelled in one way.
    #[error("a receipt can't be hashed")]
    Entry(#[from] NotCanonical),
}

impl From<EntriesError> for super::seal::SealError {
    fn from(error: EntriesError) -> Self {
        match error {
            EntriesError::Ledger(error) => Self::Ledger(error),
            EntriesError::Entry(error) => Self::Entry(error),
        }
    }
}

/// The columns of a receipt `r`, for [`receipt`].
macro_rules! receipts {
    ($rest:literal) => {
        concat!(
            "select r.entry, r.deletion_id, r.relation, r.key, r.hashed, r.flag, r.flip_lsn::text, \
             r.hidden_at, r.claimed_at, r.finalized_at, r.transaction_id::text, r.row_gone, r.targets, r.waived, \
             r.cause \
             from tombstream.receipt r ",
            $rest
        )
    };
}

/// The columns of what closes a receipt, for [`closed`].
macro_rules! closings {
    ($rest:literal) => {
        concat!(
            "select c.entry, c.deletion_id, c.removed_lsn::text, c.seen_at from tombstream.receipt_closed c ",
            $rest
        )
    };
}

/// Entries with numbers above `after`, up to `through`, in their order.
pub(super) async fn entries(
    connection: &mut PgConnection,
    after: i64,
    through: i64,
    limit: Option<i64>,
) -> Result<Vec<Entry>, EntriesError> {
    let ask = |sql: &'static str| {
        sqlx::query(sql).persistent(false).bind(after).bind(through).bind(limit)
    };
    let between = receipts!("where r.entry > $1 and r.entry <= $2 order by r.entry limit $3");
    let rows = ask(between).fetch_all(&mut *connection).await?;
    let mut entries = rows.iter().map(receipt).collect::<Result<Vec<_>, _>>()?;
    drop(rows);
    let between = closings!("where c.entry > $1 and c.entry <= $2 order by c.entry limit $3");
    let rows = ask(between).fetch_all(connection).await?;
    if !rows.is_empty() {
        for row in &rows {
            entries.push(closed(row)?);
        }
        entries.sort_unstable_by_key(|entry| entry.number);
        entries.truncate(limit.and_then(|limit| limit.try_into().ok()).unwrap_or(usize::MAX));
    }
    Ok(entries)
}

/// The one or two entries of a deletion.
pub(super) async fn entries_of(
    connection: &mut PgConnection,
    deletion: i64,
) -> Result<Vec<Entry>, EntriesError> {
    let ask = |sql: &'static str| sqlx::query(sql).persistent(false).bind(deletion);
    let rows = ask(receipts!("where r.deletion_id = $1")).fetch_all(&mut *connection).await?;
    let mut entries = rows.iter().map(receipt).collect::<Result<Vec<_>, _>>()?;
    for row in ask(closings!("where c.deletion_id = $1")).fetch_all(connection).await? {
        entries.push(closed(&row)?);
    }
    Ok(entries)
}

/// The targets are taken as they are, and not read into types and written again: what a later version adds to
/// them is hashed by this one, too.
fn receipt(row: &PgRow) -> Result<Entry, EntriesError> {
    type Time = chrono::DateTime<chrono::Utc>;
    let mut receipt = serde_json::json!({
        "deletion_id": row.try_get::<i64, _>(1)?,
        "relation": row.try_get::<String, _>(2)?,
        "key": row.try_get::<Vec<String>, _>(3)?,
        "flag": row.try_get::<Option<String>, _>(5)?,
        "flip_lsn": row.try_get::<Option<String>, _>(6)?,
        "claimed_at": row.try_get::<Time, _>(8)?,
        "finalized_at": row.try_get::<Time, _>(9)?,
        "transaction_id": row.try_get::<String, _>(10)?,
        "row_gone": row.try_get::<bool, _>(11)?,
        "targets": row.try_get::<Json<JsonValue>, _>(12)?.0,
    });
    if row.try_get(4)? {
        receipt["hashed"] = true.into();
    }
    if let Some(cause) = row.try_get::<Option<String>, _>(14)? {
        receipt["cause"] = cause.into();
    }
    if let Some(hidden) = row.try_get::<Option<Time>, _>(7)? {
        receipt["hidden_at"] = serde_json::to_value(hidden).expect("a time is a text");
    }
    let Json(waived) = row.try_get::<Json<JsonValue>, _>(13)?;
    if waived.as_object().is_some_and(|waived| !waived.is_empty()) {
        receipt["waived"] = waived;
    }
    Ok(Entry::receipt(row.try_get(0)?, &receipt)?)
}

fn closed(row: &PgRow) -> Result<Entry, EntriesError> {
    let closed = Closed {
        deletion_id: DeletionId(row.try_get(1)?),
        removed_lsn: row.try_get(2)?,
        seen_at: row.try_get(3)?,
    };
    Ok(Entry::closed(row.try_get(0)?, &closed)?)
}

/// A row of `tombstream.receipt_block`.
pub(super) fn block(row: &PgRow) -> Result<Block, sqlx::Error> {
    Ok(Block {
        number: row.try_get("number")?,
        previous: hash(row.try_get("previous")?)?,
        entries: row.try_get("entries")?,
        last: row.try_get("last_entry")?,
        root: hash(row.try_get("root")?)?,
        sealed_at: row.try_get("sealed_at")?,
        hash: hash(row.try_get("hash")?)?,
    })
}

pub(super) fn hash(bytes: &[u8]) -> Result<Hash, sqlx::Error> {
    let bytes = bytes.try_into().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
    Ok(Hash(bytes))
}
