//! Whether a store is up (L3): a circuit that opens when nothing but failures came back for long
//! enough, and lets one batch through now and then to see.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metrics::gauge;
use tokio::sync::watch;

use crate::bridge::Flag;
use crate::health::Board;
use crate::metric;

/// The circuit: a plain struct that is told the time.
#[derive(Debug, Default)]
pub(crate) struct Circuit {
    failing_since: Option<Instant>,
    answered_at: Option<Instant>,
    down: bool,
    probe_at: Option<Instant>,
    probing: bool,
}

/// Whether a batch may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// The store is up.
    Open,
    /// The store is down, and this batch shall see whether it still is.
    Probe,
    /// The store is down.
    Shut,
}

impl Circuit {
    pub(crate) fn admit(&mut self, now: Instant) -> Pass {
        if !self.down {
            return Pass::Open;
        }
        if self.probing || self.probe_at.is_some_and(|at| now < at) {
            return Pass::Shut;
        }
        self.probing = true;
        Pass::Probe
    }

    /// An answer came. Says whether the store was down.
    pub(crate) fn answered(&mut self, now: Instant) -> bool {
        let was_down = self.down;
        *self = Self { answered_at: Some(now), ..Self::default() };
        was_down
    }

    /// An attempt that began at `started` brought no answer. Says whether the store is down now and
    /// was not before.
    pub(crate) fn failed(&mut self, started: Instant, now: Instant, after: Duration) -> bool {
        let since = self.answered_at.map_or(started, |answered| answered.max(started));
        let since = *self.failing_since.get_or_insert(since);
        let goes_down = !self.down && now.saturating_duration_since(since) >= after;
        self.down |= goes_down;
        goes_down
    }

    /// A probe is over, however it ended; the next may go at `next`.
    pub(crate) fn probed(&mut self, next: Instant) {
        self.probing = false;
        self.probe_at = Some(next);
    }
}

/// The circuit of one store, shared by all workers, with those who want to know.
#[derive(Debug)]
pub(crate) struct Breaker {
    store: Arc<str>,
    circuit: Mutex<Circuit>,
    down: watch::Sender<bool>,
    unavailable_after: Duration,
    probe_wait: Duration,
    board: Arc<Board>,
}

impl Breaker {
    pub(crate) fn new(
        store: Arc<str>,
        unavailable_after: Duration,
        probe_wait: Duration,
        board: Arc<Board>,
    ) -> Self {
        gauge!(metric::STORE_UP, "store" => store.to_string()).set(1.0);
        let (down, _) = Flag::new();
        Self { store, circuit: Mutex::default(), down, unavailable_after, probe_wait, board }
    }

    fn circuit(&self) -> MutexGuard<'_, Circuit> {
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a batch may go; the turn of a probe ends when it is dropped.
    pub(crate) fn admit(&self) -> Option<Turn<'_>> {
        match self.circuit().admit(Instant::now()) {
            Pass::Open => Some(Turn { breaker: self, started: Instant::now(), probe: false }),
            Pass::Probe => Some(Turn { breaker: self, started: Instant::now(), probe: true }),
            Pass::Shut => None,
        }
    }

    /// Waits until the store is marked down; at once if it is.
    pub(crate) async fn went_down(&self) {
        let mut down = self.down.subscribe();
        if down.wait_for(|down| *down).await.is_err() {
            tracing::trace!("the breaker is gone");
        }
    }
}

/// The turn of one attempt.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    breaker: &'a Breaker,
    started: Instant,
    pub(crate) probe: bool,
}

impl Turn<'_> {
    /// The store answered.
    pub(crate) fn answered(&self) {
        let breaker = self.breaker;
        if breaker.circuit().answered(Instant::now()) {
            tracing::info!(store = &*breaker.store, "store is up again");
            gauge!(metric::STORE_UP, "store" => breaker.store.to_string()).set(1.0);
            breaker.down.send_replace(false);
        }
        breaker.board.store_works(&breaker.store);
    }

    /// The store did not answer, or refused all of it.
    pub(crate) fn failed(&self, halted: bool, said: &str) {
        let breaker = self.breaker;
        let mut circuit = breaker.circuit();
        if circuit.failed(self.started, Instant::now(), breaker.unavailable_after) {
            tracing::error!(store = &*breaker.store, said, "store is down, its part is owed");
            gauge!(metric::STORE_UP, "store" => breaker.store.to_string()).set(0.0);
            breaker.down.send_replace(true);
        }
        let since = circuit.failing_since.unwrap_or(self.started);
        breaker.board.store_failed(&breaker.store, since, circuit.down, halted, said.to_owned());
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.probe {
            let mut circuit = self.breaker.circuit();
            if circuit.down {
                circuit.probed(Instant::now() + self.breaker.probe_wait);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Circuit, Pass};
    use std::time::{Duration, Instant};

    const AFTER: Duration = Duration::from_secs(30);

    #[test]
    fn a_store_goes_down_only_after_failing_for_long_enough() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut circuit = Circuit::default();
        assert!(!circuit.failed(at(0), at(10), AFTER));
        assert!(!circuit.failed(at(10), at(20), AFTER));
        assert_eq!(circuit.admit(at(20)), Pass::Open);
        assert!(circuit.failed(at(20), at(30), AFTER));
        assert!(!circuit.failed(at(20), at(31), AFTER), "it goes down once");
        assert_ne!(circuit.admit(at(31)), Pass::Open);
    }

    #[test]
    fn an_answer_between_failures_begins_the_count_anew() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut circuit = Circuit::default();
        assert!(!circuit.failed(at(0), at(10), AFTER));
        assert!(!circuit.answered(at(15)));
        // This attempt began before the answer; it counts from the answer on.
        assert!(!circuit.failed(at(5), at(40), AFTER));
        assert!(circuit.failed(at(40), at(45), AFTER));
    }

    #[test]
    fn a_store_that_is_down_is_probed_by_one_at_a_time() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut circuit = Circuit::default();
        assert!(circuit.failed(at(0), at(30), AFTER));
        assert_eq!(circuit.admit(at(30)), Pass::Probe);
        assert_eq!(circuit.admit(at(30)), Pass::Shut);
        circuit.probed(at(35));
        assert_eq!(circuit.admit(at(34)), Pass::Shut);
        assert_eq!(circuit.admit(at(35)), Pass::Probe);
        assert!(circuit.answered(at(36)), "the first answer brings it up");
        assert_eq!(circuit.admit(at(36)), Pass::Open);
        assert_eq!(circuit.admit(at(36)), Pass::Open);
    }
}
