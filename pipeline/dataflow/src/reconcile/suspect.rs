//! What a first look suspects, kept on disk until the second one.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Seek as _, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use tombstream_model::{Key, Listed, RelationId, StoreId};

use super::entry::Place;

/// What an entry remembers of what was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Note {
    /// A row, and by which of its relation's templates.
    #[serde(rename = "r")]
    Row(RelationId, usize, Key),
    /// A deletion's row.
    #[serde(rename = "d")]
    Deletion(RelationId, Key),
    /// A copy in a store.
    #[serde(rename = "c")]
    Copy(StoreId, Listed),
}

/// Something that may be wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Suspect {
    /// Where it was seen.
    pub(crate) place: Place,
    /// A row whose copy was not seen, or a copy.
    pub(crate) note: Note,
    /// Whose copy it was, by the ledger's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) known: Option<(RelationId, Key)>,
}

/// The suspects of one worker: a file without a name.
#[derive(Debug)]
pub(crate) struct Suspects {
    file: BufWriter<File>,
    pub(crate) count: u64,
}

impl Suspects {
    pub(crate) fn new(folder: &Path) -> io::Result<Self> {
        Ok(Self { file: BufWriter::new(tempfile::tempfile_in(folder)?), count: 0 })
    }

    pub(crate) fn push(&mut self, suspect: &Suspect) -> io::Result<()> {
        serde_json::to_writer(&mut self.file, suspect)?;
        self.count += 1;
        self.file.write_all(b"\n")
    }

    /// Reads them from the first on.
    pub(crate) fn read(self) -> io::Result<impl Iterator<Item = io::Result<Suspect>> + Send> {
        let mut file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        Ok(BufReader::new(file).lines().map(|line| Ok(serde_json::from_str(&line?)?)))
    }
}
