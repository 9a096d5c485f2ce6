//! Rows of Postgres's own log to what they mean.
//!
//! What is read is the key and the flag. Under REPLICA IDENTITY DEFAULT an update tells nothing of
//! the row before, so that set to set can't be told from unset to set: the claim looks. An update of
//! the key is one change, of the new key: nothing was removed (S5).

use std::sync::Arc;

use super::error::{DecodeError, clip};
use super::time;
use super::{Decoded, Decoder, Skipped};
use crate::wal::{Old, RowMessage, Tuple, Value, WalRow, WalTable};
use crate::{
    Change, FlagKind, FlagState, FlagValue, Key, OnHardDelete, Op, Relation, RelationId, RemovedRow,
};

/// Tables whose places are remembered; a few are published, and each change of one makes it anew.
const TABLES_MAX: usize = 64;

/// A [`Decoder`] for rows of the log. It remembers where the columns stand in each table.
#[derive(Clone, Debug)]
pub struct RowDecoder {
    decoder: Decoder,
    known: Vec<(Arc<WalTable>, Layout)>,
}

/// Where a relation's columns stand in a table of the log.
#[derive(Clone, Debug)]
enum Layout {
    /// No relation's table.
    Other,
    /// The relation, the places of the key's columns, and last that of the flag.
    Of(RelationId, Arc<[usize]>),
    /// A relation's table that lacks a column.
    Wrong(DecodeError),
}

impl RowDecoder {
    /// A decoder for the relations of `decoder`.
    pub fn new(decoder: Decoder) -> Self {
        Self { decoder, known: Vec::new() }
    }

    /// What `row` means. Never panics, whatever its bytes.
    pub fn decode(&mut self, row: &WalRow) -> Result<Decoded, DecodeError> {
        let (id, places) = match self.layout(&row.table) {
            Layout::Other => return Ok(Decoded::Skipped(Skipped::OtherTable)),
            Layout::Wrong(error) => return Err(error),
            Layout::Of(id, places) => (id, places),
        };
        let message = row.read().map_err(DecodeError::Wal)?;
        let (relation, _) = self.decoder.relation(id);
        let position = Some(row.position());
        let (op, old, new) = match message {
            RowMessage::Truncate => return Ok(Decoded::Truncate { relation: id, position }),
            RowMessage::Insert { new } => (Op::Create, None, Some(new)),
            RowMessage::Update { old, new } => (Op::Update, old, Some(new)),
            RowMessage::Delete { old } => (Op::Delete, Some(old), None),
        };
        let removed = match old {
            Some(Old { tuple, .. }) if op == Op::Delete => {
                self.decoder.removed(id, &row.table, tuple)
            }
            Some(_) | None => None,
        };
        let mut values = vec![Value::Null; places.len()];
        let before = match old {
            Some(Old { tuple, is_whole: true }) => {
                tuple.pick(&places, &mut values);
                // It decides nothing.
                flag(relation, values[places.len() - 1]).unwrap_or(FlagState::Unknown)
            }
            Some(_) | None => FlagState::Unknown,
        };
        let (key, after) = match new {
            Some(new) => {
                new.pick(&places, &mut values);
                let after = flag(relation, values[places.len() - 1])?;
                if after == FlagState::Unset {
                    // Most of a table's traffic: nothing more of it is read.
                    return Ok(Decoded::Skipped(Skipped::Alive));
                }
                // A key's column that is TOASTed and did not change stands in the row before.
                if let Some(Old { tuple, .. }) = old {
                    fill(&mut values, tuple, &places);
                }
                (key(relation, &values)?, after)
            }
            None => {
                let Some(Old { tuple, .. }) = old else { return Err(DecodeError::Form) };
                tuple.pick(&places, &mut values);
                let keys = &values[..places.len() - 1];
                if keys.contains(&Value::Null) {
                    // A replica identity that is another index than the key's.
                    return Ok(Decoded::Skipped(Skipped::Keyless));
                }
                (key(relation, &values)?, FlagState::Unknown)
            }
        };
        Ok(Decoded::Change(Change { relation: id, key, op, before, after, position, removed }))
    }

    fn layout(&mut self, table: &Arc<WalTable>) -> Layout {
        if let Some((_, layout)) = self.known.iter().find(|(known, _)| Arc::ptr_eq(known, table)) {
            return layout.clone();
        }
        let layout = self.decoder.places(table);
        if self.known.len() >= TABLES_MAX {
            self.known.clear();
        }
        self.known.push((Arc::clone(table), layout.clone()));
        layout
    }
}

impl Decoder {
    /// The templates' columns of a removed row, where a hard delete is a deletion. Rare enough to look for
    /// their places each time. A tuple of the key alone has null for all else.
    fn removed(&self, id: RelationId, table: &WalTable, tuple: Tuple<'_>) -> Option<RemovedRow> {
        let (relation, _) = self.relation(id);
        if relation.on_hard_delete != OnHardDelete::Destroy {
            return None;
        }
        let text = |column: &str| {
            let mut value = [Value::Null];
            tuple.pick(&[table.place(column)?], &mut value);
            match value {
                [Value::Text(text)] => std::str::from_utf8(text).ok().map(Box::from),
                [Value::Null | Value::Unchanged] => None,
            }
        };
        Some(relation.template_columns().into_iter().map(text).collect())
    }

    /// Where the columns of the relation whose table this is stand in it.
    fn places(&self, table: &WalTable) -> Layout {
        let named = |(_, (relation, _)): &(RelationId, &(Relation, _))| {
            *relation.schema == *table.schema && *relation.table == *table.name
        };
        let mut relations = (0..).map(RelationId).zip(&self.relations);
        let Some((id, (relation, _))) = relations.find(named) else { return Layout::Other };
        let mut places = Vec::with_capacity(relation.key.len() + 1);
        for column in &relation.key {
            match table.place(&column.name) {
                Some(place) => places.push(place),
                None => {
                    let column = clip(&column.name).to_owned();
                    return Layout::Wrong(DecodeError::KeyMissing { column });
                }
            }
        }
        match table.place(&relation.flag.column) {
            Some(place) => places.push(place),
            None => {
                return Layout::Wrong(DecodeError::FlagMissing {
                    path: clip(&relation.flag.column).to_owned(),
                    relation: clip(&relation.name).to_owned(),
                });
            }
        }
        Layout::Of(id, places.into())
    }
}

/// Takes from `tuple` what is missing in `values`.
fn fill<'a>(values: &mut [Value<'a>], tuple: Tuple<'a>, places: &[usize]) {
    if !values.contains(&Value::Unchanged) {
        return;
    }
    let mut known = vec![Value::Null; places.len()];
    tuple.pick(places, &mut known);
    for (value, known) in values.iter_mut().zip(known) {
        if *value == Value::Unchanged && known != Value::Null {
            *value = known;
        }
    }
}

/// The key, whose columns come first in `values`.
fn key(relation: &Relation, values: &[Value<'_>]) -> Result<Key, DecodeError> {
    let path = |at: usize| clip(&relation.key[at].name).to_owned();
    let mut texts = Vec::with_capacity(relation.key.len());
    for (at, value) in values[..relation.key.len()].iter().enumerate() {
        match value {
            Value::Text(text) => texts.push(utf8(text, || path(at))?),
            Value::Null => return Err(DecodeError::KeyMissing { column: path(at) }),
            Value::Unchanged => return Err(DecodeError::KeyUnavailable { path: path(at) }),
        }
    }
    Key::new(relation.key_kinds(), texts.into_iter())
        .map_err(|source| DecodeError::Key { path: "row".to_owned(), source })
}

fn flag(relation: &Relation, value: Value<'_>) -> Result<FlagState, DecodeError> {
    let path = || clip(&relation.flag.column).to_owned();
    let text = match value {
        Value::Null => return Ok(FlagState::Unset),
        Value::Unchanged => return Ok(FlagState::Unknown),
        Value::Text(text) => utf8(text, path)?,
    };
    match (&relation.flag.kind, text) {
        (FlagKind::Boolean, "t") => Ok(FlagState::Set(FlagValue::True)),
        (FlagKind::Boolean, "f") => Ok(FlagState::Unset),
        (FlagKind::Boolean, _) => {
            Err(DecodeError::FlagValue { path: path(), expected: "a boolean" })
        }
        // Whatever the time is, it is set; one that can't be read (BC) is looked at by the claim.
        (FlagKind::TimestampTz | FlagKind::Timestamp { .. }, text) => {
            Ok(time::from_text(text).map_or(FlagState::Unknown, FlagState::Set))
        }
    }
}

fn utf8(text: &[u8], path: impl FnOnce() -> String) -> Result<&str, DecodeError> {
    std::str::from_utf8(text).map_err(|_| DecodeError::Type {
        path: path(),
        expected: "text in utf-8",
        found: "other bytes",
    })
}

#[cfg(test)]
#[path = "pgoutput_tests.rs"]
mod tests;
