//! Beside the stream: a heartbeat through the log, and what the server says of the slot.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::super::statement::whole;
use metrics::gauge;
use sqlx::{PgPool, Row as _};
use tokio::task::JoinHandle;
use tracing::{error, warn};

use super::config::ReplicationConfig;
use super::publication::unpublished;
use super::source::Scope;
use crate::postgres::statement::BEGIN;

/// The prefix of our own messages in the log.
pub(super) const HEARTBEAT: &str = "tombstream";

/// Heartbeats that are on their way; one that never comes back is forgotten with the 100th after it.
const ON_THEIR_WAY: usize = 100;

/// Heartbeats that were sent, and when.
#[derive(Clone, Debug, Default)]
pub(super) struct Beats(Arc<Mutex<Sent>>);

#[derive(Debug, Default)]
struct Sent {
    number: u64,
    on_their_way: VecDeque<(u64, Instant)>,
}

impl Beats {
    fn sent(&self) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.number += 1;
        let sent = (state.number, Instant::now());
        if state.on_their_way.len() >= ON_THEIR_WAY {
            state.on_their_way.pop_front();
        }
        state.on_their_way.push_back(sent);
        sent.0
    }

    /// How long a heartbeat was on its way, if it is one of these.
    fn came(&self, number: u64) -> Option<Duration> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = state.on_their_way.iter().position(|(sent, _)| *sent == number)?;
        let (_, at) = state.on_their_way.remove(place)?;
        Some(at.elapsed())
    }
}

/// The task beside a session. It ends when this is dropped.
pub(super) struct Watch {
    task: Option<JoinHandle<()>>,
    beats: Beats,
    token: u64,
}

impl Watch {
    pub(super) fn start(config: &ReplicationConfig, pool: &PgPool, scope: &Scope) -> Self {
        let beats = Beats::default();
        // Others may beat in the same log.
        let token = rand::random();
        let task = (config.heartbeat > Duration::ZERO).then(|| {
            let (config, pool, scope) = (config.clone(), pool.clone(), scope.clone());
            let beats = beats.clone();
            tokio::spawn(async move {
                let mut ticks = tokio::time::interval(config.heartbeat);
                ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                loop {
                    ticks.tick().await;
                    if let Err(error) = look(&config, &pool, &scope, token, &beats).await {
                        warn!(%error, slot = config.slot, "the slot can't be looked at");
                    }
                }
            })
        });
        Self { task, beats, token }
    }

    /// How long the heartbeat with this content was on its way, if it is ours.
    pub(super) fn heard(&self, content: &[u8]) -> Option<Duration> {
        let (token, number) = std::str::from_utf8(content).ok()?.split_once(':')?;
        (token.parse() == Ok(self.token)).then_some(())?;
        self.beats.came(number.parse().ok()?)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// One heartbeat, and one look.
async fn look(
    config: &ReplicationConfig,
    pool: &PgPool,
    scope: &Scope,
    token: u64,
    beats: &Beats,
) -> Result<(), sqlx::Error> {
    let mut transaction = whole(pool, BEGIN).await?;
    let content = format!("{token}:{}", beats.sent());
    // As text: a type that sqlx has to look up would take the unnamed statement's place.
    sqlx::query("select pg_catalog.pg_logical_emit_message(true, $1, $2)::text")
        .persistent(false)
        .bind(HEARTBEAT)
        .bind(content)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;

    let mut transaction = whole(pool, BEGIN).await?;
    let row = sqlx::query(
        "select wal_status, \
             pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), restart_lsn)::float8, \
             safe_wal_size::float8 \
         from pg_catalog.pg_replication_slots where slot_name = $1",
    )
    .persistent(false)
    .bind(&config.slot)
    .fetch_optional(&mut *transaction)
    .await?;
    let missing = match scope {
        Scope::Relations(relations) => {
            unpublished(&mut transaction, &config.publication, relations).await?
        }
        Scope::Published => Vec::new(),
    };
    transaction.rollback().await?;
    if let Some(row) = row {
        let status: Option<String> = row.try_get(0)?;
        let retained: Option<f64> = row.try_get(1)?;
        let safe: Option<f64> = row.try_get(2)?;
        let slot = config.slot.clone();
        gauge!("tombstream_postgres_wal_retained_bytes", "slot" => slot.clone())
            .set(retained.unwrap_or(0.0));
        if let Some(safe) = safe {
            gauge!("tombstream_postgres_wal_safe_bytes", "slot" => slot).set(safe);
        }
        match status.as_deref() {
            Some("unreserved") => error!(
                slot = config.slot,
                "the server is about to remove log that the slot needs \
                 (max_slot_wal_keep_size): the pipeline is too far behind"
            ),
            Some("lost") => error!(slot = config.slot, "the slot is lost: it is made anew soon"),
            _ => {}
        }
    }
    gauge!("tombstream_postgres_unpublished", "slot" => config.slot.clone())
        .set(missing.len() as f64);
    for relation in missing {
        error!(
            relation,
            publication = config.publication,
            "the publication does not hold this relation's table: only the sweep finds its flags; \
             run `tombstream check --fix`"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_is_measured_once_and_only_ours() {
        let watch = Watch { task: None, beats: Beats::default(), token: 7 };
        let number = watch.beats.sent();
        assert!(watch.heard(format!("8:{number}").as_bytes()).is_none());
        assert!(watch.heard(b"garbage").is_none());
        assert!(watch.heard(format!("7:{number}").as_bytes()).is_some());
        assert!(watch.heard(format!("7:{number}").as_bytes()).is_none());
    }

    #[test]
    fn heartbeats_that_never_come_back_take_no_room() {
        let beats = Beats::default();
        let first = beats.sent();
        for _ in 0..ON_THEIR_WAY {
            beats.sent();
        }
        assert!(beats.came(first).is_none());
        assert!(beats.came(first + 1).is_some());
    }
}
