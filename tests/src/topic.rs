//! A Kafka topic, and records written to it without Debezium.

use anyhow::{Context, Result, bail};
use futures::stream::{FuturesUnordered, StreamExt};
use rdkafka::ClientConfig;
use rdkafka::Message as _;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::time::Duration;

const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Records on their way at a time: below what the producer's queue holds.
const AT_ONCE: usize = 20_000;

/// A topic of one's own.
pub struct Topic {
    admin: AdminClient<DefaultClientContext>,
    producer: FutureProducer,
    brokers: String,
    name: String,
    partitions: i32,
}

/// A record, key and value; either may be null.
pub type Record = (Option<Vec<u8>>, Option<Vec<u8>>);

/// Where the broker put a record: its partition and offset.
pub type Place = (i32, i64);

impl Topic {
    /// Makes it with so many partitions.
    pub async fn make(brokers: &str, name: &str, partitions: i32) -> Result<Self> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers);
        let admin: AdminClient<DefaultClientContext> = config.create()?;
        let producer = config.set("linger.ms", "1").set("acks", "all").create()?;
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        let answers = admin.create_topics([&topic], &options()).await?;
        for answer in answers {
            if let Err((name, code)) = answer {
                bail!("topic {name} was not made: {code}");
            }
        }
        Ok(Self { admin, producer, brokers: brokers.to_owned(), name: name.to_owned(), partitions })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Writes records, key and value; returns once the broker has them all.
    pub async fn write<'a>(
        &self,
        records: impl IntoIterator<Item = (&'a [u8], Option<&'a [u8]>)>,
    ) -> Result<()> {
        let mut sent: FuturesUnordered<_> = records
            .into_iter()
            .map(|(key, value)| {
                let mut record = FutureRecord::<[u8], [u8]>::to(&self.name).key(key);
                record.payload = value;
                self.producer.send(record, ANSWER_MAX)
            })
            .collect();
        while let Some(answer) = sent.next().await {
            answer.map_err(|(error, _)| error).context("a record was not taken")?;
        }
        Ok(())
    }

    /// Writes records in their order, and says in the same order where the broker put each.
    pub async fn append(&self, records: &[Record]) -> Result<Vec<Place>> {
        let mut places = Vec::with_capacity(records.len());
        for some in records.chunks(AT_ONCE) {
            let mut sent = Vec::with_capacity(some.len());
            for (key, value) in some {
                let mut record = FutureRecord::<[u8], [u8]>::to(&self.name);
                record.key = key.as_deref();
                record.payload = value.as_deref();
                // In the queue at once, so in the partition in this order.
                let answer = self.producer.send_result(record).map_err(|(error, _)| error);
                sent.push(answer.context("a record was not queued")?);
            }
            for answer in sent {
                let answer = answer.await.context("the producer has ended")?;
                let put = answer.map_err(|(error, _)| error).context("a record was not taken")?;
                places.push((put.partition, put.offset));
            }
        }
        Ok(places)
    }

    /// What the group has committed, and where the log ends, for each partition in its order.
    pub async fn progress(&self, group: &str) -> Result<Vec<(i64, i64)>> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers).set("group.id", group);
        let (name, partitions) = (self.name.clone(), self.partitions);
        let ask = move || {
            let consumer: BaseConsumer = config.create()?;
            let mut list = TopicPartitionList::new();
            for partition in 0..partitions {
                list.add_partition(&name, partition);
            }
            let committed = consumer.committed_offsets(list, ANSWER_MAX)?;
            let mut progress = Vec::new();
            for partition in 0..partitions {
                let known = committed.find_partition(&name, partition).map(|found| found.offset());
                let known = match known {
                    Some(Offset::Offset(offset)) => offset,
                    _ => 0,
                };
                let (_, end) = consumer.fetch_watermarks(&name, partition, ANSWER_MAX)?;
                progress.push((known, end));
            }
            anyhow::Ok(progress)
        };
        tokio::task::spawn_blocking(ask).await?
    }

    /// All of its records so far, partition by partition, each in its order.
    pub async fn records(&self) -> Result<Vec<Record>> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers).set("group.id", "reader");
        config.set("enable.auto.commit", "false");
        let (name, partitions) = (self.name.clone(), self.partitions);
        let read = move || {
            let consumer: BaseConsumer = config.create()?;
            let mut records = Vec::new();
            for partition in 0..partitions {
                let (low, end) = consumer.fetch_watermarks(&name, partition, ANSWER_MAX)?;
                if low == end {
                    continue;
                }
                let mut list = TopicPartitionList::new();
                list.add_partition_offset(&name, partition, Offset::Offset(low))?;
                consumer.assign(&list)?;
                loop {
                    let message = consumer.poll(ANSWER_MAX).context("no record in time")??;
                    let bytes = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
                    records.push((bytes(message.key()), bytes(message.payload())));
                    if message.offset() + 1 >= end {
                        break;
                    }
                }
            }
            anyhow::Ok(records)
        };
        tokio::task::spawn_blocking(read).await?
    }

    pub async fn remove(&self) -> Result<()> {
        self.admin.delete_topics(&[&self.name], &options()).await?;
        Ok(())
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(ANSWER_MAX))
}
