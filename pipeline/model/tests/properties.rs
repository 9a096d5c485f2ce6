//! Any bytes give an answer, never a panic; what is said of them is short and holds none of them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use common::{event, relation};
use proptest::prelude::*;
use serde::Deserialize;
use tombstream_model::decode::Decoder;
use tombstream_model::{FlagKind, Generation, Key, KeyColumn, KeyKind};

#[derive(Deserialize)]
struct Line {
    topic: String,
    key: Option<String>,
    value: Option<String>,
}

static LINES: LazyLock<Vec<Line>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/debezium");
    let mut files: Vec<_> =
        fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    files.sort();
    let lines: Vec<Line> = files
        .iter()
        .flat_map(|path| {
            let text = fs::read_to_string(path).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(lines.len(), 470);
    lines
});

/// Relations of every kind, all on one topic of their own and on those of the recorded events.
static DECODERS: LazyLock<Vec<Decoder>> = LazyLock::new(|| {
    let topics: Vec<&str> = LINES.iter().map(|line| line.topic.as_str()).collect();
    let mut plain = relation("documents", &topics);
    plain.topics.dedup();
    let mut text = plain.clone();
    text.key = vec![
        KeyColumn { name: "id".to_owned(), kind: KeyKind::Text },
        KeyColumn { name: "name".to_owned(), kind: KeyKind::Text },
    ];
    text.flag.kind = FlagKind::Boolean;
    let mut number = plain.clone();
    number.key[0].kind = KeyKind::Bigint;
    number.flag.kind = FlagKind::Timestamp { zone: "UTC".to_owned() };
    [
        vec![plain.clone()],
        vec![text.clone()],
        vec![number.clone()],
        vec![plain, text, number],
        vec![],
    ]
    .iter()
    .map(|relations| Decoder::new(relations))
    .collect()
});

fn stands(topic: &str, key: Option<&[u8]>, value: Option<&[u8]>) {
    let event = event(topic, key, value);
    for decoder in &*DECODERS {
        if let Err(error) = decoder.decode(&event, Generation(1)) {
            let said = error.to_string();
            assert!(said.len() <= 300, "{said}");
            assert!(!said.contains('\n') && !said.is_empty(), "{said}");
            assert!(!said.contains("0123456789"), "a piece of a body: {said}");
        }
    }
}

/// JSON of any shape, with the envelope's and the tables' names likely.
fn json() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        4 => prop::sample::select(vec![
            "op", "source", "before", "after", "transaction", "schema", "payload", "id", "name",
            "deleted_at", "__op", "__deleted", "__source_lsn", "lsn", "table", "snapshot", "ts_ms",
            "status", "total_order", "fields", "field", "message",
        ]).prop_map(str::to_owned),
        1 => ".{0,4}",
    ];
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|value| value.to_string()),
        any::<i64>().prop_map(|value| value.to_string()),
        any::<f32>().prop_map(|value| value.to_string()),
        prop::sample::select(vec![
            "c",
            "u",
            "d",
            "r",
            "t",
            "m",
            "true",
            "BEGIN",
            "public",
            "documents",
            "infinity",
            "2026-02-03T12:00:00Z",
            "__debezium_unavailable_value",
            "00000000-0000-4000-8000-000000000010",
        ])
        .prop_map(|text| format!("\"{text}\"")),
        ".{0,6}".prop_map(|text| serde_json::to_string(&text).unwrap()),
    ];
    leaf.prop_recursive(4, 40, 8, move |inner| {
        prop_oneof![
            3 => prop::collection::vec((name.clone(), inner.clone()), 0..8).prop_map(|fields| {
                let fields: Vec<String> = fields
                    .iter()
                    .map(|(name, value)| format!("{}:{value}", serde_json::to_string(name).unwrap()))
                    .collect();
                format!("{{{}}}", fields.join(","))
            }),
            1 => prop::collection::vec(inner, 0..4).prop_map(|all| format!("[{}]", all.join(","))),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_give_an_answer(
        key in prop::option::of(prop::collection::vec(any::<u8>(), 0..40)),
        value in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        stands("plain.public.documents", key.as_deref(), Some(&value));
    }

    #[test]
    fn any_json_gives_an_answer(key in prop::option::of(json()), value in json()) {
        let key = key.as_deref().map(str::as_bytes);
        stands("plain.public.documents", key, Some(value.as_bytes()));
        stands("unlisted", key, Some(value.as_bytes()));
    }

    #[test]
    fn a_damaged_event_gives_an_answer(
        line in any::<prop::sample::Index>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
        in_key in any::<bool>(),
    ) {
        let line = line.get(&LINES);
        let mut key = line.key.clone().map(String::into_bytes);
        let mut value = line.value.clone().map(String::into_bytes);
        let damaged = if in_key { &mut key } else { &mut value };
        if let Some(bytes) = damaged.as_mut().filter(|bytes| !bytes.is_empty()) {
            for (at, byte) in &flips {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
        }
        stands(&line.topic, key.as_deref(), value.as_deref());
    }

    #[test]
    fn a_key_is_canonical(
        number in any::<i64>(),
        zeros in 0_usize..4,
        id in any::<u128>(),
        text in "[^\0]{0,12}",
    ) {
        let kinds = || [KeyKind::Bigint, KeyKind::Uuid, KeyKind::Text].into_iter();
        let id = uuid::Uuid::from_u128(id);
        let sign = if number < 0 { "-" } else { "" };
        let padded = format!("{sign}{}{}", "0".repeat(zeros), number.unsigned_abs());
        let odd = [padded, id.hyphenated().to_string().to_uppercase(), text.clone()];
        let plain = [number.to_string(), id.hyphenated().to_string(), text];
        let odd = Key::new(kinds(), odd.iter().map(String::as_str)).unwrap();
        let canonical = Key::new(kinds(), plain.iter().map(String::as_str)).unwrap();
        prop_assert_eq!(&odd, &canonical);
        prop_assert_eq!(odd.stable_hash(), canonical.stable_hash());
        prop_assert_eq!(&Key::from_postgres(plain.clone()), &canonical);
        let again = Key::new(kinds(), canonical.columns()).unwrap();
        prop_assert_eq!(again, canonical);
    }

    /// Few letters, so that different rows often spell alike once their columns are run together.
    #[test]
    fn a_key_is_injective(
        one in prop::collection::vec("[ab,\"\\]\\[-]{0,3}", 1..4),
        other in prop::collection::vec("[ab,\"\\]\\[-]{0,3}", 1..4),
    ) {
        let key = |texts: &[String]| {
            let kinds = vec![KeyKind::Text; texts.len()];
            Key::new(kinds.into_iter(), texts.iter().map(String::as_str)).unwrap()
        };
        prop_assert_eq!(key(&one) == key(&other), one == other);
        if one.len() == other.len() {
            prop_assert_eq!(key(&one).to_string() == key(&other).to_string(), one == other);
        }
    }
}
