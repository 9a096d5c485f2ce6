//! Decoding alone, one thread: ours beside `serde_json` into borrowed structs, over the same bytes.
//!
//! The other side knows its fields when it is compiled; ours are told by a configuration. It checks that the
//! bytes are UTF-8 first, as its promise of text needs. Its answer is the same: which keys may be claimed. Times
//! are those that the thread was running for, so that a busy machine counts for less.

use std::hint::black_box;

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::{Value, json};
use tombstream_model::decode::{Decoded, Decoder, QuickDecoder};
use tombstream_model::{Event, Generation};

use crate::cpu::running_seconds;
use crate::envelope::envelope;
use crate::figures::{Ratio, median};
use crate::peer;
use crate::slot::relation;

#[derive(Args)]
pub(crate) struct Options {
    /// How many different events: few enough to be in a cache, as what was just read from a socket is
    #[arg(long, default_value_t = 1_000)]
    events: usize,
    /// One in so many is a deletion
    #[arg(long, default_value_t = 20)]
    one_in: usize,
    /// How often each side decodes all of them in a round
    #[arg(long, default_value_t = 200)]
    times: usize,
    /// How often the sides take turns
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// A way to decode. It gives how many events may lead to a claim.
type Side<'a> = (&'static str, Box<dyn FnMut(&[Event]) -> usize + 'a>);

pub(crate) fn run(options: &Options) -> Result<()> {
    let all = |with_schema| -> Vec<Event> {
        (0..options.events).map(|n| envelope(n, n % options.one_in == 0, with_schema)).collect()
    };
    let (plain, wrapped) = (all(false), all(true));
    let decoder = Decoder::new(&[relation()?]);
    let mut quick = QuickDecoder::new(decoder.clone());
    let mut quick_wrapped = quick.clone();
    let mut sides: Vec<Side<'_>> = vec![
        (
            "ours",
            Box::new(|events| count(events, |event| is_candidate(quick.decode(event, GENERATION)))),
        ),
        (
            "serde_json, borrowed",
            Box::new(|events| count(events, |event| peer::flagged(event).is_some())),
        ),
        (
            "ours, all decoded",
            Box::new(|events| {
                count(events, |event| is_candidate(decoder.decode(event, GENERATION)))
            }),
        ),
        ("serde_json::Value", Box::new(|events| count(events, tree))),
        (
            "ours, inline schema",
            Box::new(|_| {
                count(&wrapped, |event| is_candidate(quick_wrapped.decode(event, GENERATION)))
            }),
        ),
    ];
    let mut seconds: Vec<Vec<f64>> = vec![Vec::new(); sides.len()];
    for round in 0..options.rounds {
        for turn in 0..sides.len() {
            let at = (turn + round) % sides.len();
            let before = running_seconds()?;
            for _ in 0..options.times {
                let found = (sides[at].1)(black_box(&plain));
                ensure!(
                    found == options.events.div_ceil(options.one_in),
                    "{}: {found} candidates",
                    sides[at].0
                );
            }
            seconds[at].push(running_seconds()? - before);
        }
    }
    let total = (options.events * options.times) as f64;
    let rate = |at: usize| total / median(&seconds[at]);
    let bytes = |events: &[Event]| {
        events.iter().filter_map(|it| it.value.as_ref()).map(|it| it.len()).sum::<usize>()
            / events.len()
    };
    let against_serde = Ratio::of(&seconds[1], &seconds[0]);
    let schema_cost = Ratio::of(&seconds[4], &seconds[0]);
    if options.json {
        let rates: serde_json::Map<String, Value> = sides
            .iter()
            .enumerate()
            .map(|(at, (name, _))| ((*name).to_owned(), json!(rate(at).round())))
            .collect();
        let line = json!({
            "bench": "decode", "events": options.events, "deletions_one_in": options.one_in,
            "rounds": options.rounds, "bytes": bytes(&plain), "bytes_with_schema": bytes(&wrapped),
            "events_per_cpu_s": rates, "against_serde": against_serde, "cost_of_schema": schema_cost,
        });
        println!("{line}");
        return Ok(());
    }
    for (at, (name, _)) in sides.iter().enumerate() {
        println!("{:>12.0} events a CPU second  {name}", rate(at));
    }
    println!("ours ÷ serde_json, borrowed: {against_serde}");
    println!("with an inline schema ÷ without, time: {schema_cost}");
    Ok(())
}

const GENERATION: Generation = Generation(1);

fn count(events: &[Event], mut is_candidate: impl FnMut(&Event) -> bool) -> usize {
    events.iter().filter(|event| is_candidate(event)).count()
}

fn is_candidate<E>(decoded: Result<Decoded, E>) -> bool {
    match decoded {
        Ok(Decoded::Change(change)) => change.into_candidate().is_some(),
        _ => false,
    }
}

fn tree(event: &Event) -> bool {
    let Some(value) = &event.value else { return false };
    let Ok(value) = serde_json::from_slice::<Value>(value) else { return false };
    let is_ours = value["source"]["schema"] == "public" && value["source"]["table"] == "documents";
    is_ours
        && matches!(value["op"].as_str(), Some("c" | "u" | "r"))
        && value["after"]["deleted_at"].is_string()
}
