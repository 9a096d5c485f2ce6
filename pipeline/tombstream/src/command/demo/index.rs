//! The index, read and written without the product's own connector.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::Context as _;

use super::document::Document;

/// One text for each document, by its id.
#[derive(Clone, Debug)]
pub(super) struct Index {
    folder: PathBuf,
}

impl Index {
    pub(super) fn make(folder: PathBuf) -> anyhow::Result<Self> {
        std::fs::create_dir(&folder)
            .with_context(|| format!("{} can't be made", folder.display()))?;
        Ok(Self { folder })
    }

    pub(super) fn put(&self, documents: &[Document]) -> anyhow::Result<()> {
        for document in documents {
            std::fs::write(self.folder.join(document.id.to_string()), document.text())?;
        }
        Ok(())
    }

    /// How many there are.
    pub(super) fn count(&self) -> anyhow::Result<usize> {
        Ok(std::fs::read_dir(&self.folder).context("the index can't be listed")?.count())
    }

    /// Every text by its id.
    pub(super) fn list(&self) -> anyhow::Result<HashMap<String, String>> {
        let mut texts = HashMap::new();
        for entry in std::fs::read_dir(&self.folder).context("the index can't be listed")? {
            let entry = entry?;
            let id = entry.file_name().to_string_lossy().into_owned();
            texts.insert(id, std::fs::read_to_string(entry.path())?);
        }
        Ok(texts)
    }
}
