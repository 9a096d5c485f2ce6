//! The Elasticsearch leg, beside Bento: a topic's flags until their documents are gone from an index. `peers/bento` is the
//! other side, and its README says how it was tuned.
//!
//! Each side is a process that reads a topic of its own, with the same events, and deletes from an index of its own on the
//! same servers. Tombstream's (`leg.rs`) has a ledger in memory that claims all: Bento has none, and what Postgres does is
//! not compared here. Two ways to run it: `default` reads each document again after its delete, `trust` does not; both
//! read it before, and delete on condition of what they read. Bento sends the delete, and nothing else.
//!
//! Starting is not charged. A process first deletes the documents of a warm-up, so that it has its partitions and its
//! connections. Then it is stopped (SIGSTOP) while the events are written, so that their writer takes no processor from it,
//! and the clock begins when it goes on. It stops when Elasticsearch has counted the last delete, asked every
//! 10 ms on both sides; for Tombstream not before every deletion is finalized, too. Processor time is the
//! process's own, read somewhat later, when what was still on its way is over. At the end the index is listed, and
//! must be empty.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{sleep, timeout};
use tombstream_e2e::{Index, Record, Topic};
use uuid::Uuid;

use crate::cpu::{Drained, processor_seconds};
use crate::envelope::flag_event;
use crate::figures::{Ratio, median, processors, walls};
use crate::server;

#[derive(Args)]
pub(crate) struct Options {
    /// How many documents each side deletes in a round
    #[arg(long, default_value_t = 20_000)]
    documents: usize,
    /// How often the sides take turns
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[arg(long, default_value_t = 4)]
    partitions: i32,
    /// Timely workers of Tombstream
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// What `go build` makes of benches/peers/bento
    #[arg(long, env = "TOMBSTREAM_BENCH_PEER")]
    bento: PathBuf,
    /// Bento's configuration, to try another
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/bento/deletes.yaml"))]
    config: PathBuf,
    /// One side alone, to try how it is tuned
    #[arg(long, value_enum)]
    only: Option<Side>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// Enough for every partition, and for whole batches.
const WARM_UP: usize = 4_000;
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Between the writing and the clock, and between the last delete and the reading of the processor time.
const REST: Duration = Duration::from_millis(300);
/// A stopped process sends no heartbeat: below the 10 s after which Tombstream's group is balanced anew.
const STOPPED_MAX: Duration = Duration::from_secs(8);
/// Far beyond what any run takes.
const PATIENCE: Duration = Duration::from_secs(300);

/// What deletes.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Side {
    Bento,
    /// With the read-back, which is the default.
    Default,
    /// Without.
    Trust,
}

const SIDES: [(&str, Side); 3] =
    [("bento", Side::Bento), ("default", Side::Default), ("trust", Side::Trust)];

pub(crate) async fn run(options: Options) -> Result<()> {
    ensure!(options.bento.is_file(), "{} is not there", options.bento.display());
    // A server that has just started is slow at first, whoever asks.
    drain(&options, options.only.unwrap_or(Side::Bento)).await?;
    let mut sides: [Vec<Drained>; SIDES.len()] = Default::default();
    for round in 0..options.rounds {
        for turn in 0..SIDES.len() {
            let at = (turn + round) % SIDES.len();
            let (name, side) = SIDES[at];
            if options.only.is_some_and(|only| only != side) {
                continue;
            }
            let drained = drain(&options, side).await.context(name)?;
            eprintln!(
                "round {round}: {name}: {} documents in {:.3} s, {:.2} s processor",
                options.documents, drained.wall, drained.processor
            );
            sides[at].push(drained);
        }
    }
    let mut line = json!({
        "bench": "bento", "documents": options.documents, "rounds": options.rounds,
        "partitions": options.partitions, "workers": options.workers,
    });
    let bento = &sides[0];
    for ((name, _), of) in SIDES.iter().zip(&sides).filter(|(_, of)| !of.is_empty()) {
        let documents = options.documents as f64;
        line[*name] = json!({
            "documents_per_s": (documents / median(&walls(of))).round(),
            "cpu_s_per_1000": median(&processors(of)) * 1_000.0 / documents,
        });
        if *name != "bento" && !bento.is_empty() {
            line[*name]["ratio"] = json!(Ratio::of(&walls(bento), &walls(of)));
            line[*name]["ratio_cpu"] = json!(Ratio::of(&processors(bento), &processors(of)));
        }
    }
    if options.json {
        println!("{line}");
    } else {
        println!("{line:#}");
    }
    Ok(())
}

async fn drain(options: &Options, side: Side) -> Result<Drained> {
    let name = server::new_name("bench_");
    let index = Index::make(&server::elasticsearch_url()?, &name).await?;
    let topic = Topic::make(&server::kafka_brokers()?, &name, options.partitions).await;
    let drained = match &topic {
        Ok(topic) => play(options, side, &index, topic).await,
        Err(error) => Err(anyhow::anyhow!("{error:#}")),
    };
    index.remove().await?;
    if let Ok(topic) = topic {
        topic.remove().await?;
    }
    drained
}

async fn play(options: &Options, side: Side, index: &Index, topic: &Topic) -> Result<Drained> {
    let ids: Vec<Uuid> = (0..WARM_UP + options.documents).map(|_| Uuid::new_v4()).collect();
    let (warm_up, backlog) = ids.split_at(WARM_UP);
    index.put(ids.iter().map(|id| (id.to_string(), json!({ "name": id })))).await?;
    // A listing refreshes: both sides meet documents that searches see.
    let made = index.list().await?.len();
    ensure!(made == ids.len(), "{made} of {} documents were made", ids.len());

    let deletes = Deletes::of(index)?;
    let mut process = Process::start(options, side, topic, &[warm_up.len(), ids.len()])?;
    topic.append(&events(warm_up, 0)).await?;
    process.until_deleted(&deletes, warm_up.len()).await.context("the warm-up")?;
    sleep(REST).await;

    let backlog = events(backlog, warm_up.len());
    let stopped = Instant::now();
    process.signal(Signal::STOP)?;
    topic.append(&backlog).await?;
    sleep(REST).await;
    ensure!(stopped.elapsed() < STOPPED_MAX, "writing the events took too long: fewer documents");
    let before = process.processor_seconds()?;
    let begun = Instant::now();
    process.signal(Signal::CONT)?;
    process.until_deleted(&deletes, ids.len()).await?;
    let wall = begun.elapsed().as_secs_f64();
    sleep(REST).await;
    let processor = process.processor_seconds()? - before;
    process.child.kill().await?;

    let left = index.list().await?.len();
    ensure!(left == 0, "{left} documents are left: what was counted was deleted twice");
    Ok(Drained { wall, processor })
}

/// The flags of these rows.
fn events(ids: &[Uuid], first: usize) -> Vec<Record> {
    let of = |(n, id): (usize, &Uuid)| {
        let event = flag_event(*id, 26_809_608 + (first + n) as u64 * 128);
        (event.key.map(|it| it.to_vec()), event.value.map(|it| it.to_vec()))
    };
    ids.iter().enumerate().map(of).collect()
}

/// How many deletes an index has done, told at once and without a refresh.
struct Deletes {
    client: reqwest::Client,
    url: String,
}

impl Deletes {
    fn of(index: &Index) -> Result<Self> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let (url, name) = (server::elasticsearch_url()?, index.name());
        Ok(Self { client, url: format!("{url}/{name}/_stats/indexing") })
    }

    async fn count(&self) -> Result<usize> {
        let answer = self.client.get(&self.url).send().await?.error_for_status()?;
        let answer: Value = serde_json::from_slice(&answer.bytes().await?)?;
        let count = answer["_all"]["primaries"]["indexing"]["delete_total"].as_u64();
        Ok(usize::try_from(count.context("statistics without deletes")?)?)
    }
}

/// A side's process. Dropping it kills it, also when it is stopped.
struct Process {
    child: Child,
    /// Where it says how many are finalized; Bento does not.
    said: Option<Lines<BufReader<ChildStdout>>>,
}

impl Process {
    /// `tell`: after how many deletions it is waited for.
    fn start(options: &Options, side: Side, topic: &Topic, tell: &[usize]) -> Result<Self> {
        // The index has the topic's name.
        let (brokers, elasticsearch) = (server::kafka_brokers()?, server::elasticsearch_url()?);
        let mut command = if side == Side::Bento {
            let mut command = Command::new(&options.bento);
            command.arg("-c").arg(&options.config);
            for (name, value) in BENTO.iter().zip([&*brokers, topic.name(), &*elasticsearch]) {
                command.env(name, value);
            }
            command.env("GOGC", GOGC).stdout(Stdio::null());
            command
        } else {
            let mut command = Command::new(std::env::current_exe()?);
            let tell: Vec<String> = tell.iter().map(usize::to_string).collect();
            command.arg("leg").args(["--tell", &tell.join(",")]);
            command.args(["--brokers", &brokers, "--topic", topic.name()]);
            command.args(["--elasticsearch", &elasticsearch, "--index", topic.name()]);
            command.args(["--workers", &options.workers.to_string()]);
            if side == Side::Trust {
                command.arg("--trust");
            }
            command.stdout(Stdio::piped());
            command
        };
        let child = command.stdin(Stdio::null()).kill_on_drop(true).spawn();
        let mut child = child.context("can't run a side's process")?;
        let said = child.stdout.take().map(|said| BufReader::new(said).lines());
        Ok(Self { child, said })
    }

    /// Waits until Elasticsearch has counted so many deletes, and the process has told so where it tells.
    async fn until_deleted(&mut self, deletes: &Deletes, count: usize) -> Result<()> {
        let begun = Instant::now();
        loop {
            let deleted = deletes.count().await?;
            if deleted >= count {
                break;
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the process ended: {status}");
            }
            ensure!(begun.elapsed() < PATIENCE, "{deleted} of {count} deletes after {PATIENCE:?}");
            sleep(LOOK_EVERY).await;
        }
        if let Some(said) = &mut self.said {
            let line = timeout(PATIENCE, said.next_line()).await.context("it tells nothing")??;
            ensure!(line == Some(count.to_string()), "it said {line:?} in place of {count}");
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Ok(kill_process(id.context("the process ended")?, signal)?)
    }

    fn processor_seconds(&self) -> Result<f64> {
        let id = self.child.id().context("the process ended")?;
        Ok(processor_seconds(&id.to_string()))
    }
}

/// Go collects garbage when the heap has grown by so many percent. Bento keeps little and throws much away: at Go's own 100
/// it takes 1.7 times the processor time.
const GOGC: &str = "800";

/// What Bento's configuration takes from the environment: brokers, topic (also the group and the index), Elasticsearch.
const BENTO: [&str; 3] = ["BENTO_KAFKA_BROKERS", "BENTO_TOPIC", "BENTO_ELASTICSEARCH_URL"];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn bentos_configuration_takes_what_it_is_given_and_nothing_else() {
        let text = include_str!("../peers/bento/deletes.yaml");
        let named: BTreeSet<&str> =
            text.split("${").skip(1).filter_map(|rest| rest.split('}').next()).collect();
        let variables = named.into_iter().filter(|name| !name.starts_with('!'));
        assert_eq!(variables.collect::<BTreeSet<_>>(), BTreeSet::from(BENTO));
    }
}
