//! Files of change events: JSON Lines, plain, gzip or zstd, in a folder or behind a prefix of a bucket.
//!
//! Owned here: what a line is (`line.rs`), the order in which files are read and how they are followed,
//! and positions, which are a file and a byte (`source.rs`). Left to others: what the bytes of an event
//! mean (the model), and where positions are kept ([`crate::positions`]; [`LocalPositions`] here is for
//! tests and for those who have no ledger).
//!
//! **The place of an event** is its file and the byte at which its line begins: that is its `origin`, and
//! what a dead letter is known by. Two files may hold the same record of Kafka, or one file twice; by the
//! record's own topic, partition and offset the second one would count as known and be lost. The topic
//! that a record names is told beside it ([`tombstream_model::Event::topic`]), since the relation, the
//! metrics and the pausing of a topic go by that. A file is named by its whole address, so that a
//! path that is configured otherwise gives no file another's name.
//!
//! **A position** is the byte after the last line, of a compressed file that of what is in it, and a digest
//! of the 1,024 bytes before. Reading goes on only where these are the same: a file that was appended to
//! is read on, one that was replaced or cut is an error. Everything before the byte is durable.
//!
//! Invariant (S7): a position passes no line that was not given to the pipeline, or was and is not
//! durable; `tests/files/position.rs`.

mod check;
mod config;
mod file;
mod line;
mod local;
#[cfg(feature = "parquet")]
pub mod parquet;
mod place;
mod source;
mod split;
mod unpack;

pub use crate::bucket::ObjectStoreOptions;
pub use check::{FilesError, FilesFacts, check};
pub use config::{FilesConfig, FilesConfigError};
pub use local::LocalPositions;
pub use source::{FilesSource, Gap};
