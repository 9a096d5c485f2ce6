//! Why a message can't be decoded.

use std::fmt;

use crate::KeyError;
use crate::wal::WalError;

/// Which half of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The record's key.
    Key,
    /// The record's value.
    Value,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Key => "key",
            Self::Value => "value",
        })
    }
}

/// Why a message can't be decoded.
///
/// What it prints is a dead letter's reason: what is wrong and where, on one short line that never
/// holds anything of the payload. A path is made of names of the envelope and of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Bytes that are no text.
    #[error("{part}: not utf-8 at byte {at}")]
    Utf8 {
        /// Where.
        part: Part,
        /// The first byte that is wrong.
        at: usize,
    },
    /// The wire format of a schema registry.
    #[error(
        "{part}: begins with the zero byte of a schema registry's format (Avro, Protobuf); set the \
         connector's {part}.converter to org.apache.kafka.connect.json.JsonConverter"
    )]
    Registry {
        /// Where.
        part: Part,
    },
    /// Text that is no JSON.
    #[error("{part}: not json at line {line} column {column}: {said}")]
    Json {
        /// Where.
        part: Part,
        /// Counted from 1.
        line: usize,
        /// Counted from 1, in bytes.
        column: usize,
        /// What the parser missed; one of its fixed texts.
        said: String,
    },
    /// A value of another type than the envelope has there.
    #[error("{path}: {found}, expected {expected}")]
    Type {
        /// Where.
        path: String,
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: &'static str,
    },
    /// A field that is given twice: whichever is meant, the other would be lost.
    #[error("{path}: given twice")]
    Duplicate {
        /// Where.
        path: String,
    },
    /// A field that the envelope always has.
    #[error("{path}: missing")]
    Missing {
        /// Where.
        path: &'static str,
    },
    /// An operation that this version does not know.
    #[error("{path}: none of c, u, d, r, t and m")]
    Op {
        /// Where.
        path: &'static str,
    },
    /// An object, but no event.
    #[error(
        "value: neither debezium's envelope nor a row flattened by ExtractNewRecordState on a \
         topic that a relation lists"
    )]
    Form,
    /// A flattened row, and nothing says of which table.
    #[error(
        "value: a flattened row on a topic that no relation lists; add the topic to its relation's \
         `topics`"
    )]
    Unlisted,
    /// A flattened row, and several relations could be meant.
    #[error(
        "value: a flattened row on a topic that several relations list; give each a topic of its \
         own, or put source.schema and source.table into the transform's add.fields"
    )]
    Ambiguous,
    /// The flag's column is not in the row.
    #[error(
        "{path}: relation `{relation}` has its flag here, and the row has no such column: renamed, \
         dropped or filtered out? its events tell no deletion until table, connector and \
         `flag.column` agree"
    )]
    FlagMissing {
        /// Where.
        path: String,
        /// The relation's name.
        relation: String,
    },
    /// The flag's value is none that its kind can have.
    #[error("{path}: not {expected}")]
    FlagValue {
        /// Where.
        path: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A column of the key is in neither the message's key nor the row.
    #[error("{column}: key column missing or null in the message's key and in its row")]
    KeyMissing {
        /// The column.
        column: String,
    },
    /// The value is none that the key column's type can have.
    #[error("{path}: {source}")]
    Key {
        /// Where.
        path: String,
        /// Why.
        source: KeyError,
    },
    /// The placeholder for a TOASTed value, in a key.
    #[error("{path}: debezium's placeholder for a value that it has not read can't be a key")]
    KeyUnavailable {
        /// Where.
        path: String,
    },
    /// Bytes from Postgres's log that are no message of pgoutput.
    #[error("{0}")]
    Wal(WalError),
    /// The message's key and its row name different rows.
    #[error("the message's key and its {path} name different rows")]
    KeyMismatch {
        /// Which row.
        path: &'static str,
    },
}

impl DecodeError {
    /// The variant's name, for a metric's label: few and fixed.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Utf8 { .. } => "utf8",
            Self::Registry { .. } => "registry",
            Self::Json { .. } => "json",
            Self::Type { .. } => "type",
            Self::Duplicate { .. } => "duplicate",
            Self::Missing { .. } => "missing",
            Self::Op { .. } => "op",
            Self::Form => "form",
            Self::Unlisted => "unlisted",
            Self::Ambiguous => "ambiguous",
            Self::FlagMissing { .. } => "flag_missing",
            Self::FlagValue { .. } => "flag_value",
            Self::KeyMissing { .. } => "key_missing",
            Self::Key { .. } => "key",
            Self::KeyUnavailable { .. } => "key_unavailable",
            Self::KeyMismatch { .. } => "key_mismatch",
            Self::Wal(_) => "wal",
        }
    }
}

/// A name of the configuration for a message: at most 80 characters of it.
pub(super) fn clip(name: &str) -> &str {
    name.char_indices().nth(80).map_or(name, |(end, _)| &name[..end])
}
