//! A ledger in memory, over relations that are in memory too.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tombstream_model::{
    Address, Candidate, Claimed, ClaimedTarget, DeadLetter, DeletionId, Ending, Fence, Found, Key,
    Ledger, LedgerError, Lsn, Origin, Outcome, RelationId, Settled, State, StoreId, Target,
    Verdict,
};

/// A row of a relation, as far as Tombstream cares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// The flag's value; none is a living row.
    pub flag: Option<String>,
    /// Another transaction has it locked.
    pub locked: bool,
    /// A person holds it.
    pub held: bool,
}

impl Row {
    /// A soft-deleted row.
    pub fn flagged() -> Self {
        Self { flag: Some("2026-01-02 03:04:05".to_owned()), ..Self::default() }
    }
}

/// Where the copies of a row are.
type Targets = dyn Fn(RelationId, &Key) -> Vec<(StoreId, Address)> + Send + Sync;

/// Tombstream's memory, in memory. It proves nothing about Postgres.
pub struct MemoryLedger {
    state: Mutex<Memory>,
    targets: Box<Targets>,
    lease: Duration,
    trouble: watch::Sender<Option<Trouble>>,
}

/// How calls fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Away,
    Refusing,
    Hanging,
}

#[derive(Default)]
struct Memory {
    rows: HashMap<(RelationId, Key), Row>,
    deletions: BTreeMap<DeletionId, Deletion>,
    dead_letters: BTreeMap<(String, i32, i64), DeadLetter>,
    token: i64,
    calls: HashMap<&'static str, usize>,
    panics: HashMap<&'static str, usize>,
    receipts: Vec<Settled>,
    candidates: usize,
    delay: Duration,
}

#[derive(Clone, Debug)]
struct Deletion {
    relation: RelationId,
    key: Key,
    flag: String,
    state: State,
    fence: Fence,
    released: bool,
    lsn: Option<Lsn>,
    targets: Vec<(StoreId, Address, Option<Outcome>)>,
}

impl MemoryLedger {
    /// A ledger whose rows have their copies where `targets` says, and whose claims hold for `lease`.
    pub fn new(
        lease: Duration,
        targets: impl Fn(RelationId, &Key) -> Vec<(StoreId, Address)> + Send + Sync + 'static,
    ) -> Self {
        Self {
            state: Mutex::default(),
            targets: Box::new(targets),
            lease,
            trouble: watch::channel(None).0,
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts or replaces a row.
    pub fn put(&self, relation: RelationId, key: Key, row: Row) {
        self.memory().rows.insert((relation, key), row);
    }

    /// The row, if it is there.
    pub fn row(&self, relation: RelationId, key: &Key) -> Option<Row> {
        self.memory().rows.get(&(relation, key.clone())).cloned()
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.memory().rows.len()
    }

    /// Changes a row that is there.
    pub fn change(&self, relation: RelationId, key: &Key, change: impl FnOnce(&mut Row)) {
        if let Some(row) = self.memory().rows.get_mut(&(relation, key.clone())) {
            change(row);
        }
    }

    /// The application unsets the flag of a row, where the guard lets it: not after the claim.
    pub fn restore(&self, relation: RelationId, key: &Key) -> bool {
        let mut memory = self.memory();
        let claimed =
            |it: &Deletion| it.relation == relation && it.key == *key && it.state == State::Claimed;
        if memory.deletions.values().any(claimed) {
            return false;
        }
        let Some(row) = memory.rows.get_mut(&(relation, key.clone())) else { return false };
        row.flag.take().is_some()
    }

    /// Another hand removes a row.
    pub fn remove(&self, relation: RelationId, key: &Key) {
        self.memory().rows.remove(&(relation, key.clone()));
    }

    /// How many deletions are in `state`.
    pub fn count(&self, state: State) -> usize {
        self.memory().deletions.values().filter(|deletion| deletion.state == state).count()
    }

    /// The deletions that are claimed and whose lease is released or over: what a sweep brings.
    pub fn owed(&self) -> Vec<DeletionId> {
        let open = |it: &Deletion| it.state == State::Claimed && (it.released || !it.fence.holds());
        let memory = self.memory();
        memory.deletions.iter().filter(|(_, it)| open(it)).map(|(id, _)| *id).collect()
    }

    /// The last outcome of each target of a deletion.
    pub fn outcomes(&self, id: DeletionId) -> Vec<Option<Outcome>> {
        let memory = self.memory();
        let targets = memory.deletions.get(&id).map(|it| it.targets.as_slice()).unwrap_or_default();
        targets.iter().map(|(_, _, outcome)| outcome.clone()).collect()
    }

    /// What the newest deletion of a key is.
    pub fn deletion(&self, relation: RelationId, key: &Key) -> Option<(DeletionId, State)> {
        let memory = self.memory();
        let of = |it: &Deletion| it.relation == relation && it.key == *key;
        memory.deletions.iter().rev().find(|(_, it)| of(it)).map(|(id, it)| (*id, it.state))
    }

    /// Every address that was ever claimed.
    pub fn claimed_addresses(&self) -> HashSet<Address> {
        let memory = self.memory();
        let targets = memory.deletions.values().flat_map(|it| &it.targets);
        targets.map(|(_, address, _)| address.clone()).collect()
    }

    /// What was finalized, in order: the receipts.
    pub fn receipts(&self) -> Vec<Settled> {
        self.memory().receipts.clone()
    }

    /// Where the dead letters stood.
    pub fn buried(&self) -> Vec<Origin> {
        self.memory().dead_letters.values().map(|letter| letter.origin.clone()).collect()
    }

    /// How often `call` (`claim`, `resume`, `finalize`, `owe`, `bury`) was made.
    pub fn calls(&self, call: &str) -> usize {
        self.memory().calls.get(call).copied().unwrap_or_default()
    }

    /// How many candidates claims were asked to look at.
    pub fn candidates(&self) -> usize {
        self.memory().candidates
    }

    /// The next `times` calls of `call` panic.
    pub fn panic_at(&self, call: &'static str, times: usize) {
        self.memory().panics.insert(call, times);
    }

    /// Every call takes so long.
    pub fn set_delay(&self, delay: Duration) {
        self.memory().delay = delay;
    }

    /// Every call fails: the database is not there.
    pub fn go_away(&self) {
        self.trouble.send_replace(Some(Trouble::Away));
    }

    /// Every call fails: the database refuses it.
    pub fn refuse(&self) {
        self.trouble.send_replace(Some(Trouble::Refusing));
    }

    /// Every call hangs until [`MemoryLedger::come_back`].
    pub fn hang(&self) {
        self.trouble.send_replace(Some(Trouble::Hanging));
    }

    /// Calls succeed again.
    pub fn come_back(&self) {
        self.trouble.send_replace(None);
    }

    async fn enter(&self, call: &'static str) -> Result<MutexGuard<'_, Memory>, LedgerError> {
        let delay = {
            let mut memory = self.memory();
            *memory.calls.entry(call).or_default() += 1;
            if let Some(times) = memory.panics.get_mut(call).filter(|times| **times > 0) {
                *times -= 1;
                drop(memory);
                panic!("{call} panics, as it was told to");
            }
            memory.delay
        };
        if delay > Duration::ZERO {
            tokio::time::sleep(delay).await;
        }
        let mut trouble = self.trouble.subscribe();
        let now = trouble.wait_for(|now| *now != Some(Trouble::Hanging)).await.map(|now| *now);
        match now.expect("the ledger outlives its calls") {
            None | Some(Trouble::Hanging) => Ok(self.memory()),
            Some(Trouble::Away) => Err(LedgerError::Unavailable("the database is away".into())),
            Some(Trouble::Refusing) => Err(LedgerError::Refused("no such table".into())),
        }
    }
}

impl Memory {
    fn fence(&mut self, until: Instant) -> Fence {
        self.token += 1;
        Fence { token: self.token, until }
    }

    fn claimed(&self, id: DeletionId, first_attempt: bool) -> Claimed {
        let deletion = &self.deletions[&id];
        let target = |(store, address, outcome): &(StoreId, Address, Option<Outcome>)| {
            let confirmed = outcome.clone().filter(|outcome| outcome.verdict.is_confirmed());
            let target = Target {
                deletion: id,
                store: *store,
                address: address.clone(),
                fence: deletion.fence,
                lsn: deletion.lsn,
            };
            ClaimedTarget { target, confirmed, was_hidden: false }
        };
        Claimed {
            id,
            relation: deletion.relation,
            key: deletion.key.clone(),
            flag: deletion.flag.clone(),
            fence: deletion.fence,
            first_attempt,
            is_hide: false,
            targets: deletion.targets.iter().map(target).collect(),
        }
    }
}

impl Ledger for MemoryLedger {
    async fn claim(
        &self,
        relation: RelationId,
        batch: &[Candidate],
    ) -> Result<Vec<Claimed>, LedgerError> {
        let until = Instant::now() + self.lease;
        let mut memory = self.enter("claim").await?;
        memory.candidates += batch.len();
        let mut claimed = Vec::new();
        for candidate in batch {
            assert_eq!(candidate.relation, relation, "a batch is of one relation");
            let id = (relation, candidate.key.clone());
            let Some(row) = memory.rows.get(&id) else { continue };
            let Some(flag) = row.flag.clone() else { continue };
            if row.locked || row.held || candidate.found != Found::Flagged {
                continue;
            }
            let open = |it: &Deletion| {
                it.relation == relation && it.key == candidate.key && it.state.is_open()
            };
            if memory.deletions.values().any(open) {
                continue;
            }
            let fence = memory.fence(until);
            let number = memory.deletions.len() as i64 + 1;
            let targets = (self.targets)(relation, &candidate.key);
            let deletion = Deletion {
                relation,
                key: candidate.key.clone(),
                flag,
                state: State::Claimed,
                fence,
                released: false,
                lsn: candidate.position.map(|position| position.lsn),
                targets: targets.into_iter().map(|(store, at)| (store, at, None)).collect(),
            };
            memory.deletions.insert(DeletionId(number), deletion);
            claimed.push(memory.claimed(DeletionId(number), true));
        }
        Ok(claimed)
    }

    async fn resume(&self, batch: &[DeletionId]) -> Result<Vec<Claimed>, LedgerError> {
        let until = Instant::now() + self.lease;
        let mut memory = self.enter("resume").await?;
        let mut claimed = Vec::new();
        for id in batch {
            let Some(deletion) = memory.deletions.get(id) else { continue };
            let free = deletion.released || !deletion.fence.holds();
            if deletion.state != State::Claimed || !free {
                continue;
            }
            let fence = memory.fence(until);
            let deletion = memory.deletions.get_mut(id).expect("found above");
            deletion.fence = fence;
            deletion.released = false;
            claimed.push(memory.claimed(*id, false));
        }
        Ok(claimed)
    }

    async fn finalize(
        &self,
        relation: RelationId,
        batch: &[Settled],
    ) -> Result<Vec<Ending>, LedgerError> {
        let mut memory = self.enter("finalize").await?;
        let mut endings = Vec::new();
        for settled in batch {
            let claimed = &settled.claimed;
            assert_eq!(claimed.relation, relation, "a batch is of one relation");
            assert!(settled.is_confirmed(), "only what is confirmed may be finalized");
            let id = (relation, claimed.key.clone());
            let row = memory.rows.get(&id).cloned();
            let deletion = memory.deletions.get_mut(&claimed.id).expect("claimed here");
            let ending = if deletion.fence.token != claimed.fence.token
                || deletion.state != State::Claimed
            {
                Ending::Fenced
            } else {
                match row {
                    None => Ending::FinalizedRowGone,
                    Some(row) if row.locked || row.held => Ending::Later,
                    Some(row) if row.flag.is_none() => Ending::LateRestore,
                    Some(row) if row.flag.as_ref() != Some(&claimed.flag) => Ending::Superseded,
                    Some(_) => Ending::Finalized,
                }
            };
            match ending {
                Ending::Finalized | Ending::FinalizedRowGone => {
                    deletion.state = State::Finalized;
                    for (target, outcome) in deletion.targets.iter_mut().zip(&settled.outcomes) {
                        target.2 = Some(outcome.clone());
                    }
                    memory.rows.remove(&id);
                    memory.receipts.push(settled.clone());
                }
                Ending::Superseded => deletion.state = State::Superseded,
                Ending::LateRestore => deletion.state = State::LateRestore,
                Ending::Later => deletion.released = true,
                Ending::Fenced | Ending::Parked | Ending::Paused => {}
            }
            endings.push(ending);
        }
        Ok(endings)
    }

    async fn owe(&self, batch: &[Settled]) -> Result<(), LedgerError> {
        let mut memory = self.enter("owe").await?;
        for settled in batch {
            let deletion = memory.deletions.get_mut(&settled.claimed.id).expect("claimed here");
            if deletion.fence.token != settled.claimed.fence.token {
                continue;
            }
            deletion.released = true;
            for (target, outcome) in deletion.targets.iter_mut().zip(&settled.outcomes) {
                target.2 = Some(outcome.clone());
            }
            let any = |verdict| settled.outcomes.iter().any(|it| it.verdict == verdict);
            if any(Verdict::Superseded) {
                deletion.state = State::Superseded;
            } else if any(Verdict::Refused) {
                deletion.state = State::Parked;
            }
        }
        Ok(())
    }

    async fn bury(&self, batch: &[DeadLetter]) -> Result<(), LedgerError> {
        let mut memory = self.enter("bury").await?;
        for letter in batch {
            let Origin { topic, partition, offset } = &letter.origin;
            let at = (topic.to_string(), *partition, *offset);
            memory.dead_letters.entry(at).or_insert_with(|| letter.clone());
        }
        Ok(())
    }
}
