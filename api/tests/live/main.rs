//! Every route against a real Postgres, each test in a database of its own.

#![allow(clippy::unwrap_used, reason = "what fails in a helper fails the test that called it")]

mod access;
mod deletions;
mod explain;
mod harness;
mod holds;
mod orders;
mod problems;
mod restore;
mod rows;
mod together;
