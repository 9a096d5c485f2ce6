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
            (Self::Parked, Self::Pending | Self::Hidden | Self::Cancelled) => !claimed,
            (Self::Parked, Self::LateRestore) => claimed,
            (Self::Parked, Self::Claimed | Self::Superseded) => true,
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

/// Why there is a deletion. The ledger spells it in lower case with underscores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeletionCause {
    /// A row's flag was set.
    #[default]
    Flag,
    /// Another hand removed the row.
    HardDelete,
    /// The auditor found a copy of a row that is finalized.
    Resurrected,
    /// Somebody ordered that what was finalized be destroyed again: its row came back out of a backup.
    ReErase,
    /// Somebody approved that a copy be destroyed of which there is no row, and which the ledger never knew.
    Orphan,
}

impl DeletionCause {
    /// Every cause.
    pub const ALL: [Self; 5] =
        [Self::Flag, Self::HardDelete, Self::Resurrected, Self::ReErase, Self::Orphan];

    /// Whether no row was flagged for it now: what is destroyed was destroyed before, or a person approved of each
    /// of its addresses. It has had its grace, its breaker's budget is spent, and that a copy is absent says
    /// nothing of a template.
    pub fn is_again(self) -> bool {
        matches!(self, Self::Resurrected | Self::ReErase | Self::Orphan)
    }

    /// The ledger's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Flag => "flag",
            Self::HardDelete => "hard_delete",
            Self::Resurrected => "resurrected",
            Self::ReErase => "re_erase",
            Self::Orphan => "orphan",
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
    /// The ledger's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Absent => "absent",
            Self::Superseded => "superseded",
            Self::Busy => "busy",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
            Self::Waived => "waived",
        }
    }

    /// Whether the target needs nothing more.
    pub fn is_confirmed(self) -> bool {
        matches!(self, Self::Deleted | Self::Absent | Self::Waived)
    }

    /// Whether asking again may give another answer.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Busy | Self::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The allowed moves, written from the contract: a row is where a deletion is, a column where it
    /// may go. `x` always, `n` only if it was never claimed, `c` only if it was.
    const MOVES: &str = "
                    pending hidden claimed parked finalized cancelled superseded late_restore
        pending        .      x       x      x        .         x          x          .
        hidden         .      .       x      x        .         x          x          .
        claimed        .      .       .      x        x         .          x          x
        parked         n      n       x      .        .         n          x          c
        finalized      .      .       .      .        .         .          .          .
        cancelled      .      .       .      .        .         .          .          .
        superseded     .      .       .      .        .         .          .          .
        late_restore   .      .       .      .        .         .          .          .
    ";

    #[test]
    fn a_deletion_moves_as_the_table_says() {
        let mut lines = MOVES.trim().lines().map(str::split_whitespace);
        let columns: Vec<&str> = lines.next().unwrap().collect();
        assert_eq!(columns, State::ALL.map(State::as_str));
        let mut seen = 0;
        for (state, mut line) in State::ALL.into_iter().zip(lines) {
            assert_eq!(line.next(), Some(state.as_str()));
            for (next, cell) in State::ALL.into_iter().zip(line) {
                for claimed in [false, true] {
                    let allowed = match cell {
                        "x" => true,
                        "n" => !claimed,
                        "c" => claimed,
                        _ => false,
                    };
                    let found = state.may_become(next, claimed);
                    assert_eq!(found, allowed, "{state:?} to {next:?}, claimed: {claimed}");
                    seen += 1;
                }
            }
        }
        assert_eq!(seen, 8 * 8 * 2);
    }

    #[test]
    fn a_closed_deletion_never_moves() {
        let open = [State::Pending, State::Hidden, State::Claimed, State::Parked];
        for state in State::ALL {
            assert_eq!(state.is_open(), open.contains(&state), "{state:?}");
            if !state.is_open() {
                let mut all = State::ALL.into_iter();
                assert!(
                    all.all(|next| !state.may_become(next, true) && !state.may_become(next, false))
                );
            }
        }
    }

    /// Nothing past the point of no return is restored as if nothing had happened (S2).
    #[test]
    fn nothing_claimed_is_cancelled() {
        for state in [State::Claimed, State::Parked] {
            assert!(!state.may_become(State::Cancelled, true));
            assert!(!state.may_become(State::Pending, true));
        }
    }

    #[test]
    fn a_state_is_spelled_in_json_as_in_the_ledger() {
        for state in State::ALL {
            let json = serde_json::to_string(&state).unwrap();
            assert_eq!(json, format!("\"{}\"", state.as_str()));
        }
    }

    #[test]
    fn a_cause_is_spelled_in_json_as_in_the_ledger() {
        for cause in DeletionCause::ALL {
            let json = serde_json::to_string(&cause).unwrap();
            assert_eq!(json, format!("\"{}\"", cause.as_str()));
        }
        let again = DeletionCause::ALL.into_iter().filter(|cause| cause.is_again());
        assert_eq!(
            again.map(DeletionCause::as_str).collect::<Vec<_>>(),
            ["resurrected", "re_erase", "orphan"]
        );
    }

    #[test]
    fn only_what_is_gone_or_waived_is_confirmed() {
        use Verdict::*;
        for (verdict, confirmed, open) in [
            (Deleted, true, false),
            (Absent, true, false),
            (Superseded, false, false),
            (Busy, false, true),
            (Refused, false, false),
            (Unknown, false, true),
            (Waived, true, false),
        ] {
            assert_eq!(
                (verdict.is_confirmed(), verdict.is_open()),
                (confirmed, open),
                "{verdict:?}"
            );
            assert_eq!(
                serde_json::to_string(&verdict).unwrap(),
                format!("\"{}\"", verdict.as_str())
            );
        }
    }
}
