//! How well each topic can be decoded, over all workers.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use metrics::gauge;
use tokio::sync::mpsc::UnboundedSender;

use crate::health::Board;
use crate::intake::Order;
use crate::metric;

/// The last events of a topic that are looked at.
const EVENTS: usize = 1_000;
/// Most of them that may be undecodable: a tenth. One more, and reading the topic pauses: a wrong
/// converter must not fill Postgres with dead letters.
const UNDECODABLE_MAX: usize = 100;

/// The last events of one topic, and how many of them could not be decoded.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    last: VecDeque<bool>,
    undecodable: usize,
    paused: bool,
}

impl Ring {
    /// Notes an event. Says, once, that the topic must be paused.
    pub(crate) fn note(&mut self, decodable: bool) -> bool {
        if self.last.len() == EVENTS
            && let Some(false) = self.last.pop_front()
        {
            self.undecodable -= 1;
        }
        self.last.push_back(decodable);
        self.undecodable += usize::from(!decodable);
        let trips = self.undecodable > UNDECODABLE_MAX && !self.paused;
        self.paused |= trips;
        trips
    }
}

/// The rings of all topics, and whom to tell.
#[derive(Debug)]
pub(crate) struct Topics {
    rings: Mutex<HashMap<Arc<str>, Ring>>,
    orders: Vec<UnboundedSender<Order>>,
    board: Arc<Board>,
}

impl Topics {
    /// `orders` leads to each source, in their order.
    pub(crate) fn new(orders: Vec<UnboundedSender<Order>>, board: Arc<Board>) -> Self {
        Self { rings: Mutex::default(), orders, board }
    }

    /// Notes events of `topic`, in their order, that `source` read.
    pub(crate) fn note(&self, source: usize, topic: &Arc<str>, decodable: &[bool]) {
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        let ring = rings.entry(Arc::clone(topic)).or_default();
        // Counted, not searched: each event is noted.
        if decodable.iter().filter(|decodable| ring.note(**decodable)).count() > 0 {
            let reason = format!(
                "more than {UNDECODABLE_MAX} of the last {EVENTS} events can't be decoded: they \
                 are kept as dead letters; mend the converter or the configuration and restart"
            );
            tracing::error!(topic = &**topic, reason, "topic paused");
            gauge!(metric::TOPIC_PAUSED, "topic" => topic.to_string()).set(1.0);
            self.board.topic_paused(topic, reason);
            let sent = self.orders.get(source).map(|to| to.send(Order::Pause(Arc::clone(topic))));
            if !matches!(sent, Some(Ok(()))) {
                tracing::warn!(topic = &**topic, source, "the topic's source has ended");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Ring;

    #[test]
    fn a_tenth_may_be_undecodable_and_not_one_more() {
        let mut ring = Ring::default();
        for _ in 0..20 {
            for at in 0..1_000 {
                assert!(!ring.note(at % 10 != 0));
            }
        }
        // The next one to leave the ring is undecodable too, so this one is no more than a tenth …
        assert!(!ring.note(false));
        // … and this one is.
        assert!(ring.note(false));
    }

    #[test]
    fn the_first_events_of_a_topic_count_as_they_are() {
        let mut ring = Ring::default();
        for _ in 0..100 {
            assert!(!ring.note(false));
        }
        assert!(ring.note(false), "the 101st of 101 trips");
        assert!(!ring.note(false), "it trips once");
    }

    #[test]
    fn what_left_the_ring_counts_no_more() {
        let mut ring = Ring::default();
        for _ in 0..100 {
            assert!(!ring.note(false));
        }
        for _ in 0..1_000 {
            assert!(!ring.note(true));
        }
        for _ in 0..100 {
            assert!(!ring.note(false));
        }
        assert!(ring.note(false));
    }
}
