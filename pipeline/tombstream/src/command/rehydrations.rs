//! `tombstream rehydrations`: restored rows whose hidden copies are to be made again.

use tombstream_api::orders::rehydrate::{self, Rehydration};
use tombstream_model::Key;

use super::actor::ActorArg;
use super::migrate::chosen;
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
        /// Only those whose number is above this one.
        #[arg(long, value_name = "ID", default_value_t = 0)]
        after: i64,
        /// Most lines.
        #[arg(long, value_name = "N", default_value_t = 100)]
        #[arg(value_parser = clap::value_parser!(i64).range(1..))]
        limit: i64,
        /// JSON objects instead of lines for people.
        #[arg(long)]
        json: bool,
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
    let pool = wiring::connect(&config.database, "tombstream-rehydrations").await?;
    match args.command {
        Command::List { relation, all, after, limit, json } => {
            chosen(&config, relation.as_deref())?;
            for one in rehydrate::list(&pool, relation.as_deref(), !all, after, limit).await? {
                match json {
                    true => println!("{}", serde_json::to_string(&one)?),
                    false => println!("{}", line(&one)),
                }
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
