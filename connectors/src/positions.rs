//! How far the files of a source were read: what is kept of it, and the port that keeps it.
//!
//! Outside of the connectors' folders, since one of them reads files and another keeps positions.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// How far one file was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Everything before this byte is durable. Of a compressed file: of what is in it.
    pub next: u64,
    /// What the last bytes before `next` were, as a digest in hexadecimal digits. It tells a file that was
    /// appended to from one that was replaced.
    pub tail: String,
    /// The version of the file that was read to its end, if it was.
    pub whole: Option<String>,
}

impl Position {
    /// Whether it stands further than `other`, of the same file. A position never goes back.
    pub fn is_after(&self, other: &Self) -> bool {
        self.next > other.next || (self.next == other.next && self.whole.is_some())
    }
}

/// Why positions can't be loaded or kept.
#[derive(Debug, thiserror::Error)]
pub enum PositionsError {
    /// It comes back by itself.
    #[error("the positions of the files can't be reached")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It needs a person.
    #[error("{0}")]
    Refused(String),
}

/// Where the positions of one source's files are kept.
pub trait Positions: Send + Sync + 'static {
    /// All of them, by the file's name.
    fn load(
        &self,
    ) -> impl Future<Output = Result<BTreeMap<String, Position>, PositionsError>> + Send;

    /// Keeps these, beside those of other files. They are durable when it returns. One that does not stand
    /// after what is kept is left out.
    fn store(
        &self,
        positions: &[(Arc<str>, Position)],
    ) -> impl Future<Output = Result<(), PositionsError>> + Send;

    /// What a person does so that `file` is read from its beginning again.
    fn forgetting(&self, file: &str) -> String;
}

/// Keeps nothing: what is read once is read from its beginning.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPositions;

impl Positions for NoPositions {
    async fn load(&self) -> Result<BTreeMap<String, Position>, PositionsError> {
        Ok(BTreeMap::new())
    }

    async fn store(&self, _positions: &[(Arc<str>, Position)]) -> Result<(), PositionsError> {
        Ok(())
    }

    fn forgetting(&self, _file: &str) -> String {
        "read it again: nothing is remembered of it".to_owned()
    }
}
