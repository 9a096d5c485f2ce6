//! A source that is told what to bring, and remembers what was committed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;
use tombstream_model::{
    Candidate, DeletionId, Event, Mark, Origin, Polled, Records, Source, SourceError,
};

/// Offsets from one poll to the next, so that each poll has room for its events, and an empty one has
/// a mark of its own.
const STRIDE: i64 = 1_000_000;

/// A source over a script. It reads again from what is committed when it is opened again.
#[derive(Debug)]
pub struct MemorySource {
    control: SourceControl,
    read: usize,
}

/// The other end of a [`MemorySource`]: the script, and what became of it.
#[derive(Clone, Debug, Default)]
pub struct SourceControl {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    news: Notify,
}

#[derive(Debug, Default)]
struct State {
    topic: Option<Arc<str>>,
    script: Vec<Records>,
    commits: Vec<Vec<Mark>>,
    committed: usize,
    paused: Vec<String>,
    next_errors: VecDeque<SourceError>,
    commit_errors: VecDeque<SourceError>,
    commits_hang: bool,
    ends: bool,
}

impl SourceControl {
    /// A script with nothing in it, of a topic.
    pub fn new(topic: &str) -> Self {
        let control = Self::default();
        control.state().topic = Some(topic.into());
        control
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn topic(&self) -> Arc<str> {
        self.state().topic.clone().unwrap_or_else(|| "memory".into())
    }

    /// Opens the source, as a process that starts does: what is not committed comes again.
    pub fn open(&self) -> MemorySource {
        let read = self.state().committed;
        MemorySource { control: self.clone(), read }
    }

    /// Adds a poll that brings `records`. Its mark is after all of them.
    pub fn push(&self, records: Records) {
        self.state().script.push(records);
        self.inner.news.notify_waiters();
    }

    /// Nothing is added any more: a source that has read everything has ended.
    pub fn ends(&self) {
        self.state().ends = true;
        self.inner.news.notify_waiters();
    }

    /// Adds a poll that brings candidates.
    pub fn candidates(&self, candidates: impl IntoIterator<Item = Candidate>) {
        self.push(Records::Candidates(candidates.into_iter().collect()));
    }

    /// Adds a poll that brings open deletions.
    pub fn open_deletions(&self, deletions: impl IntoIterator<Item = DeletionId>) {
        self.push(Records::Open(deletions.into_iter().collect()));
    }

    /// Adds a poll that brings events with these values.
    pub fn values<B: Into<Bytes>>(&self, values: impl IntoIterator<Item = B>) {
        let topic = self.topic();
        let first = offset(self.polls());
        let events = values.into_iter().enumerate().map(|(at, value)| Event {
            origin: Origin {
                topic: Arc::clone(&topic),
                partition: 0,
                offset: first + i64::try_from(at).expect("a poll is short"),
            },
            topic: None,
            key: None,
            value: Some(value.into()),
        });
        let records = Records::Events(events.collect());
        self.push(records);
    }

    /// How many polls are committed: all before this one.
    pub fn committed(&self) -> usize {
        self.state().committed
    }

    /// Every commit, in order.
    pub fn commits(&self) -> Vec<Vec<Mark>> {
        self.state().commits.clone()
    }

    /// How many polls the script has.
    pub fn polls(&self) -> usize {
        self.state().script.len()
    }

    /// The topics that were paused.
    pub fn paused(&self) -> Vec<String> {
        self.state().paused.clone()
    }

    /// The next call of `next` fails like this.
    pub fn fail_next(&self, error: SourceError) {
        self.state().next_errors.push_back(error);
        self.inner.news.notify_waiters();
    }

    /// The next commit fails like this.
    pub fn fail_commit(&self, error: SourceError) {
        self.state().commit_errors.push_back(error);
    }

    /// Whether commits hang.
    pub fn commits_hang(&self, hang: bool) {
        self.state().commits_hang = hang;
        self.inner.news.notify_waiters();
    }
}

/// The offset at which so many polls end.
fn offset(polls: usize) -> i64 {
    i64::try_from(polls).expect("a script is short") * STRIDE
}

impl Source for MemorySource {
    async fn next(&mut self) -> Result<Polled, SourceError> {
        loop {
            let news = self.control.inner.news.notified();
            tokio::pin!(news);
            // Listens before it looks, so that no push falls between.
            news.as_mut().enable();
            {
                let mut state = self.control.state();
                if let Some(error) = state.next_errors.pop_front() {
                    return Err(error);
                }
                if let Some(records) = state.script.get(self.read) {
                    let polled = Polled {
                        records: records.clone(),
                        marks: vec![Mark {
                            topic: state.topic.clone().unwrap_or_else(|| "memory".into()),
                            partition: 0,
                            assignment: 0,
                            next: offset(self.read + 1),
                        }],
                    };
                    self.read += 1;
                    return Ok(polled);
                }
                if state.ends && self.read == state.script.len() {
                    return Ok(Polled { records: Records::Events(Vec::new()), marks: Vec::new() });
                }
            }
            news.await;
        }
    }

    async fn commit(&mut self, marks: Vec<Mark>) -> Result<(), SourceError> {
        loop {
            let news = self.control.inner.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            if !self.control.state().commits_hang {
                break;
            }
            news.await;
        }
        let mut state = self.control.state();
        if let Some(error) = state.commit_errors.pop_front() {
            return Err(error);
        }
        for mark in &marks {
            let polls = usize::try_from(mark.next / STRIDE).expect("marks are of this source");
            state.committed = state.committed.max(polls);
        }
        state.commits.push(marks);
        Ok(())
    }

    fn has_ended(&self) -> bool {
        let state = self.control.state();
        state.ends && self.read == state.script.len() && state.next_errors.is_empty()
    }

    fn pause(&mut self, topic: &str) -> Result<(), SourceError> {
        let mut state = self.control.state();
        state.paused.push(topic.to_owned());
        // Nothing of this source is of another topic: what is left of the script is not read.
        self.read = usize::MAX;
        Ok(())
    }
}
