//! The life of a deletion.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A deletion's number in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeletionId(pub i64);

impl fmt::Display for DeletionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a deletion is in its life. The ledger spells them in lower case with underscores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits (grace, a hold); a restore is free.
    Pending,
    /// Recoverable stores are being emptied; a restore still succeeds and rehydrates.
    Hidden,
    /// Past the point of no return.
    Claimed,
    /// Needs a person.
    Parked,
    /// Every store confirmed, the row is gone, the receipt is written.
    Finalized,
    /// Restored in time.
    Cancelled,
    /// A newer life of the key took over.
    Superseded,
    /// The row came back after the claim, where no trigger could refuse it.
    LateRestore,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Pending,
        Self::Hidden,
        Self::Claimed,
        Self::Parked,
        Self::Finalized,
        Self::Cancelled,
        Self::Superseded,
        Self::LateRestore,
    ];

    /// Whether the deletion may still end. At most one open deletion exists for a key.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Pending | Self::Hidden | Self::Claimed | Self::Parked)
    }

    /// Whether a deletion in this state may go on to `next`; `claimed` says whether it was ever
    /// claimed, since parked before the claim is restorable and parked after it is not.
    pub fn may_become(self, next: Self, claimed: bool) -> bool {
        match (self, next) {
            (Self::Pending, Self::Hidden | Self::Claimed | Self::Parked | Self::Cancelled)
            | (Self::Hidden, Self::Claimed | Self::Parked | Self::Cancelled)
            | (Self::Pending | Self::Hidden, Self::Superseded)
            | (
                Self::Claimed,
                Self::Finalized | Self::Parked | Self::Superseded | Self::LateRestore,
            ) => true,
            (Self::Parked, Self::Pending | Self::Cancelled) => !claimed,
            (Self::Parked, Self::Claimed | Self::LateRestore) => claimed,
            (Self::Parked, Self::Superseded) => true,
            _ => false,
        }
    }

    /// The ledger's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Hidden => "hidden",
            Self::Claimed => "claimed",
            Self::Parked => "parked",
            Self::Finalized => "finalized",
            Self::Cancelled => "cancelled",
            Self::Superseded => "superseded",
            Self::LateRestore => "late_restore",
        }
    }
}

/// What a store's answer proves of one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It was there and is gone.
    Deleted,
    /// It was not there.
    Absent,
    /// What is there belongs to a newer life of the key, and stays.
    Superseded,
    /// Ask again later.
    Busy,
    /// The store will not: needs a person.
    Refused,
    /// The answer proves nothing.
    Unknown,
    /// An operator said, with a reason, that this target needs no proof.
    Waived,
}

impl Verdict {
    /// Whether the target needs nothing more.
    pub fn is_confirmed(self) -> bool {
        matches!(self, Self::Deleted | Self::Absent | Self::Waived)
    }

    /// Whether asking again may give another answer.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Busy | Self::Unknown)
    }
}
