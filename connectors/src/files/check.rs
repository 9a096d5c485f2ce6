//! What `tombstream check --live` says of the files.

use super::config::{FilesConfig, FilesConfigError};
use super::place::{Fault, Place};
use super::unpack::Packing;
use crate::positions::{Positions, PositionsError};

/// What is there, and what of it is left to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilesFacts {
    /// Files whose names end like one of ours.
    pub files: usize,
    /// Their bytes, as they are stored.
    pub bytes: u64,
    /// Files of which something is left to read, as far as is known without reading them.
    pub files_left: usize,
    /// What is left of them: of a compressed file that is not done, all of it.
    pub bytes_left: u64,
    /// Files that are shorter than what was read of them: reading would end there.
    pub shrunk: Vec<String>,
}

/// Why the files can't be looked at.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] FilesConfigError),
    /// The place can't be listed.
    #[error("the files can't be listed")]
    Place(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The positions can't be loaded.
    #[error(transparent)]
    Positions(#[from] PositionsError),
}

impl From<Fault> for FilesError {
    fn from(fault: Fault) -> Self {
        Self::Place(Box::new(fault))
    }
}

/// Lists the files, and compares them with the positions. Changes nothing.
pub async fn check<P: Positions>(
    config: &FilesConfig,
    positions: &P,
) -> Result<FilesFacts, FilesError> {
    let entries = Place::open(config)?.list().await?;
    let positions = positions.load().await?;
    let mut facts = FilesFacts::default();
    for entry in entries {
        facts.files += 1;
        facts.bytes += entry.size;
        let position = positions.get(&*entry.name);
        if position.is_some_and(|position| position.whole.as_ref() == Some(&entry.version)) {
            continue;
        }
        let next = position.map_or(0, |position| position.next);
        let left = match entry.packing {
            Packing::Plain if entry.size < next => {
                facts.shrunk.push(entry.name.to_string());
                continue;
            }
            Packing::Plain => entry.size - next,
            Packing::Gzip | Packing::Zstd => entry.size,
        };
        facts.files_left += usize::from(left > 0);
        facts.bytes_left += left;
    }
    Ok(facts)
}
