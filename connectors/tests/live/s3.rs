//! The S3 sink on a real server, and on servers that answer wrongly (F26–F33).

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

#[path = "s3/between.rs"]
mod between;
#[path = "s3/dialects.rs"]
mod dialects;
#[path = "s3/faulty.rs"]
mod faulty;
#[path = "s3/limit.rs"]
mod limit;
#[path = "s3/server.rs"]
mod server;
#[path = "s3/told.rs"]
mod told;
#[path = "s3/versions.rs"]
mod versions;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faulty::{Faulty, Reaction};
use server::{Bucket, target, verdicts};
use tokio::net::TcpListener;
use tombstream_connectors::s3::{ObjectLock, Probe, S3Config, S3Listing, S3Sink, Versioning};
use tombstream_model::{
    Address, Listing as _, ListingPart as _, Presence, Sink, SinkError, Target, Verdict,
};
use tombstream_testing::conformance::sink::{self, SinkFixture};

struct Fixture {
    bucket: Bucket,
    sink: S3Sink,
    as_prefix: bool,
}

impl Fixture {
    async fn new(as_prefix: bool) -> Self {
        let bucket = Bucket::new().await;
        let sink = bucket.sink();
        Self { bucket, sink, as_prefix }
    }

    fn target(&self, name: &str) -> Target {
        match self.as_prefix {
            true => self.bucket.prefix(&format!("docs/{name}/")),
            false => self.bucket.object(&format!("docs/{name}")),
        }
    }
}

impl SinkFixture for Fixture {
    type Sink = S3Sink;

    fn sink(&self) -> &S3Sink {
        &self.sink
    }

    async fn put(&self, name: &str) -> Target {
        match self.as_prefix {
            true => {
                self.bucket.put(&format!("docs/{name}/original")).await;
                self.bucket.put(&format!("docs/{name}/a b/thumb+nail.png")).await;
            }
            false => self.bucket.put(&format!("docs/{name}")).await,
        }
        self.target(name)
    }

    async fn never(&self, name: &str) -> Target {
        self.target(name)
    }

    async fn exists(&self, target: &Target) -> bool {
        let keys = self.bucket.keys().await;
        match &target.address {
            Address::Object { key, .. } => keys.contains(key),
            Address::Prefix { prefix, .. } => keys.iter().any(|key| key.starts_with(prefix)),
            other => panic!("not an address in S3: {other:?}"),
        }
    }
}

#[tokio::test]
async fn objects_conform() {
    sink::all(&Fixture::new(false).await).await;
}

#[tokio::test]
async fn prefixes_conform() {
    let fixture = Fixture::new(true).await;
    sink::a_copy_is_destroyed(&fixture).await;
    sink::an_absent_copy_is_absent(&fixture).await;
    sink::destroying_twice_is_harmless(&fixture).await;
    sink::outcomes_come_in_the_order_of_the_targets(&fixture).await;
    sink::what_is_not_in_the_batch_stays(&fixture).await;
    sink::a_target_whose_fence_is_over_is_not_touched(&fixture).await;
    sink::looking_changes_nothing(&fixture).await;
    sink::looks_come_in_the_order_of_the_targets(&fixture).await;
}

/// Prints how long each probe takes: the reason for the default.
#[tokio::test]
async fn a_thousand_keys_go_in_one_request() {
    let bucket = Bucket::new().await;
    for probe in [Probe::Head, Probe::None] {
        let keys: Vec<String> = (0..1000).map(|n| format!("docs/{n}/original")).collect();
        bucket.put_all(&keys).await;
        let sink = bucket.sink_with(|config| config.probe = probe);
        let batch: Vec<Target> = keys.iter().map(|key| bucket.object(key)).collect();
        let started = Instant::now();
        assert_eq!(verdicts(&sink, &batch).await, [Verdict::Deleted; 1000]);
        println!("1,000 keys, probe {probe:?}: {:?}", started.elapsed());
        assert!(bucket.keys().await.is_empty());
        let started = Instant::now();
        assert_eq!(sink.look(&batch).await.unwrap(), [Presence::Absent; 1000]);
        println!("1,000 looks: {:?}", started.elapsed());
    }
}

/// Keys that differ by little. The order pairs each with its nearest neighbour.
const ODD: [&str; 32] = [
    "docs/1/x",
    "docs/10/x",
    "docs/1%2Fx",
    "a+b",
    "a b",
    "a%20b",
    "a%2Bb",
    "50%",
    "50%25",
    "quote\"",
    "quote'",
    "quote&quot;",
    "amp&",
    "amp&amp;",
    "<lt>",
    "&lt;lt&gt;",
    "line\nbreak",
    "line\rbreak",
    "line\r\nbreak",
    "line&#10;break",
    "tab\tkey",
    "tab key",
    "smile😀",
    "smile😁",
    "caf\u{e9}",
    "cafe\u{301}",
    "back\\slash",
    "trail ",
    "trail",
    "Case",
    "case",
    "q?a=b#c",
];

/// Every other odd key goes, then the rest; what stays is the same byte for byte (F32, I8).
#[tokio::test]
async fn exactly_the_keys_asked_for_go() {
    let bucket = Bucket::new().await;
    let sink = bucket.sink();
    let long = |last: char| format!("{}{last}", vec!["x".repeat(203); 5].join("/") + "/xxx");
    let mut keys: Vec<String> = ODD.iter().map(|key| (*key).to_owned()).collect();
    keys.extend([long('y'), long('z')]);
    assert_eq!(long('y').len(), 1024);
    for first in [0, 1] {
        for key in &keys {
            bucket.put(key).await;
        }
        let all: BTreeSet<String> = keys.iter().cloned().collect();
        assert_eq!(bucket.keys().await, all, "the server itself keeps these keys apart");
        let going: Vec<&String> = keys.iter().skip(first).step_by(2).collect();
        let batch: Vec<Target> = going.iter().map(|key| bucket.object(key)).collect();
        for (target, verdict) in batch.iter().zip(verdicts(&sink, &batch).await) {
            assert_eq!(verdict, Verdict::Deleted, "{:?}", target.address);
        }
        let staying: BTreeSet<String> = keys.iter().skip(1 - first).step_by(2).cloned().collect();
        assert_eq!(bucket.keys().await, staying);
        for key in &staying {
            assert_eq!(bucket.get(key).await, server::body(key), "{key:?}");
        }
        assert_eq!(sink.look(&batch).await.unwrap(), vec![Presence::Absent; batch.len()]);
    }
}

/// The server here is a gateway over a file system: for it `foo//bar` is `foo/bar` (S8).
#[tokio::test]
async fn a_store_that_folds_slashes_does_not_lose_the_neighbour() {
    let bucket = Bucket::new().await;
    for key in ["foo/bar", "lead", "dir"] {
        bucket.put(key).await;
    }
    for probe in [Probe::Head, Probe::None] {
        let sink = bucket.sink_with(|config| config.probe = probe);
        let batch = ["foo//bar", "/lead", "no//such"].map(|key| bucket.object(key));
        let expected = [Verdict::Refused, Verdict::Refused, Verdict::Absent];
        assert_eq!(verdicts(&sink, &batch).await, expected);
        let expected = [Presence::Unknown, Presence::Unknown, Presence::Absent];
        assert_eq!(sink.look(&batch).await.unwrap(), expected);
    }
    let left = bucket.keys().await;
    assert_eq!(left, ["dir", "foo/bar", "lead"].map(String::from).into());
}

#[tokio::test]
async fn a_prefix_takes_all_below_it_and_nothing_beside() {
    let bucket = Bucket::new().await;
    let below = ["docs/1/a", "docs/1/b/c", "docs/1/%", "docs/1/a b", "docs/1/a+b", "docs/1/n\r\nl"];
    let beside = ["docs/10/x", "docs/1", "docs/2/a", "docs/1x", "xdocs/1/a"];
    for key in below.iter().chain(&beside[..1]).chain(&beside[2..]) {
        bucket.put(key).await;
    }
    // Pages of two: several rounds.
    let sink = bucket.sink_with(|config| config.keys_max = 2.try_into().unwrap());
    let batch = [bucket.prefix("docs/1/"), bucket.prefix("docs/3/")];
    assert_eq!(sink.look(&batch).await.unwrap(), [Presence::Present, Presence::Absent]);
    assert_eq!(verdicts(&sink, &batch).await, [Verdict::Deleted, Verdict::Absent]);
    let left = bucket.keys().await;
    assert_eq!(left, ["docs/10/x", "docs/1x", "docs/2/a", "xdocs/1/a"].map(String::from).into());
    assert_eq!(sink.look(&batch).await.unwrap(), [Presence::Absent, Presence::Absent]);
}

#[tokio::test]
async fn what_could_reach_beyond_its_row_is_never_sent() {
    let bucket = Bucket::new().await;
    for key in ["a/b", "docs/x", "b"] {
        bucket.put(key).await;
    }
    let sink = bucket.sink();
    let batch = [
        bucket.object(""),
        bucket.object("a/./b"),
        bucket.object("a/../b"),
        bucket.object("a\u{1}b"),
        bucket.object(&"x".repeat(1025)),
        bucket.prefix(""),
        bucket.prefix("/"),
        bucket.prefix("docs"),
        bucket.prefix("a/../"),
        target(Address::Object { bucket: "elsewhere".into(), key: "a/b".into() }),
        target(Address::Document { index: "i".into(), id: "1".into(), routing: None }),
    ];
    assert_eq!(verdicts(&sink, &batch).await, [Verdict::Refused; 11]);
    let narrow = bucket.sink_with(|config| config.prefix = "docs/".into());
    let batch = [bucket.object("b"), bucket.prefix("a/"), bucket.object("docs/x")];
    let expected = [Verdict::Refused, Verdict::Refused, Verdict::Deleted];
    assert_eq!(verdicts(&narrow, &batch).await, expected);
    assert_eq!(bucket.keys().await, ["a/b", "b"].map(String::from).into());
}

#[tokio::test]
async fn check_says_what_a_bucket_is() {
    let bucket = Bucket::new().await;
    let facts = bucket.sink().check().await.unwrap();
    assert_eq!(facts.buckets.len(), 1);
    assert_eq!(facts.buckets[0].bucket, bucket.name);
    assert_eq!(facts.buckets[0].versioning, Versioning::Off);
    assert_eq!(facts.buckets[0].object_lock, ObjectLock::Off);
    let locked = Bucket::locked().await;
    let facts = locked.sink().check().await.unwrap();
    assert_eq!(facts.buckets[0].object_lock, ObjectLock::On);
    assert_eq!(facts.buckets[0].versioning, Versioning::Enabled);
}

#[tokio::test]
async fn a_missing_bucket_is_no_absence() {
    let bucket = Bucket::new().await;
    let sink = bucket.sink_with(|config| config.bucket = "no-such-bucket-here".into());
    let address =
        |key: &str| Address::Object { bucket: "no-such-bucket-here".into(), key: key.into() };
    let batch = [target(address("a")), target(address("b"))];
    for error in [
        sink.destroy(&batch).await.unwrap_err(),
        sink.look(&batch).await.unwrap_err(),
        sink.check().await.unwrap_err(),
    ] {
        assert!(matches!(error, SinkError::Missing(_)), "{error}");
    }
}

#[tokio::test]
async fn wrong_credentials_are_denied() {
    let bucket = Bucket::new().await;
    bucket.put("a").await;
    let sink = bucket.sink_with(|config| {
        let credentials = config.credentials.as_mut().unwrap();
        credentials.secret_access_key = tombstream_connectors::Secret::new("not-the-secret");
    });
    for error in [
        sink.destroy(&[bucket.object("a")]).await.unwrap_err(),
        sink.look(&[bucket.object("a")]).await.unwrap_err(),
        sink.check().await.unwrap_err(),
    ] {
        assert!(matches!(error, SinkError::Denied(_)), "{error}");
        assert!(!format!("{error:?}").contains("not-the-secret"), "{error:?}");
    }
    assert!(bucket.keys().await.contains("a"));
}

#[tokio::test]
async fn a_server_that_is_down_is_unavailable() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let bucket = Bucket::new().await;
    let sink =
        bucket.sink_with(|config| config.endpoint = Some(format!("http://127.0.0.1:{port}")));
    let error = sink.destroy(&[bucket.object("secret-key")]).await.unwrap_err();
    assert!(matches!(error, SinkError::Unavailable(_)), "{error}");
    assert!(!format!("{error:?}").contains("secret-key"), "keys are kept out of errors: {error:?}");
}

fn faulty_sink(faulty: &Faulty, change: impl FnOnce(&mut S3Config)) -> S3Sink {
    let mut config = server::config("documents");
    config.endpoint = Some(faulty.endpoint.clone());
    config.request_timeout = Duration::from_secs(5);
    change(&mut config);
    S3Sink::new(config).unwrap()
}

fn documents(keys: &[&str]) -> Vec<Target> {
    let address = |key: &&str| Address::Object { bucket: "documents".into(), key: (*key).into() };
    keys.iter().map(|key| target(address(key))).collect()
}

/// F27, F29: what a delete is answered with, and what each key's verdict is.
#[tokio::test]
async fn no_wrong_answer_is_an_ack() {
    use Verdict::{Busy, Deleted, Refused, Unknown};
    let deleted = |key: &str| format!("<Deleted><Key>{key}</Key></Deleted>");
    let failed = |key: &str, code: &str| {
        format!("<Error><Key>{key}</Key><Code>{code}</Code><Message>m</Message></Error>")
    };
    let whole = |inner: String| format!("<DeleteResult>{inner}</DeleteResult>");
    for (body, expected) in [
        (whole(deleted("a") + &deleted("b") + &deleted("c")), [Deleted; 3]),
        (
            whole(failed("a", "InternalError") + &failed("b", "AccessDenied") + &deleted("c")),
            [Busy, Refused, Deleted],
        ),
        (whole(deleted("b")), [Unknown, Deleted, Unknown]),
        (whole(String::new()), [Unknown; 3]),
        ("<DeleteResult/>".into(), [Unknown; 3]),
        (String::new(), [Unknown; 3]),
        (whole(deleted("x") + &deleted("y") + &deleted("z")), [Unknown; 3]),
        (whole(deleted("a") + &deleted("b") + &deleted("c") + &deleted("d")), [Unknown; 3]),
        (format!("<DeleteResult>{}{}{}", deleted("a"), deleted("b"), deleted("c")), [Unknown; 3]),
        (format!("<DeleteResult>{}<Deleted><Key>b</DeleteResult>", deleted("a")), [Unknown; 3]),
        ("<html>fine</html>".into(), [Unknown; 3]),
    ] {
        let faulty = Faulty::start(Reaction::Answer { status: 200, body: body.clone() }).await;
        let sink = faulty_sink(&faulty, |_| ());
        let batch = documents(&["a", "b", "c"]);
        assert_eq!(verdicts(&sink, &batch).await, expected, "{body}");
        assert_eq!(faulty.deletes(), 1, "nothing is retried here");
    }
}

/// F26, F28: what speaks for the whole request.
#[tokio::test]
async fn a_request_that_fails_as_a_whole_is_an_error() {
    let error = |code: &str| format!("<Error><Code>{code}</Code><Message>m</Message></Error>");
    let answer = |status, body| Reaction::Answer { status, body };
    for (reaction, expected) in [
        (answer(503, error("SlowDown")), "throttled"),
        (answer(429, String::new()), "throttled"),
        (answer(500, error("InternalError")), "unavailable"),
        (answer(200, error("InternalError")), "unavailable"),
        (answer(403, error("AccessDenied")), "denied"),
        (answer(404, error("NoSuchBucket")), "missing: http 404, NoSuchBucket: m"),
        (answer(400, error("MalformedXML")), "protocol: http 400, MalformedXML: m"),
        (answer(307, error("TemporaryRedirect")), "protocol: http 307, TemporaryRedirect: m"),
        (Reaction::CutHead, "unavailable"),
        (Reaction::CutBody, "unavailable"),
        (Reaction::Hang, "unavailable"),
    ] {
        let name = format!("{reaction:?}");
        let faulty = Faulty::start(reaction).await;
        let sink =
            faulty_sink(&faulty, |config| config.request_timeout = Duration::from_millis(300));
        let error = sink.destroy(&documents(&["a"])).await.unwrap_err();
        assert!(error.to_string().starts_with(expected), "{name}: {error}");
        assert_eq!(faulty.deletes(), 1, "{name}: nothing is retried here");
        if let SinkError::Throttled { retry_after } = error {
            assert_eq!(retry_after, Some(Duration::from_secs(7)), "{name}");
        }
    }
}

/// One request of the batch fails, another is answered: what was answered is kept.
#[tokio::test]
async fn one_failing_prefix_does_not_lose_the_others() {
    let bucket = Bucket::new().await;
    bucket.put("a").await;
    let sink = bucket.sink_with(|config| config.buckets = vec!["no-such-bucket-here".into()]);
    let missing = Address::Prefix { bucket: "no-such-bucket-here".into(), prefix: "a/".into() };
    let batch = [target(missing), bucket.object("a"), bucket.prefix("b/")];
    let expected = [Verdict::Refused, Verdict::Deleted, Verdict::Absent];
    assert_eq!(verdicts(&sink, &batch).await, expected);
}

/// The lease ends while the probes are answered: what follows must not be sent (S1, S5).
#[tokio::test]
async fn a_lease_that_ends_while_keys_are_probed_stops_the_delete() {
    let body = "<DeleteResult><Deleted><Key>a</Key></Deleted></DeleteResult>".to_owned();
    let faulty = Faulty::start(Reaction::Answer { status: 200, body }).await;
    faulty.slow_heads(Duration::from_millis(300));
    let sink = faulty_sink(&faulty, |_| ());
    let mut batch = documents(&["a"]);
    batch[0].fence.until = Instant::now() + Duration::from_millis(200);
    let outcomes = sink.destroy(&batch).await.unwrap();
    assert_eq!((outcomes[0].verdict, &*outcomes[0].said), (Verdict::Busy, "lease over"));
    assert_eq!(faulty.deletes(), 0, "a delete was sent after the lease's end");
}

/// A store that answers deletes of a prefix and keeps the objects.
#[tokio::test]
async fn a_prefix_that_stays_is_unknown() {
    let body = "<DeleteResult><Deleted><Key>docs/1/a</Key></Deleted></DeleteResult>".to_owned();
    let faulty = Faulty::start(Reaction::Answer { status: 200, body }).await;
    faulty.list(&["docs/1/a"]);
    let sink = faulty_sink(&faulty, |_| ());
    let address = Address::Prefix { bucket: "documents".into(), prefix: "docs/1/".into() };
    assert_eq!(verdicts(&sink, &[target(address)]).await, [Verdict::Unknown]);
    assert_eq!(faulty.deletes(), 1, "and it does not go round for ever");
}

/// A listing that shows what is not under the prefix is not acted on.
#[tokio::test]
async fn a_listing_beyond_its_prefix_deletes_nothing() {
    let faulty = Faulty::start(Reaction::CutHead).await;
    faulty.list(&["docs/1/a", "docs/10/x"]);
    let sink = faulty_sink(&faulty, |_| ());
    let address = Address::Prefix { bucket: "documents".into(), prefix: "docs/1/".into() };
    let error = sink.destroy(&[target(address)]).await.unwrap_err();
    assert!(error.to_string().contains("outside of its prefix"), "{error}");
    assert_eq!(faulty.deletes(), 0);
}

/// The bucket is not there, but something in front of it answers each HEAD with a bare 404.
#[tokio::test]
async fn a_proxy_that_answers_404_proves_no_absence() {
    let faulty = Faulty::start(Reaction::CutHead).await;
    faulty.heads(404);
    faulty.break_lists();
    let sink = faulty_sink(&faulty, |_| ());
    let error = sink.look(&documents(&["a", "b"])).await.unwrap_err();
    assert!(matches!(error, SinkError::Protocol(_)), "{error}");
}

/// Every object of a listing, by parts: each once.
async fn listed(sink: S3Sink, parts: usize, sample: &[Address]) -> (usize, BTreeSet<String>) {
    let parts = S3Listing::new(Arc::new(sink)).parts(parts, sample).await.unwrap();
    let count = parts.len();
    let mut keys = BTreeSet::new();
    for mut part in parts {
        while let Some(page) = part.next().await.unwrap() {
            for listed in page {
                let Address::Object { key, .. } = listed.address else { unreachable!() };
                assert!(keys.insert(key), "each once");
            }
        }
    }
    (count, keys)
}

#[tokio::test]
async fn a_bucket_is_listed_whole_however_it_is_cut() {
    let bucket = Bucket::new().await;
    let mut keys: Vec<String> = (0..2_300).map(|n| format!("t{:02}/{n}/a b+c", n % 23)).collect();
    keys.extend(["q\"'&<>".to_owned(), "50%25".to_owned(), "e\u{301}/\u{e9}".to_owned()]);
    bucket.put_all(&keys).await;
    let all: BTreeSet<String> = keys.iter().cloned().collect();
    let sample: Vec<Address> =
        keys.iter().step_by(7).map(|key| bucket.object(key).address).collect();
    assert_eq!(listed(bucket.sink(), 1, &sample).await, (1, all.clone()));
    assert_eq!(listed(bucket.sink(), 4, &sample).await, (4, all.clone()));
    assert_eq!(listed(bucket.sink(), 4, &[]).await, (1, all), "nothing tells where to cut it");
    let within = listed(bucket.sink_with(|config| config.prefix = "t01/".into()), 1, &[]).await;
    assert_eq!(within.1.len(), 100);
}

#[tokio::test]
async fn a_listing_that_is_refused_is_an_error_and_no_empty_bucket() {
    let faulty = Faulty::start(Reaction::Hang).await;
    faulty.list(&["a", "b"]);
    let sink = Arc::new(faulty_sink(&faulty, |_| ()));
    let mut parts = S3Listing::new(Arc::clone(&sink)).parts(1, &[]).await.unwrap();
    assert_eq!(parts[0].next().await.unwrap().map(|page| page.len()), Some(2));
    assert!(parts[0].next().await.unwrap().is_none());
    faulty.break_lists();
    let mut parts = S3Listing::new(sink).parts(1, &[]).await.unwrap();
    assert!(parts[0].next().await.is_err());
    assert!(parts[0].next().await.is_err(), "asked again it is no end either");
}

#[tokio::test]
async fn a_copy_behind_a_delete_marker_is_listed() {
    let bucket = Bucket::new().await;
    bucket.set_versioning("Enabled").await;
    for key in ["a/1", "a/2", "a/2", "b/3"] {
        bucket.put(key).await;
    }
    bucket.delete("a/1").await;
    let all = BTreeSet::from(["a/1", "a/2", "b/3"].map(str::to_owned));
    assert_eq!(listed(bucket.sink(), 1, &[]).await, (1, all));
}
