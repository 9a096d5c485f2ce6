//! Change events from Kafka topics, by one consumer group; and captured changes to topics.
//!
//! Owns where reading starts, which offsets are committed and how, and what becomes of a rebalance.
//! Leaves to others what an event means (it goes on as bytes), and when its offset may be committed:
//! [`Source::commit`](tombstream_model::Source::commit) is called behind the pipeline's frontier.
//!
//! A thread of its own (`reader`) polls librdkafka, so that rebalances are answered while the
//! pipeline waits for something else; another one (`committer`) commits. What may be
//! committed is decided in `log`, without I/O; `context` is what librdkafka calls back. `publisher` is
//! the other way: it shares the settings, and nothing else. So does `replay`, which reads a part of the topics
//! once, without a group.

mod burst;
mod check;
mod committer;
mod config;
mod context;
mod publisher;
mod reader;
mod replay;
mod source;

pub use check::{
    KafkaCheckError, KafkaFacts, KafkaPublisherFacts, PartitionFacts, PublishedTopicFacts,
    TopicFacts, check, check_publisher,
};
pub use config::{EnvSetting, FileSetting, KafkaConfig, KafkaConfigError, Setting};
pub use publisher::{KafkaPublisher, KafkaPublisherConfig};
pub use replay::{KafkaReplay, KafkaReplayError, KafkaSpan, OffsetSpan};
pub use source::KafkaSource;

pub use crate::log::{Gap, Start};
