//! Bytes of a message to what they mean.
//!
//! Rows of Postgres's own log are read by [`RowDecoder`]; what follows is of messages from elsewhere. The form of the envelope is detected, not configured: Debezium's JSON with and without the
//! inline schema, and the flattened form of ExtractNewRecordState.
//!
//! **Which relation.** An envelope whose `source` names a relation's schema and table is of that
//! relation, whatever its topic. Else, if exactly one relation lists the topic, it is of that one: a
//! partition has a table name of its own. (Only `debezium_signal` is left out there.) A topic that
//! carries other tables beside one relation's thus gives errors, not silence; put every relation on
//! such a topic, or give it one of its own. Where several relations list the topic, or none does, a
//! table that is no relation's is [`Skipped::OtherTable`]. A flattened row says no table, unless
//! `add.fields` has it put there, so its topic must be listed.
//!
//! **Which form.** In this order: a null value; `schema` and `payload` alone are taken apart; a field
//! `__op`, `__deleted` or `__source_lsn` makes a flattened row; `op` beside an object `source` an
//! envelope; `ts_ms` alone a heartbeat; `status` and `id` and nothing else but what transaction
//! metadata has, a transaction's end; anything else is a flattened row without added fields if a
//! relation lists the topic.
//!
//! **A field twice** in one object is an error where the field is read, and unseen elsewhere.
//!
//! Nothing of a message is kept, and nothing of it is in an error.

mod debezium;
mod error;
mod flattened;
mod json;
mod pgoutput;
mod quick;
mod row;
mod time;
mod walk;

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::value::RawValue;

pub use self::error::{DecodeError, Part};
pub use self::pgoutput::RowDecoder;
pub use self::quick::QuickDecoder;

use self::debezium::Envelope;
use self::flattened::Added;
use self::json::{Scalar, pick, scalar};
use self::row::Columns;
use crate::{Change, Event, Generation, Position, Relation, RelationId};

/// What a message means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// It speaks of one row of a relation.
    Change(Change),
    /// A relation was truncated.
    Truncate {
        /// Which one.
        relation: RelationId,
        /// Where in the log.
        position: Option<Position>,
    },
    /// It is understood, and irrelevant.
    Skipped(Skipped),
}

/// Why a message is irrelevant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Skipped {
    /// A Kafka record with a null value.
    Tombstone,
    /// Debezium's heartbeat.
    Heartbeat,
    /// BEGIN and END of transaction metadata.
    Transaction,
    /// `pg_logical_emit_message`.
    Message,
    /// A row of a table that is no relation (Debezium's signal table among them).
    OtherTable,
    /// A row that is alive after the change: of the log, or as [`QuickDecoder`] sees at a glance.
    Alive,
    /// A delete that does not tell the key: the table's replica identity is another index than it.
    Keyless,
}

/// Decodes messages for the configured relations.
#[derive(Clone, Debug)]
pub struct Decoder {
    relations: Vec<(Relation, Columns)>,
    topics: HashMap<String, Vec<RelationId>>,
}

/// A table as an event names it.
struct Named<'a> {
    schema: Option<Cow<'a, str>>,
    table: Option<Cow<'a, str>>,
}

/// The fields by which a message's form is told.
const FIELDS: [&str; 25] = [
    "op",
    "source",
    "before",
    "after",
    "transaction",
    "ts_ms",
    "status",
    "id",
    "event_count",
    "data_collections",
    "schema",
    "payload",
    "__op",
    "__deleted",
    "__source_lsn",
    "__lsn",
    "__source_snapshot",
    "__snapshot",
    "__transaction_total_order",
    "__total_order",
    "__source_schema",
    "__schema",
    "__source_table",
    "__table",
    "message",
];

/// A message's fields, as far as they tell its form.
struct Fields<'a> {
    slots: [Option<&'a RawValue>; FIELDS.len()],
    /// How many fields the message has at all.
    count: usize,
}

impl<'a> Fields<'a> {
    fn read(text: &'a str) -> Result<Self, DecodeError> {
        let mut slots = [None; FIELDS.len()];
        let count = pick(text, &FIELDS, &mut slots, Part::Value, "value")?;
        Ok(Self { slots, count })
    }

    fn get(&self, name: &str) -> Option<&'a RawValue> {
        let index = FIELDS.iter().position(|field| *field == name);
        index.and_then(|index| self.slots[index])
    }

    fn added(&self) -> Added<'a> {
        let either = |full, short| self.get(full).or_else(|| self.get(short));
        Added {
            op: self.get("__op"),
            deleted: self.get("__deleted"),
            lsn: either("__source_lsn", "__lsn"),
            snapshot: either("__source_snapshot", "__snapshot"),
            order: either("__transaction_total_order", "__total_order"),
            schema_name: either("__source_schema", "__schema"),
            table: either("__source_table", "__table"),
        }
    }

    fn is_heartbeat(&self) -> bool {
        self.count == 1 && self.get("ts_ms").is_some()
    }

    fn is_transaction(&self) -> bool {
        let known = ["status", "id", "event_count", "data_collections", "ts_ms"];
        let found = known.iter().filter(|name| self.get(name).is_some()).count();
        let status = self.get("status").map(RawValue::get);
        found == self.count
            && self.get("id").is_some()
            && matches!(status, Some("\"BEGIN\"" | "\"END\""))
    }
}

impl Decoder {
    /// A decoder for `relations`; a [`RelationId`] is an index into them.
    pub fn new(relations: &[Relation]) -> Self {
        let mut topics: HashMap<String, Vec<RelationId>> = HashMap::new();
        for (id, relation) in (0..).map(RelationId).zip(relations) {
            for topic in &relation.topics {
                let listed = topics.entry(topic.clone()).or_default();
                if !listed.contains(&id) {
                    listed.push(id);
                }
            }
        }
        let relations =
            relations.iter().map(|relation| (relation.clone(), Columns::new(relation))).collect();
        Self { relations, topics }
    }

    /// What `event` means. Never panics, whatever its bytes.
    pub fn decode(&self, event: &Event, generation: Generation) -> Result<Decoded, DecodeError> {
        let Some(value) = &event.value else { return Ok(Decoded::Skipped(Skipped::Tombstone)) };
        let value = json::text(value, Part::Value)?;
        if value.trim() == "null" {
            return Ok(Decoded::Skipped(Skipped::Tombstone));
        }
        let fields = Fields::read(value)?;
        if let (2, Some(inline), Some(payload)) =
            (fields.count, fields.get("schema"), fields.get("payload"))
            && json::is_schema(inline)
        {
            if payload.get() == "null" {
                return Ok(Decoded::Skipped(Skipped::Tombstone));
            }
            let text = payload.get();
            let inline = Some(inline.get());
            return self.message(event, text, &Fields::read(text)?, inline, generation);
        }
        self.message(event, value, &fields, None, generation)
    }

    /// What the message `text` means, taken out of what stood around it. `schema` is its inline schema.
    fn message(
        &self,
        event: &Event,
        text: &str,
        fields: &Fields<'_>,
        schema: Option<&str>,
        generation: Generation,
    ) -> Result<Decoded, DecodeError> {
        let topic = &**event.topic();
        let key = || event.key.as_ref().map(|key| json::text(key, Part::Key)).transpose();

        let added = fields.added();
        if added.any() {
            return self.flattened(topic, key()?, text, &added, schema, generation);
        }
        if let (Some(op), Some(source)) = (fields.get("op"), fields.get("source"))
            && source.get().starts_with('{')
        {
            let envelope = Envelope {
                op,
                before: fields.get("before"),
                after: fields.get("after"),
                source,
                transaction: fields.get("transaction"),
                schema,
            };
            return self.envelope(topic, key()?, &envelope, generation);
        }
        if fields.is_heartbeat() {
            return Ok(Decoded::Skipped(Skipped::Heartbeat));
        }
        if fields.is_transaction() {
            return Ok(Decoded::Skipped(Skipped::Transaction));
        }
        if self.topics.contains_key(topic) {
            return self.flattened(topic, key()?, text, &added, schema, generation);
        }
        Err(DecodeError::Form)
    }

    fn relation(&self, id: RelationId) -> (&Relation, &Columns) {
        let (relation, columns) = &self.relations[usize::from(id.0)];
        (relation, columns)
    }

    /// The relation whose table an event names.
    fn named(&self, table: &Named<'_>, among: Option<&[RelationId]>) -> Option<RelationId> {
        let mut all = (0..).map(RelationId).zip(&self.relations);
        all.find(|(id, (relation, _))| {
            among.is_none_or(|among| among.contains(id))
                && table.schema.as_deref() == Some(relation.schema.as_str())
                && table.table.as_deref() == Some(relation.table.as_str())
        })
        .map(|(id, _)| id)
    }

    fn relation_of_envelope(&self, topic: &str, table: &Named<'_>) -> Option<RelationId> {
        let listed = self.topics.get(topic).map_or(&[][..], Vec::as_slice);
        // One table may be two relations, each with topics of its own (two connectors).
        if let Some(id) = self.named(table, Some(listed)).or_else(|| self.named(table, None)) {
            return Some(id);
        }
        match listed {
            [only] if table.table.as_deref() != Some("debezium_signal") => Some(*only),
            _ => None,
        }
    }

    fn relation_of_row(&self, topic: &str, table: &Named<'_>) -> Result<RelationId, DecodeError> {
        match self.topics.get(topic).map_or(&[][..], Vec::as_slice) {
            [] => Err(DecodeError::Unlisted),
            [only] => Ok(*only),
            several => {
                let mut fits = several.iter().filter(|id| {
                    let (relation, _) = self.relation(**id);
                    table.table.as_deref() == Some(relation.table.as_str())
                        && table.schema.as_deref().is_none_or(|name| name == relation.schema)
                });
                match (fits.next(), fits.next()) {
                    (Some(id), None) => Ok(*id),
                    _ => Err(DecodeError::Ambiguous),
                }
            }
        }
    }
}

impl<'a> Named<'a> {
    fn read(
        schema: Option<&'a RawValue>,
        table: Option<&'a RawValue>,
        path: &'static str,
    ) -> Result<Self, DecodeError> {
        let name = |raw: Option<&'a RawValue>, field: &str| {
            let Some(raw) = raw else { return Ok(None) };
            let path = || format!("{path}.{field}");
            match scalar(raw, path)? {
                Scalar::Null => Ok(None),
                Scalar::Text(text) => Ok(Some(text)),
                other => Err(DecodeError::Type {
                    path: path(),
                    expected: "a string",
                    found: other.kind(),
                }),
            }
        };
        Ok(Self { schema: name(schema, "schema")?, table: name(table, "table")? })
    }
}
