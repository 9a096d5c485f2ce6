//! The checks that each implementation of a port must pass, the ones in memory and the real ones.
//!
//! A check panics with what is wrong. It makes everything it touches under names of its own, so
//! that checks can run side by side.

pub mod ledger;
pub mod publisher;
pub mod sink;
pub mod source;
