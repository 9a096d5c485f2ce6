//! Rows flattened by the transform ExtractNewRecordState: the columns themselves, and beside them
//! what `add.fields` asks for, each name with two underscores before it.
//!
//! `__op` and `__source_lsn` are wanted (`add.fields = op,source.lsn`), not needed: a row without an
//! op is taken for an update, or for a delete if `__deleted` says so, and one without an LSN has no
//! position and so always goes on to the claim. What `drop` or `tombstone` handling of deletes leaves
//! out is not seen here; the default `rewrite` is what to set.

use serde_json::value::RawValue;

use super::debezium::{is_snapshot, present, read_lsn, read_order};
use super::error::DecodeError;
use super::json::{Scalar, scalar};
use super::row::unit;
use super::{Decoded, Decoder, Named};
use crate::{Change, FlagState, Generation, Op, Position};

/// What the transform adds, as far as it is read.
#[derive(Default)]
pub(super) struct Added<'a> {
    pub(super) op: Option<&'a RawValue>,
    pub(super) deleted: Option<&'a RawValue>,
    pub(super) lsn: Option<&'a RawValue>,
    pub(super) snapshot: Option<&'a RawValue>,
    pub(super) order: Option<&'a RawValue>,
    pub(super) schema_name: Option<&'a RawValue>,
    pub(super) table: Option<&'a RawValue>,
}

impl Added<'_> {
    /// Whether the transform has left a mark, so that the row is surely a flattened one.
    pub(super) fn any(&self) -> bool {
        self.op.is_some() || self.deleted.is_some() || self.lsn.is_some()
    }

    /// The op, `None` for a truncate.
    fn op(&self) -> Result<Option<Op>, DecodeError> {
        let deleted = match self.deleted.map(|raw| scalar(raw, || "__deleted".to_owned())) {
            Some(value) => {
                matches!(value?, Scalar::Bool(true))
                    || matches!(self.deleted.map(RawValue::get), Some("\"true\""))
            }
            None => false,
        };
        let Some(raw) = present(self.op) else {
            return Ok(Some(if deleted { Op::Delete } else { Op::Update }));
        };
        match scalar(raw, || "__op".to_owned())? {
            Scalar::Text(op) => match op.as_ref() {
                "r" => Ok(Some(Op::Read)),
                "c" => Ok(Some(Op::Create)),
                "u" => Ok(Some(Op::Update)),
                "d" => Ok(Some(Op::Delete)),
                "t" => Ok(None),
                _ => Err(DecodeError::Op { path: "__op" }),
            },
            other => Err(DecodeError::Type {
                path: "__op".to_owned(),
                expected: "a string",
                found: other.kind(),
            }),
        }
    }

    fn position(
        &self,
        op: Option<Op>,
        generation: Generation,
    ) -> Result<Option<Position>, DecodeError> {
        let snapshot = self.snapshot.map(|raw| is_snapshot(raw, "__source_snapshot"));
        if op == Some(Op::Read) || snapshot.transpose()?.unwrap_or(false) {
            return Ok(None);
        }
        let lsn = self.lsn.map(|raw| read_lsn(raw, "__source_lsn")).transpose()?.flatten();
        let order =
            self.order.map(|raw| read_order(raw, "__transaction_total_order")).transpose()?;
        Ok(lsn.map(|lsn| Position { generation, lsn, order: order.unwrap_or(0) }))
    }
}

impl Decoder {
    /// What a flattened row means.
    pub(super) fn flattened(
        &self,
        topic: &str,
        key: Option<&str>,
        row: &str,
        added: &Added<'_>,
        schema: Option<&str>,
        generation: Generation,
    ) -> Result<Decoded, DecodeError> {
        let table = Named::read(added.schema_name, added.table, "__source")?;
        let id = self.relation_of_row(topic, &table)?;
        let op = added.op()?;
        let position = added.position(op, generation)?;
        let Some(op) = op else { return Ok(Decoded::Truncate { relation: id, position }) };

        let (relation, columns) = self.relation(id);
        let values = columns.read(row, "value")?;
        let unit = || unit(schema, &[relation.flag.column.as_str()]);
        // The row of a delete is what was before it.
        let (before, after) = if op == Op::Delete {
            (columns.flag_before(relation, &values, true, unit), FlagState::Unknown)
        } else {
            (FlagState::Unknown, columns.flag(relation, &values, unit)?)
        };
        let key = columns.key(relation, key, Some(&values))?;
        let removed = (op == Op::Delete).then(|| columns.removed(Some(&values))).flatten();
        Ok(Decoded::Change(Change { relation: id, key, op, before, after, position, removed }))
    }
}
