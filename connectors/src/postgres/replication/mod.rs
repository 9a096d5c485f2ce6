//! Change capture straight from the write-ahead log: a replication slot, `pgoutput`, no broker.
//!
//! Owned here: the session of the streaming protocol ([`PostgresSource`]), what is known of the slot
//! and what to do when it is not the one that was left ([`slot`]), the publication ([`publication`]),
//! and the heartbeat with what it measures ([`watch`]). Left to others: the wire itself (the crate
//! `pgwire-replication`), decoding (the model), and finding what no event tells (the sweep).
//!
//! Invariant (S7): the slot is told of a position only once it is durable and written to the ledger;
//! `tests/live/replication.rs`.

mod config;
mod publication;
mod seen;
mod session;
mod slot;
mod snapshot;
mod source;
mod watch;

pub use config::{ReplicationConfig, ReplicationConfigError};
pub use publication::{Makes, check_capture, fix_capture};
pub use slot::{Gap, GapReason};
pub use snapshot::{PrimaryKeys, read_snapshot};
pub use source::{PostgresSource, Scope};
