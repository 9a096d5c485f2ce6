//! S3 and what speaks its protocol: a sink that destroys objects by key or by delimited prefix.
//!
//! Owned here: what goes over the wire (`request.rs`), what an answer proves (`answer.rs`, `listing.rs`,
//! pure), the order of the requests (`sink.rs`; of versions `erase.rs`, of unfinished uploads
//! `uploads.rs`), how deletes are sent (`delete.rs`, `condition.rs`), how fast (`pace.rs`), why
//! something can't go (`lock.rs`), and what buckets have shown of themselves (`known.rs`). Left to
//! others: retries and concurrency between batches (layers of the dataflow), templates and parked keys
//! (the model), read-back and sampling of unversioned buckets (the stage, through
//! [`tombstream_model::Sink::look`]).
//!
//! The requests are our own, signed by `reqsign` and sent by `reqwest`. The AWS SDK would bring
//! its own runtime, retry and endpoint machinery and a few hundred crates to build, for a dozen
//! requests; `object_store` normalises `foo//bar` to `foo/bar` and takes a key that an answer leaves
//! out for deleted. Here a key goes out byte for byte, and no answer is no proof.

mod answer;
mod condition;
mod config;
mod delete;
mod erase;
mod known;
mod list;
mod listing;
mod lock;
mod pace;
mod request;
mod sink;
mod uploads;
mod xml;

pub use answer::{ObjectLock, Versioning};
pub use config::{
    Checksum, Conditional, Erase, KeysMax, Probe, S3Config, S3ConfigError, S3Credentials,
};
pub use known::Conditions;
pub use list::{S3Listing, S3Part};
pub use sink::{BucketFacts, S3Facts, S3Sink};
