//! `tombstream backfill`: rows that are flagged already, through the pipeline, as a job that goes on where it was.
//!
//! It is a pipeline of one source, smaller than that of `run`, and may stand beside it: both claim the same way, and
//! a row that one has is not the other's.

use std::sync::Arc;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use tombstream_connectors::postgres::{
    self, Backfill, BackfillConfig, BackfillSpec, TalliedLedger, Tally,
};
use tombstream_dataflow::Pipeline;
use tombstream_model::RelationId;
use tracing::warn;

use super::work::{Gauge, Report, Shown, Words, limits, stop, until};
use super::{Failure, hold::time};
use crate::config::Config;
use crate::shutdown::Signals;
use crate::wiring;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 all is read, and what is due is gone; 1 failed; 2 wrong command line or \
                        configuration; 3 all is read, and some of it is parked, owed, held, locked or kept back; 4 \
                        stopped: the same command goes on where it was."
)]
pub(super) struct Args {
    /// The relation.
    #[arg(long, value_name = "NAME")]
    relation: String,
    /// The job's name. The same name and the same question go on where they were.
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    job: String,
    /// Rows flagged at this time or later, such as 2025-01-31T00:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = time)]
    from: Option<DateTime<Utc>>,
    /// Rows flagged before this. By default before the job was begun.
    #[arg(long, value_name = "TIME", value_parser = time)]
    to: Option<DateTime<Utc>>,
    /// Only rows of which this is true: a condition over the row's own columns, such as "tenant_id = 7".
    #[arg(long = "where", value_name = "CLAUSE")]
    filter: Option<String>,
    /// Most rows a second. By default as fast as it goes, giving way to live traffic.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// JSON lines instead of a bar, also on a terminal.
    #[arg(long)]
    json: bool,
}

pub(super) async fn backfill(config: Config, args: Args) -> Result<(), Failure> {
    let ended = run(config, args).await?;
    match ended.code() {
        0 => Ok(()),
        1 => Err(Failure::Said),
        code => Err(Failure::Code(code)),
    }
}

async fn run(config: Config, args: Args) -> anyhow::Result<Report> {
    let mut signals = Signals::listen().context("signals")?;
    let name = args.relation.as_str();
    let known = config.relations.iter().zip(0..).find(|(relation, _)| &*relation.name == name);
    let Some((relation, place)) = known else {
        let known: Vec<&str> = config.relations.iter().map(|it| &*it.name).collect();
        anyhow::bail!("there is no relation {name:?}; known are {}", known.join(", "));
    };
    let pool = wiring::connect_ledger(&config.database, "tombstream-backfill").await?;
    super::run::fit(&config, &pool).await?;
    let mut ledger_config = wiring::ledger_config(&config);
    let process = ledger_config.owner.clone();
    ledger_config.owner = postgres::job_owner(&process, &args.job);
    let spec = BackfillSpec {
        relation: args.relation.clone(),
        from: args.from,
        to: args.to,
        filter: args.filter,
    };
    let tally = Arc::new(Tally::default());
    let source = Backfill::open(
        pool.clone(),
        (RelationId(place), relation),
        (&args.job, &spec),
        &process,
        BackfillConfig {
            rate_max: args.rate,
            prepared_statements: config.database.prepared_statements,
            ..BackfillConfig::new(config.pipeline.lease)
        },
        Arc::clone(&tally),
    )
    .await?;
    let (job, progress) = (source.job(), source.progress());
    let ledger = wiring::ledger(&config, ledger_config, pool.clone())?;
    let ledger = TalliedLedger::new(ledger, &config.relations, Arc::clone(&tally));
    let pipeline = Pipeline {
        config: limits(&config),
        relations: Arc::clone(&config.relations),
        ledger: Arc::new(ledger),
        stores: wiring::stores(&config)?,
        sources: vec![Box::new(source)],
    };
    let running = pipeline.start(tokio::runtime::Handle::current())?;
    let gauge = Gauge {
        total: Some(progress.total),
        before: progress.looked_at_before(),
        looked_at: {
            let progress = Arc::clone(&progress);
            Box::new(move || progress.looked_at())
        },
        gave_way: Box::new(move || progress.gave_way()),
        counts_before: job.before().clone(),
        tally: Arc::clone(&tally),
    };
    let mut shown = Shown::new(&args.job, args.json, gauge, &WORDS);
    let end = until(&running, &mut signals, &mut shown).await;
    let end = stop(running, config.pipeline.drain_max, end).await;
    if let Err(error) = job.end(&tally.counts(), end.reason().as_deref()).await {
        warn!(error = super::chain(&error), "how the job ended is not written down");
    }
    let report = shown.report(&end);
    shown.finish(&report)?;
    Ok(report)
}

/// What the counts of a backfill mean.
const WORDS: Words = Words {
    what: "flagged rows",
    beside: &["claimed", "cancelled", "waiting", "parked"],
    says: &[
        ("matched", "given to the claim"),
        ("claimed", "claimed"),
        ("taken_over", "taken over from a process of this job that had died"),
        ("finalized", "gone, with a receipt"),
        ("hidden", "hidden: the rest waits for its grace"),
        ("waiting", "in their grace: `tombstream run` takes them when it is over"),
        ("cancelled", "restored in time"),
        ("gone", "removed by another hand"),
        (
            "underway",
            "claimed already: by another process, which ends them, or by one of this job that died",
        ),
    ],
    remains: &[
        ("parked", "need a person: tombstream parked list"),
        (
            "owed",
            "owed by a store that did not confirm in time: `tombstream run` drives them again",
        ),
        ("unfinished", "claimed and not finalized: see the log, and tombstream explain"),
        ("held", "kept by a hold"),
        ("kept_back", "kept back by the breaker: tombstream breaker show"),
        (
            "locked",
            "locked by the application at that moment: `tombstream run`'s sweep brings them",
        ),
        ("unknown", "not claimed, and why could not be looked up: see the log"),
    ],
    stopped: "stopped: the same command goes on where it was",
};

#[cfg(test)]
mod tests {
    use super::super::work::{beside, text};
    use super::*;

    fn report(state: &'static str, counts: &[(&str, u64)]) -> Report {
        Report {
            job: "old\n".to_owned(),
            state,
            total: Some(10),
            looked_at: 7,
            rows_per_second: 2.0,
            eta_seconds: Some(1.5),
            seconds: 3.5,
            gave_way_seconds: 0.0,
            counts: counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
            reason: None,
        }
    }

    #[test]
    fn people_see_what_became_of_the_rows() {
        let stopped = report("stopped", &[("matched", 7), ("finalized", 5), ("parked", 2)]);
        let expected = "old\\n: 7 of 10 flagged rows looked at in 4 s (2/s)\n    \
                        7 given to the claim\n    5 gone, with a receipt\n    \
                        2 need a person: tombstream parked list\n    \
                        stopped: the same command goes on where it was\n";
        assert_eq!(text(&stopped, &WORDS), expected);
        assert_eq!(stopped.code(), 4);
        assert_eq!(
            beside(&stopped, &WORDS),
            "2/s, 2s left; claimed 0, cancelled 0, waiting 0, parked 2"
        );
    }
}
