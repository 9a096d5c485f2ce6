//! An index in a folder, and whoever feeds it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use tantivy::collector::DocSetCollector;
use tantivy::query::AllQuery;
use tantivy::schema::{
    FAST, Field, INDEXED, IndexRecordOption, STORED, STRING, Schema, TEXT, TextFieldIndexing,
    TextOptions, Value as _,
};
use tantivy::store::Compressor;
use tantivy::{Document as _, Index, IndexSettings, IndexWriter, TantivyDocument};
use tempfile::TempDir;
use tombstream_connectors::tantivy::{TantivyConfig, TantivySink};
use tombstream_model::{Address, DeletionId, Fence, Sink, StoreId, Target, Verdict};
use tombstream_testing::conformance::sink::SinkFixture;

/// No file.
pub(crate) const NONE: [&str; 0] = [];

pub(crate) struct Fixture {
    folder: TempDir,
    pub(crate) sink: TantivySink,
    as_chunks: bool,
}

/// The fields of the fixture's schema.
#[derive(Clone, Copy)]
pub(crate) struct Fields {
    pub(crate) id: Field,
    /// The row that a chunk belongs to.
    pub(crate) document: Field,
    pub(crate) body: Field,
    pub(crate) label: Field,
    pub(crate) number: Field,
}

impl Fixture {
    pub(crate) fn new(as_chunks: bool) -> Self {
        Self::with(as_chunks, |config| config.purge_wait = Duration::ZERO)
    }

    pub(crate) fn with(as_chunks: bool, change: impl FnOnce(&mut TantivyConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (schema, _) = schema();
        // What is compressed can't be looked for in the files.
        let settings =
            IndexSettings { docstore_compression: Compressor::None, ..IndexSettings::default() };
        Index::builder().schema(schema).settings(settings).create_in_dir(folder.path()).unwrap();
        let mut config = TantivyConfig::new(folder.path().to_str().unwrap());
        change(&mut config);
        Self { folder, sink: TantivySink::new(config).unwrap(), as_chunks }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn index(&self) -> Index {
        Index::open_in_dir(self.path()).unwrap()
    }

    /// Adds a document and commits.
    pub(crate) fn add(&self, id: &str, document: &str, body: &str) {
        let mut writer = writer(&self.index());
        writer.add_document(self::document(id, document, body)).unwrap();
        writer.commit().unwrap();
        writer.wait_merging_threads().unwrap();
    }

    /// Adds documents of these ids, all in one segment.
    pub(crate) fn add_all(&self, ids: &[&str]) {
        let mut writer = writer(&self.index());
        for id in ids {
            writer.add_document(document(id, id, &format!("the copy of {id}"))).unwrap();
        }
        writer.commit().unwrap();
        writer.wait_merging_threads().unwrap();
    }

    /// Every living document, all of it, by its id.
    pub(crate) fn documents(&self) -> BTreeMap<String, String> {
        let (schema, fields) = schema();
        let searcher = self.index().reader().unwrap().searcher();
        let all = searcher.search(&AllQuery, &DocSetCollector).unwrap();
        all.into_iter()
            .map(|at| {
                let document: TantivyDocument = searcher.doc(at).unwrap();
                let id = document.get_first(fields.id).unwrap().as_str().unwrap().to_owned();
                (id, document.to_json(&schema))
            })
            .collect()
    }

    /// Every file of the folder.
    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap());
        entries
            .map(|entry| {
                (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
            })
            .collect()
    }

    /// What the files end in that hold `text` somewhere.
    pub(crate) fn files_with(&self, text: &str) -> Vec<String> {
        let holds = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(text);
        let files = self.files().into_iter().filter(|(_, bytes)| holds(bytes));
        let mut ends: Vec<String> =
            files.map(|(name, _)| name.rsplit('.').next().unwrap().to_owned()).collect();
        ends.sort();
        ends
    }

    /// Every term of a field's dictionaries, whether or not a living document has it.
    pub(crate) fn terms(&self, field: Field) -> BTreeSet<String> {
        let mut terms = BTreeSet::new();
        for segment in self.index().reader().unwrap().searcher().segment_readers() {
            let index = segment.inverted_index(field).unwrap();
            let mut stream = index.terms().stream().unwrap();
            while stream.advance() {
                terms.insert(String::from_utf8(stream.key().to_vec()).unwrap());
            }
        }
        terms
    }

    pub(crate) fn id(&self, id: &str) -> Target {
        let index = self.path().to_str().unwrap().into();
        target(Address::Document { index, id: id.into(), routing: None })
    }

    pub(crate) fn field(&self, field: &str, value: &str) -> Target {
        let index = self.path().to_str().unwrap().into();
        target(Address::Field { index, field: field.into(), value: value.into(), routing: None })
    }

    pub(crate) async fn verdicts(&self, batch: &[Target]) -> Vec<Verdict> {
        let outcomes = self.sink.destroy(batch).await.unwrap();
        outcomes.iter().map(|outcome| outcome.verdict).collect()
    }

    /// Asks until nothing is busy.
    pub(crate) async fn settled(&self, batch: &[Target]) -> Vec<Verdict> {
        loop {
            let verdicts = self.verdicts(batch).await;
            if !verdicts.contains(&Verdict::Busy) {
                return verdicts;
            }
        }
    }
}

impl SinkFixture for Fixture {
    type Sink = TantivySink;

    fn sink(&self) -> &TantivySink {
        &self.sink
    }

    async fn put(&self, name: &str) -> Target {
        match self.as_chunks {
            true => {
                let mut writer = writer(&self.index());
                for chunk in ["first", "second"] {
                    let id = format!("{name}/{chunk}");
                    writer.add_document(document(&id, name, "a chunk")).unwrap();
                }
                writer.commit().unwrap();
                writer.wait_merging_threads().unwrap();
            }
            false => self.add(name, "", "a document"),
        }
        self.never(name).await
    }

    async fn never(&self, name: &str) -> Target {
        match self.as_chunks {
            true => self.field("document", name),
            false => self.id(name),
        }
    }

    async fn exists(&self, target: &Target) -> bool {
        let documents = self.documents();
        match &target.address {
            Address::Document { id, .. } => documents.contains_key(id),
            Address::Field { value, .. } => {
                documents.keys().any(|id| id.starts_with(&format!("{value}/")))
            }
            other => panic!("not an address in a search index: {other:?}"),
        }
    }
}

pub(crate) fn schema() -> (Schema, Fields) {
    let mut schema = Schema::builder();
    let keyword = TextFieldIndexing::default()
        .set_tokenizer("raw")
        .set_fieldnorms(false)
        .set_index_option(IndexRecordOption::Basic);
    let keyword = TextOptions::default().set_indexing_options(keyword).set_stored();
    let fields = Fields {
        id: schema.add_text_field("id", STRING | STORED),
        document: schema.add_text_field("document", keyword),
        body: schema.add_text_field("body", TEXT | STORED),
        label: schema.add_text_field("label", STRING | STORED | FAST),
        number: schema.add_u64_field("number", INDEXED | STORED),
    };
    (schema.build(), fields)
}

pub(crate) fn document(id: &str, document: &str, body: &str) -> TantivyDocument {
    let (_, fields) = schema();
    let mut made = TantivyDocument::default();
    made.add_text(fields.id, id);
    if !document.is_empty() {
        made.add_text(fields.document, document);
    }
    made.add_text(fields.body, body);
    made.add_text(fields.label, body);
    made
}

pub(crate) fn writer(index: &Index) -> IndexWriter {
    index.writer_with_num_threads(1, 15_000_000).unwrap()
}

pub(crate) fn target(address: Address) -> Target {
    Target {
        deletion: DeletionId(1),
        store: StoreId(0),
        address,
        fence: Fence { token: 1, until: Instant::now() + Duration::from_secs(300) },
        lsn: None,
    }
}
