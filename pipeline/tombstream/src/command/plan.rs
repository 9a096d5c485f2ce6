//! `tombstream plan`: what is pending, before anything of it is done. Reads alone.

use std::fmt::Write as _;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use tombstream_api::orders::{self, explain};
use tombstream_connectors::postgres::{self, Planned};
use tombstream_model::Relation;

use super::migrate::chosen;
use crate::config::Config;
use crate::wiring;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only this relation.
    #[arg(long, value_name = "NAME")]
    relation: Option<String>,
    /// One row of that relation, as `explain` tells it: a word for each column of its key.
    #[arg(long, value_name = "KEY", num_args = 1.., allow_negative_numbers = true, requires = "relation")]
    for_key: Vec<String>,
    /// JSON objects instead of lines for people.
    #[arg(long)]
    json: bool,
}

pub(super) async fn plan(config: Config, args: Args) -> anyhow::Result<()> {
    let relations = chosen(&config, args.relation.as_deref())?;
    let pool = wiring::connect_ledger(&config.database, "tombstream-plan").await?;
    if !args.for_key.is_empty() {
        let relation = *relations.first().context("chosen above")?;
        let key = orders::key(relation, args.for_key.iter().map(String::as_str))?;
        let explained = explain::explain(&pool, relation, &key).await?;
        match args.json {
            true => println!("{}", serde_json::to_string(&explained)?),
            false => print!("{}", super::explain::text(&explained)),
        }
        return Ok(());
    }
    let stores: Vec<&str> = config.stores.iter().map(|store| store.name.as_str()).collect();
    for relation in relations {
        let planned = postgres::plan(&pool, relation, &stores).await.with_context(|| {
            format!("relation {}: what is pending can't be counted", relation.name)
        })?;
        match args.json {
            true => println!("{}", serde_json::to_string(&planned)?),
            false => print!("{}", text(&planned, relation)),
        }
    }
    Ok(())
}

fn at(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

fn text(planned: &Planned, relation: &Relation) -> String {
    let mut text = String::new();
    // Writing to a String can't fail.
    lines(&mut text, planned, relation).expect("a String takes everything");
    text
}

fn lines(text: &mut String, planned: &Planned, relation: &Relation) -> std::fmt::Result {
    let Planned { rows, ages, .. } = planned;
    let name = &planned.relation;
    writeln!(text, "{name}: {} rows are flagged", rows.flagged)?;
    if let Some(why) = &planned.paused {
        writeln!(text, "    paused, nothing of it is claimed: {}", why.escape_debug())?;
    }
    let grace = humantime::format_duration(relation.grace);
    for (count, says) in [
        (rows.due, "due: the sweep of `tombstream run`, or a backfill, brings them to the claim"),
        (rows.due_in_hour, "due within an hour"),
        (rows.due_in_day, "due within a day"),
        (rows.due_in_week, "due within 7 days"),
        (rows.due_later, "due later"),
        (
            rows.unseen,
            "not seen yet: grace begins when they are, since nothing vouches for their flag's time",
        ),
        (rows.hidden, "of those in grace are hidden: their recoverable copies are gone"),
        (rows.claimed, "claimed: their copies are going"),
        (rows.owed, "of the claimed ones wait for a store that has not confirmed"),
        (rows.parked, "parked: tombstream parked list"),
        (rows.held, "kept by a hold"),
        (rows.kept_back, "kept back by the breaker: tombstream breaker show"),
    ] {
        if count > 0 {
            writeln!(text, "    {count} {says}")?;
        }
    }
    if let Some(next) = rows.next_due {
        writeln!(text, "    next due {} (grace {grace})", at(next))?;
    }
    if let Some(oldest) = ages.oldest {
        writeln!(
            text,
            "    flagged within an hour {}, a day {}, 30 days {}, a year {}, before {}; the oldest {}",
            ages.hour,
            ages.day,
            ages.month,
            ages.year,
            ages.older,
            at(oldest)
        )?;
    }
    for store in &planned.stores {
        write!(text, "    store {}: {} copies", store.name, store.copies)?;
        match store.owed {
            0 => writeln!(text)?,
            owed => writeln!(text, ", {owed} owed")?,
        }
    }
    if planned.holds > 0 {
        writeln!(text, "    {} holds are active", planned.holds)?;
    }
    if let Some(breaker) = &planned.breaker {
        let left = breaker.left.map_or_else(|| "any number".to_owned(), |left| left.to_string());
        match (&breaker.tripped, breaker.trips) {
            (Some(why), _) => writeln!(text, "    breaker: tripped: {}", why.escape_debug())?,
            (None, true) => writeln!(
                text,
                "    breaker: {left} more may be claimed now ({} spent): all that is due at once would trip it; \
                 backfill with --rate, or raise its limits",
                breaker.spent
            )?,
            (None, false) => writeln!(
                text,
                "    breaker: {left} more may be claimed now ({} spent): all that is due fits",
                breaker.spent
            )?,
        }
    }
    Ok(())
}
