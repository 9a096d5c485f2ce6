//! Few candidates are claimed together, by one worker; many by all.
//!
//! Each worker batches what it claims and destroys. A few hundred candidates a second, dealt out by their keys, would
//! go in as many times more requests as there are workers, to the ledger and to each store.

use std::time::{Duration, Instant};

use timely::dataflow::StreamVec;
use timely::dataflow::operators::Exchange;
use tombstream_model::Candidate;

use crate::bridge::Epoch;

/// How long candidates are counted before it is judged anew whether they are many.
const WINDOW: Duration = Duration::from_millis(100);
/// So many in a window are many: a batch of claims is full.
const MANY: usize = 500;

/// Brings few to worker 0, and leaves many where their keys brought them.
///
/// A key may so go to one worker now and to another later: claims of two workers meet in the ledger, like those of
/// two processes.
pub(crate) fn spread(
    candidates: StreamVec<'_, Epoch, Candidate>,
) -> StreamVec<'_, Epoch, Candidate> {
    let worker = candidates.scope().worker().index() as u64;
    let mut traffic = Traffic::new(Instant::now());
    candidates.exchange(move |_| match traffic.is_heavy(Instant::now()) {
        true => worker,
        false => 0,
    })
}

/// What came lately.
#[derive(Debug)]
struct Traffic {
    since: Instant,
    count: usize,
    was_heavy: bool,
}

impl Traffic {
    fn new(now: Instant) -> Self {
        Self { since: now, count: 0, was_heavy: false }
    }

    /// Counts one more, and says whether it is one of many.
    fn is_heavy(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.since);
        if passed >= WINDOW {
            self.was_heavy = self.count >= MANY && passed < 2 * WINDOW;
            (self.since, self.count) = (now, 0);
        }
        self.count += 1;
        self.was_heavy || self.count > MANY
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{MANY, Traffic, WINDOW};

    #[test]
    fn few_are_few_however_long_they_come_and_many_are_so_until_a_window_has_few() {
        let start = Instant::now();
        let mut traffic = Traffic::new(start);
        // 200 a second for ten seconds.
        assert!((0..2_000).all(|n| !traffic.is_heavy(start + Duration::from_millis(5) * n)));
        let begins = start + Duration::from_secs(20);
        let heavy = (0..2 * MANY).filter(|_| traffic.is_heavy(begins)).count();
        assert_eq!(heavy, MANY, "what fills a batch is few, the rest is many");
        assert!(traffic.is_heavy(begins + WINDOW), "the window before was heavy");
        assert!(!traffic.is_heavy(begins + 2 * WINDOW), "the window before was not");
        assert!((0..2 * MANY).any(|_| traffic.is_heavy(begins + 2 * WINDOW)));
        assert!(!traffic.is_heavy(begins + 60 * WINDOW), "after a rest nothing is known");
    }
}
