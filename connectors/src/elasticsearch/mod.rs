//! Elasticsearch, as a place to destroy documents.
//!
//! Owned here: the requests (through the `elasticsearch` crate), what an answer proves, and the order
//! read, check the lease, delete on condition. Left to others: retries, rates, time limits of a
//! stage, the read-back after a destroy (the stage calls `look`), and what a verdict leads to.
//!
//! Two kinds of address. `Address::Document` is one document: it is read in real time by `_mget` in
//! every index behind the declared name, then deleted by `_bulk` if it is still what was read.
//! `Address::Field` is every document whose field equals the key: the chunks of one row, found by a
//! search over a point in time, then deleted the same way.
//!
//! Nothing is cached between two calls. What a name stands for is asked each time, since an alias
//! that moved while an old answer was believed makes a copy look absent (S6).
//!
//! Left out on purpose: `_delete_by_query` (its conflicts and its per-document answers can't be told
//! apart), `refresh` of what was deleted (a search may show a hit for as long as the index's own
//! refresh interval; `look` and `destroy` read in real time), and creating anything at all.

mod answer;
mod blocks;
mod check;
mod client;
mod config;
mod field;
mod list;
mod sink;

pub use check::{Facts, FieldFacts, IndexFacts, Uses};
pub use config::{Auth, ConfigError, ElasticsearchConfig, OneOrMany, Versioning};
pub use list::{ElasticsearchListing, ElasticsearchPart};
pub use sink::ElasticsearchSink;
