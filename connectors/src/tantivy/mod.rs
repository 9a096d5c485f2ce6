//! An index of the crate `tantivy` in a folder, as a place to destroy documents: no server at all.
//!
//! Owned here: the order take the writer's lock, look, ask the fence, delete, commit, look again; and
//! that what was deleted leaves the disk. tantivy only marks a document as deleted; its bytes stay in
//! the segment's files until a merge takes that segment, which may be never. So each segment that
//! holds deleted documents is rewritten before a verdict is given (`purge.rs`).
//!
//! tantivy allows one writer. The application that feeds the index and this sink write by turns: the
//! lock is taken for a batch and for a rewrite, and given back in between. An absence is seen under
//! the lock, so no writer holds an uncommitted copy at that moment.
//!
//! Left out: versions of documents. tantivy has none, so a copy of a newer life of the key can't be
//! told from the deleted one's: keys must not be reused (S5). Nothing is ever created: a missing
//! index is an error.
//!
//! All of tantivy blocks, and runs on threads that may. Retries, pacing and read-back belong to the
//! dataflow.

mod check;
mod config;
mod field;
mod index;
mod list;
mod purge;
mod sink;

pub use check::{Facts, FieldFacts};
pub use config::{TantivyConfig, TantivyConfigError};
pub use list::{TantivyListing, TantivyPart};
pub use sink::TantivySink;
