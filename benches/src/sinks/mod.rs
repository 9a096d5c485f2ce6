//! The sinks of S3 and Elasticsearch with all that stands before them, beside a tight loop of requests that were made
//! beforehand.
//!
//! The loop is the least that deletes so many copies: a thousand a request, as many requests in flight as a sink
//! has, bodies built (for S3 signed, too) before the clock runs, answers read and looked at for an error. It is charged
//! with nothing else: no claim, no fence, no look before or after. The sink's side is the pipeline from its start to
//! its end with a null ledger, whose keys come from memory; decoding is not in it. Both meet the same copies, newly
//! made before each run; after it the store is listed and must be empty.
//!
//! Three ways to run the sink of S3, two that of Elasticsearch:
//! - `default`: as it is configured by default. S3: a HEAD of each key before its delete, one in a hundred looked up
//!   afterwards. Elasticsearch: each document read before its delete, and again afterwards.
//! - `trust`: nothing is looked up afterwards. The looks before remain.
//! - `trust_unprobed` (S3 alone): nor before; `probe = false`.
//!
//! The pace that S3 asks for (3,500 keys a second of a bucket) is lifted, or it would be all that is measured.

mod documents;
mod objects;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::{Args, ValueEnum};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;
use serde_json::{Value, json};
use tombstream_dataflow::{Config, Store, StoreConfig};
use tombstream_model::{Address, Key, Records, Sink, StoreId};

use crate::cpu::{Drained, own_processor_seconds};
use crate::figures::{Ratio, median, processors, walls};
use crate::memory::drive;
use crate::null::NullLedger;
use crate::scene::candidate;
use crate::server::file_system;
use crate::slot::relation;

#[derive(Args)]
pub(crate) struct Options {
    /// How many copies each side deletes in a round
    #[arg(long, default_value_t = 10_000)]
    keys: usize,
    /// How often the sides take turns
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// One of them alone
    #[arg(long, value_enum)]
    only: Option<StoreName>,
    /// Where the S3 server keeps its data, for the record: its disk decides its speed
    #[arg(long, env = "S3_DATA_DIR", value_name = "DIR")]
    s3_data: Option<PathBuf>,
    /// Timely workers
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StoreName {
    S3,
    Elasticsearch,
}

/// Keys of one request of the loop: the most that S3 takes, and the default of both sinks.
const BATCH: usize = 1_000;

/// A store, the loop that deletes from it, and the ways to run its sink.
trait Scene {
    /// The ways, beside the loop.
    fn ways(&self) -> &'static [&'static str];

    /// Makes the copies of these ids.
    async fn fill(&self, ids: &[String]) -> Result<()>;

    /// An error unless nothing is left.
    async fn must_be_empty(&self) -> Result<()>;

    /// Deletes all of them by requests that are made before the clock runs.
    async fn tight_loop(&self, ids: &[String], in_flight: usize) -> Result<Drained>;

    /// Where the copy of a key is, as a function of its own.
    fn copy(&self) -> Box<dyn Fn(&Key) -> Address + Send + Sync>;

    /// The store, with a new sink.
    fn store(&self, way: &str) -> Result<Store>;

    async fn remove(self) -> Result<()>;
}

/// One side's figures.
#[derive(Serialize)]
struct Side {
    keys_per_s: f64,
    cpu_s: f64,
    /// Against the loop; none for the loop itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<Ratio>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio_cpu: Option<Ratio>,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let mut line = json!({
        "bench": "sinks", "keys": options.keys, "rounds": options.rounds, "workers": options.workers,
        "batch": BATCH, "in_flight": StoreConfig::default().stage.in_flight_max,
    });
    if options.only != Some(StoreName::Elasticsearch) {
        line["s3"] = measure(&options, objects::Objects::make().await?).await?;
        line["s3"]["data_on"] = json!(options.s3_data.as_deref().and_then(file_system));
    }
    if options.only != Some(StoreName::S3) {
        line["elasticsearch"] = measure(&options, documents::Documents::make().await?).await?;
    }
    if options.json {
        println!("{line}");
    } else {
        println!("{line:#}");
    }
    Ok(())
}

async fn measure(options: &Options, scene: impl Scene) -> Result<Value> {
    let measured = rounds(options, &scene).await;
    let removed = scene.remove().await;
    let sides = measured?;
    removed?;
    Ok(sides)
}

async fn rounds(options: &Options, scene: &impl Scene) -> Result<Value> {
    let ids: Vec<String> =
        (0..options.keys).map(|_| uuid::Uuid::new_v4().hyphenated().to_string()).collect();
    let ways = scene.ways();
    let mut drained: Vec<Vec<Drained>> = vec![Vec::new(); ways.len() + 1];
    // A server that has just started is slow at first, whoever asks.
    scene.fill(&ids).await?;
    scene.tight_loop(&ids, StoreConfig::default().stage.in_flight_max).await?;
    scene.must_be_empty().await?;
    for round in 0..options.rounds {
        for turn in 0..=ways.len() {
            let side = (turn + round) % (ways.len() + 1);
            scene.fill(&ids).await?;
            let in_flight = StoreConfig::default().stage.in_flight_max;
            drained[side].push(match side.checked_sub(1).map(|way| ways[way]) {
                None => scene.tight_loop(&ids, in_flight).await?,
                Some(way) => through_sink(options, scene, way, &ids).await?,
            });
            scene.must_be_empty().await?;
        }
        for (side, name) in std::iter::once(&"loop").chain(ways).enumerate() {
            let Drained { wall, processor } = drained[side][round];
            eprintln!("round {round}: {name} {wall:.3} s wall, {processor:.3} s processor");
        }
    }
    let plain = &drained[0];
    let mut sides = json!({});
    for (name, of) in std::iter::once(&"loop").chain(ways).zip(&drained) {
        let is_loop = *name == "loop";
        sides[*name] = serde_json::to_value(Side {
            keys_per_s: (options.keys as f64 / median(&walls(of))).round(),
            cpu_s: median(&processors(of)),
            ratio: (!is_loop).then(|| Ratio::of(&walls(plain), &walls(of))),
            ratio_cpu: (!is_loop).then(|| Ratio::of(&processors(plain), &processors(of))),
        })?;
    }
    Ok(sides)
}

async fn through_sink(
    options: &Options,
    scene: &impl Scene,
    way: &str,
    ids: &[String],
) -> Result<Drained> {
    // Pages as the sweep reads them.
    let polls: Vec<Records> = ids
        .chunks(BATCH)
        .map(|some| Records::Candidates(some.iter().cloned().map(candidate).collect()))
        .collect();
    let config = Config { workers: options.workers, ..Config::default() };
    let ledger = NullLedger::of(scene.copy());
    let polls = polls.into_iter();
    drive(config, relation()?, ledger, scene.store(way)?, polls, ids.len() as u64).await
}

/// A store of that sink, with default limits.
fn store_of(name: &str, sink: impl Sink, verify: tombstream_dataflow::Verify) -> Store {
    Store {
        id: StoreId(0),
        name: name.into(),
        sink: std::sync::Arc::new(sink),
        config: StoreConfig { verify, ..StoreConfig::default() },
    }
}

/// Sends requests that are made already, so many at a time.
async fn send_all<R, F>(
    requests: Vec<R>,
    in_flight: usize,
    send: impl Fn(R) -> F,
) -> Result<Drained>
where
    F: Future<Output = Result<()>>,
{
    let (begun, before) = (Instant::now(), own_processor_seconds());
    let sent = stream::iter(requests).map(send).buffer_unordered(in_flight);
    sent.try_for_each(|()| async { Ok(()) }).await?;
    Ok(Drained { wall: begun.elapsed().as_secs_f64(), processor: own_processor_seconds() - before })
}
