//! The second look: each suspect is asked for again, by key, at its store and in the database.
//!
//! Two listings taken at different times disagree about all that moves in between. The store is asked first, and
//! the rows then: a row that goes meanwhile, with its copies, leaves nothing to be said.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tombstream_model::{
    Address, DeletionId, Disposition, Fence, Key, ListedDeletion, ListedRow, Now, Presence,
    RelationId, State, StoreId, Target,
};

use super::entry::{Seen, place};
use super::judge::{Word, Wrong};
use super::port::ErasedRegistry;
use super::side::{Sides, Trace};
use super::suspect::{Note, Suspect};
use super::{ReconcileError, ReconcileStore, persist};

/// Something that was wrong at both looks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// What is wrong.
    pub kind: Wrong,
    /// Whose copy it is, or would be.
    pub relation: Arc<str>,
    /// The relation's place in the configuration.
    #[serde(skip)]
    pub relation_id: RelationId,
    /// Of which row.
    pub key: Key,
    /// In which store.
    pub store: Arc<str>,
    /// Where it is, or should be.
    pub address: Address,
    /// The newest deletion of that key, if there is one.
    pub deletion: Option<DeletionId>,
    /// Where that is in its life.
    pub state: Option<State>,
    /// No template leads there any more: the ledger alone says whose it was.
    pub is_elsewhere: bool,
}

/// What the second look says of a batch.
#[derive(Debug, Default)]
pub(crate) struct Looked {
    pub(crate) findings: Vec<Finding>,
    /// By store: copies of which it said neither that they are there nor that they are not.
    pub(crate) unclear: BTreeMap<StoreId, u64>,
}

/// What the second look asks.
pub(crate) struct Second<'a> {
    pub(crate) sides: &'a Sides,
    pub(crate) stores: &'a [ReconcileStore],
    pub(crate) registry: &'a dyn ErasedRegistry,
    pub(crate) settle: Duration,
}

/// Rows and deletions by key.
#[derive(Default)]
struct Known {
    rows: HashMap<(RelationId, Key), ListedRow>,
    deletions: HashMap<(RelationId, Key), Vec<ListedDeletion>>,
}

/// A suspect, with what is to be asked of its store.
struct Asked {
    suspect: Suspect,
    store: StoreId,
    address: Address,
    /// Whose it could be.
    traces: Vec<Trace>,
    is_elsewhere: bool,
}

impl Second<'_> {
    pub(crate) async fn look(&self, batch: Vec<Suspect>) -> Result<Looked, ReconcileError> {
        let mut looked = Looked::default();
        let asked = self.asked(batch).await?;
        let asked = self.still_so(asked, &mut looked).await?;
        let keys = asked
            .iter()
            .flat_map(|asked| asked.traces.iter().map(|it| (it.relation, it.key.clone())));
        let known = self.now(keys.collect()).await?;
        let judged = asked.into_iter().filter_map(|asked| self.judge(asked, &known));
        looked.findings.extend(judged);
        Ok(looked)
    }

    /// Where each suspect is looked for. A row that is gone, or leads elsewhere now, misses nothing.
    async fn asked(&self, batch: Vec<Suspect>) -> Result<Vec<Asked>, ReconcileError> {
        let missing = batch.iter().filter_map(|suspect| match &suspect.note {
            Note::Row(relation, _, key) => Some((*relation, key.clone())),
            Note::Deletion(..) | Note::Copy(..) => None,
        });
        let known = self.now(missing.collect()).await?;
        let asked = |suspect: Suspect| match &suspect.note {
            Note::Copy(store, listed) => {
                let (store, address) = (*store, listed.address.clone());
                let mut traces = self.sides.trace(store, listed);
                let is_elsewhere = traces.is_empty();
                let known = suspect.known.iter().cloned();
                traces.extend(known.map(|(relation, key)| Trace {
                    place: suspect.place,
                    relation,
                    key,
                }));
                Some(Asked { suspect, store, address, traces, is_elsewhere })
            }
            Note::Row(relation, target, key) => {
                let row = known.rows.get(&(*relation, key.clone()))?;
                let (targets, _) = self.sides.of_row(row);
                let found = targets.into_iter().find(|it| {
                    it.target == *target && place(it.store, &it.address) == suspect.place
                })?;
                let trace = Trace { place: suspect.place, relation: *relation, key: key.clone() };
                Some(Asked {
                    store: found.store,
                    address: found.address,
                    traces: vec![trace],
                    is_elsewhere: false,
                    suspect,
                })
            }
            Note::Deletion(..) => None,
        };
        Ok(batch.into_iter().filter_map(asked).collect())
    }

    /// Asks the stores, and keeps what is as it was.
    async fn still_so(
        &self,
        asked: Vec<Asked>,
        looked: &mut Looked,
    ) -> Result<Vec<Asked>, ReconcileError> {
        let mut kept = Vec::with_capacity(asked.len());
        let mut by_store: BTreeMap<StoreId, Vec<Asked>> = BTreeMap::new();
        for asked in asked {
            by_store.entry(asked.store).or_default().push(asked);
        }
        for (id, mut asked) in by_store {
            let Some(store) = self.stores.iter().find(|store| store.id == id) else { continue };
            while !asked.is_empty() {
                let rest = asked.split_off(asked.len().min(store.sink.batch_max()));
                let targets: Vec<Target> = asked.iter().map(target).collect();
                let found = persist(
                    || store.sink.look(&targets),
                    |error| error.disposition() == Disposition::Retry,
                );
                let found = found.await.map_err(|error| ReconcileError::Store {
                    store: Arc::clone(&store.name),
                    source: error.into(),
                })?;
                for (asked, found) in asked.into_iter().zip(found) {
                    let was = match asked.suspect.note {
                        Note::Row(..) => Presence::Absent,
                        Note::Copy(..) | Note::Deletion(..) => Presence::Present,
                    };
                    if found == Presence::Unknown {
                        *looked.unclear.entry(id).or_default() += 1;
                    } else if found == was {
                        kept.push(asked);
                    }
                }
                asked = rest;
            }
        }
        Ok(kept)
    }

    async fn now(&self, keys: Vec<(RelationId, Key)>) -> Result<Known, ReconcileError> {
        let mut by_relation: BTreeMap<RelationId, Vec<Key>> = BTreeMap::new();
        for (relation, key) in keys {
            by_relation.entry(relation).or_default().push(key);
        }
        let mut known = Known::default();
        for (relation, mut keys) in by_relation {
            keys.sort_unstable();
            keys.dedup();
            let now = persist(
                || self.registry.now(relation, &keys, self.settle),
                |error| error.disposition() == Disposition::Retry,
            );
            let Now { rows, deletions } = now.await?;
            known.rows.extend(rows.into_iter().map(|row| ((relation, row.key.clone()), row)));
            for deletion in deletions {
                let key = (relation, deletion.key.clone());
                known.deletions.entry(key).or_default().push(deletion);
            }
        }
        Ok(known)
    }

    fn judge(&self, asked: Asked, known: &Known) -> Option<Finding> {
        let words: Vec<Word> = asked.traces.iter().map(|trace| self.word(trace, known)).collect();
        let together = words.iter().fold(Word::default(), |word, other| word.join(*other));
        let kind = match asked.suspect.note {
            Note::Row(..) => {
                (together.is_alive() && together.is_expected).then_some(Wrong::Missing)
            }
            Note::Copy(..) | Note::Deletion(..) => together.of_copy(asked.is_elsewhere),
        }?;
        // Several addresses may lead to one copy, and each may have been suspected: one of them speaks.
        let speaks = words.iter().position(|word| match kind {
            Wrong::Missing | Wrong::Orphan => true,
            Wrong::Straggler | Wrong::Zombie => word.of_copy(true) == Some(kind),
        });
        let trace = asked.traces.get(speaks.unwrap_or(0))?;
        if trace.place != asked.suspect.place {
            return None;
        }
        let newest = known.deletions.get(&(trace.relation, trace.key.clone()));
        let newest = newest.and_then(|all| all.iter().max_by_key(|deletion| deletion.id));
        Some(Finding {
            kind,
            relation: Arc::clone(&self.sides.relation(trace.relation).name),
            relation_id: trace.relation,
            key: trace.key.clone(),
            store: Arc::clone(&self.stores.iter().find(|store| store.id == asked.store)?.name),
            address: asked.address,
            deletion: newest.map(|deletion| deletion.id),
            state: newest.map(|deletion| deletion.state),
            is_elsewhere: asked.is_elsewhere,
        })
    }

    /// What is known of the row that a trace leads to: of the row at that very place, and of every deletion of
    /// its key.
    fn word(&self, trace: &Trace, known: &Known) -> Word {
        let mut word = Word::default();
        let key = (trace.relation, trace.key.clone());
        if let Some(row) = known.rows.get(&key) {
            for target in self.sides.of_row(row).0 {
                if place(target.store, &target.address) == trace.place {
                    word.add(target.seen);
                }
            }
        }
        for deletion in known.deletions.get(&key).into_iter().flatten() {
            word.add(Seen::Known(deletion.state));
            if !deletion.is_settled {
                word.add_fresh();
            }
        }
        word
    }
}

/// A target to look at: nothing is destroyed by it, and its fence is over.
fn target(asked: &Asked) -> Target {
    Target {
        deletion: DeletionId(0),
        store: asked.store,
        address: asked.address.clone(),
        fence: Fence { token: 0, until: Instant::now() },
        lsn: None,
    }
}
