//! Which columns mean an event. No I/O.
//!
//! Two layouts are known: an *archive* of ours (`relation`, `key`, `event`, `lsn`, `generation`, `at`), whose rows are keys to look at; and
//! *messages* (`value`, beside it `key` and `topic` if there are such columns), whose values are change events as they
//! stood in Kafka. Other columns are not read.

use std::collections::HashMap;

use parquet::errors::{ParquetError, Result};
use parquet::file::reader::RowGroupReader;
use tombstream_model::{
    Candidate, Cause, Found, Generation, Key, Lsn, Position, Relation, RelationId,
};

use super::columns::Column;
use crate::archive;

/// Where the columns are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Messages { value: usize, key: Option<usize>, topic: Option<usize> },
    Archive { relation: usize, key: usize, event: usize, lsn: usize, generation: usize, at: usize },
}

impl Layout {
    /// By the columns' names. None: it is neither.
    pub(super) fn of(names: &[&str]) -> Option<Self> {
        let place = |name: &str| names.iter().position(|known| *known == name);
        let archive = || {
            Some(Self::Archive {
                relation: place("relation")?,
                key: place("key")?,
                event: place("event")?,
                lsn: place("lsn")?,
                generation: place("generation")?,
                at: place("at")?,
            })
        };
        let messages = || {
            let (key, topic) = (place("key"), place("topic"));
            Some(Self::Messages { value: place("value")?, key, topic })
        };
        archive().or_else(messages)
    }
}

/// A group of rows of an archive.
pub(super) struct ArchiveGroup {
    relation: Column,
    key: Column,
    event: Column,
    lsn: Column,
    generation: Column,
    at: Column,
}

/// Times as the archive has them: from the first, up to and without the second.
pub(super) type Within = (Option<i64>, Option<i64>);

/// What rows of an archive brought.
#[derive(Debug, Default)]
pub(super) struct Archived {
    pub(super) candidates: Vec<Candidate>,
    /// Rows of relations that are not configured here.
    pub(super) others: u64,
}

impl ArchiveGroup {
    pub(super) fn open(group: &dyn RowGroupReader, layout: [usize; 6]) -> Result<Self> {
        let [relation, key, event, lsn, generation, at] = layout;
        Ok(Self {
            relation: Column::open(group, relation)?,
            key: Column::open(group, key)?,
            event: Column::open(group, event)?,
            lsn: Column::open(group, lsn)?,
            generation: Column::open(group, generation)?,
            at: Column::open(group, at)?,
        })
    }

    pub(super) fn skip(&mut self, rows: usize) -> Result<()> {
        let Self { relation, key, event, lsn, generation, at } = self;
        for column in [relation, key, event, lsn, generation, at] {
            column.skip(rows)?;
        }
        Ok(())
    }

    /// The next rows, those of them that lie within these times.
    pub(super) fn read(
        &mut self,
        rows: usize,
        (from, to): Within,
        known: &HashMap<&str, (RelationId, &Relation)>,
    ) -> Result<Archived> {
        let relations = self.relation.texts(rows)?;
        let keys = self.key.texts(rows)?;
        let events = self.event.texts(rows)?;
        let lsns = self.lsn.texts(rows)?;
        let generations = self.generation.numbers(rows)?;
        let times = self.at.numbers(rows)?;
        let mut archived = Archived::default();
        for row in 0..rows {
            let is_within = times[row]
                .is_none_or(|at| from.is_none_or(|from| at >= from) && to.is_none_or(|to| at < to));
            if !is_within {
                continue;
            }
            let text = |column: &[Option<bytes::Bytes>]| {
                let bytes = column[row].as_deref().unwrap_or_default();
                std::str::from_utf8(bytes).map(str::to_owned).map_err(ParquetError::from)
            };
            let name = text(&relations)?;
            let Some((id, relation)) = known.get(name.as_str()) else {
                archived.others += 1;
                continue;
            };
            let position = text(&lsns)?.parse::<Lsn>().ok().map(|lsn| Position {
                generation: Generation(
                    generations[row].and_then(|it| it.try_into().ok()).unwrap_or_default(),
                ),
                lsn,
                order: 0,
            });
            let candidate = Candidate {
                relation: *id,
                key: key(relation, &text(&keys)?)?,
                position,
                cause: Cause::Event,
                found: found(&text(&events)?)?,
                removed: None,
            };
            archived.candidates.push(candidate);
        }
        Ok(archived)
    }
}

/// The key of a row. What is none would fail the claim of its whole batch, for ever.
fn key(relation: &Relation, json: &str) -> Result<Key> {
    let wrong = |said: String| {
        ParquetError::General(format!("a row's key is none of relation {}: {said}", relation.name))
    };
    let texts: Vec<String> = serde_json::from_str(json).map_err(|it| wrong(it.to_string()))?;
    let texts = texts.iter().map(String::as_str);
    Key::new(relation.key_kinds(), texts).map_err(|error| wrong(error.to_string()))
}

fn found(text: &str) -> Result<Found> {
    archive::found(text)
        .ok_or_else(|| ParquetError::General(format!("there is no event called {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_is_told_by_the_columns_names() {
        let messages = Layout::of(&["offset", "topic", "value", "key"]);
        assert_eq!(messages, Some(Layout::Messages { value: 2, key: Some(3), topic: Some(1) }));
        let bare = Layout::of(&["value"]);
        assert_eq!(bare, Some(Layout::Messages { value: 0, key: None, topic: None }));
        let archive = ["relation", "key", "event", "lsn", "generation", "at"];
        assert!(matches!(Layout::of(&archive), Some(Layout::Archive { at: 5, .. })));
        assert_eq!(Layout::of(&["id", "name"]), None);
    }
}
