//! Captured changes to Fluvio topics.
//!
//! Fluvio's own producer sends in the background, and what it could not send in time may still come
//! long after: behind newer changes of the same key. So batches are sent here, one request after the
//! other for each partition, each answered before the next. What a dead connection still holds can be
//! written late all the same, since Fluvio knows no idempotent producers; nothing is left out by that.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use fluvio::dataplane::link::ErrorCode;
use fluvio::dataplane::record::{Batch, RawRecords, Record, RecordData, RecordKey};
use fluvio::metadata::topic::CompressionAlgorithm;
use fluvio::{Compression, FluvioClusterConfig, Isolation};
use fluvio_spu_schema::produce::{
    DefaultPartitionRequest, DefaultProduceRequest, DefaultTopicRequest,
};
use futures::future::join_all;
use metrics::counter;
use siphasher::sip::SipHasher;
use tokio::sync::Mutex;
use tombstream_model::{Message, PublishError, Publisher};
use tracing::info;

use super::cluster::Cluster;
use super::config::{FluvioCompression, FluvioConfigError, FluvioPublisherConfig, is_name};
use super::fault::Fault;
use super::spu::{Address, Spu};

/// How many messages all in-sync replicas have taken, by `topic`.
const PUBLISHED: &str = "tombstream_fluvio_published_total";
/// How many batches failed, by `kind`: `retry` or `halt`.
const ERRORS: &str = "tombstream_fluvio_publish_errors_total";

/// Most bytes of one request, unless one message alone is larger: far below what an SPU takes, and what
/// a consumer asks for at once.
const REQUEST_BYTES_MAX: usize = 512 << 10;
/// How long the followers may take; less than an answer is waited for.
const REPLICA_WAIT: Duration = Duration::from_secs(8);

/// Publishes to Fluvio. One batch at a time; a second call waits.
///
/// A batch whose future is dropped is sent to its end all the same: otherwise some of it could be
/// written after what is published next.
pub struct FluvioPublisher {
    inner: Arc<Inner>,
}

struct Inner {
    config: FluvioPublisherConfig,
    cluster: FluvioClusterConfig,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    controller: Option<Cluster>,
    topics: HashMap<Arc<str>, Topic>,
    /// Connections that no request is on. One that is given up half-way never comes back here.
    spus: HashMap<Key, Spu>,
    /// Where the next message without a key goes.
    turn: u32,
}

type Key = (Arc<str>, u32);

#[derive(Clone)]
struct Topic {
    leaders: Vec<Address>,
    compression: Compression,
}

/// Why a partition did not take its part.
enum Failure {
    Fault(Fault),
    TooLarge { bytes: usize },
}

impl FluvioPublisher {
    /// A publisher to the configured cluster. It connects with the first batch.
    pub fn new(config: FluvioPublisherConfig) -> Result<Self, FluvioConfigError> {
        let cluster = config.cluster()?;
        Ok(Self { inner: Arc::new(Inner { config, cluster, state: Mutex::default() }) })
    }
}

impl Inner {
    async fn publish(&self, batch: Vec<Message>) -> Result<(), PublishError> {
        let mut state = self.state.lock().await;
        let result = self.send(&mut state, batch).await;
        if let Err(error) = &result {
            // Whoever leads now is asked for anew, over new connections.
            *state = State { turn: state.turn, ..State::default() };
            let kind = match error {
                PublishError::Unavailable(_) => "retry",
                PublishError::Fatal(_) => "halt",
            };
            counter!(ERRORS, "kind" => kind).increment(1);
        }
        result
    }

    async fn send(&self, state: &mut State, batch: Vec<Message>) -> Result<(), PublishError> {
        for message in &batch {
            if !state.topics.contains_key(&message.topic) {
                let topic = self.look_up(state, &message.topic).await?;
                state.topics.insert(Arc::clone(&message.topic), topic);
            }
        }
        let mut parts: BTreeMap<Key, Vec<Message>> = BTreeMap::new();
        for message in batch {
            let partitions = state.topics[&message.topic].leaders.len();
            let partitions = u32::try_from(partitions).expect("numbers of partitions are 32 bits");
            let partition = match &message.key {
                Some(key) => partition_of(key, partitions),
                None => {
                    state.turn = state.turn.wrapping_add(1);
                    state.turn % partitions
                }
            };
            parts.entry((Arc::clone(&message.topic), partition)).or_default().push(message);
        }
        let sending = parts.into_iter().map(|(key, messages)| {
            let topic = state.topics[&key.0].clone();
            let connected = state.spus.remove(&key);
            async move {
                let count = messages.len();
                let sent = self.send_part(&key, &topic, connected, messages).await;
                (key, count, sent)
            }
        });
        // Every part is waited for, so that nothing of the batch is on its way when this returns.
        let mut result = Ok(());
        for (key, count, sent) in join_all(sending).await {
            match sent {
                Ok(spu) => {
                    let count = u64::try_from(count).unwrap_or(u64::MAX);
                    counter!(PUBLISHED, "topic" => key.0.to_string()).increment(count);
                    state.spus.insert(key, spu);
                }
                Err(failure) => result = result.and(Err(judge(&key.0, failure))),
            }
        }
        result
    }

    /// Where a topic's partitions are; makes it, if that is configured.
    async fn look_up(&self, state: &mut State, name: &Arc<str>) -> Result<Topic, PublishError> {
        if !is_name(name) {
            return Err(PublishError::Fatal(
                FluvioConfigError::Topic(name.to_string()).to_string(),
            ));
        }
        let unavailable = |fault: Fault| PublishError::Unavailable(Box::new(fault));
        let controller = match &state.controller {
            Some(controller) => controller,
            None => {
                let made = Cluster::connect(&self.cluster).await.map_err(unavailable)?;
                state.controller.insert(made)
            }
        };
        let mut layout = controller.layout([name]).await.map_err(unavailable)?;
        if let (None, Some(with)) = (layout.topics.get(name), &self.config.create) {
            controller.create(name, with).await.map_err(unavailable)?;
            info!(topic = %name, partitions = with.partitions, replicas = with.replicas, "topic made");
            layout = controller.layout([name]).await.map_err(unavailable)?;
        }
        let what = || format!("topic {name}");
        let Some(found) = layout.topics.remove(name) else {
            let why = "it does not exist: create it, or say with which partitions it shall be made";
            return Err(unavailable(Fault::broken(what(), why)));
        };
        let leaders: Option<Vec<Address>> = found.leaders.into_values().collect();
        let leaders = leaders.filter(|leaders| !leaders.is_empty()).ok_or_else(|| {
            unavailable(Fault::broken(what(), "a partition of it has no leader (yet)"))
        })?;
        Ok(Topic { leaders, compression: codec(&found.compression, self.config.compression) })
    }

    async fn send_part(
        &self,
        (name, partition): &Key,
        topic: &Topic,
        connected: Option<Spu>,
        messages: Vec<Message>,
    ) -> Result<Spu, Failure> {
        let leader = &topic.leaders[usize::try_from(*partition).expect("32 bits fit")];
        let spu = match connected {
            Some(spu) if !spu.is_stale() => spu,
            _ => Spu::connect(&self.cluster, leader).await.map_err(Failure::Fault)?,
        };
        let mut left = VecDeque::from(chunks(messages));
        while let Some(mut chunk) = left.pop_front() {
            let bytes = chunk.iter().map(length).sum();
            let what = || format!("partition {partition} of {name} at {}", leader.endpoint);
            let request = request(name, *partition, &chunk, topic.compression)
                .map_err(|why| Failure::Fault(Fault::broken(what(), why)))?;
            let answer = spu.produce("publishing", request).await.map_err(Failure::Fault)?;
            match answer.find_partition_response(name, *partition) {
                // More than a segment of the topic holds. Nothing of it was written.
                Some(found) if found.error_code == ErrorCode::MessageTooLarge => {
                    if chunk.len() == 1 {
                        return Err(Failure::TooLarge { bytes });
                    }
                    let second = chunk.split_off(chunk.len() / 2);
                    left.push_front(second);
                    left.push_front(chunk);
                }
                Some(found) => {
                    Fault::check(found.error_code.clone(), what).map_err(Failure::Fault)?;
                }
                None => return Err(Failure::Fault(Fault::broken(what(), "not in the answer"))),
            }
        }
        Ok(spu)
    }
}

impl Publisher for FluvioPublisher {
    async fn publish(&self, batch: Vec<Message>) -> Result<(), PublishError> {
        let inner = Arc::clone(&self.inner);
        match tokio::spawn(async move { inner.publish(batch).await }).await {
            Ok(result) => result,
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(cancelled) => Err(PublishError::Unavailable(Box::new(cancelled))),
            },
        }
    }
}

fn judge(topic: &str, failure: Failure) -> PublishError {
    match failure {
        Failure::Fault(fault) => PublishError::Unavailable(Box::new(fault)),
        Failure::TooLarge { bytes } => PublishError::Fatal(format!(
            "a message of {bytes} bytes for topic {topic} is too large: make the topic with a larger \
             segment size, or raise the SPU's max_request_size"
        )),
    }
}

/// The partition where Fluvio's own producer puts a key.
fn partition_of(key: &[u8], partitions: u32) -> u32 {
    let mut hasher = SipHasher::new();
    key.hash(&mut hasher);
    u32::try_from(hasher.finish() % u64::from(partitions)).expect("less than 32 bits")
}

/// The topic's codec, where it has one: an SPU refuses every other.
fn codec(topic: &CompressionAlgorithm, own: FluvioCompression) -> Compression {
    match (topic, own) {
        (CompressionAlgorithm::Gzip, _) | (CompressionAlgorithm::Any, FluvioCompression::Gzip) => {
            Compression::Gzip
        }
        (CompressionAlgorithm::Snappy, _)
        | (CompressionAlgorithm::Any, FluvioCompression::Snappy) => Compression::Snappy,
        (CompressionAlgorithm::Lz4, _) | (CompressionAlgorithm::Any, FluvioCompression::Lz4) => {
            Compression::Lz4
        }
        (CompressionAlgorithm::Zstd, _) | (CompressionAlgorithm::Any, FluvioCompression::Zstd) => {
            Compression::Zstd
        }
        (CompressionAlgorithm::None, _) | (CompressionAlgorithm::Any, FluvioCompression::None) => {
            Compression::None
        }
    }
}

fn length(message: &Message) -> usize {
    let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
    length(&message.key) + length(&message.value)
}

/// The messages in requests of a bearable size, in their order.
fn chunks(messages: Vec<Message>) -> Vec<Vec<Message>> {
    let mut chunks = Vec::new();
    let (mut chunk, mut bytes) = (Vec::new(), 0);
    for message in messages {
        if !chunk.is_empty() && bytes + length(&message) > REQUEST_BYTES_MAX {
            chunks.push(std::mem::take(&mut chunk));
            bytes = 0;
        }
        bytes += length(&message);
        chunk.push(message);
    }
    chunks.extend((!chunk.is_empty()).then_some(chunk));
    chunks
}

fn request(
    name: &str,
    partition: u32,
    messages: &[Message],
    codec: Compression,
) -> Result<DefaultProduceRequest, String> {
    let mut records = Vec::with_capacity(messages.len());
    for message in messages {
        let data = |bytes: &Bytes| RecordData::from(bytes.to_vec());
        // Fluvio has no null values: a tombstone is an empty one.
        let value = message.value.as_ref().map_or_else(RecordData::default, data);
        let key = message.key.as_ref().map_or(RecordKey::NULL, |key| RecordKey::from(data(key)));
        records.push(Record::new_key_value(key, value));
    }
    let mut batch = Batch::new();
    batch.add_records(&mut records);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
    batch.header.first_timestamp = now;
    batch.header.max_time_stamp = now;
    batch.header.set_compression(codec);
    let batch: Batch<RawRecords> =
        batch.try_into().map_err(|error: CodecError| error.to_string())?;
    let mut part = DefaultPartitionRequest { partition_index: partition, ..Default::default() };
    part.records.batches.push(batch);
    let mut topic = DefaultTopicRequest { name: name.to_owned(), ..Default::default() };
    topic.partitions.push(part);
    let mut request = DefaultProduceRequest {
        isolation: Isolation::ReadCommitted,
        timeout: REPLICA_WAIT,
        ..Default::default()
    };
    request.topics.push(topic);
    Ok(request)
}

/// What packing a batch fails with.
type CodecError = <Batch<RawRecords> as TryFrom<Batch>>::Error;

impl fmt::Debug for FluvioPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FluvioPublisher")
            .field("config", &self.inner.config)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(value: usize) -> Message {
        Message { topic: "t".into(), key: None, value: Some(Bytes::from(vec![0; value])) }
    }

    #[test]
    fn requests_are_of_a_bearable_size_and_keep_the_order() {
        let sizes = [10, REQUEST_BYTES_MAX - 10, 1, 3 * REQUEST_BYTES_MAX, 5, 6];
        let chunks = chunks(sizes.into_iter().map(message).collect());
        let sizes: Vec<Vec<usize>> =
            chunks.iter().map(|chunk| chunk.iter().map(length).collect()).collect();
        let expected: [&[usize]; 4] =
            [&[10, REQUEST_BYTES_MAX - 10], &[1], &[3 * REQUEST_BYTES_MAX], &[5, 6]];
        assert_eq!(sizes, expected);
        assert!(super::chunks(Vec::new()).is_empty());
    }

    #[test]
    fn the_topic_decides_the_codec_where_it_has_one() {
        let codec = |topic, own| codec(&topic, own);
        use CompressionAlgorithm as Topic;
        use FluvioCompression as Own;
        assert_eq!(codec(Topic::Any, Own::Zstd), Compression::Zstd);
        assert_eq!(codec(Topic::Any, Own::None), Compression::None);
        assert_eq!(codec(Topic::Gzip, Own::Zstd), Compression::Gzip);
        assert_eq!(codec(Topic::None, Own::Zstd), Compression::None);
    }

    #[tokio::test]
    async fn a_name_that_no_topic_can_have_halts() {
        let publisher = FluvioPublisher::new(FluvioPublisherConfig::new("127.0.0.1:1")).unwrap();
        let message = Message { topic: "app.public.documents".into(), key: None, value: None };
        let error = publisher.publish(vec![message]).await.unwrap_err();
        assert!(matches!(&error, PublishError::Fatal(said) if said.contains("lower-case")));
    }

    #[tokio::test]
    async fn a_cluster_that_is_not_there_is_unavailable_and_named() {
        let publisher = FluvioPublisher::new(FluvioPublisherConfig::new("127.0.0.1:1")).unwrap();
        let error = publisher.publish(vec![message(1)]).await.unwrap_err();
        let said = std::error::Error::source(&error).unwrap().to_string();
        assert!(matches!(error, PublishError::Unavailable(_)) && said.contains("127.0.0.1:1"));
    }
}
