//! Keys by the million, each once, through the whole pipeline: whether memory grows with them, and what a
//! key that dedupe remembers takes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;
use tokio::runtime::Handle;
use tombstream_dataflow::{Config, Pipeline};
use tombstream_model::{
    Candidate, Cause, Found, Generation, Key, Lsn, Mark, Polled, Position, Records, RelationId,
    Source, SourceError,
};

use crate::cpu::memory;
use crate::null::{Counting, NullLedger, store};
use crate::slot::relation;

#[derive(Args)]
pub(crate) struct Options {
    /// How many different keys
    #[arg(long, default_value_t = 10_000_000)]
    keys: u64,
    /// Timely workers
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// Fills two tables of 2^20 places as far as they go.
const REMEMBERED: usize = 2 * 917_504;
/// So many keys fill them, on each of two workers.
const FILLED: u64 = 8 * REMEMBERED as u64;
/// Records of a poll.
const PAGE: u64 = 1_000;

/// Makes keys that were never seen before.
struct Generator {
    next: u64,
    end: u64,
}

impl Generator {
    fn candidate(n: u64) -> Candidate {
        let id = uuid::Uuid::from_u128(0x6f1d_0000_0000_4000_8000_0000_0000_0000 + u128::from(n));
        Candidate {
            relation: RelationId(0),
            key: Key::from_postgres([id.to_string()]),
            position: Some(Position { generation: Generation(1), lsn: Lsn(n), order: 0 }),
            cause: Cause::Event,
            found: Found::Flagged,
            removed: None,
        }
    }
}

impl Source for Generator {
    async fn next(&mut self) -> Result<Polled, SourceError> {
        let last = (self.next + PAGE).min(self.end);
        if self.next == last {
            std::future::pending::<()>().await;
        }
        let records = (self.next..last).map(Self::candidate).collect();
        self.next = last;
        Ok(Polled { records: Records::Candidates(records), marks: Vec::new() })
    }

    async fn commit(&mut self, _marks: Vec<Mark>) -> Result<(), SourceError> {
        Ok(())
    }

    fn pause(&mut self, _topic: &str) -> Result<(), SourceError> {
        Ok(())
    }
}

/// Resident memory after a tenth of the keys, and after all of them.
struct Passed {
    tenth: u64,
    end: u64,
    seconds: f64,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    // The first fills the allocator's pools, and is not counted.
    pass(&options, options.keys / 10, 2).await?;
    let filled = options.keys.min(FILLED);
    let small = pass(&options, filled, 2).await?;
    let large = pass(&options, filled, REMEMBERED).await?;
    let usual = pass(&options, options.keys, Config::default().dedupe_keys_max).await?;
    ensure!(
        options.keys >= FILLED || options.keys < 1_000_000,
        "with {} keys dedupe's tables are not full: take {FILLED}",
        options.keys,
    );
    let growth = usual.end as f64 / usual.tenth as f64;
    let entry = large.end.saturating_sub(small.end) as f64 / (options.workers * REMEMBERED) as f64;
    let rate = options.keys as f64 / usual.seconds;
    if options.json {
        let line = json!({
            "bench": "growth", "keys": options.keys, "workers": options.workers,
            "resident_bytes_after_a_tenth": usual.tenth, "resident_bytes_after_all": usual.end,
            "growth": growth, "dedupe_entry_bytes": entry, "keys_per_s": rate.round(),
        });
        println!("{line}");
    } else {
        println!(
            "{} MB after a tenth, {} MB after all ({growth:.3}); {entry:.1} bytes an entry of dedupe; {rate:.0} keys/s",
            usual.tenth / 1_000_000,
            usual.end / 1_000_000
        );
    }
    Ok(())
}

async fn pass(options: &Options, keys: u64, dedupe_keys_max: usize) -> Result<Passed> {
    let ledger = Arc::new(Counting::<NullLedger>::default());
    let pipeline = Pipeline {
        config: Config { workers: options.workers, dedupe_keys_max, ..Config::default() },
        relations: Arc::from([relation()?]),
        ledger: Arc::clone(&ledger),
        stores: vec![store()],
        sources: vec![Box::new(Generator { next: 0, end: keys })],
    };
    let begun = Instant::now();
    let running = pipeline.start(Handle::current())?;
    let resident = || memory("VmRSS:").unwrap_or_default();
    let until = async |count: u64| {
        tokio::select! {
            () = ledger.until(count) => Ok(()),
            broken = running.broken() => Err(broken),
        }
    };
    until(keys / 10).await?;
    let tenth = resident();
    until(keys).await?;
    let (end, seconds) = (resident(), begun.elapsed().as_secs_f64());
    running.stop(Duration::from_secs(10)).await?;
    eprintln!("{keys} keys, {dedupe_keys_max} remembered: {} MB", end / 1_000_000);
    Ok(Passed { tenth, end, seconds })
}
