//! The ledger on a real Postgres: the claim, the finalizing transaction, what is owed, the sweep.

mod claim;
mod finalize;
mod guard;
mod race;
mod support;
mod sweep;
