//! What the commands share that read something to its end through the pipeline (`backfill`, `replay`): their budget,
//! what is shown under way, and how they end.

use std::collections::{BTreeMap, VecDeque};
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tombstream_connectors::postgres::Tally;
use tombstream_dataflow::{Running, StageConfig, Unfinished};
use tracing::warn;

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
/// Stopped before the end.
const STOPPED: u8 = 4;

/// Its own budget, below that of live traffic: one transaction of each kind at a time for each worker.
pub(super) fn limits(config: &Config) -> tombstream_dataflow::Config {
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
pub(super) enum End {
    Done,
    Signal(&'static str),
    Failed(String),
}

impl End {
    /// Why it is not done.
    pub(super) fn reason(&self) -> Option<String> {
        match self {
            Self::Done => None,
            Self::Signal(signal) => Some(format!("told to stop by {signal}")),
            Self::Failed(said) => Some(said.clone()),
        }
    }
}

/// Shows what goes on until all is read and durable, or a signal comes.
pub(super) async fn until(running: &Running, signals: &mut Signals, shown: &mut Shown) -> End {
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

/// Ends the pipeline, and says how all of it ended.
pub(super) async fn stop(running: Running, drain: Duration, end: End) -> End {
    match running.stop(drain).await {
        Ok(stopped) => {
            if !stopped.drained {
                warn!(epochs = stopped.epochs_open, "not everything was durable; it is read again");
            }
            end
        }
        Err(broken) => match end {
            End::Failed(said) => End::Failed(said),
            End::Done | End::Signal(_) => End::Failed(broken.to_string()),
        },
    }
}

/// What is shown of work under way, and of its end.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) job: String,
    /// `running`, `done`, `remains`, `stopped` or `failed`.
    pub(super) state: &'static str,
    /// None: nobody knows before all is read.
    pub(super) total: Option<i64>,
    pub(super) looked_at: i64,
    /// Of the last seconds.
    pub(super) rows_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) eta_seconds: Option<f64>,
    pub(super) seconds: f64,
    pub(super) gave_way_seconds: f64,
    /// Of all processes that have run it.
    pub(super) counts: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
}

impl Report {
    pub(super) fn code(&self) -> u8 {
        match self.state {
            "done" => 0,
            "remains" => REMAINS,
            "stopped" => STOPPED,
            _ => 1,
        }
    }
}

/// How a command calls what it counts.
pub(super) struct Words {
    /// What is looked at.
    pub(super) what: &'static str,
    /// The counts that stand beside the bar.
    pub(super) beside: &'static [&'static str],
    /// What each count means, in the order of showing.
    pub(super) says: &'static [(&'static str, &'static str)],
    /// What is not gone, and will not be by time alone.
    pub(super) remains: &'static [(&'static str, &'static str)],
    /// What follows when it is stopped.
    pub(super) stopped: &'static str,
}

/// Where what is shown is read.
pub(super) struct Gauge {
    pub(super) total: Option<i64>,
    /// What earlier processes had looked at.
    pub(super) before: i64,
    pub(super) looked_at: Box<dyn Fn() -> i64 + Send + Sync>,
    pub(super) gave_way: Box<dyn Fn() -> Duration + Send + Sync>,
    /// What earlier processes counted.
    pub(super) counts_before: BTreeMap<String, u64>,
    pub(super) tally: Arc<Tally>,
}

pub(super) struct Shown {
    name: String,
    gauge: Gauge,
    words: &'static Words,
    bar: Option<ProgressBar>,
    json: bool,
    begun: Instant,
    told: Instant,
    /// What was looked at, and when: the newest is pushed last.
    marks: VecDeque<(Instant, i64)>,
}

impl Shown {
    pub(super) fn new(name: &str, json: bool, gauge: Gauge, words: &'static Words) -> Self {
        let bar = (!json && std::io::stderr().is_terminal()).then(|| {
            let (bar, template) = match gauge.total {
                Some(total) => (
                    ProgressBar::new(total.unsigned_abs()),
                    "{prefix} {bar:30} {human_pos} of {human_len} {msg}",
                ),
                None => (ProgressBar::no_length(), "{prefix} {spinner} {human_pos} {msg}"),
            };
            let style = ProgressStyle::with_template(template).expect("the template is whole");
            bar.set_style(style.progress_chars("━╸ "));
            bar.with_prefix(name.escape_debug().to_string())
        });
        let now = Instant::now();
        let marks = [(now, (gauge.looked_at)())].into();
        Self { name: name.to_owned(), gauge, words, bar, json, begun: now, told: now, marks }
    }

    fn counts(&self) -> BTreeMap<String, u64> {
        let mut all = self.gauge.counts_before.clone();
        for (name, count) in self.gauge.tally.counts() {
            *all.entry(name).or_default() += count;
        }
        all
    }

    fn now(&self, state: &'static str, reason: Option<String>) -> Report {
        let looked_at = (self.gauge.looked_at)();
        let rate = self.marks.front().map_or(0.0, |(at, then)| {
            (looked_at - then) as f64 / at.elapsed().as_secs_f64().max(0.001)
        });
        let left = self.gauge.total.map(|total| (total - looked_at).max(0) as f64);
        let is_running = state == "running";
        Report {
            job: self.name.clone(),
            state,
            total: self.gauge.total,
            looked_at,
            rows_per_second: if is_running {
                rate
            } else {
                (looked_at - self.gauge.before) as f64
                    / self.begun.elapsed().as_secs_f64().max(0.001)
            },
            eta_seconds: left.filter(|_| is_running && rate > 0.0).map(|left| left / rate),
            seconds: self.begun.elapsed().as_secs_f64(),
            gave_way_seconds: (self.gauge.gave_way)().as_secs_f64(),
            counts: self.counts(),
            reason,
        }
    }

    pub(super) fn tick(&mut self) {
        let now = Instant::now();
        self.marks.push_back((now, (self.gauge.looked_at)()));
        while self.marks.len() > 2 && self.marks[1].0.elapsed() > RATE_OF {
            self.marks.pop_front();
        }
        if let Some(bar) = &self.bar {
            let report = self.now("running", None);
            bar.set_position(report.looked_at.unsigned_abs());
            bar.set_message(beside(&report, self.words));
        } else if self.told.elapsed() >= TELL {
            self.told = now;
            // A reader that went away is no reason to stop.
            if let Ok(line) = serde_json::to_string(&self.now("running", None)) {
                println!("{line}");
            }
        }
    }

    pub(super) fn report(&self, end: &End) -> Report {
        let counts = self.counts();
        let is_left = |name: &str| counts.get(name).is_some_and(|count| *count > 0);
        let remains = self.words.remains.iter().any(|(name, _)| is_left(name));
        let state = match end {
            End::Failed(_) => "failed",
            End::Signal(_) => "stopped",
            End::Done if remains => "remains",
            End::Done => "done",
        };
        self.now(state, end.reason())
    }

    /// The last word: a line of JSON, or lines for people.
    pub(super) fn finish(&self, report: &Report) -> anyhow::Result<()> {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.json || self.bar.is_none() {
            println!("{}", serde_json::to_string(report)?);
        } else {
            print!("{}", text(report, self.words));
        }
        if let Some(reason) = &report.reason {
            eprintln!("{}: {reason}", report.job.escape_debug());
        }
        Ok(())
    }
}

/// What stands beside the bar.
pub(super) fn beside(report: &Report, words: &Words) -> String {
    let count =
        |name: &&str| format!("{name} {}", report.counts.get(*name).copied().unwrap_or_default());
    let eta = report.eta_seconds.and_then(|eta| Duration::try_from_secs_f64(eta.ceil()).ok());
    let eta = eta.map_or_else(|| "?".to_owned(), |eta| humantime::format_duration(eta).to_string());
    let counts: Vec<String> = words.beside.iter().map(count).collect();
    format!("{:.0}/s, {eta} left; {}", report.rows_per_second, counts.join(", "))
}

pub(super) fn text(report: &Report, words: &Words) -> String {
    let name = report.job.escape_debug();
    let of = report.total.map_or_else(String::new, |total| format!(" of {total}"));
    let mut text = format!(
        "{name}: {}{of} {} looked at in {:.0} s ({:.0}/s)\n",
        report.looked_at, words.what, report.seconds, report.rows_per_second
    );
    for (what, meaning) in words.says.iter().chain(words.remains) {
        if let Some(count) = report.counts.get(*what).filter(|count| **count > 0) {
            text += &format!("    {count} {meaning}\n");
        }
    }
    if report.gave_way_seconds > 0.0 {
        text += &format!("    gave way to live traffic for {:.0} s\n", report.gave_way_seconds);
    }
    if report.state == "stopped" {
        text += &format!("    {}\n", words.stopped);
    }
    text
}
