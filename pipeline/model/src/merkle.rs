//! The tree of RFC 6962 over the entries of a block: one hash that stands for all of them and their order,
//! and short proofs that an entry is one of them.
//!
//! Owned here: hashing. Left to others: what an entry is (`chain.rs`), how it is spelled (`canonical.rs`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A SHA-256. In JSON 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash(pub [u8; 32]);

/// What a text must be to be a [`struct@Hash`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a hash is 64 lower-case hexadecimal digits")]
pub struct ParseHashError;

impl Hash {
    /// What the first block follows.
    pub const ZERO: Self = Self([0; 32]);

    /// The hash of `data` as something of this kind, so that none can be shown as one of another kind.
    pub(crate) fn of(kind: Kind, data: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        hash.update([kind as u8]);
        for part in data {
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    /// The hash of an entry.
    pub fn leaf(entry: &[u8]) -> Self {
        Self::of(Kind::Leaf, &[entry])
    }

    fn node(left: &Self, right: &Self) -> Self {
        Self::of(Kind::Node, &[&left.0, &right.0])
    }
}

/// The byte in front of what is hashed. The first two are RFC 6962's.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Leaf = 0,
    Node = 1,
    Block = 2,
    End = 3,
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Hash {
    type Err = ParseHashError;

    fn from_str(text: &str) -> Result<Self, ParseHashError> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(ParseHashError),
        };
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let mut hash = [0; 32];
        if pairs.len() != hash.len() || !rest.is_empty() {
            return Err(ParseHashError);
        }
        for (byte, [high, low]) in hash.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Ok(Self(hash))
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A tree that is given its leaves one by one, and keeps no more than one hash a level.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    leaves: u64,
    /// The roots of the full trees that the leaves make so far, the largest first.
    full: Vec<Hash>,
}

impl Tree {
    /// Adds the next leaf.
    pub fn push(&mut self, leaf: Hash) {
        let mut root = leaf;
        // As many as the number of leaves ends in ones.
        for _ in 0..self.leaves.trailing_ones() {
            let left = self.full.pop().expect("one for each bit of the number of leaves");
            root = Hash::node(&left, &root);
        }
        self.full.push(root);
        self.leaves += 1;
    }

    /// How many leaves it has.
    pub fn leaves(&self) -> u64 {
        self.leaves
    }

    /// The hash of all; none of a tree without leaves.
    pub fn root(&self) -> Option<Hash> {
        let (last, larger) = self.full.split_last()?;
        Some(larger.iter().rev().fold(*last, |right, left| Hash::node(left, &right)))
    }
}

/// The hashes that lead from the leaf at `index` to the root, from the leaf's side.
pub(crate) fn path(leaves: &[Hash], index: usize) -> Vec<Hash> {
    let mut path = Vec::new();
    let (mut rest, mut index) = (leaves, index);
    // From the root's side: each half that the leaf is not in.
    while rest.len() > 1 {
        let middle = rest.len().next_power_of_two() / 2;
        let (left, right) = rest.split_at(middle);
        let other = if index < middle {
            rest = left;
            right
        } else {
            rest = right;
            index -= middle;
            left
        };
        let mut tree = Tree::default();
        other.iter().for_each(|leaf| tree.push(*leaf));
        path.extend(tree.root());
    }
    path.reverse();
    path
}

/// The root to which `path` leads from the leaf at `index` of `leaves`; none where a path is not so long.
pub(crate) fn root_by(leaf: Hash, index: u64, leaves: u64, path: &[Hash]) -> Option<Hash> {
    // RFC 9162, 2.1.3.2.
    if index >= leaves {
        return None;
    }
    let (mut at, mut last) = (index, leaves - 1);
    let mut root = leaf;
    for other in path {
        if last == 0 {
            return None;
        }
        if at & 1 == 1 || at == last {
            root = Hash::node(other, &root);
            while at & 1 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            root = Hash::node(&root, other);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    (last == 0).then_some(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(count: u8) -> Vec<Hash> {
        (0..count).map(|n| Hash::leaf(&[n])).collect()
    }

    fn root(leaves: &[Hash]) -> Hash {
        let mut tree = Tree::default();
        leaves.iter().for_each(|leaf| tree.push(*leaf));
        assert_eq!(tree.leaves(), leaves.len() as u64);
        tree.root().unwrap()
    }

    #[test]
    fn the_roots_are_those_of_rfc_6962() {
        // The definition, word for word: MTH(D[n]) = SHA-256(0x01 || MTH(D[0:k]) || MTH(D[k:n])).
        fn by_definition(leaves: &[Hash]) -> Hash {
            match leaves {
                [leaf] => *leaf,
                _ => {
                    let mut k = 1;
                    while k * 2 < leaves.len() {
                        k *= 2;
                    }
                    Hash::node(&by_definition(&leaves[..k]), &by_definition(&leaves[k..]))
                }
            }
        }
        for count in 1..=33 {
            assert_eq!(root(&leaves(count)), by_definition(&leaves(count)), "{count} leaves");
        }
        assert_eq!(Tree::default().root(), None);
        // Certificate Transparency's own example: the leaf of an empty entry.
        let empty = "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d";
        assert_eq!(Hash::leaf(b"").to_string(), empty);
    }

    #[test]
    fn a_path_leads_to_the_root_and_from_nowhere_else() {
        for count in 1..=17 {
            let leaves = leaves(count);
            let (root, all) = (root(&leaves), leaves.len() as u64);
            for index in 0..leaves.len() {
                let path = path(&leaves, index);
                let by = |leaf, index, path: &[Hash]| root_by(leaf, index, all, path);
                assert_eq!(by(leaves[index], index as u64, &path), Some(root));
                for (other, leaf) in leaves.iter().enumerate().filter(|(n, _)| *n != index) {
                    assert_ne!(by(*leaf, index as u64, &path), Some(root));
                    assert_ne!(by(leaves[index], other as u64, &path), Some(root));
                }
                let longer: Vec<_> = path.iter().copied().chain([root]).collect();
                assert_eq!(by(leaves[index], index as u64, &longer), None);
                if let Some((_, shorter)) = path.split_last() {
                    assert_eq!(by(leaves[index], index as u64, shorter), None);
                }
            }
        }
    }

    #[test]
    fn a_hash_is_read_as_it_is_written_and_no_other_way() {
        let hash = Hash::leaf(b"x");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        let text = hash.to_string();
        for wrong in [text.to_uppercase(), text[1..].to_owned(), format!("{text}0"), "é".repeat(32)]
        {
            assert_eq!(wrong.parse::<Hash>(), Err(ParseHashError), "{wrong}");
        }
    }
}
