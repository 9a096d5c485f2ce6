//! What a running pipeline says of itself.
//!
//! The stages write here; the binary's health routes read. Nothing is decided by it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// How a pipeline is.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// The age of the oldest epoch that is not durable (L4), with its ticket: the epoch's number.
    pub oldest_epoch: Option<(u64, Duration)>,
    /// Events read and not yet durable.
    pub in_flight: usize,
    /// Stores that are not well, with what is wrong.
    pub stores: BTreeMap<Arc<str>, StoreHealth>,
    /// Topics that are paused until the process is started again, with the reason.
    pub topics_paused: BTreeMap<Arc<str>, String>,
    /// Relations that were truncated, with how often: their copies need a person.
    pub truncated: BTreeMap<Arc<str>, u64>,
    /// Sources that are not well, by their place.
    pub sources: BTreeMap<usize, SourceHealth>,
    /// Ledger calls that do not succeed, by stage.
    pub ledger: BTreeMap<&'static str, LedgerHealth>,
    /// A part of the pipeline ended that must not: the process should end too.
    pub broken: Option<String>,
}

/// What is wrong with a store.
#[derive(Clone, Debug)]
pub struct StoreHealth {
    /// Since when nothing but failures came back.
    pub failing_for: Duration,
    /// Whether it is marked down, so that everything for it is owed at once.
    pub down: bool,
    /// Whether it needs a person: credentials, a missing bucket or index.
    pub halted: bool,
    /// What it said last.
    pub said: String,
}

/// What is wrong with a source.
#[derive(Clone, Debug)]
pub struct SourceHealth {
    /// Since when.
    pub failing_for: Duration,
    /// Whether it needs a person and is read no more. Else it is tried again.
    pub halted: bool,
    /// What it said.
    pub said: String,
}

/// What is wrong with the ledger.
#[derive(Clone, Debug)]
pub struct LedgerHealth {
    /// Since when.
    pub failing_for: Duration,
    /// Whether it needs a person: a missing table, column or privilege. It is tried again, slowly.
    pub refused: bool,
    /// What it said.
    pub said: String,
}

impl Health {
    /// Whether everything works: what a readiness route answers.
    pub fn is_well(&self) -> bool {
        self.stores.is_empty()
            && self.topics_paused.is_empty()
            && self.sources.is_empty()
            && self.ledger.is_empty()
            && self.broken.is_none()
    }
}

/// A trouble that began at some time.
#[derive(Clone, Debug)]
struct Trouble {
    since: Instant,
    halted: bool,
    said: String,
}

#[derive(Debug)]
struct StoreTrouble {
    since: Instant,
    down: bool,
    halted: bool,
    said: String,
}

#[derive(Debug, Default)]
struct Notes {
    stores: BTreeMap<Arc<str>, StoreTrouble>,
    topics_paused: BTreeMap<Arc<str>, String>,
    truncated: BTreeMap<Arc<str>, u64>,
    sources: BTreeMap<usize, Trouble>,
    ledger: BTreeMap<&'static str, Trouble>,
}

/// The board on which the parts of a pipeline write how they are.
#[derive(Debug, Default)]
pub(crate) struct Board {
    notes: Mutex<Notes>,
    broken: watch::Sender<Option<String>>,
}

impl Board {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn store_failed(
        &self,
        store: &Arc<str>,
        since: Instant,
        down: bool,
        halted: bool,
        said: String,
    ) {
        let trouble = StoreTrouble { since, down, halted, said };
        self.notes().stores.insert(Arc::clone(store), trouble);
    }

    pub(crate) fn store_works(&self, store: &Arc<str>) {
        self.notes().stores.remove(store);
    }

    pub(crate) fn topic_paused(&self, topic: &Arc<str>, reason: String) {
        self.notes().topics_paused.insert(Arc::clone(topic), reason);
    }

    pub(crate) fn truncated(&self, relation: &Arc<str>) {
        *self.notes().truncated.entry(Arc::clone(relation)).or_default() += 1;
    }

    pub(crate) fn source_failed(&self, source: usize, halted: bool, said: String) {
        let mut notes = self.notes();
        let since = notes.sources.get(&source).map_or_else(Instant::now, |trouble| trouble.since);
        notes.sources.insert(source, Trouble { since, halted, said });
    }

    pub(crate) fn source_works(&self, source: usize) {
        self.notes().sources.remove(&source);
    }

    pub(crate) fn ledger_failed(&self, stage: &'static str, halted: bool, said: String) {
        let mut notes = self.notes();
        let since = notes.ledger.get(stage).map_or_else(Instant::now, |trouble| trouble.since);
        notes.ledger.insert(stage, Trouble { since, halted, said });
    }

    pub(crate) fn ledger_works(&self, stage: &'static str) {
        self.notes().ledger.remove(stage);
    }

    pub(crate) fn broken(&self, said: &str) {
        self.broken.send_modify(|broken| {
            broken.get_or_insert_with(|| said.to_owned());
        });
    }

    /// Waits until something broke.
    pub(crate) async fn until_broken(&self) -> String {
        let mut broken = self.broken.subscribe();
        match broken.wait_for(Option::is_some).await {
            Ok(said) => said.clone().unwrap_or_default(),
            Err(_) => "nobody is left to tell".to_owned(),
        }
    }

    /// What is on the board; the epochs and what is in flight are added by who knows them.
    pub(crate) fn health(&self) -> Health {
        let notes = self.notes();
        let store = |trouble: &StoreTrouble| StoreHealth {
            failing_for: trouble.since.elapsed(),
            down: trouble.down,
            halted: trouble.halted,
            said: trouble.said.clone(),
        };
        let source = |trouble: &Trouble| SourceHealth {
            failing_for: trouble.since.elapsed(),
            halted: trouble.halted,
            said: trouble.said.clone(),
        };
        let ledger = |trouble: &Trouble| LedgerHealth {
            failing_for: trouble.since.elapsed(),
            refused: trouble.halted,
            said: trouble.said.clone(),
        };
        Health {
            oldest_epoch: None,
            in_flight: 0,
            stores: notes.stores.iter().map(|(name, it)| (Arc::clone(name), store(it))).collect(),
            topics_paused: notes.topics_paused.clone(),
            truncated: notes.truncated.clone(),
            sources: notes.sources.iter().map(|(place, it)| (*place, source(it))).collect(),
            ledger: notes.ledger.iter().map(|(stage, it)| (*stage, ledger(it))).collect(),
            broken: self.broken.borrow().clone(),
        }
    }
}
