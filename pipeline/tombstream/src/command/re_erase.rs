//! `tombstream re-erase`: after a backup was restored, rows that were erased since are flagged again.
//!
//! What shows that a row is the erased one is the connector's to judge (`re_erase/judge.rs`). Here the export is checked,
//! read, and led through it, page by page.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::PgPool;
use tombstream_connectors::postgres::{
    self, ChainStanding, Erased, ReErase, ReEraseConfig, ReEraseEnding, ReEraseSpec, RowBack,
};
use tombstream_model::{ExportLine, Hash, Key, Receipt, RelationId};

use super::actor::ActorArg;
use super::receipts::CheckedExport;
use super::{Failure, hold::time};
use crate::config::Config;
use crate::shutdown::Signals;
use crate::wiring;

/// Receipts, or rows, of a page.
const PAGE: usize = 500;

/// Done, and something is for a person to decide.
const REMAINS: u8 = 3;
/// Stopped before the end: the same command goes on.
const STOPPED: u8 = 4;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 done; 1 failed; 2 wrong command line or configuration; 3 done, and some rows are \
                        ambiguous; 4 stopped: the same command goes on where it was. What is flagged is destroyed by \
                        `tombstream run`."
)]
pub(super) struct Args {
    /// Of rows that were removed at this time or later: not later than the backup that was restored.
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: DateTime<Utc>,
    /// The newest export of receipts (`tombstream receipts export`) from before the backup was restored.
    #[arg(long, value_name = "FILE")]
    ledger: PathBuf,
    /// A head that was kept elsewhere: it must be one of the export's.
    #[arg(long, value_name = "HASH")]
    head: Option<Hash>,
    /// Tables were put back out of a backup without the ledger: of rows that this ledger removed, and that are there again,
    /// those are erased again, too, that were created before. Without it they are left to a person: one may have been put
    /// back on purpose.
    #[arg(long)]
    tables_alone: bool,
    /// Say what would be done, and write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Where a line of JSON goes for each row that is back: a file that ends in .jsonl.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// The job's name. By default one made of the export's head: the same command goes on where it was.
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    job: Option<String>,
    #[command(flatten)]
    actor: ActorArg,
}

pub(super) async fn re_erase(config: Config, args: Args) -> Result<(), Failure> {
    let ended = run(&config, args).await?;
    match ended {
        Ended::Done { ambiguous: 0 } => Ok(()),
        Ended::Done { .. } => Err(Failure::Code(REMAINS)),
        Ended::Stopped => Err(Failure::Code(STOPPED)),
    }
}

enum Ended {
    Done { ambiguous: u64 },
    Stopped,
}

/// A page of an export's receipts, each with its relation and key.
type Page = Vec<(RelationId, Key, Erased)>;

/// What was read of the export.
#[derive(Debug, Default)]
struct Read {
    /// Receipts since the time that was named.
    receipts: u64,
    /// Receipts before it that this ledger lacks: their rows may be back, and nobody looks.
    before: u64,
    /// By name: receipts of relations that are not configured.
    unknown: BTreeMap<String, u64>,
    /// Receipts with hashed keys, to be found among the rows.
    hashed: HashMap<(RelationId, Hash), Vec<Erased>>,
}

async fn run(config: &Config, args: Args) -> anyhow::Result<Ended> {
    let mut signals = Signals::listen().context("signals")?;
    let report = args.report.as_deref().map(Report::create).transpose()?;
    let export = CheckedExport::open(&args.ledger, args.head, Some(args.since))?;
    println!(
        "{}: {} blocks, {} entries, its chain is right; head {}",
        args.ledger.display(),
        export.end.blocks,
        export.end.entries,
        export.end.head
    );
    if export.end.unsealed > 0 {
        println!(
            "{} entries were in no block when it was made, and so are not in it: whose rows those are is not known here",
            export.end.unsealed
        );
    }
    let pool = wiring::connect_ledger(&config.database, "tombstream-re-erase").await?;
    let now: DateTime<Utc> = sqlx::query_scalar("select now()")
        .persistent(false)
        .fetch_one(&pool)
        .await
        .context("the server's clock can't be read")?;
    if let Some(newest) = export.newest.filter(|newest| *newest > now) {
        bail!(
            "the server's clock says {now}, and a row was removed at {newest} already: set the clock right, since a row's \
             time of creation is compared with it"
        );
    }
    let head = export.end.head;
    let spec = ReEraseSpec { since: args.since, head, tables_alone: args.tables_alone };
    let name = args.job.unwrap_or_else(|| {
        format!("re-erase-{}-{}", &export.end.head.to_string()[..12], args.since.timestamp())
    });
    let settings = ReEraseConfig {
        created: config.created.clone(),
        keyed: wiring::keyed_hash(config)?,
        // Nothing is ordered by a dry run.
        actor: if args.dry_run { String::new() } else { args.actor.name()? },
        is_dry: args.dry_run,
    };
    let owner = wiring::ledger_config(config).owner;
    let relations = std::sync::Arc::clone(&config.relations);
    let chain = (export.blocks.as_slice(), export.receipts);
    let begun = ReErase::begin(pool.clone(), relations, (&name, &spec), chain, &owner, settings);
    let mut job = begun.await?;
    let standing = job.standing();
    say_standing(standing, export.end.blocks);
    let mut found = Found { pool, report, job: name, dry: args.dry_run, counts: BTreeMap::new() };
    let walked = tokio::select! {
        walked = walk(config, &export, args.since, standing, &mut job, &mut found) => Some(walked),
        signal = signals.next() => {
            job.end(Some(&format!("told to stop by {signal}"))).await?;
            eprintln!("told to stop by {signal}: the same command goes on where it was");
            None
        }
    };
    match walked {
        None => Ok(Ended::Stopped),
        Some(Err(error)) => {
            if let Err(unsaid) = job.end(Some(&super::chain(error.as_ref()))).await {
                eprintln!("how the job ended is not written down: {}", super::chain(&unsaid));
            }
            Err(error)
        }
        Some(Ok(read)) => {
            job.end(None).await?;
            if !args.dry_run {
                found.counts = job.counts().await?;
            }
            let ambiguous = found.finish(&read, args.since).await?;
            Ok(Ended::Done { ambiguous })
        }
    }
}

/// What the ledger lacks should be brought back before anything new is written.
fn say_standing(standing: ChainStanding, blocks: i64) {
    let ChainStanding { common, own, .. } = standing;
    if common == blocks {
        println!("this ledger has all of it");
    } else if common == own {
        println!(
            "this ledger lacks {} blocks of it: `tombstream receipts import`, before `run` starts, brings them back, and \
             its chain goes on from the export's head",
            blocks - common
        );
    } else {
        println!(
            "this ledger and the export are two histories behind block {common}: keep the export, it is the evidence of \
             what was removed before the backup was restored"
        );
    }
}

/// Leads the export through the job: first the receipts that name their rows, then the rows of relations whose
/// receipts are hashed.
async fn walk(
    config: &Config,
    export: &CheckedExport,
    since: DateTime<Utc>,
    standing: ChainStanding,
    job: &mut ReErase,
    found: &mut Found,
) -> anyhow::Result<Read> {
    let mut read = Read::default();
    let after = job.after_entry();
    let mut page: Page = Vec::new();
    let mut through = 0;
    let mut blocks = export.blocks()?;
    while let Some((_, lines)) = blocks.next()? {
        for line in lines {
            let ExportLine::Receipt { entry, receipt, .. } = line else { continue };
            if receipt.finalized_at < since {
                read.before += u64::from(entry > standing.last_entry);
                continue;
            }
            through = entry;
            take(config, &mut read, &mut page, after, entry, &receipt)?;
            if page.len() >= PAGE {
                found.take(job.receipts(&page, through, false).await?)?;
                page.clear();
            }
        }
    }
    if after.is_some() {
        found.take(job.receipts(&page, through, true).await?)?;
    }
    for (relation, id) in config.relations.iter().zip(0..).map(|(it, id)| (it, RelationId(id))) {
        let limit = u32::try_from(PAGE).expect("it is small");
        if read.hashed.keys().all(|(of, _)| *of != id) {
            continue;
        }
        println!(
            "{}: its receipts are hashed, so that all of its keys are hashed and compared",
            relation.name
        );
        while let Some(rows) = job.rows(id, &read.hashed, limit).await? {
            found.take(rows)?;
        }
    }
    Ok(read)
}

/// Notes a receipt: for the page, for the rows' hashes, or as of an unknown relation.
fn take(
    config: &Config,
    read: &mut Read,
    page: &mut Page,
    after: Option<i64>,
    entry: i64,
    receipt: &Receipt,
) -> anyhow::Result<()> {
    read.receipts += 1;
    let known = config.relations.iter().zip(0..).find(|(it, _)| *it.name == *receipt.relation);
    let Some((relation, id)) = known else {
        *read.unknown.entry(receipt.relation.clone()).or_default() += 1;
        return Ok(());
    };
    let (id, erased) = (RelationId(id), Erased::of(entry, receipt));
    if receipt.hashed {
        if config.receipts.secret.is_none() {
            bail!(
                "receipt {} names nobody: its row is found with the secret alone that keys are hashed with; write it \
                 into [receipts] secret",
                receipt.deletion_id
            );
        }
        let hash: Hash = receipt.key.concat().parse().context("a hashed key is no hash")?;
        read.hashed.entry((id, hash)).or_default().push(erased);
        return Ok(());
    }
    if receipt.key.len() != relation.key.len() {
        bail!(
            "receipt {}: its key has {} columns, and that of relation {} has {}: is it the relation that it was?",
            receipt.deletion_id,
            receipt.key.len(),
            relation.name,
            relation.key.len()
        );
    }
    if after.is_some_and(|after| entry > after) {
        page.push((id, Key::from_postgres(receipt.key.clone()), erased));
    }
    Ok(())
}

/// What was found, and where it is written.
struct Found {
    pool: PgPool,
    report: Option<Report>,
    job: String,
    dry: bool,
    counts: BTreeMap<String, u64>,
}

impl Found {
    /// Of a dry run nothing is in the ledger, so that it is written as it comes.
    fn take(&mut self, rows: Vec<RowBack>) -> anyhow::Result<()> {
        if !self.dry {
            return Ok(());
        }
        for row in rows {
            if let Some(report) = &mut self.report {
                report.line(&row)?;
            }
            *self.counts.entry(row.ending).or_default() += 1;
        }
        Ok(())
    }

    /// Says it, writes the report, and gives how many rows are for a person.
    async fn finish(mut self, read: &Read, since: DateTime<Utc>) -> anyhow::Result<u64> {
        if let (Some(report), false) = (&mut self.report, self.dry) {
            let mut after: Option<RowBack> = None;
            loop {
                let page = postgres::rows_back(&self.pool, &self.job, after.as_ref());
                let page = page.await.context("what was found can't be read back")?;
                for row in &page {
                    report.line(row)?;
                }
                match page.into_iter().next_back() {
                    Some(last) => after = Some(last),
                    None => break,
                }
            }
        }
        let count = |ending: ReEraseEnding| self.counts.get(ending.as_str()).copied().unwrap_or(0);
        println!("{} receipts since {}", read.receipts, since.to_rfc3339());
        for (ending, what) in [
            (
                ReEraseEnding::ReErased,
                if self.dry {
                    "would be flagged again"
                } else {
                    "flagged again: `tombstream run` destroys them"
                },
            ),
            (ReEraseEnding::AlreadyFlagged, "flagged already"),
            (ReEraseEnding::AliveAnew, "alive anew: left alone"),
            (
                ReEraseEnding::Ambiguous,
                "ambiguous, and left alone: see the report; flag them yourself if you know",
            ),
        ] {
            println!("    {:>8} {what}", count(ending));
        }
        for (relation, count) in &read.unknown {
            println!(
                "    {count:>8} receipts are of relation {relation}, which is not configured: not looked at"
            );
        }
        if read.before > 0 {
            println!(
                "    {:>8} receipts are of before that time, and this ledger lacks them: their rows may be back, too; name \
                 an earlier --since",
                read.before
            );
        }
        if let Some(report) = self.report {
            report.close(&self.counts, read)?;
        }
        if !self.dry {
            println!("job {}: tombstream jobs show {}", self.job, self.job);
        }
        Ok(count(ReEraseEnding::Ambiguous))
    }
}

/// A file that has its name only when it is whole.
struct Report {
    lines: BufWriter<File>,
    part: PathBuf,
    path: PathBuf,
}

impl Report {
    fn create(path: &Path) -> anyhow::Result<Self> {
        if path.extension().is_none_or(|end| end != "jsonl") {
            bail!("--report {}: name a file that ends in .jsonl", path.display());
        }
        let part = path.with_extension("jsonl.part");
        let lines = File::create(&part)
            .with_context(|| format!("--report: {} can't be written", part.display()))?;
        Ok(Self { lines: BufWriter::new(lines), part, path: path.to_owned() })
    }

    fn line(&mut self, row: &RowBack) -> anyhow::Result<()> {
        serde_json::to_writer(&mut self.lines, row).context("--report")?;
        self.lines.write_all(b"\n").context("--report")
    }

    fn close(mut self, counts: &BTreeMap<String, u64>, read: &Read) -> anyhow::Result<()> {
        let mut last = json!({
            "ending": "summary", "receipts": read.receipts, "before_since": read.before,
            "unknown_relations": read.unknown,
        });
        for ending in ReEraseEnding::ALL {
            let count = counts.get(ending.as_str()).copied().unwrap_or(0);
            last[ending.as_str()] = count.into();
        }
        let end = || {
            serde_json::to_writer(&mut self.lines, &last)?;
            self.lines.write_all(b"\n")?;
            self.lines.flush()?;
            self.lines.get_ref().sync_all()?;
            std::fs::rename(&self.part, &self.path)
        };
        let mut end = end;
        end().with_context(|| format!("the report {}", self.path.display()))?;
        println!("{}: written", self.path.display());
        Ok(())
    }
}
