//! The developers' commands: `cargo xtask --help` lists them.

mod bench;
mod check;
mod e2e;
mod go;
mod guards;
mod services;
mod shell;
mod suite;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The developers' commands of Tombstream")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Format, lints, docs, licences and crate boundaries, the compose file
    Check,
    /// Unit, property, live and end-to-end tests; starts the servers they need and stops them
    Test(suite::Options),
    /// The main job from the flag to the receipt: real servers, separate processes, counted by
    /// listing the stores
    E2e(e2e::Options),
    /// What it costs, beside what anybody could use instead: ratios of one run; writes docs/benchmarks.md
    Bench(bench::Options),
    /// Takes each guard of the contract out, one at a time, and sees whether its test fails
    Guards(guards::Options),
    /// The real servers that tests and development run against
    Services(services::cli::Options),
}

#[tokio::main]
async fn main() -> ExitCode {
    shell::listen_for_interrupts();
    let done = match Cli::parse().command {
        Command::Check => check::run().await,
        Command::Test(options) => suite::run(options).await,
        Command::E2e(options) => e2e::run(options).await,
        Command::Bench(options) => bench::run(options).await,
        Command::Guards(options) => guards::run(options).await,
        Command::Services(options) => services::cli::run(options).await,
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
