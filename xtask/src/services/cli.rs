//! `cargo xtask services up | down | status | env`.

use super::{Service, State};
use anyhow::Result;
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start the servers that do not run; returns once all are ready
    Up(Chosen),
    /// Stop the servers, by the process ids that `up` noted
    Down {
        #[command(flatten)]
        chosen: Chosen,
        /// Remove their data too
        #[arg(long)]
        wipe: bool,
    },
    /// Say which run, and where
    Status(Chosen),
    /// Print what tests read, as export lines
    Env(Chosen),
}

#[derive(Args)]
struct Chosen {
    /// The folder of the servers' state [default: target/services]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Only these, separated by commas
    #[arg(long, value_delimiter = ',')]
    only: Vec<Service>,
}

impl Chosen {
    fn dir(&self) -> PathBuf {
        self.dir.clone().unwrap_or_else(super::default_dir)
    }
}

pub(crate) async fn run(options: Options) -> Result<ExitCode> {
    tokio::task::spawn_blocking(|| carry_out(options)).await?
}

fn carry_out(options: Options) -> Result<ExitCode> {
    match options.command {
        Command::Up(chosen) => {
            let state = super::up(&chosen.dir(), &chosen.only)?;
            for (name, value) in state.environment() {
                println!("{name}={value}");
            }
        }
        Command::Down { chosen, wipe } => super::down(&chosen.dir(), &chosen.only, wipe)?,
        Command::Status(chosen) => return status(&chosen),
        Command::Env(chosen) => {
            for (name, value) in State::load(&chosen.dir())?.environment() {
                println!("export {name}='{value}'");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Exit code 3 when one that was asked for does not run, as init scripts do.
fn status(chosen: &Chosen) -> Result<ExitCode> {
    let state = State::load(&chosen.dir())?;
    let mut code = ExitCode::SUCCESS;
    for service in Service::ALL {
        if !chosen.only.is_empty() && !chosen.only.contains(&service) {
            continue;
        }
        if !state.runs(service) {
            println!("{}: not running", service.name());
            code = ExitCode::from(3);
            continue;
        }
        let ports = state.ports.get(&service).map(Vec::as_slice).unwrap_or_default();
        let process = state.servers.get(&service).and_then(|server| server.process);
        let port = ports.first().copied().unwrap_or_default();
        match process {
            Some(process) => println!(
                "{}: 127.0.0.1:{port}, pid {}, {} MB",
                service.name(),
                process.id,
                process.memory().unwrap_or_default() / 1_000_000
            ),
            None => println!("{}: 127.0.0.1:{port}, a container", service.name()),
        }
    }
    Ok(code)
}
