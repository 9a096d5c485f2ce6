//! `cargo xtask e2e`: the main job, end to end, judged by what is left in the stores.
//!
//! Servers, the api and the pipeline are real and separate processes. Documents are seeded, some
//! are flagged through the api and some of those restored at once; when the rows are gone, every
//! store is listed and compared with what was seeded. The pipeline is never asked.

mod census;
mod disturb;
mod document;
mod feed;
mod flags;
mod logins;
mod programs;
mod report;
mod settings;
mod table;
mod watch;

use crate::services::{Service, Session, State};
use crate::shell;
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use document::Document;
use feed::Feed;
use logins::Logins;
use programs::Programs;
use rand::seq::SliceRandom;
use report::Report;
use settings::Ports;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;
use table::Table;
use tombstream_e2e::{Bucket, Index, Program, free_port, random_name};
use watch::Progress;

#[derive(Args, Clone)]
pub(crate) struct Options {
    /// How many documents there are
    #[arg(long, default_value_t = 1_000)]
    documents: u32,
    /// Which share of them is flagged
    #[arg(long, default_value_t = 0.5, value_parser = share)]
    flag: f64,
    /// Which share of the flagged is restored right after its flip
    #[arg(long, default_value_t = 0.1, value_parser = share)]
    restore: f64,
    /// How the flags reach the pipeline
    #[arg(long, value_enum, default_value = "kafka")]
    source: Source,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
    /// `kill -9` the pipeline so many times, spread over the run, and start it again
    #[arg(long, default_value_t = 0)]
    kill: u32,
    /// Half-way the slot goes: Debezium's with its connector for good, the pipeline's own while the
    /// pipeline is down. The sweep must find the rest
    #[arg(long)]
    drop_slot: bool,
    /// Freeze Elasticsearch for so many seconds while flags go on
    #[arg(long, value_name = "SECS", default_value_t = 0)]
    store_stop: u64,
    /// Timely workers of the pipeline
    #[arg(long, default_value_t = 2)]
    workers: u32,
    /// Most flags a second [default: as many as 16 requests at a time bring]
    #[arg(long)]
    rate: Option<u32>,
    /// Build and run the release profile
    #[arg(long)]
    release: bool,
    /// Leave servers, database, bucket and index as they are at the end
    #[arg(long)]
    keep: bool,
    /// The servers' folder: what runs there is used, and left running [default: those of
    /// `services up` if they run, else new ones that are stopped and wiped at the end]
    #[arg(long)]
    services: Option<PathBuf>,
}

/// How the flags reach the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Source {
    /// Debezium on Connect, then Kafka.
    Kafka,
    /// Straight from the log.
    Postgres,
    /// `tombstream capture` as its own process, then Kafka.
    Capture,
}

impl Source {
    fn needs(self) -> &'static [Service] {
        const WITHOUT_BROKER: [Service; 3] =
            [Service::Postgres, Service::S3, Service::Elasticsearch];
        const WITHOUT_CONNECT: [Service; 4] =
            [Service::Postgres, Service::Kafka, Service::S3, Service::Elasticsearch];
        match self {
            Self::Kafka => &Service::ALL,
            Self::Postgres => &WITHOUT_BROKER,
            Self::Capture => &WITHOUT_CONNECT,
        }
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("a share is from 0 to 1".to_owned()),
    }
}

pub(crate) async fn run(options: Options) -> Result<ExitCode> {
    let mut session = Session::choose(options.services.clone(), options.source.needs())?;
    let done = scene(&options, &session).await;
    if options.keep {
        session.keep();
    }
    tokio::task::spawn_blocking(move || drop(session)).await?;
    let report = done?;
    if options.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report}");
    }
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The whole story, from the first server to the report.
async fn scene(options: &Options, session: &Session) -> Result<Report> {
    let (state, binary) = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let servers = scope.spawn(|| session.start(options.source.needs()));
            let binary = programs::build(options.release);
            (servers.join(), binary)
        })
    });
    let state = state.map_err(|_| anyhow::anyhow!("starting the servers panicked"))??;
    let binary = binary?;
    let servers = state.addresses(options.source.needs())?;

    let name = random_name("e2e");
    let feed = Feed::new(options.source, &servers, &name)?;
    let documents = Document::some(options.documents);
    let table = Table::make(&servers.postgres, &name).await.context("the table")?;
    let bucket = Bucket::make(&servers, &name).await.context("the bucket")?;
    let index = Index::make(&servers.elasticsearch, &name).await.context("the index")?;
    let ports = Ports { api: free_port()?, pipeline: free_port()?, capture: free_port()? };
    let program = Program::at(
        binary,
        shell::target()?.join("e2e").join(&name),
        &settings::text(&name, options, &servers, &bucket, ports),
        vec![
            ("DATABASE_URL", table.database.url().to_owned()),
            ("AWS_ACCESS_KEY_ID", servers.s3_access_key.clone()),
            ("AWS_SECRET_ACCESS_KEY", servers.s3_secret_key.clone()),
        ],
    )?;
    let logins = Logins::new(&name);
    let programs = Programs::new(program, &logins, ports)?;
    let server = servers.postgres.clone();
    let stage = Stage { options, state, documents, table, bucket, index, feed, logins, server };
    let done = tokio::select! {
        done = stage.play(programs) => done,
        error = shell::interrupted() => Err(error),
    };
    if !options.keep {
        // Also after a failure: a slot that nobody reads would keep the server's log for ever.
        let removed = stage.remove(session.is_thrown_away()).await;
        return done.and_then(|report| removed.map(|()| report));
    }
    done
}

/// Everything that a run is made of, but the product's processes.
struct Stage<'a> {
    options: &'a Options,
    state: State,
    documents: Vec<Document>,
    table: Table,
    bucket: Bucket,
    index: Index,
    feed: Feed,
    logins: Logins,
    /// The server's own address.
    server: String,
}

impl Stage<'_> {
    async fn play(&self, mut programs: Programs) -> Result<Report> {
        programs.migrate().await?;
        self.logins.make(&self.table.database).await?;
        self.seed().await.context("seeding")?;
        self.feed.begin(&mut programs, &self.table.database).await?;
        programs.start_api().await?;
        programs.start_pipeline().await?;
        let before = self.feed.processor_seconds(&self.state, &programs);
        let told = self.flag_and_wait(&mut programs).await?;
        let feed_s = self.feed.processor_seconds(&self.state, &programs) - before;
        let pipeline_s = programs.pipeline_seconds();
        programs.stop().await?;

        say(format_args!("listing what is left"));
        let left = census::take(&self.table, &self.bucket, &self.index)
            .await
            .context("listing the stores")?;
        let judged = census::judge(&self.documents, &told.flips, &left);
        let times = self.table.times().await.context("reading the receipts")?;
        let used = Used { pipeline_s, feed_s };
        let report = Report::new(self.options, &told, &left, &judged, &times, &used);
        if !report.is_clean() {
            judged.explain();
            say(format_args!("logs and settings: {}", programs.folder().display()));
        }
        Ok(report)
    }

    async fn seed(&self) -> Result<()> {
        say(format_args!("seeding {} rows, objects, search documents", self.documents.len()));
        let started = Instant::now();
        tokio::try_join!(
            self.table.seed(&self.documents),
            self.bucket.put(document::objects(&self.documents)),
            self.index.put(document::sources(&self.documents))
        )?;
        say(format_args!("seeded in {:.1} s", started.elapsed().as_secs_f32()));
        Ok(())
    }

    async fn flag_and_wait(&self, programs: &mut Programs) -> Result<Told> {
        let mut order: Vec<usize> = (0..self.documents.len()).collect();
        order.shuffle(&mut rand::rng());
        order.truncate((self.documents.len() as f64 * self.options.flag).round() as usize);
        let progress = Progress::new(self.documents.len(), order.len());
        let flagging =
            flags::flag_all(self.options, programs.api(), &self.documents, order, &progress);
        let disturbing = disturb::all(self, programs, &progress);
        let (flips, ended) = tokio::try_join!(flagging, disturbing)?;
        if flips.failed > 0 {
            bail!("{} requests to the api failed", flips.failed);
        }
        Ok(Told { flips, kills: ended.killed, all_gone: ended.all_gone })
    }

    async fn remove(&self, servers_go_too: bool) -> Result<()> {
        if servers_go_too {
            return Ok(());
        }
        self.feed.remove(&self.table.database).await?;
        self.table.database.remove().await?;
        self.logins.remove(&self.server).await?;
        self.index.remove().await?;
        self.bucket.remove().await
    }
}

/// Processor time of the run: the pipeline's, and that of what brings the flags to it.
struct Used {
    pipeline_s: f64,
    feed_s: f64,
}

/// What happened while the pipeline ran.
struct Told {
    flips: flags::Flips,
    kills: u32,
    all_gone: bool,
}

fn say(text: std::fmt::Arguments<'_>) {
    eprintln!("e2e: {text}");
}
