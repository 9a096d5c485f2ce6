//! What is counted by `cargo xtask check` under callgrind: how many instructions an event costs. Here, without
//! callgrind, only that the right thing is decoded.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::path::Path;

use common::{event, relation};
use serde_json::Value;
use tombstream_model::decode::{Decoded, Decoder, QuickDecoder};
use tombstream_model::{Event, Generation};

const TIMES: usize = 200;

/// Recorded updates, those of living rows or those that flag one.
fn updates(is_flagged: bool) -> Vec<Event> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/debezium/documents.jsonl");
    let lines = fs::read_to_string(path).unwrap();
    let records = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let events = records.filter_map(|record| {
        let value = record["value"].as_str()?;
        let envelope: Value = serde_json::from_str(value).unwrap();
        let flag = envelope["after"].get("deleted_at")?;
        let key = record["key"].as_str()?;
        (envelope["op"] == "u" && flag.is_null() != is_flagged)
            .then(|| event("plain.public.documents", Some(key.as_bytes()), Some(value.as_bytes())))
    });
    let events: Vec<_> = events.take(4).collect();
    assert_eq!(events.len(), 4, "the fixture has enough of them");
    events
}

#[inline(never)]
fn counted_decoding(decoder: &mut QuickDecoder, events: &[Event]) -> usize {
    let mut found = 0;
    for _ in 0..TIMES {
        for event in events {
            if let Ok(Decoded::Change(change)) = decoder.decode(event, Generation(1)) {
                found += usize::from(change.into_candidate().is_some());
            }
        }
    }
    found
}

fn decoder() -> QuickDecoder {
    QuickDecoder::new(Decoder::new(&[relation("documents", &["plain.public.documents"])]))
}

#[test]
fn living_rows_are_turned_away() {
    assert_eq!(counted_decoding(&mut decoder(), &updates(false)), 0);
}

#[test]
fn flagged_rows_become_candidates() {
    assert_eq!(counted_decoding(&mut decoder(), &updates(true)), 4 * TIMES);
}
