//! Local directories, Google Cloud Storage and Azure Blob Storage, through the crate `object_store`.
//!
//! Owned here: which keys that crate carries as they are, and what its answers prove. Left out: S3
//! (its own module says why), and all that the crate does not show: noncurrent versions and soft
//! deletes of Google's and Azure's, which must be switched off in the bucket, and unfinished
//! uploads of a local directory (`name#1`). Keys must not be reused (S5): no delete here is
//! conditional.
//!
//! The crate's own retries are off; retries, pacing and read-back belong to the dataflow.

mod config;
mod list;
mod sink;

pub use crate::bucket::ObjectStoreOptions;
pub use config::{ObjectStoreConfig, ObjectStoreConfigError};
pub use list::{ObjectStoreListing, ObjectStorePart};
pub use sink::ObjectStoreSink;
