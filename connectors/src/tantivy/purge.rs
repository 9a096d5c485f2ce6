//! What is deleted leaves the disk.
//!
//! tantivy marks documents as deleted in a list beside the segment; their text, their terms and
//! their columns stay in its files. A merge writes the living documents into a new segment, also a
//! merge of one, and the old files are removed. Afterwards nothing of a deleted document is in any
//! file of the folder. A reader that is still open elsewhere keeps the old files' blocks until it
//! reloads.
//!
//! The price is the rewriting of each touched segment as a whole: docs/operations.md has numbers.

use std::fs;
use std::io::ErrorKind;

use ::tantivy::directory::{Directory as _, META_LOCK};
use tombstream_model::SinkError;

use super::config::TantivyConfig;
use super::index::Opened;

/// Rewrites every segment that holds deleted documents. False if another writer holds the lock.
///
/// Invariant (S6): "deleted" is gone from the disk; `tests/tantivy.rs`:
/// `a_deleted_document_leaves_no_byte_in_any_file`.
pub(super) fn purge(config: &TantivyConfig) -> Result<bool, SinkError> {
    let opened = Opened::open(config)?;
    let Some(mut writer) = opened.writer()? else { return Ok(false) };
    let segments = opened.leftovers()?.segments;
    // Each for itself: the segments keep their sizes, so the application's merges go on as before.
    let merges: Vec<_> = segments.iter().map(|segment| writer.merge(&[*segment])).collect();
    for merge in merges {
        merge.wait().map_err(|error| opened.failure(error))?;
    }
    let collected = writer.garbage_collect_files().wait();
    collected.map_err(|error| opened.failure(error))?;
    remove_strays(&opened)?;
    let left = opened.leftovers()?;
    match left.is_empty() {
        true => Ok(true),
        false => Err(SinkError::Unavailable(
            format!(
                "deleted documents are still in {} segments and {} files of the index {}",
                left.segments.len(),
                left.files.len(),
                opened.path().display()
            )
            .into(),
        )),
    }
}

/// Removes files of segments that are in no list of tantivy's: it keeps the list in memory, so two
/// processes that write by turns forget files of each other, and a merge that a dropped writer left
/// running ends in files that nobody wanted.
fn remove_strays(opened: &Opened) -> Result<(), SinkError> {
    // Whoever holds this lock is opening what was the last commit a moment ago.
    let lock = opened.index().directory().acquire_lock(&META_LOCK);
    let _lock = lock.map_err(|error| opened.failure(error.into()))?;
    for file in opened.leftovers()?.files {
        match fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(opened.failure(error.into()));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}
