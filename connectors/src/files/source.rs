//! The port: what the pipeline asks of the files.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tombstream_model::{Event, Mark, Polled, Records, Source, SourceError};
use tracing::{debug, info, warn};

use super::config::{FilesConfig, FilesConfigError};
use super::file::{File, Limits, Step, Trouble};
use super::place::{Entry, Fault, Place};
use super::unpack::Packing;
use crate::positions::{Position, Positions, PositionsError};

/// A file that went away before all of it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The file.
    pub file: String,
    /// The byte that would have been read next.
    pub next: u64,
}

/// Events of files, in the order of the files' names, each file from its first line to its last.
///
/// A file is read up to the size it had when it was listed. What comes later, to it or beside it, is found
/// by the next look, if the source follows; else the source ends.
pub struct FilesSource<P> {
    place: Place,
    positions: P,
    limits: Limits,
    poll: Duration,
    on_gap: Box<dyn Fn(&Gap) + Send + Sync>,
    /// What is known of each file. None: the positions were not loaded yet.
    files: Option<HashMap<Arc<str>, State>>,
    /// What is listed and to be read, in order.
    todo: VecDeque<Entry>,
    /// The file that is being read.
    open: Option<File>,
    looking: Option<Looking>,
    /// When to look again.
    again: Option<Instant>,
    has_looked: bool,
    has_ended: bool,
}

/// What is known of one file.
#[derive(Debug, Default)]
struct State {
    /// Where reading goes on. None: at its beginning.
    read: Option<Position>,
    /// What was given to the pipeline and is not committed, oldest first.
    pending: VecDeque<Position>,
    /// The version that was read as far as it can be: the half of a line is left.
    looked_at: Option<String>,
    /// The version that ended in the middle of its stream, and how that was said.
    torn: Option<(String, String)>,
    /// Its next line is of a paused topic.
    paused: bool,
    /// That it went away was said.
    gone: bool,
}

/// A listing that was asked for. Giving the source up gives it up.
struct Looking(JoinHandle<Result<Vec<Entry>, Fault>>);

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<P: Positions> FilesSource<P> {
    /// A source of the files at `config.path`. Nothing is read yet.
    ///
    /// `on_gap` hears of every file that went away before all of it was read.
    pub fn new(
        config: &FilesConfig,
        positions: P,
        on_gap: impl Fn(&Gap) + Send + Sync + 'static,
    ) -> Result<Self, FilesConfigError> {
        let place = Place::open(config)?;
        info!(path = place.shown(), follow = config.follow, "reading from files");
        Ok(Self::of(place, config, positions, on_gap))
    }

    /// Takes a bucket that is open, whose files are named by `url`, such as `s3://bucket`; of
    /// `config.path` the part behind the bucket alone is read, and its options are not.
    pub fn with_store(
        config: &FilesConfig,
        url: &str,
        store: Arc<dyn ::object_store::ObjectStore>,
        positions: P,
        on_gap: impl Fn(&Gap) + Send + Sync + 'static,
    ) -> Result<Self, FilesConfigError> {
        let wrong = || FilesConfigError::Path(config.path.clone());
        let path = config.path.strip_prefix(url).ok_or_else(wrong)?;
        let path = path.strip_prefix('/').unwrap_or(path);
        let place = Place::within(store, url, path).ok_or_else(wrong)?;
        Ok(Self::of(place, config, positions, on_gap))
    }

    fn of(
        place: Place,
        config: &FilesConfig,
        positions: P,
        on_gap: impl Fn(&Gap) + Send + Sync + 'static,
    ) -> Self {
        let limits = Limits {
            topic: config.topic.as_str().into(),
            items_max: config.items_max.get(),
            line_max: config.line_bytes_max.get(),
            follow: config.follow,
            paused: HashSet::new(),
        };
        Self {
            place,
            positions,
            limits,
            poll: config.poll,
            on_gap: Box::new(on_gap),
            files: None,
            todo: VecDeque::new(),
            open: None,
            looking: None,
            again: None,
            has_looked: false,
            has_ended: false,
        }
    }

    async fn advance(&mut self) -> Result<Polled, SourceError> {
        loop {
            if self.files.is_none() {
                self.load().await?;
            }
            if let Some(polled) = self.read().await? {
                return Ok(polled);
            }
            if let Some(entry) = self.todo.pop_front() {
                self.begin(entry)?;
            } else if self.has_looked && !self.limits.follow {
                return self.end().await;
            } else {
                self.look().await?;
            }
        }
    }

    async fn load(&mut self) -> Result<(), SourceError> {
        let loaded = self.positions.load().await.map_err(positions_error)?;
        let state = |position| State { read: Some(position), ..State::default() };
        let files = loaded.into_iter().map(|(name, position)| (name.into(), state(position)));
        self.files = Some(files.collect());
        Ok(())
    }

    /// Reads the open file on, if there is one, until it brings something or ends.
    async fn read(&mut self) -> Result<Option<Polled>, SourceError> {
        while let Some(file) = &mut self.open {
            let name = Arc::clone(&file.entry.name);
            match file.step(&self.limits) {
                Ok(Step::Lines(events, position)) => {
                    return Ok(Some(self.polled(&name, events, position)));
                }
                Ok(Step::Later) => tokio::task::yield_now().await,
                Ok(Step::Hungry) => match file.block().await {
                    Ok(Ok(())) => {}
                    Ok(Err(trouble)) => return Err(self.trouble(&name, &trouble)),
                    Err(Fault::Gone(_)) => {
                        self.open = None;
                        self.gone(&name);
                    }
                    Err(fault @ Fault::Unavailable { .. }) => return Err(unavailable(fault)),
                },
                Ok(Step::Paused) => {
                    warn!(file = &*name, "read no further: the next line is of a paused topic");
                    self.open = None;
                    self.state(&name).paused = true;
                }
                Ok(Step::End) => {
                    debug!(file = &*name, "read to its end");
                    let version = file.entry.version.clone();
                    self.open = None;
                    self.state(&name).looked_at = Some(version);
                }
                Err(trouble) => return Err(self.trouble(&name, &trouble)),
            }
        }
        Ok(None)
    }

    fn state(&mut self, name: &Arc<str>) -> &mut State {
        let files = self.files.get_or_insert_default();
        files.entry(Arc::clone(name)).or_default()
    }

    fn polled(&mut self, name: &Arc<str>, events: Vec<Event>, position: Position) -> Polled {
        let mark = Mark {
            topic: Arc::clone(name),
            partition: 0,
            // A file is read by one reader from its beginning to its end.
            assignment: 0,
            next: i64::try_from(position.next).expect("no file has 8 EiB"),
        };
        let state = self.state(name);
        state.pending.push_back(position.clone());
        state.read = Some(position);
        Polled { records: Records::Events(events), marks: vec![mark] }
    }

    fn begin(&mut self, entry: Entry) -> Result<(), SourceError> {
        let state = self.state(&entry.name);
        if let Some((version, said)) = &state.torn
            && *version == entry.version
        {
            return Err(SourceError::Unavailable(said.clone().into()));
        }
        state.gone = false;
        let read = state.read.clone();
        let opened = File::open(&self.place, entry, read, &self.limits);
        self.open = Some(opened.map_err(|error| SourceError::Unavailable(error.into()))?);
        Ok(())
    }

    /// Waits until it is time, and lists what is there.
    async fn look(&mut self) -> Result<(), SourceError> {
        if let Some(again) = self.again {
            sleep_until(again).await;
            self.again = None;
        }
        let place = &self.place;
        let looking = self.looking.get_or_insert_with(|| {
            let place = place.clone();
            Looking(tokio::spawn(async move { place.list().await }))
        });
        let listed = (&mut looking.0).await;
        self.looking = None;
        let listed = listed.map_err(|error| SourceError::Unavailable(Box::new(error)))?;
        let entries = listed.map_err(unavailable)?;
        self.again = Some(Instant::now() + self.poll);
        if !self.has_looked {
            info!(path = self.place.shown(), files = entries.len(), "files listed");
            if entries.is_empty() {
                warn!(
                    path = self.place.shown(),
                    "there is no file whose name ends in .jsonl, .ndjson or .json, plain, .gz or .zst"
                );
            }
        }
        self.has_looked = true;
        self.miss(&entries);
        self.arrange(entries)
    }

    /// Says which files went away before all of them was read.
    fn miss(&mut self, entries: &[Entry]) {
        let listed: HashSet<&str> = entries.iter().map(|entry| &*entry.name).collect();
        let place = &self.place;
        let files = self.files.get_or_insert_default();
        let missing = files.iter().filter(|(name, state)| {
            place.holds(name)
                && !listed.contains(&***name)
                && !state.gone
                && state.read.as_ref().is_some_and(|read| read.whole.is_none())
        });
        let missing: Vec<Arc<str>> = missing.map(|(name, _)| Arc::clone(name)).collect();
        missing.iter().for_each(|name| self.gone(name));
    }

    fn gone(&mut self, name: &Arc<str>) {
        let state = self.state(name);
        state.gone = true;
        let next = state.read.as_ref().map_or(0, |read| read.next);
        (self.on_gap)(&Gap { file: name.to_string(), next });
    }

    /// Which of the files have something to read.
    fn arrange(&mut self, entries: Vec<Entry>) -> Result<(), SourceError> {
        let mut todo = VecDeque::new();
        for entry in entries {
            let state = self.state(&entry.name);
            let next = state.read.as_ref().map_or(0, |read| read.next);
            let known = [
                state.read.as_ref().and_then(|read| read.whole.as_ref()),
                state.looked_at.as_ref(),
            ];
            let is_plain = entry.packing == Packing::Plain;
            if is_plain && entry.size < next {
                let trouble = Trouble::Shrunk { length: entry.size, at: next };
                return Err(self.trouble(&entry.name, &trouble));
            }
            let is_empty = is_plain && entry.size == 0;
            if !is_empty && !state.paused && !known.contains(&Some(&entry.version)) {
                todo.push_back(entry);
            }
        }
        self.todo = todo;
        Ok(())
    }

    /// Everything was read, or as much as may be.
    async fn end(&mut self) -> Result<Polled, SourceError> {
        if self.has_ended {
            return std::future::pending().await;
        }
        let files = self.files.get_or_insert_default();
        let paused = files.values().filter(|state| state.paused).count();
        if paused > 0 {
            return Err(SourceError::Fatal(format!(
                "{paused} files are not read to their end: the next line of each is of a topic that is \
                 paused; mend what its pause says, and restart"
            )));
        }
        self.has_ended = true;
        Ok(Polled { records: Records::Events(Vec::new()), marks: Vec::new() })
    }

    /// What trouble with a file means for the source.
    fn trouble(&mut self, name: &Arc<str>, trouble: &Trouble) -> SourceError {
        let version = self.open.as_ref().map(|file| file.entry.version.clone());
        match trouble {
            Trouble::Replaced { .. } | Trouble::Shrunk { .. } => SourceError::Fatal(format!(
                "{name}: {trouble}; put back what was there and give the new file a new name, or have it \
                 read from its beginning ({}), and restart",
                self.positions.forgetting(name)
            )),
            Trouble::Torn { .. } if self.limits.follow => {
                let said = format!(
                    "{name}: {trouble}; is it still being written? write compressed files under another \
                     name, and rename them when they are whole"
                );
                // It is not unpacked again before it has changed.
                self.state(name).torn = version.map(|version| (version, said.clone()));
                SourceError::Unavailable(said.into())
            }
            Trouble::Torn { .. } | Trouble::Broken { .. } => SourceError::Fatal(format!(
                "{name}: {trouble}; what is before it was read; put the whole file in its place, or take it \
                 away, and restart"
            )),
            Trouble::Changed => SourceError::Unavailable(
                format!(
                    "{name}: {trouble}; write compressed files under another name, and rename them when \
                     they are whole"
                )
                .into(),
            ),
        }
    }
}

fn unavailable(fault: Fault) -> SourceError {
    SourceError::Unavailable(Box::new(fault))
}

fn positions_error(error: PositionsError) -> SourceError {
    match error {
        PositionsError::Refused(said) => SourceError::Fatal(said),
        error @ PositionsError::Unavailable(_) => SourceError::Unavailable(Box::new(error)),
    }
}

impl<P: Positions> Source for FilesSource<P> {
    async fn next(&mut self) -> Result<Polled, SourceError> {
        let polled = self.advance().await;
        if polled.is_err() {
            // Whatever it was, the next call looks at everything anew.
            self.open = None;
            self.looking = None;
            self.todo.clear();
            self.again = None;
            self.has_looked = false;
        }
        polled
    }

    async fn commit(&mut self, marks: Vec<Mark>) -> Result<(), SourceError> {
        let Some(files) = &mut self.files else { return Ok(()) };
        let mut furthest: HashMap<&Arc<str>, &Position> = HashMap::new();
        for mark in &marks {
            let next = u64::try_from(mark.next).unwrap_or_default();
            let Some(state) = files.get(&mark.topic) else { continue };
            let durable = state.pending.iter().rev().find(|position| position.next <= next);
            let known = furthest.get(&mark.topic);
            if let Some(durable) = durable.filter(|it| known.is_none_or(|known| it.is_after(known)))
            {
                furthest.insert(&mark.topic, durable);
            }
        }
        let due: Vec<(Arc<str>, Position)> = furthest
            .into_iter()
            .map(|(name, position)| (Arc::clone(name), position.clone()))
            .collect();
        if due.is_empty() {
            return Ok(());
        }
        self.positions.store(&due).await.map_err(positions_error)?;
        for (name, position) in &due {
            if let Some(state) = files.get_mut(name) {
                state.pending.retain(|pending| pending.next > position.next);
            }
        }
        Ok(())
    }

    fn has_ended(&self) -> bool {
        self.has_ended
    }

    fn pause(&mut self, topic: &str) -> Result<(), SourceError> {
        if self.limits.paused.insert(topic.to_owned()) {
            warn!(topic, "lines of this topic are read no more until the process is started again");
        }
        Ok(())
    }
}

impl<P> fmt::Debug for FilesSource<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilesSource").field("place", &self.place).finish_non_exhaustive()
    }
}
