//! Lines of a file, one by one, of bounded length.

use std::io::{BufRead, Read as _};

use anyhow::bail;

/// Longest line that is read: far above a receipt's, far below a machine's memory.
const LINE_MAX: u64 = 16 << 20;

/// The lines of a file, without their ends.
pub(super) struct Lines<R> {
    from: R,
    number: u64,
    line: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn of(from: R) -> Self {
        Self { from, number: 0, line: Vec::new() }
    }

    /// The next line; none behind the last.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<&[u8]>> {
        self.line.clear();
        if self.from.by_ref().take(LINE_MAX).read_until(b'\n', &mut self.line)? == 0 {
            return Ok(None);
        }
        self.number += 1;
        if self.line.pop_if(|end| *end == b'\n').is_none() {
            let number = self.number;
            bail!("line {number} has no end: the file was cut, or is no list of receipts");
        }
        Ok(Some(&self.line))
    }
}
