//! Which positions the frontier allows to be committed.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use tombstream_model::Mark;

use crate::bridge::Epoch;

/// The epochs that are closed and not durable, in their order, and the one that is being read.
#[derive(Debug, Default)]
pub(crate) struct EpochLog {
    closed: VecDeque<Closed>,
    reading: Option<(Epoch, Instant)>,
}

/// A closed epoch: everything of it was read and is on its way.
#[derive(Debug)]
pub(crate) struct Closed {
    /// Which one.
    pub(crate) epoch: Epoch,
    /// When its first record was read.
    pub(crate) opened: Instant,
    /// The permits that its records hold.
    pub(crate) permits: usize,
    /// What may be committed once it is durable: by source, in the order of reading.
    pub(crate) marks: BTreeMap<usize, Vec<Mark>>,
}

impl EpochLog {
    /// The first record of `epoch` was read.
    pub(crate) fn open(&mut self, epoch: Epoch, now: Instant) {
        self.reading.get_or_insert((epoch, now));
    }

    /// Nothing more comes to an epoch. Must be called before any worker is told to go on.
    pub(crate) fn close(&mut self, closed: Closed) {
        debug_assert!(self.closed.back().is_none_or(|last| last.epoch < closed.epoch));
        self.reading = None;
        self.closed.push_back(closed);
    }

    /// Takes the epochs that are durable: those before `frontier`, oldest first, each once.
    ///
    /// Invariant (S7): an epoch that the frontier has not passed is not committed;
    /// `tests::only_what_is_behind_the_frontier_is_committed`.
    pub(crate) fn durable(&mut self, frontier: Epoch) -> Vec<Closed> {
        let count = self.closed.partition_point(|closed| closed.epoch < frontier);
        self.closed.drain(..count).collect()
    }

    /// How many epochs are not durable.
    pub(crate) fn len(&self) -> usize {
        self.closed.len() + usize::from(self.reading.is_some())
    }

    /// The oldest epoch that is not durable, with its age.
    pub(crate) fn oldest(&self, now: Instant) -> Option<(Epoch, Duration)> {
        let closed = self.closed.front().map(|closed| (closed.epoch, closed.opened));
        let (epoch, opened) = closed.or(self.reading)?;
        Some((epoch, now.saturating_duration_since(opened)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::{Duration, Instant};

    use proptest::prelude::*;
    use tombstream_model::Mark;

    use super::{Closed, EpochLog};

    fn closed(epoch: u64, opened: Instant) -> Closed {
        let mark = Mark { topic: "t".into(), partition: 0, assignment: 1, next: epoch as i64 + 1 };
        Closed { epoch, opened, permits: 1, marks: BTreeMap::from([(0, vec![mark])]) }
    }

    proptest! {
        #[test]
        fn only_what_is_behind_the_frontier_is_committed(
            steps in proptest::collection::vec((any::<bool>(), 0_u64..3), 0..80),
        ) {
            let now = Instant::now();
            let mut log = EpochLog::default();
            let (mut next, mut frontier) = (0, 0);
            let mut committed = Vec::new();
            for (closes, ahead) in steps {
                if closes {
                    log.open(next, now);
                    log.close(closed(next, now));
                    next += 1;
                }
                // The frontier never passes the epoch that is being read.
                frontier = (frontier + ahead).min(next);
                for durable in log.durable(frontier) {
                    prop_assert!(durable.epoch < frontier);
                    committed.push(durable.epoch);
                }
                prop_assert_eq!(log.len() as u64, next - frontier);
            }
            // Each once, in order, none left out.
            prop_assert_eq!(committed, (0..frontier).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_oldest_epoch_is_the_first_that_is_not_durable() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut log = EpochLog::default();
        assert_eq!(log.oldest(at(9)), None);
        log.open(0, at(1));
        log.open(0, at(2));
        assert_eq!(log.oldest(at(9)), Some((0, Duration::from_secs(8))));
        log.close(closed(0, at(1)));
        log.open(1, at(3));
        assert_eq!(log.oldest(at(9)), Some((0, Duration::from_secs(8))));
        assert_eq!(log.durable(1).len(), 1);
        assert_eq!(log.oldest(at(9)), Some((1, Duration::from_secs(6))));
    }
}
