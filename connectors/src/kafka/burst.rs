//! Messages that were read one after the other, on their way into the buffer.
//!
//! What a message costs beside librdkafka's own part is paid here: so there is no lock, no hash and mostly no
//! allocation for each. Everything runs on the reader's thread, and so do the rebalances.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use rdkafka::message::{BorrowedMessage, Message};
use tombstream_model::{Event, Origin};

use super::context::Shared;

/// Payloads are copied, since librdkafka frees whole fetches: one kept event would keep megabytes. Here one
/// that is kept keeps at most this much.
const ARENA: usize = 32 << 10;

/// Copies of messages, each under the assignment that it was read under.
#[derive(Debug, Default)]
pub(super) struct Burst {
    events: Vec<(Event, u64)>,
    bytes: usize,
    arena: BytesMut,
    /// The partitions that messages came from since the last rebalance, and the last one's place.
    known: Vec<Known>,
    last: usize,
    rebalances: u64,
}

#[derive(Debug)]
struct Known {
    topic: Arc<str>,
    partition: i32,
    /// None: it is another process's.
    assignment: Option<u64>,
}

impl Burst {
    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies a message.
    pub(super) fn keep(&mut self, message: &BorrowedMessage<'_>, shared: &Shared) {
        let rebalances = shared.rebalances.load(Ordering::Acquire);
        if self.rebalances != rebalances {
            self.rebalances = rebalances;
            self.known.clear();
        }
        let place = self.place(message.topic(), message.partition(), shared);
        let known = &self.known[place];
        // A partition that is not ours is read by its owner.
        let Some(assignment) = known.assignment else { return };
        let topic = Arc::clone(&known.topic);
        let origin = Origin { topic, partition: message.partition(), offset: message.offset() };
        let key = message.key().map(|key| self.copy(key));
        let value = message.payload().map(|value| self.copy(value));
        self.events.push((Event { origin, topic: None, key, value }, assignment));
    }

    fn place(&mut self, topic: &str, partition: i32, shared: &Shared) -> usize {
        let is = |known: &Known| known.partition == partition && *known.topic == *topic;
        if !self.known.get(self.last).is_some_and(is) {
            self.last = self.known.iter().position(is).unwrap_or_else(|| {
                let number = shared.lock().assignments.number(topic, partition);
                let (topic, assignment) = match number {
                    Some((topic, number)) => (topic, Some(number)),
                    None => (Arc::from(topic), None),
                };
                self.known.push(Known { topic, partition, assignment });
                self.known.len() - 1
            });
        }
        self.last
    }

    fn copy(&mut self, bytes: &[u8]) -> Bytes {
        self.bytes += bytes.len();
        if bytes.len() > ARENA / 4 {
            return Bytes::copy_from_slice(bytes);
        }
        if self.arena.capacity() < bytes.len() {
            self.arena = BytesMut::with_capacity(ARENA);
        }
        self.arena.extend_from_slice(bytes);
        self.arena.split().freeze()
    }

    /// Puts everything into the buffer, but what belongs to an assignment that is over, or to a topic that is
    /// not read any more.
    ///
    /// Invariant (S7): what was read before a partition was given up and taken in again counts for neither:
    /// the new assignment begins where the group is, and reads it again; `what_an_assignment_that_is_over_read_is_dropped`.
    pub(super) fn flush(&mut self, shared: &Shared) {
        self.bytes = 0;
        if self.events.is_empty() {
            return;
        }
        let mut guard = shared.lock();
        let state = &mut *guard;
        // An assignment has one partition: what is of one is looked at once, at its end.
        let mut runs = Vec::new();
        for run in self.events.chunk_by(|(_, one), (_, other)| one == other) {
            let Some((Event { origin, .. }, assignment)) = run.last() else { continue };
            let Origin { topic, partition, offset } = origin;
            let is_read = !state.paused.contains(&**topic)
                && state.assignments.advance(topic, *partition, *assignment, offset + 1);
            runs.push((run.len(), is_read));
        }
        let mut events = self.events.drain(..);
        for (length, is_read) in runs {
            for (event, assignment) in events.by_ref().take(length) {
                if is_read {
                    state.buffer.push(event, assignment);
                }
            }
        }
        state.buffer.publish();
        drop(guard);
        shared.readable.notify_one();
    }
}
