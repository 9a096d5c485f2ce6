//! A relation and events for the tests.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tombstream_model::{Event, Flag, FlagKind, KeyColumn, KeyKind, OnHardDelete, Origin, Relation};

/// `public.TABLE`, keyed by `id uuid`, with the flag `deleted_at timestamptz`.
pub(crate) fn relation(table: &str, topics: &[&str]) -> Relation {
    Relation {
        name: table.into(),
        schema: "public".to_owned(),
        table: table.to_owned(),
        key: vec![KeyColumn { name: "id".to_owned(), kind: KeyKind::Uuid }],
        flag: Flag { column: "deleted_at".to_owned(), kind: FlagKind::TimestampTz },
        targets: Vec::new(),
        grace: Duration::ZERO,
        hide: None,
        breaker: None,
        on_hard_delete: OnHardDelete::Ignore,
        key_reuse_forbidden: false,
        topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
        allow_cascade: Vec::new(),
    }
}

pub(crate) fn event(topic: &str, key: Option<&[u8]>, value: Option<&[u8]>) -> Event {
    Event {
        origin: Origin { topic: Arc::from(topic), partition: 0, offset: 0 },
        topic: None,
        key: key.map(Bytes::copy_from_slice),
        value: value.map(Bytes::copy_from_slice),
    }
}
