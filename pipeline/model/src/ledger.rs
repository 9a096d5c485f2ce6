//! The port to Tombstream's own memory, in the relations' database.

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::{Candidate, DeadLetter, DeletionId, Key, Outcome, RelationId, Target};

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The same again, later.
    Retry,
    /// Not this one; it needs a person. The rest goes on.
    Park,
    /// Nothing of this kind will succeed before a person acts.
    Halt,
}

/// The right to act on a claim: worthless once another owner took it over.
///
/// No store sees the token. A sink therefore reads what it compares with, then asks
/// [`Fence::holds`], then sends; the end was counted on a monotonic clock from before the claim
/// was sent, so it is never later than the end that Postgres wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The fencing token. Grows with every claim and takeover.
    pub token: i64,
    /// When it ends.
    pub until: Instant,
}

impl Fence {
    /// Whether a destructive request may still be sent.
    pub fn holds(&self) -> bool {
        Instant::now() < self.until
    }
}

/// A deletion past the point of no return, with what is to be destroyed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// Its number.
    pub id: DeletionId,
    /// Whose row.
    pub relation: RelationId,
    /// Which row.
    pub key: Key,
    /// The flag's value that the claim read, in Postgres's own spelling (UTC, ISO).
    pub flag: String,
    /// The right to act.
    pub fence: Fence,
    /// Whether this is the first attempt: takeovers and owed work do not count as evidence of a
    /// wrong template (S6).
    pub first_attempt: bool,
    /// It is hidden, not claimed: recoverable copies go, and a restore is still free. It is never
    /// finalized.
    pub is_hide: bool,
    /// Every address, in the order of the ledger's entry.
    pub targets: Vec<ClaimedTarget>,
}

/// A target, and what an earlier attempt has confirmed of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedTarget {
    /// Where.
    pub target: Target,
    /// The confirmed outcome of an earlier attempt, if any: it is not destroyed again.
    pub confirmed: Option<Outcome>,
    /// It was destroyed before, when the deletion was hidden: that it is absent says nothing (S6).
    pub was_hidden: bool,
}

/// A claimed deletion with an outcome for each of its targets, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The deletion.
    pub claimed: Arc<Claimed>,
    /// What the stores said.
    pub outcomes: Vec<Outcome>,
}

impl Settled {
    /// Whether the row may go: it is claimed, and every target is confirmed.
    pub fn is_confirmed(&self) -> bool {
        !self.claimed.is_hide && self.has_all_confirmed()
    }

    /// Whether every target is confirmed. Of a hide that means no more than that it is done.
    pub fn has_all_confirmed(&self) -> bool {
        self.outcomes.len() == self.claimed.targets.len()
            && self.outcomes.iter().all(|outcome| outcome.verdict.is_confirmed())
    }
}

/// What became of a deletion that was to be finalized.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// The row is gone, the receipt is written.
    Finalized,
    /// Another hand had removed the row: finalized, with that on the receipt.
    FinalizedRowGone,
    /// The row is locked, or a hold was set: the sweep brings it again.
    Later,
    /// The flag's value is not the claimed one: a newer life of the key.
    Superseded,
    /// The row came back to life after the claim.
    LateRestore,
    /// Another owner holds the deletion.
    Fenced,
    /// The database refused to remove the row; the reason is in the ledger.
    Parked,
    /// Too many copies were absent: the relation is paused, and nothing of the batch was removed.
    Paused,
}

/// An error of the ledger. It speaks for the batch as a whole, and nothing of it was written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The database is not there, or asks to be tried again (a deadlock, a time-out).
    #[error("ledger unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database refuses what the ledger asks: a missing table, column or privilege.
    #[error("ledger refused")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl LedgerError {
    /// What can be done about it.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Unavailable(_) => Disposition::Retry,
            Self::Refused(_) => Disposition::Halt,
        }
    }
}

/// Tombstream's memory: claims, what is owed, receipts, dead letters.
pub trait Ledger: Send + Sync + 'static {
    /// Looks at the rows of `batch`, all of one relation, as they are now, and claims those that are
    /// flagged, due, unheld and not locked by others. The rest is left to the sweep.
    ///
    /// Invariant (S1): nothing is destroyed that this (or [`Ledger::resume`]) did not return.
    fn claim(
        &self,
        relation: RelationId,
        batch: &[Candidate],
    ) -> impl Future<Output = Result<Vec<Claimed>, LedgerError>> + Send;

    /// Takes over claimed deletions whose lease is over or which owe something and are due.
    /// Touches no row of a relation.
    fn resume(
        &self,
        batch: &[DeletionId],
    ) -> impl Future<Output = Result<Vec<Claimed>, LedgerError>> + Send;

    /// Removes the rows of `batch`, all of one relation and all confirmed, and writes the receipts,
    /// in one transaction. Says in the same order what became of each.
    fn finalize(
        &self,
        relation: RelationId,
        batch: &[Settled],
    ) -> impl Future<Output = Result<Vec<Ending>, LedgerError>> + Send;

    /// Writes down what is not confirmed, so that the sweep drives it again, and ends the leases.
    /// A target that a person must see ([`crate::Verdict::Refused`], [`crate::Verdict::Superseded`])
    /// parks its deletion.
    fn owe(&self, batch: &[Settled]) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// Keeps messages that could not be decoded. The same message twice is kept once.
    fn bury(&self, batch: &[DeadLetter]) -> impl Future<Output = Result<(), LedgerError>> + Send;
}
