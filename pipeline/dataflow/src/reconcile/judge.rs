//! What follows from what was seen at a place. Pure, and the same for the first look and the second.

use serde::{Deserialize, Serialize};
use tombstream_model::State;

use super::entry::Seen;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wrong {
    /// A row is flagged and due, and its copy is there.
    Straggler,
    /// A row was finalized, and a copy is there again.
    Zombie,
    /// A copy without a row, of which the ledger never knew.
    Orphan,
    /// A living row without its copy.
    Missing,
}

impl Wrong {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Straggler, Self::Zombie, Self::Orphan, Self::Missing];

    /// As reports spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Straggler => "straggler",
            Self::Zombie => "zombie",
            Self::Orphan => "orphan",
            Self::Missing => "missing",
        }
    }
}

/// What rows and ledger say of a place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Word {
    is_alive: bool,
    is_waiting: bool,
    is_due: bool,
    /// Pending or hidden: the pipeline waits with it.
    is_pending: bool,
    /// Claimed, or parked: it should be gone soon, or a person was asked.
    is_open: bool,
    is_finalized: bool,
    is_closed: bool,
    /// Something of it happened within the settle window.
    is_fresh: bool,
    pub(crate) is_expected: bool,
}

impl Word {
    pub(crate) fn add(&mut self, seen: Seen) {
        match seen {
            Seen::Alive { is_expected } => {
                self.is_alive = true;
                self.is_expected |= is_expected;
            }
            Seen::Waiting => self.is_waiting = true,
            Seen::Due => self.is_due = true,
            Seen::Known(state) => match state {
                State::Pending | State::Hidden => self.is_pending = true,
                State::Claimed | State::Parked => self.is_open = true,
                State::Finalized => self.is_finalized = true,
                State::Cancelled | State::Superseded | State::LateRestore => self.is_closed = true,
            },
            Seen::Copy { .. } => {}
        }
    }

    /// A deletion that moved within the settle window: what it says is not the last word.
    pub(crate) fn add_fresh(&mut self) {
        self.is_fresh = true;
    }

    /// What another template's address says of the same copy.
    pub(crate) fn join(self, other: Self) -> Self {
        Self {
            is_alive: self.is_alive || other.is_alive,
            is_waiting: self.is_waiting || other.is_waiting,
            is_due: self.is_due || other.is_due,
            is_pending: self.is_pending || other.is_pending,
            is_open: self.is_open || other.is_open,
            is_finalized: self.is_finalized || other.is_finalized,
            is_closed: self.is_closed || other.is_closed,
            is_fresh: self.is_fresh || other.is_fresh,
            is_expected: self.is_expected || other.is_expected,
        }
    }

    pub(crate) fn is_alive(self) -> bool {
        self.is_alive
    }

    /// What is wrong with a copy at this place.
    ///
    /// A living row outranks all: where two rows lead to one place, nothing is said against the copy of the
    /// one that lives. Nothing is said either of what no template leads to and no ledger knew.
    pub(crate) fn of_copy(self, is_elsewhere: bool) -> Option<Wrong> {
        if self.is_alive || self.is_waiting || self.is_fresh {
            return None;
        }
        if self.is_due {
            return Some(Wrong::Straggler);
        }
        if self.is_pending {
            return None;
        }
        if self.is_open {
            return Some(Wrong::Straggler);
        }
        if self.is_finalized {
            return Some(Wrong::Zombie);
        }
        (self.is_closed || !is_elsewhere).then_some(Wrong::Orphan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(seen: &[Seen]) -> Word {
        let mut word = Word::default();
        seen.iter().for_each(|seen| word.add(*seen));
        word
    }

    #[test]
    fn a_copy_is_judged_by_the_row_first_and_then_by_the_ledger() {
        let alive = Seen::Alive { is_expected: true };
        let finalized = Seen::Known(State::Finalized);
        for (seen, wrong) in [
            (&[alive][..], None),
            (&[Seen::Waiting], None),
            (&[Seen::Due], Some(Wrong::Straggler)),
            (&[Seen::Due, alive], None),
            (&[finalized], Some(Wrong::Zombie)),
            (&[finalized, alive], None),
            (&[finalized, Seen::Due], Some(Wrong::Straggler)),
            (&[finalized, Seen::Known(State::Claimed)], Some(Wrong::Straggler)),
            (&[Seen::Known(State::Parked)], Some(Wrong::Straggler)),
            (&[finalized, Seen::Known(State::Pending)], None),
            (&[Seen::Known(State::Cancelled)], Some(Wrong::Orphan)),
            (&[], Some(Wrong::Orphan)),
        ] {
            assert_eq!(word(seen).of_copy(false), wrong, "{seen:?}");
        }
        assert_eq!(word(&[]).of_copy(true), None);
        assert_eq!(word(&[finalized]).of_copy(true), Some(Wrong::Zombie));
    }

    #[test]
    fn what_moved_within_the_window_is_not_judged() {
        let mut fresh = word(&[Seen::Known(State::Finalized)]);
        fresh.add_fresh();
        assert_eq!(fresh.of_copy(false), None);
    }
}
