//! Positions in a file of their own, where there is no ledger.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::positions::{Position, Positions, PositionsError};

/// Positions in one JSON file, which is replaced as a whole: written beside it, flushed, renamed. Its
/// checksum tells a file that was torn or changed, which is refused.
///
/// The file is one source's and one process's.
#[derive(Clone, Debug)]
pub struct LocalPositions {
    path: PathBuf,
    /// What the file holds, so that it is read once.
    known: Arc<Mutex<Option<BTreeMap<String, Position>>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept<'a> {
    sha256: &'a str,
    #[serde(borrow)]
    positions: &'a RawValue,
}

impl LocalPositions {
    /// Positions in the file at `path`. It need not be there yet; its folder must.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), known: Arc::default() }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, PositionsError> + Send + 'static,
    ) -> Result<T, PositionsError> {
        let here = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&here)).await;
        done.map_err(|error| PositionsError::Unavailable(Box::new(error)))?
    }

    fn read(&self) -> Result<BTreeMap<String, Position>, PositionsError> {
        match std::fs::read(&self.path) {
            Ok(bytes) => parse(&bytes).ok_or_else(|| {
                PositionsError::Refused(format!(
                    "the positions in {} are torn or were changed: put back a copy of the file, or \
                     remove it, and everything is read again",
                    self.path.display()
                ))
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn failed(&self, error: io::Error) -> PositionsError {
        let what = format!("{}: {error}", self.path.display());
        PositionsError::Unavailable(io::Error::new(error.kind(), what).into())
    }

    fn keep(&self, positions: &[(Arc<str>, Position)]) -> Result<(), PositionsError> {
        // Held while the file is replaced: two at once would write the same file beside it.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = match known.take() {
            Some(all) => all,
            None => self.read()?,
        };
        for (file, position) in positions {
            if all.get(&**file).is_none_or(|kept| position.is_after(kept)) {
                all.insert(file.to_string(), position.clone());
            }
        }
        replace(&self.path, &print(&all)).map_err(|error| self.failed(error))?;
        *known = Some(all);
        Ok(())
    }
}

fn parse(bytes: &[u8]) -> Option<BTreeMap<String, Position>> {
    let kept: Kept<'_> = serde_json::from_slice(bytes).ok()?;
    let digest = hex::encode(Sha256::digest(kept.positions.get()));
    if digest != kept.sha256 {
        return None;
    }
    serde_json::from_str(kept.positions.get()).ok()
}

fn print(all: &BTreeMap<String, Position>) -> String {
    let positions = serde_json::to_string(all).expect("texts and numbers are json");
    let digest = hex::encode(Sha256::digest(&positions));
    format!("{{\"sha256\":\"{digest}\",\"positions\":{positions}}}\n")
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    // The name is durable with its folder.
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

impl Positions for LocalPositions {
    async fn load(&self) -> Result<BTreeMap<String, Position>, PositionsError> {
        self.blocking(|here| {
            let all = here.read()?;
            *here.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(all.clone());
            Ok(all)
        })
        .await
    }

    async fn store(&self, positions: &[(Arc<str>, Position)]) -> Result<(), PositionsError> {
        let positions = positions.to_vec();
        self.blocking(move |here| here.keep(&positions)).await
    }

    fn forgetting(&self, _file: &str) -> String {
        format!("remove {}: everything is read again, which is harmless", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(next: u64, whole: Option<&str>) -> Position {
        Position { next, tail: format!("digest of {next}"), whole: whole.map(str::to_owned) }
    }

    async fn store(positions: &LocalPositions, entries: &[(&str, Position)]) {
        let entries: Vec<_> =
            entries.iter().map(|(file, position)| ((*file).into(), position.clone())).collect();
        positions.store(&entries).await.unwrap();
    }

    #[tokio::test]
    async fn what_was_kept_is_there_after_a_restart_and_nothing_goes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("positions.json");
        let open = || LocalPositions::new(&path);
        assert!(open().load().await.unwrap().is_empty());
        let positions = open();
        store(&positions, &[("a", position(10, None)), ("b\"\n", position(1, Some("v")))]).await;
        store(&positions, &[("a", position(20, None)), ("c", position(0, None))]).await;
        store(&positions, &[("a", position(15, None)), ("b\"\n", position(1, None))]).await;
        let kept = open().load().await.unwrap();
        assert_eq!(kept, positions.load().await.unwrap());
        assert_eq!(kept["a"], position(20, None));
        assert_eq!(kept["b\"\n"], position(1, Some("v")));
        assert_eq!(kept.len(), 3);
        // One that was not loaded does not forget the others.
        store(&open(), &[("d", position(4, None))]).await;
        assert_eq!(open().load().await.unwrap().len(), 4);
    }

    #[tokio::test]
    async fn a_torn_or_changed_file_is_refused_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("positions.json");
        store(&LocalPositions::new(&path), &[("a", position(10, Some("v")))]).await;
        let whole = std::fs::read(&path).unwrap();
        let refused = async |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let error = LocalPositions::new(&path).load().await.unwrap_err();
            let PositionsError::Refused(said) = error else { panic!("{error:?}") };
            assert!(said.contains("positions.json") && said.contains("remove it"), "{said}");
            let new = [("a".into(), position(11, None))];
            LocalPositions::new(&path).store(&new).await.unwrap_err();
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
        };
        for length in 0..whole.len() - 1 {
            refused(&whole[..length]).await;
        }
        for at in 0..whole.len() - 1 {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            refused(&flipped).await;
        }
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(LocalPositions::new(&path).load().await.unwrap()["a"].next, 10);
    }

    #[tokio::test]
    async fn a_file_that_can_not_be_replaced_is_unavailable_and_nothing_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let positions = LocalPositions::new(folder.path().join("gone/positions.json"));
        let new = [("a".into(), position(11, None))];
        let error = positions.store(&new).await.unwrap_err();
        assert!(matches!(error, PositionsError::Unavailable(_)), "{error:?}");
        std::fs::create_dir(folder.path().join("gone")).unwrap();
        positions.store(&new).await.unwrap();
        assert_eq!(positions.load().await.unwrap()["a"].next, 11);
    }
}
