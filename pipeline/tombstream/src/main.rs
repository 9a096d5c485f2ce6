//! `tombstream`: makes a soft delete true.
//!
//! The binary is where the crates meet: one configuration file, wired to the connectors, the
//! dataflow and the api. What each command does is in [`command`].

#[cfg(feature = "parquet")]
mod archive;
mod audit;
mod command;
mod config;
mod http;
mod schedule;
mod shutdown;
mod telemetry;
mod upkeep;
mod wiring;

use std::process::ExitCode;

use clap::Parser;

/// A deletion takes some hundreds of allocations, most of them freed by another thread than the one that made them: a
/// sixth of the process's time with glibc's allocator (docs/performance.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.install_default().expect("nothing else has chosen a provider");
    command::run(command::Cli::parse())
}
