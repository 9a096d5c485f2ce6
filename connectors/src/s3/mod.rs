//! S3 and what speaks its protocol: a sink that destroys objects by key or by delimited prefix.
//!
//! Owned here: what goes over the wire (`request.rs`), what an answer proves (`answer.rs`,
//! pure) and the order of the requests (`sink.rs`). Left to others: retries, pacing and
//! concurrency between batches (layers of the dataflow), templates and parked keys (the model),
//! read-back and sampling (the stage, through [`tombstream_model::Sink::look`]).
//!
//! The requests are our own, signed by `reqsign` and sent by `reqwest`. The AWS SDK would bring
//! its own runtime, retry and endpoint machinery and a few hundred crates to build, for two
//! requests; `object_store` normalises `foo//bar` to `foo/bar` and takes a key that an answer leaves
//! out for deleted. Here a key goes out byte for byte, and no answer is no proof.
//!
//! Not done yet: erasing the versions of a versioned bucket (it is refused, with the reason), and
//! deletes that are conditional on an `ETag`, so keys of these buckets must not be reused (S5).

mod answer;
mod config;
mod list;
mod request;
mod sink;
mod xml;

pub use answer::{ObjectLock, Versioning};
pub use config::{KeysMax, Probe, S3Config, S3ConfigError, S3Credentials};
pub use list::{S3Listing, S3Part};
pub use sink::{BucketFacts, S3Facts, S3Sink};
