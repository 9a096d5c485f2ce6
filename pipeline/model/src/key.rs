//! Canonical keys: one row, one spelling.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The key of a row: the text of each key column, in the order of the configuration, spelled as
/// Postgres itself spells it (`column::text`).
///
/// Invariant (S8): keys are injective. The columns stay apart, so `("1-2", "3")` is never
/// `("1", "2-3")`; the ledger keeps them as `text[]` for the same reason.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key(Box<[Box<str>]>);

/// The types of key columns whose text can be made canonical.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyKind {
    /// `uuid`: 36 characters, lower case.
    Uuid,
    /// `smallint`, `integer` or `bigint`: decimal, no leading zero, no plus.
    #[serde(alias = "smallint", alias = "integer")]
    Bigint,
    /// `text` or `varchar`: byte for byte.
    #[serde(alias = "varchar")]
    Text,
}

/// Why a text is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a uuid in the form that Postgres and Debezium write.
    #[error("not a uuid")]
    Uuid,
    /// Not a decimal number of 64 bits.
    #[error("not a bigint")]
    Bigint,
    /// Postgres has no text with a zero byte, so no row can have this key.
    #[error("text with a zero byte")]
    ZeroByte,
    /// The number of columns differs from the relation's key.
    #[error("{found} key columns, expected {expected}")]
    Columns {
        /// How many were given.
        found: usize,
        /// How many the relation has.
        expected: usize,
    },
}

impl KeyKind {
    /// The spelling of `text` that Postgres would give, or why no value of this type has it.
    pub fn canonical(self, text: &str) -> Result<Box<str>, KeyError> {
        match self {
            Self::Uuid => match uuid::Uuid::try_parse(text) {
                Ok(id) => Ok(id.hyphenated().to_string().into()),
                Err(_) => Err(KeyError::Uuid),
            },
            Self::Bigint => match text.parse::<i64>() {
                Ok(number) => Ok(number.to_string().into()),
                Err(_) => Err(KeyError::Bigint),
            },
            Self::Text if text.contains('\0') => Err(KeyError::ZeroByte),
            Self::Text => Ok(text.into()),
        }
    }

    /// The Postgres type that a text of this kind is cast to in a query.
    pub fn sql_type(self) -> &'static str {
        match self {
            Self::Uuid => "uuid",
            Self::Bigint => "bigint",
            Self::Text => "text",
        }
    }
}

impl Key {
    /// Makes the canonical key of `texts`, one for each of `kinds`.
    pub fn new<'a>(
        kinds: impl ExactSizeIterator<Item = KeyKind>,
        texts: impl ExactSizeIterator<Item = &'a str>,
    ) -> Result<Self, KeyError> {
        if kinds.len() != texts.len() {
            return Err(KeyError::Columns { found: texts.len(), expected: kinds.len() });
        }
        kinds
            .zip(texts)
            .map(|(kind, text)| kind.canonical(text))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Takes texts that Postgres itself wrote, and so are canonical already.
    pub fn from_postgres(texts: impl IntoIterator<Item = String>) -> Self {
        Self(texts.into_iter().map(String::into_boxed_str).collect())
    }

    /// The text of each column.
    pub fn columns(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.iter().map(AsRef::as_ref)
    }

    /// A hash that is equal in every process and version: FNV-1a over columns and their lengths.
    pub fn stable_hash(&self) -> u64 {
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        let mut eat = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        for column in &self.0 {
            column.bytes().for_each(&mut eat);
            (column.len() as u64).to_le_bytes().into_iter().for_each(&mut eat);
        }
        hash
    }
}

/// For people: the bare text of a key of one column, else a JSON array.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            [only] => f.write_str(only),
            all => f.write_str(&serde_json::to_string(all).map_err(|_| fmt::Error)?),
        }
    }
}
