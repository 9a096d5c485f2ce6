//! Debezium's events, made by hand.

use serde_json::{Value, json};
use tombstream_e2e::Record;

/// When flags are set, by the events. The claim reads the row's own value.
const FLAGGED_AT: &str = "2026-01-01T10:00:00.123456Z";

/// A row of a table with a bigint key, as an event shows it.
pub(crate) fn row(id: i64, flagged: bool) -> Value {
    json!({ "id": id, "name": format!("document {id}.pdf"), "uploaded_at": FLAGGED_AT,
        "deleted_at": flagged.then_some(FLAGGED_AT) })
}

/// A whole envelope.
pub(crate) fn envelope(table: &str, op: &str, before: Value, after: Value, lsn: u64) -> Value {
    json!({
        "before": before,
        "after": after,
        "source": { "version": "3.6.3.Final", "connector": "postgresql", "name": "e2e",
            "ts_ms": 1_795_435_116_944_u64, "snapshot": "false", "db": "app",
            "sequence": format!("[null,\"{lsn}\"]"), "schema": "public", "table": table,
            "txId": 810, "lsn": lsn, "xmin": null },
        "transaction": null,
        "op": op,
        "ts_ms": 1_795_435_117_135_u64,
    })
}

/// A key and an envelope.
pub(crate) fn record(id: i64, envelope: &Value) -> Record {
    (Some(json!({ "id": id }).to_string().into_bytes()), Some(envelope.to_string().into_bytes()))
}

/// A row came into being.
pub(crate) fn created(table: &str, id: i64, lsn: u64) -> Record {
    record(id, &envelope(table, "c", Value::Null, row(id, false), lsn))
}

/// A row changed, its flag from one state to another.
pub(crate) fn updated(table: &str, id: i64, from: bool, to: bool, lsn: u64) -> Record {
    record(id, &envelope(table, "u", row(id, from), row(id, to), lsn))
}

/// A row was removed; the tombstone that follows it is [`tombstone`].
pub(crate) fn removed(table: &str, id: i64, lsn: u64) -> Record {
    record(id, &envelope(table, "d", row(id, true), Value::Null, lsn))
}

/// A key without a value.
pub(crate) fn tombstone(id: i64) -> Record {
    (Some(json!({ "id": id }).to_string().into_bytes()), None)
}

/// A random number of its own kind: the same in each run.
pub(crate) fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
