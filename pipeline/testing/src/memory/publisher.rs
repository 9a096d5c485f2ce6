//! A broker that is published to, with faults.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tombstream_model::{Message, PublishError, Publisher};

/// A broker in memory: one log over all topics. Clones are publishers of the same one.
#[derive(Clone, Debug)]
pub struct MemoryPublisher {
    state: Arc<Mutex<State>>,
    hanging: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    published: Vec<Message>,
    calls: usize,
    faults: VecDeque<Fault>,
}

/// How a call fails, and how much of its batch is there all the same.
#[derive(Debug)]
struct Fault {
    taken: usize,
    error: PublishError,
}

impl Default for MemoryPublisher {
    fn default() -> Self {
        Self { state: Arc::default(), hanging: watch::channel(false).0 }
    }
}

impl MemoryPublisher {
    /// A broker with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that was published, in order.
    pub fn published(&self) -> Vec<Message> {
        self.state().published.clone()
    }

    /// How many calls there were that did not hang.
    pub fn calls(&self) -> usize {
        self.state().calls
    }

    /// The next call fails like this, and nothing of its batch is there.
    pub fn fail_next(&self, error: PublishError) {
        self.fail_next_after(0, error);
    }

    /// The next call fails like this, and the first `taken` messages of its batch are there.
    pub fn fail_next_after(&self, taken: usize, error: PublishError) {
        self.state().faults.push_back(Fault { taken, error });
    }

    /// Whether calls hang.
    pub fn hang(&self, hang: bool) {
        self.hanging.send_replace(hang);
    }
}

impl Publisher for MemoryPublisher {
    async fn publish(&self, batch: Vec<Message>) -> Result<(), PublishError> {
        let mut hanging = self.hanging.subscribe();
        hanging.wait_for(|hanging| !hanging).await.expect("this end is held by ourselves");
        let mut state = self.state();
        state.calls += 1;
        let fault = state.faults.pop_front();
        let taken = fault.as_ref().map_or(batch.len(), |fault| fault.taken);
        state.published.extend(batch.into_iter().take(taken));
        match fault {
            Some(fault) => Err(fault.error),
            None => Ok(()),
        }
    }
}
