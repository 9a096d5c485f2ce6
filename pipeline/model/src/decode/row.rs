//! What both forms share: a relation's key and flag, read from a row or from a message's key.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::{DecodeError, Part, clip};
use super::json::{self, Scalar, pick, scalar};
use super::time::{self, Unit};
use crate::address::UNAVAILABLE;
use crate::{FlagKind, FlagState, FlagValue, Key, KeyKind, OnHardDelete, Relation, RemovedRow};

/// A relation's columns that are read from its rows: those of the key in their order, and the flag.
#[derive(Clone, Debug)]
pub(super) struct Columns {
    names: Vec<Box<str>>,
    keys: usize,
    flag: usize,
    /// Where the templates' columns stand, if the row of a delete is asked for them.
    of_templates: Option<Box<[usize]>>,
    /// The fields that are read from a message's key: `schema`, `payload`, the columns of the key.
    of_message: Vec<Box<str>>,
}

/// The columns of one row as the text they have there.
pub(super) struct Values<'a> {
    raw: Vec<Option<&'a RawValue>>,
    /// Where the row stands in the message.
    path: &'static str,
}

impl Columns {
    pub(super) fn new(relation: &Relation) -> Self {
        let mut names: Vec<Box<str>> =
            relation.key.iter().map(|column| column.name.as_str().into()).collect();
        let keys = names.len();
        let flag = &relation.flag.column;
        let flag = names.iter().position(|name| **name == **flag).unwrap_or_else(|| {
            names.push(flag.as_str().into());
            keys
        });
        let destroys = relation.on_hard_delete == OnHardDelete::Destroy;
        let of_templates = destroys.then(|| {
            let place = |column: &str| {
                names.iter().position(|name| **name == *column).unwrap_or_else(|| {
                    names.push(column.into());
                    names.len() - 1
                })
            };
            relation.template_columns().into_iter().map(place).collect()
        });
        let wrapper = ["schema", "payload"].map(Box::from);
        let of_message = wrapper.into_iter().chain(names[..keys].iter().cloned()).collect();
        Self { names, keys, flag, of_templates, of_message }
    }

    /// Reads the row `text`, which stands at `path`.
    pub(super) fn read<'a>(
        &self,
        text: &'a str,
        path: &'static str,
    ) -> Result<Values<'a>, DecodeError> {
        let mut raw = vec![None; self.names.len()];
        pick(text, &self.names, &mut raw, Part::Value, path)?;
        Ok(Values { raw, path })
    }

    /// The templates' columns of a removed row. What is not a text or a whole number is not known: JSON has
    /// other spellings for it than Postgres.
    pub(super) fn removed(&self, row: Option<&Values<'_>>) -> Option<RemovedRow> {
        let text = |place: &usize| {
            let raw = row?.raw[*place]?;
            match scalar(raw, String::new).ok()? {
                Scalar::Text(text) if text == UNAVAILABLE => None,
                Scalar::Text(text) => Some(Box::from(&*text)),
                Scalar::Number(number) if number.parse::<i64>().is_ok() => Some(Box::from(number)),
                Scalar::Null
                | Scalar::Bool(_)
                | Scalar::Number(_)
                | Scalar::Object
                | Scalar::Array => None,
            }
        };
        let places = self.of_templates.as_ref()?;
        Some(places.iter().map(text).collect())
    }

    /// The key's texts in the row `values`, if all of them are there.
    fn texts_of_row<'a>(
        &self,
        relation: &Relation,
        values: &Values<'a>,
    ) -> Result<Option<Vec<Cow<'a, str>>>, DecodeError> {
        let mut texts = Vec::with_capacity(self.keys);
        for (column, raw) in relation.key.iter().zip(&values.raw) {
            let path = || format!("{}.{}", values.path, clip(&column.name));
            let Some(raw) = raw else { return Ok(None) };
            match scalar(raw, path)? {
                // A `before` holds no more than the replica identity; the rest of it is null.
                Scalar::Null => return Ok(None),
                Scalar::Text(text) if text == UNAVAILABLE => return Ok(None),
                other => texts.push(key_text(column.kind, other, path)?),
            }
        }
        Ok(Some(texts))
    }

    /// The key's texts in the message's own key `text`: an object that holds the key columns, bare or
    /// as the payload beside its schema, or (ExtractField) the bare value of a key of one column.
    /// `None` if it lacks a column, as with a connector whose `message.key.columns` says otherwise.
    fn texts_of_message<'a>(
        &self,
        relation: &Relation,
        text: &'a str,
    ) -> Result<Option<Vec<Cow<'a, str>>>, DecodeError> {
        let path = || "key".to_owned();
        let mut raw = vec![None; self.of_message.len()];
        let mut object = json::is_object(text);
        let mut value = None;
        if object {
            let count = pick(text, &self.of_message, &mut raw, Part::Key, "key")?;
            if let (2, [Some(schema), Some(payload), ..]) = (count, &*raw)
                && json::is_schema(schema)
            {
                let payload: &'a RawValue = payload;
                object = json::is_object(payload.get());
                value = Some(payload);
                if object {
                    raw.fill(None);
                    pick(payload.get(), &self.of_message, &mut raw, Part::Key, "key")?;
                }
            }
        } else {
            value = Some(json::value(text, Part::Key)?);
        }

        let mut texts = Vec::with_capacity(self.keys);
        if object {
            for column in &relation.key {
                let path = || format!("key.{}", clip(&column.name));
                // A column may itself be called `schema` or `payload`.
                let slot = self.of_message.iter().position(|name| **name == *column.name);
                let Some(raw) = slot.and_then(|slot| raw[slot]) else { return Ok(None) };
                texts.push(match scalar(raw, path)? {
                    Scalar::Text(text) if text == UNAVAILABLE => {
                        return Err(DecodeError::KeyUnavailable { path: path() });
                    }
                    other => key_text(column.kind, other, path)?,
                });
            }
            return Ok(Some(texts));
        }
        let Some(value) = value else { return Ok(None) };
        match (scalar(value, path)?, &*relation.key) {
            (Scalar::Null, _) => Ok(None),
            (Scalar::Text(text), _) if text == UNAVAILABLE => {
                Err(DecodeError::KeyUnavailable { path: path() })
            }
            (bare, [only]) => {
                texts.push(key_text(only.kind, bare, path)?);
                Ok(Some(texts))
            }
            (bare, _) => Err(DecodeError::Type {
                path: path(),
                expected: "an object of the key's columns",
                found: bare.kind(),
            }),
        }
    }

    /// The key: from the message's key where it holds one, else from the row. Where both do, they
    /// must agree.
    pub(super) fn key(
        &self,
        relation: &Relation,
        message: Option<&str>,
        row: Option<&Values<'_>>,
    ) -> Result<Key, DecodeError> {
        let of_message = match message {
            Some(text) => self.texts_of_message(relation, text)?,
            None => None,
        };
        let of_row = match row {
            Some(values) => self.texts_of_row(relation, values)?,
            None => None,
        };
        let path = row.map_or("key", |row| row.path);
        match (of_message, of_row) {
            (Some(message), Some(of_row)) if message != of_row => {
                // Spelled differently; they may still be the same once canonical.
                let key = make_key(relation, &message, "key")?;
                if key != make_key(relation, &of_row, path)? {
                    return Err(DecodeError::KeyMismatch { path });
                }
                Ok(key)
            }
            (Some(texts), _) => make_key(relation, &texts, "key"),
            (None, Some(texts)) => make_key(relation, &texts, path),
            (None, None) => {
                let lacks = |index: usize| row.is_none_or(|row| row.raw[index].is_none());
                let index = (0..self.keys).find(|index| lacks(*index)).unwrap_or(0);
                let name = self.names.get(index).map_or("", |name| clip(name));
                Err(DecodeError::KeyMissing { column: name.to_owned() })
            }
        }
    }

    /// The flag after the change. A row without the column is an error; `unit` tells the unit of a
    /// number, if there is a schema.
    pub(super) fn flag(
        &self,
        relation: &Relation,
        values: &Values<'_>,
        unit: impl FnOnce() -> Option<Unit>,
    ) -> Result<FlagState, DecodeError> {
        let path = || format!("{}.{}", values.path, clip(&relation.flag.column));
        match values.raw[self.flag] {
            Some(raw) => state(&relation.flag.kind, scalar(raw, path)?, unit, path),
            None => Err(DecodeError::FlagMissing {
                path: path(),
                relation: clip(&relation.name).to_owned(),
            }),
        }
    }

    /// The flag before the change. It decides nothing, so what is missing or odd is unknown. So is
    /// an unset one where `gone`: under REPLICA IDENTITY DEFAULT the `before` of a delete holds the
    /// key, and null or a default for all else.
    pub(super) fn flag_before(
        &self,
        relation: &Relation,
        values: &Values<'_>,
        gone: bool,
        unit: impl FnOnce() -> Option<Unit>,
    ) -> FlagState {
        match self.flag(relation, values, unit) {
            Ok(FlagState::Unset) if gone => FlagState::Unknown,
            Ok(state) => state,
            Err(_) => FlagState::Unknown,
        }
    }
}

fn make_key(
    relation: &Relation,
    texts: &[Cow<'_, str>],
    path: &'static str,
) -> Result<Key, DecodeError> {
    Key::new(relation.key_kinds(), texts.iter().map(AsRef::as_ref))
        .map_err(|source| DecodeError::Key { path: path.to_owned(), source })
}

fn key_text<'a>(
    kind: KeyKind,
    value: Scalar<'a>,
    path: impl FnOnce() -> String,
) -> Result<Cow<'a, str>, DecodeError> {
    let expected = match (kind, value) {
        (KeyKind::Uuid | KeyKind::Text | KeyKind::Bigint, Scalar::Text(text)) => return Ok(text),
        (KeyKind::Bigint, Scalar::Number(number)) => return Ok(Cow::Borrowed(number)),
        (KeyKind::Bigint, other) => ("a whole number", other.kind()),
        (KeyKind::Uuid | KeyKind::Text, other) => ("a string", other.kind()),
    };
    Err(DecodeError::Type { path: path(), expected: expected.0, found: expected.1 })
}

fn state(
    kind: &FlagKind,
    value: Scalar<'_>,
    unit: impl FnOnce() -> Option<Unit>,
    path: impl Fn() -> String,
) -> Result<FlagState, DecodeError> {
    let wrong = |expected| Err(DecodeError::FlagValue { path: path(), expected });
    match (kind, value) {
        (_, Scalar::Null) => Ok(FlagState::Unset),
        (_, Scalar::Text(text)) if text == UNAVAILABLE => Ok(FlagState::Unknown),
        (FlagKind::Boolean, Scalar::Bool(true)) => Ok(FlagState::Set(FlagValue::True)),
        (FlagKind::Boolean, Scalar::Bool(false)) => Ok(FlagState::Unset),
        (FlagKind::Boolean, _) => wrong("a boolean"),
        (FlagKind::TimestampTz | FlagKind::Timestamp { .. }, Scalar::Text(text)) => {
            match time::from_text(&text) {
                Some(value) => Ok(FlagState::Set(value)),
                None => wrong("a time in ISO 8601"),
            }
        }
        (FlagKind::TimestampTz | FlagKind::Timestamp { .. }, Scalar::Number(number)) => {
            match number.parse() {
                Ok(number) => Ok(FlagState::Set(time::from_number(number, unit()))),
                Err(_) => wrong("a whole number of milli-, micro- or nanoseconds"),
            }
        }
        (
            FlagKind::TimestampTz | FlagKind::Timestamp { .. },
            Scalar::Bool(_) | Scalar::Object | Scalar::Array,
        ) => wrong("a time, as text or number"),
    }
}

/// The inline schema, as far as it tells the unit of a column. Read only when a flag is a number.
#[derive(Deserialize)]
struct Schema<'a> {
    #[serde(borrow, default)]
    field: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    fields: Option<Vec<Schema<'a>>>,
}

/// The unit that `schema` gives the column at the end of `path`, if it names one.
pub(super) fn unit(schema: Option<&str>, path: &[&str]) -> Option<Unit> {
    let root: Schema<'_> = serde_json::from_str(schema?).ok()?;
    let mut at = &root;
    for name in path {
        at = at.fields.as_ref()?.iter().find(|field| field.field.as_deref() == Some(*name))?;
    }
    Unit::of_schema(at.name.as_deref()?)
}
