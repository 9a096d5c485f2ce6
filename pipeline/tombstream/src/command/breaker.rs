//! `tombstream breaker`: what the breaker kept back, and what an operator decides about it.

use std::ops::ControlFlow;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use tombstream_api::orders::breaker::{self, Breaker, Chosen, Decided};
use tombstream_model::Relation;

use super::actor::ActorArg;
use super::hold::time;
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
    /// Whether it is tripped, why, and what waits.
    Show {
        /// Only this relation.
        relation: Option<String>,
        /// JSON objects instead of lines for people.
        #[arg(long)]
        json: bool,
    },
    /// Let what waits go on: it is destroyed.
    Approve(DecideArgs),
    /// Restore the rows of what waits. Repeat it until nothing waits.
    Reject(DecideArgs),
}

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(true))]
struct DecideArgs {
    /// The relation.
    relation: String,
    /// Those with a number up to this one: what `show` printed.
    #[arg(long, value_name = "ID", group = "which")]
    up_to: Option<i64>,
    /// Those whose row was not flagged before this, such as 2027-01-31T10:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = time, group = "which")]
    from: Option<DateTime<Utc>>,
    /// Those whose row was flagged before this.
    #[arg(long, value_name = "TIME", value_parser = time, group = "which")]
    to: Option<DateTime<Utc>>,
    /// All, also what nobody has looked at.
    #[arg(long, group = "which", conflicts_with_all = ["up_to", "from", "to"])]
    all: bool,
    #[command(flatten)]
    actor: ActorArg,
}

pub(super) async fn breaker(config: Config, args: Args) -> anyhow::Result<()> {
    let pool = wiring::connect_ledger(&config.database, "tombstream-breaker").await?;
    let (args, approves) = match args.command {
        Command::Show { relation, json } => {
            for relation in chosen(&config, relation.as_deref())? {
                let shown = breaker::show(&pool, relation).await?;
                match json {
                    true => println!("{}", serde_json::to_string(&shown)?),
                    false => print!("{}", text(&shown, relation)),
                }
            }
            return Ok(());
        }
        Command::Approve(args) => (args, true),
        Command::Reject(args) => (args, false),
    };
    let relation = *chosen(&config, Some(&args.relation))?.first().context("chosen above")?;
    let chosen = Chosen { up_to: args.up_to, from: args.from, to: args.to };
    let actor = args.actor.name()?;
    let progress = |decided: &Decided| {
        eprintln!("{} …", decided.decided);
        ControlFlow::Continue(())
    };
    let decided = if approves {
        breaker::approve(&pool, relation, chosen, &actor, progress).await?
    } else {
        breaker::reject(&pool, relation, chosen, &actor, progress).await?
    };
    print!("{}", outcome(&decided, approves, &args.relation));
    Ok(())
}

fn text(shown: &Breaker, relation: &Relation) -> String {
    let name = &shown.relation;
    let mut text = match (shown.tripped_at, &shown.reason) {
        (Some(at), reason) => format!(
            "{name}: tripped {}: {}\n",
            at.format("%Y-%m-%d %H:%M:%S UTC"),
            reason.as_deref().unwrap_or("no reason is known")
        ),
        (None, _) => format!("{name}: not tripped\n"),
    };
    match &relation.breaker {
        Some(limits) => {
            text += &format!("    limits: {}; {} spent\n", breaker::limits(limits), shown.spent);
        }
        None => text += "    limits: none are configured\n",
    }
    let Some(up_to) = shown.up_to else { return text };
    text += &format!("    waiting: {}, up to id {up_to}\n", shown.waiting);
    for minute in &shown.minutes {
        text += &format!("    flagged {}: {}\n", minute.minute, minute.rows);
    }
    if shown.without_time > 0 {
        text += &format!("    with no time of a flag: {}\n", shown.without_time);
    }
    for (order, does) in [("approve", "they are destroyed"), ("reject", "they are restored")] {
        text += &format!("    {does}: tombstream breaker {order} {name} --up-to {up_to}\n");
    }
    text
}

fn outcome(decided: &Decided, approves: bool, relation: &str) -> String {
    let mut text = match approves {
        true => format!("{} approved\n", decided.decided),
        false => format!("{} restored\n", decided.decided),
    };
    if decided.cancelled > 0 {
        text += &format!("{} had no flagged row: cancelled\n", decided.cancelled);
    }
    if let Some(refusal) = &decided.refusal {
        text += &format!("{} could not be restored, such as {refusal}\n", decided.refused);
    }
    if decided.waiting > 0 {
        text += &format!(
            "{} still wait: not chosen, or held by others at the moment (see tombstream breaker show {relation})\n",
            decided.waiting
        );
    }
    if decided.reset {
        text += "nothing waits: the breaker is reset\n";
    }
    text
}
