//! What there is: rows, copies, the ledger, workers.

use super::{KEYS, STORES, Scope, WORKERS};

/// A row of the relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Row {
    /// Not flagged.
    Alive,
    /// Flagged, with this value.
    Flagged(u8),
    /// Not there.
    Gone,
}

/// The lease of a claimed deletion, as the ledger has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lease {
    /// Somebody's.
    Taken,
    /// Over.
    Ended,
    /// Given back: something is owed.
    Released,
}

/// The open deletion of a key. One that waits has no bearing on anything here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Deletion {
    /// None is claimed.
    None,
    /// Past the point of no return.
    Claimed {
        /// The flag's value that the claim read.
        flag: u8,
        /// The lease.
        lease: Lease,
        /// What is noted as confirmed.
        confirmed: [bool; STORES],
    },
}

/// For each store the life of the row whose copy is there; 0 is none.
pub type Copies = [u8; STORES];

/// A key, with everything that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The row.
    pub row: Row,
    /// Which row of this key it is, or was.
    pub life: u8,
    /// The newest value that a flag had.
    pub flag: u8,
    /// A person holds it.
    pub held: bool,
    /// An event of a flag is on its way.
    pub event: bool,
    /// A restore whose snapshot is taken: whether it shows a claim.
    pub restoring: Option<bool>,
    /// Its deletion.
    pub deletion: Deletion,
    /// How many deletions of this key were claimed: the number of the newest.
    pub claims: u8,
    /// Its copies.
    pub copies: Copies,
    /// Receipts of this life.
    pub receipts: u8,
    /// Requests of dead workers: for each store, a bit for each life. They may arrive at any time, also twice.
    pub orphans: [u8; STORES],
}

/// How far a worker is with one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Not begun.
    Todo,
    /// It read which version is there.
    Read(u8),
    /// A delete of that version is under way.
    Sent(u8),
    /// No answer came, or one that proves nothing.
    Unknown,
    /// Gone, or never there.
    Confirmed,
}

/// A deletion that a worker drives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Job {
    /// Whose.
    pub key: u8,
    /// Which deletion of the key.
    pub number: u8,
    /// Its token is the ledger's.
    pub is_current: bool,
    /// Its lease holds, by its own clock.
    pub holds: bool,
    /// The stores.
    pub steps: [Step; STORES],
}

/// What a worker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Destroying.
    Destroying,
    /// Finalize's first statement has its snapshot; whether it shows a hold.
    Snapshot(bool),
    /// … and the row's lock.
    Locked(bool),
}

/// A worker. What is in here dies with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Worker {
    /// Nothing.
    Idle,
    /// A claim's first statement has its snapshot; whether it shows a hold.
    Snapshot(u8, bool),
    /// … and the row's lock.
    Locked(u8, bool),
    /// The claim is written and not committed.
    Decided(u8),
    /// Driving a deletion.
    Driving(Job, Phase),
}

/// All there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct State {
    /// The keys; those beyond the scope never change.
    pub keys: [Key; KEYS],
    /// The workers.
    pub workers: [Worker; WORKERS],
    /// What may still go wrong.
    pub crashes: u8,
    /// Restores that may still come.
    pub restores: u8,
    /// Flags that may still be set.
    pub flags: u8,
    /// Keys that may still be used again.
    pub creations: u8,
    /// Holds that may still be set.
    pub holds: u8,
    /// A held row was claimed or removed: no state shows it afterwards.
    pub hold_was_broken: bool,
}

impl State {
    /// Every row is flagged and has its copies.
    pub fn new(scope: &Scope) -> Self {
        let key = Key {
            row: Row::Flagged(1),
            life: 1,
            flag: 1,
            held: false,
            event: true,
            restoring: None,
            deletion: Deletion::None,
            claims: 0,
            copies: [1; STORES],
            receipts: 0,
            orphans: [0; STORES],
        };
        Self {
            keys: [key; KEYS],
            workers: [Worker::Idle; WORKERS],
            crashes: scope.crashes,
            restores: scope.restores,
            flags: scope.flags,
            creations: scope.creations,
            holds: scope.holds,
            hold_was_broken: false,
        }
    }

    /// Whether a worker's transaction has the row locked.
    pub fn is_locked(&self, key: u8) -> bool {
        self.workers.iter().any(|worker| match worker {
            Worker::Locked(of, _) | Worker::Decided(of) => *of == key,
            Worker::Driving(job, Phase::Locked(_)) => job.key == key,
            Worker::Idle | Worker::Snapshot(..) | Worker::Driving(..) => false,
        })
    }

    /// Without what can have no effect any more.
    pub(super) fn bare(mut self) -> Self {
        for key in &mut self.keys {
            for (copy, orphans) in key.copies.iter().zip(&mut key.orphans) {
                // Nothing is there that a late request could destroy, and nothing will be.
                if *copy == 0 && self.creations == 0 {
                    *orphans = 0;
                }
            }
        }
        for worker in &mut self.workers {
            if let Worker::Driving(job, _) = worker
                && !job.holds
            {
                // Of what is not sent nothing will be.
                for step in &mut job.steps {
                    if matches!(step, Step::Todo | Step::Read(_)) {
                        *step = Step::Unknown;
                    }
                }
            }
        }
        self
    }

    /// The least of the states that differ from this one in names alone.
    pub(super) fn canonical(mut self, keys: usize) -> Self {
        self.workers.sort_unstable();
        if keys < KEYS {
            return self;
        }
        let mut other = self;
        other.keys.swap(0, 1);
        for worker in &mut other.workers {
            match worker {
                Worker::Idle => {}
                Worker::Snapshot(key, _) | Worker::Locked(key, _) | Worker::Decided(key) => {
                    *key = 1 - *key;
                }
                Worker::Driving(job, _) => job.key = 1 - job.key,
            }
        }
        other.workers.sort_unstable();
        self.min(other)
    }
}
