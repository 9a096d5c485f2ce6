//! Change events like those of a real Debezium, made by the million.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use serde_json::{Value, json};
use tombstream_model::{Event, Origin};
use uuid::Uuid;

static TOPIC: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from("app.public.documents"));
static SCHEMA: LazyLock<String> = LazyLock::new(|| schema().to_string());

/// An update of row `n` as Debezium writes it under REPLICA IDENTITY FULL, its fields in its order.
pub(crate) fn envelope(n: usize, is_flagged: bool, with_schema: bool) -> Event {
    let id = Uuid::from_u128(0x6f1d_0000_0000_4000_8000_0000_0000_0000 + n as u128);
    update(id, n, 26_809_608 + n as u64 * 128, is_flagged, with_schema)
}

/// The flag of a row, at that place of the log.
pub(crate) fn flag_event(id: Uuid, lsn: u64) -> Event {
    update(id, 0, lsn, true, false)
}

fn update(id: Uuid, n: usize, lsn: u64, is_flagged: bool, with_schema: bool) -> Event {
    let row = |flag: &str| {
        format!(
            r#"{{"id":"{id}","name":"document {n}","uploaded_at":"2026-01-01T10:00:00.123456Z","deleted_at":{flag}}}"#
        )
    };
    let flag = if is_flagged { r#""2026-03-01T10:00:00.250000Z""# } else { "null" };
    let at = 1_795_435_116_944_u64 + n as u64;
    let source = format!(
        r#"{{"version":"3.6.3.Final","connector":"postgresql","name":"app","ts_ms":{at},"snapshot":"false","db":"app","sequence":"[\"{lsn}\",\"{}\"]","ts_us":{at}123,"ts_ns":{at}123456,"schema":"public","table":"documents","txId":{},"lsn":{lsn},"xmin":null,"origin":null,"origin_lsn":null}}"#,
        lsn + 56,
        810 + n,
    );
    let envelope = format!(
        r#"{{"before":{},"after":{},"source":{source},"transaction":null,"op":"u","ts_ms":{at},"ts_us":{at}456,"ts_ns":{at}456789}}"#,
        row("null"),
        row(flag),
    );
    let value = if with_schema {
        format!(r#"{{"schema":{},"payload":{envelope}}}"#, &*SCHEMA)
    } else {
        envelope
    };
    Event {
        origin: Origin { topic: Arc::clone(&TOPIC), partition: 0, offset: n as i64 },
        topic: None,
        key: Some(Bytes::from(format!(r#"{{"id":"{id}"}}"#))),
        value: Some(Bytes::from(value)),
    }
}

/// The inline schema of such an envelope, as JsonConverter writes it.
fn schema() -> Value {
    let field = |name: &str, kind: &str| json!({"type": kind, "optional": true, "field": name});
    let row = |name: &str| {
        let fields: Vec<Value> = ["id", "name", "uploaded_at", "deleted_at"]
            .iter()
            .map(|it| field(it, "string"))
            .collect();
        json!({"type": "struct", "fields": fields, "optional": true, "name": "app.public.documents.Value", "field": name})
    };
    let source: Vec<Value> = [
        ("version", "string"),
        ("connector", "string"),
        ("name", "string"),
        ("ts_ms", "int64"),
        ("snapshot", "string"),
        ("db", "string"),
        ("sequence", "string"),
        ("ts_us", "int64"),
        ("ts_ns", "int64"),
        ("schema", "string"),
        ("table", "string"),
        ("txId", "int64"),
        ("lsn", "int64"),
        ("xmin", "int64"),
    ]
    .iter()
    .map(|(name, kind)| field(name, kind))
    .collect();
    json!({
        "type": "struct",
        "fields": [
            row("before"), row("after"),
            {"type": "struct", "fields": source, "optional": false, "name": "io.debezium.connector.postgresql.Source", "field": "source"},
            field("transaction", "string"), field("op", "string"), field("ts_ms", "int64"), field("ts_us", "int64"),
        ],
        "optional": false, "name": "app.public.documents.Envelope", "version": 2,
    })
}
