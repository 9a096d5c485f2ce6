//! Living rows, turned away at a glance.
//!
//! Most events of a real table say of a row that it lives: they can lead to no claim. What tells them is their
//! table, their op and their flag, and these are found by walking over the text once ([`Walk`]), without
//! reading the rest of it. Nothing else of such an event is looked at, so neither is what else may be wrong with it. All
//! other events, and all that are spelled in an unusual way (a name with a backslash, a field twice), are
//! decoded whole.

use std::sync::Arc;

use serde::de::IgnoredAny;

use super::walk::{Met, Walk, plain_string, skip_space};
use super::{DecodeError, Decoded, Decoder, Fields, Named, Skipped};
use crate::{Event, FlagKind, Generation, RelationId};

/// Different inline schemas that are remembered: one or two for each topic of a decoder.
const SCHEMAS_MAX: usize = 16;
/// What stands before one, and what between it and its payload.
const SCHEMA_FIRST: &[u8] = b"{\"schema\":";
const PAYLOAD_NEXT: &[u8] = b",\"payload\":";
/// Longest one.
const SCHEMA_BYTES_MAX: usize = 64 << 10;

/// A [`Decoder`] that answers for living rows without decoding them. It says of them [`Skipped::Alive`], of
/// rows of other tables [`Skipped::OtherTable`]; what it says of any other event is the decoder's.
#[derive(Clone, Debug)]
pub struct QuickDecoder {
    decoder: Decoder,
    /// The names of the relations' flags, each once.
    flags: Vec<Box<[u8]>>,
    /// Of each relation, the place of its flag in `flags`, and whether it is a boolean.
    of_relation: Vec<(usize, bool)>,
    /// What begins messages with these inline schemas, up to the payload. Each was walked through once, and
    /// what begins alike is alike.
    schemas: Vec<Box<[u8]>>,
    oldest: usize,
    last: Option<Resolved>,
}

/// Which relation the last event was of: the next one mostly is, too.
#[derive(Clone, Debug)]
struct Resolved {
    topic: Arc<str>,
    schema: Option<Box<[u8]>>,
    table: Option<Box<[u8]>>,
    relation: Option<RelationId>,
}

/// What a flag's column holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flag {
    Unseen,
    Null,
    False,
    Other,
}

/// Whose fields are walked over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    After,
    Source,
    Other,
}

/// Flags that differ in name, at most; decoders of more relations glance at nothing.
const FLAGS_MAX: usize = 8;

/// What an envelope says of itself.
struct Seen<'a> {
    op: u8,
    schema: Option<&'a [u8]>,
    table: Option<&'a [u8]>,
    flags: [Flag; FLAGS_MAX],
}

impl QuickDecoder {
    /// Glances before `decoder` decodes.
    pub fn new(decoder: Decoder) -> Self {
        let mut flags: Vec<Box<[u8]>> = Vec::new();
        let mut of_relation = Vec::new();
        for (relation, _) in &decoder.relations {
            let name = relation.flag.column.as_bytes();
            let place = flags.iter().position(|known| **known == *name).unwrap_or_else(|| {
                flags.push(name.into());
                flags.len() - 1
            });
            of_relation.push((place, relation.flag.kind == FlagKind::Boolean));
        }
        Self { decoder, flags, of_relation, schemas: Vec::new(), oldest: 0, last: None }
    }

    /// As [`Decoder::decode`].
    pub fn decode(
        &mut self,
        event: &Event,
        generation: Generation,
    ) -> Result<Decoded, DecodeError> {
        if let Some(skipped) = self.glance(event) {
            return Ok(Decoded::Skipped(skipped));
        }
        // What can't be decoded without its schema is told as if the schema had been read.
        match self.beside_schema(event, generation) {
            Some(Ok(decoded)) => Ok(decoded),
            Some(Err(_)) | None => self.decoder.decode(event, generation),
        }
    }

    /// Decodes the payload of a message whose schema is known, so that it is not read again.
    fn beside_schema(
        &self,
        event: &Event,
        generation: Generation,
    ) -> Option<Result<Decoded, DecodeError>> {
        let bytes = event.value.as_deref()?;
        let known = self.schemas.iter().find(|known| bytes.starts_with(known))?;
        let payload = bytes[known.len()..].trim_ascii_end().strip_suffix(b"}")?;
        if payload.first() != Some(&b'{') {
            return None;
        }
        let payload = std::str::from_utf8(payload).ok()?;
        let schema = known.strip_prefix(SCHEMA_FIRST)?.strip_suffix(PAYLOAD_NEXT)?;
        let schema = std::str::from_utf8(schema).ok()?;
        let decode =
            |fields| self.decoder.message(event, payload, &fields, Some(schema), generation);
        Some(Fields::read(payload).and_then(decode))
    }

    /// Why an event needs no decoding, where that is plain to see.
    pub fn glance(&mut self, event: &Event) -> Option<Skipped> {
        let bytes = event.value.as_deref()?;
        if self.flags.len() > FLAGS_MAX {
            return None;
        }
        let start = skip_space(bytes, 0);
        let payload = self.payload(bytes, start)?;
        let (seen, end) = self.envelope(bytes, payload.unwrap_or(start))?;
        // Behind the payload beside a schema stands no third field.
        let end = skip_space(bytes, end);
        let end = match payload {
            None => end,
            Some(_) if bytes.get(end) == Some(&b'}') => skip_space(bytes, end + 1),
            Some(_) => return None,
        };
        if end != bytes.len() {
            return None;
        }
        let Some(relation) = self.relation(event.topic(), seen.schema, seen.table)? else {
            // A message has no table, and its own place among the skipped.
            return (seen.op != b'm').then_some(Skipped::OtherTable);
        };
        let (flag, is_boolean) = self.of_relation[usize::from(relation.0)];
        let is_unset = match seen.flags[flag] {
            Flag::Null => true,
            Flag::False => is_boolean,
            Flag::Unseen | Flag::Other => false,
        };
        (is_unset && matches!(seen.op, b'c' | b'u' | b'r')).then_some(Skipped::Alive)
    }

    /// Where the payload of a message with an inline schema begins; `Some(None)` for one without.
    fn payload(&mut self, bytes: &[u8], start: usize) -> Option<Option<usize>> {
        if !bytes[start..].starts_with(SCHEMA_FIRST) {
            return Some(None);
        }
        if let Some(known) = self.schemas.iter().find(|known| bytes.starts_with(known)) {
            return Some(Some(known.len()));
        }
        let mut walk = Walk::new(bytes, start);
        let mut fields = 0;
        loop {
            let Met::Name(name) = walk.next()? else { return None };
            if name.depth > 1 {
                continue;
            }
            match (fields, name.text) {
                (0, b"schema") if matches!(bytes.get(name.value), Some(b'{' | b'n')) => fields = 1,
                (1, b"payload") => {
                    self.remember(&bytes[start..name.value], start);
                    return Some(Some(name.value));
                }
                _ => return None,
            }
        }
    }

    /// Remembers what stands before a payload, if it is spelled as JsonConverter does, and the schema is JSON.
    fn remember(&mut self, beginning: &[u8], start: usize) {
        let schema = beginning.strip_prefix(SCHEMA_FIRST);
        let schema = schema.and_then(|rest| rest.strip_suffix(PAYLOAD_NEXT));
        let is_json = |schema| serde_json::from_slice::<IgnoredAny>(schema).is_ok();
        if start > 0 || beginning.len() > SCHEMA_BYTES_MAX || !schema.is_some_and(is_json) {
            return;
        }
        if self.schemas.len() < SCHEMAS_MAX {
            self.schemas.push(beginning.into());
        } else {
            self.schemas[self.oldest] = beginning.into();
            self.oldest = (self.oldest + 1) % SCHEMAS_MAX;
        }
    }

    /// Walks over the envelope at `start`, and says where it ends. None for what is no envelope, and for
    /// what only decoding can tell.
    fn envelope<'a>(&self, bytes: &'a [u8], start: usize) -> Option<(Seen<'a>, usize)> {
        if bytes.get(start) != Some(&b'{') {
            return None;
        }
        let mut op = None;
        let (mut schema, mut table) = (None, None);
        let mut flags = [Flag::Unseen; FLAGS_MAX];
        let (mut after, mut source) = (false, false);
        let mut part = Part::Other;
        let mut walk = Walk::new(bytes, start);
        let end = loop {
            let name = match walk.next()? {
                Met::Name(name) => name,
                Met::End(end) => break end,
            };
            match (name.depth, part) {
                (1, _) => {
                    if name.is_escaped {
                        return None;
                    }
                    part = match name.text {
                        b"op" => {
                            let &[letter] = plain_string(bytes, name.value)? else { return None };
                            if op.replace(letter).is_some() {
                                return None;
                            }
                            Part::Other
                        }
                        b"after" => {
                            if std::mem::replace(&mut after, true) {
                                return None;
                            }
                            // What is no object has no names at its depth.
                            Part::After
                        }
                        b"source" => {
                            if std::mem::replace(&mut source, true)
                                || bytes.get(name.value) != Some(&b'{')
                            {
                                return None;
                            }
                            Part::Source
                        }
                        b"__op" | b"__deleted" | b"__source_lsn" => return None,
                        _ => Part::Other,
                    };
                }
                (2, Part::After) => {
                    if name.is_escaped {
                        return None;
                    }
                    if let Some(at) = self.flags.iter().position(|flag| **flag == *name.text) {
                        let value = &bytes[name.value..];
                        if flags[at] != Flag::Unseen {
                            return None;
                        }
                        flags[at] = match () {
                            () if value.starts_with(b"null") => Flag::Null,
                            () if value.starts_with(b"false") => Flag::False,
                            () => Flag::Other,
                        };
                    }
                }
                (2, Part::Source) => {
                    if name.is_escaped {
                        return None;
                    }
                    let slot = match name.text {
                        b"schema" => &mut schema,
                        b"table" => &mut table,
                        _ => continue,
                    };
                    let value = match bytes.get(name.value) {
                        Some(b'n') => None,
                        _ => Some(plain_string(bytes, name.value)?),
                    };
                    if slot.replace(value).is_some() {
                        return None;
                    }
                }
                _ => {}
            }
        };
        let (op, true) = (op?, source) else { return None };
        Some((Seen { op, schema: schema.flatten(), table: table.flatten(), flags }, end))
    }

    /// The relation of a table, if it is one's. None where the table's name is no text.
    #[expect(clippy::option_option, reason = "no text, no relation, a relation")]
    fn relation(
        &mut self,
        topic: &Arc<str>,
        schema: Option<&[u8]>,
        table: Option<&[u8]>,
    ) -> Option<Option<RelationId>> {
        if let Some(last) = &self.last
            && last.topic == *topic
            && last.schema.as_deref() == schema
            && last.table.as_deref() == table
        {
            return Some(last.relation);
        }
        let text =
            |bytes: Option<&[u8]>| bytes.map(|it| String::from_utf8(it.to_vec())).transpose();
        let named = Named {
            schema: text(schema).ok()?.map(Into::into),
            table: text(table).ok()?.map(Into::into),
        };
        let relation = self.decoder.relation_of_envelope(topic, &named);
        self.last = Some(Resolved {
            topic: Arc::clone(topic),
            schema: schema.map(Into::into),
            table: table.map(Into::into),
            relation,
        });
        Some(relation)
    }
}
