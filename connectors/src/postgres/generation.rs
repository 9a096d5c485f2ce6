//! Which life of the server positions are from (S4).
//!
//! LSNs of two servers, or of two timelines of one server, say nothing about each other. The
//! generation is read at the start of a process and is part of every position; what an earlier
//! process had seen is forgotten by then, since dedupe lives in memory.

use sqlx::types::Json;
use sqlx::{Executor, Row as _};

use tombstream_model::{Generation, LedgerError};

use super::ledger::PgLedger;
use super::pool::ledger_error;
use super::statement::BEGIN;

impl PgLedger {
    /// The generation of the server behind this ledger. Bumped, in the ledger, when the server's
    /// system identifier or timeline is not the one that was seen last.
    pub async fn generation(&self) -> Result<Generation, LedgerError> {
        let mut transaction = self.statements.begin(BEGIN).await.map_err(ledger_error)?;
        let row = transaction
            .fetch_one(
                "select (pg_control_system()).system_identifier::text, \
                 (pg_control_checkpoint()).timeline_id",
            )
            .await
            .map_err(ledger_error)?;
        let identity = serde_json::json!({
            "system_identifier": row.try_get::<String, _>(0).map_err(ledger_error)?,
            "timeline": row.try_get::<i32, _>(1).map_err(ledger_error)?,
        });
        let generation: i32 = sqlx::query_scalar(
            "insert into tombstream.generation as g (source, identity) values ('postgres', $1) \
             on conflict (source) do update set \
                 generation = g.generation + (g.identity <> excluded.identity)::int, \
                 since = case when g.identity = excluded.identity then g.since else now() end, \
                 identity = excluded.identity \
             returning generation",
        )
        .persistent(false)
        .bind(Json(identity))
        .fetch_one(&mut *transaction)
        .await
        .map_err(ledger_error)?;
        transaction.commit().await.map_err(ledger_error)?;
        Ok(Generation(u32::try_from(generation).unwrap_or(0)))
    }
}
