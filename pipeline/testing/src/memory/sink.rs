//! A store in memory, with moods.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tombstream_model::{
    Address, Outcome, Presence, Sink, SinkError, Target, Verdict, Verification,
};

/// How a [`MemorySink`] takes requests.
#[derive(Clone, Debug, PartialEq)]
pub enum Mood {
    /// As it should.
    Well,
    /// Requests hang until the mood changes.
    Hanging,
    /// Requests fail as a whole: unavailable.
    Unavailable,
    /// Requests fail as a whole: denied.
    Denied,
    /// Requests fail as a whole: throttled, to come back after this.
    Throttled(Option<Duration>),
    /// The work is done, and the answer is lost.
    AnswerLost,
    /// The task that asks panics.
    Panicking,
    /// The answer has one outcome too few.
    Short,
}

/// A store of objects in memory.
#[derive(Debug)]
pub struct MemorySink {
    state: Mutex<State>,
    mood: watch::Sender<Mood>,
    batch_max: usize,
}

#[derive(Debug, Default)]
struct State {
    copies: HashSet<Address>,
    busy: HashMap<Address, usize>,
    resting: HashMap<Address, Duration>,
    refused: HashSet<Address>,
    sticky: HashSet<Address>,
    reads_back: bool,
    stalled: HashSet<Address>,
    requests: Vec<Vec<Target>>,
    looks: Vec<Vec<Target>>,
    delay: Duration,
    at_once: usize,
    at_once_most: usize,
}

impl Default for MemorySink {
    fn default() -> Self {
        Self::new(1_000)
    }
}

impl MemorySink {
    /// An empty store that takes so many targets in one request.
    pub fn new(batch_max: usize) -> Self {
        Self { state: Mutex::default(), mood: watch::channel(Mood::Well).0, batch_max }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a copy.
    pub fn put(&self, address: Address) {
        self.state().copies.insert(address);
    }

    /// Another hand removes a copy.
    pub fn remove(&self, address: &Address) {
        self.state().copies.remove(address);
    }

    /// Whether a copy is there.
    pub fn exists(&self, address: &Address) -> bool {
        self.state().copies.contains(address)
    }

    /// How many copies are there.
    pub fn len(&self) -> usize {
        self.state().copies.len()
    }

    /// Whether no copy is there.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every target that was asked to be destroyed, by request.
    pub fn requests(&self) -> Vec<Vec<Target>> {
        self.state().requests.clone()
    }

    /// Every target that was looked at, by request.
    pub fn looks(&self) -> Vec<Vec<Target>> {
        self.state().looks.clone()
    }

    /// The most requests that were served at one time.
    pub fn at_once_most(&self) -> usize {
        self.state().at_once_most
    }

    /// How it takes requests from now on. Those that hang see it too.
    pub fn set_mood(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// How long each request takes.
    pub fn set_delay(&self, delay: Duration) {
        self.state().delay = delay;
    }

    /// The next `times` times this copy is busy.
    pub fn busy(&self, address: Address, times: usize) {
        self.state().busy.insert(address, times);
    }

    /// This copy is busy until it is released, and not to be asked for again before so long.
    pub fn rest(&self, address: Address, rest: Duration) {
        self.state().resting.insert(address, rest);
    }

    /// This copy is never destroyed: a person must see it.
    pub fn refuse(&self, address: Address) {
        self.state().refused.insert(address);
    }

    /// This copy is said to be deleted, and stays.
    pub fn stick(&self, address: Address) {
        self.state().sticky.insert(address);
    }

    /// It looks by itself at what it has destroyed, and says so.
    pub fn read_back(&self) {
        self.state().reads_back = true;
    }

    /// Requests with this copy in them never end, whatever the mood.
    pub fn stall(&self, address: Address) {
        self.state().stalled.insert(address);
    }

    /// This copy can be destroyed again.
    pub fn release(&self, address: &Address) {
        let mut state = self.state();
        state.refused.remove(address);
        state.sticky.remove(address);
        state.busy.remove(address);
        state.resting.remove(address);
    }

    async fn serve(&self) -> Result<Mood, SinkError> {
        let mut mood = self.mood.subscribe();
        let now = mood.wait_for(|mood| *mood != Mood::Hanging).await.map(|mood| mood.clone());
        let now = now.expect("the sink outlives its requests");
        let delay = self.state().delay;
        if delay > Duration::ZERO {
            tokio::time::sleep(delay).await;
        }
        match now {
            Mood::Well | Mood::Hanging | Mood::AnswerLost | Mood::Short => Ok(now),
            Mood::Unavailable => Err(SinkError::Unavailable("the store is away".into())),
            Mood::Denied => Err(SinkError::Denied("no".to_owned())),
            Mood::Throttled(retry_after) => Err(SinkError::Throttled { retry_after }),
            Mood::Panicking => panic!("the sink panics, as it was told to"),
        }
    }
}

/// Counts a request while it is served.
struct Serving<'a>(&'a MemorySink);

impl<'a> Serving<'a> {
    fn new(sink: &'a MemorySink) -> Self {
        let mut state = sink.state();
        state.at_once += 1;
        state.at_once_most = state.at_once_most.max(state.at_once);
        drop(state);
        Self(sink)
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.0.state().at_once -= 1;
    }
}

impl Sink for MemorySink {
    async fn destroy(&self, batch: &[Target]) -> Result<Vec<Outcome>, SinkError> {
        self.state().requests.push(batch.to_vec());
        let _serving = Serving::new(self);
        let stalls = batch.iter().any(|target| self.state().stalled.contains(&target.address));
        if stalls {
            std::future::pending::<()>().await;
        }
        let mood = self.serve().await?;
        let mut state = self.state();
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(batch.len());
        for target in batch {
            let address = &target.address;
            let mut outcome = if !target.fence.holds() {
                Outcome::new(Verdict::Busy, "the lease is over")
            } else if let Some(times) = state.busy.get_mut(address).filter(|times| **times > 0) {
                *times -= 1;
                Outcome::new(Verdict::Busy, "busy")
            } else if let Some(rest) = state.resting.get(address) {
                let retry_after = Some(*rest);
                Outcome { retry_after, ..Outcome::new(Verdict::Busy, "it rests") }
            } else if state.refused.contains(address) {
                Outcome::new(Verdict::Refused, "locked")
            } else if state.sticky.contains(address) {
                Outcome::new(Verdict::Deleted, "deleted, so it says")
            } else if state.copies.remove(address) {
                Outcome::new(Verdict::Deleted, "deleted")
            } else {
                Outcome::new(Verdict::Absent, "not there")
            };
            if state.reads_back && outcome.verdict.is_confirmed() {
                outcome.verified = Verification::ReadBack;
            }
            outcomes.push(outcome);
        }
        match mood {
            Mood::AnswerLost => Err(SinkError::Unavailable("the answer was lost".into())),
            Mood::Short => {
                outcomes.pop();
                Ok(outcomes)
            }
            Mood::Well
            | Mood::Hanging
            | Mood::Unavailable
            | Mood::Denied
            | Mood::Throttled(_)
            | Mood::Panicking => Ok(outcomes),
        }
    }

    async fn look(&self, batch: &[Target]) -> Result<Vec<Presence>, SinkError> {
        self.state().looks.push(batch.to_vec());
        let _serving = Serving::new(self);
        self.serve().await?;
        let state = self.state();
        let there = |target: &Target| {
            if state.copies.contains(&target.address) || state.sticky.contains(&target.address) {
                Presence::Present
            } else {
                Presence::Absent
            }
        };
        Ok(batch.iter().map(there).collect())
    }

    fn batch_max(&self) -> usize {
        self.batch_max
    }
}

/// So that a test keeps its own end of a sink that a pipeline has.
impl MemorySink {
    /// Shared between a test and what it tests.
    pub fn shared(batch_max: usize) -> Arc<Self> {
        Arc::new(Self::new(batch_max))
    }
}
