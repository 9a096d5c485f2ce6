//! An export of receipts, read back: what each of its lines is.
//!
//! Owned here: [`ExportLine`]. Left to others: whether the lines are right ([`crate::ChainCheck`]: nothing that is read
//! here is to be believed before), and files.

use serde_json::Value;

use crate::verify::Line;
use crate::{Block, Closed, End, Receipt};

/// One line of an export.
#[derive(Clone, Debug, PartialEq)]
pub enum ExportLine {
    /// What says that this is an export.
    Header,
    /// The header of a block, whose entries follow.
    Block(Block),
    /// A receipt.
    Receipt {
        /// The entry's number.
        entry: i64,
        /// What it says.
        receipt: Box<Receipt>,
        /// The same as it was read: a later version may have written more than [`Receipt`] knows.
        value: Value,
    },
    /// What closes a receipt.
    Closed {
        /// The entry's number.
        entry: i64,
        /// What it says.
        closed: Closed,
    },
    /// The last line.
    End(End),
}

impl ExportLine {
    /// Reads a line; none where it is no line of an export.
    pub fn parse(text: &str) -> Option<Self> {
        let line: Line = serde_json::from_str(text).ok()?;
        let entry = line.deletion().and(line.entry);
        Some(match line {
            Line { receipt: Some(receipt), .. } => {
                let mut whole: Value = serde_json::from_str(text).ok()?;
                let value = whole.get_mut("receipt")?.take();
                Self::Receipt { entry: entry?, receipt: Box::new(receipt), value }
            }
            Line { closed: Some(closed), .. } => Self::Closed { entry: entry?, closed },
            Line { block: Some(block), .. } => Self::Block(block),
            Line { end: Some(end), .. } => Self::End(end),
            Line { format: Some(_), .. } => Self::Header,
            Line { .. } => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Hash, export_header};

    #[test]
    fn each_line_of_an_export_reads_back_as_what_it_is() {
        assert_eq!(ExportLine::parse(&export_header()), Some(ExportLine::Header));
        let end = End::new(0, 0, Hash::ZERO, 3);
        assert_eq!(ExportLine::parse(&end.text()), Some(ExportLine::End(end)));
        let closed = r#"{"entry":7,"closed":{"deletion_id":1,"removed_lsn":"0/1","seen_at":"2026-01-01T00:00:00Z"}}"#;
        let Some(ExportLine::Closed { entry: 7, closed }) = ExportLine::parse(closed) else {
            panic!("it closes a receipt")
        };
        assert_eq!(closed.removed_lsn, "0/1");
        for text in ["", "{}", "null", r#"{"entry":7}"#, r#"{"what":1}"#] {
            assert_eq!(ExportLine::parse(text), None, "{text}");
        }
    }
}
