//! What travels to the worker of an address: which side saw something there, and what to remember of it.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tombstream_model::{Address, State, StoreId};

/// Which address in which store: 128 bits of a hash.
///
/// A cryptographic one, since keys are what users choose: two addresses that meet by intent would hide a copy
/// that should be gone behind a row that lives.
pub(crate) type Place = [u8; 16];

/// The place of an address.
pub(crate) fn place(store: StoreId, address: &Address) -> Place {
    let (kind, texts): (u8, Vec<Option<&str>>) = match address {
        Address::Object { bucket, key } => (0, vec![Some(&**bucket), Some(&**key)]),
        Address::Prefix { bucket, prefix } => (1, vec![Some(&**bucket), Some(&**prefix)]),
        Address::Document { index, id, routing } => {
            (2, vec![Some(&**index), Some(&**id), routing.as_deref()])
        }
        Address::Field { index, field, value, routing } => {
            (3, vec![Some(&**index), Some(&**field), Some(&**value), routing.as_deref()])
        }
        Address::Item { collection, id } => (4, vec![Some(&**collection), Some(&**id)]),
        Address::Row { table, columns } => {
            let texts = columns.iter().flat_map(|(name, value)| [Some(&**name), Some(&**value)]);
            (5, std::iter::once(Some(&**table)).chain(texts).collect())
        }
    };
    let mut hash = Sha256::new();
    hash.update(store.0.to_le_bytes());
    hash.update([kind]);
    for text in texts {
        // Its length first, so that texts that run together stay apart; none is not empty.
        let length = text.map_or(u64::MAX, |text| text.len() as u64);
        hash.update(length.to_le_bytes());
        hash.update(text.unwrap_or_default());
    }
    let whole: [u8; 32] = hash.finalize().into();
    let mut place = [0; 16];
    place.copy_from_slice(&whole[..16]);
    place
}

/// What was seen at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Seen {
    /// A row's copy should be there.
    Alive {
        /// Its absence is worth a word.
        is_expected: bool,
    },
    /// A row's copy may be there.
    Waiting,
    /// A row's copy should be gone.
    Due,
    /// The ledger knows of a copy.
    Known(State),
    /// A copy is there.
    Copy {
        /// No template leads to it.
        is_elsewhere: bool,
    },
}

impl Seen {
    /// Copies are read past what is known of rows and deletions, and never held.
    pub(crate) fn is_copy(self) -> bool {
        matches!(self, Self::Copy { .. })
    }

    fn code(self) -> u8 {
        match self {
            Self::Alive { is_expected: true } => 0,
            Self::Alive { is_expected: false } => 1,
            Self::Waiting => 2,
            Self::Due => 3,
            Self::Copy { is_elsewhere: false } => 4,
            Self::Copy { is_elsewhere: true } => 5,
            Self::Known(state) => {
                let nth = State::ALL.iter().position(|known| *known == state);
                16 + u8::try_from(nth.expect("every state is in the list")).expect("there are few")
            }
        }
    }

    fn of_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Alive { is_expected: true },
            1 => Self::Alive { is_expected: false },
            2 => Self::Waiting,
            3 => Self::Due,
            4 => Self::Copy { is_elsewhere: false },
            5 => Self::Copy { is_elsewhere: true },
            _ => Self::Known(*State::ALL.get(usize::from(code.checked_sub(16)?))?),
        })
    }
}

/// One thing seen at one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) place: Place,
    pub(crate) seen: Seen,
    /// What a suspicion needs to be looked at again, as JSON: [`super::suspect::Note`].
    pub(crate) note: Box<[u8]>,
}

/// Bytes of an entry before its note.
const HEAD: usize = 16 + 1 + 4;

impl Entry {
    /// Which worker judges its place.
    pub(crate) fn worker(&self) -> u64 {
        u64::from_le_bytes(self.place[..8].try_into().expect("eight of sixteen"))
    }

    pub(crate) fn len(&self) -> usize {
        HEAD + self.note.len()
    }

    pub(crate) fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.place);
        to.push(self.seen.code());
        to.extend_from_slice(&u32::try_from(self.note.len()).unwrap_or(u32::MAX).to_le_bytes());
        to.extend_from_slice(&self.note);
    }

    /// Takes the first entry off `from`.
    pub(crate) fn read(from: &mut &[u8]) -> Option<Self> {
        let (place, rest) = from.split_first_chunk::<16>()?;
        let (code, rest) = rest.split_first()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (note, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        *from = rest;
        Some(Self { place: *place, seen: Seen::of_code(*code)?, note: note.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_reads_back_as_it_was_written() {
        let states = State::ALL.map(Seen::Known);
        let seen = [
            Seen::Alive { is_expected: true },
            Seen::Alive { is_expected: false },
            Seen::Waiting,
            Seen::Due,
            Seen::Copy { is_elsewhere: false },
            Seen::Copy { is_elsewhere: true },
        ];
        let mut bytes = Vec::new();
        let entries: Vec<Entry> = seen
            .into_iter()
            .chain(states)
            .map(|seen| Entry { place: [7; 16], seen, note: b"note"[..].into() })
            .collect();
        entries.iter().for_each(|entry| entry.write(&mut bytes));
        let mut rest = &bytes[..];
        for entry in &entries {
            assert_eq!(Entry::read(&mut rest).as_ref(), Some(entry));
        }
        assert_eq!(Entry::read(&mut rest), None);
        assert_eq!(Entry::read(&mut &bytes[..HEAD + 3]), None);
    }

    #[test]
    fn places_that_run_together_stay_apart() {
        let object = |bucket: &str, key: &str| Address::Object {
            bucket: bucket.into(),
            key: key.to_owned(),
        };
        let document = |id: &str, routing: Option<&str>| Address::Document {
            index: "docs".into(),
            id: id.to_owned(),
            routing: routing.map(str::to_owned),
        };
        let prefix = Address::Prefix { bucket: "ab".into(), prefix: "c".to_owned() };
        let all = [
            place(StoreId(0), &object("ab", "c")),
            place(StoreId(1), &object("ab", "c")),
            place(StoreId(0), &object("a", "bc")),
            place(StoreId(0), &prefix),
            place(StoreId(0), &document("1", None)),
            place(StoreId(0), &document("1", Some(""))),
            place(StoreId(0), &document("1", Some("2"))),
        ];
        let different: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
    }
}
