//! Rows of Postgres's own log as Debezium would publish them: JSON envelopes without schema.
//!
//! The fields, their names and the forms of values are those of Debezium's Postgres connector with its
//! defaults (`time.precision.mode=adaptive`, `decimal.handling.mode=precise`, tombstones on deletes),
//! read off events of Debezium 3.6 and its documentation, "Data type mappings". What differs, and why:
//!
//! - `source.version` is Tombstream's; `source.sequence` begins with the first row of the transaction that
//!   is published, `ts_ns` counts whole microseconds.
//! - A delete under REPLICA IDENTITY DEFAULT has null for every column but the key's; Debezium writes the
//!   type's zero where a column is NOT NULL, which the log does not tell.
//! - `transaction` is always null, there are no headers, heartbeats and messages.
//! - Types that Debezium leaves out come as their text.

mod json;
mod number;
mod time;
mod value;

use std::sync::Arc;

use bytes::Bytes;

use crate::wal::{RowMessage, Tuple, Value, WalError, WalRow, WalTable};
use crate::{Lsn, Message};

use json::Json;

/// Where envelopes say that they are from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The topics' prefix, and the logical name of the server.
    pub prefix: Arc<str>,
    /// The database.
    pub database: Arc<str>,
}

/// What of a snapshot a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Snapshot {
    /// None: it was read from the log.
    No,
    /// The first row of all.
    First,
    /// The first row of its table.
    FirstOfTable,
    /// One between.
    Within,
    /// The last row of its table.
    LastOfTable,
    /// The last row of all.
    Last,
}

/// What an envelope says beside the row's own message.
#[derive(Clone, Debug)]
pub struct Context<'a> {
    /// Where from.
    pub origin: &'a Origin,
    /// The topic.
    pub topic: &'a Arc<str>,
    /// The places of the primary key's columns in the table; none makes messages without a key.
    pub key: &'a [usize],
    /// What of a snapshot it is.
    pub snapshot: Snapshot,
    /// The place of the first row of its transaction.
    pub first: Lsn,
    /// When it is published, in microseconds since 1970.
    pub now_micros: i64,
}

/// The topic of a table. With dots it is Debezium's, `prefix.schema.table`, and what no topic of Kafka can
/// hold is replaced by `_`. Fluvio's topics have lower-case letters, digits and dashes: there the separator
/// is a dash, which also replaces all else.
pub fn topic(prefix: &str, schema: &str, table: &str, separator: char) -> Arc<str> {
    let name = format!("{prefix}{separator}{schema}{separator}{table}");
    let fit = |c: char| match separator {
        '-' if c.is_ascii_alphanumeric() => c.to_ascii_lowercase(),
        '-' => '-',
        _ if c.is_ascii_alphanumeric() || "._-".contains(c) => c,
        _ => '_',
    };
    name.chars().map(fit).collect::<String>().into()
}

/// The messages that a row is published as: one; a delete's tombstone beside it; of a changed key the
/// delete of the old one, its tombstone, and the new one's insert.
pub fn envelopes(row: &WalRow, context: &Context<'_>) -> Result<Vec<Message>, WalError> {
    let table = &row.table;
    let envelope = |op, before, after| envelope(row, context, op, before, after);
    let message = |key: Option<Tuple<'_>>, value: Option<Bytes>| Message {
        topic: Arc::clone(context.topic),
        key: key.and_then(|tuple| self::key(table, context.key, tuple)),
        value,
    };
    Ok(match row.read()? {
        RowMessage::Insert { new } => {
            let op = if context.snapshot == Snapshot::No { "c" } else { "r" };
            vec![message(Some(new), Some(envelope(op, None, Some(Image::new(new)))))]
        }
        RowMessage::Update { old, new } => {
            let changed = old.filter(|old| !same_key(context.key, old.tuple, new));
            let before = old.map(|old| Image::new(old.tuple));
            let after = Image { filled: old.map(|old| old.tuple), ..Image::new(new) };
            match changed {
                Some(old) => vec![
                    message(Some(old.tuple), Some(envelope("d", before, None))),
                    message(Some(old.tuple), None),
                    message(Some(new), Some(envelope("c", None, Some(after)))),
                ],
                None => {
                    // Of the key's columns alone Debezium makes no `before`.
                    let before = before.filter(|_| old.is_some_and(|old| old.is_whole));
                    vec![message(Some(new), Some(envelope("u", before, Some(after))))]
                }
            }
        }
        RowMessage::Delete { old } => vec![
            message(Some(old.tuple), Some(envelope("d", Some(Image::new(old.tuple)), None))),
            message(Some(old.tuple), None),
        ],
        RowMessage::Truncate => vec![message(None, Some(envelope("t", None, None)))],
    })
}

/// A row as it is shown.
#[derive(Clone, Copy)]
struct Image<'a> {
    tuple: Tuple<'a>,
    /// Where a value that did not change may stand.
    filled: Option<Tuple<'a>>,
}

impl<'a> Image<'a> {
    fn new(tuple: Tuple<'a>) -> Self {
        Self { tuple, filled: None }
    }

    fn write(self, table: &WalTable, json: &mut Json) {
        let mut known = self.filled.map(|tuple| tuple.values());
        json.object(|json| {
            for (column, value) in table.columns.iter().zip(self.tuple.values()) {
                let known = known.as_mut().and_then(Iterator::next);
                let value = match (value, known) {
                    (Value::Unchanged, Some(known @ Value::Text(_))) => known,
                    (value, _) => value,
                };
                json.name(&column.name);
                value::write(column, value, json);
            }
        });
    }
}

fn key(table: &WalTable, places: &[usize], tuple: Tuple<'_>) -> Option<Bytes> {
    if places.is_empty() {
        return None;
    }
    let mut values = vec![Value::Null; places.len()];
    tuple.pick(places, &mut values);
    let mut json = Json::default();
    json.object(|json| {
        for (place, value) in places.iter().zip(values) {
            if let Some(column) = table.columns.get(*place) {
                json.name(&column.name);
                value::write(column, value, json);
            }
        }
    });
    Some(json.into_bytes())
}

fn same_key(places: &[usize], old: Tuple<'_>, new: Tuple<'_>) -> bool {
    let pick = |tuple: Tuple<'_>| {
        let mut values = vec![Value::Null; places.len()];
        tuple.pick(places, &mut values);
        values.into_iter().map(|value| format!("{value:?}")).collect::<Vec<_>>()
    };
    pick(old) == pick(new)
}

fn envelope(
    row: &WalRow,
    context: &Context<'_>,
    op: &str,
    before: Option<Image<'_>>,
    after: Option<Image<'_>>,
) -> Bytes {
    let mut json = Json::default();
    let image = |json: &mut Json, image: Option<Image<'_>>| match image {
        Some(image) => image.write(&row.table, json),
        None => json.null(),
    };
    json.object(|json| {
        json.name("before");
        image(json, before);
        json.name("after");
        image(json, after);
        json.name("source");
        json.object(|json| source(row, context, json));
        json.name("transaction");
        json.null();
        json.name("op");
        json.text(op);
        times(context.now_micros, json);
    });
    json.into_bytes()
}

fn source(row: &WalRow, context: &Context<'_>, json: &mut Json) {
    let lsn = row.lsn().0;
    let text = |json: &mut Json, name: &str, text: &str| {
        json.name(name);
        json.text(text);
    };
    text(json, "version", env!("CARGO_PKG_VERSION"));
    text(json, "connector", "postgresql");
    text(json, "name", &context.origin.prefix);
    json.name("ts_ms");
    json.number(row.transaction.committed_micros.div_euclid(1_000));
    text(
        json,
        "snapshot",
        match context.snapshot {
            Snapshot::No => "false",
            Snapshot::First => "first",
            Snapshot::FirstOfTable => "first_in_data_collection",
            Snapshot::Within => "true",
            Snapshot::LastOfTable => "last_in_data_collection",
            Snapshot::Last => "last",
        },
    );
    text(json, "db", &context.origin.database);
    let sequence = match context.snapshot {
        Snapshot::No => format!("[\"{}\",\"{lsn}\"]", context.first.0),
        _ => format!("[null,\"{lsn}\"]"),
    };
    text(json, "sequence", &sequence);
    json.name("ts_us");
    json.number(row.transaction.committed_micros);
    json.name("ts_ns");
    json.number(i128::from(row.transaction.committed_micros) * 1_000);
    text(json, "schema", &row.table.schema);
    text(json, "table", &row.table.name);
    json.name("txId");
    json.number(row.transaction.xid);
    json.name("lsn");
    json.number(lsn);
    for absent in ["xmin", "origin", "origin_lsn"] {
        json.name(absent);
        json.null();
    }
}

fn times(micros: i64, json: &mut Json) {
    json.name("ts_ms");
    json.number(micros.div_euclid(1_000));
    json.name("ts_us");
    json.number(micros);
    json.name("ts_ns");
    json.number(i128::from(micros) * 1_000);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_named_as_their_broker_can() {
        assert_eq!(&*topic("app", "public", "documents", '.'), "app.public.documents");
        assert_eq!(&*topic("app", "public", "my table", '.'), "app.public.my_table");
        assert_eq!(&*topic("app", "public", "My_Table", '-'), "app-public-my-table");
    }
}
