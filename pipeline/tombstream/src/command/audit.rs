//! `tombstream audit`: finalized keys are looked up now. What is found is written down; a pipeline that runs
//! destroys it.

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use chrono::{DateTime, Utc};
use tombstream_connectors::postgres::{AuditSpan, AuditTally};
use tombstream_model::StoreId;

use super::Failure;
use super::migrate::chosen;
use crate::audit::Looking;
use crate::config::Config;
use crate::wiring;

/// What was closed within these seconds is another transaction's still, or just done.
const LAG: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Look once, and say what was found. `run` looks by itself: [audit].
    #[arg(long, required = true)]
    once: bool,
    /// Only rows of this relation.
    #[arg(long)]
    relation: Option<String>,
    /// Only copies in this store.
    #[arg(long)]
    store: Option<String>,
    /// Only what was closed since: a time such as 2026-03-01T00:00:00Z, or a length of time such as 30d.
    #[arg(long, value_parser = since)]
    since: Option<DateTime<Utc>>,
    /// One JSON object for each relation and store instead of lines for people.
    #[arg(long)]
    json: bool,
}

/// A point in time, said as such or as how long ago. Where to begin is a bound of work: this process's clock will do.
fn since(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return Utc::now()
            .checked_sub_signed(chrono::TimeDelta::from_std(ago).map_err(|it| it.to_string())?)
            .ok_or_else(|| format!("{text} ago is before all times"));
    }
    let at = DateTime::parse_from_rfc3339(text);
    at.map(Into::into).map_err(|_| {
        "write a time such as 2026-03-01T00:00:00Z, or a length such as 30d".to_owned()
    })
}

pub(super) async fn audit(config: Config, args: Args) -> Result<(), Failure> {
    chosen(&config, args.relation.as_deref())?;
    if let Some(name) = &args.store
        && !config.stores.iter().any(|store| store.name == *name)
    {
        let known: Vec<&str> = config.stores.iter().map(|store| store.name.as_str()).collect();
        return Err(anyhow!("there is no store {name:?}: there are {}", known.join(", ")).into());
    }
    let pool = wiring::connect_ledger(&config.database, "tombstream-audit").await?;
    let audit = wiring::audit(&config, pool);
    let span = AuditSpan { since: args.since, lag: LAG };
    let (mut is_found, mut is_unclear) = (false, false);
    for (store, id) in config.stores.iter().zip(0..).map(|(store, id)| (store, StoreId(id))) {
        let is_chosen = match &args.store {
            Some(name) => store.name == *name,
            None => store.audit,
        };
        if !is_chosen {
            continue;
        }
        if !store.kind.can_look() {
            return Err(anyhow!("store {}: nothing can be looked up there", store.name).into());
        }
        let sink = Looking(wiring::store_sink(store)?);
        for relation in config.relations.iter() {
            let is_chosen = args.relation.as_ref().is_none_or(|name| *relation.name == **name);
            if !is_chosen || !relation.targets.iter().any(|target| target.store == id) {
                continue;
            }
            let shows = std::io::stderr().is_terminal();
            let tally = audit
                .once(&relation.name, id, &sink, (store.timeout, span), |so_far| {
                    if shows {
                        eprint!(
                            "\r{} in {}: {} looked at",
                            relation.name, store.name, so_far.looked
                        );
                    }
                })
                .await
                .with_context(|| format!("relation {}, store {}", relation.name, store.name))?;
            if shows {
                eprintln!();
            }
            is_found |= tally.resurrected + tally.known > 0;
            is_unclear |= tally.unclear > 0;
            if args.json {
                let said = serde_json::json!({
                    "relation": *relation.name, "store": store.name, "audit": tally,
                });
                println!("{said}");
            } else {
                println!("{}", text(&relation.name, &store.name, &tally));
            }
        }
    }
    match (is_found, is_unclear) {
        (true, _) => Err(Failure::Code(3)),
        (false, true) => Err(Failure::Said),
        (false, false) => Ok(()),
    }
}

fn text(relation: &str, store: &str, tally: &AuditTally) -> String {
    let mut text = format!("{relation} in {store}: {} looked at", tally.looked);
    for (count, what) in [
        (tally.resurrected, "are there again and will be destroyed again by `tombstream run`"),
        (tally.parked, "of these wait for a person: tombstream parked list"),
        (tally.known, "are there and are being destroyed already"),
        (tally.reused, "are there under keys that have a row again, and are left"),
        (tally.unclear, "could not be told, and are looked at again by `tombstream run`"),
    ] {
        if count > 0 {
            text.push_str(&format!("\n    {count} {what}"));
        }
    }
    if tally.resurrected + tally.known + tally.reused + tally.unclear == 0 {
        text.push_str(", nothing found");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_what_was_found_and_what_follows() {
        let mut tally = AuditTally { looked: 7, ..AuditTally::default() };
        assert_eq!(
            text("documents", "search", &tally),
            "documents in search: 7 looked at, nothing found"
        );
        (tally.resurrected, tally.reused) = (2, 1);
        assert_eq!(
            text("documents", "search", &tally),
            "documents in search: 7 looked at\n    \
             2 are there again and will be destroyed again by `tombstream run`\n    \
             1 are there under keys that have a row again, and are left"
        );
    }

    #[test]
    fn a_beginning_is_a_time_or_a_length_of_time() {
        assert_eq!(since("2026-03-01T00:00:00Z").unwrap().timestamp(), 1_772_323_200);
        let then = since("30d").unwrap();
        assert_eq!((Utc::now() - then).num_days(), 30);
        assert!(since("yesterday").unwrap_err().contains("2026-03-01"));
    }
}
