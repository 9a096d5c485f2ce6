//! The way of a deletion, step by step, as the design says it (sections 2 and 5).
//!
//! A step is what no other hand can interrupt: a statement behind its locks, a request's arrival at a store,
//! a process's death. Claim and finalize are two statements each: lock, then decide. Time is an action:
//! a lease may end whenever it likes. What a guard does can be left out, one guard at a time
//! ([`Guard`]): the checker must then find a history that breaks the contract, else the property that the guard
//! is for could not fail.
//!
//! Left out on purpose: batches (each key is decided alone), the order of events (it only saves work), grace,
//! hides, the breaker and hard deletes, which the reference model has.

mod action;
pub mod property;
mod state;
mod step;

use stateright::{Model, Property};

pub use action::{Action, Fate};
pub use state::{Copies, Deletion, Job, Key, Lease, Phase, Row, State, Step, Worker};

/// How many stores there are, each with one copy of a row.
pub const STORES: usize = 2;
/// How many workers there are.
pub const WORKERS: usize = 2;
/// Most keys there are.
pub const KEYS: usize = 2;

/// What may go wrong, and how often. Lost requests, lost answers and ended leases may happen at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// How many rows there are.
    pub keys: usize,
    /// How often a worker dies.
    pub crashes: u8,
    /// How often an application restores a row.
    pub restores: u8,
    /// How often an application flags a living row, beside the flags that are set at the beginning.
    pub flags: u8,
    /// How often a key is used again after its row is gone.
    pub creations: u8,
    /// How often a person holds a row. They may release it.
    pub holds: u8,
}

/// One guard of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Claim and finalize decide on a snapshot that is younger than their lock (S1).
    FreshSnapshot,
    /// Whoever sets a hold locks the row first (S1).
    HoldLocksRow,
    /// Finalize checks again what the claim checked (S3).
    Recheck,
    /// Outcomes are accepted with the current token only.
    Token,
    /// A request leaves only while its lease holds.
    Lease,
    /// A delete names the version that was read under the claim (S5).
    Condition,
    /// After the claim a restore is refused (S2).
    RefuseRestore,
    /// The refusing trigger writes the ledger's row, so that an old snapshot is no excuse (S2).
    RestoreWrites,
    /// The row goes when every store has confirmed, not one (S3).
    AllStores,
    /// An answer that did not come confirms nothing (S6).
    LostIsUnknown,
    /// What finalize closes it closes once: a closed deletion is not finalized again.
    CloseOnce,
    /// Ended leases, and what is owed, are taken over (L1).
    TakeOver,
    /// Flags are found without their events (L1).
    Sweep,
}

impl Guard {
    /// Every guard.
    pub const ALL: [Self; 13] = [
        Self::FreshSnapshot,
        Self::HoldLocksRow,
        Self::Recheck,
        Self::Token,
        Self::Lease,
        Self::Condition,
        Self::RefuseRestore,
        Self::RestoreWrites,
        Self::AllStores,
        Self::LostIsUnknown,
        Self::CloseOnce,
        Self::TakeOver,
        Self::Sweep,
    ];
}

/// The protocol in a scope, with all of its guards or without one.
#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    /// What may happen.
    pub scope: Scope,
    /// The guard that is taken out.
    pub without: Option<Guard>,
}

impl Protocol {
    /// Whether this guard is in.
    pub fn keeps(&self, guard: Guard) -> bool {
        self.without != Some(guard)
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(&self.scope)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        action::possible(self, state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = *state;
        step::take(self, &mut next, action);
        // Workers are alike, and so are keys: of states that differ in their names alone one is looked at.
        let next = if self.keeps(Guard::Lease) { next.bare() } else { next };
        let next = next.canonical(self.scope.keys);
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        property::all()
    }
}
