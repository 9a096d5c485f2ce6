//! From a backlog of flags to rows that are gone: Tombstream as it is shipped, beside the proof of concept that it
//! replaces (`benches/peers/poc`, whose README says what that is and how it is given its best).
//!
//! Each side has documents of its own on the same servers, all flagged before its clock runs. The proof of concept is charged
//! from the first message of its backlog on, when its workers run and have their partitions; Tombstream from the start of
//! its process, which reads its backlog from Postgres's log. Both clocks stop when the table is empty; then both
//! stores must be. The sides have different numbers of documents, or one of them would run for minutes and the other for
//! a moment: what is compared is documents a second.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tombstream_e2e::Topic;

use crate::cpu::{Drained, processor_seconds};
use crate::figures::{Ratio, median};
use crate::installation::{Documents, Installation, Setting, Source, Way, binary};
use crate::server::file_system;

#[derive(Args)]
pub(crate) struct Options {
    /// How many documents Tombstream deletes in a run
    #[arg(long, default_value_t = 10_000)]
    documents: usize,
    /// How many the proof of concept does
    #[arg(long, default_value_t = 1_000)]
    poc_documents: usize,
    /// How often the sides take turns
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Processes of each of the proof of concept's three workers
    #[arg(long, default_value_t = 1)]
    instances: usize,
    /// Timely workers of Tombstream
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// A Python with benches/peers/poc/requirements.txt installed
    #[arg(long, env = "TOMBSTREAM_BENCH_PYTHON", default_value = "python3")]
    python: PathBuf,
    /// The proof of concept's folder
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/poc"))]
    poc: PathBuf,
    /// Tombstream's binary [default: the one beside this]
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Where the S3 server keeps its data, for the record: its disk decides its speed
    #[arg(long, env = "S3_DATA_DIR", value_name = "DIR")]
    s3_data: Option<PathBuf>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

const WORKERS: [&str; 3] = ["s3_worker.py", "elasticsearch_worker.py", "finalizer.py"];
const READY_MAX: Duration = Duration::from_secs(60);

/// Tombstream's runs.
const WAYS: [Way; 3] = [Way::Default, Way::Trust, Way::TrustUnprobed];

pub(crate) async fn run(options: Options) -> Result<()> {
    let binary = binary(options.binary.as_ref())?;
    has_what_it_imports(&options.python).await?;
    let mut sides: [Vec<Drained>; WAYS.len() + 1] = Default::default();
    for round in 0..options.rounds {
        for turn in 0..sides.len() {
            let side = (turn + round) % sides.len();
            let drained = match side.checked_sub(1) {
                None => proof_of_concept(&options).await?,
                Some(way) => tombstream(&options, &binary, WAYS[way]).await?,
            };
            let name = side.checked_sub(1).map_or("proof of concept", |way| WAYS[way].name());
            let documents = options.documents_of(side);
            eprintln!(
                "round {round}: {name}: {documents} documents in {:.2} s, {:.2} s processor",
                drained.wall, drained.processor
            );
            sides[side].push(drained);
        }
    }
    report(&options, &sides);
    Ok(())
}

impl Options {
    fn documents_of(&self, side: usize) -> usize {
        if side == 0 { self.poc_documents } else { self.documents }
    }
}

async fn has_what_it_imports(python: &Path) -> Result<()> {
    let imports = "import boto3, elasticsearch, kafka, psycopg";
    let tried = Command::new(python).args(["-c", imports]).stdin(Stdio::null()).output().await;
    let tried = tried.with_context(|| format!("can't run {}", python.display()))?;
    ensure!(
        tried.status.success(),
        "{} lacks a package of the proof of concept: make a venv, install \
         benches/peers/poc/requirements.txt into it, and name its python by TOMBSTREAM_BENCH_PYTHON\n{}",
        python.display(),
        String::from_utf8_lossy(&tried.stderr)
    );
    Ok(())
}

async fn tombstream(options: &Options, binary: &Path, way: Way) -> Result<Drained> {
    let documents = Documents::make(options.documents).await?;
    let played = async {
        let (s3, elasticsearch) = (&documents.servers.s3, &documents.servers.elasticsearch);
        let workers = options.workers;
        let setting = Setting { source: Source::Log, way, workers, s3, elasticsearch };
        let installation = Installation::make(binary.to_owned(), &documents, &setting).await?;
        documents.flag().await?;
        let drained = installation.drain(&documents).await?;
        installation.remove()?;
        anyhow::Ok(drained)
    };
    let played = played.await;
    documents.remove().await?;
    played
}

async fn proof_of_concept(options: &Options) -> Result<Drained> {
    let documents = Documents::make(options.poc_documents).await?;
    let partitions = i32::try_from(options.instances).context("too many instances")?;
    let topic = Topic::make(&documents.servers.kafka, &documents.name, partitions).await?;
    let played = play(options, &documents, &topic).await;
    topic.remove().await?;
    documents.remove().await?;
    played
}

async fn play(options: &Options, documents: &Documents, topic: &Topic) -> Result<Drained> {
    documents.flag().await?;
    let mut workers = Vec::new();
    for script in WORKERS.iter().flat_map(|script| std::iter::repeat_n(script, options.instances)) {
        workers.push(Worker::start(options, script, documents)?);
    }
    for worker in &mut workers {
        worker.until_ready().await?;
    }
    let messages: Vec<(String, Vec<u8>)> = documents.ids.iter().map(message).collect();
    let before = busy(&workers)?;
    let begun = Instant::now();
    let all = messages.iter().map(|(id, message)| (id.as_bytes(), Some(message.as_slice())));
    topic.write(all).await?;
    documents.until_rows_are_gone(|| workers.iter_mut().try_for_each(Worker::check)).await?;
    let wall = begun.elapsed().as_secs_f64();
    let processor = busy(&workers)? - before;
    for mut worker in workers {
        worker.child.kill().await?;
    }
    documents.copies_must_be_gone().await?;
    Ok(Drained { wall, processor })
}

/// Processor time of all of them so far, in seconds.
fn busy(workers: &[Worker]) -> Result<f64> {
    let ids = workers.iter().map(|worker| worker.child.id().context("a worker ended"));
    ids.map(|id| Ok(processor_seconds(&id?.to_string()))).sum()
}

/// As the API publishes it, with its key.
fn message(id: &uuid::Uuid) -> (String, Vec<u8>) {
    let message = json!({ "type": "deletion_requested", "document_id": id });
    (id.to_string(), message.to_string().into_bytes())
}

/// A process of one of its workers. Dropping it kills it.
struct Worker {
    script: String,
    child: Child,
}

impl Worker {
    fn start(options: &Options, script: &str, documents: &Documents) -> Result<Self> {
        let servers = &documents.servers;
        let child = Command::new(&options.python)
            .arg(options.poc.join(script))
            .env("POC_KAFKA_BROKERS", &servers.kafka)
            .env("POC_TOPIC", &documents.name)
            .env("POC_DATABASE_URL", documents.database.url())
            .env("POC_S3_ENDPOINT", &servers.s3)
            .env("POC_S3_BUCKET", documents.bucket.name())
            .env("POC_S3_ACCESS_KEY", &servers.s3_access_key)
            .env("POC_S3_SECRET_KEY", &servers.s3_secret_key)
            .env("POC_ELASTICSEARCH_URL", &servers.elasticsearch)
            .env("POC_ELASTICSEARCH_INDEX", documents.index.name())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("can't run {script}"))?;
        Ok(Self { script: script.to_owned(), child })
    }

    async fn until_ready(&mut self) -> Result<()> {
        let said = self.child.stdout.as_mut().context("a worker has an output")?;
        let mut lines = BufReader::new(said).lines();
        match timeout(READY_MAX, lines.next_line()).await {
            Ok(Ok(Some(line))) if line == "ready" => Ok(()),
            Ok(Ok(said)) => bail!("{} said {said:?} in place of `ready`", self.script),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => bail!("{} has no partitions after {READY_MAX:?}", self.script),
        }
    }

    /// An error when it ended by itself.
    fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended: {status}", self.script),
        }
    }
}

fn report(options: &Options, sides: &[Vec<Drained>; WAYS.len() + 1]) {
    let for_each = |side: usize, of: fn(&Drained) -> f64| -> Vec<f64> {
        let documents = options.documents_of(side) as f64;
        sides[side].iter().map(|drained| of(drained) / documents).collect()
    };
    let wall = |side| for_each(side, |drained| drained.wall);
    let processor = |side| for_each(side, |drained| drained.processor);
    let figures = |side: usize| -> Value {
        json!({
            "documents": options.documents_of(side),
            "documents_per_s": 1.0 / median(&wall(side)),
            "cpu_s_per_1000": median(&processor(side)) * 1_000.0,
        })
    };
    let mut line = json!({
        "bench": "poc", "rounds": options.rounds, "instances": options.instances,
        "workers": options.workers, "poc": figures(0),
        "s3_data_on": options.s3_data.as_deref().and_then(file_system),
    });
    for (side, way) in (1..).zip(WAYS) {
        let name = way.name();
        line[name] = figures(side);
        line[name]["ratio"] = json!(Ratio::of(&wall(0), &wall(side)));
        line[name]["ratio_cpu"] = json!(Ratio::of(&processor(0), &processor(side)));
    }
    if options.json {
        println!("{line}");
    } else {
        println!("{line:#}");
    }
}
