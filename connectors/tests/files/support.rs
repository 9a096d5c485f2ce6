//! A folder of files, packed in one of three ways, and a source of them.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::timeout;
use tombstream_connectors::files::{FilesConfig, FilesSource, Gap, LocalPositions};
use tombstream_model::{Event, Mark, Polled, Records, Source, SourceError};

/// The most that any wait of a test takes.
pub(crate) const BOUND: Duration = Duration::from_secs(30);

/// How a file is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    Gzip,
    Zstd,
}

pub(crate) const KINDS: [Kind; 3] = [Kind::Plain, Kind::Gzip, Kind::Zstd];
pub(crate) const PACKED: [Kind; 2] = [Kind::Gzip, Kind::Zstd];

impl Kind {
    pub(crate) fn name(self, stem: &str) -> String {
        match self {
            Self::Plain => format!("{stem}.jsonl"),
            Self::Gzip => format!("{stem}.jsonl.gz"),
            Self::Zstd => format!("{stem}.jsonl.zst"),
        }
    }

    pub(crate) fn pack(self, text: &[u8]) -> Vec<u8> {
        match self {
            Self::Plain => text.to_vec(),
            Self::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap()
            }
            Self::Zstd => zstd::encode_all(text, 1).unwrap(),
        }
    }
}

/// A folder with files, and a file with their positions beside it.
pub(crate) struct Folder {
    home: TempDir,
    pub(crate) config: FilesConfig,
    pub(crate) gaps: Arc<Mutex<Vec<Gap>>>,
}

impl Folder {
    pub(crate) fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("files")).unwrap();
        let mut config = FilesConfig::new(format!("file://{}/files", home.path().display()));
        config.poll = Duration::from_millis(5);
        Self { home, config, gaps: Arc::default() }
    }

    pub(crate) fn following() -> Self {
        let mut folder = Self::new();
        folder.config.follow = true;
        folder
    }

    /// The folder of the files, which can be moved away.
    pub(crate) fn files(&self) -> PathBuf {
        self.home.path().join("files")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.files().join(name)
    }

    /// The name that the source gives to a file here.
    pub(crate) fn address(&self, name: &str) -> String {
        format!("file://{}", self.path(name).display())
    }

    /// Puts a file there, whole.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let beside = self.home.path().join("being-written");
        std::fs::write(&beside, bytes).unwrap();
        std::fs::rename(&beside, path).unwrap();
    }

    pub(crate) fn append(&self, name: &str, text: &str) {
        let options = std::fs::OpenOptions::new().append(true).create(true).clone();
        options.open(self.path(name)).unwrap().write_all(text.as_bytes()).unwrap();
    }

    pub(crate) fn positions(&self) -> LocalPositions {
        LocalPositions::new(self.home.path().join("positions.json"))
    }

    /// A source as a process that starts has it.
    pub(crate) fn open(&self) -> FilesSource<LocalPositions> {
        let gaps = Arc::clone(&self.gaps);
        let on_gap = move |gap: &Gap| gaps.lock().unwrap().push(gap.clone());
        FilesSource::new(&self.config, self.positions(), on_gap).unwrap()
    }
}

pub(crate) async fn next<S: Source>(source: &mut S) -> Result<Polled, SourceError> {
    timeout(BOUND, source.next()).await.expect("something comes in time")
}

pub(crate) fn events(polled: &Polled) -> Vec<Event> {
    let Records::Events(events) = &polled.records else { panic!("files bring events") };
    events.clone()
}

pub(crate) fn text(event: &Event) -> String {
    String::from_utf8(event.value.clone().unwrap_or_default().to_vec()).unwrap()
}

/// Reads until there are so many events or the source ends: what they hold, and the marks.
pub(crate) async fn some<S: Source>(source: &mut S, count: usize) -> (Vec<String>, Vec<Mark>) {
    let (mut texts, mut marks) = (Vec::new(), Vec::new());
    while texts.len() < count && !source.has_ended() {
        let polled = next(source).await.unwrap();
        texts.extend(events(&polled).iter().map(text));
        marks.extend(polled.marks);
    }
    (texts, marks)
}

/// Reads until the source ends.
pub(crate) async fn all<S: Source>(source: &mut S) -> Vec<String> {
    some(source, usize::MAX).await.0
}

/// Reads until the source ends, and commits all of it.
pub(crate) async fn all_committed<S: Source>(source: &mut S) -> Vec<String> {
    let (texts, marks) = some(source, usize::MAX).await;
    source.commit(marks).await.unwrap();
    texts
}

/// Reads until it fails: what came before, and why.
pub(crate) async fn failing<S: Source>(source: &mut S) -> (Vec<String>, SourceError) {
    let mut texts = Vec::new();
    loop {
        assert!(!source.has_ended(), "it fails before it ends");
        match next(source).await {
            Ok(polled) => texts.extend(events(&polled).iter().map(text)),
            Err(error) => return (texts, error),
        }
    }
}

/// The text of an error with its causes.
pub(crate) fn said(error: &SourceError) -> String {
    let mut said = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        said = format!("{said}: {next}");
        cause = next.source();
    }
    said
}

pub(crate) fn lines(range: std::ops::Range<usize>) -> String {
    range.map(|at| format!("{{\"id\":{at}}}\n")).collect()
}

/// What [`lines`] brings.
pub(crate) fn values(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|at| format!("{{\"id\":{at}}}")).collect()
}

/// Some lines of a kilobyte, none like the other and none that shrinks by much.
pub(crate) fn long_lines(range: std::ops::Range<usize>) -> Vec<String> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let next = |seed: &u64| Some(seed.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1));
    let line = |at: usize| {
        let letters = std::iter::successors(Some(at as u64), next).skip(8).take(200);
        let letters = letters.flat_map(|it| it.to_be_bytes().into_iter().take(5));
        letters.map(|it| char::from(LETTERS[usize::from(it & 63)])).collect::<String>()
    };
    range.map(|at| format!("{{\"id\":{at},\"more\":\"{}\"}}", line(at))).collect()
}

/// What [`lines`] of the same range brings out of a file of each kind, in the order of their names.
pub(crate) fn thrice(range: std::ops::Range<usize>) -> Vec<String> {
    KINDS.iter().flat_map(|_| values(range.clone())).collect()
}
