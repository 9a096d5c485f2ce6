//! What is turned away at a glance, beside a twin that reads everything: `serde_json::Value`.
//!
//! Of all text that is JSON: where the glance answers, the twin answers the same, and the full decoder finds
//! nothing to claim; where it does not, the event is decoded as ever.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::path::Path;

use common::{event, relation};
use proptest::prelude::*;
use serde_json::Value;
use tombstream_model::decode::{DecodeError, Decoded, Decoder, QuickDecoder, Skipped};
use tombstream_model::{FlagKind, Generation, Relation};

const GENERATION: Generation = Generation(1);
const TOPIC: &str = "plain.public.documents";

/// A relation on the topic, and one with a boolean flag of another name that no topic lists.
fn relations() -> [Relation; 2] {
    let mut other = relation("others", &[]);
    other.flag.kind = FlagKind::Boolean;
    other.flag.column = "gone".to_owned();
    [relation("documents", &[TOPIC]), other]
}

fn decoder() -> Decoder {
    Decoder::new(&relations())
}

/// What a whole tree tells, plainly.
fn twin(text: &str) -> Option<Skipped> {
    let mut value: Value = serde_json::from_str(text).ok()?;
    let wrapped = value.as_object()?;
    let has_schema = wrapped.get("schema").is_some_and(|it| it.is_object() || it.is_null());
    if wrapped.len() == 2 && has_schema && wrapped.contains_key("payload") {
        value = wrapped["payload"].clone();
    }
    let envelope = value.as_object()?;
    if ["__op", "__deleted", "__source_lsn"].iter().any(|name| envelope.contains_key(*name)) {
        return None;
    }
    let op = envelope.get("op")?.as_str()?;
    let source = envelope.get("source")?.as_object()?;
    let text = |name: &str| match source.get(name) {
        None | Some(Value::Null) => Some(""),
        Some(other) => other.as_str(),
    };
    let table = (text("schema")?, text("table")?);
    let (flag, unset) = match table {
        // A topic of one relation may bring its partitions, which have names of their own.
        ("public", "others") => ("gone", vec![Value::Null, Value::Bool(false)]),
        (_, "debezium_signal") => return (op != "m").then_some(Skipped::OtherTable),
        _ => ("deleted_at", vec![Value::Null]),
    };
    let row = envelope.get("after")?.as_object()?;
    let lives = matches!(op, "c" | "u" | "r") && unset.contains(row.get(flag)?);
    lives.then_some(Skipped::Alive)
}

/// Whether a decoded event can lead to nothing. What is wrong with a living row's key, position or other columns
/// is not looked at; what is wrong with what tells that it lives is never turned away.
fn is_harmless(decoded: &Result<Decoded, DecodeError>) -> bool {
    const LOOKED_AT: [&str; 8] = [
        "value.op",
        "value.after",
        "value.source",
        "source.schema",
        "source.table",
        "after.deleted_at",
        "after.gone",
        "op",
    ];
    match decoded {
        Ok(Decoded::Change(change)) => change.clone().into_candidate().is_none(),
        Ok(Decoded::Skipped(_)) => true,
        Ok(Decoded::Truncate { .. }) => false,
        Err(
            DecodeError::Duplicate { path }
            | DecodeError::Type { path, .. }
            | DecodeError::FlagValue { path, .. }
            | DecodeError::FlagMissing { path, .. },
        ) => !LOOKED_AT.contains(&path.as_str()),
        Err(error) => {
            !matches!(error, DecodeError::Form | DecodeError::Op { .. } | DecodeError::Unlisted)
        }
    }
}

fn agree(quick: &mut QuickDecoder, text: &str, key: Option<&str>) {
    let event = event(TOPIC, key.map(str::as_bytes), Some(text.as_bytes()));
    let full = decoder().decode(&event, GENERATION);
    match quick.glance(&event) {
        Some(skipped) => {
            assert!(is_harmless(&full), "{skipped:?}, and yet {full:?}: {text}");
            if serde_json::from_str::<Value>(text).is_ok() {
                assert_eq!(twin(text), Some(skipped), "{text}");
            }
            assert_eq!(quick.decode(&event, GENERATION), Ok(Decoded::Skipped(skipped)));
        }
        None => assert_eq!(quick.decode(&event, GENERATION), full, "{text}"),
    }
}

/// An object of these fields, in this order and as often as they come; names may be spelled with an escape.
fn object(fields: &[(String, String)]) -> String {
    let fields: Vec<String> =
        fields.iter().map(|(name, value)| format!("{name}:{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

fn spelled(names: &'static [&'static str]) -> impl Strategy<Value = String> {
    let plain = prop::sample::select(names);
    prop_oneof![
        12 => plain.clone().prop_map(|name| format!("\"{name}\"")),
        1 => plain.clone().prop_map(|name| format!(" \"{name}\" ")),
        // The first letter as an escape; and a name that only ends like it, behind a quote.
        1 => plain.clone().prop_map(|name| {
            let (first, rest) = name.split_at(1);
            format!("\"\\u{:04x}{rest}\"", first.as_bytes()[0])
        }),
        1 => plain.prop_map(|name| format!("\"x\\\"{name}\"")),
    ]
}

fn scalar() -> impl Strategy<Value = String> {
    let texts = vec![
        "null",
        "{}",
        "null",
        "null",
        "false",
        "true",
        "0",
        "-1.5e3",
        "1767225600000000",
        "\"public\"",
        "\"documents\"",
        "\"others\"",
        "\"documents_2026\"",
        "\"debezium_signal\"",
        "\"c\"",
        "\"u\"",
        "\"r\"",
        "\"d\"",
        "\"m\"",
        "\"t\"",
        "\"\"",
        "\"\\\\\"",
        "\"}\\\",\\\"op\\\":\\\"\"",
        "\"\\u0063\"",
        " null ",
        "\"2026-02-03T12:00:00Z\"",
        "\"long text, with {braces} and [brackets]: as is\"",
    ];
    prop::sample::select(texts).prop_map(str::to_owned)
}

fn row(names: &'static [&'static str]) -> impl Strategy<Value = String> {
    let nested = prop_oneof![
        8 => scalar(),
        1 => prop::collection::vec((spelled(names), scalar()), 0..3).prop_map(|it| object(&it)),
        1 => prop::collection::vec(scalar(), 0..3).prop_map(|it| format!("[{}]", it.join(","))),
    ];
    prop::collection::vec((spelled(names), nested), 0..6).prop_map(|fields| object(&fields))
}

fn envelope() -> impl Strategy<Value = String> {
    let rows = || row(&["id", "name", "deleted_at", "deleted_at", "gone", "op"]);
    let source = row(&["schema", "table", "table", "lsn", "snapshot"]);
    let usual_source = prop::sample::select(vec![
        "\"schema\":\"public\",\"table\":\"documents\",\"lsn\":7",
        "\"table\":\"others\",\"schema\":\"public\",\"lsn\":7",
        "\"schema\":\"public\",\"table\":\"documents_1\",\"sequence\":\"[null,\\\"7\\\"]\"",
    ]);
    let more = |names| prop::option::weighted(0.2, (spelled(names), scalar()));
    let more = move |names| {
        more(names)
            .prop_map(|it| it.map_or(String::new(), |(name, value)| format!(",{name}:{value}")))
    };
    let op = prop::sample::select(vec![
        "\"c\"", "\"u\"", "\"u\"", "\"r\"", "\"d\"", "\"m\"", "\"t\"", "\"x\"", "null", "1",
    ]);
    let usual_row = (
        prop::sample::select(vec!["null", "null", "null", "{}", "false", "0"]),
        prop::sample::select(vec!["deleted_at", "deleted_at", "gone"]),
        more(&["deleted_at", "gone", "name"]),
    )
        .prop_map(|(value, flag, more)| {
            format!("{{\"id\":\"00000000-0000-4000-8000-000000000001\",\"{flag}\":{value}{more}}}")
        });
    let usual = (
        (rows(), usual_row),
        (usual_source, more(&["schema", "table", "lsn"])),
        op.clone(),
        more(&["op", "after", "source", "before", "__op", "__deleted", "__source_lsn", "transaction"]),
    )
        .prop_map(|((before, after), (source, in_source), op, more)| {
            format!(
                "{{\"before\":{before},\"after\":{after},\"source\":{{{source}{in_source}}}{more},\"op\":{op}}}"
            )
        });
    let field = prop_oneof![
        2 => (spelled(&["before", "after", "after"]), rows()),
        2 => (spelled(&["source"]), source),
        2 => (spelled(&["op"]), op.prop_map(str::to_owned)),
        1 => (spelled(&["transaction", "__op", "__deleted", "schema", "payload", "after", "source"]), scalar()),
    ];
    let any = prop::collection::vec(field, 0..7).prop_map(|fields| object(&fields));
    prop_oneof![3 => usual, 1 => any]
}

fn message() -> impl Strategy<Value = String> {
    let schema = prop_oneof![
        Just("{\"type\":\"struct\",\"fields\":[{\"field\":\"payload\"}]}".to_owned()),
        Just("null".to_owned()),
        Just("{\"parameters\":{\"a\":1,\"payload\":{\"op\":\"c\"}}}".to_owned()),
        scalar(),
    ];
    let wrapped = (schema, envelope(), prop::sample::select(vec!["", " ", ",\"more\":1", "}"]))
        .prop_map(|(schema, payload, rest)| {
            format!("{{\"schema\":{schema},\"payload\":{payload}{rest}}}")
        });
    prop_oneof![2 => envelope(), 1 => wrapped, 1 => envelope().prop_map(|it| format!(" {it}\n"))]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_096, ..ProptestConfig::default() })]

    #[test]
    fn what_is_turned_away_could_lead_to_nothing(messages in prop::collection::vec(message(), 1..6)) {
        // One decoder for all: what it remembers of one message must not mislead it about the next.
        let mut quick = QuickDecoder::new(decoder());
        for text in &messages {
            agree(&mut quick, text, Some("{\"id\":\"00000000-0000-4000-8000-000000000001\"}"));
        }
    }

    #[test]
    fn damaged_messages_are_turned_away_only_if_they_could_lead_to_nothing(
        text in message(),
        flips in prop::collection::vec(
            (any::<prop::sample::Index>(), prop::sample::select(b"{}[]\",:\\nu0 x".to_vec())), 1..4),
    ) {
        let mut bytes = text.into_bytes();
        for (at, byte) in &flips {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        if let Ok(text) = String::from_utf8(bytes) {
            agree(&mut QuickDecoder::new(decoder()), &text, None);
        }
    }
}

fn recorded() -> Vec<(String, Option<String>, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/debezium");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|it| it.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    files.sort();
    let mut events = Vec::new();
    for file in files {
        for line in fs::read_to_string(file).unwrap().lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let text = |name: &str| line[name].as_str().map(str::to_owned);
            if let Some(value) = text("value") {
                events.push((text("topic").unwrap(), text("key"), value));
            }
        }
    }
    events
}

#[test]
fn recorded_events_mean_the_same_at_a_glance() {
    let topics: Vec<String> = recorded().into_iter().map(|(topic, ..)| topic).collect();
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    let decoder = Decoder::new(&[relation("documents", &topics)]);
    let mut quick = QuickDecoder::new(decoder.clone());
    let mut turned_away = 0;
    for (topic, key, value) in recorded() {
        let event = event(&topic, key.as_deref().map(str::as_bytes), Some(value.as_bytes()));
        let full = decoder.decode(&event, GENERATION);
        match quick.glance(&event) {
            Some(_) => {
                turned_away += 1;
                assert!(is_harmless(&full) && full.is_ok(), "{full:?}: {value}");
            }
            None => {
                // Of envelopes nothing that is alive is left to the decoder.
                let is_alive = matches!(&full, Ok(Decoded::Change(it)) if it.clone().into_candidate().is_none());
                assert!(!is_alive || value.contains("__op"), "{value}");
                assert_eq!(quick.decode(&event, GENERATION), full);
            }
        }
    }
    assert!(turned_away > 100, "{turned_away}");
}

/// How often the glance finds what the twin finds: it is there to save work.
#[test]
fn usual_events_are_told_at_a_glance() {
    let mut quick = QuickDecoder::new(decoder());
    let alive = "{\"before\":null,\"after\":{\"id\":\"1\",\"deleted_at\":null},\"source\":{\"schema\":\"public\",\
                 \"table\":\"documents\",\"sequence\":\"[null,\\\"7\\\"]\"},\"op\":\"u\"}";
    for text in [
        alive.to_owned(),
        format!("{{\"schema\":{{\"type\":\"struct\"}},\"payload\":{alive}}}"),
        // The same beginning again, remembered.
        format!("{{\"schema\":{{\"type\":\"struct\"}},\"payload\":{alive}}}"),
        alive.replace("null}", "null,\"name\":\"\\\"deleted_at\\\":1\"}"),
        alive.replace(":{\"id\"", ":\n{ \"id\""),
    ] {
        let event = event(TOPIC, None, Some(text.as_bytes()));
        assert_eq!(quick.glance(&event), Some(Skipped::Alive), "{text}");
    }
    for text in [
        alive.replace("\"deleted_at\":null", "\"deleted_at\":0"),
        alive.replace("\"deleted_at\":null", "\"deleted_at\":null,\"deleted_at\":0"),
        alive.replace("\"deleted_at\":null", "\"nested\":{\"deleted_at\":null}"),
        alive.replace("\"deleted_at\":null", "\"name\":\"\\\"deleted_at\\\":null\""),
        alive.replace("\"op\":\"u\"", "\"op\":\"d\""),
        alive.replace("\"op\":\"u\"", "\"op\":\"u\",\"__deleted\":\"true\""),
        alive.replace("\"op\"", "\"\\u006fp\""),
        format!("{{\"schema\":{{}},\"payload\":{alive},\"deleted_at\":0}}"),
        format!("{alive}{alive}"),
    ] {
        let event = event(TOPIC, None, Some(text.as_bytes()));
        assert_eq!(quick.glance(&event), None, "{text}");
    }
}
