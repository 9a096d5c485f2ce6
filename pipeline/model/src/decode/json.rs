//! JSON, as little of it as needed: the wanted fields of an object as the text they have there.
//!
//! No tree is built. What is not wanted is skipped, and skipping is no recursion, so that no depth
//! of nesting costs stack.

use std::borrow::Cow;
use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

use super::error::{DecodeError, Part, clip};

/// A value that the decoder looks into.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scalar<'a> {
    Null,
    Bool(bool),
    /// As it is spelled.
    Number(&'a str),
    Text(Cow<'a, str>),
    Object,
    Array,
}

impl<'a> Scalar<'a> {
    /// Reads `raw`, which the parser has already found to be JSON; `None` if it is a string whose
    /// escapes make no text (a lone surrogate).
    pub(super) fn read(raw: &'a RawValue) -> Option<Self> {
        let text = raw.get();
        Some(match text.as_bytes().first()? {
            b'n' => Self::Null,
            b't' => Self::Bool(true),
            b'f' => Self::Bool(false),
            b'{' => Self::Object,
            b'[' => Self::Array,
            b'"' => {
                let inner = text.strip_prefix('"')?.strip_suffix('"')?;
                if memchr::memchr(b'\\', inner.as_bytes()).is_none() {
                    Self::Text(Cow::Borrowed(inner))
                } else {
                    Self::Text(Cow::Owned(serde_json::from_str(text).ok()?))
                }
            }
            _ => Self::Number(text),
        })
    }

    /// What it is, for people.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::Object => "an object",
            Self::Array => "an array",
        }
    }
}

/// Reads the value at `path`.
pub(super) fn scalar<'a>(
    raw: &'a RawValue,
    path: impl FnOnce() -> String,
) -> Result<Scalar<'a>, DecodeError> {
    Scalar::read(raw).ok_or_else(|| DecodeError::Type {
        path: path(),
        expected: "text",
        found: "a string with half a character",
    })
}

/// The text of `bytes`.
pub(super) fn text(bytes: &[u8], part: Part) -> Result<&str, DecodeError> {
    if bytes.first() == Some(&0) {
        return Err(DecodeError::Registry { part });
    }
    std::str::from_utf8(bytes).map_err(|error| DecodeError::Utf8 { part, at: error.valid_up_to() })
}

/// The JSON value that `text` is.
pub(super) fn value(text: &str, part: Part) -> Result<&RawValue, DecodeError> {
    serde_json::from_str(text).map_err(|error| syntax(&error, part))
}

/// Whether the two fields `schema` and `payload`, the only ones of an object, are JsonConverter's form
/// with schemas on: its schema is an object, or null. Columns that are called so hold other things.
pub(super) fn is_schema(schema: &RawValue) -> bool {
    matches!(schema.get().as_bytes().first(), Some(b'{' | b'n'))
}

/// Whether `text` begins as an object does.
pub(super) fn is_object(text: &str) -> bool {
    first(text) == Some(b'{')
}

fn first(text: &str) -> Option<u8> {
    text.bytes().find(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r'))
}

/// The fields `names` of the object that `text` is, put into `slots`, and how many fields the object
/// has at all. A wanted field that occurs twice is an error.
pub(super) fn pick<'a, N: AsRef<str>>(
    text: &'a str,
    names: &[N],
    slots: &mut [Option<&'a RawValue>],
    part: Part,
    path: &'static str,
) -> Result<usize, DecodeError> {
    let first = first(text);
    if first != Some(b'{') {
        value(text, part)?;
        return Err(DecodeError::Type {
            path: path.to_owned(),
            expected: "an object",
            found: match first {
                Some(b'"') => "a string",
                Some(b'[') => "an array",
                Some(b't' | b'f') => "a boolean",
                Some(b'n') => "null",
                _ => "a number",
            },
        });
    }
    let mut twice = None;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let count = deserializer
        .deserialize_map(Pick { names, slots, twice: &mut twice })
        .and_then(|count| deserializer.end().map(|()| count))
        .map_err(|error| syntax(&error, part))?;
    match twice.and_then(|index: usize| names.get(index)) {
        None => Ok(count),
        Some(name) => {
            Err(DecodeError::Duplicate { path: format!("{path}.{}", clip(name.as_ref())) })
        }
    }
}

/// The parser's complaint. Only its complaints of syntax are quoted: they are fixed texts, while
/// those of types would quote the payload, should there ever be one.
fn syntax(error: &serde_json::Error, part: Part) -> DecodeError {
    let said = match error.classify() {
        Category::Syntax | Category::Eof => {
            let full = error.to_string();
            let end = full.find(" at line ").unwrap_or(full.len());
            clip(&full[..end]).to_owned()
        }
        Category::Data | Category::Io => "unexpected value".to_owned(),
    };
    DecodeError::Json { part, line: error.line(), column: error.column(), said }
}

struct Pick<'n, 's, 'a, N> {
    names: &'n [N],
    slots: &'s mut [Option<&'a RawValue>],
    twice: &'s mut Option<usize>,
}

impl<'de, N: AsRef<str>> Visitor<'de> for Pick<'_, '_, 'de, N> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<usize, A::Error> {
        let mut count = 0;
        while let Some(index) = map.next_key_seed(Name(self.names))? {
            count += 1;
            match index.and_then(|index| Some((index, self.slots.get_mut(index)?))) {
                Some((index, slot)) => {
                    if slot.replace(map.next_value()?).is_some() {
                        *self.twice = Some(index);
                    }
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(count)
    }
}

/// Finds a field's name among the wanted ones. Lengths are compared first, so most misses are cheap.
struct Name<'n, N>(&'n [N]);

impl<'de, N: AsRef<str>> DeserializeSeed<'de> for Name<'_, N> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<N: AsRef<str>> Visitor<'_> for Name<'_, N> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|wanted| wanted.as_ref() == name))
    }
}
