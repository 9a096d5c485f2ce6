//! `tombstream backfill`: rows that are flagged already, through the pipeline, as a job that goes on where it was.
//!
//! It is a pipeline of one source, smaller than that of `run`, and may stand beside it: both claim the same way, and
//! a row that one has is not the other's.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tombstream_connectors::postgres::{
    self, Backfill, BackfillConfig, BackfillSpec, Job, Progress, TalliedLedger, Tally,
};
use tombstream_dataflow::{Pipeline, Running, StageConfig, Unfinished};
use tombstream_model::RelationId;
use tracing::warn;

use super::{Failure, hold::time};
use crate::config::Config;
use crate::shutdown::Signals;
use crate::wiring;

/// Rows read and not yet finished: a tenth of what `run` has. It bounds what a job that is killed does twice, and what
/// a live event finds in its way.
const IN_FLIGHT_MAX: usize = 2_000;
/// How often a bar moves.
const SHOW: Duration = Duration::from_millis(200);
/// How often a line is written where there is no terminal.
const TELL: Duration = Duration::from_secs(5);
/// The rate is of the last while, so that the ETA follows what is.
const RATE_OF: Duration = Duration::from_secs(10);

/// Read to the end, and something of it remains that needs a person, or `run`.
const REMAINS: u8 = 3;
/// Stopped before the end: the same command goes on.
const STOPPED: u8 = 4;

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
    let mut shown = Shown::new(&args.job, args.json, &job, progress, tally);
    let end = until(&running, &mut signals, &mut shown).await;
    let stopped = running.stop(config.pipeline.drain_max).await;
    if let Ok(stopped) = &stopped
        && !stopped.drained
    {
        warn!(epochs = stopped.epochs_open, "not everything was durable; it is read again");
    }
    let failed = match (&end, stopped) {
        (End::Failed(said), _) => Some(said.clone()),
        (_, Err(broken)) => Some(broken.to_string()),
        _ => None,
    };
    let reason = match &end {
        End::Signal(signal) => Some(format!("told to stop by {signal}")),
        _ => failed.clone(),
    };
    if let Err(error) = job.end(&shown.tally.counts(), reason.as_deref()).await {
        warn!(error = super::chain(&error), "how the job ended is not written down");
    }
    let report = shown.report(&end, failed);
    shown.finish(&report)?;
    Ok(report)
}

/// Its own budget, below that of live traffic: one transaction of each kind at a time for each worker.
fn limits(config: &Config) -> tombstream_dataflow::Config {
    let limits = wiring::limits(config);
    let one = |stage: &StageConfig| StageConfig { in_flight_max: 1, ..stage.clone() };
    tombstream_dataflow::Config {
        in_flight_max: limits.in_flight_max.min(IN_FLIGHT_MAX),
        claim: one(&limits.claim),
        finalize: one(&limits.finalize),
        owe: one(&limits.owe),
        ..limits
    }
}

/// How it ended.
#[derive(Debug)]
enum End {
    Done,
    Signal(&'static str),
    Failed(String),
}

async fn until(running: &Running, signals: &mut Signals, shown: &mut Shown) -> End {
    let mut ticks = tokio::time::interval(SHOW);
    loop {
        tokio::select! {
            finished = running.finished() => return match finished {
                Ok(()) => End::Done,
                Err(Unfinished::Halted(halted)) => {
                    let said: Vec<String> = halted.into_iter().map(|(_, said)| said).collect();
                    End::Failed(said.join("; "))
                }
                Err(broken @ Unfinished::Broken(_)) => End::Failed(broken.to_string()),
            },
            signal = signals.next() => return End::Signal(signal),
            _ = ticks.tick() => shown.tick(),
        }
    }
}

/// What is shown of a job under way, and of its end.
#[derive(Debug, Serialize)]
struct Report {
    job: String,
    /// `running`, `done`, `remains`, `stopped` or `failed`.
    state: &'static str,
    total: i64,
    looked_at: i64,
    /// Of the last seconds.
    rows_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    eta_seconds: Option<f64>,
    seconds: f64,
    gave_way_seconds: f64,
    /// Of all processes that have run it.
    counts: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Report {
    fn code(&self) -> u8 {
        match self.state {
            "done" => 0,
            "remains" => REMAINS,
            "stopped" => STOPPED,
            _ => 1,
        }
    }
}

/// What of a job's rows is not gone, and will not be by time alone.
const REMAINING: [(&str, &str); 7] = [
    ("parked", "need a person: tombstream parked list"),
    ("owed", "owed by a store that did not confirm in time: `tombstream run` drives them again"),
    ("unfinished", "claimed and not finalized: see the log, and tombstream explain"),
    ("held", "kept by a hold"),
    ("kept_back", "kept back by the breaker: tombstream breaker show"),
    ("locked", "locked by the application at that moment: `tombstream run`'s sweep brings them"),
    ("unknown", "not claimed, and why could not be looked up: see the log"),
];

struct Shown {
    name: String,
    before: BTreeMap<String, u64>,
    progress: Arc<Progress>,
    tally: Arc<Tally>,
    bar: Option<ProgressBar>,
    json: bool,
    begun: Instant,
    told: Instant,
    /// What was looked at, and when: the newest first is pushed last.
    marks: std::collections::VecDeque<(Instant, i64)>,
}

impl Shown {
    fn new(name: &str, json: bool, job: &Job, progress: Arc<Progress>, tally: Arc<Tally>) -> Self {
        let bar = (!json && std::io::stderr().is_terminal()).then(|| {
            let style =
                ProgressStyle::with_template("{prefix} {bar:30} {human_pos} of {human_len} {msg}");
            let bar = ProgressBar::new(progress.total.unsigned_abs());
            bar.set_style(style.expect("the template is whole").progress_chars("━╸ "));
            bar.with_prefix(name.escape_debug().to_string())
        });
        let now = Instant::now();
        let marks = [(now, progress.looked_at())].into();
        let before = job.before().clone();
        Self {
            name: name.to_owned(),
            before,
            progress,
            tally,
            bar,
            json,
            begun: now,
            told: now,
            marks,
        }
    }

    fn counts(&self) -> BTreeMap<String, u64> {
        let mut all = self.before.clone();
        for (name, count) in self.tally.counts() {
            *all.entry(name).or_default() += count;
        }
        all
    }

    fn now(&self, state: &'static str, reason: Option<String>) -> Report {
        let looked_at = self.progress.looked_at();
        let rate = self.marks.front().map_or(0.0, |(at, then)| {
            (looked_at - then) as f64 / at.elapsed().as_secs_f64().max(0.001)
        });
        let left = (self.progress.total - looked_at).max(0) as f64;
        let is_running = state == "running";
        Report {
            job: self.name.clone(),
            state,
            total: self.progress.total,
            looked_at,
            rows_per_second: if is_running {
                rate
            } else {
                (looked_at - self.progress.looked_at_before()) as f64
                    / self.begun.elapsed().as_secs_f64().max(0.001)
            },
            eta_seconds: (is_running && rate > 0.0).then(|| left / rate),
            seconds: self.begun.elapsed().as_secs_f64(),
            gave_way_seconds: self.progress.gave_way().as_secs_f64(),
            counts: self.counts(),
            reason,
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.marks.push_back((now, self.progress.looked_at()));
        while self.marks.len() > 2 && self.marks[1].0.elapsed() > RATE_OF {
            self.marks.pop_front();
        }
        if let Some(bar) = &self.bar {
            let report = self.now("running", None);
            bar.set_position(report.looked_at.unsigned_abs());
            bar.set_message(beside(&report));
        } else if self.told.elapsed() >= TELL {
            self.told = now;
            // A reader that went away is no reason to stop.
            if let Ok(line) = serde_json::to_string(&self.now("running", None)) {
                println!("{line}");
            }
        }
    }

    fn report(&self, end: &End, failed: Option<String>) -> Report {
        let counts = self.counts();
        let remains = REMAINING.iter().any(|(name, _)| counts.get(*name).is_some_and(|n| *n > 0));
        match (end, failed) {
            (_, Some(said)) => self.now("failed", Some(said)),
            (End::Signal(signal), None) => {
                self.now("stopped", Some(format!("told to stop by {signal}")))
            }
            _ if remains => self.now("remains", None),
            _ => self.now("done", None),
        }
    }

    /// The last word: a line of JSON, or lines for people.
    fn finish(&self, report: &Report) -> anyhow::Result<()> {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.json || self.bar.is_none() {
            println!("{}", serde_json::to_string(report)?);
        } else {
            print!("{}", text(report));
        }
        if let Some(reason) = &report.reason {
            eprintln!("{}: {reason}", report.job.escape_debug());
        }
        Ok(())
    }
}

/// What stands beside the bar.
fn beside(report: &Report) -> String {
    let count = |name: &str| report.counts.get(name).copied().unwrap_or_default();
    let eta = report.eta_seconds.and_then(|eta| Duration::try_from_secs_f64(eta.ceil()).ok());
    let eta = eta.map_or_else(|| "?".to_owned(), |eta| humantime::format_duration(eta).to_string());
    format!(
        "{:.0}/s, {eta} left; claimed {}, cancelled {}, waiting {}, parked {}",
        report.rows_per_second,
        count("claimed"),
        count("cancelled"),
        count("waiting"),
        count("parked"),
    )
}

fn text(report: &Report) -> String {
    let name = report.job.escape_debug();
    let mut text = format!(
        "{name}: {} of {} flagged rows looked at in {:.0} s ({:.0}/s)\n",
        report.looked_at, report.total, report.seconds, report.rows_per_second
    );
    let says = [
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
    ];
    for (what, meaning) in says.into_iter().chain(REMAINING) {
        if let Some(count) = report.counts.get(what).filter(|count| **count > 0) {
            text += &format!("    {count} {meaning}\n");
        }
    }
    if report.gave_way_seconds > 0.0 {
        text += &format!("    gave way to live traffic for {:.0} s\n", report.gave_way_seconds);
    }
    if report.state == "stopped" {
        text += "    stopped: the same command goes on where it was\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(state: &'static str, counts: &[(&str, u64)]) -> Report {
        Report {
            job: "old\n".to_owned(),
            state,
            total: 10,
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
        assert_eq!(text(&stopped), expected);
        assert_eq!(stopped.code(), 4);
        assert_eq!(beside(&stopped), "2/s, 2s left; claimed 0, cancelled 0, waiting 0, parked 2");
    }
}
