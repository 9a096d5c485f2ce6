//! Flags that come at the same time, flipped by one statement: one commit for all of them.
//!
//! Nobody waits for company: a flag that finds a free turn goes at once, and what comes while every turn is taken
//! goes with the next one. Each caller has its own answer, after the commit. What can't be decided with the others
//! (its row is locked by somebody, the statement failed) is the caller's own to ask again, alone: one row's trouble
//! is nobody else's.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde_json::json;
use sqlx::Row as _;
use tokio::sync::{Semaphore, oneshot};

use crate::db::{Attempts, Db};
use crate::sql::Sql;

/// Statements in flight: one commits while the next one works.
const TURNS: usize = 2;
/// Most flags of a statement, which holds their rows' locks together.
const FLAGS_MAX: usize = 256;

/// The flags that wait.
pub(crate) struct Group {
    waiting: Mutex<Vec<Wanted>>,
    turns: Semaphore,
}

struct Wanted {
    /// As the statement takes it.
    key: String,
    actor: String,
    answer: oneshot::Sender<String>,
}

impl Group {
    pub(crate) fn new() -> Self {
        Self { waiting: Mutex::default(), turns: Semaphore::new(TURNS) }
    }

    /// What became of the key's row, as the statement of one flag says it; none if it has to be asked alone.
    pub(crate) async fn flag(
        &self,
        (db, sql, relation): (&Db, &Sql, &str),
        key: &[String],
        actor: &str,
    ) -> Option<String> {
        let (answer, mut answered) = oneshot::channel();
        let wanted = Wanted { key: json!(key).to_string(), actor: actor.to_owned(), answer };
        self.lock().push(wanted);
        // Its own turn may be full of flags that came before: then it takes another.
        loop {
            tokio::select! {
                biased;
                became = &mut answered => return became.ok(),
                turn = self.turns.acquire() => {
                    let _turn = turn.ok()?;
                    let batch = self.take();
                    if batch.is_empty() {
                        // Another turn has taken it along, and answers it.
                        return answered.await.ok();
                    }
                    flip(db, sql, relation, batch).await;
                }
            }
        }
    }

    fn take(&self) -> Vec<Wanted> {
        let mut waiting = self.lock();
        let count = waiting.len().min(FLAGS_MAX);
        waiting.drain(..count).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Wanted>> {
        // A list is whole at every moment.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers what is decided, and lets go of the rest, whose callers then ask alone.
async fn flip(db: &Db, sql: &Sql, relation: &str, batch: Vec<Wanted>) {
    let mut by_key: BTreeMap<String, Vec<Wanted>> = BTreeMap::new();
    for wanted in batch {
        by_key.entry(wanted.key.clone()).or_default().push(wanted);
    }
    let keys: Vec<&str> = by_key.keys().map(String::as_str).collect();
    let actors: Vec<&str> = by_key.values().map(|of_one| &*of_one[0].actor).collect();
    let query = db.query(&sql.flag_many).bind(keys).bind(relation).bind(actors);
    let Ok(rows) = db.all(&Attempts::repeatable(), query).await else { return };
    for row in rows {
        let (Ok(key), Ok(became)) = (row.try_get::<String, _>("key"), row.try_get("became")) else {
            return;
        };
        let mut became: String = became;
        for wanted in by_key.remove(&key).unwrap_or_default() {
            if became != "contended" {
                // A caller who has gone needs no answer.
                wanted.answer.send(became.clone()).ok();
            }
            // Of several callers one has flipped it.
            if became == "flagged" {
                became = "was_flagged".to_owned();
            }
        }
    }
}
