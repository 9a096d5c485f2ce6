//! What is newer: positions in the log of a Postgres server.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A place in the write-ahead log of one Postgres timeline, printed as Postgres does: `16/B374D848`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Lsn(pub u64);

/// Which life of the server, slot or topic a position is from. Kept and bumped by the ledger (S4).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Generation(pub u32);

/// The only thing that says newer: the generation, then the place in the log, then the order within
/// the transaction (0 where the envelope does not say).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Position {
    /// Which life of the log.
    pub generation: Generation,
    /// The place in the log.
    pub lsn: Lsn,
    /// The order within the transaction.
    pub order: u32,
}

/// A text that is no LSN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an lsn such as 16/B374D848")]
pub struct ParseLsnError;

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (high, low) = text.split_once('/').ok_or(ParseLsnError)?;
        let part = |text| u32::from_str_radix(text, 16).map_err(|_| ParseLsnError);
        Ok(Self(u64::from(part(high)?) << 32 | u64::from(part(low)?)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_lsn_is_printed_and_read_as_postgres_does() {
        for (text, lsn) in [
            ("0/0", 0),
            ("0/19932A8", 26_817_192),
            ("16/B374D848", 0x16_b374_d848),
            ("FFFFFFFF/FFFFFFFF", u64::MAX),
        ] {
            assert_eq!(Lsn(lsn).to_string(), text);
            assert_eq!(text.parse(), Ok(Lsn(lsn)));
        }
        assert_eq!("16/b374d848".parse(), Ok(Lsn(0x16_b374_d848)));
    }

    #[test]
    fn what_is_no_lsn_is_refused() {
        for text in ["", "/", "0", "0/", "/0", "0/G", "0/1/2", "100000000/0", "0/100000000", "-1/0"]
        {
            assert_eq!(text.parse::<Lsn>(), Err(ParseLsnError), "{text}");
        }
    }

    #[test]
    fn a_later_generation_beats_any_lsn_and_an_lsn_any_order() {
        let position = |generation, lsn, order| Position {
            generation: Generation(generation),
            lsn: Lsn(lsn),
            order,
        };
        let ascending = [
            position(0, 0, 0),
            position(0, 0, 1),
            position(0, 9, 0),
            position(0, u64::MAX, u32::MAX),
            position(1, 0, 0),
            position(1, 0, 2),
            position(1, 3, 1),
        ];
        assert!(ascending.is_sorted_by(|one, next| one < next));
    }

    proptest! {
        #[test]
        fn every_lsn_survives_printing(lsn in any::<u64>()) {
            prop_assert_eq!(Lsn(lsn).to_string().parse(), Ok(Lsn(lsn)));
        }
    }
}
