//! `tombstream demo`: the main job on real parts, with nothing running before and nothing left after.
//!
//! It starts a Postgres of its own, seeds a table, a folder of objects and an index, and runs in this
//! process what `tombstream api` and `tombstream run` run, from a configuration file that it writes.
//! Half of the documents are flagged through the api, a tenth of those restored within the grace. At
//! the end the table and the stores are listed and compared with what was seeded.
//!
//! What it starts it stops: on success, on an error, on a panic, on Ctrl-C. What it makes is in its own
//! folder (and, where root's folders let nobody in, in one of the temporary ones, removed at the end).

mod account;
mod document;
mod drive;
mod fetch;
mod folder;
mod index;
mod judge;
mod objects;
mod part;
mod programs;
mod report;
mod server;
mod settings;
mod show;
mod table;

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rand::seq::SliceRandom as _;
use sqlx::PgPool;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tombstream_connectors::postgres::{self, Makes};

use super::{Failure, api, receipts, run};
use crate::config::{Config, Needs};
use crate::shutdown::Signals;
use crate::telemetry::Metrics;
use crate::wiring;
use account::Account;
use document::Document;
use drive::Fates;
use folder::Folder;
use index::Index;
use judge::{Judged, Left};
use objects::Objects;
use part::Part;
use programs::Wanted;
use report::{Counts, Report, Seconds};
use server::{Place, Server};
use settings::Ports;
use show::{Progress, Show};

/// Documents that are seeded at a time: a signal is heard in between.
const CHUNK: usize = 500;
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// When nothing has gone for so long, nothing more will.
const STILL_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How many documents there are; half of them are deleted.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    #[arg(value_parser = clap::value_parser!(u32).range(20..=1_000_000))]
    documents: u32,
    /// The demo's own folder. What an earlier demo left there is replaced.
    #[arg(long, value_name = "DIR", default_value = "./tombstream-demo")]
    dir: PathBuf,
    /// Print one line of JSON instead of the table.
    #[arg(long)]
    json: bool,
    /// Leave everything running at the end, until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// Whose Postgres: `installed`, `fetched`, or the folder of its programs. [default: installed, else
    /// fetched]
    #[arg(long, value_name = "WHICH")]
    postgres: Option<Wanted>,
    /// The folder, once it is taken.
    #[arg(skip)]
    folder: Option<Folder>,
}

impl Args {
    /// Takes the folder, and opens the log in it.
    pub(super) fn take_folder(&mut self) -> anyhow::Result<File> {
        let folder = self.folder.insert(Folder::take(&self.dir)?);
        for place in folder.left_behind()? {
            server::end_left_behind(&place)?;
        }
        folder.note_server(None)?;
        folder.empty()?;
        let log = folder.log();
        File::create(&log).with_context(|| format!("{} can't be made", log.display()))
    }
}

pub(super) async fn demo(mut args: Args) -> Result<(), Failure> {
    let folder = args.folder.take().expect("the demo's log is in its folder");
    let mut signals = Signals::listen().context("signals")?;
    // A terminal that is closed: nobody is left to press Ctrl-C.
    let mut hangup = signal(SignalKind::hangup()).context("signals")?;
    server::stop_on_panic();
    let mut scene = Scene::new(args, folder);
    let played = tokio::select! {
        played = scene.play() => played,
        signal = next(&mut signals, &mut hangup) => {
            Err(anyhow::anyhow!("stopped by {signal} before it was done"))
        }
    };
    let mut right = false;
    let mut done = played.and_then(|report| {
        right = report.ok;
        scene.print(&report)
    });
    if done.is_ok() && scene.args.keep {
        scene.say_what_runs();
        done = tokio::select! {
            broken = scene.broken() => Err(broken),
            _ = next(&mut signals, &mut hangup) => Ok(()),
        };
    }
    let ended = tokio::select! {
        ended = scene.end(done.is_ok()) => ended,
        signal = next(&mut signals, &mut hangup) => {
            Err(anyhow::anyhow!("told to leave at once by {signal}"))
        }
    };
    // Whatever was left out above.
    let tidied = scene.tidy();
    done.and(ended).and(tidied)?;
    if right { Ok(()) } else { Err(Failure::Said) }
}

async fn next(signals: &mut Signals, hangup: &mut Signal) -> &'static str {
    tokio::select! {
        signal = signals.next() => signal,
        _ = hangup.recv() => "SIGHUP",
    }
}

/// All that runs and all that must be ended, in the order of its start.
struct Scene {
    args: Args,
    folder: Folder,
    show: Show,
    place: Option<Place>,
    server: Option<Server>,
    pool: Option<PgPool>,
    parts: Vec<Part>,
    ports: Ports,
}

/// What is seeded, and where.
struct Stage {
    documents: Vec<Document>,
    pool: PgPool,
    objects: Objects,
    index: Index,
}

impl Scene {
    fn new(args: Args, folder: Folder) -> Self {
        Self {
            args,
            folder,
            show: Show::new(),
            place: None,
            server: None,
            pool: None,
            parts: Vec::new(),
            ports: Ports { api: 0, pipeline: 0 },
        }
    }

    /// The whole story, up to the verdict.
    async fn play(&mut self) -> anyhow::Result<Report> {
        let begun = Instant::now();
        let mut seconds = Seconds::default();
        let (stage, postgres) = self.set().await?;
        seconds.start = begun.elapsed().as_secs_f64();

        let mut order = stage.documents.clone();
        order.shuffle(&mut rand::rng());
        order.truncate(stage.documents.len() / 2);
        self.show.say(format_args!(
            "flagging {} documents through http://127.0.0.1:{}, restoring a tenth of them",
            report::grouped(order.len()),
            self.ports.api
        ));
        let flagging = Instant::now();
        let to_restore = order.len().div_ceil(drive::RESTORE_ONE_IN);
        let progress = self.show.progress(stage.documents.len(), order.len(), to_restore);
        let api = format!("http://127.0.0.1:{}", self.ports.api);
        let flags = async {
            let fates = drive::flag(&api, &order, |fate| progress.flagged(fate)).await?;
            progress.all_flagged();
            Ok((fates, flagging.elapsed()))
        };
        let watching = self.watch(&stage, &progress);
        let played = tokio::try_join!(flags, watching);
        progress.end();
        let ((fates, took), all_gone) = played?;
        seconds.flags = took.as_secs_f64();
        seconds.gone = flagging.elapsed().as_secs_f64();
        if !all_gone {
            self.show.say(format_args!("nothing has gone for {STILL_MAX:?}: no longer waited for"));
        }
        if !self.args.keep {
            // So that nothing can change between the listings.
            self.stop_parts().await?;
        }
        self.show.say(format_args!("listing the table, the objects and the index"));
        let left = self.list(&stage).await?;
        let judged = judge::judge(&stage.documents, &fates, &left);
        seconds.total = begun.elapsed().as_secs_f64();
        self.report(&stage, &fates, &left, &judged, postgres, seconds)
    }

    /// Starts Postgres while the stores are filled, then makes the table, then starts the product.
    async fn set(&mut self) -> anyhow::Result<(Stage, String)> {
        let account = Account::choose()?;
        let programs =
            programs::programs(self.args.postgres.as_ref(), |text| self.show.say(text)).await?;
        let whose = account.as_ref().map(|account| format!(" as the user `{}`", account.name));
        self.show.say(format_args!(
            "starting PostgreSQL {} from {}{}, without fsync: this is a demo",
            programs.version,
            programs.folder.display(),
            whose.unwrap_or_default()
        ));
        let place = self.place.insert(Place::make(&mut self.folder, account)?).clone();
        let documents = Document::some(self.args.documents);
        let objects = Objects::make(self.folder.objects())?;
        let index = Index::make(self.folder.index())?;
        let log = self.folder.server_log();
        let fill = async {
            for some in documents.chunks(CHUNK) {
                tokio::task::block_in_place(|| objects.put(some).and_then(|()| index.put(some)))
                    .context("the stores can't be filled")?;
                tokio::task::yield_now().await;
            }
            anyhow::Ok(())
        };
        let (server, ()) = tokio::try_join!(Server::start(place, &programs, &log), fill)?;
        let server = self.server.insert(server);

        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.folder.url())?;
        file.write_all(server.url.as_bytes())?;
        self.ports = Ports { api: server::free_port()?, pipeline: server::free_port()? };
        let path = self.folder.config();
        std::fs::write(&path, settings::text(&self.folder, self.ports))
            .with_context(|| format!("{} can't be written", path.display()))?;
        let config = Config::load(&path, Needs::Everything)?;

        let pool = self.pool.insert(wiring::connect(&config.database, "tombstream-demo").await?);
        let pool = pool.clone();
        table::make(&pool).await?;
        postgres::migrate(&pool).await?;
        for relation in config.relations.iter() {
            postgres::install_relation(&pool, relation).await?;
        }
        for some in documents.chunks(CHUNK * 10) {
            table::put(&pool, some).await?;
        }
        self.show.say(format_args!(
            "seeded {} documents: a row, an object and a text of the index each",
            report::grouped(documents.len())
        ));
        self.start_parts(config, &pool).await?;
        let version = format!("{} from {}", programs.version, programs.folder.display());
        Ok((Stage { documents, pool, objects, index }, version))
    }

    /// What `tombstream check --fix` makes, then what `tombstream api` and `tombstream run` start.
    async fn start_parts(&mut self, config: Config, pool: &PgPool) -> anyhow::Result<()> {
        if let Some(section) = &config.source.postgres {
            let replication = wiring::replication_config(&config.database, section)?;
            postgres::fix_capture(pool, &replication, &config.relations, Makes::Both)
                .await
                .context("the publication and the slot can't be made")?;
        }
        let metrics = Metrics::install().context("metrics")?;
        let (served, measured) = (config.clone(), metrics.clone());
        self.parts.push(Part::start("the api", |signals| api::until(signals, served, measured)));
        self.parts
            .push(Part::start("the pipeline", |signals| run::until(signals, config, metrics)));
        for port in [self.ports.api, self.ports.pipeline] {
            let url = format!("http://127.0.0.1:{port}/readyz");
            tokio::select! {
                ready = drive::until_ready(&url) => ready?,
                broken = self.broken() => return Err(broken),
            }
        }
        Ok(())
    }

    /// Waits until nothing is left that should go. False when nothing moves any more.
    async fn watch(&mut self, stage: &Stage, progress: &Progress) -> anyhow::Result<bool> {
        let mut last = usize::MAX;
        let mut moved = Instant::now();
        loop {
            self.check().await?;
            let begun = Instant::now();
            let (objects, index) = tokio::task::block_in_place(|| {
                anyhow::Ok((stage.objects.count()?, stage.index.count()?))
            })?;
            let left = Counts { rows: table::count(&stage.pool).await?, objects, index };
            progress.left(&self.show, left);
            let most = left.rows.max(left.objects).max(left.index);
            let stay = progress.stay();
            if stay.is_some_and(|stay| most <= stay) {
                return Ok(true);
            }
            let sum = left.rows + left.objects + left.index;
            if sum != last || stay.is_none() {
                (last, moved) = (sum, Instant::now());
            }
            if moved.elapsed() > STILL_MAX {
                return Ok(false);
            }
            // Looking at many documents takes the time that removing them needs.
            tokio::time::sleep(LOOK_EVERY.max(begun.elapsed() * 4)).await;
        }
    }

    /// Lists everything, and writes the receipts to their file.
    async fn list(&self, stage: &Stage) -> anyhow::Result<Left> {
        let path = self.folder.receipts();
        let file =
            File::create(&path).with_context(|| format!("{} can't be made", path.display()))?;
        let mut lines = BufWriter::new(file);
        let mut left = Left { rows: table::list(&stage.pool).await?, ..Left::default() };
        receipts::export(&stage.pool, &mut lines, |receipt| left.receipts.push(receipt)).await?;
        lines.flush().with_context(|| format!("{} can't be written", path.display()))?;
        (left.objects, left.texts) = tokio::task::block_in_place(|| {
            anyhow::Ok((stage.objects.list()?, stage.index.list()?))
        })?;
        Ok(left)
    }

    fn report(
        &self,
        stage: &Stage,
        fates: &Fates,
        left: &Left,
        judged: &Judged,
        postgres: String,
        seconds: Seconds,
    ) -> anyhow::Result<Report> {
        let receipts = self.args.dir.join(self.folder.receipts().file_name().unwrap_or_default());
        let receipts = receipts.display().to_string();
        let documents = stage.documents.len();
        let report = Report::new(documents, fates, left, judged, postgres, seconds, receipts);
        let path = self.folder.report();
        std::fs::write(&path, serde_json::to_string_pretty(&report)? + "\n")
            .with_context(|| format!("{} can't be written", path.display()))?;
        Ok(report)
    }

    fn print(&self, report: &Report) -> anyhow::Result<()> {
        let mut stdout = std::io::stdout();
        if self.args.json {
            writeln!(stdout, "{}", serde_json::to_string(report)?)
        } else {
            writeln!(stdout, "\n{report}")
        }
        .context("standard output")
    }

    fn say_what_runs(&self) {
        let Ports { api, pipeline } = self.ports;
        let config = self.args.dir.join(self.folder.config().file_name().unwrap_or_default());
        let program = std::env::args().next().unwrap_or_else(|| "tombstream".into());
        self.show.say(format_args!(
            "still running, until Ctrl-C (or `kill {pid}`):\n  \
             the api       http://127.0.0.1:{api}/documents/ (DELETE /documents/ID flags one; \
             /openapi.json)\n  \
             the pipeline  http://127.0.0.1:{pipeline}/metrics, /healthz, /readyz\n  \
             Postgres      the URL is in {url}\n  \
             look at it    {program} --config {config} status",
            pid = std::process::id(),
            url = self.folder.url().display(),
            config = config.display(),
        ));
    }

    /// An error once something that should run does not.
    async fn check(&mut self) -> anyhow::Result<()> {
        for part in &mut self.parts {
            part.check().await?;
        }
        if self.server.as_mut().is_some_and(Server::ended) {
            anyhow::bail!("Postgres ended; {} says why", self.folder.server_log().display());
        }
        Ok(())
    }

    async fn broken(&mut self) -> anyhow::Error {
        loop {
            if let Err(error) = self.check().await {
                return error;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn stop_parts(&mut self) -> anyhow::Result<()> {
        // The api first: it brings no more work.
        for part in self.parts.drain(..) {
            part.stop().await?;
        }
        Ok(())
    }

    /// Stops everything; `in_order` drains first.
    async fn end(&mut self, in_order: bool) -> anyhow::Result<()> {
        let stopped = if in_order { self.stop_parts().await } else { Ok(()) };
        self.parts.clear();
        if let Some(pool) = self.pool.take() {
            pool.close().await;
        }
        let server = match self.server.take() {
            Some(server) => server.stop().await,
            None => Ok(()),
        };
        stopped.and(server)
    }

    /// Removes what is of no use any more. What runs still is ended by being dropped.
    fn tidy(&mut self) -> anyhow::Result<()> {
        self.server = None;
        if let Some(place) = self.place.take() {
            place.remove()?;
        }
        self.folder.note_server(None)?;
        self.folder.tidy()
    }
}
