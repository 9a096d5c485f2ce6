//! The ledger on a real Postgres: the claim, the finalizing transaction, what is owed, the sweep.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod attack;
mod audit;
mod backfill;
mod claim;
mod finalize;
mod guard;
mod letters;
mod listing;
mod plan;
mod pooler;
mod positions;
mod race;
mod re_erase;
mod receipts;
mod replication;
mod roles;
mod statistics;
mod support;
mod sweep;
mod tidy;
mod under_way;
mod waiting;
