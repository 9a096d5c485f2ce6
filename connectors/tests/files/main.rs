//! Files of change events: in folders, and in a bucket in memory.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod bucket;
mod conform;
mod fixtures;
mod follow;
mod lines;
#[cfg(feature = "parquet")]
mod parquet;
mod position;
mod support;
mod trouble;
