//! `tombstream replay`: history once more through the pipeline, to the end that it has now.
//!
//! A pipeline of one source, like that of a backfill, and with no more rights: an old event can do nothing but make
//! the claim look at its row as it is now.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use chrono::{DateTime, Utc};
use tombstream_connectors::files::{FilesConfig, FilesSource, Gap};
use tombstream_connectors::kafka::{KafkaReplay, KafkaSpan, OffsetSpan};
use tombstream_connectors::positions::NoPositions;
use tombstream_connectors::postgres::{Count, ReplayLedger, Replayed, Tally};
use tombstream_connectors::{Replay, ReplayConfig, ReplayProgress};
use tombstream_dataflow::{ErasedSource, Pipeline};
use tombstream_model::Source;
use tracing::error;

use super::work::{End, Gauge, Report, Shown, Words, limits, stop, until};
use super::{Failure, hold::time};
use crate::audit::Reverify;
use crate::config::Config;
use crate::shutdown::Signals;
use crate::wiring;

#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("history").required(true),
    after_help = "Dead letters are driven again by `tombstream dead-letters redrive`.\n\
                  Exit codes: 0 all is read, and what is due is gone; 1 failed; 2 wrong command line or configuration; \
                  3 all is read, and some of it is parked, owed, held, locked, kept back or can't be decoded; 4 stopped: \
                  the same command begins anew."
)]
pub(super) struct Args {
    /// Files of change events: JSON Lines (plain, gzip, zstd) in a folder or a bucket, such as file:///srv/dump or
    /// s3://bucket/prefix.
    #[arg(long, group = "history", value_name = "URL")]
    files: Option<String>,
    /// Parquet files in a folder or a bucket: messages (a column `value`, perhaps `key` and `topic`), or an archive.
    #[arg(long, group = "history", value_name = "URL")]
    parquet: Option<String>,
    /// The place of `[archive]`.
    #[arg(long, group = "history")]
    archive: bool,
    /// The topics of [source.kafka], without its group.
    #[arg(long, group = "history")]
    kafka: bool,
    /// Of Kafka: stretches of partitions, both ends in them, such as documents:0:100-200 or documents:0:100-; may be
    /// repeated.
    #[arg(long, group = "history", value_name = "TOPIC:PARTITION:FIRST-LAST")]
    offsets: Vec<OffsetSpan>,
    /// Of Kafka: only this topic; may be repeated. Of files: the topic of what names none.
    #[arg(long, value_name = "TOPIC")]
    topic: Vec<String>,
    /// Of Kafka: only this partition; may be repeated.
    #[arg(long, value_name = "NUMBER", requires = "kafka")]
    partition: Vec<i32>,
    /// Of Kafka and archives: what was written at this time or later, such as 2025-01-31T00:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with_all = ["files", "offsets"])]
    from: Option<DateTime<Utc>>,
    /// Of Kafka and archives: what was written before this time. By default up to the end that there is now.
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with_all = ["files", "offsets"])]
    to: Option<DateTime<Utc>>,
    /// Say what would be destroyed, what is done already, and what lives. Nothing is written, and no store is asked.
    #[arg(long)]
    dry_run: bool,
    /// Look in the stores, too, whether copies of what is finalized are there again; what is found is destroyed again by
    /// `tombstream run`. As fast as `[audit]` allows.
    #[arg(long, conflicts_with = "dry_run")]
    reverify: bool,
    /// Most events a second. By default as fast as it goes.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// JSON lines instead of a bar, also on a terminal.
    #[arg(long)]
    json: bool,
}

/// What the counts of a replay mean.
const WORDS: Words = Words {
    what: "events",
    beside: &["claimed", "done", "alive", "parked"],
    says: &[
        ("matched", "keys given to the claim"),
        ("claimed", "claimed"),
        ("finalized", "gone, with a receipt"),
        ("hidden", "hidden: the rest waits for its grace"),
        ("due", "would be destroyed"),
        ("hide_due", "would be hidden: their recoverable copies destroyed"),
        ("done", "done before: the row is gone, with a receipt"),
        ("alive", "alive: not flagged now"),
        ("restored", "alive: restored"),
        ("waiting", "in their grace: `tombstream run` takes them when it is over"),
        ("gone", "without a row, and the ledger knows of no deletion"),
        ("underway", "claimed already, by another process"),
        ("removals", "events tell of a removed row"),
        ("looked", "places of copies looked at in the stores"),
        ("reused", "copies there under keys that have a row again, and left"),
        ("other_relation", "of relations that are not configured here"),
        ("truncates", "events tell of a truncated relation: nothing follows from them"),
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
        ("paused", "of a paused relation: tombstream resume"),
        (
            "locked",
            "locked by the application at that moment: `tombstream run`'s sweep brings them",
        ),
        ("undecodable", "can't be decoded: tombstream dead-letters list"),
        ("resurrected", "copies are there again: `tombstream run` destroys them"),
        (
            "unclear",
            "places of copies could not be looked at: `tombstream run` looks again, or see the log",
        ),
        ("unread", "files were not read to their end: they are gone"),
        ("unknown", "not claimed, and why could not be looked up: see the log"),
    ],
    stopped: "stopped: the same command begins anew, and what is done is only looked at",
};

pub(super) async fn replay(config: Config, args: Args) -> Result<(), Failure> {
    let report = run(config, args).await?;
    match report.code() {
        0 => Ok(()),
        1 => Err(Failure::Said),
        code => Err(Failure::Code(code)),
    }
}

async fn run(config: Config, args: Args) -> anyhow::Result<Report> {
    let mut signals = Signals::listen().context("signals")?;
    let pool = wiring::connect_ledger(&config.database, "tombstream-replay").await?;
    let does = if args.dry_run { Replayed::LookedAt } else { Replayed::Claimed };
    if does == Replayed::Claimed {
        super::run::fit(&config, &pool).await?;
    }
    let tally = Arc::new(Tally::default());
    let History { source, progress, total } = history(&config, &args, &tally).await?;
    let reverify = match args.reverify {
        true => Reverify::start(&config, pool.clone(), &progress, &tally)?,
        false => Reverify::default(),
    };
    let ledger = wiring::ledger(&config, wiring::ledger_config(&config), pool)?;
    let ledger = ReplayLedger::new(ledger, &config.relations, does, Arc::clone(&tally), reverify);
    let pipeline = Pipeline {
        config: limits(&config),
        relations: Arc::clone(&config.relations),
        ledger: Arc::new(ledger),
        stores: wiring::stores(&config)?,
        sources: vec![source],
    };
    let running = pipeline.start(tokio::runtime::Handle::current())?;
    let gauge = Gauge {
        total,
        before: 0,
        looked_at: {
            let progress = Arc::clone(&progress);
            Box::new(move || progress.looked_at())
        },
        gave_way: Box::new(|| Duration::ZERO),
        counts_before: BTreeMap::new(),
        tally,
    };
    let mut shown = Shown::new("replay", args.json, gauge, &WORDS);
    let mut end = until(&running, &mut signals, &mut shown).await;
    while matches!(end, End::Done) && progress.behind() > 0 {
        tokio::select! {
            signal = signals.next() => end = End::Signal(signal),
            () = tokio::time::sleep(Duration::from_millis(200)) => shown.tick(),
        }
    }
    let end = stop(running, config.pipeline.drain_max, end).await;
    let report = shown.report(&end);
    shown.finish(&report)?;
    Ok(report)
}

/// What is read.
struct History {
    source: Box<dyn ErasedSource>,
    progress: Arc<ReplayProgress>,
    /// How many events there are, where that is known.
    total: Option<i64>,
}

impl History {
    fn of(source: impl Source, args: &Args, total: Option<i64>) -> Self {
        let source = Replay::new(source, ReplayConfig { rate_max: args.rate });
        Self { progress: source.progress(), source: Box::new(source), total }
    }
}

async fn history(config: &Config, args: &Args, tally: &Arc<Tally>) -> anyhow::Result<History> {
    let topic = args.topic.first().map(String::as_str);
    if let Some(url) = &args.files {
        let tally = Arc::clone(tally);
        let on_gap = move |gap: &Gap| {
            tally.add(Count::Unread, 1);
            error!(file = gap.file, next = gap.next, "a file is gone that was not read to its end");
        };
        let place = wiring::replayed_place(config, url, topic)?;
        let source = FilesSource::new(&place, NoPositions, on_gap);
        return Ok(History::of(source.with_context(|| format!("--files {url}"))?, args, None));
    }
    if let Some(url) = &args.parquet {
        let place = wiring::replayed_place(config, url, topic)?;
        return parquet(config, args, tally, place)
            .await
            .with_context(|| format!("--parquet {url}"));
    }
    if args.archive {
        let Some(section) = &config.archive else {
            bail!(
                "there is no [archive] in the configuration: name another one's place with --parquet"
            )
        };
        let place = wiring::archive_place(section)?;
        return parquet(config, args, tally, place).await.context("archive");
    }
    let Some(section) = &config.source.kafka else {
        bail!(
            "there is no [source.kafka]: its settings say where the brokers are, also if nothing reads from them now"
        )
    };
    let topics = match (args.kafka, args.topic.is_empty()) {
        (false, _) => Vec::new(),
        (true, true) => wiring::topics(config),
        (true, false) => args.topic.clone(),
    };
    let span = KafkaSpan {
        topics,
        partitions: args.partition.clone(),
        from: args.from,
        to: args.to,
        offsets: args.offsets.clone(),
    };
    let source = KafkaReplay::open(&wiring::kafka_config(section), span).await?;
    let total = source.total();
    Ok(History::of(source, args, Some(total)))
}

#[cfg(feature = "parquet")]
async fn parquet(
    config: &Config,
    args: &Args,
    tally: &Arc<Tally>,
    files: FilesConfig,
) -> anyhow::Result<History> {
    use tombstream_connectors::files::parquet::{ParquetConfig, ParquetSource};
    let tally = Arc::clone(tally);
    let on_other = move |rows| tally.add(Count::OtherRelation, rows);
    let place = ParquetConfig { files, from: args.from, to: args.to };
    let source = ParquetSource::open(place, Arc::clone(&config.relations), on_other).await?;
    Ok(History::of(source, args, None))
}

#[cfg(not(feature = "parquet"))]
async fn parquet(
    _config: &Config,
    _args: &Args,
    _tally: &Arc<Tally>,
    _files: FilesConfig,
) -> anyhow::Result<History> {
    bail!(
        "this build of tombstream reads no Parquet: build it with the feature parquet, a default one"
    )
}
