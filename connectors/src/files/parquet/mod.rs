//! Parquet: tables of change events that are read once more, and tables that are written.
//!
//! Owned here: which columns mean an event (`layout.rs`), reading a file group by group in bounded memory from
//! wherever files are (`chunks.rs`, `columns.rs`, `source.rs`), writing flat tables (`table.rs`). Left to others: what an
//! event means, and when an archive is written. The crate `parquet` without arrow: rows go straight into events, and the
//! columns are few and flat.

mod archive;
mod chunks;
mod columns;
mod layout;
mod source;
mod table;

pub use archive::{ArchiveDay, ArchiveError, ArchiveStore, archive_file};
pub use source::{ParquetConfig, ParquetSource};
pub use table::{Cell, ColumnKind, TableError, TableWriter};
