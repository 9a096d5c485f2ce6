//! Files in a bucket of a real S3 server.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{ObjectStoreExt as _, PutPayload};
use reqsign::aws::{RequestSigner, StaticCredentialProvider};
use reqsign::{Signer, default_context};
use tokio::time::timeout;
use tombstream_connectors::files::{self, FilesConfig, FilesSource, LocalPositions};
use tombstream_model::{Mark, Records, Source as _, SourceError};

/// The most that any wait of a test takes.
const BOUND: Duration = Duration::from_secs(60);

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: where is the S3 server?"))
}

/// A bucket of this test's own, filled in another way than it is read.
struct Bucket {
    name: String,
    store: AmazonS3,
    config: FilesConfig,
    home: tempfile::TempDir,
}

impl Bucket {
    async fn new() -> Self {
        let endpoint = variable("TOMBSTREAM_TEST_S3_ENDPOINT");
        let id = variable("TOMBSTREAM_TEST_S3_ACCESS_KEY");
        let secret = variable("TOMBSTREAM_TEST_S3_SECRET_KEY");
        let name = format!("test-{}", uuid::Uuid::new_v4().simple());
        // The crate makes no buckets.
        let provider = StaticCredentialProvider::new(&id, &secret);
        let signer =
            Signer::new(default_context(), provider, RequestSigner::new("s3", "us-east-1"));
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let request = http::Request::builder()
            .method("PUT")
            .uri(format!("{endpoint}/{name}"))
            .header("x-amz-content-sha256", empty);
        let (mut head, body) = request.body(Vec::new()).unwrap().into_parts();
        signer.sign(&mut head, None).await.unwrap();
        let request = http::Request::from_parts(head, body).try_into().unwrap();
        let response = reqwest::Client::new().execute(request).await.unwrap();
        assert!(response.status().is_success(), "{}", response.status());

        let store = AmazonS3Builder::new()
            .with_endpoint(&endpoint)
            .with_allow_http(true)
            .with_bucket_name(&name)
            .with_access_key_id(&id)
            .with_secret_access_key(&secret);
        let mut config = FilesConfig::new(format!("s3://{name}/archive"));
        config.poll = Duration::from_millis(50);
        config.options = [
            ("aws_endpoint", endpoint),
            ("aws_allow_http", "true".to_owned()),
            ("aws_access_key_id", id),
            ("aws_secret_access_key", secret),
        ]
        .into_iter()
        .collect();
        let home = tempfile::tempdir().unwrap();
        Self { name, store: store.build().unwrap(), config, home }
    }

    async fn put(&self, name: &str, bytes: Vec<u8>) {
        self.store.put(&Path::parse(name).unwrap(), PutPayload::from(bytes)).await.unwrap();
    }

    fn positions(&self) -> LocalPositions {
        LocalPositions::new(self.home.path().join("positions.json"))
    }

    fn open(&self) -> FilesSource<LocalPositions> {
        FilesSource::new(&self.config, self.positions(), |_| {}).unwrap()
    }
}

fn lines(range: std::ops::Range<usize>) -> Vec<u8> {
    range.flat_map(|at| format!("{{\"id\":{at}}}\n").into_bytes()).collect()
}

fn values(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|at| format!("{{\"id\":{at}}}")).collect()
}

/// Reads until there are so many events or the source ends: what they hold, and the marks.
async fn some(source: &mut FilesSource<LocalPositions>, count: usize) -> (Vec<String>, Vec<Mark>) {
    let (mut texts, mut marks) = (Vec::new(), Vec::new());
    while texts.len() < count && !source.has_ended() {
        let polled = timeout(BOUND, source.next()).await.unwrap().unwrap();
        let Records::Events(events) = polled.records else { panic!("files bring events") };
        let text = |value: &[u8]| String::from_utf8(value.to_vec()).unwrap();
        texts.extend(events.iter().map(|event| text(event.value.as_deref().unwrap())));
        marks.extend(polled.marks);
    }
    (texts, marks)
}

#[tokio::test]
async fn a_prefix_is_read_once_and_what_comes_later_by_the_next() {
    let bucket = Bucket::new().await;
    bucket.put("archive/b.jsonl.zst", zstd::encode_all(&lines(3..6)[..], 1).unwrap()).await;
    bucket.put("archive/a/odd name +%.jsonl", lines(0..3)).await;
    bucket.put("archive2/c.jsonl", lines(90..91)).await;
    let facts = files::check(&bucket.config, &bucket.positions()).await.unwrap();
    assert_eq!((facts.files, facts.files_left), (2, 2));
    let mut source = bucket.open();
    let (texts, marks) = some(&mut source, usize::MAX).await;
    assert_eq!(texts, values(0..6));
    let first = format!("s3://{}/archive/a/odd name +%.jsonl", bucket.name);
    assert_eq!(&*marks[0].topic, first);
    source.commit(marks).await.unwrap();
    drop(source);
    let facts = files::check(&bucket.config, &bucket.positions()).await.unwrap();
    assert_eq!((facts.files, facts.files_left, facts.bytes_left), (2, 0, 0));
    bucket.put("archive/c.jsonl", lines(6..8)).await;
    assert_eq!(some(&mut bucket.open(), usize::MAX).await.0, values(6..8));
}

#[tokio::test]
async fn an_object_that_is_written_anew_with_more_lines_is_read_on() {
    let mut bucket = Bucket::new().await;
    bucket.config.follow = true;
    bucket.put("archive/a.jsonl", lines(0..500)).await;
    let mut source = bucket.open();
    let (texts, marks) = some(&mut source, 500).await;
    assert_eq!(texts, values(0..500));
    source.commit(marks).await.unwrap();
    bucket.put("archive/a.jsonl", lines(0..700)).await;
    assert_eq!(some(&mut source, 200).await.0, values(500..700));
    // Other lines are another file.
    bucket.put("archive/a.jsonl", lines(7..800)).await;
    let error = loop {
        match timeout(BOUND, source.next()).await.unwrap() {
            Ok(polled) => assert!(polled.records.is_empty()),
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, SourceError::Fatal(said) if said.contains("replaced")), "{error:?}");
}

#[tokio::test]
async fn several_blocks_of_a_large_object_come_whole() {
    let bucket = Bucket::new().await;
    let line = |at: usize| format!("{{\"id\":{at},\"more\":\"{}\"}}\n", "x".repeat(4_000));
    bucket.put("archive/a.jsonl", (0..3_000).flat_map(|at| line(at).into_bytes()).collect()).await;
    let (texts, _) = some(&mut bucket.open(), usize::MAX).await;
    assert!(texts.iter().enumerate().all(|(at, text)| *text == line(at).trim_end()));
    assert_eq!(texts.len(), 3_000);
}

#[tokio::test]
async fn credentials_that_are_wrong_are_an_outage_and_no_end() {
    let mut bucket = Bucket::new().await;
    bucket.put("archive/a.jsonl", lines(0..3)).await;
    let options = [
        ("aws_endpoint", variable("TOMBSTREAM_TEST_S3_ENDPOINT")),
        ("aws_allow_http", "true".to_owned()),
        ("aws_access_key_id", "nobody".to_owned()),
        ("aws_secret_access_key", "nothing".to_owned()),
    ];
    bucket.config.options = options.into_iter().collect();
    let mut source = bucket.open();
    let error = timeout(BOUND, source.next()).await.unwrap().unwrap_err();
    assert!(matches!(error, SourceError::Unavailable(_)), "{error:?}");
    assert!(!source.has_ended());
    let error = files::check(&bucket.config, &bucket.positions()).await.unwrap_err();
    assert!(error.to_string().contains("can't be listed"), "{error}");
}
