//! Which life of the server positions are from (S4).
//!
//! LSNs of two servers, or of two timelines of one server, say nothing about each other. The generation is
//! part of every position; it is read when a process starts, and again and again while it runs.

use sqlx::types::Json;
use sqlx::{Executor, Row as _};

use tombstream_model::{Generation, LedgerError, Lsn};

use super::ledger::PgLedger;
use super::pool::ledger_error;
use super::statement::BEGIN;

/// The server behind the ledger, as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenServer {
    /// Which life of it.
    pub generation: Generation,
    /// How far it had written its log.
    pub written: Lsn,
}

impl PgLedger {
    /// The generation of the server behind this ledger. Bumped, in the ledger, when the server's
    /// system identifier or timeline is not the one that was seen last.
    pub async fn generation(&self) -> Result<SeenServer, LedgerError> {
        let mut transaction = self.statements.begin(BEGIN).await.map_err(ledger_error)?;
        let row = transaction
            .fetch_one(
                "select (pg_control_system()).system_identifier::text, \
                 (pg_control_checkpoint()).timeline_id, pg_current_wal_insert_lsn()::text",
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
        let written: String = row.try_get(2).map_err(ledger_error)?;
        let generation = Generation(u32::try_from(generation).unwrap_or(0));
        Ok(SeenServer { generation, written: written.parse().unwrap_or(Lsn(u64::MAX)) })
    }
}
