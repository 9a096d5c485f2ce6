//! What the reader's thread and the source share.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use tokio::sync::{Notify, watch};
use tombstream_model::SourceError;
use tracing::{error, warn};

use super::fault::Fault;
use crate::log::{Assignments, Buffer, Gap, Start};

/// How many events the consumer has not committed, by `topic` and `partition`.
const LAG: &str = "tombstream_fluvio_lag";
const COMMITS: &str = "tombstream_fluvio_commits_total";
const OUT_OF_RANGE: &str = "tombstream_fluvio_out_of_range_total";
const ERRORS: &str = "tombstream_fluvio_errors_total";

/// How often the pipeline is told that Fluvio is unavailable, while it is.
const TELL_AGAIN: Duration = Duration::from_secs(5);

pub(super) struct Shared {
    state: Mutex<State>,
    /// Something came for `next`.
    pub(super) readable: Notify,
    /// A commit was answered.
    pub(super) answered: Notify,
    /// The buffer has room again.
    pub(super) room: Notify,
    /// There is something to commit.
    pub(super) due: Notify,
    /// Whether reading ends.
    pub(super) stop: watch::Sender<bool>,
    on_gap: Box<dyn Fn(&Gap) + Send + Sync>,
}

pub(super) struct State {
    pub(super) assignments: Assignments,
    pub(super) buffer: Buffer,
    pub(super) paused: HashSet<String>,
    /// Said once by the next call of `next`.
    pub(super) unavailable: Option<SourceError>,
    /// When that was said last.
    told: Option<Instant>,
    /// Said by every call of `next` from now on.
    pub(super) fatal: Option<String>,
}

impl Shared {
    pub(super) fn new(buffer: Buffer, on_gap: Box<dyn Fn(&Gap) + Send + Sync>) -> Self {
        Self {
            state: Mutex::new(State {
                assignments: Assignments::default(),
                buffer,
                paused: HashSet::new(),
                unavailable: None,
                told: None,
                fatal: None,
            }),
            readable: Notify::new(),
            answered: Notify::new(),
            room: Notify::new(),
            due: Notify::new(),
            stop: watch::channel(false).0,
            on_gap,
        }
    }

    /// The state; every change of it is whole, so one that a panic left behind is as good as any.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// Tells the pipeline, but not all the time: reading is tried again by itself.
    pub(super) fn is_unavailable(&self, fault: Fault) {
        counter!(ERRORS, "kind" => kind(&fault)).increment(1);
        let mut state = self.lock();
        if state.told.is_some_and(|told| told.elapsed() < TELL_AGAIN) {
            return;
        }
        warn!(error = fault.chain(), "fluvio can't be read, trying again");
        state.told = Some(Instant::now());
        state.unavailable = Some(SourceError::Unavailable(Box::new(fault)));
        drop(state);
        self.readable.notify_one();
    }

    pub(super) fn is_fatal(&self, reason: String) {
        self.lock().fatal.get_or_insert(reason);
        self.readable.notify_one();
        self.answered.notify_one();
    }

    pub(super) fn report(&self, topic: &str, partition: i32, start: Start) {
        if let Start::OutOfRange { committed, low, high } = start {
            error!(
                topic,
                partition,
                committed,
                low,
                high,
                "committed offset is not in the log: events may be lost, reading from the beginning"
            );
            counter!(OUT_OF_RANGE, "topic" => topic.to_owned()).increment(1);
            (self.on_gap)(&Gap { topic: topic.to_owned(), partition, committed, low, high });
        }
    }

    pub(super) fn set_lag(&self, topic: &str, partition: i32, low: i64, high: i64) {
        if let Some(lag) = self.lock().assignments.lag(topic, partition, low, high) {
            let partition = partition.to_string();
            // Exact up to 2^53.
            gauge!(LAG, "topic" => topic.to_owned(), "partition" => partition).set(lag as f64);
        }
    }
}

pub(super) fn count_commit(result: &'static str) {
    counter!(COMMITS, "result" => result).increment(1);
}

fn kind(fault: &Fault) -> &'static str {
    match fault {
        Fault::Connection { .. } => "connection",
        Fault::Silent { .. } => "silent",
        Fault::Refused { .. } => "refused",
        Fault::Broken { .. } => "broken",
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}
