//! Files of an archive: how one is written, and how its folders are named.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::NaiveDate;
use tombstream_model::Relation;

use super::super::config::{FilesConfig, FilesConfigError};
use super::super::place::{Fault, Place};
use super::table::{Cell, ColumnKind, TableError, TableWriter};
use crate::archive::{ArchivedEvent, kind};

const COLUMNS: [(&str, ColumnKind); 6] = [
    ("relation", ColumnKind::Text),
    ("key", ColumnKind::Text),
    ("event", ColumnKind::Text),
    ("lsn", ColumnKind::Text),
    ("generation", ColumnKind::Integer),
    ("at", ColumnKind::Time),
];

/// Which part of an archive a file belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArchiveDay {
    /// The relation's name.
    pub relation: String,
    /// The day, UTC.
    pub day: NaiveDate,
}

impl ArchiveDay {
    /// The part that `event` belongs to.
    pub fn of(event: &ArchivedEvent) -> Self {
        Self { relation: event.relation.clone(), day: event.at.date_naive() }
    }

    /// The name of a file in it, below the archive's place. `nonce` is no other file's.
    pub fn file(&self, nonce: &str) -> String {
        format!("relation={}/day={}/{nonce}.parquet", self.relation, self.day)
    }
}

/// The bytes of a file with these events.
pub fn archive_file(events: &[ArchivedEvent]) -> Result<Vec<u8>, TableError> {
    let mut table = TableWriter::new(Vec::new(), &COLUMNS)?;
    for event in events {
        let key = serde_json::to_string(&event.key).expect("texts are json");
        let lsn = event.position.map(|(_, lsn)| lsn.to_string());
        table.push(&[
            Cell::Text(&event.relation),
            Cell::Text(&key),
            Cell::Text(kind(event.found)),
            lsn.as_deref().map_or(Cell::Null, Cell::Text),
            event.position.map_or(Cell::Null, |(generation, _)| Cell::Integer(generation.into())),
            Cell::Time(event.at),
        ])?;
    }
    table.close()
}

/// Why events are not in the archive yet.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The place does not take them.
    #[error("the archive can't be written")]
    Place(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// They make no table.
    #[error(transparent)]
    Table(#[from] TableError),
}

impl From<Fault> for ArchiveError {
    fn from(fault: Fault) -> Self {
        Self::Place(Box::new(fault))
    }
}

/// Where the archive's files are written.
#[derive(Debug)]
pub struct ArchiveStore(Place);

impl ArchiveStore {
    /// Opens the place. Sends nothing.
    pub fn open(config: &FilesConfig) -> Result<Self, FilesConfigError> {
        Place::open(config).map(Self)
    }

    /// Writes these events, a file for each part that they belong to. All of them are durable when it returns how
    /// many files that were; after an error some may be.
    pub async fn put(&self, events: &[ArchivedEvent]) -> Result<usize, ArchiveError> {
        let mut parts: BTreeMap<ArchiveDay, Vec<ArchivedEvent>> = BTreeMap::new();
        for event in events {
            parts.entry(ArchiveDay::of(event)).or_default().push(event.clone());
        }
        let count = parts.len();
        for (part, events) in parts {
            let first = events.first().map_or(0, |event| event.at.timestamp_micros());
            let nonce = format!("{first}-{}", uuid::Uuid::new_v4().simple());
            let bytes = Bytes::from(archive_file(&events)?);
            self.0.write(&part.file(&nonce), bytes).await?;
        }
        Ok(count)
    }
}

/// Whether a file of this name may hold what lies within these days, and is of one of `relations`. A name that tells
/// neither may.
pub(super) fn may_hold(
    name: &str,
    (first, last): (Option<NaiveDate>, Option<NaiveDate>),
    relations: &[Relation],
) -> bool {
    let part = |prefix: &str| name.split('/').find_map(|part| part.strip_prefix(prefix));
    let day = part("day=").and_then(|day| day.parse::<NaiveDate>().ok());
    let relation = part("relation=");
    day.is_none_or(|day| {
        first.is_none_or(|first| day >= first) && last.is_none_or(|last| day <= last)
    }) && relation.is_none_or(|name| relations.iter().any(|known| *known.name == *name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_s_name_tells_its_day_and_what_lies_outside_is_not_opened() {
        let day = |text: &str| Some(text.parse::<NaiveDate>().unwrap());
        let name = "s3://bucket/a/relation=notes/day=2026-03-02/x.parquet";
        let may = |first, last| may_hold(name, (first, last), &[]);
        assert!(!may(None, None), "of a relation that is not configured");
        let free = "s3://bucket/a/day=2026-03-02/x.parquet";
        assert!(may_hold(free, (None, None), &[]));
        assert!(may_hold(free, (day("2026-03-02"), day("2026-03-02")), &[]));
        assert!(!may_hold(free, (day("2026-03-03"), None), &[]));
        assert!(!may_hold(free, (None, day("2026-03-01")), &[]));
        assert!(may_hold("s3://bucket/day=x/y.parquet", (day("2026-03-03"), None), &[]));
        let event = ArchivedEvent {
            relation: "notes".to_owned(),
            key: vec!["1".to_owned()],
            found: tombstream_model::Found::Flagged,
            position: None,
            at: "2026-03-02T23:59:59.9Z".parse().unwrap(),
        };
        let file = ArchiveDay::of(&event).file("n");
        assert_eq!(file, "relation=notes/day=2026-03-02/n.parquet");
    }
}
