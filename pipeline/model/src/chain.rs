//! The chain of receipts: blocks of entries, each block with the hash of the one before. `docs/receipts.md`
//! is the format for those who write a verifier of their own.
//!
//! Owned here: what an entry, a block and the lines of an export are, and how they are hashed. Left to others:
//! checking an export ([`crate::ChainCheck`]), reading and sealing the ledger (the connector), files.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::canonical::{NotCanonical, canonical};
use crate::merkle::{Hash, Kind, path, root_by};
use crate::{DeletionId, Receipt, Tree};

/// What the first line of an export says it is.
pub(crate) const EXPORT: &str = "tombstream-receipts";
/// What a proof says it is.
pub(crate) const PROOF: &str = "tombstream-proof";
/// The version of both.
pub(crate) const VERSION: u32 = 1;

/// One entry of the chain: a receipt, or what closes it. It is spelled once, and that is what is hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number: it grows along the chain. Numbers may be left out.
    pub number: i64,
    text: String,
}

/// The second entry of a deletion: its row's removal was seen back in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Closed {
    /// The deletion's number.
    pub deletion_id: DeletionId,
    /// Where in the log the row's removal is.
    pub removed_lsn: String,
    /// When it was seen.
    pub seen_at: DateTime<Utc>,
}

impl Entry {
    /// The entry of a receipt, given as the JSON that [`crate::Receipt`] is in.
    ///
    /// Taken as it is in the ledger, so that what a later version adds to it is hashed by this one, too.
    pub fn receipt(number: i64, receipt: &Value) -> Result<Self, NotCanonical> {
        // Written around the receipt, which would be copied to be a part of the line's own value.
        let mut out = Vec::with_capacity(1_024);
        out.extend_from_slice(format!("{{\"entry\":{number},\"receipt\":").as_bytes());
        canonical(receipt, &mut out)?;
        out.push(b'}');
        Ok(Self { number, text: utf8(out) })
    }

    /// The entry that closes a receipt.
    pub fn closed(number: i64, closed: &Closed) -> Result<Self, NotCanonical> {
        let text = spelled(&json!({"entry": number, "closed": closed}))?;
        Ok(Self { number, text })
    }

    /// Its line in an export, without the line's end.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The receipt that it is; none if it is none.
    pub fn as_receipt(&self) -> Option<Receipt> {
        let mut line: Value = serde_json::from_str(&self.text).ok()?;
        serde_json::from_value(line.get_mut("receipt")?.take()).ok()
    }

    /// Its hash.
    pub fn leaf(&self) -> Hash {
        Hash::leaf(self.text.as_bytes())
    }
}

/// Some entries that were sealed together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// Its number, from 1, without gaps.
    pub number: i64,
    /// The hash of the block before; zeros for the first.
    pub previous: Hash,
    /// How many entries it has.
    pub entries: i64,
    /// The number of its last entry.
    pub last: i64,
    /// The root of the tree over its entries.
    pub root: Hash,
    /// When it was sealed, by Postgres's clock.
    pub sealed_at: DateTime<Utc>,
    /// The hash of all that: the chain's head, until the next block follows.
    pub hash: Hash,
}

impl Block {
    /// The block that follows `previous`; none of a tree without leaves.
    pub fn seal(
        previous: Option<&Self>,
        tree: &Tree,
        last: i64,
        sealed_at: DateTime<Utc>,
    ) -> Option<Self> {
        let mut block = Self {
            number: previous.map_or(1, |previous| previous.number + 1),
            previous: previous.map_or(Hash::ZERO, |previous| previous.hash),
            entries: i64::try_from(tree.leaves()).ok()?,
            last,
            root: tree.root()?,
            sealed_at,
            hash: Hash::ZERO,
        };
        block.hash = without_its_hash(&block.value(), Kind::Block)?;
        Some(block)
    }

    /// Its line in an export, without the line's end.
    pub fn text(&self) -> String {
        spelled(&json!({"block": self.value()})).expect("numbers and texts")
    }

    fn value(&self) -> Value {
        serde_json::to_value(self).expect("numbers and texts")
    }
}

/// The last line of an export: without it, the export was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// How many blocks stand before.
    pub blocks: i64,
    /// How many entries in them.
    pub entries: i64,
    /// The last block's hash; zeros if there is none.
    pub head: Hash,
    /// Entries of the ledger that were not sealed yet, and so are not in the export.
    pub unsealed: i64,
    /// The hash of all that.
    pub hash: Hash,
}

impl End {
    /// The end behind `blocks` blocks.
    pub fn new(blocks: i64, entries: i64, head: Hash, unsealed: i64) -> Self {
        let mut end = Self { blocks, entries, head, unsealed, hash: Hash::ZERO };
        let value = serde_json::to_value(end).expect("numbers and texts");
        end.hash = without_its_hash(&value, Kind::End).expect("whole numbers");
        end
    }

    /// Its line, without the line's end.
    pub fn text(&self) -> String {
        spelled(&json!({"end": self})).expect("numbers and texts")
    }
}

/// The first line of an export, without its end.
pub fn export_header() -> String {
    spelled(&json!({"format": EXPORT, "version": VERSION})).expect("numbers and texts")
}

/// That an entry is in a block: a block's header, and the hashes that lead to its root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    pub(crate) format: String,
    pub(crate) version: u32,
    /// The entry, as in an export.
    pub(crate) line: Value,
    /// What it is sealed by. None: it is not sealed yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sealed: Option<Sealed>,
}

/// The part of a proof that shows something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sealed {
    /// The entry's place in its block, from 0.
    pub(crate) index: u64,
    /// The hashes beside the way to the root, from the entry's side.
    pub(crate) path: Vec<Hash>,
    pub(crate) block: Value,
}

/// Why a proof shows nothing.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// It is none.
    #[error("not a proof: {0}")]
    Not(String),
    /// No block holds the entry yet.
    #[error("the entry is not sealed yet: nothing is shown; ask for its proof again later")]
    Unsealed,
    /// The block's header is not what its hash says.
    #[error("block {0} was changed: its hash is another")]
    Block(i64),
    /// The entry is not the one that was sealed.
    #[error("the entry is not in block {0}: it, its place or its path was changed")]
    Entry(i64),
}

impl Proof {
    /// Of an entry that no block holds.
    pub fn unsealed(entry: &Entry) -> Self {
        let line = serde_json::from_str(&entry.text).expect("it was spelled here");
        Self { format: PROOF.to_owned(), version: VERSION, line, sealed: None }
    }

    /// Of the entry at `index` of a block with these leaves.
    pub fn sealed(entry: &Entry, index: usize, leaves: &[Hash], block: &Block) -> Self {
        let path = path(leaves, index);
        let sealed = Sealed { index: index as u64, path, block: block.value() };
        Self { sealed: Some(sealed), ..Self::unsealed(entry) }
    }

    /// Whether a block holds the entry.
    pub fn is_sealed(&self) -> bool {
        self.sealed.is_some()
    }

    /// Its text: one line, without the line's end.
    pub fn text(&self) -> String {
        let value = serde_json::to_value(self).expect("numbers and texts");
        spelled(&value).expect("it was spelled before")
    }

    /// Reads a proof, and gives the block that its entry is in, and the deletion.
    ///
    /// Invariant (S9): the entry's hash, led along the path, is the block's root, and the block is what its hash
    /// says; `tests/chain.rs::a_proof_holds_for_its_entry_and_for_no_other`.
    pub fn check(text: &str) -> Result<(Block, DeletionId), ProofError> {
        let not = |what: String| ProofError::Not(what);
        let proof: Self = serde_json::from_str(text).map_err(|error| not(error.to_string()))?;
        if proof.format != PROOF || proof.version != VERSION {
            let Self { format, version, .. } = proof;
            return Err(not(format!("{format} {version} is not {PROOF} {VERSION}")));
        }
        let line = proof.line.to_string();
        let line: crate::verify::Line =
            serde_json::from_str(&line).map_err(|error| not(error.to_string()))?;
        let deletion = line.deletion().ok_or_else(|| not("its line is no entry".to_owned()))?;
        let Sealed { index, path, block: value } = proof.sealed.ok_or(ProofError::Unsealed)?;
        let block: Block =
            serde_json::from_value(value.clone()).map_err(|error| not(error.to_string()))?;
        if without_its_hash(&value, Kind::Block) != Some(block.hash) {
            return Err(ProofError::Block(block.number));
        }
        let entry = spelled(&proof.line).map_err(|error| not(error.to_string()))?;
        let leaf = Hash::leaf(entry.as_bytes());
        let leaves = u64::try_from(block.entries).unwrap_or_default();
        if root_by(leaf, index, leaves, &path) != Some(block.root) {
            return Err(ProofError::Entry(block.number));
        }
        Ok((block, deletion))
    }
}

/// The hash of an object's canonical spelling without its member `hash`.
pub(crate) fn without_its_hash(value: &Value, kind: Kind) -> Option<Hash> {
    let mut value = value.clone();
    value.as_object_mut()?.remove("hash");
    Some(Hash::of(kind, &[spelled(&value).ok()?.as_bytes()]))
}

pub(crate) fn spelled(value: &Value) -> Result<String, NotCanonical> {
    let mut out = Vec::with_capacity(512);
    canonical(value, &mut out)?;
    Ok(utf8(out))
}

fn utf8(spelled: Vec<u8>) -> String {
    String::from_utf8(spelled).expect("texts, and ASCII between them")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_stands_in_its_line_as_if_the_whole_line_were_spelled() {
        let receipt = json!({"b": [1, null, {"z": "\u{e9}\n", "a": true}], "a": "x"});
        let line = json!({"entry": -7, "receipt": receipt});
        assert_eq!(Entry::receipt(-7, &receipt).unwrap().text(), spelled(&line).unwrap());
        assert!(Entry::receipt(1, &json!({"a": 1.5})).is_err());
    }
}
