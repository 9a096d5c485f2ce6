//! `tombstream rehydrations`: restored rows whose hidden copies are to be made again.

use tombstream_api::orders::rehydrate::{self, Rehydration};
use tombstream_model::Key;

use super::actor::ActorArg;
use super::migrate::chosen;
use super::page::{PageArgs, print};
use crate::config::Config;
use crate::wiring;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Those that are ready and not done, oldest first.
    List {
        /// Only of this relation.
        relation: Option<String>,
        /// Also those that are done, and those whose hide may still destroy.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        page: PageArgs,
    },
    /// Note that the copies are there again.
    Done {
        /// Its number.
        id: i64,
        #[command(flatten)]
        actor: ActorArg,
    },
}

pub(super) async fn rehydrations(config: Config, args: Args) -> anyhow::Result<()> {
    let pool = wiring::connect_ledger(&config.database, "tombstream-rehydrations").await?;
    match args.command {
        Command::List { relation, all, page } => {
            chosen(&config, relation.as_deref())?;
            let PageArgs { after, limit, json } = page;
            for one in rehydrate::list(&pool, relation.as_deref(), !all, after, limit).await? {
                print(&one, json, line)?;
            }
        }
        Command::Done { id, actor } => {
            let done = rehydrate::done(&pool, None, id, &actor.name()?).await?;
            let by = done.done_by.as_deref().unwrap_or("nobody who is known");
            println!("rehydration {id} of {} is done, said by {by}", done.relation);
        }
    }
    Ok(())
}

fn line(one: &Rehydration) -> String {
    let key = Key::from_postgres(one.key.clone()).to_string();
    let time = |at: chrono::DateTime<chrono::Utc>| at.format("%Y-%m-%d %H:%M:%S UTC").to_string();
    let state = match one.done_at {
        Some(at) => format!("done {}", time(at)),
        None => format!("ready from {}", time(one.ready_at)),
    };
    let mut stores: Vec<&str> = one
        .targets
        .as_array()
        .map(|targets| targets.iter().filter_map(|target| target["store"].as_str()).collect())
        .unwrap_or_default();
    stores.dedup();
    format!("{} {} {}: {state}; {}", one.id, one.relation, key.escape_debug(), stores.join(", "))
}
