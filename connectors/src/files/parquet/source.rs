//! The port: Parquet files, read once, file by file in the order of their names.
//!
//! A thread of its own reads, since the crate waits for its bytes. What is read ahead is bounded by the channel; a file
//! of a place that does not answer is read on where it was.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use chrono::{DateTime, Utc};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tombstream_model::{
    Event, Mark, Origin, Polled, Records, Relation, RelationId, Source, SourceError,
};
use tracing::info;

use super::super::config::{FilesConfig, FilesConfigError};
use super::super::place::{Entry, Place};
use super::super::unpack::Packing;
use super::archive::may_hold;
use super::chunks::{Chunks, is_fault};
use super::columns::Column;
use super::layout::{ArchiveGroup, Layout};

/// How long a file rests that could not be read.
const REST: Duration = Duration::from_secs(1);
/// Polls that are read ahead.
const AHEAD: usize = 4;

/// Parquet files, and what of them is read.
#[derive(Clone, Debug)]
pub struct ParquetConfig {
    /// Where they are: the path, its options, and the topic of messages that name none.
    pub files: FilesConfig,
    /// Of an archive: what was archived at this time or later.
    pub from: Option<DateTime<Utc>>,
    /// Of an archive: what was archived before this time.
    pub to: Option<DateTime<Utc>>,
}

/// Events of Parquet files.
pub struct ParquetSource {
    polled: mpsc::Receiver<Result<Records, SourceError>>,
    has_ended: bool,
    /// Ends when nobody takes what it reads.
    _reader: JoinHandle<()>,
}

/// The packing of a file of ours: Parquet packs its own parts.
fn packing(name: &str) -> Option<Packing> {
    name.ends_with(".parquet").then_some(Packing::Plain)
}

impl ParquetSource {
    /// Lists the files and begins to read. `on_other` hears of rows of an archive whose relation is not configured.
    pub async fn open(
        config: ParquetConfig,
        relations: Arc<[Relation]>,
        on_other: impl Fn(u64) + Send + 'static,
    ) -> Result<Self, FilesConfigError> {
        let place = Place::open_of(&config.files, packing)?;
        let days = (config.from.map(|from| from.date_naive()), config.to.map(|to| to.date_naive()));
        let listed = place.list().await;
        let mut entries = listed.map_err(|fault| FilesConfigError::List(Box::new(fault)))?;
        entries.retain(|entry| may_hold(&entry.name, days, &relations));
        info!(path = place.shown(), files = entries.len(), "reading parquet files");
        let (to, polled) = mpsc::channel(AHEAD);
        let runtime = Handle::current();
        let reader = std::thread::Builder::new()
            .name("parquet".to_owned())
            .spawn(move || {
                let reader = Reader { place, config, relations, runtime, to, on_other };
                if reader.run(&entries).is_some() {
                    // The end is said, since a thread that dies ends the channel, too.
                    drop(reader.to.blocking_send(Ok(Records::Events(Vec::new()))));
                }
            })
            .map_err(|error| FilesConfigError::List(Box::new(error)))?;
        Ok(Self { polled, has_ended: false, _reader: reader })
    }
}

struct Reader<F> {
    place: Place,
    config: ParquetConfig,
    relations: Arc<[Relation]>,
    runtime: Handle,
    to: mpsc::Sender<Result<Records, SourceError>>,
    on_other: F,
}

/// Why a file was not read to its end.
enum Stopped {
    /// Nobody takes what is read.
    Unwanted,
    Failed(ParquetError),
}

impl From<ParquetError> for Stopped {
    fn from(error: ParquetError) -> Self {
        Self::Failed(error)
    }
}

impl<F: Fn(u64)> Reader<F> {
    /// None: nobody takes what is read, or it was said why no more is.
    fn run(&self, entries: &[Entry]) -> Option<()> {
        let relations = self.relations.iter().zip(0..);
        let known: HashMap<&str, (RelationId, &Relation)> =
            relations.map(|(it, id)| (&*it.name, (RelationId(id), it))).collect();
        for entry in entries {
            let mut next = 0;
            while let Err(stopped) = self.file(entry, &mut next, &known) {
                let Stopped::Failed(error) = stopped else { return None };
                let said = format!("{}, behind row {next}: {error}", entry.name);
                if !is_fault(&error) {
                    drop(self.to.blocking_send(Err(SourceError::Fatal(said))));
                    return None;
                }
                self.to.blocking_send(Err(SourceError::Unavailable(said.into()))).ok()?;
                std::thread::sleep(REST);
            }
        }
        Some(())
    }

    /// Reads a file on from row `next`, which moves with what was taken.
    fn file(
        &self,
        entry: &Entry,
        next: &mut usize,
        known: &HashMap<&str, (RelationId, &Relation)>,
    ) -> Result<(), Stopped> {
        let chunks = Chunks::new(&self.place, entry, &self.runtime);
        let file = SerializedFileReader::new(chunks)?;
        let schema = file.metadata().file_metadata().schema_descr_ptr();
        let names: Vec<&str> = schema.columns().iter().map(|column| column.name()).collect();
        let layout = Layout::of(&names).ok_or_else(|| {
            ParquetError::General(format!(
                "its columns are {}: an archive has relation, key, event, lsn, generation and at, a table of messages has \
                 value and perhaps key and topic",
                names.join(", ")
            ))
        })?;
        let items_max = self.config.files.items_max.get();
        let mut before = 0;
        for place in 0..file.num_row_groups() {
            let group = file.get_row_group(place)?;
            let rows = usize::try_from(group.metadata().num_rows())
                .map_err(|_| ParquetError::General("a group has a negative length".to_owned()))?;
            let end = before + rows;
            if *next < end {
                let skip = *next - before;
                let mut part: Box<dyn Part> = match layout {
                    Layout::Messages { value, key, topic } => {
                        let open = |place| Column::open(&*group, place);
                        Box::new(Messages {
                            file: Arc::clone(&entry.name),
                            topic_of_none: self.config.files.topic.as_str().into(),
                            value: open(value)?,
                            key: key.map(open).transpose()?,
                            topic: topic.map(open).transpose()?,
                        })
                    }
                    Layout::Archive { relation, key, event, lsn, generation, at } => {
                        let places = [relation, key, event, lsn, generation, at];
                        let within = (
                            self.config.from.map(|from| from.timestamp_micros()),
                            self.config.to.map(|to| to.timestamp_micros()),
                        );
                        let group = ArchiveGroup::open(&*group, places)?;
                        Box::new(Keys { group, within, known, on_other: &self.on_other })
                    }
                };
                part.skip(skip)?;
                while *next < end {
                    let count = items_max.min(end - *next);
                    let records = part.read(count, *next)?;
                    if !records.is_empty() {
                        let sent = self.to.blocking_send(Ok(records));
                        sent.map_err(|_| Stopped::Unwanted)?;
                    }
                    *next += count;
                }
            }
            before = end;
        }
        Ok(())
    }
}

/// A group of rows, of either layout.
trait Part {
    fn skip(&mut self, rows: usize) -> Result<(), ParquetError>;
    /// The next rows, the first of which is the file's row `at`.
    fn read(&mut self, rows: usize, at: usize) -> Result<Records, ParquetError>;
}

struct Keys<'a> {
    group: ArchiveGroup,
    within: super::layout::Within,
    known: &'a HashMap<&'a str, (RelationId, &'a Relation)>,
    on_other: &'a dyn Fn(u64),
}

impl Part for Keys<'_> {
    fn skip(&mut self, rows: usize) -> Result<(), ParquetError> {
        self.group.skip(rows)
    }

    fn read(&mut self, rows: usize, _at: usize) -> Result<Records, ParquetError> {
        let archived = self.group.read(rows, self.within, self.known)?;
        if archived.others > 0 {
            (self.on_other)(archived.others);
        }
        Ok(Records::Candidates(archived.candidates))
    }
}

struct Messages {
    file: Arc<str>,
    topic_of_none: Arc<str>,
    value: Column,
    key: Option<Column>,
    topic: Option<Column>,
}

impl Part for Messages {
    fn skip(&mut self, rows: usize) -> Result<(), ParquetError> {
        let columns = [Some(&mut self.value), self.key.as_mut(), self.topic.as_mut()];
        columns.into_iter().flatten().try_for_each(|column| column.skip(rows))
    }

    fn read(&mut self, rows: usize, at: usize) -> Result<Records, ParquetError> {
        let values = self.value.texts(rows)?;
        let texts = |column: &mut Option<Column>| match column {
            Some(column) => column.texts(rows),
            None => Ok(vec![None; rows]),
        };
        let (keys, topics) = (texts(&mut self.key)?, texts(&mut self.topic)?);
        let mut last = Arc::clone(&self.topic_of_none);
        let mut events = Vec::with_capacity(rows);
        for (row, ((value, key), topic)) in values.into_iter().zip(keys).zip(topics).enumerate() {
            let topic = match topic {
                Some(name) if *name == *last.as_bytes() => Arc::clone(&last),
                Some(name) => {
                    last = String::from_utf8_lossy(&name).into();
                    Arc::clone(&last)
                }
                None => Arc::clone(&self.topic_of_none),
            };
            let offset = i64::try_from(at + row).unwrap_or(i64::MAX);
            let origin = Origin { topic: Arc::clone(&self.file), partition: 0, offset };
            events.push(Event { origin, topic: Some(topic), key, value });
        }
        Ok(Records::Events(events))
    }
}

impl Source for ParquetSource {
    async fn next(&mut self) -> Result<Polled, SourceError> {
        let ended =
            || SourceError::Fatal("the thread that reads parquet ended by itself".to_owned());
        let records = self.polled.recv().await.ok_or_else(ended)??;
        // What is read is never empty: it is the end.
        self.has_ended = records.is_empty();
        Ok(Polled { records, marks: Vec::new() })
    }

    async fn commit(&mut self, _marks: Vec<Mark>) -> Result<(), SourceError> {
        Ok(())
    }

    fn has_ended(&self) -> bool {
        self.has_ended
    }

    fn pause(&mut self, _topic: &str) -> Result<(), SourceError> {
        Ok(())
    }
}

impl fmt::Debug for ParquetSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParquetSource").field("has_ended", &self.has_ended).finish_non_exhaustive()
    }
}
