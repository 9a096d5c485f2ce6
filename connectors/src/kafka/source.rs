//! The port: what the pipeline asks of Kafka.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rdkafka::consumer::base_consumer::BaseConsumer;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::topic_partition_list::TopicPartitionList;
use tombstream_model::{Mark, Polled, Source, SourceError};
use tracing::{info, warn};

use super::buffer::Buffer;
use super::config::{KafkaConfig, KafkaConfigError};
use super::context::{Context, Gap, Shared, list};
use super::offsets::CommitAnswer;
use super::reader;

/// How long the brokers' answer to a commit is waited for. It is sent again in any case.
const COMMIT_WAIT: Duration = Duration::from_secs(5);
/// How long dropping the source waits for the last commit and for leaving the group.
const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// How many polls the buffer holds.
const POLLS_BUFFERED: usize = 4;

/// Events of several topics, read by one member of a consumer group.
///
/// Dropping it commits what was handed in, leaves the group and waits for both, 5 s at most.
#[derive(Debug)]
pub struct KafkaSource {
    /// The reader's thread owns it, since closing it calls back.
    consumer: Weak<BaseConsumer<Context>>,
    shared: Arc<Shared>,
    items_max: usize,
    done: Receiver<()>,
}

impl KafkaSource {
    /// Joins the group and reads `topics`. It returns before a broker has answered.
    ///
    /// `on_gap` hears of every committed offset that is not in the log. It is called on the reader's
    /// thread, and must not block.
    pub fn new(
        config: &KafkaConfig,
        topics: &[String],
        on_gap: impl Fn(&Gap) + Send + Sync + 'static,
    ) -> Result<Self, KafkaConfigError> {
        let mut names: Vec<&str> = topics.iter().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        if names.is_empty() {
            return Err(KafkaConfigError::Topics);
        }
        let client = config.client()?;
        let items_max = config.items_max.get();
        let buffer =
            Buffer::new(items_max.saturating_mul(POLLS_BUFFERED), config.buffer_bytes_max.get());
        let shared = Arc::new(Shared::new(buffer, Box::new(on_gap)));
        let refused = |error: &dyn std::fmt::Display| KafkaConfigError::Refused(error.to_string());
        let consumer: BaseConsumer<Context> = client
            .create_with_context(Context::new(Arc::clone(&shared)))
            .map_err(|error| refused(&error))?;
        consumer.subscribe(&names).map_err(|error| refused(&error))?;
        info!(group = config.group, topics = ?names, "reading from kafka");

        let consumer = Arc::new(consumer);
        let weak = Arc::downgrade(&consumer);
        let (done_in, done) = channel();
        let reader = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("kafka".into())
            .spawn(move || reader::run(consumer, reader, done_in))
            .map_err(|error| refused(&error))?;
        Ok(Self { consumer: weak, shared, items_max, done })
    }

    /// Sends what is due, if nothing is in flight.
    fn send(&self) {
        let mut state = self.shared.lock();
        if let Some(due) = state.assignments.due() {
            // Under the lock: a partition that is revoked now is revoked after this was sent.
            let sent = match self.consumer.upgrade() {
                Some(consumer) => consumer
                    .commit(&list(&due), CommitMode::Async)
                    .map_err(|error| reader::refused(&error)),
                None => Err(CommitAnswer::Again("the reader ended".into())),
            };
            if let Err(answer) = sent {
                state.assignments.answered(answer);
            }
        }
    }

    /// Waits until the group has `marks`, or until an answer says why it has not.
    async fn settle(&mut self, marks: &[Mark]) -> Result<(), SourceError> {
        let mut sent = false;
        loop {
            let answered = self.shared.answered.notified();
            let in_flight = {
                let state = self.shared.lock();
                if state.assignments.has(marks) {
                    return Ok(());
                }
                if let Some(reason) = &state.fatal {
                    return Err(SourceError::Fatal(reason.clone()));
                }
                let in_flight = state.assignments.is_in_flight();
                if sent && !in_flight {
                    return match state.assignments.failure() {
                        // In the middle of a rebalance; the reader sends it again.
                        Some(CommitAnswer::Again(_) | CommitAnswer::Done) | None => Ok(()),
                        Some(CommitAnswer::Denied(reason)) => {
                            Err(SourceError::Unavailable(format!("commit denied: {reason}").into()))
                        }
                    };
                }
                in_flight
            };
            // What is in flight is from an earlier call; this one's goes after it.
            if !sent && !in_flight {
                sent = true;
                self.send();
                continue;
            }
            answered.await;
        }
    }
}

impl Source for KafkaSource {
    async fn next(&mut self) -> Result<Polled, SourceError> {
        loop {
            {
                let mut state = self.shared.lock();
                if let Some(polled) = state.buffer.take(self.items_max) {
                    if !state.buffer.is_full() {
                        self.shared.room.notify_all();
                    }
                    return Ok(polled);
                }
                if let Some(reason) = &state.fatal {
                    return Err(SourceError::Fatal(reason.clone()));
                }
                if let Some(error) = state.unavailable.take() {
                    return Err(error);
                }
            }
            // A permit is kept if something came since the look above. Nothing is held across this.
            self.shared.readable.notified().await;
        }
    }

    async fn commit(&mut self, marks: Vec<Mark>) -> Result<(), SourceError> {
        self.shared.lock().assignments.want(&marks);
        match tokio::time::timeout(COMMIT_WAIT, self.settle(&marks)).await {
            Ok(result) => result,
            Err(_) => Err(SourceError::Unavailable(
                format!("no answer to a commit within {COMMIT_WAIT:?}; it is sent again").into(),
            )),
        }
    }

    fn pause(&mut self, topic: &str) -> Result<(), SourceError> {
        let mut partitions = TopicPartitionList::new();
        {
            let mut state = self.shared.lock();
            if !state.paused.insert(topic.to_owned()) {
                return Ok(());
            }
            // No mark will pass them in this process, so they are read again by the next one.
            state.buffer.retain(|event, _| &*event.origin.topic != topic);
            for partition in state.assignments.partitions(topic) {
                partitions.add_partition(topic, partition);
            }
        }
        self.shared.room.notify_all();
        warn!(topic, "reading of this topic is paused until the process is started again");
        let Some(consumer) = self.consumer.upgrade() else { return Ok(()) };
        // Partitions that are assigned meanwhile or later are paused with their assignment.
        consumer.pause(&partitions).map_err(|error| SourceError::Unavailable(Box::new(error)))
    }
}

impl Drop for KafkaSource {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.room.notify_all();
        if self.done.recv_timeout(CLOSE_WAIT).is_err() {
            warn!("kafka did not let go within {CLOSE_WAIT:?}: the group notices by time-out");
        }
    }
}
