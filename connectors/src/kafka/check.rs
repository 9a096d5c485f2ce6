//! What `tombstream check --live` says of Kafka. Joins no group, commits nothing, makes no topic.

use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::base_consumer::BaseConsumer;
use rdkafka::consumer::{Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::metadata::Metadata;
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::Serialize;
use std::sync::Mutex;
use std::sync::PoisonError;

use super::config::{KafkaConfig, KafkaConfigError};
use super::publisher::KafkaPublisherConfig;
use crate::log::Start;

/// How long one question may take.
const WAIT: Duration = Duration::from_secs(10);

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KafkaFacts {
    /// The brokers, as `host:port`.
    pub brokers: Vec<String>,
    /// The topics, in the order asked for.
    pub topics: Vec<TopicFacts>,
}

/// What was found of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TopicFacts {
    /// Its name.
    pub topic: String,
    /// Its partitions; none if it does not exist (yet) or can't be read.
    pub partitions: Vec<PartitionFacts>,
    /// What is wrong with it, and what to do.
    pub problem: Option<String>,
}

/// What was found of a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PartitionFacts {
    /// Its number.
    pub partition: i32,
    /// The first offset in the log.
    pub low: i64,
    /// The offset after the last one in the log.
    pub high: i64,
    /// What the group committed.
    pub committed: Option<i64>,
    /// How many events the group has not committed.
    pub lag: i64,
    /// Whether what the group committed is not in the log: events may be lost.
    pub out_of_range: bool,
}

/// What was found where changes are published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KafkaPublisherFacts {
    /// The brokers, as `host:port`.
    pub brokers: Vec<String>,
    /// The topics, in the order asked for.
    pub topics: Vec<PublishedTopicFacts>,
}

/// What was found of a topic that is published to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PublishedTopicFacts {
    /// Its name.
    pub topic: String,
    /// How many partitions it has.
    pub partitions: usize,
    /// What is wrong with it, and what to do.
    pub problem: Option<String>,
}

/// Why nothing could be found out.
#[derive(Debug, thiserror::Error)]
pub enum KafkaCheckError {
    /// The configuration can't be used.
    #[error(transparent)]
    Config(#[from] KafkaConfigError),
    /// No broker answered.
    #[error("no broker of {brokers} answers: {reason}")]
    Unreachable {
        /// The brokers of the configuration.
        brokers: String,
        /// What librdkafka said.
        reason: String,
    },
    /// The brokers refuse the credentials.
    #[error("the brokers refuse these credentials: {0}")]
    Denied(String),
    /// The brokers answer, but not this.
    #[error("{what} can't be looked up")]
    LookUp {
        /// What was asked.
        what: String,
        /// What librdkafka said.
        #[source]
        source: KafkaError,
    },
}

/// Asks the brokers about `topics` and about what the group committed of them.
pub async fn check(config: &KafkaConfig, topics: &[String]) -> Result<KafkaFacts, KafkaCheckError> {
    let client = config.client()?;
    let topics = topics.to_vec();
    let asked = tokio::task::spawn_blocking(move || ask(&client, &topics)).await;
    asked.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// Asks the brokers whether `topics` can be published to.
pub async fn check_publisher(
    config: &KafkaPublisherConfig,
    topics: &[String],
) -> Result<KafkaPublisherFacts, KafkaCheckError> {
    let mut client = config.client()?;
    client.set("allow.auto.create.topics", "false");
    let topics = topics.to_vec();
    let asked = tokio::task::spawn_blocking(move || ask_publisher(&client, &topics)).await;
    asked.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// Keeps what librdkafka said, since the answer to a question is only "timed out".
#[derive(Default)]
pub(super) struct Said(pub(super) Mutex<Option<(KafkaError, String)>>);

impl ClientContext for Said {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, log_message: &str) {
        tracing::debug!(?level, facility = fac, "librdkafka: {log_message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // "All brokers are down" explains less than what it follows from.
        let down = error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown);
        if !down || said.is_none() {
            *said = Some((error, reason.to_owned()));
        }
    }
}

impl ConsumerContext for Said {}

impl ProducerContext for Said {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

fn ask(client: &ClientConfig, topics: &[String]) -> Result<KafkaFacts, KafkaCheckError> {
    let consumer: BaseConsumer<Said> = client
        .create_with_context(Said::default())
        .map_err(|error| KafkaConfigError::Refused(error.to_string()))?;
    let mut facts = KafkaFacts { brokers: Vec::new(), topics: Vec::new() };
    for topic in topics {
        let metadata = consumer.fetch_metadata(Some(topic), WAIT).map_err(|error| {
            explain(client, consumer.context(), error, |wait| {
                drop(consumer.poll(wait));
            })
        })?;
        facts.brokers = brokers(&metadata);
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let partitions: Vec<i32> = found
            .map(|found| found.partitions().iter().map(|partition| partition.id()).collect())
            .unwrap_or_default();
        let code = found.and_then(|found| found.error()).map(RDKafkaErrorCode::from);
        facts.topics.push(TopicFacts {
            topic: topic.clone(),
            problem: problem(code, partitions.is_empty()),
            partitions: look_up(&consumer, topic, &partitions)?,
        });
    }
    Ok(facts)
}

fn ask_publisher(
    client: &ClientConfig,
    topics: &[String],
) -> Result<KafkaPublisherFacts, KafkaCheckError> {
    let producer: BaseProducer<Said> = client
        .create_with_context(Said::default())
        .map_err(|error| KafkaConfigError::Refused(error.to_string()))?;
    let mut facts = KafkaPublisherFacts { brokers: Vec::new(), topics: Vec::new() };
    for topic in topics {
        let metadata = producer.client().fetch_metadata(Some(topic), WAIT).map_err(|error| {
            explain(client, producer.context(), error, |wait| producer.poll(wait))
        })?;
        facts.brokers = brokers(&metadata);
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let partitions = found.map_or(0, |found| found.partitions().len());
        let problem = match found.and_then(|found| found.error()).map(RDKafkaErrorCode::from) {
            Some(RDKafkaErrorCode::TopicAuthorizationFailed) => {
                Some("the user may not see it: allow Write and Describe on it".to_owned())
            }
            Some(RDKafkaErrorCode::InvalidTopic) => Some("no topic can have this name".to_owned()),
            Some(code) if code != RDKafkaErrorCode::UnknownTopicOrPartition => {
                Some(code.to_string())
            }
            _ if partitions == 0 => Some(
                "it does not exist: create it, or set allow.auto.create.topics to true in the \
                 settings"
                    .to_owned(),
            ),
            _ => None,
        };
        facts.topics.push(PublishedTopicFacts { topic: topic.clone(), partitions, problem });
    }
    Ok(facts)
}

fn brokers(metadata: &Metadata) -> Vec<String> {
    let brokers = metadata.brokers().iter();
    brokers.map(|broker| format!("{}:{}", broker.host(), broker.port())).collect()
}

fn problem(code: Option<RDKafkaErrorCode>, empty: bool) -> Option<String> {
    match code {
        Some(RDKafkaErrorCode::TopicAuthorizationFailed) => Some(
            "the user may not read it: allow Read and Describe on the topic, and Read on the group"
                .into(),
        ),
        Some(RDKafkaErrorCode::InvalidTopic) => Some("no topic can have this name".into()),
        Some(code) if code != RDKafkaErrorCode::UnknownTopicOrPartition => Some(code.to_string()),
        _ if empty => Some(
            "it does not exist (yet): Debezium makes it with the first event of its table; if \
             events were written already, compare the name with the connector's `topic.prefix`"
                .into(),
        ),
        _ => None,
    }
}

fn look_up(
    consumer: &BaseConsumer<Said>,
    topic: &str,
    partitions: &[i32],
) -> Result<Vec<PartitionFacts>, KafkaCheckError> {
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let failed = |what: String| move |source| KafkaCheckError::LookUp { what, source };
    let mut wanted = TopicPartitionList::new();
    partitions.iter().for_each(|partition| {
        wanted.add_partition(topic, *partition);
    });
    let committed = consumer
        .committed_offsets(wanted, WAIT)
        .map_err(failed(format!("what the group committed of {topic}")))?;
    let mut facts = Vec::new();
    for element in committed.elements() {
        let partition = element.partition();
        let what = || format!("partition {partition} of {topic}");
        element.error().map_err(failed(what()))?;
        let (low, high) =
            consumer.fetch_watermarks(topic, partition, WAIT).map_err(failed(what()))?;
        let committed = match element.offset() {
            Offset::Offset(offset) => Some(offset),
            Offset::Invalid
            | Offset::Stored
            | Offset::Beginning
            | Offset::End
            | Offset::OffsetTail(_) => None,
        };
        let start = Start::decide(committed, low, high);
        let from = match start {
            Start::Committed(offset) => offset,
            Start::Beginning | Start::OutOfRange { .. } => low,
        };
        facts.push(PartitionFacts {
            partition,
            low,
            high,
            committed,
            lag: high - from,
            out_of_range: matches!(start, Start::OutOfRange { .. }),
        });
    }
    facts.sort_by_key(|facts| facts.partition);
    Ok(facts)
}

fn explain(
    client: &ClientConfig,
    context: &Said,
    error: KafkaError,
    poll: impl Fn(Duration),
) -> KafkaCheckError {
    // Errors are said while polling, which brings nothing else: nothing is subscribed to.
    let mut said = None;
    for _ in 0..40 {
        poll(Duration::from_millis(50));
        said = context.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if said.is_some() {
            break;
        }
    }
    let (error, reason) = said.unwrap_or_else(|| (error.clone(), error.to_string()));
    match error.rdkafka_error_code() {
        Some(
            RDKafkaErrorCode::Authentication
            | RDKafkaErrorCode::SaslAuthenticationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed,
        ) => KafkaCheckError::Denied(reason),
        _ => KafkaCheckError::Unreachable {
            brokers: client
                .get("bootstrap.servers")
                .or_else(|| client.get("metadata.broker.list"))
                .unwrap_or_default()
                .to_owned(),
            reason,
        },
    }
}
