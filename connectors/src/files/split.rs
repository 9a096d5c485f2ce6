//! Bytes to lines, each with its place. No I/O.
//!
//! A line that is too long is cut: its beginning is kept, the rest goes by unheld. What was taken stays
//! for a while, so that a position can be told with what stands before it.

use std::ops::Range;

use sha2::{Digest as _, Sha256};

/// The bytes before a position that tell what stood there. A part of what is kept: not to be changed.
pub(super) const TAIL: u64 = 1_024;
/// What is kept of a line that is too long: enough to see what it is, little enough that a batch of dead
/// letters stays far below what Postgres takes in one statement.
const HEAD: usize = 64 << 10;

/// How many bytes before `place` are looked at.
pub(super) fn tail_length(place: u64) -> u64 {
    place.min(TAIL)
}

/// The bytes of one file from some place on, of which lines are taken.
pub(super) struct Split {
    /// From `start` on. What was taken is before `cursor`.
    buffer: Vec<u8>,
    start: u64,
    cursor: usize,
    /// Before it, and not before the cursor, there is no line feed.
    searched: usize,
    line_max: usize,
    /// A line that is too long, of which the end was not seen yet.
    cut: Option<Cut>,
}

struct Cut {
    at: u64,
    head: Vec<u8>,
    length: u64,
}

/// A line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Where it begins.
    pub(super) at: u64,
    pub(super) line: Piece,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// All of it, without the line feed: a part of [`Split::bytes`].
    Whole(Range<usize>),
    /// How it begins, and how long it is without the line feed.
    Cut { head: Vec<u8>, length: u64 },
}

impl Split {
    /// The bytes that come stand at `start` in their file.
    pub(super) fn new(start: u64, line_max: usize) -> Self {
        let buffer = Vec::new();
        Self { buffer, start, cursor: 0, searched: 0, line_max, cut: None }
    }

    /// Where the next line begins. While one is being cut, that is no place to go on from.
    pub(super) fn place(&self) -> u64 {
        self.start + self.cursor as u64
    }

    /// Whether everything was taken.
    pub(super) fn is_empty(&self) -> bool {
        self.cursor == self.buffer.len() && self.cut.is_none()
    }

    /// Whether the line that is being looked for is too long, and will be cut.
    pub(super) fn is_too_long(&self) -> bool {
        self.buffer.len() - self.cursor > self.line_max
    }

    /// Whether the beginning of a line that is too long was taken.
    pub(super) fn is_cutting(&self) -> bool {
        self.cut.is_some()
    }

    /// Lets `fill` append to the bytes, which makes room first.
    pub(super) fn fill<T>(&mut self, fill: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        if self.is_cutting() || self.is_too_long() {
            self.cut_until(self.buffer.len());
        }
        let gone = self.cursor.saturating_sub(TAIL as usize);
        // Now and then is enough: what is left has to be moved.
        if gone > self.buffer.len() / 2 {
            self.buffer.drain(..gone);
            self.start += gone as u64;
            self.cursor -= gone;
            self.searched -= gone;
        }
        fill(&mut self.buffer)
    }

    /// Takes what is before `place`, as far as it is here. Says whether all of it was.
    pub(super) fn skip_to(&mut self, place: u64) -> bool {
        let here = self.start + self.buffer.len() as u64;
        let to = place.min(here).max(self.place());
        self.cursor = usize::try_from(to - self.start).expect("it is in the buffer");
        self.searched = self.cursor;
        to == place
    }

    /// What the bytes before the next line were, as a digest.
    pub(super) fn tail(&self) -> String {
        let from = self.cursor.saturating_sub(TAIL as usize);
        debug_assert_eq!((self.cursor - from) as u64, tail_length(self.place()));
        hex::encode(Sha256::digest(&self.buffer[from..self.cursor]))
    }

    /// All bytes that are here.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    /// Takes the next line. `ended`: nothing comes any more, so that what is left is a line too.
    pub(super) fn take(&mut self, ended: bool) -> Option<Found> {
        let feed = memchr::memchr(b'\n', &self.buffer[self.searched..]);
        let (end, next) = match feed {
            Some(at) => (self.searched + at, self.searched + at + 1),
            None => {
                self.searched = self.buffer.len();
                if !ended || self.is_empty() {
                    return None;
                }
                (self.buffer.len(), self.buffer.len())
            }
        };
        if self.cut.is_some() || end - self.cursor > self.line_max {
            self.cut_until(end);
        }
        let (at, line) = match self.cut.take() {
            Some(Cut { at, head, length }) => (at, Piece::Cut { head, length }),
            None => (self.place(), Piece::Whole(self.cursor..end)),
        };
        self.cursor = next;
        self.searched = next;
        Some(Found { at, line })
    }

    /// Gives a line back that was just taken. It may not be one that was cut.
    pub(super) fn put_back(&mut self, at: u64) {
        self.cursor = usize::try_from(at - self.start).expect("it is in the buffer");
        self.searched = self.cursor;
    }

    /// Takes the part of a line up to `end`, and keeps its beginning alone.
    fn cut_until(&mut self, end: usize) {
        let part = &self.buffer[self.cursor..end];
        let at = self.start + self.cursor as u64;
        let cut = self.cut.get_or_insert_with(|| Cut { at, head: Vec::new(), length: 0 });
        let room = HEAD.min(self.line_max).saturating_sub(cut.head.len()).min(part.len());
        cut.head.extend_from_slice(&part[..room]);
        cut.length += part.len() as u64;
        self.cursor = end;
        self.searched = end;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every line that comes of `blocks`, with its place; a cut one as how it begins, `…` and its length.
    fn split(blocks: &[&[u8]], line_max: usize, ended: bool) -> (Vec<(u64, String)>, u64) {
        let mut split = Split::new(0, line_max);
        let mut lines = Vec::new();
        let mut take = |split: &mut Split, ended| {
            while let Some(found) = split.take(ended) {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                lines.push(match found.line {
                    Piece::Whole(range) => (found.at, text(&split.bytes()[range])),
                    Piece::Cut { head, length } => (found.at, format!("{}…{length}", text(&head))),
                });
            }
        };
        for block in blocks {
            split.fill(|buffer| buffer.extend_from_slice(block));
            take(&mut split, false);
        }
        if ended {
            take(&mut split, true);
        }
        (lines, split.place())
    }

    fn owned(lines: &[(u64, &str)]) -> Vec<(u64, String)> {
        lines.iter().map(|(at, line)| (*at, (*line).to_owned())).collect()
    }

    #[test]
    fn each_line_has_its_place() {
        let lines = owned(&[(0, "a"), (2, ""), (3, "bcd"), (7, "e\r")]);
        assert_eq!(split(&[b"a\n\nbc", b"d\ne\r\n"], 100, false), (lines, 10));
    }

    #[test]
    fn a_line_without_its_end_is_one_only_when_nothing_more_comes() {
        assert_eq!(split(&[b"a\nbc"], 100, false), (owned(&[(0, "a")]), 2));
        assert_eq!(split(&[b"a\nbc"], 100, true), (owned(&[(0, "a"), (2, "bc")]), 4));
        assert_eq!(split(&[b"a\n"], 100, true), (owned(&[(0, "a")]), 2));
        assert_eq!(split(&[], 100, true), (vec![], 0));
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_and_the_next_one_is_whole() {
        let lines = owned(&[(0, "12345"), (6, "abcde…8"), (15, "x")]);
        for blocks in [
            &[&b"12345\nabcdefgh\nx\n"[..]][..],
            &[b"12345\nabc", b"defg", b"h", b"\nx\n"],
            &[b"12345\nabcdef", b"gh\n", b"x\n"],
        ] {
            assert_eq!(split(blocks, 5, false), (lines.clone(), 17), "{blocks:?}");
        }
        assert_eq!(split(&[b"abcdefgh"], 5, true), (owned(&[(0, "abcde…8")]), 8));
        assert_eq!(split(&[b"abcdef", b"gh"], 5, true), (owned(&[(0, "abcde…8")]), 8));
    }

    #[test]
    fn a_line_that_is_too_long_takes_no_memory() {
        let mut split = Split::new(0, 1_000);
        for _ in 0..1_000 {
            split.fill(|buffer| buffer.extend_from_slice(&[b'x'; 10_000]));
            assert_eq!(split.take(false), None);
            assert!(split.buffer.len() < 100_000, "{}", split.buffer.len());
        }
        split.fill(|buffer| buffer.extend_from_slice(b"\n"));
        let found = split.take(false).unwrap();
        let Piece::Cut { head, length } = found.line else { panic!("{found:?}") };
        assert_eq!((found.at, head.len(), length), (0, 1_000, 10_000_000));
    }

    #[test]
    fn a_line_can_be_given_back() {
        let mut split = Split::new(0, 100);
        split.fill(|buffer| buffer.extend_from_slice(b"a\nb\nc\n"));
        split.take(false).unwrap();
        let tail = split.tail();
        let second = split.take(false).unwrap();
        split.put_back(second.at);
        assert_eq!((split.place(), split.tail()), (2, tail));
        assert_eq!(split.take(false), Some(second));
    }

    proptest! {
        /// However the bytes come, and wherever reading begins: the same lines at the same places, and the
        /// same digest at each place.
        #[test]
        fn blocks_and_beginnings_change_nothing(
            text in "([a-c]{0,900}\n){0,12}[a-c]{0,5}",
            sizes in proptest::collection::vec(1_usize..2_000, 1..10),
            line_max in 1_usize..1_000,
        ) {
            let read = |from: u64| {
                let mut split = Split::new(from - tail_length(from), line_max);
                let mut rest = &text.as_bytes()[(from - tail_length(from)) as usize..];
                let mut sizes = sizes.iter().cycle();
                let (mut lines, mut skipped) = (Vec::new(), false);
                loop {
                    let (block, left) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
                    rest = left;
                    split.fill(|buffer| buffer.extend_from_slice(block));
                    skipped = skipped || split.skip_to(from);
                    if skipped {
                        while let Some(found) = split.take(rest.is_empty()) {
                            lines.push((found.at, split.place(), split.tail()));
                        }
                    }
                    if rest.is_empty() {
                        return lines;
                    }
                }
            };
            let all = read(0);
            let lines = text.split_inclusive('\n').count();
            prop_assert_eq!(all.len(), lines);
            prop_assert_eq!(all.last().map_or(0, |line| line.1), text.len() as u64);
            for (index, (_, next, _)) in all.iter().enumerate() {
                prop_assert_eq!(&read(*next)[..], &all[index + 1..]);
            }
        }
    }
}
