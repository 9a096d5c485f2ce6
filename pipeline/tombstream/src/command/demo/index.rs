//! The index: one of tantivy in a folder, fed and read as its application would, without the product's
//! own connector.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::Context as _;
use tantivy::collector::{Count, DocSetCollector};
use tantivy::query::AllQuery;
use tantivy::schema::{Field, STORED, STRING, Schema, TEXT, Value as _};
use tantivy::{IndexWriter, ReloadPolicy, Searcher, TantivyDocument};

use super::document::Document;

/// What tantivy asks for at least.
const WRITER_BYTES: usize = 15_000_000;

/// One text for each document, by its id.
pub(super) struct Index {
    folder: PathBuf,
    id: Field,
    text: Field,
}

impl Index {
    pub(super) fn make(folder: PathBuf) -> anyhow::Result<Self> {
        std::fs::create_dir(&folder)
            .with_context(|| format!("{} can't be made", folder.display()))?;
        let mut schema = Schema::builder();
        let id = schema.add_text_field("id", STRING | STORED);
        let text = schema.add_text_field("text", TEXT | STORED);
        tantivy::Index::create_in_dir(&folder, schema.build())
            .context("the index can't be made")?;
        Ok(Self { folder, id, text })
    }

    /// Adds documents and commits them. The writer is dropped, since there may be one only.
    pub(super) fn put(&self, documents: &[Document]) -> anyhow::Result<()> {
        let index = tantivy::Index::open_in_dir(&self.folder)?;
        let mut writer: IndexWriter = index.writer_with_num_threads(1, WRITER_BYTES)?;
        for document in documents {
            let mut added = TantivyDocument::default();
            added.add_text(self.id, document.id.to_string());
            added.add_text(self.text, document.text());
            writer.add_document(added)?;
        }
        writer.commit()?;
        writer.wait_merging_threads()?;
        Ok(())
    }

    /// How many there are.
    pub(super) fn count(&self) -> anyhow::Result<usize> {
        Ok(self.searcher()?.search(&AllQuery, &Count)?)
    }

    /// Every text by its id.
    pub(super) fn list(&self) -> anyhow::Result<HashMap<String, String>> {
        let searcher = self.searcher()?;
        let mut texts = HashMap::new();
        for address in searcher.search(&AllQuery, &DocSetCollector)? {
            let document: TantivyDocument = searcher.doc(address)?;
            let value = |field| {
                let value = document.get_first(field).and_then(|value| value.as_str());
                value.map(str::to_owned).context("a document of the index lacks a field")
            };
            let (id, text): (String, String) = (value(self.id)?, value(self.text)?);
            // Two texts of one id are not the one that was seeded.
            texts.entry(id).and_modify(|all: &mut String| all.push_str(&text)).or_insert(text);
        }
        Ok(texts)
    }

    /// A look at the last commit, opened anew: the pipeline rewrites the segments meanwhile.
    fn searcher(&self) -> anyhow::Result<Searcher> {
        let index =
            tantivy::Index::open_in_dir(&self.folder).context("the index can't be opened")?;
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
        let reader: tantivy::IndexReader = reader;
        Ok(reader.searcher())
    }
}
