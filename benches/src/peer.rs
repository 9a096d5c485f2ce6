//! Decoding as anybody would write it for one table: `serde_json` into structs that borrow.

use std::borrow::Cow;
use std::hint::black_box;

use serde::Deserialize;
use tombstream_model::Event;

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    after: Option<Row<'a>>,
    #[serde(borrow)]
    source: Source<'a>,
    #[serde(borrow)]
    op: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Row<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    deleted_at: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Source<'a> {
    #[serde(borrow)]
    schema: Cow<'a, str>,
    #[serde(borrow)]
    table: Cow<'a, str>,
    lsn: Option<u64>,
}

/// The id of the row that an event says is flagged.
pub(crate) fn flagged(event: &Event) -> Option<Cow<'_, str>> {
    let text = std::str::from_utf8(event.value.as_deref()?).ok()?;
    let envelope = serde_json::from_str::<Envelope<'_>>(text).ok()?;
    let source = black_box(&envelope.source);
    let is_ours = source.schema == "public" && source.table == "documents" && source.lsn.is_some();
    let row = envelope.after.filter(|_| is_ours && matches!(&*envelope.op, "c" | "u" | "r"))?;
    (black_box(&row.id).len() == 36 && row.deleted_at.is_some()).then_some(row.id)
}
