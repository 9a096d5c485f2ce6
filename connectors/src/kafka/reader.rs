//! The thread that polls librdkafka and fills the buffer.
//!
//! It has to poll whether or not the pipeline asks for events: rebalances, answers to commits and
//! statistics come with polling. When nobody takes what was read, it first waits, then pauses the
//! partitions and polls on, so that the group never waits for a slow pipeline.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::consumer::base_consumer::BaseConsumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tracing::{debug, warn};

use super::burst::Burst;
use super::committer;
use super::context::{Context, KafkaFault, Shared, count_error};
use crate::log::Start;

/// Longest wait in one poll: how late a stop is noticed.
const POLL: Duration = Duration::from_millis(100);
/// How long a full buffer keeps the thread from polling before the partitions are paused, which
/// throws away what librdkafka has fetched ahead.
const REST_AFTER: Duration = Duration::from_secs(2);
/// Most messages that are read before `next` is told of them, if they come without a pause.
const BURST: usize = 1_000;
/// How often the pipeline is told that Kafka is unavailable, while it is.
const TELL_AGAIN: Duration = Duration::from_secs(5);
/// How long one question about offsets may take.
const LOOKUP_WAIT: Duration = Duration::from_secs(5);

pub(super) struct Reader {
    consumer: Arc<BaseConsumer<Context>>,
    shared: Arc<Shared>,
    full_since: Option<Instant>,
    /// When the pipeline was told that Kafka is unavailable.
    told: Option<Instant>,
    /// Offsets have to be checked: librdkafka found one that is not in the log.
    lost: bool,
    burst: Burst,
}

/// Says that the reader ended, however it ends.
struct End {
    shared: Arc<Shared>,
    done: Sender<()>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.shared.is_fatal("the Kafka reader ended".into());
        if self.done.send(()).is_err() {
            debug!("nobody waited for the end of the reader");
        }
    }
}

/// Reads until it is told to stop; then commits what was handed in, and leaves the group.
pub(super) fn run(consumer: Arc<BaseConsumer<Context>>, shared: Arc<Shared>, done: Sender<()>) {
    let end = End { shared: Arc::clone(&shared), done };
    let weak = Arc::downgrade(&consumer);
    let mut reader = Reader {
        consumer,
        shared: Arc::clone(&shared),
        full_since: None,
        told: None,
        lost: false,
        burst: Burst::default(),
    };
    std::thread::scope(|scope| {
        let committing = std::thread::Builder::new()
            .name("kafka-commit".into())
            .spawn_scoped(scope, || committer::run(&weak, &shared));
        if let Err(error) = committing {
            shared.is_fatal(format!("no thread for commits: {error}"));
            return;
        }
        while !shared.is_stopping() {
            reader.turn();
        }
    });
    // Closing revokes all partitions, and revoking commits what was handed in.
    drop(reader);
    drop(end);
}

impl Reader {
    fn turn(&mut self) {
        if self.lost {
            self.find_lost();
        }
        let (full, resting) = {
            let state = self.shared.lock();
            (state.buffer.is_full(), state.resting)
        };
        if resting {
            if self.shared.lock().buffer.is_half_empty() {
                self.go_on();
            }
        } else if full {
            let since = *self.full_since.get_or_insert_with(Instant::now);
            if since.elapsed() < REST_AFTER {
                self.wait_for_room();
                return;
            }
            self.rest();
        } else {
            self.full_since = None;
        }
        self.poll();
    }

    fn poll(&mut self) {
        let consumer = Arc::clone(&self.consumer);
        let (items, bytes) = self.shared.lock().buffer.room();
        let items = items.clamp(1, BURST);
        let mut wait = POLL;
        while self.burst.len() < items && self.burst.bytes() <= bytes {
            match consumer.poll(wait) {
                None => break,
                Some(Ok(message)) => self.burst.keep(&message, &self.shared),
                Some(Err(error)) => self.judge(error),
            }
            wait = Duration::ZERO;
        }
        self.burst.flush(&self.shared);
    }

    /// Decides what an error means for the source.
    ///
    /// Denied credentials are "unavailable", not fatal: librdkafka goes on trying, rotated
    /// credentials work without a restart, and a pipeline that stopped would stop the sweep too,
    /// which needs no Kafka.
    fn judge(&mut self, error: KafkaError) {
        let reason = self.consumer.context().reason();
        let code = error.rdkafka_error_code();
        match (&error, code) {
            (KafkaError::MessageConsumptionFatal(_), _) | (_, Some(RDKafkaErrorCode::Fatal)) => {
                count_error("fatal");
                self.shared.is_fatal(format!("{reason} ({error})"));
            }
            (KafkaError::PartitionEOF(_), _) => {}
            (_, Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange)) => {
                count_error("out_of_range");
                self.lost = true;
            }
            (
                _,
                Some(
                    RDKafkaErrorCode::UnknownTopicOrPartition
                    | RDKafkaErrorCode::UnknownTopic
                    | RDKafkaErrorCode::UnknownPartition,
                ),
            ) => {
                count_error("missing_topic");
                warn!(
                    reason,
                    "a topic does not exist (yet): Debezium makes it with the first event of its \
                     table; check `topics` of the relation if it should be there; waiting for it"
                );
            }
            (
                _,
                Some(
                    RDKafkaErrorCode::AllBrokersDown
                    | RDKafkaErrorCode::Authentication
                    | RDKafkaErrorCode::SaslAuthenticationFailed
                    | RDKafkaErrorCode::TopicAuthorizationFailed
                    | RDKafkaErrorCode::GroupAuthorizationFailed
                    | RDKafkaErrorCode::ClusterAuthorizationFailed,
                ),
            ) => {
                count_error("unavailable");
                // librdkafka repeats it ten times a second.
                if self.told.is_some_and(|told| told.elapsed() < TELL_AGAIN) {
                    return;
                }
                self.told = Some(Instant::now());
                self.shared.is_unavailable(KafkaFault { reason, source: error });
            }
            (_, Some(RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::Resolve)) => {
                // One connection; librdkafka logged it, and says so when it was the last.
                count_error("connection");
            }
            _ => {
                count_error("other");
                warn!(%error, reason, "librdkafka reported an error and goes on");
            }
        }
    }

    fn wait_for_room(&self) {
        let state = self.shared.lock();
        if state.buffer.is_full() && !self.shared.is_stopping() {
            drop(
                self.shared.room.wait_timeout(state, POLL).unwrap_or_else(PoisonError::into_inner),
            );
        }
    }

    fn rest(&mut self) {
        let mut all = TopicPartitionList::new();
        {
            let mut state = self.shared.lock();
            state.resting = true;
            for (topic, partition, _) in state.assignments.positions() {
                all.add_partition(&topic, partition);
            }
        }
        if let Err(error) = self.consumer.pause(&all) {
            warn!(%error, "partitions can't be paused");
        }
        debug!("nobody takes what was read: partitions paused");
    }

    fn go_on(&mut self) {
        let mut resumed = TopicPartitionList::new();
        {
            let mut state = self.shared.lock();
            state.resting = false;
            for (topic, partition, _) in state.assignments.positions() {
                if !state.paused.contains(&*topic) {
                    resumed.add_partition(&topic, partition);
                }
            }
        }
        self.full_since = None;
        if let Err(error) = self.consumer.resume(&resumed) {
            warn!(%error, "partitions can't be resumed");
        }
        debug!("partitions resumed");
    }

    /// Finds the partitions whose next offset fell out of the log while they were read, reports
    /// them, and reads them from the beginning under a new assignment.
    fn find_lost(&mut self) {
        let positions = self.shared.lock().assignments.positions();
        let mut again = TopicPartitionList::new();
        let mut found = Vec::new();
        for (topic, partition, next) in positions {
            let marks = self.consumer.fetch_watermarks(&topic, partition, LOOKUP_WAIT);
            let (low, high) = match marks {
                Ok(marks) => marks,
                Err(error) => {
                    // Asked again with the next turn.
                    warn!(%error, topic = %topic, partition, "watermarks can't be looked up");
                    return;
                }
            };
            // Without a position it was at the beginning, which retention moved on.
            let start = next.map_or(Start::Beginning, |next| Start::decide(Some(next), low, high));
            let at = match start {
                // The one that stopped may be any, and to go on where it was is right for all.
                Start::Committed(next) => Offset::Offset(next),
                Start::Beginning | Start::OutOfRange { .. } => Offset::Beginning,
            };
            again
                .add_partition_offset(&topic, partition, at)
                .expect("an offset that was read is representable");
            found.push((topic, partition, start));
        }
        self.lost = false;
        // librdkafka gave up on the stopped partition, so a seek is refused: it is taken out and in.
        let result = self
            .consumer
            .incremental_unassign(&again)
            .and_then(|()| self.consumer.incremental_assign(&again));
        if let Err(error) = result {
            self.shared.is_fatal(format!("partitions can't be assigned again: {error}"));
            return;
        }
        let mut paused = TopicPartitionList::new();
        {
            let mut state = self.shared.lock();
            for (topic, partition, start) in &found {
                if matches!(start, Start::OutOfRange { .. }) {
                    // What is buffered stays: it was read, and can't be read again.
                    state.assignments.assign(topic, *partition, *start);
                    self.shared.rebalances.fetch_add(1, Ordering::Release);
                }
                if state.resting || state.paused.contains(&**topic) {
                    paused.add_partition(topic, *partition);
                }
            }
        }
        self.shared.answered.notify_one();
        if paused.count() > 0
            && let Err(error) = self.consumer.pause(&paused)
        {
            warn!(%error, "partitions can't be paused");
        }
        for (topic, partition, start) in found {
            self.shared.report(&topic, partition, start);
        }
    }
}
