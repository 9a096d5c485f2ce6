//! The object store sink on a local directory, and on a store that fails.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use object_store::{ObjectStoreExt as _, PutPayload};
use tempfile::TempDir;
use tombstream_connectors::object_store::{ObjectStoreConfig, ObjectStoreSink};
use tombstream_model::{
    Address, DeletionId, Fence, Presence, Sink, SinkError, StoreId, Target, Verdict,
};
use tombstream_testing::conformance::sink::{self, SinkFixture};

struct Fixture {
    root: TempDir,
    sink: ObjectStoreSink,
    as_prefix: bool,
}

impl Fixture {
    fn new(as_prefix: bool) -> Self {
        let root = tempfile::tempdir().unwrap();
        let url = format!("file://{}", root.path().display());
        let sink = ObjectStoreSink::new(ObjectStoreConfig::new(url, "documents")).unwrap();
        Self { root, sink, as_prefix }
    }

    fn write(&self, key: &str) {
        let path = self.root.path().join(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("the copy at {key}")).unwrap();
    }

    /// Every file with its content.
    fn files(&self) -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        let mut open: Vec<PathBuf> = vec![self.root.path().to_owned()];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => open.push(path),
                    false => {
                        let content = fs::read_to_string(&path).unwrap();
                        files.insert(self.key(&path), content);
                    }
                }
            }
        }
        files
    }

    fn key(&self, path: &Path) -> String {
        path.strip_prefix(self.root.path()).unwrap().to_str().unwrap().to_owned()
    }

    async fn verdicts(&self, batch: &[Target]) -> Vec<Verdict> {
        let outcomes = self.sink.destroy(batch).await.unwrap();
        outcomes.iter().map(|outcome| outcome.verdict).collect()
    }
}

impl SinkFixture for Fixture {
    type Sink = ObjectStoreSink;

    fn sink(&self) -> &ObjectStoreSink {
        &self.sink
    }

    async fn put(&self, name: &str) -> Target {
        match self.as_prefix {
            true => {
                self.write(&format!("docs/{name}/original"));
                self.write(&format!("docs/{name}/small/thumbnail"));
            }
            false => self.write(&format!("docs/{name}")),
        }
        self.never(name).await
    }

    async fn never(&self, name: &str) -> Target {
        match self.as_prefix {
            true => prefix(&format!("docs/{name}/")),
            false => object(&format!("docs/{name}")),
        }
    }

    async fn exists(&self, target: &Target) -> bool {
        match &target.address {
            Address::Object { key, .. } => self.files().contains_key(key),
            Address::Prefix { prefix, .. } => {
                self.files().keys().any(|key| key.starts_with(prefix))
            }
            other => panic!("not an address in an object store: {other:?}"),
        }
    }
}

fn target(address: Address) -> Target {
    Target {
        deletion: DeletionId(1),
        store: StoreId(0),
        address,
        fence: Fence { token: 1, until: Instant::now() + Duration::from_secs(300) },
        lsn: None,
    }
}

fn object(key: &str) -> Target {
    target(Address::Object { bucket: "documents".into(), key: key.into() })
}

fn prefix(prefix: &str) -> Target {
    target(Address::Prefix { bucket: "documents".into(), prefix: prefix.into() })
}

#[tokio::test]
async fn objects_conform() {
    sink::all(&Fixture::new(false)).await;
}

#[tokio::test]
async fn prefixes_conform() {
    sink::all(&Fixture::new(true)).await;
}

/// Keys that differ by little; what stays is the same byte for byte (I8).
#[tokio::test]
async fn exactly_the_keys_asked_for_go() {
    let fixture = Fixture::new(false);
    let keys = [
        "docs/1/x",
        "docs/10/x",
        "docs/1",
        "a+b",
        "a b",
        "a%20b",
        "a%2Bb",
        "50%",
        "50%25",
        "it's",
        "it\"s",
        "amp&",
        "amp&amp;",
        "smile😀",
        "smile😁",
        "caf\u{e9}",
        "cafe\u{301}",
        "Case",
        "case",
        "q?a=b",
        "trail ",
        "trail",
        "(1)",
        "[1]",
    ];
    // A directory and a file can't share a name.
    let keys: Vec<&str> = keys.into_iter().filter(|key| *key != "docs/1").collect();
    for key in &keys {
        fixture.write(key);
    }
    for (place, key) in keys.iter().enumerate() {
        let before = fixture.files();
        let outcome = &fixture.sink.destroy(&[object(key)]).await.unwrap()[0];
        let mut expected = before;
        match outcome.verdict {
            Verdict::Deleted => {
                expected.remove(*key);
            }
            Verdict::Refused => assert!(outcome.said.contains("normalise"), "{}", outcome.said),
            other => panic!("{key:?}, number {place}: {other:?}, {}", outcome.said),
        }
        assert_eq!(fixture.files(), expected, "{key:?}");
    }
    let left: Vec<String> = fixture.files().into_keys().collect();
    assert_eq!(left, Vec::<String>::new(), "refused");
}

#[tokio::test]
async fn a_key_that_would_be_normalised_is_refused() {
    let fixture = Fixture::new(false);
    for key in ["foo/bar", "lead", "dir/x"] {
        fixture.write(key);
    }
    let before = fixture.files();
    let keys = ["foo//bar", "/lead", "lead/", "foo/./bar", "dir/../lead", "..", "/", "", "//"];
    for target in keys.map(object).into_iter().chain(["", "/", "dir", "/dir/", "dir//"].map(prefix))
    {
        let outcome = &fixture.sink.destroy(std::slice::from_ref(&target)).await.unwrap()[0];
        assert_eq!(outcome.verdict, Verdict::Refused, "{:?}", target.address);
        assert!(outcome.said.starts_with("not sent"), "{}", outcome.said);
        assert_eq!(fixture.sink.look(&[target]).await.unwrap(), [Presence::Unknown]);
    }
    assert_eq!(fixture.files(), before);
}

#[tokio::test]
async fn what_lies_elsewhere_is_refused() {
    let fixture = Fixture::new(false);
    fixture.write("docs/x");
    let elsewhere = target(Address::Object { bucket: "others".into(), key: "docs/x".into() });
    assert_eq!(fixture.verdicts(&[elsewhere]).await, [Verdict::Refused]);
    let url = format!("file://{}", fixture.root.path().display());
    let mut config = ObjectStoreConfig::new(url, "documents");
    config.prefix = "tenants/".into();
    let narrow = ObjectStoreSink::new(config).unwrap();
    let outcomes = narrow.destroy(&[object("docs/x"), prefix("docs/")]).await.unwrap();
    assert!(outcomes.iter().all(|outcome| outcome.verdict == Verdict::Refused));
    assert_eq!(fixture.files().len(), 1);
}

#[tokio::test]
async fn a_prefix_leaves_what_is_beside_it() {
    let fixture = Fixture::new(true);
    for key in ["docs/1/a", "docs/1/b/c", "docs/10/x", "docs/1x", "other/docs/1/a"] {
        fixture.write(key);
    }
    assert_eq!(fixture.verdicts(&[prefix("docs/1/")]).await, [Verdict::Deleted]);
    let left: Vec<String> = fixture.files().into_keys().collect();
    assert_eq!(left, ["docs/10/x", "docs/1x", "other/docs/1/a"]);
}

/// A root that is gone makes every copy absent, and must not prove it.
#[tokio::test]
async fn a_missing_root_is_no_absence() {
    let fixture = Fixture::new(false);
    fixture.sink.check().await.unwrap();
    fs::remove_dir_all(fixture.root.path()).unwrap();
    for error in [
        fixture.sink.destroy(&[object("a")]).await.unwrap_err(),
        fixture.sink.look(&[object("a")]).await.unwrap_err(),
        fixture.sink.check().await.unwrap_err(),
    ] {
        assert!(matches!(error, SinkError::Missing(_)), "{error}");
    }
}

/// The lease ends while the store answers the head: the delete is not sent (S1).
#[tokio::test]
async fn a_lease_that_ends_before_the_delete_stops_it() {
    let store = InMemory::new();
    store.put(&"a".into(), PutPayload::from_static(b"a")).await.unwrap();
    let slow = ThrottleConfig {
        wait_get_per_call: Duration::from_millis(300),
        ..ThrottleConfig::default()
    };
    let store = Arc::new(ThrottledStore::new(store, slow));
    let config = ObjectStoreConfig::new("memory://", "documents");
    let sink = ObjectStoreSink::with_store(config, Arc::clone(&store) as _);
    let mut late = object("a");
    late.fence.until = Instant::now() + Duration::from_millis(100);
    let outcomes = sink.destroy(&[late]).await.unwrap();
    assert_eq!((outcomes[0].verdict, &*outcomes[0].said), (Verdict::Busy, "lease over"));
    store.head(&"a".into()).await.expect("the object is there");
}

#[tokio::test]
async fn a_store_that_hangs_is_unavailable() {
    let slow =
        ThrottleConfig { wait_get_per_call: Duration::from_secs(60), ..ThrottleConfig::default() };
    let store = Arc::new(ThrottledStore::new(InMemory::new(), slow));
    let mut config = ObjectStoreConfig::new("memory://", "documents");
    config.request_timeout = Duration::from_millis(100);
    let sink = ObjectStoreSink::with_store(config, store);
    let error = sink.destroy(&[object("a"), object("b")]).await.unwrap_err();
    assert!(matches!(error, SinkError::Unavailable(_)), "{error}");
}
