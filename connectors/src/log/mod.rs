//! What the sources share that read logs in partitions: where reading starts, which marks may still be
//! committed and how far, and what was read and not asked for. No I/O.
//!
//! *The group* is whoever's offsets are kept: Kafka's consumer group, Fluvio's consumer.

#![cfg_attr(
    not(all(feature = "fluvio", feature = "kafka")),
    allow(dead_code, unused_imports, reason = "each source uses a part of it")
)]

mod buffer;
mod offsets;

pub(crate) use buffer::Buffer;
pub(crate) use offsets::{Assignments, Commit, CommitAnswer};
pub use offsets::{Gap, Start};
