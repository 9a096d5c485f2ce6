//! Opening the index, its one writer, and what tantivy's errors mean.

use std::fs;
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};

use ::tantivy::directory::error::{LockError, OpenDirectoryError, OpenReadError, OpenWriteError};
use ::tantivy::directory::footer::Footer;
use ::tantivy::directory::{Directory as _, MmapDirectory};
use ::tantivy::index::SegmentId;
use ::tantivy::indexer::{IndexWriterOptions, NoMergePolicy};
use ::tantivy::schema::Schema;
use ::tantivy::{
    INDEX_FORMAT_VERSION, Index, IndexReader, IndexWriter, ReloadPolicy, TantivyError,
};
use tombstream_model::SinkError;

use super::config::TantivyConfig;
use super::field::Exact;

/// The index, opened for one piece of work. Nothing is kept between two: the folder may be another
/// one by then, and tantivy's list of its own files is read at the opening.
pub(super) struct Opened {
    path: PathBuf,
    index: Index,
}

/// What deletes have left on the disk.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    /// Segments with documents that are deleted, and still there byte for byte.
    pub(super) segments: Vec<SegmentId>,
    /// Files of segments that the index has no more.
    pub(super) files: Vec<PathBuf>,
}

impl Opened {
    /// Opens the index, or says what is missing. Creates nothing.
    pub(super) fn open(config: &TantivyConfig) -> Result<Self, SinkError> {
        let path = PathBuf::from(&config.path);
        match Index::open_in_dir(&path) {
            Ok(index) => Ok(Self { path, index }),
            Err(error) => Err(failure(&path, error)),
        }
    }

    pub(super) fn schema(&self) -> Schema {
        self.index.schema()
    }

    /// The field that the configuration calls the documents' id.
    pub(super) fn id_field(&self, config: &TantivyConfig) -> Result<Exact, SinkError> {
        let name = &config.id_field;
        Exact::of(&self.schema(), name).map_err(|problem| {
            let path = self.path.display();
            SinkError::Missing(format!("an exact id field `{name}` in the index {path}: {problem}"))
        })
    }

    /// A reader of the last commit.
    pub(super) fn reader(&self) -> Result<IndexReader, SinkError> {
        let reader = self.index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into();
        reader.map_err(|error| self.failure(error))
    }

    /// The one writer, which holds its lock until it is dropped; none if another one holds it now.
    pub(super) fn writer(&self) -> Result<Option<IndexWriter>, SinkError> {
        self.writable()?;
        // One thread of each kind is the least, and two merges overlap their waits for the disk.
        let options = IndexWriterOptions::builder().num_worker_threads(1).num_merge_threads(2);
        match self.index.writer_with_options(options.build()) {
            Ok(writer) => {
                // How segments grow is the application's matter.
                writer.set_merge_policy(Box::new(NoMergePolicy));
                Ok(Some(writer))
            }
            Err(TantivyError::LockFailure(LockError::LockBusy, _)) => Ok(None),
            Err(error) => Err(self.failure(error)),
        }
    }

    /// Whether what this build writes can be read by the application that feeds the index.
    ///
    /// An older tantivy refuses an index with a single file of a newer format, even a list of
    /// deleted documents: the application would be locked out of its own index.
    pub(super) fn writable(&self) -> Result<(), SinkError> {
        let directory =
            MmapDirectory::open(&self.path).map_err(|error| failure(&self.path, error.into()))?;
        let segments = self.index.searchable_segment_ids().map_err(|it| self.failure(it))?;
        let mut newest = None;
        for segment in segments {
            let name = format!("{}.store", segment.uuid_string());
            let file = directory.open_read(Path::new(&name));
            let file = file.map_err(|error| failure(&self.path, error.into()))?;
            let (footer, _) =
                Footer::extract_footer(file).map_err(|error| io_failure(&self.path, &error))?;
            let version = serde_json::to_value(&footer.version).unwrap_or_default();
            newest = newest.max(version["index_format_version"].as_u64());
            if newest >= Some(u64::from(INDEX_FORMAT_VERSION)) {
                return Ok(());
            }
        }
        match newest {
            None => Ok(()),
            Some(newest) => Err(SinkError::Missing(format!(
                "an index {} in format {INDEX_FORMAT_VERSION}: it is in format {newest}, and the \
                 older tantivy that wrote it could not open it any more after a delete; let an \
                 application with tantivy 0.24 or newer commit to it first",
                self.path.display()
            ))),
        }
    }

    /// What deletes have left on the disk. Only under the writer's lock is a file that the index
    /// does not name left over: without it, it may be a segment that is being written.
    pub(super) fn leftovers(&self) -> Result<Leftovers, SinkError> {
        // An instance of its own: what is known to the writer's counts as in use.
        let index = Index::open_in_dir(&self.path).map_err(|error| self.failure(error))?;
        let meta = index.load_metas().map_err(|error| self.failure(error))?;
        let segments = meta.segments.iter().filter(|it| it.has_deletes()).map(|it| it.id());
        let segments = segments.collect();
        let living = meta.list_segment_files();
        let mut files = Vec::new();
        let entries = fs::read_dir(&self.path).map_err(|error| io_failure(&self.path, &error))?;
        for entry in entries {
            let entry = entry.map_err(|error| io_failure(&self.path, &error))?;
            let name = PathBuf::from(entry.file_name());
            if is_of_a_segment(&name) && !living.contains(&name) {
                files.push(entry.path());
            }
        }
        Ok(Leftovers { segments, files })
    }

    /// The payload of the last commit, which is the application's.
    pub(super) fn payload(&self) -> Result<Option<String>, SinkError> {
        let meta = self.index.load_metas().map_err(|error| self.failure(error))?;
        Ok(meta.payload)
    }

    pub(super) fn index(&self) -> &Index {
        &self.index
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn failure(&self, error: TantivyError) -> SinkError {
        failure(&self.path, error)
    }
}

impl Leftovers {
    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.files.is_empty()
    }
}

/// `0123456789abcdef0123456789abcdef.store`: what tantivy calls the files of a segment. Everything
/// else in the folder is somebody else's.
fn is_of_a_segment(name: &Path) -> bool {
    let name = name.to_str().and_then(|name| name.split_once('.'));
    name.is_some_and(|(stem, _)| SegmentId::from_uuid_string(stem).is_ok() && stem.len() == 32)
}

/// What an error of tantivy says of the index. None of them is an answer about a document.
pub(super) fn failure(path: &Path, error: TantivyError) -> SinkError {
    let shown = path.display();
    match error {
        TantivyError::OpenDirectoryError(
            OpenDirectoryError::DoesNotExist(_) | OpenDirectoryError::NotADirectory(_),
        ) => SinkError::Missing(format!("the folder {shown}")),
        TantivyError::OpenReadError(OpenReadError::FileDoesNotExist(file)) => {
            match file.to_str() {
                Some("meta.json") => SinkError::Missing(format!("an index in the folder {shown}")),
                // A merge or a commit may have replaced it just now; else the index is broken.
                _ => SinkError::Protocol(format!(
                    "the file {} of the index {shown} is not there",
                    file.display()
                )),
            }
        }
        TantivyError::IncompatibleIndex(what)
        | TantivyError::OpenReadError(OpenReadError::IncompatibleIndex(what)) => {
            SinkError::Missing(format!("a tantivy that reads the index {shown}: {what:?}"))
        }
        TantivyError::MissingPlugin(extensions) => SinkError::Missing(format!(
            "the plugin for {extensions}, without which the index {shown} can't be written"
        )),
        TantivyError::DataCorruption(what) => {
            SinkError::Protocol(format!("the index {shown} can't be read: {what:?}"))
        }
        TantivyError::OpenDirectoryError(OpenDirectoryError::IoError { io_error, .. })
        | TantivyError::OpenReadError(OpenReadError::IoError { io_error, .. })
        | TantivyError::OpenWriteError(OpenWriteError::IoError { io_error, .. })
        | TantivyError::LockFailure(LockError::IoError(io_error), _)
        | TantivyError::IoError(io_error) => io_failure(path, &io_error),
        TantivyError::LockFailure(LockError::LockBusy, _) => locked(&shown.to_string()),
        other => SinkError::Unavailable(Box::new(other)),
    }
}

fn io_failure(path: &Path, error: &Error) -> SinkError {
    let shown = path.display();
    match error.kind() {
        ErrorKind::PermissionDenied => {
            SinkError::Denied(format!("the index {shown} can't be read and written: {error}"))
        }
        ErrorKind::ReadOnlyFilesystem => {
            SinkError::Denied(format!("the index {shown} can't be written: {error}"))
        }
        _ => SinkError::Unavailable(format!("the index {shown}: {error}").into()),
    }
}

/// Another writer holds the lock.
pub(super) fn locked(path: &str) -> SinkError {
    let said = format!(
        "another writer holds the lock of the index {path}: whoever feeds it must drop its writer \
         between its turns"
    );
    SinkError::Unavailable(said.into())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn only_files_of_segments_are_tantivys_to_remove() {
        let id = "0123456789abcdef0123456789abcdef";
        for name in [format!("{id}.store"), format!("{id}.12.del"), format!("{id}.store.temp")] {
            assert!(is_of_a_segment(Path::new(&name)), "{name}");
        }
        let hyphens = "01234567-89ab-cdef-0123-456789abcdef.store";
        for name in ["meta.json", ".managed.json", ".tantivy-writer.lock", id, "notes.txt", hyphens]
        {
            assert!(!is_of_a_segment(Path::new(name)), "{name}");
        }
    }

    #[test]
    fn an_error_is_never_an_answer_about_a_document() {
        let at = Path::new("/srv/index");
        let io = |kind| TantivyError::IoError(Arc::new(Error::from(kind)));
        for kind in [ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem] {
            assert!(matches!(failure(at, io(kind)), SinkError::Denied(_)));
        }
        for kind in [ErrorKind::StorageFull, ErrorKind::NotFound, ErrorKind::Other] {
            assert!(matches!(failure(at, io(kind)), SinkError::Unavailable(_)));
        }
        let gone = |file: &str| OpenReadError::FileDoesNotExist(file.into()).into();
        assert!(matches!(failure(at, gone("meta.json")), SinkError::Missing(_)));
        assert!(matches!(failure(at, gone("ab.store")), SinkError::Protocol(_)));
    }
}
