//! An export whose chain was checked from the first line to the last, and whose blocks are then read again.
//!
//! The file may be changed in between, so that what is read the second time is checked, too: a block's entries are handed
//! on when its root is right and its hash the one that was seen the first time.

use std::fs::File;
use std::io::{BufReader, Seek as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use chrono::{DateTime, Utc};
use tombstream_model::{Block, ChainCheck, End, ExportLine, Hash, ReceiptProblem};

use super::lines::Lines;

/// Problems that are said one by one.
const SAID_MAX: u64 = 20;

/// An export that can be believed.
#[derive(Debug)]
pub(in crate::command) struct CheckedExport {
    path: PathBuf,
    file: File,
    /// The hashes of its blocks, from the first on: 32 bytes for each.
    pub(in crate::command) blocks: Vec<Hash>,
    pub(in crate::command) end: End,
    /// How many receipts of the time that was asked for, or later, it has.
    pub(in crate::command) receipts: i64,
    /// When the last row of it was removed.
    pub(in crate::command) newest: Option<DateTime<Utc>>,
}

/// A block with its entries.
pub(in crate::command) type CheckedBlock = (Block, Vec<ExportLine>);

/// The blocks of a checked export, checked again as they are read.
pub(in crate::command) struct Blocks<'a> {
    lines: Lines<BufReader<File>>,
    check: ChainCheck,
    hashes: &'a [Hash],
    path: &'a Path,
    open: Option<CheckedBlock>,
    has_ended: bool,
}

impl CheckedExport {
    /// Reads and checks all of it, and says on stderr what is wrong. `head` was kept elsewhere, and must be in it; its receipts
    /// are counted that are of `since` or later.
    pub(in crate::command) fn open(
        path: &Path,
        head: Option<Hash>,
        since: Option<DateTime<Utc>>,
    ) -> anyhow::Result<Self> {
        let name = path.display();
        let file = File::open(path).with_context(|| format!("{name} can't be opened"))?;
        if !file.metadata().with_context(|| format!("{name} can't be read"))?.is_file() {
            bail!("{name} is no file: an export is read twice, so write it to one first");
        }
        let mut check = ChainCheck::with_head(head);
        let (mut blocks, mut end, mut said, mut receipts) = (Vec::new(), None, 0_u64, 0);
        let mut say = |problem: ReceiptProblem| {
            said += 1;
            if said <= SAID_MAX {
                eprintln!("{problem}");
            }
        };
        let again = file.try_clone().with_context(|| format!("{name} can't be read"))?;
        let mut lines = Lines::of(BufReader::with_capacity(1 << 18, again));
        while let Some(line) = lines.next().with_context(|| format!("{name} can't be read"))? {
            let text = String::from_utf8_lossy(line);
            check.line(&text, &mut say);
            match ExportLine::parse(&text) {
                Some(ExportLine::Block(block)) => blocks.push(block.hash),
                Some(ExportLine::End(last)) => end = Some(last),
                Some(ExportLine::Receipt { receipt, .. })
                    if since.is_none_or(|since| receipt.finalized_at >= since) =>
                {
                    receipts += 1;
                }
                _ => {}
            }
        }
        check.finish(&mut say);
        match (check.counts().problems, end) {
            (0, Some(end)) => {
                let newest = check.tally().span.map(|(_, last)| last);
                Ok(Self { path: path.to_owned(), file, blocks, end, receipts, newest })
            }
            (problems, _) => Err(anyhow!(
                "{name} is no whole export ({problems} problems): nothing of it is believed"
            )),
        }
    }

    /// Its blocks, from the first on.
    pub(in crate::command) fn blocks(&self) -> anyhow::Result<Blocks<'_>> {
        let unread = || format!("{} can't be read again", self.path.display());
        let mut file = self.file.try_clone().with_context(unread)?;
        file.rewind().with_context(unread)?;
        Ok(Blocks {
            lines: Lines::of(BufReader::with_capacity(1 << 18, file)),
            check: ChainCheck::default(),
            hashes: &self.blocks,
            path: &self.path,
            open: None,
            has_ended: false,
        })
    }
}

impl Blocks<'_> {
    /// The next block; none behind the last.
    pub(in crate::command) fn next(&mut self) -> anyhow::Result<Option<CheckedBlock>> {
        while !self.has_ended {
            let name = self.path.display();
            let line = self.lines.next().with_context(|| format!("{name} can't be read again"))?;
            let Some(line) = line else { bail!("{name} was cut while it was read") };
            let text = String::from_utf8_lossy(line);
            // A block is judged where the next one, or the end, follows.
            self.check.line(&text, &mut |_| {});
            if self.check.counts().problems > 0 {
                bail!("{name} was changed while it was read: nothing more of it is believed");
            }
            let mut whole = None;
            match ExportLine::parse(&text) {
                Some(ExportLine::Block(block)) => whole = self.open.replace((block, Vec::new())),
                Some(ExportLine::End(_)) => {
                    self.has_ended = true;
                    whole = self.open.take();
                }
                Some(ExportLine::Header) | None => {}
                Some(entry @ (ExportLine::Receipt { .. } | ExportLine::Closed { .. })) => {
                    if let Some((_, entries)) = &mut self.open {
                        entries.push(entry);
                    }
                }
            }
            if let Some((block, entries)) = whole {
                let place = usize::try_from(block.number - 1).unwrap_or(usize::MAX);
                if self.hashes.get(place) != Some(&block.hash) {
                    bail!("{name} is another export than it was: nothing more of it is believed");
                }
                return Ok(Some((block, entries)));
            }
        }
        Ok(None)
    }
}
