//! Two models of the contract (`docs/design/design.md`, section 2), as small as it allows.
//!
//! [`protocol`] is the way of a deletion as interleaved steps of workers, people, stores and time: a checker
//! explores all of its states. It proves the design, not the code. [`mod@reference`] is what the ledger must do for
//! one key, step by step: random histories of the real one must agree with it.

pub mod protocol;
pub mod reference;
