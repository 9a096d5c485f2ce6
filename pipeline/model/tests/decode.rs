//! What the recorded events do not show: keys, flags, routing, and what is refused and how it is said.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{event, relation};
use tombstream_model::decode::{DecodeError, Decoded, Decoder, Part, Skipped};
use tombstream_model::{
    Change, FlagKind, FlagState, FlagValue, Generation, Key, KeyColumn, KeyError, KeyKind, Lsn, Op,
    Position, Relation, RelationId,
};

const ID: &str = "00000000-0000-4000-8000-000000000010";
const TOPIC: &str = "app.public.documents";
const NOON: i64 = 1_770_120_000_000_000; // 2026-02-03T12:00:00Z

fn documents() -> Relation {
    relation("documents", &[TOPIC])
}

fn decode(relations: &[Relation], key: Option<&str>, value: &str) -> Result<Decoded, DecodeError> {
    let event = event(TOPIC, key.map(str::as_bytes), Some(value.as_bytes()));
    Decoder::new(relations).decode(&event, Generation(1))
}

fn change(relation: &Relation, key: Option<&str>, value: &str) -> Change {
    match decode(std::slice::from_ref(relation), key, value) {
        Ok(Decoded::Change(change)) => change,
        other => panic!("no change: {other:?}"),
    }
}

fn refusal(relation: &Relation, key: Option<&str>, value: &str) -> DecodeError {
    decode(std::slice::from_ref(relation), key, value).unwrap_err()
}

/// An envelope of `public.documents` at LSN 7.
fn envelope(op: &str, before: &str, after: &str) -> String {
    format!(
        r#"{{"before":{before},"after":{after},"source":{{"schema":"public","table":"documents","lsn":7,"snapshot":"false"}},"transaction":null,"op":"{op}"}}"#
    )
}

fn row(flag: &str) -> String {
    format!(r#"{{"id":"{ID}","deleted_at":{flag}}}"#)
}

fn key(kinds: &[KeyKind], texts: &[&str]) -> Key {
    Key::new(kinds.iter().copied(), texts.iter().copied()).unwrap()
}

fn keyed(columns: &[(&str, KeyKind)]) -> Relation {
    let mut relation = documents();
    relation.key = columns
        .iter()
        .map(|(name, kind)| KeyColumn { name: (*name).to_owned(), kind: *kind })
        .collect();
    relation
}

fn flagged(kind: FlagKind) -> Relation {
    let mut relation = documents();
    relation.flag.kind = kind;
    relation
}

fn flag_of(relation: &Relation, text: &str) -> FlagState {
    change(relation, None, &envelope("u", "null", &row(text))).after
}

fn zoneless() -> FlagKind {
    FlagKind::Timestamp { zone: "Europe/Berlin".to_owned() }
}

#[test]
fn every_encoding_of_a_flag_is_read() {
    for kind in [FlagKind::TimestampTz, zoneless()] {
        let relation = flagged(kind);
        for text in [
            r#""2026-02-03T12:00:00.000000Z""#,
            r#""2026-02-03T13:00:00+01:00""#,
            r#""2026-02-03T12:00:00""#,
            r#""2026-02-03T12:00:00""#,
            "1770120000000",
            "1770120000000000",
            "1770120000000000000",
        ] {
            let set = FlagState::Set(FlagValue::Micros(NOON));
            assert_eq!(flag_of(&relation, text), set, "{text}");
        }
        for (text, state) in [
            (r#""infinity""#, FlagState::Set(FlagValue::Infinity)),
            (r#""-infinity""#, FlagState::Set(FlagValue::NegativeInfinity)),
            ("9223372036825200000", FlagState::Set(FlagValue::Infinity)),
            ("-9223372036832400000", FlagState::Set(FlagValue::NegativeInfinity)),
            ("0", FlagState::Set(FlagValue::Micros(0))),
            ("null", FlagState::Unset),
            (r#""__debezium_unavailable_value""#, FlagState::Unknown),
        ] {
            assert_eq!(flag_of(&relation, text), state, "{text}");
        }
    }
    let relation = flagged(FlagKind::Boolean);
    for (text, state) in [
        ("true", FlagState::Set(FlagValue::True)),
        ("false", FlagState::Unset),
        ("null", FlagState::Unset),
        (r#""__debezium_unavailable_value""#, FlagState::Unknown),
    ] {
        assert_eq!(flag_of(&relation, text), state, "{text}");
    }
}

#[test]
fn a_flag_of_another_type_is_refused() {
    for (kind, texts) in [
        (
            FlagKind::TimestampTz,
            &["true", "false", "{}", "[]", "\"\"", "\"yes\"", "1.5", "1e9"][..],
        ),
        (FlagKind::Boolean, &["1", "0", "\"true\"", "\"2026-02-03T12:00:00Z\"", "{}"]),
    ] {
        let relation = flagged(kind);
        for text in texts {
            let refused = refusal(&relation, None, &envelope("u", "null", &row(text)));
            assert_eq!(refused.code(), "flag_value", "{text}");
        }
    }
}

#[test]
fn the_inline_schema_tells_the_unit_of_a_number() {
    for (name, micros) in [
        ("io.debezium.time.Timestamp", 5_000_000),
        ("org.apache.kafka.connect.data.Timestamp", 5_000_000),
        ("io.debezium.time.MicroTimestamp", 5_000),
        ("io.debezium.time.NanoTimestamp", 5),
        ("something.else", 5_000_000), // By magnitude: milliseconds.
    ] {
        let columns = format!(
            r#"{{"type":"string","field":"id"}},{{"type":"int64","name":"{name}","field":"deleted_at"}}"#
        );
        let schema = format!(
            r#"{{"type":"struct","fields":[{{"type":"struct","fields":[{columns}],"field":"before"}},{{"type":"struct","fields":[{columns}],"field":"after"}}]}}"#
        );
        let payload = envelope("u", &row("5000"), &row("5000"));
        let value = format!(r#"{{"schema":{schema},"payload":{payload}}}"#);
        let found = change(&flagged(zoneless()), None, &value);
        assert_eq!(found.after, FlagState::Set(FlagValue::Micros(micros)), "{name}");
        assert_eq!(found.before, found.after, "{name}");

        let schema = format!(r#"{{"type":"struct","fields":[{columns}]}}"#);
        let payload = format!(r#"{{"id":"{ID}","deleted_at":5000,"__op":"u"}}"#);
        let value = format!(r#"{{"schema":{schema},"payload":{payload}}}"#);
        let found = change(&flagged(zoneless()), None, &value);
        assert_eq!(found.after, FlagState::Set(FlagValue::Micros(micros)), "{name}, flattened");
    }
}

#[test]
fn the_key_comes_from_the_message_in_any_of_its_forms() {
    let value = envelope("d", "null", "null");
    for text in [
        format!(r#"{{"id":"{ID}"}}"#),
        format!(r#"{{"schema":{{"type":"struct"}},"payload":{{"id":"{ID}"}}}}"#),
        format!(r#"{{"schema":null,"payload":{{"id":"{ID}"}}}}"#),
        format!(r#"{{"id":"{}","__dbz__physicalTableIdentifier":"x"}}"#, ID.to_uppercase()),
        format!(r#""{ID}""#),
        format!(r#"{{"schema":{{"type":"string"}},"payload":"{ID}"}}"#),
    ] {
        let found = change(&documents(), Some(&text), &value);
        assert_eq!(found.key, key(&[KeyKind::Uuid], &[ID]), "{text}");
        assert_eq!(
            (found.op, found.before, found.after),
            (Op::Delete, FlagState::Unknown, FlagState::Unknown,)
        );
    }
}

#[test]
fn the_key_comes_from_the_row_where_the_message_has_none() {
    let expected = key(&[KeyKind::Uuid], &[ID]);
    for message in [None, Some("null"), Some(r#"{"tenant":"a"}"#)] {
        let found = change(&documents(), message, &envelope("u", "null", &row("null")));
        assert_eq!(found.key, expected, "{message:?}");
        let found = change(&documents(), message, &envelope("d", &row("null"), "null"));
        assert_eq!(found.key, expected, "{message:?}");
    }
}

#[test]
fn keys_of_every_type_are_canonical() {
    let kinds = [("a", KeyKind::Bigint), ("b", KeyKind::Text)];
    let relation = keyed(&kinds);
    let after = r#"{"b":"x\"é\u00e9\n","a":-12,"deleted_at":null}"#;
    let message = r#"{"a":-12,"b":"x\"\u00e9é\n"}"#;
    let found = change(&relation, Some(message), &envelope("c", "null", after));
    assert_eq!(found.key, key(&[KeyKind::Bigint, KeyKind::Text], &["-12", "x\"éé\n"]));

    let relation = keyed(&[("id", KeyKind::Bigint)]);
    for (text, expected) in [
        ("9223372036854775807", "9223372036854775807"),
        ("0", "0"),
        (r#""42""#, "42"),
        (r#""007""#, "7"),
    ] {
        let found = change(&relation, Some(text), &envelope("d", "null", "null"));
        assert_eq!(found.key, key(&[KeyKind::Bigint], &[expected]), "{text}");
    }
}

#[test]
fn key_columns_may_be_called_schema_and_payload() {
    let relation = keyed(&[("payload", KeyKind::Text), ("schema", KeyKind::Text)]);
    let expected = key(&[KeyKind::Text, KeyKind::Text], &["p", "s"]);
    for message in [
        r#"{"schema":"s","payload":"p"}"#,
        r#"{"schema":{"type":"struct"},"payload":{"schema":"s","payload":"p"}}"#,
    ] {
        let found = change(&relation, Some(message), &envelope("d", "null", "null"));
        assert_eq!(found.key, expected, "{message}");
    }
}

#[test]
fn a_key_of_another_type_is_refused() {
    let value = envelope("d", "null", "null");
    for (kind, text, code) in [
        (KeyKind::Uuid, r#"{"id":5}"#, "type"),
        (KeyKind::Uuid, r#"{"id":null}"#, "type"),
        (KeyKind::Uuid, r#"{"id":"no uuid"}"#, "key"),
        (KeyKind::Text, r#"{"id":5}"#, "type"),
        (KeyKind::Text, r#"{"id":true}"#, "type"),
        (KeyKind::Text, r#"{"id":"a\u0000b"}"#, "key"),
        (KeyKind::Text, r#"{"id":"\ud800"}"#, "type"),
        (KeyKind::Text, r#"{"id":"__debezium_unavailable_value"}"#, "key_unavailable"),
        (KeyKind::Bigint, r#"{"id":1.0}"#, "key"),
        (KeyKind::Bigint, r#"{"id":1e3}"#, "key"),
        (KeyKind::Bigint, r#"{"id":9223372036854775808}"#, "key"),
        (KeyKind::Bigint, r#"{"id":[1]}"#, "type"),
        (KeyKind::Uuid, "[]", "type"),
        (KeyKind::Uuid, "Struct{id=5}", "json"),
        (KeyKind::Uuid, "", "json"),
        (KeyKind::Uuid, "{}", "key_missing"),
    ] {
        let refused = refusal(&keyed(&[("id", kind)]), Some(text), &value);
        assert_eq!(refused.code(), code, "{text}: {refused}");
    }
    let two = keyed(&[("a", KeyKind::Text), ("b", KeyKind::Text)]);
    assert_eq!(refusal(&two, Some(r#""a""#), &value).code(), "type");
    assert_eq!(
        refusal(&two, Some(r#"{"a":"x"}"#), &value),
        DecodeError::KeyMissing { column: "a".to_owned() }
    );
    assert_eq!(
        refusal(&two, None, &envelope("d", r#"{"a":"x"}"#, "null")),
        DecodeError::KeyMissing { column: "b".to_owned() }
    );
}

#[test]
fn a_message_key_and_a_row_that_disagree_are_refused() {
    let message = r#"{"id":"00000000-0000-4000-8000-000000000011"}"#;
    for (op, before, after, path) in
        [("u", "null", row("null"), "after"), ("d", &*row("null"), "null".to_owned(), "before")]
    {
        let refused = refusal(&documents(), Some(message), &envelope(op, before, &after));
        assert_eq!(refused, DecodeError::KeyMismatch { path });
    }
    let flat = format!(r#"{{"id":"{ID}","deleted_at":null,"__op":"u"}}"#);
    let refused = refusal(&documents(), Some(message), &flat);
    assert_eq!(refused, DecodeError::KeyMismatch { path: "value" });
    // Another spelling of the same key is the same key.
    let upper = format!(r#"{{"id":"{}"}}"#, ID.to_uppercase());
    let found = change(&documents(), Some(&upper), &envelope("u", "null", &row("null")));
    assert_eq!(found.key, key(&[KeyKind::Uuid], &[ID]));
    // A toasted key in the row is no second opinion.
    let relation = keyed(&[("id", KeyKind::Text)]);
    let after = r#"{"id":"__debezium_unavailable_value","deleted_at":null}"#;
    let found = change(&relation, Some(r#"{"id":"long"}"#), &envelope("u", "null", after));
    assert_eq!(found.key, key(&[KeyKind::Text], &["long"]));
}

#[test]
fn an_unset_flag_before_a_delete_proves_nothing_but_a_set_one_does() {
    let set = r#""2026-02-03T12:00:00Z""#;
    let before = |flag| change(&documents(), None, &envelope("d", &row(flag), "null")).before;
    assert_eq!(before("null"), FlagState::Unknown);
    assert_eq!(before(set), FlagState::Set(FlagValue::Micros(NOON)));
    let found = change(&documents(), None, &envelope("u", &row("null"), &row(set)));
    assert_eq!(found.before, FlagState::Unset);
}

#[test]
fn positions_need_an_lsn_and_no_snapshot() {
    let at = |source: &str, transaction: &str, op: &str| {
        let value = format!(
            r#"{{"after":{},"source":{{"schema":"public","table":"documents",{source}}},"transaction":{transaction},"op":"{op}"}}"#,
            row("null")
        );
        decode(&[documents()], None, &value).map(|decoded| match decoded {
            Decoded::Change(change) => change.position,
            other => panic!("no change: {other:?}"),
        })
    };
    let position =
        |lsn, order| Ok(Some(Position { generation: Generation(1), lsn: Lsn(lsn), order }));
    assert_eq!(at(r#""lsn":9"#, "null", "u"), position(9, 0));
    assert_eq!(at(r#""lsn":9,"snapshot":false"#, r#"{"total_order":4}"#, "u"), position(9, 4));
    assert_eq!(at(r#""lsn":9"#, r#"{"total_order":5000000000}"#, "u"), position(9, u32::MAX));
    for source in [r#""lsn":null"#, r#""x":1"#, r#""lsn":9,"snapshot":"last""#] {
        assert_eq!(at(source, "null", "u"), Ok(None), "{source}");
    }
    assert_eq!(at(r#""lsn":9,"snapshot":"false""#, "null", "r"), Ok(None));
    for source in [r#""lsn":-1"#, r#""lsn":"0/9""#, r#""lsn":1.5"#, r#""lsn":9,"snapshot":3"#] {
        assert_eq!(at(source, "null", "u").unwrap_err().code(), "type", "{source}");
    }
    assert_eq!(at(r#""lsn":9"#, r#"{"total_order":"x"}"#, "u").unwrap_err().code(), "type");
}

/// `source.schema` and `source.table` in an envelope.
fn of_table(schema: &str, table: &str) -> String {
    envelope("u", "null", &row("null"))
        .replace(r#""schema":"public""#, &format!(r#""schema":"{schema}""#))
        .replace(r#""table":"documents""#, &format!(r#""table":"{table}""#))
}

fn relation_of(relations: &[Relation], value: &str) -> Option<u16> {
    match decode(relations, None, value) {
        Ok(Decoded::Change(change)) => Some(change.relation.0),
        Ok(Decoded::Skipped(Skipped::OtherTable)) => None,
        other => panic!("neither a change nor another table: {other:?}"),
    }
}

#[test]
fn a_partition_is_its_topics_relation() {
    let relations = [relation("other", &["elsewhere"]), documents()];
    assert_eq!(relation_of(&relations, &of_table("public", "documents")), Some(1));
    assert_eq!(relation_of(&relations, &of_table("public", "documents_2026")), Some(1));
    assert_eq!(relation_of(&relations, &of_table("parts", "documents_2026")), Some(1));
    assert_eq!(relation_of(&relations, &of_table("public", "other")), Some(0));
    assert_eq!(relation_of(&relations, &of_table("public", "debezium_signal")), None);
}

#[test]
fn relations_on_one_topic_are_told_apart_by_their_tables() {
    let relations = [relation("contents", &[TOPIC]), documents()];
    assert_eq!(relation_of(&relations, &of_table("public", "documents")), Some(1));
    assert_eq!(relation_of(&relations, &of_table("public", "contents")), Some(0));
    assert_eq!(relation_of(&relations, &of_table("audit", "contents")), None);
    assert_eq!(relation_of(&relations, &of_table("public", "elsewhere")), None);

    let flat = |added: &str| format!(r#"{{"id":"{ID}","deleted_at":null,"__op":"u"{added}}}"#);
    assert_eq!(decode(&relations, None, &flat("")), Err(DecodeError::Ambiguous));
    for added in
        [r#","__table":"contents""#, r#","__source_schema":"public","__source_table":"contents""#]
    {
        assert_eq!(relation_of(&relations, &flat(added)), Some(0), "{added}");
    }
}

#[test]
fn one_table_under_two_connectors_is_told_by_the_topic() {
    let relations = [relation("documents", &["elsewhere"]), documents()];
    assert_eq!(relation_of(&relations, &of_table("public", "documents")), Some(1));
}

#[test]
fn a_flattened_row_without_added_fields_is_taken_for_an_update() {
    let found = change(&documents(), None, &row("1770120000000"));
    assert_eq!((found.op, found.position), (Op::Update, None));
    assert_eq!(found.after, FlagState::Set(FlagValue::Micros(NOON)));
    for deleted in [r#""true""#, "true"] {
        let value = format!(r#"{{"id":"{ID}","deleted_at":null,"__deleted":{deleted}}}"#);
        assert_eq!(change(&documents(), None, &value).op, Op::Delete, "{deleted}");
    }
    for deleted in [r#""false""#, "false", "null"] {
        let value = format!(r#"{{"id":"{ID}","deleted_at":null,"__deleted":{deleted}}}"#);
        assert_eq!(change(&documents(), None, &value).op, Op::Update, "{deleted}");
    }
}

#[test]
fn a_flattened_row_may_have_columns_called_like_the_envelopes() {
    let value = format!(
        r#"{{"id":"{ID}","op":"u","source":"web","before":1,"after":2,"schema":"s","payload":"p","ts_ms":3,"deleted_at":null,"__op":"c","__source_lsn":8}}"#
    );
    let found = change(&documents(), None, &value);
    assert_eq!((found.op, found.after), (Op::Create, FlagState::Unset));
    assert_eq!(found.position.map(|position| position.lsn), Some(Lsn(8)));
    let bare = value.replace(r#","__op":"c","__source_lsn":8"#, "");
    assert_eq!(change(&documents(), None, &bare).op, Op::Update);
}

#[test]
fn a_flattened_truncate_is_one() {
    let truncate = Ok(Decoded::Truncate {
        relation: RelationId(0),
        position: Some(Position { generation: Generation(1), lsn: Lsn(5), order: 0 }),
    });
    let value = r#"{"__op":"t","__source_lsn":5}"#;
    assert_eq!(decode(&[documents()], None, value), truncate);
}

#[test]
fn null_is_a_tombstone_however_it_is_written() {
    for value in ["null", " null\n", r#"{"schema":null,"payload":null}"#] {
        let tombstone = Ok(Decoded::Skipped(Skipped::Tombstone));
        assert_eq!(decode(&[documents()], None, value), tombstone, "{value}");
    }
}

#[test]
fn heartbeats_and_transactions_are_known_on_any_topic_and_with_a_schema() {
    for (payload, skipped) in [
        (r#"{"ts_ms":1}"#, Skipped::Heartbeat),
        (
            r#"{"status":"END","id":"8:9","event_count":1,"data_collections":[]}"#,
            Skipped::Transaction,
        ),
    ] {
        for value in [payload.to_owned(), format!(r#"{{"schema":{{}},"payload":{payload}}}"#)] {
            let skipped = Ok(Decoded::Skipped(skipped));
            assert_eq!(decode(&[documents()], None, &value), skipped, "{value}");
        }
    }
}

#[test]
fn a_row_that_resembles_a_heartbeat_or_a_transaction_is_a_row() {
    for column in [r#""status":"END""#, r#""ts_ms":1"#] {
        let value = format!(r#"{{"id":"{ID}",{column},"deleted_at":1770120000000}}"#);
        let found = change(&documents(), None, &value);
        assert_eq!(found.after, FlagState::Set(FlagValue::Micros(NOON)), "{column}");
    }
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let good = envelope("u", "null", &row("null"));
    for (value, said) in [
        ("", "value: not json at line 1 column 0: EOF while parsing a value"),
        ("{\"op\":\"u\",\n", "value: not json at line 2 column 0: EOF while parsing a value"),
        ("[1]", "value: an array, expected an object"),
        ("\"secret\"", "value: a string, expected an object"),
        (&good[..good.len() - 1], "value: not json at line 1 column "),
        (&format!("{good}x"), "value: not json at line 1 column "),
        (&envelope("x", "null", "null"), "op: none of c, u, d, r, t and m"),
        (&envelope("u", "null", "null"), "after: missing"),
        (&envelope("u", "null", "7"), "after: a number, expected an object"),
        (&envelope("u", "[]", &row("null")), "before: an array, expected an object"),
        (
            &envelope("u", "null", &format!(r#"{{"id":"{ID}","deleted_at":null,"deleted_at":1}}"#)),
            "after.deleted_at: given twice",
        ),
        (&good.replacen('{', r#"{"op":"d","#, 1), "value.op: given twice"),
        (
            &envelope("u", "null", &format!(r#"{{"id":"{ID}","removed_at":null}}"#)),
            "after.deleted_at: relation `documents` has its flag here, and the row has no such column",
        ),
        (
            &format!(r#"{{"id":"{ID}","removed_at":null,"__op":"u"}}"#),
            "value.deleted_at: relation `documents` has its flag here",
        ),
        (&good.replace("\"u\"", "5"), "op: a number, expected a string"),
        (&good.replace("\"documents\"", "{}"), "source.table: an object, expected a string"),
        (&good.replace(&format!("\"{ID}\""), "7"), "after.id: a number, expected a string"),
        (&good.replace(ID, "secret"), "after: not a uuid"),
    ] {
        let refused = refusal(&documents(), None, value).to_string();
        assert!(refused.starts_with(said), "{value}\n  said {refused}\n  not  {said}");
        assert!(!refused.contains("secret"), "{refused}");
    }
}

#[test]
fn bytes_that_are_no_text_are_said_to_be_so() {
    let decoder = Decoder::new(&[documents()]);
    let of = |key: Option<&[u8]>, value: &[u8]| {
        decoder.decode(&event(TOPIC, key, Some(value)), Generation(1)).unwrap_err()
    };
    assert_eq!(of(None, b"{\"\xff"), DecodeError::Utf8 { part: Part::Value, at: 2 });
    let avro = of(None, b"\0\0\0\0\x07abc");
    assert_eq!(avro, DecodeError::Registry { part: Part::Value });
    assert!(avro.to_string().contains("JsonConverter"), "{avro}");
    let good = envelope("u", "null", &row("null"));
    assert_eq!(of(Some(b"\xff"), good.as_bytes()), DecodeError::Utf8 { part: Part::Key, at: 0 });
    assert_eq!(of(Some(b"\0\0"), good.as_bytes()), DecodeError::Registry { part: Part::Key });
}

#[test]
fn no_depth_of_nesting_overflows_the_stack() {
    let deep = 200_000;
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
        let nested = format!("{}1{}", open.repeat(deep), close.repeat(deep));
        let unread =
            envelope("u", "null", &row("null")).replacen('{', &format!(r#"{{"x":{nested},"#), 1);
        assert!(decode(&[documents()], None, &unread).is_ok());
        for value in [
            nested.clone(),
            open.repeat(deep),
            envelope("u", &nested, "null"),
            envelope("u", "null", &row(&nested)),
            format!(r#"{{"schema":{nested},"payload":{}}}"#, envelope("u", "null", &row("5.5"))),
            format!(r#"{{"schema":{nested},"payload":{nested}}}"#),
        ] {
            assert!(decode(&[documents()], None, &value).is_err());
        }
        let key = Some(nested.as_str());
        assert!(decode(&[documents()], key, &envelope("d", "null", "null")).is_err());
        // A schema too deep to be read is no schema: the number is judged by its magnitude.
        let deep_schema = format!(
            r#"{{"schema":{{"fields":{nested}}},"payload":{}}}"#,
            envelope("u", "null", &row("5000"))
        );
        assert_eq!(
            change(&documents(), None, &deep_schema).after,
            FlagState::Set(FlagValue::Micros(5_000_000))
        );
    }
}

#[test]
fn a_key_error_keeps_its_cause() {
    let refused = refusal(&documents(), Some(r#""x""#), &envelope("d", "null", "null"));
    assert_eq!(refused, DecodeError::Key { path: "key".to_owned(), source: KeyError::Uuid });
}
