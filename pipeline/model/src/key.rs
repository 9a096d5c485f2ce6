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

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kinds: &[KeyKind], texts: &[&str]) -> Result<Key, KeyError> {
        Key::new(kinds.iter().copied(), texts.iter().copied())
    }

    #[test]
    fn a_key_is_spelled_as_postgres_spells_it() {
        for (kind, text, spelled) in [
            (
                KeyKind::Uuid,
                "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
                "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            ),
            (KeyKind::Bigint, "-0", "0"),
            (KeyKind::Bigint, "007", "7"),
            (KeyKind::Bigint, "-9223372036854775808", "-9223372036854775808"),
            (KeyKind::Text, " A\n\u{301}e ", " A\n\u{301}e "),
            (KeyKind::Text, "", ""),
        ] {
            assert_eq!(kind.canonical(text).as_deref(), Ok(spelled));
        }
    }

    #[test]
    fn what_no_column_of_the_type_can_hold_is_refused() {
        for (kind, text, refused) in [
            (KeyKind::Uuid, "", KeyError::Uuid),
            (KeyKind::Uuid, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1", KeyError::Uuid),
            (KeyKind::Bigint, "", KeyError::Bigint),
            (KeyKind::Bigint, "1.0", KeyError::Bigint),
            (KeyKind::Bigint, " 1", KeyError::Bigint),
            (KeyKind::Bigint, "9223372036854775808", KeyError::Bigint),
            (KeyKind::Text, "a\0b", KeyError::ZeroByte),
        ] {
            assert_eq!(kind.canonical(text), Err(refused), "{text:?}");
        }
    }

    #[test]
    fn columns_that_run_together_stay_apart() {
        let kinds = [KeyKind::Text, KeyKind::Text];
        let one = key(&kinds, &["1-2", "3"]).unwrap();
        let other = key(&kinds, &["1", "2-3"]).unwrap();
        assert_ne!(one, other);
        assert_ne!(one.stable_hash(), other.stable_hash());
        assert_ne!(one.to_string(), other.to_string());
        let (one, other) = (key(&kinds, &["ab", "c"]).unwrap(), key(&kinds, &["a", "bc"]).unwrap());
        assert_ne!(one.stable_hash(), other.stable_hash());
    }

    #[test]
    fn a_key_has_as_many_columns_as_its_relation() {
        let refused = key(&[KeyKind::Text, KeyKind::Text], &["a"]);
        assert_eq!(refused, Err(KeyError::Columns { found: 1, expected: 2 }));
    }

    /// The hash decides which worker owns a key, in every process and version: it must never change.
    /// Computed by hand-written FNV-1a elsewhere: of nothing, and of `a` with its length.
    #[test]
    fn the_hash_is_the_same_for_ever() {
        assert_eq!(Key::from_postgres([]).stable_hash(), 0xcbf2_9ce4_8422_2325);
        assert_eq!(Key::from_postgres(["a".to_owned()]).stable_hash(), 0xdedf_9f98_2e43_402d);
    }

    #[test]
    fn people_see_the_bare_text_or_an_array() {
        assert_eq!(key(&[KeyKind::Bigint], &["7"]).unwrap().to_string(), "7");
        let two = key(&[KeyKind::Bigint, KeyKind::Text], &["7", "a\"b"]).unwrap();
        assert_eq!(two.to_string(), r#"["7","a\"b"]"#);
    }
}
