//! `tombstream jobs`: batch jobs, as the ledger has them.

use tombstream_connectors::postgres::{self, JobRow};

use super::page::print;
use crate::config::Config;
use crate::wiring;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Every job, oldest first.
    List {
        /// JSON objects instead of lines for people.
        #[arg(long)]
        json: bool,
    },
    /// One job.
    Show {
        /// Its name.
        name: String,
        /// A JSON object instead of lines for people.
        #[arg(long)]
        json: bool,
    },
    /// Forget a job that no process runs, with its position: the name is free. Its deletions stay as they are.
    Forget {
        /// Its name.
        name: String,
    },
}

pub(super) async fn jobs(config: Config, args: Args) -> anyhow::Result<()> {
    let pool = wiring::connect_ledger(&config.database, "tombstream-jobs").await?;
    match args.command {
        Command::List { json } => {
            for job in postgres::jobs(&pool, None).await? {
                print(&job, json, line)?;
            }
        }
        Command::Show { name, json } => match postgres::jobs(&pool, Some(&name)).await?.first() {
            Some(job) => print(job, json, text)?,
            None => anyhow::bail!("there is no job {name:?}: `tombstream jobs list` has them"),
        },
        Command::Forget { name } => match postgres::forget_job(&pool, &name).await? {
            true => println!("job {} is forgotten", name.escape_debug()),
            false => anyhow::bail!("there is no job {name:?}: `tombstream jobs list` has them"),
        },
    }
    Ok(())
}

/// A job that was killed says `running`, and nobody runs it.
fn state(job: &JobRow) -> &str {
    match (&*job.state, job.is_run) {
        ("running", false) => "left behind",
        (state, _) => state,
    }
}

fn line(job: &JobRow) -> String {
    let total = job.total.map_or_else(|| "?".to_owned(), |total| total.to_string());
    format!(
        "{} {} {}: {} of {total}, begun {}",
        job.name.escape_debug(),
        job.kind,
        state(job),
        job.looked_at,
        job.begun_at.format("%Y-%m-%d %H:%M:%S UTC"),
    )
}

fn text(job: &JobRow) -> String {
    let mut text = line(job);
    text += &format!("\n    asked: {}", job.spec);
    if let Some(owner) = job.owner.as_ref().filter(|_| job.is_run) {
        text += &format!("\n    run by {}", owner.escape_debug());
    }
    for (name, count) in &job.counts {
        text += &format!("\n    {name}: {count}");
    }
    if let Some(reason) = &job.reason {
        text += &format!("\n    stopped: {}", reason.escape_debug());
    }
    text
}
