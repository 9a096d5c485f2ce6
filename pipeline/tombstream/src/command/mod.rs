//! The commands: one file each, and how each ends.
//!
//! Exit codes: 0 it is done, 1 it failed, 2 the command line or the configuration is wrong; a command may have
//! others: an audit ends with 3 if copies are there again.

mod actor;
mod api;
mod archive;
mod audit;
mod backfill;
mod breaker;
mod capture;
mod check;
mod dead_letters;
#[cfg(feature = "demo")]
mod demo;
mod explain;
mod hold;
mod jobs;
pub(crate) mod ledger;
mod migrate;
mod page;
mod parked;
mod plan;
mod re_erase;
pub(crate) mod receipts;
pub(crate) mod reconcile;
mod rehydrations;
mod replay;
mod resume;
mod run;
mod status;
mod stores;
mod token;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Config, Needs, Problems};
use crate::telemetry::{self, LogFormat};

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "tombstream", version, about)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 wrong command line or configuration, \
                        more: docs/jobs.md, docs/operations.md.\n\
                        TOMBSTREAM_LOG filters the log, such as info,tombstream_dataflow=debug.")]
pub(crate) struct Cli {
    /// The configuration file.
    #[arg(long, global = true, value_name = "FILE", env = "TOMBSTREAM_CONFIG")]
    #[arg(default_value = "./tombstream.toml")]
    config: PathBuf,
    /// What a line of the log (on stderr) is.
    #[arg(long, global = true, value_enum, value_name = "FORMAT", default_value = "text")]
    #[arg(env = "TOMBSTREAM_LOG_FORMAT")]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the main job on parts of its own, which need nothing installed: the place to begin.
    #[cfg(feature = "demo")]
    Demo(demo::Args),
    /// Destroy the copies of flagged rows, then the rows: the pipeline.
    Run,
    /// Publish the tables' changes to a broker, as Debezium would: [capture].
    Capture,
    /// Destroy what is flagged already: rows of a relation through the pipeline, as a job that can be stopped and
    /// goes on where it was.
    Backfill(backfill::Args),
    /// Read change events of the past once more: files, or a part of Kafka's topics. What is done stays done.
    Replay(replay::Args),
    /// Write what waits for a file of [archive] now; `run` does so by itself.
    Archive,
    /// Say what is pending: how many rows, what they wait for, the next due dates, what the breaker would say.
    Plan(plan::Args),
    /// After a backup was restored: flag rows again that were erased since, by an export of their receipts.
    ReErase(re_erase::Args),
    /// Batch jobs: look at them, forget them.
    Jobs(jobs::Args),
    /// Serve the REST interface.
    Api,
    /// Make or update the ledger, and each relation's triggers and index.
    Migrate(migrate::Args),
    /// Explain every mistake in the configuration; with --live also try every connection.
    Check(check::Args),
    /// Say where everything stands: deletions, what is owed, pauses, dead letters.
    Status(status::Args),
    /// Say what happened to one row, what its deletion waits for, and what can be done.
    Explain(explain::Args),
    /// Keep a row, whatever its flag says.
    Hold(hold::Args),
    /// Deletions that need a person: look, retry, waive.
    Parked(parked::Args),
    /// What the breaker kept back: look, approve, reject.
    Breaker(breaker::Args),
    /// Restored rows whose hidden copies are to be made again.
    Rehydrations(rehydrations::Args),
    /// Look at messages that could not be decoded, and drive them again.
    DeadLetters(dead_letters::Args),
    /// Print the chain of receipts, check a printed one without any server, find one with its proof.
    Receipts(receipts::Args),
    /// Compare rows, ledger and stores: what is there and should not be, what should be there and is not.
    Reconcile(reconcile::Args),
    /// Look finalized keys up in their stores now, and have destroyed again what came back.
    Audit(audit::Args),
    /// Move closed deletions to the archive now; `run` does so every hour.
    Ledger(ledger::Args),
    /// End a relation's pause, after its cause was mended.
    Resume(resume::Args),
    /// Say that a store that was taken out of the configuration holds nothing any more.
    Stores(stores::Args),
    /// Print a new random token for the api, and the line for its tokens_file.
    Token(token::Args),
}

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] Problems),
    /// Something else.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
    /// It was said already.
    #[error("failed")]
    Said,
    /// It was said already, and ends with a code of its own.
    #[error("ended with code {0}")]
    Code(u8),
}

/// Runs the command, says what went wrong, and gives the exit code.
pub(crate) fn run(mut cli: Cli) -> ExitCode {
    let result = log(&mut cli).map_err(Failure::Other).and_then(|()| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::Other(error.into()))?;
        let result = runtime.block_on(dispatch(cli));
        // What is still under way was given up by its command.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Config(problems)) => {
            eprintln!("{problems}");
            ExitCode::from(2)
        }
        Err(Failure::Other(error)) => {
            eprintln!("error: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
        Err(Failure::Said) => ExitCode::FAILURE,
        Err(Failure::Code(code)) => ExitCode::from(code),
    }
}

/// Opens the log. The demo's is in its folder, which is taken for it: its stderr is a person's.
fn log(cli: &mut Cli) -> anyhow::Result<()> {
    let file = match &mut cli.command {
        #[cfg(feature = "demo")]
        Command::Demo(args) => Some(args.take_folder()?),
        _ => None,
    };
    Ok(telemetry::log(cli.log_format, file)?)
}

async fn dispatch(cli: Cli) -> Result<(), Failure> {
    let load = |needs| Config::load(&cli.config, needs);
    match cli.command {
        #[cfg(feature = "demo")]
        Command::Demo(args) => demo::demo(args).await?,
        Command::Run => run::run(load(Needs::Everything)?).await?,
        Command::Backfill(args) => backfill::backfill(load(Needs::Everything)?, args).await?,
        Command::Replay(args) => replay::replay(load(Needs::Everything)?, args).await?,
        Command::Archive => archive::archive(load(Needs::Everything)?).await?,
        Command::Plan(args) => plan::plan(load(Needs::Database)?, args).await?,
        Command::ReErase(args) => re_erase::re_erase(load(Needs::Receipts)?, args).await?,
        Command::Jobs(args) => jobs::jobs(load(Needs::Database)?, args).await?,
        Command::Capture => capture::capture(load(Needs::Capture)?).await?,
        Command::Api => api::api(load(Needs::Database)?).await?,
        Command::Migrate(args) => migrate::migrate(load(Needs::Database)?, args).await?,
        Command::Check(args) => check::check(load(Needs::Everything)?, args).await?,
        Command::Status(args) => status::status(load(Needs::Database)?, args).await?,
        Command::Explain(args) => explain::explain(load(Needs::Database)?, args).await?,
        Command::Hold(args) => hold::hold(load(Needs::Database)?, args).await?,
        Command::Parked(args) => parked::parked(load(Needs::Database)?, args).await?,
        Command::Breaker(args) => breaker::breaker(load(Needs::Database)?, args).await?,
        Command::Rehydrations(args) => {
            rehydrations::rehydrations(load(Needs::Database)?, args).await?;
        }
        Command::DeadLetters(args) => {
            dead_letters::dead_letters(load(Needs::Database)?, args).await?;
        }
        Command::Receipts(args) => {
            receipts::receipts(args, load).await?;
        }
        Command::Reconcile(args) => {
            reconcile::reconcile(load(Needs::Everything)?, args).await?;
        }
        Command::Audit(args) => audit::audit(load(Needs::Everything)?, args).await?,
        Command::Ledger(args) => ledger::ledger(load(Needs::Database)?, args).await?,
        Command::Resume(args) => resume::resume(load(Needs::Database)?, args).await?,
        Command::Stores(args) => stores::stores(load(Needs::Database)?, args).await?,
        Command::Token(args) => token::token(&args)?,
    }
    Ok(())
}

/// An error with everything that led to it, each said once: many repeat their cause.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let text = source.to_string();
        if !said.contains(&text) {
            said = format!("{said}: {text}");
        }
        next = source.source();
    }
    said
}
