//! `tombstream parked`: deletions that need a person.

use anyhow::bail;
use tombstream_api::orders::parked::{self, Filter, Parked};
use tombstream_model::Key;

use super::Failure;
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
    /// One line each, oldest first.
    List {
        /// Only of this relation.
        relation: Option<String>,
        #[command(flatten)]
        page: PageArgs,
    },
    /// One of them, with what each store said, and what to do.
    Show {
        /// Its number.
        id: i64,
        /// A JSON object instead of lines for people.
        #[arg(long)]
        json: bool,
    },
    /// Let them go on, after what stopped them was mended.
    Retry {
        /// Their numbers.
        #[arg(required_unless_present = "all", conflicts_with_all = ["all", "relation", "reason"])]
        ids: Vec<i64>,
        /// All of them, or those that the next two choose.
        #[arg(long)]
        all: bool,
        /// Only of this relation.
        #[arg(long, value_name = "NAME")]
        relation: Option<String>,
        /// Only those whose reason holds this text.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        #[command(flatten)]
        actor: ActorArg,
    },
    /// Say that a store's part of one needs no proof. The receipt says so too, with who and why.
    Waive {
        /// Its number.
        id: i64,
        /// The store.
        #[arg(long, value_name = "NAME")]
        store: String,
        /// Why.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        #[command(flatten)]
        actor: ActorArg,
    },
}

pub(super) async fn parked(config: Config, args: Args) -> Result<(), Failure> {
    let pool = wiring::connect_ledger(&config.database, "tombstream-parked").await?;
    match args.command {
        Command::List { relation, page } => {
            known(&config, relation.as_deref())?;
            let filter = Filter { relation: relation.as_deref(), reason: None };
            for one in parked::list(&pool, &filter, page.after, page.limit).await.map_err(other)? {
                print(&one, page.json, line)?;
            }
        }
        Command::Show { id, json } => {
            print(&parked::show(&pool, id).await.map_err(other)?, json, whole)?;
        }
        Command::Retry { ids, all, relation, reason, actor } => {
            let actor = actor.name()?;
            if all {
                known(&config, relation.as_deref())?;
                let filter = Filter { relation: relation.as_deref(), reason: reason.as_deref() };
                let mut went = 0;
                let progress = |more| {
                    went += more;
                    eprintln!("{went} go on …");
                };
                let went = parked::retry_all(&pool, &filter, &actor, progress).await;
                println!("{} go on", went.map_err(other)?);
                return Ok(());
            }
            let mut failed = false;
            for id in ids {
                match parked::retry(&pool, None, id, &actor).await {
                    Ok(went) => {
                        println!("deletion {id} of {} is {} again", went.relation, went.state)
                    }
                    Err(error) => {
                        failed = true;
                        eprintln!("error: {}", super::chain(&error));
                    }
                }
            }
            if failed {
                return Err(Failure::Said);
            }
        }
        Command::Waive { id, store, reason, actor } => {
            let actor = actor.name()?;
            let went = parked::waive(&pool, None, id, (&store, &reason), &actor).await;
            let went = went.map_err(other)?;
            println!(
                "store {store} is waived; deletion {id} of {} is {} again",
                went.relation, went.state
            );
        }
    }
    Ok(())
}

fn other(error: tombstream_api::orders::OrderError) -> Failure {
    Failure::Other(error.into())
}

/// Parked work of a relation that is not configured any more can still be looked at, but a typing error finds
/// nothing and should say so.
fn known(config: &Config, relation: Option<&str>) -> anyhow::Result<()> {
    match relation {
        Some("") => bail!("a relation has a name"),
        name => chosen(config, name).map(drop),
    }
}

fn line(one: &Parked) -> String {
    let key = Key::from_postgres(one.key.clone()).to_string();
    let stage = match one.claimed_at {
        Some(at) => format!("claimed {}", at.format("%Y-%m-%d %H:%M:%S UTC")),
        None => format!("not claimed, seen {}", one.first_seen.format("%Y-%m-%d %H:%M:%S UTC")),
    };
    let reason = one.reason.as_deref().unwrap_or("no reason is known");
    format!(
        "{} {} {}: {stage}: {}",
        one.id,
        one.relation,
        key.escape_debug(),
        reason.escape_debug()
    )
}

fn whole(one: &Parked) -> String {
    let mut text = line(one);
    text += &format!("\nattempts: {}", one.attempts);
    for target in &one.targets {
        let verdict = target.verdict.as_deref().unwrap_or("no answer yet");
        let said = target.said.as_deref().unwrap_or_default().escape_debug();
        text += &format!("\nstore {}: {verdict}: {said} ({})", target.store, target.address);
    }
    if one.waived.as_object().is_some_and(|waived| !waived.is_empty()) {
        text += &format!("\nwaived: {}", one.waived);
    }
    text += &format!("\nnext: {}", one.next_step);
    text
}
