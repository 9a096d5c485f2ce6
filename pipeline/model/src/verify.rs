//! Reads an export of receipts, line by line, and says what is wrong with it and where.
//!
//! Owned here: [`ChainCheck`]. Left to others: files, and what is printed. It holds one hash a level of a
//! block's tree, and two bits a deletion.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use crate::chain::{EXPORT, VERSION, spelled, without_its_hash};
use crate::merkle::{Hash, Kind};
use crate::receipt::{Receipt, ReceiptProblem, ReceiptTally};
use crate::{Block, Closed, DeletionId, End, Tree};

/// Reads the lines of an export in their order, and keeps count.
///
/// Invariant (S9): what was changed, dropped, added or moved does not give the roots, and what was cut has
/// no end, or another head; `tests/chain.rs::of_a_thousand_mutations_all_are_found`.
#[derive(Debug, Default)]
pub struct ChainCheck {
    line: u64,
    /// A head that somebody kept, and the block that it was found at.
    kept: Option<(Hash, Option<i64>)>,
    has_header: bool,
    open: Option<Open>,
    /// The last block's number and hash.
    last: Option<(i64, Hash)>,
    last_entry: Option<i64>,
    end: Option<End>,
    counts: Counts,
    receipts: Numbers,
    closed: Numbers,
    tally: ReceiptTally,
}

/// What an export holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Blocks.
    pub blocks: i64,
    /// Entries.
    pub entries: i64,
    /// Of them what closes a receipt.
    pub closed: i64,
    /// What is wrong.
    pub problems: u64,
}

/// A block whose entries are being read.
#[derive(Debug)]
struct Open {
    block: Block,
    line: u64,
    tree: Tree,
    deletions: Option<(DeletionId, DeletionId)>,
}

/// One line, whatever it is.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Line {
    pub(crate) format: Option<String>,
    version: Option<u32>,
    pub(crate) block: Option<Block>,
    pub(crate) entry: Option<i64>,
    pub(crate) receipt: Option<Receipt>,
    pub(crate) closed: Option<Closed>,
    pub(crate) end: Option<End>,
}

impl Line {
    /// Whose entry it is; none if it is no entry.
    pub(crate) fn deletion(&self) -> Option<DeletionId> {
        match self {
            Self {
                format: None,
                version: None,
                block: None,
                entry: Some(_),
                receipt,
                closed,
                end: None,
            } => match (receipt, closed) {
                (Some(receipt), None) => Some(receipt.deletion_id),
                (None, Some(closed)) => Some(closed.deletion_id),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Numbers that were seen, one bit each: deletions are counted from 1, without large gaps.
#[derive(Debug, Default)]
struct Numbers(HashMap<i64, Box<[u64; 64]>>);

impl Numbers {
    fn place(number: i64) -> (i64, usize, u64) {
        let bit = number.rem_euclid(4_096) as usize;
        (number.div_euclid(4_096), bit / 64, 1 << (bit % 64))
    }

    /// Notes a number. False: it was there.
    fn insert(&mut self, number: i64) -> bool {
        let (page, word, bit) = Self::place(number);
        let word = &mut self.0.entry(page).or_insert_with(|| Box::new([0; 64]))[word];
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    fn contains(&self, number: i64) -> bool {
        let (page, word, bit) = Self::place(number);
        self.0.get(&page).is_some_and(|page| page[word] & bit != 0)
    }
}

impl ChainCheck {
    /// What no export can show.
    pub const NOT_SHOWN: &'static str = "not shown: that nobody has made a copy since; and, without a head \
        that was kept elsewhere (--head), that whoever owns the ledger has not sealed another history";

    /// A check that looks for `head`, too: the hash of the last block at some earlier time.
    pub fn with_head(head: Option<Hash>) -> Self {
        Self { kept: head.map(|head| (head, None)), ..Self::default() }
    }

    /// Takes the next line, without its end, and tells `say` what is wrong.
    pub fn line(&mut self, text: &str, say: &mut impl FnMut(ReceiptProblem)) {
        self.line += 1;
        let line = self.line;
        let mut wrong = 0;
        let mut say = |what: String| {
            wrong += 1;
            say(ReceiptProblem { line, what });
        };
        match serde_json::from_str::<Line>(text) {
            Ok(parsed) => self.take(parsed, text, &mut say),
            Err(error) => say(format!("not a line of an export: {error}")),
        }
        self.counts.problems += wrong;
    }

    /// Says what is wrong with the whole: to be called after the last line.
    pub fn finish(&mut self, say: &mut impl FnMut(ReceiptProblem)) {
        let line = self.line;
        let mut wrong = 0;
        let mut say = |what: String| {
            wrong += 1;
            say(ReceiptProblem { line, what });
        };
        if self.end.is_none() {
            self.close(&mut say);
            say("there is no closing line: the export was cut".to_owned());
        }
        if let Some((head, None)) = self.kept {
            say(format!(
                "head {head} is of none of these blocks: they are not what was sealed when it was kept"
            ));
        }
        self.counts.problems += wrong;
    }

    /// What was counted; its problems alone are counted as they are said.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// What the receipts add up to.
    pub fn tally(&self) -> &ReceiptTally {
        &self.tally
    }

    /// The last block's hash: what to keep elsewhere.
    pub fn head(&self) -> Option<Hash> {
        self.last.map(|(_, hash)| hash)
    }

    /// The block that the kept head is of.
    pub fn found_at(&self) -> Option<i64> {
        self.kept.and_then(|(_, block)| block)
    }

    /// How many entries were not sealed yet when the export was made.
    pub fn unsealed(&self) -> Option<i64> {
        self.end.map(|end| end.unsealed)
    }

    fn take(&mut self, line: Line, text: &str, say: &mut impl FnMut(String)) {
        if self.end.is_some() {
            return say("behind the closing line".to_owned());
        }
        if let Line {
            format: Some(format),
            version: Some(version),
            block: None,
            entry: None,
            receipt: None,
            closed: None,
            end: None,
        } = &line
        {
            if self.line != 1 {
                return say("a second header".to_owned());
            }
            self.has_header = true;
            if format != EXPORT || *version != VERSION {
                say(format!("{format} {version} is not {EXPORT} {VERSION}"));
            }
            return;
        }
        if !self.has_header {
            self.has_header = true; // Said once.
            say(format!("the first line does not say that this is {EXPORT} {VERSION}"));
        }
        let value: Value = match serde_json::from_str(text) {
            Ok(value) => value,
            Err(error) => return say(format!("not a line of an export: {error}")),
        };
        let deletion = line.deletion();
        match line {
            Line { entry: Some(number), receipt, closed, .. } if deletion.is_some() => {
                self.entry(number, receipt, closed, &value, say);
            }
            Line {
                block: Some(block),
                format: None,
                version: None,
                entry: None,
                receipt: None,
                closed: None,
                end: None,
            } => self.block(block, &value["block"], say),
            Line {
                end: Some(end),
                format: None,
                version: None,
                block: None,
                entry: None,
                receipt: None,
                closed: None,
            } => self.end(end, &value["end"], say),
            _ => say("neither a block, nor an entry, nor the closing line".to_owned()),
        }
    }

    fn entry(
        &mut self,
        number: i64,
        receipt: Option<Receipt>,
        closed: Option<Closed>,
        value: &Value,
        say: &mut impl FnMut(String),
    ) {
        self.counts.entries += 1;
        if let Some(last) = self.last_entry.replace(number).filter(|last| *last >= number) {
            say(format!(
                "entry {number} comes after entry {last}: it was moved, or is there twice"
            ));
        }
        let Some(open) = &mut self.open else {
            return say(format!("entry {number} is in no block"));
        };
        match spelled(value) {
            Ok(entry) => open.tree.push(Hash::leaf(entry.as_bytes())),
            Err(error) => return say(format!("entry {number}: {error}")),
        }
        let mut of_block = |id: DeletionId| {
            let (first, last) = open.deletions.unwrap_or((id, id));
            open.deletions = Some((first.min(id), last.max(id)));
        };
        if let Some(receipt) = receipt {
            let id = receipt.deletion_id;
            of_block(id);
            if !self.receipts.insert(id.0) {
                say(format!("a second receipt of deletion {id}"));
            }
            match receipt.check() {
                Ok(()) => self.tally.add(&receipt),
                Err(what) => say(what),
            }
        }
        if let Some(closed) = closed {
            let id = closed.deletion_id;
            of_block(id);
            self.counts.closed += 1;
            if !self.closed.insert(id.0) {
                say(format!("deletion {id} is closed a second time"));
            }
            if !self.receipts.contains(id.0) {
                say(format!("deletion {id} is closed, and its receipt does not stand before"));
            }
            if closed.removed_lsn.parse::<crate::Lsn>().is_err() {
                say(format!("deletion {id}: {:?} is no place in the log", closed.removed_lsn));
            }
        }
    }

    fn block(&mut self, block: Block, value: &Value, say: &mut impl FnMut(String)) {
        self.close(say);
        self.counts.blocks += 1;
        let number = block.number;
        if without_its_hash(value, Kind::Block) != Some(block.hash) {
            say(format!("block {number}: its hash is another: its header was changed"));
        }
        let (before, hash) = self.last.unwrap_or((0, Hash::ZERO));
        if number != before + 1 {
            say(format!("block {number} comes after block {before}: one was dropped, or moved"));
        } else if block.previous != hash {
            say(format!(
                "block {number} does not follow block {before}: it was sealed on another history"
            ));
        }
        if block.entries < 1 {
            say(format!("block {number} is empty"));
        }
        if let Some((head, found)) = &mut self.kept
            && *head == block.hash
        {
            *found = Some(number);
        }
        self.last = Some((number, block.hash));
        self.open = Some(Open { block, line: self.line, tree: Tree::default(), deletions: None });
    }

    /// Judges the block whose last entry was read.
    fn close(&mut self, say: &mut impl FnMut(String)) {
        let Some(Open { block, line, tree, deletions }) = self.open.take() else { return };
        let number = block.number;
        let of = deletions.map_or(String::new(), |(first, last)| {
            format!(" (deletions {first} to {last}, from line {line} on)")
        });
        let found = i64::try_from(tree.leaves()).unwrap_or(i64::MAX);
        if found != block.entries {
            let says = block.entries;
            say(format!("block {number}{of} says that it has {says} entries, and has {found}"));
        } else if tree.root() != Some(block.root) {
            say(format!(
                "block {number}{of}: its entries do not give its root: one was changed, replaced or moved"
            ));
        } else if self.last_entry != Some(block.last) {
            let last = block.last;
            say(format!("block {number}{of} says that its last entry is {last}, and it is not"));
        }
    }

    fn end(&mut self, end: End, value: &Value, say: &mut impl FnMut(String)) {
        self.close(say);
        if without_its_hash(value, Kind::End) != Some(end.hash) {
            say("the closing line was changed: its hash is another".to_owned());
        }
        let Counts { blocks, entries, .. } = self.counts;
        if (end.blocks, end.entries) != (blocks, entries) {
            say(format!(
                "the closing line says {} blocks and {} entries; there are {blocks} and {entries}",
                end.blocks, end.entries
            ));
        }
        let head = self.last.map_or(Hash::ZERO, |(_, hash)| hash);
        if end.head != head {
            say(format!("the closing line says head {}, and the last block is {head}", end.head));
        }
        self.end = Some(end);
    }
}
