//! What `tombstream check --live` says of Fluvio. Commits nothing, makes no topic.

use std::sync::Arc;

use fluvio::FluvioClusterConfig;
use serde::Serialize;

use super::cluster::{Cluster, Layout};
use super::config::{FluvioConfig, FluvioConfigError, FluvioPublisherConfig};
use super::fault::Fault;
use super::reader::committed;
use super::spu::Spu;
use crate::log::Start;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FluvioFacts {
    /// The platform's version, as the controller says.
    pub version: String,
    /// The topics, in the order asked for.
    pub topics: Vec<FluvioTopicFacts>,
}

/// What was found of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FluvioTopicFacts {
    /// Its name.
    pub topic: String,
    /// Its partitions; of a topic that is published to, without offsets.
    pub partitions: Vec<FluvioPartitionFacts>,
    /// What is wrong with it, and what to do.
    pub problem: Option<String>,
}

/// What was found of a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FluvioPartitionFacts {
    /// Its number.
    pub partition: u32,
    /// The first offset in the log.
    pub low: i64,
    /// The offset after the last one that all in-sync replicas have.
    pub high: i64,
    /// What is read next, by what the consumer committed.
    pub committed: Option<i64>,
    /// How many events the consumer has not committed.
    pub lag: i64,
    /// Whether what the consumer committed is not in the log: events may be lost.
    pub out_of_range: bool,
}

/// Why nothing could be found out.
#[derive(Debug, thiserror::Error)]
pub enum FluvioCheckError {
    /// The configuration can't be used.
    #[error(transparent)]
    Config(#[from] FluvioConfigError),
    /// The cluster does not answer, or not this.
    #[error("{0}")]
    Unanswered(String),
}

impl From<Fault> for FluvioCheckError {
    fn from(fault: Fault) -> Self {
        Self::Unanswered(fault.chain())
    }
}

/// Asks the cluster about `topics` and about what the consumer committed of them.
pub async fn check(
    config: &FluvioConfig,
    topics: &[String],
) -> Result<FluvioFacts, FluvioCheckError> {
    config.validate(topics)?;
    let cluster = config.cluster()?;
    let (version, layout) = look(&cluster, topics).await?;
    let committed = committed(&cluster, &layout, &config.consumer).await?;
    let mut facts = FluvioFacts { version, topics: Vec::new() };
    for topic in topics {
        let mut found = of_topic(&layout, topic, "create it, or correct `topics` of the relation");
        let leaders = layout.topics.get(&**topic).into_iter().flat_map(|found| &found.leaders);
        for (partition, leader) in leaders {
            let Some(leader) = leader else { continue };
            let spu = Spu::connect(&cluster, leader).await?;
            let (low, high) = spu.range(topic, *partition).await?;
            let committed = committed.get(&(topic.clone(), *partition)).copied();
            let start = Start::decide(committed, low, high);
            let from = match start {
                Start::Committed(next) => next,
                Start::Beginning | Start::OutOfRange { .. } => low,
            };
            found.partitions.push(FluvioPartitionFacts {
                partition: *partition,
                low,
                high,
                committed,
                lag: high - from,
                out_of_range: matches!(start, Start::OutOfRange { .. }),
            });
        }
        facts.topics.push(found);
    }
    Ok(facts)
}

/// Asks the cluster whether `topics` can be published to.
pub async fn check_publisher(
    config: &FluvioPublisherConfig,
    topics: &[String],
) -> Result<FluvioFacts, FluvioCheckError> {
    config.validate(topics)?;
    let cluster = config.cluster()?;
    let (version, layout) = look(&cluster, topics).await?;
    let topics = topics.iter().map(|topic| match (layout.topics.get(&**topic), &config.create) {
        (None, Some(_)) => {
            FluvioTopicFacts { topic: topic.clone(), partitions: Vec::new(), problem: None }
        }
        (_, _) => of_topic(&layout, topic, "create it, or say with which partitions it is made"),
    });
    Ok(FluvioFacts { version, topics: topics.collect() })
}

async fn look(
    cluster: &FluvioClusterConfig,
    topics: &[String],
) -> Result<(String, Layout), FluvioCheckError> {
    let controller = Cluster::connect(cluster).await?;
    let names: Vec<Arc<str>> = topics.iter().map(|topic| topic.as_str().into()).collect();
    let layout = controller.layout(&names).await?;
    Ok((controller.version, layout))
}

fn of_topic(layout: &Layout, topic: &str, missing: &str) -> FluvioTopicFacts {
    let problem = match layout.topics.get(topic) {
        None => Some(format!("it does not exist (yet): {missing}")),
        Some(found) => {
            let none = found.leaders.iter().find(|(_, leader)| leader.is_none());
            none.map(|(partition, _)| {
                format!("partition {partition} has no leader: does its SPU run?")
            })
        }
    };
    FluvioTopicFacts { topic: topic.to_owned(), partitions: Vec::new(), problem }
}
