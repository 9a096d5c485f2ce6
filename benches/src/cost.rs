//! What the dataflow costs (COST: McSherry, Isard, Murray, "Scalability! But at what COST?", 2015): the pipeline
//! with one and with two workers, beside a loop of one thread that does the same job.
//!
//! All three read the same events, which are in memory, and send the same deletions to the same null sink. The
//! loop decodes with `serde_json` into borrowed structs, remembers ids in a `HashSet` and sends batches of 1,000:
//! it keeps no epochs, claims nothing, verifies nothing and commits nothing. The pipeline is charged with its start
//! and its end, and with all of its threads.
//!
//! Two such loops side by side, each with half of the events, say what two processors of this machine are to one:
//! where they share a core's units and its caches, both count more seconds for the same work.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;
use tokio::runtime::Handle;
use tombstream_dataflow::Config;
use tombstream_model::{
    Address, DeletionId, Event, Fence, Outcome, Records, Sink as _, StoreId, Target,
};

use crate::cpu::{Drained, memory, own_processor_seconds};
use crate::envelope::envelope;
use crate::figures::{Ratio, median, processors, walls};
use crate::memory::drive;
use crate::null::{NullLedger, NullSink, store};
use crate::peer;
use crate::slot::relation;

#[derive(Args)]
pub(crate) struct Options {
    /// How many events, each another
    #[arg(long, default_value_t = 1_000_000)]
    events: usize,
    /// One in so many is a deletion
    #[arg(long, default_value_t = 20)]
    one_in: usize,
    /// How often the sides take turns
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// Events of one poll: the default of the source of Kafka.
const POLL: usize = 1_000;
const BATCH: usize = 1_000;
/// By their places: the loop, as many workers, and two loops.
const SIDES: [&str; 4] = ["the loop", "one worker", "two workers", "two loops"];
const TWO_LOOPS: usize = 3;

pub(crate) async fn run(options: Options) -> Result<()> {
    let events: Vec<Event> =
        (0..options.events).map(|n| envelope(n, n % options.one_in == 0, false)).collect();
    let deletions = options.events.div_ceil(options.one_in) as u64;
    let mut drained: [Vec<Drained>; SIDES.len()] = Default::default();
    for round in 0..options.rounds {
        for turn in 0..SIDES.len() {
            let side = (turn + round) % SIDES.len();
            drained[side].push(match side {
                0 => loops(&[&events], deletions)?,
                TWO_LOOPS => {
                    let (first, second) = events.split_at(events.len() / 2);
                    loops(&[first, second], deletions)?
                }
                workers => {
                    let config = Config { workers, ..Config::default() };
                    let polls = polls(&events).into_iter();
                    let ledger = NullLedger::default();
                    drive(config, relation()?, ledger, store(), polls, deletions).await?
                }
            });
        }
        for (side, name) in SIDES.iter().enumerate() {
            let Drained { wall, processor } = drained[side][round];
            eprintln!("round {round}: {name} {wall:.3} s wall, {processor:.3} s processor");
        }
    }
    report(&options, &drained);
    Ok(())
}

/// What the pipeline reads. The events' bytes are shared with the loop's, so that nobody frees them.
fn polls(events: &[Event]) -> Vec<Records> {
    events.chunks(POLL).map(|some| Records::Events(some.to_vec())).collect()
}

/// One loop for each part, all at the same time.
fn loops(parts: &[&[Event]], deletions: u64) -> Result<Drained> {
    let runtime = Handle::current();
    let (begun, before) = (Instant::now(), own_processor_seconds());
    let gone: u64 = std::thread::scope(|scope| {
        let each: Vec<_> =
            parts.iter().map(|part| scope.spawn(|| runtime.block_on(plain(part)))).collect();
        each.into_iter().map(|it| it.join().expect("a loop does not panic")).sum::<Result<u64>>()
    })?;
    ensure!(gone == deletions, "the loop sent {gone} of {deletions} deletions");
    Ok(Drained { wall: begun.elapsed().as_secs_f64(), processor: own_processor_seconds() - before })
}

async fn plain(events: &[Event]) -> Result<u64> {
    let begun = Instant::now();
    let bucket: Arc<str> = "null".into();
    let mut seen: HashSet<String> = HashSet::new();
    let mut batch: Vec<Target> = Vec::with_capacity(BATCH);
    let mut gone = 0;
    for event in events {
        let Some(id) = peer::flagged(event) else { continue };
        if seen.contains(&*id) {
            continue;
        }
        seen.insert(id.clone().into_owned());
        batch.push(Target {
            deletion: DeletionId(0),
            store: StoreId(0),
            address: Address::Object { bucket: Arc::clone(&bucket), key: id.into_owned() },
            fence: Fence { token: 0, until: begun + Duration::from_secs(3_600) },
            lsn: None,
        });
        if batch.len() == BATCH {
            gone += send(&mut batch).await?;
        }
    }
    Ok(gone + send(&mut batch).await?)
}

async fn send(batch: &mut Vec<Target>) -> Result<u64> {
    let outcomes: Vec<Outcome> = NullSink.destroy(batch).await?;
    batch.clear();
    Ok(outcomes.iter().filter(|outcome| outcome.verdict.is_confirmed()).count() as u64)
}

fn report(options: &Options, [plain, one, two, both]: &[Vec<Drained>; SIDES.len()]) {
    let events = options.events as f64;
    let rates = |of: &[Drained]| {
        json!({
            "events_per_s": (events / median(&walls(of))).round(),
            "events_per_cpu_s": (events / median(&processors(of))).round(),
        })
    };
    let one_by_loop = Ratio::of(&walls(plain), &walls(one));
    let one_by_loop_cpu = Ratio::of(&processors(plain), &processors(one));
    let two_by_one = Ratio::of(&walls(one), &walls(two));
    let two_by_one_cpu = Ratio::of(&processors(one), &processors(two));
    let two_loops_by_one = Ratio::of(&walls(plain), &walls(both));
    let two_loops_by_one_cpu = Ratio::of(&processors(plain), &processors(both));
    if options.json {
        let line = json!({
            "bench": "cost", "events": options.events, "deletions_one_in": options.one_in,
            "rounds": options.rounds, "processors": std::thread::available_parallelism().map_or(0, usize::from),
            "loop": rates(plain), "one_worker": rates(one), "two_workers": rates(two), "two_loops": rates(both),
            "one_by_loop": one_by_loop, "one_by_loop_cpu": one_by_loop_cpu,
            "two_by_one": two_by_one, "two_by_one_cpu": two_by_one_cpu,
            "two_loops_by_one": two_loops_by_one, "two_loops_by_one_cpu": two_loops_by_one_cpu,
            "peak_memory_bytes": memory("VmHWM:"),
        });
        println!("{line}");
        return;
    }
    for (name, of) in SIDES.iter().zip([plain, one, two, both]) {
        println!(
            "{:>10.0} events/s, {:>10.0} a CPU second  {name}",
            events / median(&walls(of)),
            events / median(&processors(of))
        );
    }
    println!("one worker ÷ the loop: {one_by_loop}; a CPU second {one_by_loop_cpu}");
    println!("two workers ÷ one: {two_by_one}; a CPU second {two_by_one_cpu}");
    println!("two loops ÷ one: {two_loops_by_one}; a CPU second {two_loops_by_one_cpu}");
}
