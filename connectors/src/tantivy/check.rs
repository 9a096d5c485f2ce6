//! What `tombstream check --live` wants to know of an index before anything is destroyed in it.

use ::tantivy::TantivyError;
use ::tantivy::directory::error::LockError;
use ::tantivy::directory::{Directory as _, INDEX_WRITER_LOCK};
use tombstream_model::SinkError;

use super::config::TantivyConfig;
use super::field::Exact;
use super::index::Opened;
use super::sink::TantivySink;

/// What an index says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Living documents.
    pub documents: u64,
    /// Documents that are deleted, and still in the segments' files.
    pub deleted: u64,
    /// Segments.
    pub segments: usize,
    /// Whether another writer holds the lock just now.
    pub locked: bool,
    /// The id's field first, then each that was asked about.
    pub fields: Vec<FieldFacts>,
}

/// Whether a field finds exactly the documents with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldFacts {
    /// The field.
    pub field: String,
    /// Why not.
    pub problem: Option<String>,
}

impl TantivySink {
    /// Looks at the index, its fields and its lock. Changes nothing.
    ///
    /// `fields` are those that addresses of chunked documents name. An error means that the index
    /// can't be read, or must not be written.
    pub async fn check(&self, fields: &[&str]) -> Result<Facts, SinkError> {
        let config = self.config().clone();
        let fields: Vec<String> = fields.iter().map(|field| (*field).to_owned()).collect();
        super::sink::blocking(move || look(&config, fields)).await?
    }
}

fn look(config: &TantivyConfig, fields: Vec<String>) -> Result<Facts, SinkError> {
    let opened = Opened::open(config)?;
    opened.writable()?;
    let schema = opened.schema();
    let searcher = opened.reader()?.searcher();
    let readers = searcher.segment_readers();
    let deleted = readers.iter().map(|reader| u64::from(reader.num_deleted_docs())).sum();
    let facts = |field: String| {
        let problem = Exact::of(&schema, &field).err();
        FieldFacts { field, problem }
    };
    let fields = std::iter::once(config.id_field.clone()).chain(fields).map(facts).collect();
    Ok(Facts {
        documents: searcher.num_docs(),
        deleted,
        segments: readers.len(),
        locked: is_locked(&opened)?,
        fields,
    })
}

/// Whether another writer holds the lock. A lock that nobody ever took is a file that is not there,
/// and is not made.
fn is_locked(opened: &Opened) -> Result<bool, SinkError> {
    if !opened.path().join(&INDEX_WRITER_LOCK.filepath).exists() {
        return Ok(false);
    }
    match opened.index().directory().acquire_lock(&INDEX_WRITER_LOCK) {
        Ok(_released_at_once) => Ok(false),
        Err(LockError::LockBusy) => Ok(true),
        Err(error) => Err(opened.failure(TantivyError::from(error))),
    }
}
