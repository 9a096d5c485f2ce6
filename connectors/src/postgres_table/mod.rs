//! Rows of a table in another Postgres: a reporting copy, a read model, a queue of jobs.
//!
//! Owned here: which rows an address means (values that only one spelling has, in columns of types that
//! compare exactly), the order read, ask the fence, delete, look again, and what an error of the database
//! says of one row. Left to others: retries, rates, the read-back after a destroy.
//!
//! A batch is one transaction: what the database refuses of it is found by halving. Nothing is remembered
//! between two batches: the table's columns, and what goes along with its rows, are looked up in each.
//!
//! Deleted is what no query finds any more. The bytes stay in the table's files until a vacuum, in the
//! write-ahead log, in backups and with whoever replicates the table; those are another store's.

mod answer;
mod catalogue;
mod check;
mod config;
mod list;
mod sink;
mod statement;

pub use check::PostgresTableFacts;
pub use config::{PostgresTableConfig, PostgresTableConfigError};
pub use list::{PostgresTableListing, PostgresTablePart};
pub use sink::PostgresTableSink;
