//! One file that is being read: its blocks, what is in them, and how far its lines were given away.

use std::collections::HashSet;
use std::io::{self, ErrorKind};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use tokio::task::JoinHandle;
use tombstream_model::{Event, Origin};

use super::line;
use super::place::{Block, Entry, Fault, Place};
use super::split::{Found, Piece, Split, tail_length};
use super::unpack::{Packing, Unpack, Unpacked};
use crate::positions::Position;

/// Bytes that are asked for at once. 4 MiB: some thousand events, and a store's answer takes longer than
/// its way. Two blocks are held, one that is read and one that comes.
const BLOCK: u64 = 4 << 20;
/// Bytes that are unpacked at once.
const UNPACK: usize = 64 << 10;
/// How often that is done in one go: what is passed over, or empty, may be gigabytes.
const UNPACKS_MAX: usize = 64;
/// Bytes of values after which a poll is full, though it has few events.
const POLL_BYTES: usize = 8 << 20;

/// What all files of a source share.
#[derive(Debug)]
pub(super) struct Limits {
    /// The topic of lines that name none.
    pub(super) topic: Arc<str>,
    pub(super) items_max: usize,
    pub(super) line_max: usize,
    /// Whether a last line without its end is left for later.
    pub(super) follow: bool,
    /// Topics of which nothing more is read.
    pub(super) paused: HashSet<String>,
}

/// What reading a bit further brought.
#[derive(Debug)]
pub(super) enum Step {
    /// Lines, and where reading stands after them. There may be none: then the position alone is news.
    Lines(Vec<Event>, Position),
    /// The next block is needed.
    Hungry,
    /// Nothing yet, and others want their turn.
    Later,
    /// The next line is of a topic that is paused.
    Paused,
    /// Everything was read.
    End,
}

/// Why a file can't be read on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// It is not what it was.
    #[error("what stands before byte {at} is not what was read there: it was replaced or changed")]
    Replaced { at: u64 },
    /// It is shorter than what was read of it.
    #[error("it ends at byte {length}, and {at} bytes of it were read: it was cut or replaced")]
    Shrunk { length: u64, at: u64 },
    /// Compressed, and it ends in the middle.
    #[error("it ends in the middle of its {packing} stream, after byte {at} of what is in it")]
    Torn { packing: &'static str, at: u64 },
    /// Compressed, and broken.
    #[error("its {packing} stream is broken after byte {at} of what is in it ({said})")]
    Broken { packing: &'static str, at: u64, said: String },
    /// Compressed, and another version came while it was read.
    #[error("it changed while it was read")]
    Changed,
}

/// A file that is being read.
pub(super) struct File {
    pub(super) entry: Entry,
    place: Place,
    /// Up to here blocks were asked for, in bytes as they are stored.
    asked: u64,
    asking: Option<Asking>,
    /// Of a plain file: the last bytes of the block before.
    before: Option<Bytes>,
    unpack: Unpack,
    split: Split,
    /// Where reading goes on, and what must stand before it; none once that was looked at.
    begin: Option<Position>,
    /// What was told last of where reading stands.
    told: Position,
    /// Everything is in `split`.
    unpacked: bool,
    broken: Option<io::Error>,
    /// The last topic a line named: most name the same one.
    topic: Arc<str>,
}

/// A block that was asked for. Giving the file up gives it up.
struct Asking(JoinHandle<Result<Block, Fault>>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl File {
    /// Reads `entry` on from `position`, or from its beginning.
    pub(super) fn open(
        place: &Place,
        entry: Entry,
        position: Option<Position>,
        limits: &Limits,
    ) -> io::Result<Self> {
        let next = position.as_ref().map_or(0, |position| position.next);
        // What is packed has to be unpacked from its beginning.
        let start = match entry.packing {
            Packing::Plain => next - tail_length(next),
            Packing::Gzip | Packing::Zstd => 0,
        };
        let split = Split::new(start, limits.line_max);
        let told = position.clone().unwrap_or_else(|| Position {
            next: 0,
            tail: Split::new(0, 0).tail(),
            whole: None,
        });
        let mut file = Self {
            place: place.clone(),
            asked: start,
            asking: None,
            before: None,
            unpack: Unpack::new(entry.packing)?,
            split,
            begin: Some(told.clone()),
            told,
            unpacked: false,
            broken: None,
            topic: Arc::clone(&limits.topic),
            entry,
        };
        file.ask();
        Ok(file)
    }

    /// Asks for the next block, ahead of its need.
    fn ask(&mut self) {
        if self.asked >= self.entry.size {
            return;
        }
        let end = (self.asked + BLOCK).min(self.entry.size);
        let range = self.asked - self.overlap()..end;
        self.asked = end;
        let (place, entry) = (self.place.clone(), self.entry.clone());
        let asked = tokio::spawn(async move { place.read(&entry, range).await });
        self.asking = Some(Asking(asked));
    }

    /// How many bytes of a block were in the one before it: they tell that the file is the same still,
    /// though it grew. The first block of a file that is read on begins before its position for the same
    /// reason; that part is looked at when it is skipped.
    fn overlap(&self) -> u64 {
        self.before.as_ref().map_or(0, |before| before.len() as u64)
    }

    /// Waits for the next block. Dropping the future loses nothing.
    pub(super) async fn block(&mut self) -> Result<Result<(), Trouble>, Fault> {
        let Some(Asking(asked)) = &mut self.asking else {
            self.unpack.feed(Bytes::new(), true);
            return Ok(Ok(()));
        };
        let done = asked.await;
        self.asking = None;
        let block = done.map_err(|error| Fault::Unavailable {
            what: format!("{} can't be read", self.entry.name),
            source: Box::new(error),
        })??;
        Ok(self.take(block))
    }

    fn take(&mut self, Block { mut bytes, version }: Block) -> Result<(), Trouble> {
        match self.entry.packing {
            Packing::Plain => {
                if let Some(before) = &self.before {
                    if !bytes.starts_with(before) {
                        return Err(Trouble::Replaced { at: self.split.place() });
                    }
                    bytes.advance(before.len());
                }
                let length =
                    usize::try_from(tail_length(bytes.len() as u64)).expect("1,024 at most");
                let tail = &bytes[bytes.len() - length..];
                self.before = Some(Bytes::copy_from_slice(tail));
            }
            Packing::Gzip | Packing::Zstd => {
                if version != self.entry.version {
                    return Err(Trouble::Changed);
                }
            }
        }
        self.unpack.feed(bytes, self.asked == self.entry.size);
        self.ask();
        Ok(())
    }

    /// Reads a bit further. What was read before trouble comes before it.
    pub(super) fn step(&mut self, limits: &Limits) -> Result<Step, Trouble> {
        let mut events = Vec::new();
        let mut bytes = 0;
        for _ in 0..UNPACKS_MAX {
            if self.has_arrived()? {
                loop {
                    if events.len() >= limits.items_max || bytes >= POLL_BYTES {
                        return Ok(self.tell(events));
                    }
                    match self.line(limits) {
                        Line::Event(event) => {
                            bytes += event.value.as_ref().map_or(0, Bytes::len);
                            events.push(event);
                        }
                        Line::Empty => {}
                        Line::Paused if events.is_empty() => return Ok(Step::Paused),
                        Line::Paused => return Ok(self.tell(events)),
                        Line::None => break,
                    }
                }
            }
            // Each poll ends behind a line: where one is cut, there is no place to go on from.
            if !events.is_empty() && self.split.is_too_long() {
                return Ok(self.tell(events));
            }
            match self.more() {
                More::Some => {}
                _ if !events.is_empty() => return Ok(self.tell(events)),
                More::Hungry => return Ok(Step::Hungry),
                More::None => return self.end(),
                More::Broken(trouble) => return Err(trouble),
            }
        }
        Ok(if events.is_empty() { Step::Later } else { self.tell(events) })
    }

    /// Whether reading is where it goes on.
    fn has_arrived(&mut self) -> Result<bool, Trouble> {
        let Some(begin) = &self.begin else { return Ok(true) };
        if !self.split.skip_to(begin.next) {
            return Ok(false);
        }
        if self.split.tail() != begin.tail {
            return Err(Trouble::Replaced { at: begin.next });
        }
        self.begin = None;
        Ok(true)
    }

    fn line(&mut self, limits: &Limits) -> Line {
        // A plain file that is followed may get the rest of its last line later.
        let ended = self.unpacked && !(limits.follow && self.entry.packing == Packing::Plain);
        let Some(Found { at, line }) = self.split.take(ended) else { return Line::None };
        let (topic, key, value) = match line {
            // It is not held back, whatever is paused: how it begins is all that is left of it.
            Piece::Cut { head, length } => {
                let value = line::cut(&head, length, limits.line_max);
                (Arc::clone(&limits.topic), None, Some(value))
            }
            Piece::Whole(range) => {
                let line = line::read(&self.split.bytes()[range], at == 0);
                let Some(line::Line { topic, key, value }) = line else { return Line::Empty };
                let topic = match topic {
                    Some(topic) if *topic == *self.topic => Arc::clone(&self.topic),
                    Some(topic) => {
                        self.topic = topic.into();
                        Arc::clone(&self.topic)
                    }
                    None => Arc::clone(&limits.topic),
                };
                if limits.paused.contains(&*topic) {
                    self.split.put_back(at);
                    return Line::Paused;
                }
                (topic, key, value)
            }
        };
        let offset = i64::try_from(at).expect("no file has 8 EiB");
        let origin = Origin { topic: Arc::clone(&self.entry.name), partition: 0, offset };
        Line::Event(Event { origin, topic: Some(topic), key, value })
    }

    /// Unpacks a bit more.
    fn more(&mut self) -> More {
        if let Some(error) = &self.broken {
            return More::Broken(self.trouble(error));
        }
        if self.unpacked {
            return More::None;
        }
        let unpack = &mut self.unpack;
        match self.split.fill(|bytes| unpack.read(bytes, UNPACK)) {
            Ok(Unpacked::Some) => More::Some,
            Ok(Unpacked::Hungry) => More::Hungry,
            // Once more for the last line, which may have no end.
            Ok(Unpacked::End) => {
                self.unpacked = true;
                More::Some
            }
            Err(error) => {
                let trouble = self.trouble(&error);
                self.broken = Some(error);
                More::Broken(trouble)
            }
        }
    }

    /// The lines, and where reading stands behind them.
    fn tell(&mut self, events: Vec<Event>) -> Step {
        self.told = self.position();
        Step::Lines(events, self.told.clone())
    }

    fn position(&self) -> Position {
        let whole = self.unpacked && self.split.is_empty();
        Position {
            next: self.split.place(),
            tail: self.split.tail(),
            whole: whole.then(|| self.entry.version.clone()),
        }
    }

    fn end(&mut self) -> Result<Step, Trouble> {
        if let Some(begin) = &self.begin {
            return Err(Trouble::Shrunk { length: self.split.place(), at: begin.next });
        }
        // The half of a line that is too long stays unread, as that of any other.
        if self.split.is_cutting() || self.position() == self.told {
            return Ok(Step::End);
        }
        Ok(self.tell(Vec::new()))
    }

    fn trouble(&self, error: &io::Error) -> Trouble {
        let (packing, at) = (self.entry.packing.name(), self.told.next);
        match error.kind() {
            ErrorKind::UnexpectedEof => Trouble::Torn { packing, at },
            _ => Trouble::Broken { packing, at, said: error.to_string() },
        }
    }
}

/// A look for a line.
enum Line {
    Event(Event),
    /// There is nothing in it.
    Empty,
    /// Its topic is paused; it was not taken.
    Paused,
    /// The end of it is not here.
    None,
}

/// A look for more bytes.
enum More {
    Some,
    Hungry,
    None,
    Broken(Trouble),
}
