//! Every line of every recorded file decodes to what was written down here by reading the events and
//! `capture.py`, the statements that caused them.
//!
//! A line of a table is `OP KEY BEFORE AFTER @LSN +ORDER`. `010` is the id
//! 00000000-0000-4000-8000-000000000010, `b03` one of the ten rows of the bulk statements,
//! 00000000-0000-4000-9000-000000000003. `-` is an unset flag, `?` an unknown one, `@none` no
//! position. ORDER is the `total_order` of the files with transaction metadata, and left out (0)
//! elsewhere.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use chrono::DateTime;
use common::{event, relation};
use serde::Deserialize;
use tombstream_model::decode::{DecodeError, Decoded, Decoder, Skipped};
use tombstream_model::{
    Change, FlagState, FlagValue, Generation, Key, KeyKind, Lsn, Op, Position, RelationId,
};

/// The statements of `capture.py` from "one row's whole life" to "one transaction, several rows".
/// `d 011` and `c 012` are the changed primary key: one LSN under two keys, told apart by ORDER.
const LIFE: &str = "
c 010 ? - @26822536 +1
u 010 - - @26822744 +1
u 010 - 2026-02-02T12:00:00Z @26822944 +1
u 010 2026-02-02T12:00:00Z - @26823168 +1
u 010 - 2026-02-03T12:00:00Z @26823392 +1
d 010 2026-02-03T12:00:00Z ? @26823616 +1
tombstone
c 011 ? - @26823784 +1
u 011 - - @26824056 +1
u 011 - - @26824360 +1
u 011 - - @26824680 +1
d 011 ? ? @26825008 +1
tombstone
c 012 ? - @26825008 +2
d 012 ? ? @26825408 +1
tombstone
c 012 ? - @26825624 +1
c 020 ? - @26825848 +1
c 021 ? - @26826024 +2
c 022 ? - @26826200 +3
u 020 - 2026-03-02T00:00:00Z @26826544 +5
u 021 - 2026-03-02T00:00:00Z @26826720 +6
d 022 ? ? @26826896 +7
tombstone
";

/// Three rows before the connectors start, the third of them deleted. Reads have no position.
const SNAPSHOT: &str = "
r 001 ? - @none
r 002 ? - @none
r 003 ? 2026-01-02T00:00:00Z @none
";

/// `truncate documents`, then the end marker.
const END: &str = "
truncate @26868696 +1
c 999 ? - @26869112 +1
";

/// What the signal asks for: the rows that are left, three a chunk, in the order of the key.
const INCREMENTAL: &str = "
r 001 ? - @none
r 002 ? - @none
r 003 ? 2026-01-02T00:00:00Z @none
r 012 ? - @none
r 020 ? 2026-03-02T00:00:00Z @none
r 021 ? 2026-03-02T00:00:00Z @none
";

/// Rows 301 and 302 created and flagged, 301 removed; the connector is killed and sends it all again;
/// then 302 is restored.
const REDELIVERY: &str = "
c 301 ? - @26654928
u 301 - 2026-05-02T00:00:00Z @26655144
d 301 2026-05-02T00:00:00Z ? @26655352
tombstone
c 302 ? - @26655512
u 302 - 2026-05-02T00:00:00Z @26655736
c 301 ? - @26654928
u 301 - 2026-05-02T00:00:00Z @26655144
d 301 2026-05-02T00:00:00Z ? @26655352
tombstone
c 302 ? - @26655512
u 302 - 2026-05-02T00:00:00Z @26655736
u 302 2026-05-02T00:00:00Z - @26655960
";

/// The three bulk statements: ten rows inserted, flagged and removed. In the log the inserts are 160
/// bytes apart, the updates 144, the deletes 104.
fn bulk() -> Vec<String> {
    let mut lines = Vec::new();
    for n in 1..=10 {
        lines.push(format!("c b{n:02} ? - @{} +{n}", 26_827_256 + 160 * (n - 1)));
    }
    for n in 1..=10 {
        let lsn = 26_828_928 + 144 * (n - 1);
        lines.push(format!("u b{n:02} - 2026-04-02T00:00:00Z @{lsn} +{n}"));
    }
    for n in 1..=10 {
        let lsn = 26_830_416 + 104 * (n - 1);
        lines.push(format!("d b{n:02} 2026-04-02T00:00:00Z ? @{lsn} +{n}"));
        lines.push("tombstone".to_owned());
    }
    lines
}

fn lines(table: &str) -> Vec<String> {
    table.trim().lines().map(str::to_owned).collect()
}

/// The same without transaction metadata.
fn unordered(table: Vec<String>) -> Vec<String> {
    table.iter().map(|line| line.split(" +").next().unwrap().to_owned()).collect()
}

/// The same flattened: of what was before, only a delete's row is left, and a truncate is left out.
fn flattened(table: Vec<String>) -> Vec<String> {
    table
        .iter()
        .filter(|line| !line.starts_with("truncate"))
        .map(|line| {
            let mut words: Vec<&str> = line.split(' ').collect();
            if matches!(words[0], "c" | "u" | "r") {
                words[2] = "?";
            }
            words.join(" ")
        })
        .collect()
}

fn whole() -> Vec<String> {
    [lines(SNAPSHOT), lines(LIFE), bulk(), lines(END)].concat()
}

#[derive(Deserialize)]
struct Line {
    topic: String,
    key: Option<String>,
    value: Option<String>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/debezium")
}

fn read(file: &str) -> Vec<Line> {
    let text = fs::read_to_string(folder().join(file)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

const GENERATION: Generation = Generation(3);

fn decode_all(decoder: &Decoder, file: &str) -> Vec<Result<Decoded, DecodeError>> {
    read(file)
        .iter()
        .map(|line| {
            let (key, value) = (line.key.as_deref(), line.value.as_deref());
            let event = event(&line.topic, key.map(str::as_bytes), value.map(str::as_bytes));
            decoder.decode(&event, GENERATION)
        })
        .collect()
}

fn expected(line: &str) -> Decoded {
    let words: Vec<&str> = line.split(' ').collect();
    let order = words
        .last()
        .and_then(|word| word.strip_prefix('+'))
        .map_or(0, |order| order.parse().unwrap());
    let position = |word: &str| match word.strip_prefix('@').unwrap() {
        "none" => None,
        lsn => Some(Position { generation: GENERATION, lsn: Lsn(lsn.parse().unwrap()), order }),
    };
    let flag = |word: &str| match word {
        "?" => FlagState::Unknown,
        "-" => FlagState::Unset,
        time => FlagState::Set(FlagValue::Micros(
            DateTime::parse_from_rfc3339(time).unwrap().timestamp_micros(),
        )),
    };
    let op = match words[0] {
        "tombstone" => return Decoded::Skipped(Skipped::Tombstone),
        "truncate" => {
            return Decoded::Truncate { relation: RelationId(0), position: position(words[1]) };
        }
        "r" => Op::Read,
        "c" => Op::Create,
        "u" => Op::Update,
        "d" => Op::Delete,
        other => panic!("no op: {other}"),
    };
    let id = match words[1].strip_prefix('b') {
        Some(n) => format!("00000000-0000-4000-9000-0000000000{n}"),
        None => format!("00000000-0000-4000-8000-000000000{}", words[1]),
    };
    Decoded::Change(Change {
        relation: RelationId(0),
        key: Key::new([KeyKind::Uuid].into_iter(), [id.as_str()].into_iter()).unwrap(),
        op,
        before: flag(words[2]),
        after: flag(words[3]),
        position: position(words[4]),
        removed: None,
    })
}

fn holds(decoder: &Decoder, file: &str, table: &[String]) {
    let found = decode_all(decoder, file);
    assert_eq!(found.len(), table.len(), "{file}: as many lines as expectations");
    for (index, (found, line)) in found.into_iter().zip(table).enumerate() {
        assert_eq!(found, Ok(expected(line)), "{file} line {}: {line}", index + 1);
    }
}

fn documents() -> Decoder {
    Decoder::new(&[relation(
        "documents",
        &[
            "plain.public.documents",
            "schema.public.documents",
            "tx.public.documents",
            "flat.public.documents",
            "incr.public.documents",
        ],
    )])
}

#[test]
fn an_envelope_without_a_schema_tells_the_change() {
    holds(&documents(), "documents.jsonl", &unordered(whole()));
}

#[test]
fn an_envelope_with_its_schema_tells_the_same() {
    holds(&documents(), "documents.schemas.jsonl", &unordered(whole()));
}

#[test]
fn an_envelope_on_an_unlisted_topic_is_known_by_its_table() {
    let decoder = Decoder::new(&[relation("documents", &[])]);
    holds(&decoder, "documents.jsonl", &unordered(whole()));
    holds(&decoder, "documents.schemas.jsonl", &unordered(whole()));
}

#[test]
fn transaction_metadata_gives_the_order() {
    holds(&documents(), "tx.documents.jsonl", &whole());
}

#[test]
fn a_flattened_row_tells_the_change() {
    holds(&documents(), "flat.documents.jsonl", &flattened(unordered(whole())));
}

#[test]
fn an_incremental_snapshot_adds_rows_without_a_position() {
    let table = [lines(LIFE), bulk(), lines(INCREMENTAL), lines(END)].concat();
    holds(&documents(), "incremental-snapshot.jsonl", &unordered(table));
}

#[test]
fn a_redelivered_event_has_the_position_it_had() {
    holds(&documents(), "redelivery.jsonl", &lines(REDELIVERY));
}

#[test]
fn what_is_no_row_is_skipped() {
    for (file, lines, skipped) in [
        ("heartbeat.jsonl", 5, Skipped::Heartbeat),
        ("tx.transaction.jsonl", 50, Skipped::Transaction),
        ("message.jsonl", 2, Skipped::Message),
        ("message.schemas.jsonl", 2, Skipped::Message),
    ] {
        assert_eq!(
            decode_all(&documents(), file),
            vec![Ok(Decoded::Skipped(skipped)); lines],
            "{file}"
        );
    }
}

#[test]
fn a_row_of_a_table_that_is_no_relation_is_skipped() {
    let other = Ok(Decoded::Skipped(Skipped::OtherTable));
    let tombstone = Ok(Decoded::Skipped(Skipped::Tombstone));
    for (file, lines, tombstones) in [
        ("toast.identity-default.jsonl", 9, &[6][..]),
        ("toast.identity-default.schemas.jsonl", 9, &[6]),
        ("toast.identity-full.jsonl", 6, &[4]),
        ("tx.contents.jsonl", 9, &[6]),
        ("incremental-snapshot.signal.jsonl", 7, &[]),
    ] {
        let mut table = vec![other.clone(); lines];
        tombstones.iter().for_each(|index| table[*index] = tombstone.clone());
        assert_eq!(decode_all(&documents(), file), table, "{file}");
    }
}

#[test]
fn signals_are_skipped_even_on_a_relations_own_topic() {
    let decoder = Decoder::new(&[relation("documents", &["incr.public.debezium_signal"])]);
    let table = vec![Ok(Decoded::Skipped(Skipped::OtherTable)); 7];
    assert_eq!(decode_all(&decoder, "incremental-snapshot.signal.jsonl"), table);
}

#[test]
fn a_flattened_row_on_an_unlisted_topic_is_an_error() {
    let mut table = vec![Err(DecodeError::Unlisted); 9];
    table[6] = Ok(Decoded::Skipped(Skipped::Tombstone));
    assert_eq!(decode_all(&documents(), "flat.contents.jsonl"), table);
}

#[test]
fn a_message_of_the_outbox_is_no_event() {
    assert_eq!(decode_all(&documents(), "outbox.jsonl"), vec![Err(DecodeError::Form); 2]);
}

/// `contents` has no `deleted_at`: under care all the same, each row that should have a flag says so,
/// and the delete, which needs its key alone, still counts.
#[test]
fn a_relation_without_its_flag_column_is_a_loud_error() {
    for (file, topic, table, path, lsn) in [
        ("toast.identity-default.jsonl", "plain.public.contents", "contents", "after", 26_837_560),
        (
            "toast.identity-default.schemas.jsonl",
            "schema.public.contents",
            "contents",
            "after",
            26_837_560,
        ),
        (
            "toast.identity-full.jsonl",
            "plain.public.contents_full",
            "contents_full",
            "after",
            26_854_032,
        ),
        ("tx.contents.jsonl", "tx.public.contents", "contents", "after", 26_837_560),
        ("flat.contents.jsonl", "flat.public.contents", "contents", "value", 26_837_560),
    ] {
        let decoder = Decoder::new(&[relation(table, &[topic])]);
        let missing = Err(DecodeError::FlagMissing {
            path: format!("{path}.deleted_at"),
            relation: table.to_owned(),
        });
        let order = if file.starts_with("tx.") { " +1" } else { "" };
        let delete = Ok(expected(&format!("d 101 ? ? @{lsn}{order}")));
        let tombstone = Ok(Decoded::Skipped(Skipped::Tombstone));
        let rows = |n| vec![missing.clone(); n];
        let expected = if table == "contents_full" {
            [rows(3), vec![delete, tombstone], rows(1)].concat()
        } else {
            [rows(5), vec![delete, tombstone], rows(2)].concat()
        };
        assert_eq!(decode_all(&decoder, file), expected, "{file}");
    }
}

/// With `body` for a flag, as if it were a time: the fourth event leaves it alone under REPLICA
/// IDENTITY DEFAULT, so it is the placeholder. Null is unset, digits are no time.
#[test]
fn a_toasted_flag_is_unknown() {
    for (file, topic) in [
        ("toast.identity-default.jsonl", "plain.public.contents"),
        ("toast.identity-default.schemas.jsonl", "schema.public.contents"),
    ] {
        let mut contents = relation("contents", &[topic]);
        contents.flag.column = "body".to_owned();
        let no_time = Err(DecodeError::FlagValue {
            path: "after.body".to_owned(),
            expected: "a time in ISO 8601",
        });
        let table = vec![
            no_time.clone(),
            Ok(expected("r 102 ? - @none")),
            no_time.clone(),
            Ok(expected("u 101 ? ? @26831560")),
            no_time,
            Ok(expected("d 101 ? ? @26837560")),
            Ok(Decoded::Skipped(Skipped::Tombstone)),
            Ok(expected("c 103 ? - @26861968")),
            Ok(expected("c 999 ? - @26869408")),
        ];
        assert_eq!(decode_all(&Decoder::new(&[contents]), file), table, "{file}");
    }
}

#[test]
fn no_recorded_file_is_left_out() {
    let files: BTreeSet<String> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".jsonl"))
        .collect();
    let tests = include_str!("fixtures.rs");
    for file in &files {
        assert!(tests.contains(&format!("\"{file}\"")), "{file} has no expectation");
    }
    assert_eq!(files.len(), 17);
}
