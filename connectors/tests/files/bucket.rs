//! A prefix of a bucket, in memory.

use std::sync::Arc;
use std::time::Duration;

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload};
use tombstream_connectors::files::{FilesConfig, FilesSource, LocalPositions};
use tombstream_model::{Source as _, SourceError};

use crate::support::{
    KINDS, Kind, all, all_committed, events, failing, lines, long_lines, some, text, thrice, values,
};

struct Bucket {
    store: Arc<InMemory>,
    config: FilesConfig,
    home: tempfile::TempDir,
}

impl Bucket {
    fn new(path: &str) -> Self {
        let mut config = FilesConfig::new(format!("memory://bucket/{path}"));
        config.poll = Duration::from_millis(5);
        Self { store: Arc::default(), config, home: tempfile::tempdir().unwrap() }
    }

    async fn put(&self, name: &str, bytes: Vec<u8>) {
        self.store.put(&Path::from(name), PutPayload::from(bytes)).await.unwrap();
    }

    fn open(&self) -> FilesSource<LocalPositions> {
        self.open_over(Arc::clone(&self.store) as _)
    }

    fn open_over(&self, store: Arc<dyn ObjectStore>) -> FilesSource<LocalPositions> {
        let positions = LocalPositions::new(self.home.path().join("positions.json"));
        FilesSource::with_store(&self.config, "memory://bucket", store, positions, |_| {}).unwrap()
    }
}

#[tokio::test]
async fn what_is_behind_the_prefix_is_read_and_nothing_else() {
    let bucket = Bucket::new("archive/2026");
    for kind in KINDS {
        bucket
            .put(&format!("archive/2026/{}", kind.name("a")), kind.pack(lines(0..9).as_bytes()))
            .await;
        bucket
            .put(&format!("archive/2026/x/{}", kind.name("b")), kind.pack(lines(9..20).as_bytes()))
            .await;
        bucket
            .put(&format!("archive/20261/{}", kind.name("c")), kind.pack(lines(90..91).as_bytes()))
            .await;
        bucket
            .put(&format!("archive/{}", kind.name("d")), kind.pack(lines(90..91).as_bytes()))
            .await;
    }
    let mut source = bucket.open();
    let (texts, marks) = some(&mut source, usize::MAX).await;
    assert_eq!(texts, [thrice(0..9), thrice(9..20)].concat());
    assert_eq!(&*marks[0].topic, "memory://bucket/archive/2026/a.jsonl");
    source.commit(marks).await.unwrap();
    assert_eq!(all(&mut bucket.open()).await, Vec::<String>::new());
    bucket.put("archive/2026/later.json", lines(20..22).into_bytes()).await;
    assert_eq!(all(&mut bucket.open()).await, values(20..22));
}

#[tokio::test]
async fn an_object_can_be_meant_by_its_whole_name() {
    let bucket = Bucket::new("archive/a.jsonl.zst");
    bucket.put("archive/a.jsonl.zst", Kind::Zstd.pack(lines(0..3).as_bytes())).await;
    bucket.put("archive/a.jsonl.zst2.jsonl", lines(3..6).into_bytes()).await;
    assert_eq!(all(&mut bucket.open()).await, values(0..3));
    // Such a name may be a folder's as well.
    let bucket = Bucket::new("day.jsonl");
    bucket.put("day.jsonl/1.jsonl", lines(0..3).into_bytes()).await;
    assert_eq!(all(&mut bucket.open()).await, values(0..3));
}

#[tokio::test]
async fn an_object_that_is_replaced_between_two_blocks_is_noticed() {
    for kind in [Kind::Plain, Kind::Zstd] {
        let whole = long_lines(0..7_000).join("\n");
        let other = whole.replace("id", "di");
        let bucket = Bucket::new("");
        let name = kind.name("a");
        let packed = kind.pack(whole.as_bytes());
        assert!(packed.len() > 5 << 20, "more than one block");
        bucket.put(&name, packed).await;
        let mut source = bucket.open();
        let (first, _) = some(&mut source, 1).await;
        assert!(first[0].contains("id"));
        bucket.put(&name, kind.pack(other.as_bytes())).await;
        let (texts, error) = failing(&mut source).await;
        assert!(texts.iter().all(|text| text.contains("\"id\"")), "of the other one nothing came");
        let error = match error {
            // It looks again, and finds another content.
            SourceError::Unavailable(_) => failing(&mut source).await.1,
            error @ SourceError::Fatal(_) => error,
        };
        assert!(
            matches!(&error, SourceError::Fatal(said) if said.contains("replaced")),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn calls_of_next_that_are_dropped_do_not_begin_a_request_anew() {
    let bucket = Bucket::new("");
    bucket.put("a.jsonl", lines(0..10).into_bytes()).await;
    let slow = ThrottleConfig {
        wait_list_per_call: Duration::from_millis(100),
        wait_get_per_call: Duration::from_millis(100),
        ..ThrottleConfig::default()
    };
    let store = ThrottledStore::new(InMemory::new(), slow);
    store.put(&Path::from("a.jsonl"), lines(0..10).into_bytes().into()).await.unwrap();
    let mut source = bucket.open_over(Arc::new(store));
    // A pipeline under load drops the call with each commit, some hundred times a second.
    let mut calls = 0;
    let texts = loop {
        calls += 1;
        assert!(calls < 1_000, "each call begins anew");
        if let Ok(polled) = tokio::time::timeout(Duration::from_millis(3), source.next()).await {
            let events = events(&polled.unwrap());
            break events.iter().map(text).collect::<Vec<_>>();
        }
    };
    assert_eq!(texts, values(0..10));
    assert!(calls > 10, "{calls}");
}

#[tokio::test]
async fn an_object_of_which_everything_was_read_is_not_asked_for_again() {
    let bucket = Bucket::new("");
    for kind in KINDS {
        bucket.put(&kind.name("a"), kind.pack(lines(0..10).as_bytes())).await;
    }
    assert_eq!(all_committed(&mut bucket.open()).await.len(), 30);
    // A get would take an hour.
    let hour = Duration::from_secs(3_600);
    let stuck = ThrottleConfig { wait_get_per_call: hour, ..ThrottleConfig::default() };
    let store = Arc::new(ThrottledStore::new(bucket.store.fork(), stuck));
    let mut source = bucket.open_over(store);
    // The versions of a fork are those of the original.
    assert_eq!(all(&mut source).await, Vec::<String>::new());
}
