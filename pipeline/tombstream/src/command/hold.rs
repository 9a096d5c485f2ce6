//! `tombstream hold`: a person's order that a row must stay.

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use tombstream_api::orders::{self, hold};
use tombstream_model::{Key, Relation};

use super::actor::ActorArg;
use super::migrate::chosen;
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
    /// Keep a row and its copies, until it is released.
    Set {
        #[command(flatten)]
        row: RowArg,
        /// What for, such as the number of a case.
        #[arg(long, value_name = "TEXT")]
        case: String,
        /// When it ends by itself, such as 2027-01-31T00:00:00Z. By default a person releases it.
        #[arg(long, value_name = "TIME", value_parser = time)]
        until: Option<DateTime<Utc>>,
        #[command(flatten)]
        actor: ActorArg,
    },
    /// The holds of a row, newest first.
    List {
        #[command(flatten)]
        row: RowArg,
        /// JSON objects instead of lines for people.
        #[arg(long)]
        json: bool,
    },
    /// End a hold. The deletion goes on when no other is left.
    Release {
        #[command(flatten)]
        row: RowArg,
        /// The hold's number.
        #[arg(long)]
        id: i64,
        #[command(flatten)]
        actor: ActorArg,
    },
}

/// A row, by its relation and key.
#[derive(Debug, clap::Args)]
pub(super) struct RowArg {
    /// The relation.
    pub(super) relation: String,
    /// The key: one word for each of its columns. After -- if one begins with a dash.
    #[arg(required = true, allow_negative_numbers = true, value_name = "KEY")]
    pub(super) key: Vec<String>,
}

impl RowArg {
    pub(super) fn find<'a>(&self, config: &'a Config) -> anyhow::Result<(&'a Relation, Key)> {
        let relation = *chosen(config, Some(&self.relation))?.first().context("chosen above")?;
        let key = orders::key(relation, self.key.iter().map(String::as_str))?;
        Ok((relation, key))
    }
}

/// A time of RFC 3339.
pub(super) fn time(text: &str) -> Result<DateTime<Utc>, String> {
    DateTime::parse_from_rfc3339(text)
        .map(|time| time.to_utc())
        .map_err(|error| format!("{error}; write it like 2027-01-31T00:00:00Z"))
}

pub(super) async fn hold(config: Config, args: Args) -> anyhow::Result<()> {
    let pool = wiring::connect_ledger(&config.database, "tombstream-hold").await?;
    match args.command {
        Command::Set { row, case, until, actor } => {
            let (relation, key) = row.find(&config)?;
            let new = hold::NewHold { case: &case, until, actor: &actor.name()? };
            let set = hold::set(&pool, relation, &key, new).await?;
            println!("hold {}: {}", set.hold.id, set.says);
        }
        Command::List { row, json } => {
            let (relation, key) = row.find(&config)?;
            for hold in hold::list(&pool, relation, &key).await? {
                print(&hold, json, line)?;
            }
        }
        Command::Release { row, id, actor } => {
            let (relation, key) = row.find(&config)?;
            let hold = hold::release(&pool, relation, &key, id, &actor.name()?).await?;
            println!("hold {} ({}) is released", hold.id, hold.case.escape_debug());
        }
    }
    Ok(())
}

fn line(hold: &hold::Hold) -> String {
    let at = |time: DateTime<Utc>| time.format("%Y-%m-%d %H:%M:%S UTC").to_string();
    let end = match (hold.released_at, &hold.released_by, hold.until) {
        (Some(released), by, _) => {
            let by = by.as_deref().unwrap_or("nobody who is known");
            format!("released {} by {}", at(released), by.escape_debug())
        }
        (None, _, Some(until)) if hold.active => format!("active until {}", at(until)),
        (None, _, Some(until)) => format!("ended {}", at(until)),
        (None, _, None) => "active".to_owned(),
    };
    let (case, actor) = (hold.case.escape_debug(), hold.actor.escape_debug());
    format!("{} {} by {actor}, {case}: {end}", hold.id, at(hold.set_at))
}
