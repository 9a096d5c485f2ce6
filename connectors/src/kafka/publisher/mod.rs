//! Captured changes to Kafka topics.
//!
//! Owns how a message is sent and when it counts as published. Leaves to others what is in it, and
//! trying again: a batch that failed is handed in anew, and may then be there twice.
//!
//! Order: librdkafka keeps it for each partition, retries included, while `enable.idempotence` is on.
//! A batch that failed has nothing left on its way when the error is told, so that what is handed in
//! anew comes behind it. After an error that ends the producer (a broker that lost track of it), the
//! next call makes a new one.

mod config;
mod judge;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use metrics::counter;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::future_producer::DeliveryFuture;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use tombstream_model::{Message, PublishError, Publisher};
use tracing::{debug, info, warn};

pub use config::KafkaPublisherConfig;

use super::config::KafkaConfigError;
use super::context::{KafkaFault, log};
use judge::judge;

/// How many messages brokers have taken, by `topic`.
const PUBLISHED: &str = "tombstream_kafka_published_total";
/// How many batches failed, by `kind`: `retry`, `halt` or `renewed`.
const ERRORS: &str = "tombstream_kafka_publish_errors_total";

/// How long a full queue is waited for that holds nothing of this batch.
const FULL_WAIT: Duration = Duration::from_millis(10);

/// Publishes to Kafka.
pub struct KafkaPublisher {
    config: KafkaPublisherConfig,
    client: Mutex<Arc<Client>>,
}

/// A producer of librdkafka.
struct Client {
    producer: FutureProducer<Heard>,
    heard: Heard,
}

impl KafkaPublisher {
    /// A producer for the configured brokers. It returns before a broker has answered.
    pub fn new(config: KafkaPublisherConfig) -> Result<Self, KafkaConfigError> {
        let client = Mutex::new(Arc::new(Client::new(&config)?));
        Ok(Self { config, client })
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Client>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a new producer in the place of one that librdkafka declared dead. The dead one sends
    /// nothing any more, so that nothing of it comes behind what is published next.
    fn renew(&self, dead: Arc<Client>) -> Result<(), KafkaConfigError> {
        let mut current = self.lock();
        if Arc::ptr_eq(&current, &dead) {
            *current = Arc::new(Client::new(&self.config)?);
        }
        drop(current);
        // Closing waits for threads.
        tokio::task::spawn_blocking(move || drop(dead));
        Ok(())
    }
}

impl Client {
    fn new(config: &KafkaPublisherConfig) -> Result<Self, KafkaConfigError> {
        let heard = Heard::default();
        let producer = config
            .client()?
            .create_with_context(heard.clone())
            .map_err(|error| KafkaConfigError::Refused(error.to_string()))?;
        Ok(Self { producer, heard })
    }
}

/// Sends `batch` in its order and waits for every answer, so that nothing of it is on its way when
/// this returns. What is behind a failure is not sent. The error says which message failed.
async fn send(
    producer: &FutureProducer<Heard>,
    batch: &[Message],
) -> Result<(), (usize, KafkaError)> {
    let mut waiting: VecDeque<(usize, DeliveryFuture)> = VecDeque::new();
    let mut failed = None;
    let mut index = 0;
    while failed.is_none() && index < batch.len() {
        let queued = producer.send_result(record(&batch[index])).map_err(|(error, _)| error);
        match queued {
            Ok(delivery) => {
                waiting.push_back((index, delivery));
                index += 1;
            }
            Err(KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) => {
                match waiting.pop_front() {
                    Some((at, delivery)) => {
                        failed = delivered(delivery).await.err().map(|error| (at, error));
                    }
                    // It is full of another batch.
                    None => tokio::time::sleep(FULL_WAIT).await,
                }
            }
            Err(error) => failed = Some((index, error)),
        }
    }
    for (at, delivery) in waiting {
        if let Err(error) = delivered(delivery).await {
            failed.get_or_insert((at, error));
        }
    }
    failed.map_or(Ok(()), Err)
}

fn record(message: &Message) -> FutureRecord<'_, [u8], [u8]> {
    let record = FutureRecord::to(&message.topic);
    let record = match &message.key {
        Some(key) => record.key(&key[..]),
        None => record,
    };
    match &message.value {
        Some(value) => record.payload(&value[..]),
        None => record,
    }
}

async fn delivered(delivery: DeliveryFuture) -> Result<(), KafkaError> {
    match delivery.await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err((error, _))) => Err(error),
        Err(_) => Err(KafkaError::Canceled),
    }
}

impl Publisher for KafkaPublisher {
    async fn publish(&self, batch: Vec<Message>) -> Result<(), PublishError> {
        let client = Arc::clone(&self.lock());
        let Err((at, error)) = send(&client.producer, &batch).await else {
            client.heard.forget();
            count(&batch);
            return Ok(());
        };
        if let Some((code, reason)) = client.producer.client().fatal_error() {
            warn!(?code, reason, "librdkafka ended the producer: a new one takes its place");
            counter!(ERRORS, "kind" => "renewed").increment(1);
            self.renew(client).map_err(|error| PublishError::Fatal(error.to_string()))?;
            let reason = format!("the producer had to be made anew: {reason}");
            return Err(PublishError::Unavailable(Box::new(KafkaFault { reason, source: error })));
        }
        let judged = judge(error, &batch[at], client.heard.heard());
        let kind = match &judged {
            PublishError::Unavailable(_) => "retry",
            PublishError::Fatal(_) => "halt",
        };
        counter!(ERRORS, "kind" => kind).increment(1);
        Err(judged)
    }
}

fn count(batch: &[Message]) {
    for same in batch.chunk_by(|one, other| one.topic == other.topic) {
        let count = u64::try_from(same.len()).unwrap_or(u64::MAX);
        counter!(PUBLISHED, "topic" => same[0].topic.to_string()).increment(count);
    }
}

/// Keeps what librdkafka said, since the answer to a message is only "timed out".
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Option<String>>>);

impl Heard {
    fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn heard(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientContext for Heard {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, log_message: &str) {
        log(level, fac, log_message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "librdkafka said");
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // "All brokers are down" explains less than what it follows from.
        let down = error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown);
        if !down || heard.is_none() {
            *heard = Some(reason.to_owned());
        }
    }
}

impl fmt::Debug for KafkaPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaPublisher").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Drop for KafkaPublisher {
    fn drop(&mut self) {
        let left = self.lock().producer.in_flight_count();
        if left > 0 {
            info!(left, "messages that nobody waits for any more are dropped");
        }
    }
}

#[cfg(test)]
mod tests;
