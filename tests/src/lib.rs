//! What the end-to-end tests and `cargo xtask e2e` share: real servers seen from outside.
//!
//! Everything here is a second pair of eyes beside the product: plain requests of its own, and no
//! crate of the product. A test makes what it touches under a random name ([`random_name`]), runs
//! the built binary as a process ([`Program`]), and judges by listing the stores.

mod bucket;
mod connector;
mod database;
mod index;
mod program;
mod servers;
#[cfg(feature = "live")]
mod topic;

pub use bucket::Bucket;
pub use connector::Connector;
pub use database::Database;
pub use index::Index;
pub use program::{Program, Running, free_port};
pub use servers::Servers;
#[cfg(feature = "live")]
pub use topic::{Place, Record, Topic};

/// A name that serves a database, an index, a topic and a slot alike; see [`Bucket`] for its own.
pub fn random_name(start: &str) -> String {
    format!("{start}_{}", &uuid::Uuid::new_v4().simple().to_string()[..10])
}
