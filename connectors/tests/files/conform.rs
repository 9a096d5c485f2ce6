//! The checks that every source must pass, for each way in which files come.

use std::sync::atomic::{AtomicUsize, Ordering};

use tombstream_connectors::files::{FilesSource, LocalPositions};
use tombstream_testing::conformance::source::{self, SourceFixture};

use crate::support::{Folder, Kind};

/// How what is appended arrives.
#[derive(Clone, Copy)]
enum Arrives {
    /// At the end of one file.
    InOneFile,
    /// Each time in a file of its own, put there whole.
    InNewFiles(Kind),
}

struct Fixture {
    folder: Folder,
    arrives: Arrives,
    files: AtomicUsize,
}

impl Fixture {
    fn new(arrives: Arrives) -> Self {
        Self { folder: Folder::following(), arrives, files: AtomicUsize::new(0) }
    }
}

impl SourceFixture for Fixture {
    type Source = FilesSource<LocalPositions>;

    async fn open(&self) -> Self::Source {
        self.folder.open()
    }

    async fn append(&self, values: &[String]) {
        let text: String = values.iter().map(|value| format!("{value}\n")).collect();
        match self.arrives {
            Arrives::InOneFile => self.folder.append("one.jsonl", &text),
            Arrives::InNewFiles(kind) => {
                let number = self.files.fetch_add(1, Ordering::Relaxed);
                self.folder.write(&kind.name(&format!("{number:04}")), kind.pack(text.as_bytes()));
            }
        }
    }
}

async fn conforms(arrives: Arrives) {
    source::everything_comes_with_marks(&Fixture::new(arrives)).await;
    source::what_is_not_committed_comes_again(&Fixture::new(arrives)).await;
    source::what_is_committed_does_not_come_again(&Fixture::new(arrives)).await;
    source::a_commit_covers_no_more_than_its_marks(&Fixture::new(arrives)).await;
    source::dropping_next_loses_nothing(&Fixture::new(arrives)).await;
}

#[tokio::test]
async fn a_file_that_grows_conforms() {
    conforms(Arrives::InOneFile).await;
}

#[tokio::test]
async fn plain_files_conform() {
    conforms(Arrives::InNewFiles(Kind::Plain)).await;
}

#[tokio::test]
async fn files_of_gzip_conform() {
    conforms(Arrives::InNewFiles(Kind::Gzip)).await;
}

#[tokio::test]
async fn files_of_zstd_conform() {
    conforms(Arrives::InNewFiles(Kind::Zstd)).await;
}
