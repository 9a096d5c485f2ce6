//! Debezium's envelope: `before`, `after`, `source`, `op`.

use serde_json::value::RawValue;

use super::error::{DecodeError, Part};
use super::json::{Scalar, pick, scalar};
use super::row::unit;
use super::{Decoded, Decoder, Named, Skipped};
use crate::{Change, FlagState, Generation, Lsn, Op, Position, RelationId};

/// An envelope taken apart, its rows still as text.
pub(super) struct Envelope<'a> {
    pub(super) op: &'a RawValue,
    pub(super) before: Option<&'a RawValue>,
    pub(super) after: Option<&'a RawValue>,
    pub(super) source: &'a RawValue,
    pub(super) transaction: Option<&'a RawValue>,
    pub(super) schema: Option<&'a str>,
}

/// What `source` says.
struct Source<'a> {
    table: Named<'a>,
    lsn: Option<Lsn>,
    snapshot: bool,
}

impl Decoder {
    /// What an envelope means.
    pub(super) fn envelope(
        &self,
        topic: &str,
        key: Option<&str>,
        envelope: &Envelope<'_>,
        generation: Generation,
    ) -> Result<Decoded, DecodeError> {
        let op = scalar(envelope.op, || "op".to_owned())?;
        let op = match &op {
            Scalar::Text(op) => op.as_ref(),
            other => {
                return Err(DecodeError::Type {
                    path: "op".to_owned(),
                    expected: "a string",
                    found: other.kind(),
                });
            }
        };
        if op == "m" {
            return Ok(Decoded::Skipped(Skipped::Message));
        }
        let source = Source::read(envelope.source)?;
        let Some(id) = self.relation_of_envelope(topic, &source.table) else {
            return Ok(Decoded::Skipped(Skipped::OtherTable));
        };
        let op = match op {
            "r" => Op::Read,
            "c" => Op::Create,
            "u" => Op::Update,
            "d" => Op::Delete,
            "t" => {
                let position = source.position(envelope.transaction, generation)?;
                return Ok(Decoded::Truncate { relation: id, position });
            }
            _ => return Err(DecodeError::Op { path: "op" }),
        };
        self.change(id, op, key, envelope, &source, generation).map(Decoded::Change)
    }

    fn change(
        &self,
        id: RelationId,
        op: Op,
        key: Option<&str>,
        envelope: &Envelope<'_>,
        source: &Source<'_>,
        generation: Generation,
    ) -> Result<Change, DecodeError> {
        let (relation, columns) = self.relation(id);
        let flag = relation.flag.column.as_str();
        let before = present(envelope.before).map(|raw| columns.read(raw.get(), "before"));
        let before = before.transpose()?;
        let flag_before = before.as_ref().map_or(FlagState::Unknown, |row| {
            columns.flag_before(relation, row, op == Op::Delete, || {
                unit(envelope.schema, &["before", flag])
            })
        });
        let (key, flag_after) = match op {
            Op::Delete => (columns.key(relation, key, before.as_ref())?, FlagState::Unknown),
            Op::Read | Op::Create | Op::Update => {
                let after =
                    present(envelope.after).ok_or(DecodeError::Missing { path: "after" })?;
                let after = columns.read(after.get(), "after")?;
                let state =
                    columns.flag(relation, &after, || unit(envelope.schema, &["after", flag]))?;
                (columns.key(relation, key, Some(&after))?, state)
            }
        };
        // A read overrides nothing (S4), whatever its source says of the snapshot.
        let position = match op {
            Op::Read => None,
            Op::Create | Op::Update | Op::Delete => {
                source.position(envelope.transaction, generation)?
            }
        };
        let removed = match op {
            Op::Delete => columns.removed(before.as_ref()),
            Op::Read | Op::Create | Op::Update => None,
        };
        Ok(Change {
            relation: id,
            key,
            op,
            before: flag_before,
            after: flag_after,
            position,
            removed,
        })
    }
}

impl<'a> Source<'a> {
    fn read(raw: &'a RawValue) -> Result<Self, DecodeError> {
        let mut slots = [None; 4];
        let names = ["schema", "table", "lsn", "snapshot"];
        pick(raw.get(), &names, &mut slots, Part::Value, "source")?;
        let [schema, table, lsn, snapshot] = slots;
        Ok(Self {
            table: Named::read(schema, table, "source")?,
            lsn: lsn.map(|raw| read_lsn(raw, "source.lsn")).transpose()?.flatten(),
            snapshot: snapshot
                .map(|raw| is_snapshot(raw, "source.snapshot"))
                .transpose()?
                .unwrap_or(false),
        })
    }

    /// What is of a snapshot has none: the rows of one run share an LSN, or have none at all.
    fn position(
        &self,
        transaction: Option<&RawValue>,
        generation: Generation,
    ) -> Result<Option<Position>, DecodeError> {
        let Some(lsn) = self.lsn.filter(|_| !self.snapshot) else {
            return Ok(None);
        };
        let order = match present(transaction) {
            None => 0,
            Some(raw) => {
                let mut slots = [None];
                pick(raw.get(), &["total_order"], &mut slots, Part::Value, "transaction")?;
                match slots {
                    [Some(raw)] => read_order(raw, "transaction.total_order")?,
                    [None] => 0,
                }
            }
        };
        Ok(Some(Position { generation, lsn, order }))
    }
}

/// A field that is there and not null.
pub(super) fn present(raw: Option<&RawValue>) -> Option<&RawValue> {
    raw.filter(|raw| raw.get() != "null")
}

/// A whole number that is not negative, or nothing.
fn read_count(raw: &RawValue, path: &'static str) -> Result<Option<u64>, DecodeError> {
    let value = scalar(raw, || path.to_owned())?;
    match &value {
        Scalar::Null => return Ok(None),
        Scalar::Number(number) => {
            if let Ok(number) = number.parse() {
                return Ok(Some(number));
            }
        }
        Scalar::Bool(_) | Scalar::Text(_) | Scalar::Object | Scalar::Array => {}
    }
    Err(DecodeError::Type {
        path: path.to_owned(),
        expected: "a whole number that is not negative, or null",
        found: value.kind(),
    })
}

/// `source.lsn` or `__source_lsn`.
pub(super) fn read_lsn(raw: &RawValue, path: &'static str) -> Result<Option<Lsn>, DecodeError> {
    Ok(read_count(raw, path)?.map(Lsn))
}

/// The order within the transaction. One beyond 32 bits stays at the end: order only saves work.
pub(super) fn read_order(raw: &RawValue, path: &'static str) -> Result<u32, DecodeError> {
    Ok(read_count(raw, path)?.map_or(0, |order| u32::try_from(order).unwrap_or(u32::MAX)))
}

/// Whether `source.snapshot` says that the event is of a snapshot: `"false"`, false and null do not;
/// `"true"`, `"first"`, `"last"`, `"incremental"` and the like do.
pub(super) fn is_snapshot(raw: &RawValue, path: &'static str) -> Result<bool, DecodeError> {
    Ok(match scalar(raw, || path.to_owned())? {
        Scalar::Null => false,
        Scalar::Bool(snapshot) => snapshot,
        Scalar::Text(text) => text != "false",
        other @ (Scalar::Number(_) | Scalar::Object | Scalar::Array) => {
            return Err(DecodeError::Type {
                path: path.to_owned(),
                expected: "a string",
                found: other.kind(),
            });
        }
    })
}
