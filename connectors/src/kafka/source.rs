//! The port: what the pipeline asks of Kafka.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::consumer::base_consumer::BaseConsumer;
use rdkafka::topic_partition_list::TopicPartitionList;
use tombstream_model::{Mark, Polled, Source, SourceError};
use tracing::{info, warn};

use super::config::{KafkaConfig, KafkaConfigError};
use super::context::{Context, Shared};
use super::reader;
use crate::log::{Buffer, CommitAnswer, Gap};

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

    /// Waits until the group has `marks`, or until an answer says why it has not.
    async fn settle(&mut self, marks: &[Mark], sent: u64) -> Result<(), SourceError> {
        loop {
            let answered = self.shared.answered.notified();
            {
                let state = self.shared.lock();
                if state.assignments.has(marks) {
                    return Ok(());
                }
                if let Some(reason) = &state.fatal {
                    return Err(SourceError::Fatal(reason.clone()));
                }
                match state.assignments.answer_after(sent) {
                    None => {}
                    // In the middle of a rebalance. It is sent again, here or by the next owner.
                    Some(CommitAnswer::Again(_) | CommitAnswer::Done) => return Ok(()),
                    Some(CommitAnswer::Denied(reason)) => {
                        let error = format!("commit denied: {reason}");
                        return Err(SourceError::Unavailable(error.into()));
                    }
                }
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
        let sent = {
            let mut state = self.shared.lock();
            state.assignments.want(&marks);
            state.assignments.sent()
        };
        self.shared.due.notify_one();
        match tokio::time::timeout(COMMIT_WAIT, self.settle(&marks, sent)).await {
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
        {
            // Under the lock, so that no thread goes to sleep between its look and the call.
            let _state = self.shared.lock();
            self.shared.stop.store(true, Ordering::Release);
        }
        self.shared.room.notify_all();
        self.shared.due.notify_all();
        if self.done.recv_timeout(CLOSE_WAIT).is_err() {
            warn!("kafka did not let go within {CLOSE_WAIT:?}: the group notices by time-out");
        }
    }
}
