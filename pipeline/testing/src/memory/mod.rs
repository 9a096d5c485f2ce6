//! The ports implemented in memory, with faults that tests can switch on.
//!
//! They follow the ports' rules as far as those can be observed. They prove nothing about Postgres,
//! Kafka or any store: no locks, no transactions, no network.

mod ledger;
mod listing;
mod publisher;
mod sink;
mod source;

pub use ledger::{MemoryLedger, Row};
pub use listing::{MemoryListing, MemoryPart, MemoryRegistry};
pub use publisher::MemoryPublisher;
pub use sink::{MemorySink, Mood};
pub use source::{MemorySource, SourceControl};
