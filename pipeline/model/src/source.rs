//! The port from which events and candidates come.

use std::sync::Arc;

use bytes::Bytes;

use crate::wal::WalRow;
use crate::{Candidate, DeletionId, Disposition};

/// A message as it was read, not decoded yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Where it stood.
    pub origin: Origin,
    /// The topic that it was written to, where that is not where it stood: a line of a file tells it.
    pub topic: Option<Arc<str>>,
    /// Its key, as bytes.
    pub key: Option<Bytes>,
    /// Its value, as bytes; none is a Kafka tombstone.
    pub value: Option<Bytes>,
}

impl Event {
    /// The topic that it was written to. It tells the relation; the origin tells the event.
    pub fn topic(&self) -> &Arc<str> {
        self.topic.as_ref().unwrap_or(&self.origin.topic)
    }
}

/// Where a message stood.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The topic, or the file.
    pub topic: Arc<str>,
    /// The partition; 0 where there are none.
    pub partition: i32,
    /// The offset in it.
    pub offset: i64,
}

/// A source's position: everything of one partition before `next`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The topic, or the file.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// Which assignment of the partition read it. A mark dies with its assignment.
    pub assignment: u64,
    /// The offset after the last one read.
    pub next: i64,
}

/// What one poll of a source brought.
#[derive(Clone, Debug)]
pub struct Polled {
    /// The records.
    pub records: Records,
    /// What may be committed once they are durable. One for each partition that is in them.
    pub marks: Vec<Mark>,
}

/// What a source brings.
#[derive(Clone, Debug)]
pub enum Records {
    /// Messages, to be decoded.
    Events(Vec<Event>),
    /// Rows of Postgres's own log, to be decoded.
    Rows(Vec<WalRow>),
    /// Dead letters, to be decoded again. Old: they override nothing, and say nothing of their topic now.
    Redriven(Vec<Event>),
    /// Keys, to be claimed.
    Candidates(Vec<Candidate>),
    /// Claimed deletions whose lease is over or which owe something, to be taken over.
    Open(Vec<DeletionId>),
}

impl Records {
    /// How many there are: what they take of the permits.
    pub fn len(&self) -> usize {
        match self {
            Self::Events(events) | Self::Redriven(events) => events.len(),
            Self::Rows(rows) => rows.len(),
            Self::Candidates(candidates) => candidates.len(),
            Self::Open(deletions) => deletions.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Why a source can't go on.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It comes back by itself.
    #[error("unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It needs a person.
    #[error("{0}")]
    Fatal(String),
}

impl SourceError {
    /// What can be done about it.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Unavailable(_) => Disposition::Retry,
            Self::Fatal(_) => Disposition::Halt,
        }
    }
}

/// Where events or candidates are read.
pub trait Source: Send + 'static {
    /// Waits for the next records.
    ///
    /// Dropping the future loses nothing: what it would have brought comes with the next call.
    fn next(&mut self) -> impl Future<Output = Result<Polled, SourceError>> + Send;

    /// Commits `marks`: everything before them is durable. Marks of a dead assignment are ignored.
    fn commit(&mut self, marks: Vec<Mark>) -> impl Future<Output = Result<(), SourceError>> + Send;

    /// Whether nothing will ever come again: all is read that there is to read. Then `next` is not called
    /// any more; marks may still be committed. A source that can't know it beforehand answers the call of
    /// `next` under way with nothing.
    fn has_ended(&self) -> bool {
        false
    }

    /// Stops reading `topic` until the process is started again.
    fn pause(&mut self, topic: &str) -> Result<(), SourceError>;

    /// Ends the reading: what was handed to [`Source::commit`] and is still on its way arrives, or is
    /// given up after a short while. A source that is dropped without it may bring some of that again.
    fn close(&mut self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}
