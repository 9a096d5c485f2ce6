//! Change events from Fluvio topics, and captured changes to topics.
//!
//! Owns where reading starts, which offsets are committed and how, and when a message counts as
//! published. Leaves to others what an event means (it goes on as bytes), and when its offset may be
//! committed: [`Source::commit`](tombstream_model::Source::commit) is called behind the pipeline's
//! frontier.
//!
//! Fluvio has no consumer groups: a source reads all partitions of its topics, and two with one
//! consumer's name both read everything. It has no null values: a tombstone is an empty value.
//!
//! `cluster` asks the controller (SC) what there is, `spu` is a connection to a server that holds
//! partitions. A thread of its own (`reader`) keeps each partition read (`partition`); `records` takes
//! answers apart and does no I/O. `publisher` is the other way.

mod check;
mod cluster;
mod config;
mod fault;
mod partition;
mod publisher;
mod reader;
mod records;
mod shared;
mod source;
mod spu;

pub use check::{
    FluvioCheckError, FluvioFacts, FluvioPartitionFacts, FluvioTopicFacts, check, check_publisher,
};
pub use config::{
    FluvioCompression, FluvioConfig, FluvioConfigError, FluvioPublisherConfig, FluvioTls,
    FluvioTopic,
};
pub use publisher::FluvioPublisher;
pub use source::FluvioSource;

pub use crate::log::{Gap, Start};
