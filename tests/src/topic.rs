//! A Kafka topic, and records written to it without Debezium.

use anyhow::{Context, Result, bail};
use futures::stream::{FuturesUnordered, StreamExt};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{FutureProducer, FutureRecord};
use std::time::Duration;

const ANSWER_MAX: Duration = Duration::from_secs(30);

/// A topic of one's own.
pub struct Topic {
    admin: AdminClient<DefaultClientContext>,
    producer: FutureProducer,
    name: String,
}

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
        Ok(Self { admin, producer, name: name.to_owned() })
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

    pub async fn remove(&self) -> Result<()> {
        self.admin.delete_topics(&[&self.name], &options()).await?;
        Ok(())
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(ANSWER_MAX))
}
