//! What a deletion costs the pipeline with real stores, and what an event costs it in a run of one million and of ten.
//!
//! **Deletions**: the built binary runs and reads Postgres's log when the flags are written; its processor time is
//! counted from the first flag to the last row's end. Scaled to a million deletions: the run is smaller. What the
//! servers need is not in it.
//!
//! **Events**: the pipeline in this process, with a null ledger and a null sink. What lives is said by the same
//! 100,000 events over and over, each deletion is another; a clone of each event is charged to the pipeline.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tombstream_dataflow::Config;
use tombstream_model::{Event, Records};

use crate::cpu::{Drained, memory, processor_seconds};
use crate::envelope::envelope;
use crate::figures::{Ratio, median, processors, walls};
use crate::installation::{Documents, Installation, Setting, Source, Way, binary};
use crate::memory::drive;
use crate::null::{NullLedger, store};
use crate::slot::relation;

#[derive(Args)]
pub(crate) struct Options {
    /// How many documents are deleted in a round
    #[arg(long, default_value_t = 20_000)]
    documents: usize,
    /// How many events the two runs have
    #[arg(long, num_args = 2, default_values_t = [1_000_000, 10_000_000])]
    events: Vec<usize>,
    /// One event in so many is a deletion
    #[arg(long, default_value_t = 20)]
    one_in: usize,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Timely workers
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// One part alone; `events` needs no server
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Tombstream's binary [default: the one beside this]
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Deletions,
    Events,
}

/// Different events of rows that live.
const LIVING: usize = 100_000;
/// How the deletions are driven.
const WAYS: [Way; 2] = [Way::Default, Way::TrustUnprobed];
/// Events of one poll: the default of the source of Kafka.
const POLL: usize = 1_000;

pub(crate) async fn run(options: Options) -> Result<()> {
    let mut line =
        json!({ "bench": "deletions", "rounds": options.rounds, "workers": options.workers });
    if options.only != Some(Part::Deletions) {
        line["events"] = events(&options).await?;
    }
    if options.only != Some(Part::Events) {
        line["deletions"] = deletions(&options).await?;
    }
    if options.json {
        println!("{line}");
    } else {
        println!("{line:#}");
    }
    Ok(())
}

async fn deletions(options: &Options) -> Result<Value> {
    let binary = binary(options.binary.as_ref())?;
    let mut drained: [Vec<Drained>; WAYS.len()] = Default::default();
    for round in 0..options.rounds {
        for turn in 0..WAYS.len() {
            let side = (turn + round) % WAYS.len();
            let one = delete(options, &binary, WAYS[side]).await?;
            eprintln!(
                "round {round}: {}: {} documents in {:.2} s, {:.2} s processor",
                WAYS[side].name(),
                options.documents,
                one.wall,
                one.processor
            );
            drained[side].push(one);
        }
    }
    let mut line = json!({ "documents": options.documents });
    let count = options.documents as f64;
    for (way, drained) in WAYS.iter().zip(&drained) {
        let scaled: Vec<f64> = processors(drained).iter().map(|it| it / count * 1e6).collect();
        line[way.name()] = json!({
            "documents_per_s": (count / median(&walls(drained))).round(),
            "cpu_s_per_million": Ratio::spread(&scaled),
        });
    }
    Ok(line)
}

async fn delete(options: &Options, binary: &Path, way: Way) -> Result<Drained> {
    let documents = Documents::make(options.documents).await?;
    let played = async {
        let (s3, elasticsearch) = (&documents.servers.s3, &documents.servers.elasticsearch);
        let workers = options.workers;
        let setting = Setting { source: Source::Log, way, workers, s3, elasticsearch };
        let installation = Installation::make(binary.to_owned(), &documents, &setting).await?;
        let drained = live(&installation, &documents).await?;
        installation.remove()?;
        anyhow::Ok(drained)
    };
    let played = played.await;
    documents.remove().await?;
    played
}

async fn live(installation: &Installation, documents: &Documents) -> Result<Drained> {
    let mut running = installation.run().await?;
    let process = running.id().context("it runs")?.to_string();
    let (begun, before) = (Instant::now(), processor_seconds(&process));
    documents.flag().await?;
    documents.until_rows_are_gone(|| running.check()).await?;
    let drained = Drained {
        wall: begun.elapsed().as_secs_f64(),
        processor: processor_seconds(&process) - before,
    };
    let status = running.stop().await?;
    ensure!(status.success(), "`tombstream run` ended: {status}");
    installation.judge(documents).await?;
    Ok(drained)
}

async fn events(options: &Options) -> Result<Value> {
    let most = options.events.iter().max().copied().unwrap_or_default();
    let living: Vec<Event> = (0..LIVING).map(|n| envelope(n, false, false)).collect();
    let deletions: Vec<Event> =
        (0..most.div_ceil(options.one_in)).map(|n| envelope(LIVING + n, true, false)).collect();
    let mut drained: Vec<Vec<Drained>> = vec![Vec::new(); options.events.len()];
    for round in 0..options.rounds {
        for turn in 0..options.events.len() {
            let side = (turn + round) % options.events.len();
            let count = options.events[side];
            let one = events_of(options, count, &living, &deletions).await?;
            eprintln!(
                "round {round}: {count} events in {:.2} s, {:.2} s processor",
                one.wall, one.processor
            );
            drained[side].push(one);
        }
    }
    let for_one = |side: usize, all: Vec<f64>| -> Vec<f64> {
        all.iter().map(|it| it / options.events[side] as f64 * 1e6).collect()
    };
    let figures = |side: usize| {
        json!({
            "events": options.events[side],
            "events_per_s": (options.events[side] as f64 / median(&walls(&drained[side]))).round(),
            "cpu_us_an_event": median(&for_one(side, processors(&drained[side]))),
        })
    };
    let (few, many) = (for_one(0, processors(&drained[0])), for_one(1, processors(&drained[1])));
    Ok(json!({
        "deletions_one_in": options.one_in, "few": figures(0), "many": figures(1),
        "cpu_of_one_in_many_by_few": Ratio::of(&many, &few), "peak_memory_bytes": memory("VmHWM:"),
    }))
}

async fn events_of(
    options: &Options,
    count: usize,
    living: &[Event],
    deletions: &[Event],
) -> Result<Drained> {
    let (living, deletions) = (living.to_vec(), deletions.to_vec());
    let one_in = options.one_in;
    let event = move |n: usize| match n % one_in {
        0 => deletions[n / one_in].clone(),
        _ => living[n % LIVING].clone(),
    };
    let polls = (0..count.div_ceil(POLL)).map(move |poll| {
        Records::Events((poll * POLL..count.min((poll + 1) * POLL)).map(&event).collect())
    });
    let config = Config { workers: options.workers, ..Config::default() };
    let gone = count.div_ceil(options.one_in) as u64;
    drive(config, relation()?, NullLedger::default(), store(), polls, gone).await
}
