//! What librdkafka calls back: rebalances, errors, statistics, logs.
//!
//! All of it runs on the reader's thread, except logs of a client that is being made.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::{counter, gauge};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::base_consumer::BaseConsumer;
use rdkafka::consumer::{Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::Notify;
use tombstream_model::SourceError;
use tracing::{debug, error, info, warn};

use super::committer;
use crate::log::{Assignments, Buffer, CommitAnswer, Gap, Start};

/// How many events the group has not committed, by `topic` and `partition`; 0 for a partition that
/// went to another process, so that the sum over processes is the group's.
pub(super) const LAG: &str = "tombstream_kafka_lag";
const REBALANCES: &str = "tombstream_kafka_rebalances_total";
const OUT_OF_RANGE: &str = "tombstream_kafka_out_of_range_total";
const ERRORS: &str = "tombstream_kafka_errors_total";

/// How long one question about offsets may take before it is asked again.
const LOOKUP_WAIT: Duration = Duration::from_secs(5);

/// What the reader's thread and the source share.
pub(super) struct Shared {
    state: Mutex<State>,
    /// Something came for `next`.
    pub(super) readable: Notify,
    /// A commit was answered, or died.
    pub(super) answered: Notify,
    /// The buffer has room again, or reading ends.
    pub(super) room: Condvar,
    /// There is something to commit, or reading ends.
    pub(super) due: Condvar,
    /// Held while a commit is on its way and while partitions are given up. Taken before the state.
    committing: Mutex<()>,
    pub(super) stop: AtomicBool,
    /// Grows with every change of the assignments.
    pub(super) rebalances: AtomicU64,
    on_gap: Box<dyn Fn(&Gap) + Send + Sync>,
}

pub(super) struct State {
    pub(super) assignments: Assignments,
    pub(super) buffer: Buffer,
    pub(super) paused: HashSet<String>,
    /// Reading rests because nobody takes what was read.
    pub(super) resting: bool,
    /// Said once by the next call of `next`.
    pub(super) unavailable: Option<SourceError>,
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
                resting: false,
                unavailable: None,
                fatal: None,
            }),
            readable: Notify::new(),
            answered: Notify::new(),
            room: Condvar::new(),
            due: Condvar::new(),
            committing: Mutex::new(()),
            stop: AtomicBool::new(false),
            rebalances: AtomicU64::new(0),
            on_gap,
        }
    }

    /// The state; every change of it is whole, so one that a panic left behind is as good as any.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn committing(&self) -> MutexGuard<'_, ()> {
        self.committing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub(super) fn is_unavailable(&self, error: KafkaFault) {
        self.lock().unavailable = Some(SourceError::Unavailable(Box::new(error)));
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
}

/// An error of librdkafka with what it said about it.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(super) struct KafkaFault {
    pub(super) reason: String,
    #[source]
    pub(super) source: KafkaError,
}

/// What librdkafka calls back.
pub(super) struct Context {
    pub(super) shared: std::sync::Arc<Shared>,
    /// What came with the error that the next poll returns; both happen on one thread.
    reason: Mutex<String>,
}

impl Context {
    pub(super) fn new(shared: std::sync::Arc<Shared>) -> Self {
        Self { shared, reason: Mutex::new(String::new()) }
    }

    /// The text of the newest error.
    pub(super) fn reason(&self) -> String {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks up where each partition starts, and asks until it knows or reading ends: to start
    /// without knowing would be the silent reset that must not be.
    fn starts(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
    ) -> Option<Vec<(String, i32, Start)>> {
        loop {
            match look_up(consumer, partitions) {
                Ok(starts) => return Some(starts),
                Err(error) if self.shared.is_stopping() => {
                    debug!(%error, "offsets not looked up, since reading ends");
                    return None;
                }
                Err(error) => {
                    warn!(%error, "offsets can't be looked up, trying again");
                    counter!(ERRORS, "kind" => "lookup").increment(1);
                    let reason = "committed offsets can't be looked up".to_owned();
                    self.shared.is_unavailable(KafkaFault { reason, source: error });
                    // An error that came at once would come at once again.
                    std::thread::sleep(Duration::from_millis(250));
                }
            }
        }
    }

    fn assign(&self, consumer: &BaseConsumer<Self>, partitions: &mut TopicPartitionList) {
        let starts = self.starts(consumer, partitions).unwrap_or_default();
        let (mut paused, mut resumed) = (TopicPartitionList::new(), TopicPartitionList::new());
        {
            let mut state = self.shared.lock();
            for (topic, partition, start) in &starts {
                let offset = match start {
                    Start::Committed(offset) => Offset::Offset(*offset),
                    Start::Beginning | Start::OutOfRange { .. } => Offset::Beginning,
                };
                partitions
                    .set_partition_offset(topic, *partition, offset)
                    .expect("the partition is in the list it was read from");
                let assignment = state.assignments.assign(topic, *partition, *start);
                info!(topic, partition, assignment, start = ?start, "partition assigned");
                if state.resting || state.paused.contains(topic) {
                    paused.add_partition(topic, *partition);
                } else {
                    resumed.add_partition(topic, *partition);
                }
            }
        }
        for (topic, partition, start) in &starts {
            self.shared.report(topic, *partition, *start);
        }
        let result = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_assign(partitions),
            RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.assign(partitions),
        };
        if let Err(error) = result {
            // librdkafka would wait for ever; only a new client helps.
            self.shared.is_fatal(format!("partitions can't be assigned: {error}"));
        }
        // Resumed, since librdkafka keeps a partition paused that was paused when it was given up.
        for result in [consumer.pause(&paused), consumer.resume(&resumed)] {
            if let Err(error) = result {
                warn!(%error, "newly assigned partitions can't be paused or resumed");
            }
        }
    }

    /// Gives partitions up. What was handed in to be committed is committed first, so that the next
    /// owner does not read it again.
    fn revoke(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        let mut owed = Vec::new();
        let committing = self.shared.committing();
        {
            let mut guard = self.shared.lock();
            let state = &mut *guard;
            for element in partitions.elements() {
                let (topic, partition) = (element.topic(), element.partition());
                owed.extend(state.assignments.revoke(topic, partition));
                info!(topic, partition, "partition revoked");
                set_lag(topic, partition, 0);
            }
            // The next owner reads them again; nothing here may pass them.
            let State { buffer, assignments, .. } = state;
            buffer.retain(|event, assignment| {
                assignments.is_alive(&event.origin.topic, event.origin.partition, assignment)
            });
        }
        if consumer.assignment_lost() {
            warn!("partitions were lost: another process may have them already");
        } else if !owed.is_empty()
            && let CommitAnswer::Again(reason) | CommitAnswer::Denied(reason) =
                committer::send(consumer, &owed)
        {
            // Harmless: it is read again.
            warn!(reason, "last commit of revoked partitions failed");
        }
        drop(committing);
        let result = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_unassign(partitions),
            RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.unassign(),
        };
        if let Err(error) = result {
            self.shared.is_fatal(format!("partitions can't be given up: {error}"));
        }
        self.shared.answered.notify_one();
        self.shared.room.notify_all();
    }
}

/// Where each partition starts, by what the group committed and what the log holds.
pub(super) fn look_up<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &TopicPartitionList,
) -> KafkaResult<Vec<(String, i32, Start)>> {
    let mut wanted = TopicPartitionList::new();
    for element in partitions.elements() {
        wanted.add_partition(element.topic(), element.partition());
    }
    if wanted.count() == 0 {
        return Ok(Vec::new());
    }
    let committed = consumer.committed_offsets(wanted, LOOKUP_WAIT)?;
    let mut starts = Vec::with_capacity(committed.count());
    for element in committed.elements() {
        element.error()?;
        let committed = match element.offset() {
            Offset::Offset(offset) => Some(offset),
            Offset::Invalid
            | Offset::Stored
            | Offset::Beginning
            | Offset::End
            | Offset::OffsetTail(_) => None,
        };
        let (topic, partition) = (element.topic(), element.partition());
        let (low, high) = consumer.fetch_watermarks(topic, partition, LOOKUP_WAIT)?;
        starts.push((topic.to_owned(), partition, Start::decide(committed, low, high)));
    }
    Ok(starts)
}

pub(super) fn set_lag(topic: &str, partition: i32, lag: i64) {
    let partition = partition.to_string();
    // Exact up to 2^53.
    gauge!(LAG, "topic" => topic.to_owned(), "partition" => partition).set(lag as f64);
}

/// Passes a line of librdkafka's log on.
pub(super) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error
        | RDKafkaLogLevel::Warning => warn!(facility, "librdkafka: {message}"),
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
            info!(facility, "librdkafka: {message}");
        }
        RDKafkaLogLevel::Debug => debug!(facility, "librdkafka: {message}"),
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, log_message: &str) {
        log(level, fac, log_message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "librdkafka said");
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = reason.to_owned();
    }

    fn stats(&self, statistics: Statistics) {
        let mut lags = HashMap::new();
        {
            let state = self.shared.lock();
            for (name, topic) in &statistics.topics {
                for (partition, numbers) in &topic.partitions {
                    let (low, high) = (numbers.lo_offset, numbers.hi_offset);
                    if let Some(lag) = state.assignments.lag(name, *partition, low, high) {
                        lags.insert((name, *partition), lag);
                    }
                }
            }
        }
        for ((topic, partition), lag) in lags {
            set_lag(topic, partition, lag);
        }
    }
}

impl ConsumerContext for Context {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        code: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        counter!(REBALANCES).increment(1);
        if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.assign(consumer, partitions);
        } else {
            self.revoke(consumer, partitions);
        }
        self.shared.rebalances.fetch_add(1, Ordering::Release);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

pub(super) fn count_error(kind: &'static str) {
    counter!(ERRORS, "kind" => kind).increment(1);
}
