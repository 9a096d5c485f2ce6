//! Parts of topics, read once: from offsets or times to the end that was there when reading began.
//!
//! Partitions are assigned by hand, under a group of a random name: nobody is rebalanced, and nothing is ever
//! committed, so that the group of the live pipeline stays where it is (`a_replay_moves_no_group`). Topic after
//! topic, since librdkafka tells of a partition's end without its topic.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::Consumer;
use rdkafka::consumer::base_consumer::BaseConsumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::mpsc;
use tombstream_model::{Event, Mark, Origin, Polled, Records, Source, SourceError};
use tracing::info;

use super::check::Said;
use super::config::{KafkaConfig, KafkaConfigError};

/// How long one question about offsets may take.
const WAIT: Duration = Duration::from_secs(10);
/// How long a message is waited for before what is there is handed on.
const POLL: Duration = Duration::from_millis(100);
/// After how many polls without a message, while no broker can be reached, that is said: five seconds.
const SILENT_POLLS: u32 = 50;
/// Bytes after which a poll is full, though it has few events.
const POLL_BYTES: usize = 4 << 20;

/// A stretch of one partition, both ends in it: `documents:0:100-200`, `documents:0:100-`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetSpan {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The first offset.
    pub first: i64,
    /// The last one. None: the last that there is.
    pub last: Option<i64>,
}

impl FromStr for OffsetSpan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || "write TOPIC:PARTITION:FIRST-LAST, or TOPIC:PARTITION:FIRST- to the end".to_owned();
        let (rest, span) = text.rsplit_once(':').ok_or_else(wrong)?;
        let (topic, partition) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let (first, last) = span.split_once('-').ok_or_else(wrong)?;
        let number = |text: &str| text.parse::<i64>().map_err(|_| wrong());
        let last = (!last.is_empty()).then(|| number(last)).transpose()?;
        let read = Self {
            topic: topic.to_owned(),
            partition: partition.parse().map_err(|_| wrong())?,
            first: number(first)?,
            last,
        };
        let is_one = !topic.is_empty() && read.partition >= 0;
        match is_one && read.last.is_none_or(|last| last >= read.first) {
            true => Ok(read),
            false => Err(wrong()),
        }
    }
}

/// What of the topics is read.
#[derive(Clone, Debug, Default)]
pub struct KafkaSpan {
    /// The topics; none beside `offsets`.
    pub topics: Vec<String>,
    /// Only these partitions. None named: all.
    pub partitions: Vec<i32>,
    /// From the first event that was written at this time or later.
    pub from: Option<DateTime<Utc>>,
    /// Up to the first event that was written at this time or later, without it.
    pub to: Option<DateTime<Utc>>,
    /// Stretches of partitions, instead of all that.
    pub offsets: Vec<OffsetSpan>,
}

/// Why nothing is read.
#[derive(Debug, thiserror::Error)]
pub enum KafkaReplayError {
    /// The settings.
    #[error(transparent)]
    Config(#[from] KafkaConfigError),
    /// What was asked for is not there.
    #[error("{0}")]
    Refused(String),
    /// The brokers don't say.
    #[error("{what} can't be looked up ({said})")]
    LookUp {
        /// What was asked.
        what: String,
        /// What librdkafka said beside.
        said: String,
        /// The answer.
        #[source]
        source: Box<KafkaError>,
    },
}

/// A stretch of one partition with its end, which is not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stretch {
    partition: i32,
    next: i64,
    end: i64,
}

/// Parts of topics, read once.
pub struct KafkaReplay {
    events: mpsc::Receiver<Result<Vec<Event>, SourceError>>,
    total: i64,
    has_ended: bool,
    /// Ends when nobody takes what it reads.
    _reader: JoinHandle<()>,
}

impl KafkaReplay {
    /// Looks up where `span` begins and ends, and begins to read.
    pub async fn open(config: &KafkaConfig, span: KafkaSpan) -> Result<Self, KafkaReplayError> {
        let group = format!("tombstream-replay-{:016x}", rand::random::<u64>());
        let mut client = KafkaConfig { group, ..config.clone() }.client()?;
        client.set("enable.partition.eof", "true");
        let items_max = config.items_max.get();
        let (asked, topics) = (client.clone(), span);
        let planned = tokio::task::spawn_blocking(move || plan(&asked, &topics)).await;
        let topics =
            planned.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        let lengths = topics.values().flatten().map(|stretch| stretch.end - stretch.next);
        let total = lengths.sum();
        info!(topics = topics.len(), events = total, "replaying from kafka");
        let (to, events) = mpsc::channel(4);
        let reader = std::thread::Builder::new()
            .name("kafka-replay".into())
            .spawn(move || {
                for (topic, stretches) in topics {
                    let reader = Reader { topic: topic.into(), items_max, to: to.clone() };
                    if reader.read(&client, stretches).is_none() {
                        return;
                    }
                }
                // Said, since a thread that dies ends the channel, too. Whoever is gone needs no end.
                drop(to.blocking_send(Ok(Vec::new())));
            })
            .map_err(|error| KafkaConfigError::Refused(error.to_string()))?;
        Ok(Self { events, total, has_ended: false, _reader: reader })
    }

    /// How many offsets there are to read. A compacted topic has fewer events.
    pub fn total(&self) -> i64 {
        self.total
    }
}

fn plan(
    client: &ClientConfig,
    span: &KafkaSpan,
) -> Result<BTreeMap<String, Vec<Stretch>>, KafkaReplayError> {
    let consumer: BaseConsumer<Said> = client
        .create_with_context(Said::default())
        .map_err(|error| KafkaConfigError::Refused(error.to_string()))?;
    let asks = Asks(&consumer);
    let mut topics: BTreeMap<String, Vec<Stretch>> = BTreeMap::new();
    for OffsetSpan { topic, partition, first, last } in &span.offsets {
        let (low, high) = asks.bounds(topic, *partition)?;
        if *first < low || *first > high {
            return Err(KafkaReplayError::Refused(format!(
                "{topic}:{partition} has the offsets {low} to {high}, and {first} is none of them: what retention has \
                 taken is in the archive, if there is one"
            )));
        }
        let end = last.map_or(high, |last| last.saturating_add(1).min(high));
        topics.entry(topic.clone()).or_default().push(Stretch {
            partition: *partition,
            next: *first,
            end,
        });
    }
    for topic in &span.topics {
        let all = asks.partitions(topic)?;
        if let Some(none) = span.partitions.iter().find(|wanted| !all.contains(wanted)) {
            let count = all.len();
            return Err(KafkaReplayError::Refused(format!(
                "{topic} has {count} partitions, numbered from 0, and {none} is none of them"
            )));
        }
        let is_chosen = |it: &i32| span.partitions.is_empty() || span.partitions.contains(it);
        for partition in all.into_iter().filter(is_chosen) {
            let (low, high) = asks.bounds(topic, partition)?;
            let next = asks.at(topic, partition, span.from.as_ref())?;
            let end = asks.at(topic, partition, span.to.as_ref())?;
            let next = if span.from.is_some() { next.unwrap_or(high) } else { low };
            let end = end.unwrap_or(high);
            topics.entry(topic.clone()).or_default().push(Stretch { partition, next, end });
        }
    }
    for stretches in topics.values_mut() {
        stretches.sort_by_key(|stretch| (stretch.partition, stretch.next));
        for pair in stretches.windows(2) {
            if pair[0].partition == pair[1].partition {
                return Err(KafkaReplayError::Refused(format!(
                    "partition {} is named twice in --offsets: one stretch of it at a time",
                    pair[0].partition
                )));
            }
        }
        stretches.retain(|stretch| stretch.next < stretch.end);
    }
    topics.retain(|_, stretches| !stretches.is_empty());
    Ok(topics)
}

/// Questions about offsets.
struct Asks<'a>(&'a BaseConsumer<Said>);

impl Asks<'_> {
    fn failed(&self, what: String, source: KafkaError) -> KafkaReplayError {
        let said = self.0.context().0.lock().unwrap_or_else(PoisonError::into_inner);
        let said = said.as_ref().map_or_else(|| "no more is known".to_owned(), |it| it.1.clone());
        KafkaReplayError::LookUp { what, said, source: Box::new(source) }
    }

    fn partitions(&self, topic: &str) -> Result<Vec<i32>, KafkaReplayError> {
        let found = self.0.fetch_metadata(Some(topic), WAIT);
        let found = found.map_err(|error| self.failed(format!("topic {topic}"), error))?;
        let found = found.topics().iter().find(|found| found.name() == topic);
        let partitions: Vec<i32> = found
            .map(|found| found.partitions().iter().map(|it| it.id()).collect())
            .unwrap_or_default();
        match partitions.is_empty() {
            false => Ok(partitions),
            true => Err(KafkaReplayError::Refused(format!(
                "there is no topic {topic}, or the user may not see it"
            ))),
        }
    }

    fn bounds(&self, topic: &str, partition: i32) -> Result<(i64, i64), KafkaReplayError> {
        let bounds = self.0.fetch_watermarks(topic, partition, WAIT);
        bounds.map_err(|error| self.failed(format!("what is in {topic}:{partition}"), error))
    }

    /// The first offset of that time or later, if there is one.
    fn at(
        &self,
        topic: &str,
        partition: i32,
        time: Option<&DateTime<Utc>>,
    ) -> Result<Option<i64>, KafkaReplayError> {
        let Some(time) = time else { return Ok(None) };
        let failed = |error| self.failed(format!("the time {time} in {topic}:{partition}"), error);
        let mut asked = TopicPartitionList::new();
        let offset = Offset::Offset(time.timestamp_millis());
        asked.add_partition_offset(topic, partition, offset).map_err(failed)?;
        let found = self.0.offsets_for_times(asked, WAIT).map_err(failed)?;
        let found = found.find_partition(topic, partition).map(|found| found.offset());
        Ok(match found {
            Some(Offset::Offset(offset)) => Some(offset),
            _ => None,
        })
    }
}

/// Reads one topic.
struct Reader {
    topic: Arc<str>,
    items_max: usize,
    to: mpsc::Sender<Result<Vec<Event>, SourceError>>,
}

impl Reader {
    /// None: nobody takes what is read, or it was said why no more is.
    fn read(&self, client: &ClientConfig, stretches: Vec<Stretch>) -> Option<()> {
        let consumer = match self.assigned(client, &stretches) {
            Ok(consumer) => consumer,
            Err(error) => {
                self.fatal(&format!("{} can't be assigned: {error}", self.topic));
                return None;
            }
        };
        let mut left: BTreeMap<i32, i64> =
            stretches.iter().map(|stretch| (stretch.partition, stretch.end)).collect();
        let (mut events, mut bytes, mut silent) = (Vec::new(), 0, 0);
        while !left.is_empty() {
            match consumer.poll(POLL) {
                None => silent += 1,
                Some(Ok(message)) => {
                    silent = 0;
                    let (partition, offset) = (message.partition(), message.offset());
                    let Some(end) = left.get(&partition).copied() else { continue };
                    if offset < end {
                        let event = self.event(&message);
                        bytes += event.value.as_ref().map_or(0, Bytes::len);
                        events.push(event);
                    }
                    if offset + 1 >= end {
                        left.remove(&partition);
                    }
                }
                // The end of all that there is: of a transaction's marker, or of what was compacted.
                Some(Err(KafkaError::PartitionEOF(partition))) => drop(left.remove(&partition)),
                Some(Err(error)) => self.judge(&error, &consumer)?,
            }
            let is_full = events.len() >= self.items_max || bytes >= POLL_BYTES;
            if !events.is_empty() && (is_full || silent > 0 || left.is_empty()) {
                bytes = 0;
                self.to.blocking_send(Ok(std::mem::take(&mut events))).ok()?;
            }
            if silent >= SILENT_POLLS {
                silent = 0;
                let said = format!("{} is not answered for {:?}", self.topic, POLL * SILENT_POLLS);
                self.to.blocking_send(Err(SourceError::Unavailable(said.into()))).ok()?;
            }
        }
        Some(())
    }

    fn assigned(
        &self,
        client: &ClientConfig,
        stretches: &[Stretch],
    ) -> Result<BaseConsumer<Said>, KafkaError> {
        let consumer: BaseConsumer<Said> = client.create_with_context(Said::default())?;
        let mut all = TopicPartitionList::new();
        for Stretch { partition, next, .. } in stretches {
            all.add_partition_offset(&self.topic, *partition, Offset::Offset(*next))?;
        }
        consumer.assign(&all)?;
        Ok(consumer)
    }

    fn event(&self, message: &BorrowedMessage<'_>) -> Event {
        let topic = Arc::clone(&self.topic);
        let origin = Origin { topic, partition: message.partition(), offset: message.offset() };
        let key = message.key().map(Bytes::copy_from_slice);
        Event { origin, topic: None, key, value: message.payload().map(Bytes::copy_from_slice) }
    }

    /// What an error means. librdkafka goes on by itself after all but these.
    fn judge(&self, error: &KafkaError, consumer: &BaseConsumer<Said>) -> Option<()> {
        let said = consumer.context().0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let said = said.map_or_else(|| error.to_string(), |(_, reason)| reason);
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                self.fatal(&format!(
                    "what was to be read of {} is not in the log any more: retention was faster ({said}); what it \
                     has taken is in the archive, if there is one",
                    self.topic
                ));
                None
            }
            Some(
                RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::Authentication
                | RDKafkaErrorCode::SaslAuthenticationFailed
                | RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed,
            ) => self.to.blocking_send(Err(SourceError::Unavailable(said.into()))).ok(),
            _ => {
                tracing::warn!(%error, said, "librdkafka reported an error and goes on");
                Some(())
            }
        }
    }

    fn fatal(&self, said: &str) {
        // Whoever is gone needs no reason.
        drop(self.to.blocking_send(Err(SourceError::Fatal(said.to_owned()))));
    }
}

impl Source for KafkaReplay {
    async fn next(&mut self) -> Result<Polled, SourceError> {
        let ended = || SourceError::Fatal("the thread that reads kafka ended by itself".to_owned());
        let events = self.events.recv().await.ok_or_else(ended)??;
        // What is read is never empty: it is the end.
        self.has_ended = events.is_empty();
        Ok(Polled { records: Records::Events(events), marks: Vec::new() })
    }

    async fn commit(&mut self, _marks: Vec<Mark>) -> Result<(), SourceError> {
        Ok(())
    }

    fn has_ended(&self) -> bool {
        self.has_ended
    }

    fn pause(&mut self, _topic: &str) -> Result<(), SourceError> {
        Ok(())
    }
}

impl fmt::Debug for KafkaReplay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaReplay").field("total", &self.total).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_of_a_partition_is_read_and_what_is_none_is_refused() {
        let read = |text: &str| text.parse::<OffsetSpan>();
        let span =
            |first, last| Ok(OffsetSpan { topic: "a.b:c-d".to_owned(), partition: 2, first, last });
        assert_eq!(read("a.b:c-d:2:10-20"), span(10, Some(20)));
        assert_eq!(read("a.b:c-d:2:7-7"), span(7, Some(7)));
        assert_eq!(read("a.b:c-d:2:10-"), span(10, None));
        for wrong in ["", "t", "t:0", "t:0:1", ":0:1-2", "t:x:1-2", "t:-1:1-2", "t:0:2-1", "t:0:-5"]
        {
            assert!(read(wrong).unwrap_err().contains("TOPIC:PARTITION:FIRST-LAST"), "{wrong}");
        }
    }
}
