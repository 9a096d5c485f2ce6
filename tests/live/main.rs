//! The contract and the fault catalogue on the real binary and real servers, without Debezium: the
//! sweep finds the flags, or events are written straight to a topic. Each takes seconds.
//!
//! Every test makes its own database, bucket, index and topics ([`scene::Scene`]), runs `tombstream`
//! as processes, and judges by listing the stores and the table. Nothing is waited for by time:
//! [`scene::until`] polls a condition with a bound.

mod absent;
mod audit;
mod capture;
mod count;
mod crash;
mod event;
mod keys;
mod locked;
mod outage;
mod poison;
mod reconcile;
mod replay;
mod scene;
mod search;
mod start;
mod waiting;
