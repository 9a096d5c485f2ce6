use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::wal::{ReplicaIdentity, WalColumn, WalTransaction};
use crate::{Flag, Generation, KeyColumn, KeyKind, Lsn, OnHardDelete, Origin, Position};

fn relation(kind: FlagKind) -> Relation {
    Relation {
        name: "documents".into(),
        schema: "public".into(),
        table: "documents".into(),
        key: vec![KeyColumn { name: "id".into(), kind: KeyKind::Bigint }],
        flag: Flag { column: "deleted_at".into(), kind },
        targets: Vec::new(),
        grace: Duration::ZERO,
        hide: None,
        breaker: None,
        on_hard_delete: OnHardDelete::Ignore,
        key_reuse_forbidden: false,
        topics: Vec::new(),
        allow_cascade: Vec::new(),
    }
}

fn table(columns: &[&str]) -> Arc<WalTable> {
    let column = |name: &&str| WalColumn {
        name: (*name).into(),
        type_oid: 25,
        type_modifier: -1,
        is_identity: *name == "id",
    };
    Arc::new(WalTable {
        oid: 7,
        schema: "public".into(),
        name: "documents".into(),
        identity: ReplicaIdentity::Default,
        columns: columns.iter().map(column).collect(),
    })
}

/// A row of the log whose message is `parts`, texts as Postgres sends them: `Some("7")`, null, or `u`.
fn message(kind: u8, parts: &[(u8, &[Option<&str>])]) -> Bytes {
    let mut bytes = vec![kind, 0, 0, 0, 7];
    for (which, columns) in parts {
        bytes.push(*which);
        bytes.extend(u16::try_from(columns.len()).unwrap().to_be_bytes());
        for column in *columns {
            match column {
                None => bytes.push(b'n'),
                Some("unchanged") => bytes.push(b'u'),
                Some(text) => {
                    bytes.push(b't');
                    bytes.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
                    bytes.extend(text.as_bytes());
                }
            }
        }
    }
    bytes.into()
}

fn row(table: &Arc<WalTable>, message: Bytes) -> WalRow {
    WalRow {
        origin: Origin { topic: "slot.public.documents".into(), partition: 2, offset: 0x10_0000 },
        generation: Generation(3),
        table: Arc::clone(table),
        transaction: Arc::new(WalTransaction::default()),
        message,
    }
}

fn decoder(kind: FlagKind) -> RowDecoder {
    RowDecoder::new(Decoder::new(&[relation(kind)]))
}

fn change(decoded: Result<Decoded, DecodeError>) -> Change {
    match decoded {
        Ok(Decoded::Change(change)) => change,
        other => panic!("a change, not {other:?}"),
    }
}

const COLUMNS: [&str; 3] = ["name", "id", "deleted_at"];

#[test]
fn a_flag_is_found_wherever_its_column_stands() {
    let table = table(&COLUMNS);
    let flagged = [Some("a"), Some("7"), Some("2026-02-03 12:00:00+00")];
    let mut decoder = decoder(FlagKind::TimestampTz);
    let change = change(decoder.decode(&row(&table, message(b'U', &[(b'N', &flagged)]))));
    assert_eq!((change.op, change.key.to_string().as_str()), (Op::Update, "7"));
    assert_eq!(change.before, FlagState::Unknown, "the default identity does not tell");
    assert_eq!(change.after, FlagState::Set(FlagValue::Micros(1_770_120_000_000_000)));
    let position = Position { generation: Generation(3), lsn: Lsn(0x10_0000), order: 2 };
    assert_eq!(change.position, Some(position));
}

#[test]
fn a_living_row_is_rejected_without_its_key() {
    let table = table(&COLUMNS);
    let alive = [Some("a"), Some("no number"), None];
    for message in [message(b'I', &[(b'N', &alive)]), message(b'U', &[(b'N', &alive)])] {
        let decoded = decoder(FlagKind::TimestampTz).decode(&row(&table, message));
        assert_eq!(decoded, Ok(Decoded::Skipped(Skipped::Alive)));
    }
    let alive = message(b'I', &[(b'N', &[None, Some("7"), Some("f")])]);
    let decoded = decoder(FlagKind::Boolean).decode(&row(&table, alive));
    assert_eq!(decoded, Ok(Decoded::Skipped(Skipped::Alive)));
}

#[test]
fn every_time_is_set_also_one_that_can_not_be_read() {
    let table = table(&COLUMNS);
    for (text, after) in [
        ("infinity", FlagState::Set(FlagValue::Infinity)),
        ("-infinity", FlagState::Set(FlagValue::NegativeInfinity)),
        ("0044-03-15 00:00:00+00 BC", FlagState::Unknown),
        ("2026-02-03 12:00:00.5", FlagState::Set(FlagValue::Micros(1_770_120_000_500_000))),
    ] {
        let flagged = [None, Some("7"), Some(text)];
        let row = row(&table, message(b'I', &[(b'N', &flagged)]));
        let change = change(decoder(FlagKind::TimestampTz).decode(&row));
        assert_eq!(change.after, after, "{text}");
        assert!(change.into_candidate().is_some(), "the claim looks at it");
    }
}

#[test]
fn the_whole_row_before_tells_the_flag_before() {
    let table = table(&COLUMNS);
    let (old, new) = ([None, Some("7"), None], [None, Some("7"), Some("2026-02-03 12:00:00+00")]);
    let row = row(&table, message(b'U', &[(b'O', &old), (b'N', &new)]));
    let change = change(decoder(FlagKind::TimestampTz).decode(&row));
    assert_eq!(change.before, FlagState::Unset);
}

/// The `d` of a key change is no hard delete (S5): there is none here to be mistaken for one.
#[test]
fn a_changed_key_is_one_change_of_the_new_key() {
    let table = table(&COLUMNS);
    let (old, new) = ([None, Some("7"), None], [None, Some("8"), Some("2026-02-03 12:00:00+00")]);
    let row = row(&table, message(b'U', &[(b'K', &old), (b'N', &new)]));
    let change = change(decoder(FlagKind::TimestampTz).decode(&row));
    assert_eq!((change.op, change.key.to_string().as_str()), (Op::Update, "8"));
}

#[test]
fn a_key_that_did_not_change_and_is_not_repeated_stands_in_the_row_before() {
    let table = table(&COLUMNS);
    let new = [Some("a"), Some("unchanged"), Some("2026-02-03 12:00:00+00")];
    let old = [None, Some("7"), None];
    let told = row(&table, message(b'U', &[(b'K', &old), (b'N', &new)]));
    let mut decoder = decoder(FlagKind::TimestampTz);
    assert_eq!(change(decoder.decode(&told)).key.to_string(), "7");
    let untold = row(&table, message(b'U', &[(b'N', &new)]));
    let unavailable = DecodeError::KeyUnavailable { path: "id".into() };
    assert_eq!(decoder.decode(&untold), Err(unavailable));
}

#[test]
fn a_delete_tells_its_key_or_is_skipped() {
    let table = table(&COLUMNS);
    let mut decoder = decoder(FlagKind::TimestampTz);
    let told = row(&table, message(b'D', &[(b'K', &[None, Some("7"), None])]));
    let told = change(decoder.decode(&told));
    assert_eq!((told.op, told.after), (Op::Delete, FlagState::Unknown));
    let untold = row(&table, message(b'D', &[(b'K', &[Some("a"), None, None])]));
    assert_eq!(decoder.decode(&untold), Ok(Decoded::Skipped(Skipped::Keyless)));
}

#[test]
fn other_tables_and_truncates_are_told_apart() {
    let truncate = row(&table(&COLUMNS), Bytes::from_static(b"T\0\0\0\x01\0\0\0\0\x07"));
    let mut decoder = decoder(FlagKind::TimestampTz);
    assert!(matches!(decoder.decode(&truncate), Ok(Decoded::Truncate { .. })));
    let mut other = (*table(&COLUMNS)).clone();
    other.schema = "other".into();
    let other = row(&Arc::new(other), message(b'D', &[(b'K', &[None, Some("7"), None])]));
    assert_eq!(decoder.decode(&other), Ok(Decoded::Skipped(Skipped::OtherTable)));
}

/// A table that changes while it is read is described anew, and read by that description.
#[test]
fn a_column_that_moves_is_followed_and_one_that_goes_is_an_error() {
    let mut decoder = decoder(FlagKind::TimestampTz);
    let flagged = Some("2026-02-03 12:00:00+00");
    let before = row(&table(&COLUMNS), message(b'U', &[(b'N', &[None, Some("7"), flagged])]));
    assert_eq!(change(decoder.decode(&before)).key.to_string(), "7");
    let moved = table(&["id", "added", "name", "deleted_at"]);
    let after = message(b'U', &[(b'N', &[Some("7"), Some("0"), None, flagged])]);
    assert_eq!(change(decoder.decode(&row(&moved, after))).key.to_string(), "7");
    let gone = table(&["id", "name"]);
    let without = row(&gone, message(b'U', &[(b'N', &[Some("7"), None])]));
    let error = decoder.decode(&without).unwrap_err();
    assert_eq!(error.code(), "flag_missing");
    assert!(error.to_string().starts_with("deleted_at: relation `documents`"), "{error}");
}

#[test]
fn bytes_that_are_no_message_are_an_error_and_no_panic() {
    let mut decoder = decoder(FlagKind::TimestampTz);
    let whole = message(b'U', &[(b'N', &[None, Some("7"), Some("infinity")])]);
    for end in 0..whole.len() {
        assert!(decoder.decode(&row(&table(&COLUMNS), whole.slice(..end))).is_err());
    }
    let latin = [None, Some("7"), Some("\u{fffd}")];
    let mut bytes = message(b'U', &[(b'N', &latin)]).to_vec();
    let at = bytes.len() - 3;
    bytes.splice(at.., [0xff, 0xff, 0xff]);
    assert_eq!(decoder.decode(&row(&table(&COLUMNS), bytes.into())).unwrap_err().code(), "type");
}
