//! A session that streams: opened, looked at, and begun at the right place.

use super::super::statement::whole;
use pgwire_replication::{PgWireError, ReplicationClient};
use sqlx::PgPool;
use tombstream_model::{Generation, Lsn, SourceError};
use tracing::info;

use super::config::ReplicationConfig;
use super::slot::{self, Gap, Known, Plan, Server};
use crate::postgres::statement::BEGIN;

/// A session that is about to stream.
pub(super) struct Session {
    pub(super) client: ReplicationClient,
    pub(super) generation: Generation,
    /// Everything before this is durable, or was never to be told.
    pub(super) start: Lsn,
    /// What the slot will not tell.
    pub(super) gap: Option<Gap>,
    /// A snapshot of the moment from which on the slot tells everything, if it was made just now. It
    /// ends with [`Session::begin`].
    pub(super) snapshot: Option<String>,
}

/// What is wrong with the session, and for how long.
pub(super) fn unavailable(error: PgWireError) -> SourceError {
    SourceError::Unavailable(Box::new(error))
}

fn ledger(error: sqlx::Error) -> SourceError {
    SourceError::Unavailable(Box::new(error))
}

impl Session {
    /// Opens a session on the slot, making it if need be. Nothing is streamed yet.
    pub(super) async fn open(
        config: &ReplicationConfig,
        pool: &PgPool,
    ) -> Result<Self, SourceError> {
        let mut expected = known(config, pool).await?.map_or(Lsn(0), |known| known.acknowledged);
        loop {
            let wire =
                config.session(expected).map_err(|error| SourceError::Fatal(error.to_string()))?;
            let mut client = ReplicationClient::connect_gated(wire).await.map_err(unavailable)?;
            let system = client.identify_system().await.map_err(unavailable)?;
            let server = Server { system_identifier: system.system_id, timeline: system.timeline };
            // The server before the ledger: what it confirms was written down before.
            let facts = slot::facts(&mut client, &config.slot).await.map_err(unavailable)?;
            let known = known(config, pool).await?;
            let plan = slot::plan(facts.as_ref(), known.as_ref(), &server);
            let reason = match (&plan, known.as_ref()) {
                (Plan::Refuse(why), _) => {
                    return Err(SourceError::Fatal(format!("slot {}: {why}", config.slot)));
                }
                (Plan::Wait(why), _) => {
                    let said = format!("slot {}: {why}", config.slot);
                    return Err(SourceError::Unavailable(said.into()));
                }
                (Plan::GoOn, Some(known)) if known.acknowledged >= expected => {
                    let (generation, start) = (known.generation, expected);
                    return Ok(Self { client, generation, start, gap: None, snapshot: None });
                }
                // A place of another life would begin this one too late: once more, without it.
                _ if expected != Lsn(0) => {
                    expected = Lsn(0);
                    continue;
                }
                (Plan::GoOn, Some(known)) => {
                    let generation = known.generation;
                    return Ok(Self {
                        client,
                        generation,
                        start: Lsn(0),
                        gap: None,
                        snapshot: None,
                    });
                }
                (Plan::GoOn, None) => slot::GapReason::New,
                (Plan::Adopt(reason) | Plan::Create(reason) | Plan::Recreate(reason), _) => *reason,
            };
            return Self::anew(config, pool, client, &plan, reason, known, &server, facts).await;
        }
    }

    /// Begins a generation, on a slot that was made now or that is not the one that was left.
    #[expect(clippy::too_many_arguments, reason = "what was found out, handed on once")]
    async fn anew(
        config: &ReplicationConfig,
        pool: &PgPool,
        mut client: ReplicationClient,
        plan: &Plan,
        reason: slot::GapReason,
        known: Option<Known>,
        server: &Server,
        facts: Option<slot::SlotFacts>,
    ) -> Result<Self, SourceError> {
        let name = &config.slot;
        if matches!(plan, Plan::Recreate(_)) {
            let drop = format!("DROP_REPLICATION_SLOT {name}");
            client.simple_query(&drop).await.map_err(unavailable)?;
        }
        let (to, snapshot) = match plan {
            Plan::Create(_) | Plan::Recreate(_) => {
                info!(slot = name, "making the slot; it waits for transactions that are open now");
                let create =
                    format!("CREATE_REPLICATION_SLOT {name} LOGICAL pgoutput EXPORT_SNAPSHOT");
                let rows = client.simple_query(&create).await.map_err(unavailable)?;
                let text = |at: usize| {
                    let value = rows.first()?.get(at)?.as_ref()?;
                    Some(String::from_utf8_lossy(value).into_owned())
                };
                let to = text(1).and_then(|lsn| lsn.parse().ok()).unwrap_or_default();
                (to, text(2))
            }
            Plan::GoOn | Plan::Adopt(_) | Plan::Wait(_) | Plan::Refuse(_) => {
                (facts.and_then(|facts| facts.confirmed).unwrap_or_default(), None)
            }
        };
        let snapshot = snapshot.filter(|_| config.snapshot);
        let is_complete = snapshot.is_none();
        let mut transaction = whole(pool, BEGIN).await.map_err(ledger)?;
        let generation = slot::begin_generation(&mut transaction, name, server, to, is_complete)
            .await
            .map_err(ledger)?;
        transaction.commit().await.map_err(ledger)?;
        let from = known.map(|known| known.acknowledged);
        let gap = Some(Gap { slot: name.clone(), reason, from, to });
        Ok(Self { client, generation, start: to, gap, snapshot })
    }

    /// Begins to stream.
    pub(super) async fn begin(&mut self) -> Result<(), SourceError> {
        self.snapshot = None;
        self.client.start().await.map_err(unavailable)?;
        self.client.wait_started().await.map_err(unavailable)
    }
}

async fn known(config: &ReplicationConfig, pool: &PgPool) -> Result<Option<Known>, SourceError> {
    let mut transaction = whole(pool, BEGIN).await.map_err(ledger)?;
    let known = slot::known(&mut transaction, &config.slot).await.map_err(ledger)?;
    transaction.rollback().await.map_err(ledger)?;
    Ok(known)
}
