//! `tombstream reconcile`: what is there and should not be, and what should be there and is not.

mod approval;
mod repair;
mod report;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tombstream_connectors::postgres;
use tombstream_dataflow::reconcile::{Reconcile, ReconcileConfig, Tally, Wrong};

use super::Failure;
use super::actor::ActorArg;
use super::run::ready;
use crate::config::Config;
use crate::wiring;
use approval::Approval;
use repair::Repair;
pub(crate) use report::{Report, counts};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the report goes: `table` (standard output), or a file that ends in .jsonl or .parquet.
    #[arg(long, value_name = "FILE", default_value = "table")]
    report: String,
    /// How long something must stay wrong to be reported.
    #[arg(long, value_name = "DURATION", default_value = "60s")]
    #[arg(value_parser = humantime::parse_duration)]
    settle: Duration,
    /// Compare only this store; may be repeated. All of them without it.
    #[arg(long, value_name = "STORE")]
    store: Vec<String>,
    /// This store may show nothing, though living rows should have copies there; may be repeated.
    #[arg(long, value_name = "STORE")]
    allow_empty: Vec<String>,
    /// Parts of each side that are read side by side.
    #[arg(long, value_name = "N", default_value_t = 4)]
    parts: usize,
    /// Threads that compare; as `[pipeline]` says without it.
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// A folder for what does not fit in memory: some 250 bytes a copy, gone when the command ends.
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Mend it afterwards, through the claim.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KINDS")]
    repair: Vec<Repairable>,
    /// With --repair orphans: the report of which you have looked at every orphan.
    #[arg(long, value_name = "FILE", requires = "approve")]
    of: Option<PathBuf>,
    /// With --repair orphans: its digest, as it was printed when it was written. What is no orphan any more, or was not in
    /// that report, is left.
    #[arg(long, value_name = "DIGEST", requires = "of")]
    approve: Option<String>,
    #[command(flatten)]
    actor: ActorArg,
}

/// What can be asked to be mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Repairable {
    /// Flagged and due rows whose copies are there: claimed, or taken over, now.
    Stragglers,
    /// Copies of finalized rows: deletions without a row are written down, and claimed now.
    Zombies,
    /// Copies that nobody knows, of one report that you approve: deletions without a row are written down, and claimed
    /// now.
    Orphans,
}

pub(super) async fn reconcile(config: Config, args: Args) -> Result<(), Failure> {
    let approval = approval(&args)?;
    let mut report = Report::open(&args.report)?;
    let pool = match args.repair.is_empty() {
        true => wiring::connect_ledger(&config.database, "tombstream-reconcile").await?,
        // What mends destroys: it starts only where `run` does.
        false => ready(&config, "tombstream-reconcile").await?,
    };
    let folder = args.scratch.clone().unwrap_or_else(std::env::temp_dir);
    let mut limits = ReconcileConfig::new(folder);
    limits.workers = args.workers.unwrap_or(config.pipeline.workers.get());
    limits.parts = args.parts;
    limits.settle = args.settle;
    let (rows, deletions, registry) = wiring::listings(&config, pool.clone());
    let comparison = Reconcile {
        config: limits,
        relations: std::sync::Arc::clone(&config.relations),
        rows: std::sync::Arc::new(rows),
        deletions: std::sync::Arc::new(deletions),
        registry: std::sync::Arc::new(registry.clone()),
        stores: stores(&config, &args)?,
    };
    let kinds = args.repair.iter().map(|kind| match kind {
        Repairable::Stragglers => Wrong::Straggler,
        Repairable::Zombies => Wrong::Zombie,
        Repairable::Orphans => Wrong::Orphan,
    });
    let kinds: BTreeSet<Wrong> = kinds.collect();
    let approved = approval.as_ref().map_or(0, |approval| approval.len() as u64);
    let mut repair =
        Repair::new(kinds.clone(), approval).context("a temporary file can't be made")?;
    let tally = comparison
        .run(&mut |finding| {
            if let Some(repair) = &mut repair {
                repair.note(finding)?;
            }
            report.finding(finding)
        })
        .await
        .map_err(anyhow::Error::from)?;
    report.close(&tally)?;
    let mut left: u64 = tally.found.values().sum();
    if let Some(repair) = repair {
        let orphans = repair.orphans;
        if let Some(digest) = &args.approve {
            println!(
                "repair: {approved} orphans were approved, and {orphans} of them are orphans still"
            );
            let actor = args.actor.name()?;
            let relations = &config.relations;
            let ordered = postgres::order_orphans(&pool, relations, &actor, digest, orphans).await;
            ordered.context("the approval can't be written down")?;
        }
        let mended = repair.run(&config, pool, registry).await?;
        println!(
            "repair: {} keys, {} of them finalized; the others wait or need a person: tombstream status, \
             tombstream parked list",
            mended.keys, mended.finalized
        );
        let zombies = mended.zombies;
        if zombies.reused + zombies.waits + zombies.parked > 0 {
            println!(
                "repair: of the copies {} are parked, {} have rows again and are left alone, {} wait for another \
                 deletion of their key",
                zombies.parked, zombies.reused, zombies.waits
            );
        }
        if mended.finalized == mended.keys {
            let of = |kind: &Wrong| match kind {
                Wrong::Orphan => orphans,
                Wrong::Straggler | Wrong::Zombie | Wrong::Missing => {
                    tally.found.get(kind).copied().unwrap_or(0)
                }
            };
            left -= kinds.iter().map(of).sum::<u64>();
        }
    }
    let unclear: u64 = tally.stores.iter().map(|store| store.unclear).sum();
    match left + unclear {
        0 => Ok(()),
        _ => Err(Failure::Said),
    }
}

/// The approval, where orphans are to be mended, and nowhere else.
fn approval(args: &Args) -> anyhow::Result<Option<Approval>> {
    match (args.repair.contains(&Repairable::Orphans), &args.of, &args.approve) {
        (true, Some(of), Some(approved)) => Approval::read(of, approved).map(Some),
        (true, ..) => bail!(
            "orphans are not repaired by themselves: the ledger never knew them, so nothing proves whose they are. Write a \
             report (--report FILE.jsonl), look at every orphan in it, and approve that very report: --repair orphans \
             --of FILE.jsonl --approve DIGEST"
        ),
        (false, None, None) => Ok(None),
        (false, ..) => bail!("--of and --approve are for --repair orphans alone"),
    }
}

/// The stores that are compared.
fn stores(
    config: &Config,
    args: &Args,
) -> anyhow::Result<Vec<tombstream_dataflow::reconcile::ReconcileStore>> {
    for name in args.store.iter().chain(&args.allow_empty) {
        if config.stores.iter().all(|store| store.name != *name) {
            let known: Vec<_> = config.stores.iter().map(|store| store.name.as_str()).collect();
            bail!("there is no store {name}; there are {}", known.join(", "));
        }
    }
    let is_chosen = |name: &String| args.store.is_empty() || args.store.contains(name);
    let chosen = config.stores.iter().enumerate().filter(|(_, store)| is_chosen(&store.name));
    chosen
        .map(|(place, store)| {
            wiring::reconcile_store(config, place, args.allow_empty.contains(&store.name))
        })
        .collect()
}

/// What was compared and what came of it, for people.
fn summary(tally: &Tally) -> String {
    let mut said = format!(
        "{} rows, {} deletions in the ledger, compared in {:.1} s; {} suspects looked at again in {:.1} s\n",
        tally.rows,
        tally.deletions,
        tally.compared_in.as_secs_f64(),
        tally.suspects,
        tally.looked_in.as_secs_f64(),
    );
    for store in &tally.stores {
        said += &format!(
            "store {}: {} copies, {} expected by living rows; {} where no template leads{}\n",
            store.name,
            store.copies,
            store.expected,
            store.elsewhere,
            match store.unclear {
                0 => String::new(),
                unclear => format!("; {unclear} that its second answer did not settle"),
            },
        );
    }
    if tally.unaddressed > 0 {
        said += &format!(
            "{} addresses of living rows can't be resolved: their deletions would be parked\n",
            tally.unaddressed
        );
    }
    let counts: Vec<_> = Wrong::ALL
        .iter()
        .map(|kind| format!("{} {}", tally.found.get(kind).unwrap_or(&0), report::plural(*kind)))
        .collect();
    said + &counts.join(", ")
}
