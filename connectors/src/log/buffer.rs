//! Events that were read and that nobody has asked for yet. No I/O.

use std::collections::VecDeque;
use std::sync::Arc;

use tombstream_model::{Event, Mark, Polled, Records};

/// A bounded queue of events. The bound is kept by whoever pushes: see [`Buffer::is_full`].
#[derive(Debug)]
pub(crate) struct Buffer {
    queue: VecDeque<Read>,
    /// How many of the oldest may be taken.
    ready: usize,
    bytes: usize,
    items_max: usize,
    bytes_max: usize,
}

#[derive(Debug)]
struct Read {
    event: Event,
    assignment: u64,
}

impl Read {
    fn bytes(&self) -> usize {
        let length = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, bytes::Bytes::len);
        size_of::<Self>() + length(&self.event.key) + length(&self.event.value)
    }
}

impl Buffer {
    pub(crate) fn new(items_max: usize, bytes_max: usize) -> Self {
        Self { queue: VecDeque::new(), ready: 0, bytes: 0, items_max, bytes_max }
    }

    /// Puts an event in. It can be taken once it is published: otherwise a caller that is faster
    /// than the reader would get events one by one.
    pub(crate) fn push(&mut self, event: Event, assignment: u64) {
        let read = Read { event, assignment };
        self.bytes += read.bytes();
        self.queue.push_back(read);
    }

    /// Lets everything be taken that was pushed.
    pub(crate) fn publish(&mut self) {
        self.ready = self.queue.len();
    }

    /// Whether reading has to wait.
    pub(crate) fn is_full(&self) -> bool {
        self.queue.len() >= self.items_max || self.bytes >= self.bytes_max
    }

    /// How many more events there is room for, and how many bytes of them.
    pub(crate) fn room(&self) -> (usize, usize) {
        let items = self.items_max.saturating_sub(self.queue.len());
        (items, self.bytes_max.saturating_sub(self.bytes))
    }

    /// Whether reading that had to wait may go on.
    pub(crate) fn is_half_empty(&self) -> bool {
        self.queue.len() <= self.items_max / 2 && self.bytes <= self.bytes_max / 2
    }

    /// Forgets events, for whose partition no mark will ever pass them.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&Event, u64) -> bool) {
        let (mut index, mut ready) = (0, 0);
        self.queue.retain(|read| {
            let kept = keep(&read.event, read.assignment);
            ready += usize::from(kept && index < self.ready);
            index += 1;
            kept
        });
        self.ready = ready;
        self.bytes = self.queue.iter().map(Read::bytes).sum();
    }

    /// The oldest events, at most `items_max`, with one mark for each partition.
    pub(crate) fn take(&mut self, items_max: usize) -> Option<Polled> {
        let items_max = items_max.min(self.ready);
        let mut events = Vec::with_capacity(items_max);
        let mut marks = Vec::<Mark>::new();
        let mut last = 0;
        while events.len() < items_max
            && let Some(read) = self.queue.front()
        {
            let origin = &read.event.origin;
            let same =
                |mark: &Mark| mark.partition == origin.partition && mark.topic == origin.topic;
            // Events come in runs of one partition, so the mark is mostly the last one used.
            let found = if marks.get(last).is_some_and(same) {
                Some(last)
            } else {
                marks.iter().position(same)
            };
            match found {
                // One mark can't speak for two assignments: the rest comes with the next poll.
                Some(index) if marks[index].assignment != read.assignment => break,
                Some(index) => {
                    marks[index].next = origin.offset + 1;
                    last = index;
                }
                None => {
                    last = marks.len();
                    marks.push(Mark {
                        topic: Arc::clone(&origin.topic),
                        partition: origin.partition,
                        assignment: read.assignment,
                        next: origin.offset + 1,
                    });
                }
            }
            let read = self.queue.pop_front().expect("the front was just seen");
            self.bytes -= read.bytes();
            events.push(read.event);
        }
        self.ready -= events.len();
        (!events.is_empty()).then(|| Polled { records: Records::Events(events), marks })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tombstream_model::Origin;

    use super::*;

    fn event(topic: &str, partition: i32, offset: i64) -> Event {
        let origin = Origin { topic: topic.into(), partition, offset };
        Event { origin, topic: None, key: None, value: Some(Bytes::from_static(b"0123456789")) }
    }

    /// Everything in it, published.
    fn take(buffer: &mut Buffer, items_max: usize) -> Option<Polled> {
        buffer.publish();
        buffer.take(items_max)
    }

    fn marks(polled: &Polled) -> Vec<(&str, i32, u64, i64)> {
        let tuple = |mark: &Mark| (mark.partition, mark.assignment, mark.next);
        let marks = polled.marks.iter();
        marks.map(|mark| (&*mark.topic, tuple(mark).0, tuple(mark).1, tuple(mark).2)).collect()
    }

    #[test]
    fn a_poll_has_one_mark_for_each_partition_after_its_last_event() {
        let mut buffer = Buffer::new(10, 10_000);
        for offset in 0..2 {
            buffer.push(event("t", 0, offset), 1);
            buffer.push(event("t", 1, offset + 7), 2);
            buffer.push(event("u", 0, offset + 4), 3);
        }
        let polled = take(&mut buffer, 100).unwrap();
        assert_eq!(polled.records.len(), 6);
        assert_eq!(marks(&polled), [("t", 0, 1, 2), ("t", 1, 2, 9), ("u", 0, 3, 6)]);
        assert!(take(&mut buffer, 100).is_none());
    }

    #[test]
    fn a_poll_takes_no_more_than_it_was_asked_for_and_its_mark_covers_no_more() {
        let mut buffer = Buffer::new(10, 10_000);
        (0..5).for_each(|offset| buffer.push(event("t", 0, offset), 1));
        let polled = take(&mut buffer, 3).unwrap();
        assert_eq!((polled.records.len(), marks(&polled)), (3, vec![("t", 0, 1, 3)]));
        let polled = take(&mut buffer, 3).unwrap();
        assert_eq!((polled.records.len(), marks(&polled)), (2, vec![("t", 0, 1, 5)]));
    }

    #[test]
    fn two_assignments_of_a_partition_never_share_a_poll() {
        let mut buffer = Buffer::new(10, 10_000);
        buffer.push(event("t", 0, 5), 1);
        buffer.push(event("t", 0, 3), 2);
        assert_eq!(marks(&take(&mut buffer, 10).unwrap()), [("t", 0, 1, 6)]);
        assert_eq!(marks(&take(&mut buffer, 10).unwrap()), [("t", 0, 2, 4)]);
    }

    #[test]
    fn it_is_full_by_items_or_by_bytes_and_goes_on_when_half_empty() {
        let mut buffer = Buffer::new(2, 1_000_000);
        buffer.push(event("t", 0, 0), 1);
        assert!(!buffer.is_full() && buffer.is_half_empty());
        buffer.push(event("t", 0, 1), 1);
        assert!(buffer.is_full() && !buffer.is_half_empty());
        assert_eq!(take(&mut buffer, 1).unwrap().records.len(), 1);
        assert!(!buffer.is_full() && buffer.is_half_empty());
        let mut buffer = Buffer::new(100, 20);
        buffer.push(event("t", 0, 0), 1);
        assert!(buffer.is_full());
        assert_eq!(take(&mut buffer, 1).unwrap().records.len(), 1);
        assert!(!buffer.is_full() && buffer.is_half_empty());
    }

    #[test]
    fn what_is_forgotten_leaves_room() {
        let mut buffer = Buffer::new(2, 1_000_000);
        buffer.push(event("t", 0, 0), 1);
        buffer.push(event("u", 0, 0), 2);
        buffer.retain(|event, _| &*event.origin.topic != "t");
        assert!(!buffer.is_full());
        assert_eq!(marks(&take(&mut buffer, 10).unwrap()), [("u", 0, 2, 1)]);
        assert!(take(&mut buffer, 10).is_none());
    }

    #[test]
    fn what_is_not_published_can_not_be_taken() {
        let mut buffer = Buffer::new(10, 10_000);
        buffer.push(event("t", 0, 0), 1);
        assert!(buffer.take(10).is_none());
        buffer.publish();
        buffer.push(event("t", 0, 1), 1);
        buffer.push(event("u", 0, 0), 2);
        buffer.retain(|event, _| &*event.origin.topic != "u");
        assert_eq!(marks(&buffer.take(10).unwrap()), [("t", 0, 1, 1)]);
        assert!(buffer.take(10).is_none());
        buffer.publish();
        buffer.push(event("u", 0, 1), 2);
        buffer.retain(|event, _| &*event.origin.topic != "t");
        assert!(buffer.take(10).is_none());
        buffer.publish();
        assert_eq!(marks(&buffer.take(10).unwrap()), [("u", 0, 2, 2)]);
    }
}
