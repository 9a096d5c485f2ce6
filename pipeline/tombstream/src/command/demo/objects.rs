//! The object store: a folder, read and written as files, without the product's own connector.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::document::Document;

/// One object for each document: `{id}/original`.
#[derive(Clone, Debug)]
pub(super) struct Objects {
    folder: PathBuf,
}

impl Objects {
    pub(super) fn make(folder: PathBuf) -> anyhow::Result<Self> {
        std::fs::create_dir(&folder)
            .with_context(|| format!("{} can't be made", folder.display()))?;
        Ok(Self { folder })
    }

    pub(super) fn key(document: &Document) -> String {
        format!("{}/original", document.id)
    }

    pub(super) fn put(&self, documents: &[Document]) -> anyhow::Result<()> {
        for document in documents {
            let path = self.folder.join(Self::key(document));
            let folder = path.parent().context("a key has two parts")?;
            std::fs::create_dir(folder)?;
            std::fs::write(&path, document.object())?;
        }
        Ok(())
    }

    /// How many there are.
    pub(super) fn count(&self) -> anyhow::Result<usize> {
        let mut count = 0;
        walk(&self.folder, &mut |_| {
            count += 1;
            Ok(())
        })?;
        Ok(count)
    }

    /// Every object's bytes by its key.
    pub(super) fn list(&self) -> anyhow::Result<HashMap<String, Vec<u8>>> {
        let mut objects = HashMap::new();
        walk(&self.folder, &mut |path| {
            let key = path.strip_prefix(&self.folder)?.to_string_lossy().into_owned();
            objects.insert(key, std::fs::read(path)?);
            Ok(())
        })?;
        Ok(objects)
    }
}

/// Shows every file below `folder`.
fn walk(folder: &Path, see: &mut dyn FnMut(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        // Removed while we walk.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).context("the objects can't be listed"),
    };
    for entry in entries {
        let entry = entry.context("the objects can't be listed")?;
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&entry.path(), see)?,
            Ok(_) => see(&entry.path())?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context("the objects can't be listed"),
        }
    }
    Ok(())
}
