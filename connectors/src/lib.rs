//! One folder for each outside system, each behind its feature. Siblings never see each other.

#[cfg(any(feature = "files", feature = "postgres"))]
pub mod archive;
#[cfg(any(feature = "files", feature = "object-store"))]
mod bucket;
#[cfg(feature = "elasticsearch")]
pub mod elasticsearch;
#[cfg(feature = "files")]
pub mod files;
#[cfg(feature = "fluvio")]
pub mod fluvio;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(any(feature = "fluvio", feature = "kafka"))]
mod log;
#[cfg(feature = "object-store")]
pub mod object_store;
#[cfg(any(feature = "files", feature = "postgres"))]
pub mod positions;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "postgres-table")]
pub mod postgres_table;
mod replay;
#[cfg(feature = "s3")]
pub mod s3;
mod secret;
#[cfg(feature = "tantivy")]
pub mod tantivy;
#[cfg(feature = "webhook")]
pub mod webhook;

pub use replay::{Replay, ReplayConfig, ReplayProgress};
pub use secret::Secret;
