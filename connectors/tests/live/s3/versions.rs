//! Versions, markers, locks and unfinished uploads, counted by listing them in another way than the sink.

use std::collections::BTreeSet;

use tombstream_connectors::s3::{Erase, ObjectLock, S3Sink, Versioning};
use tombstream_model::{Address, Presence, Sink as _, Target, Verdict, Verification};
use tombstream_testing::conformance::sink::{self, SinkFixture};

use super::server::{Bucket, verdicts};

const FAR: &str = "2099-01-01T00:00:00Z";

/// Copies of several versions; as a fixture they exist while any of them does.
struct Fixture {
    bucket: Bucket,
    sink: S3Sink,
}

impl SinkFixture for Fixture {
    type Sink = S3Sink;

    fn sink(&self) -> &S3Sink {
        &self.sink
    }

    async fn put(&self, name: &str) -> Target {
        let key = format!("docs/{name}");
        self.bucket.put(&key).await;
        self.bucket.put(&key).await;
        self.bucket.object(&key)
    }

    async fn never(&self, name: &str) -> Target {
        self.bucket.object(&format!("docs/{name}"))
    }

    async fn exists(&self, target: &Target) -> bool {
        let Address::Object { key, .. } = &target.address else { panic!("not an object") };
        self.bucket.versions().await.iter().any(|(of, _, _)| **of == **key)
    }
}

async fn versioned() -> Bucket {
    let bucket = Bucket::new().await;
    bucket.set_versioning("Enabled").await;
    bucket
}

#[tokio::test]
async fn versioned_buckets_conform() {
    let bucket = versioned().await;
    let sink = bucket.sink();
    sink::all(&Fixture { bucket, sink }).await;
}

#[tokio::test]
async fn suspended_buckets_conform() {
    let bucket = versioned().await;
    bucket.set_versioning("Suspended").await;
    let sink = bucket.sink();
    sink::all(&Fixture { bucket, sink }).await;
}

/// F30. Prints what it took.
#[tokio::test]
async fn a_key_with_fifty_versions_and_markers_is_emptied() {
    let bucket = versioned().await;
    for round in 0..25 {
        bucket.put("docs/1/original").await;
        bucket.delete("docs/1/original").await;
        if round % 5 == 0 {
            bucket.put("docs/2/original").await;
        }
    }
    let before = bucket.versions().await;
    let of_one = before.iter().filter(|(key, _, _)| key == "docs/1/original");
    assert_eq!(of_one.clone().count(), 50);
    assert_eq!(of_one.filter(|(_, _, is_marker)| *is_marker).count(), 25);
    let sink = bucket.sink();
    let batch = [bucket.object("docs/1/original")];
    assert_eq!(sink.look(&batch).await.unwrap(), [Presence::Present], "hidden is not gone");
    let started = std::time::Instant::now();
    let outcomes = sink.destroy(&batch).await.unwrap();
    println!("50 versions and markers: {:?}, said {:?}", started.elapsed(), outcomes[0].said);
    assert_eq!(outcomes[0].verdict, Verdict::Deleted);
    assert_eq!(outcomes[0].said, "25 versions and 25 delete markers erased");
    assert_eq!(outcomes[0].verified, Verification::ReadBack);
    let left = bucket.versions().await;
    assert_eq!(left.len(), 5, "the neighbour's, and no marker of ours");
    assert!(left.iter().all(|(key, _, _)| key == "docs/2/original"));
    assert_eq!(sink.look(&batch).await.unwrap(), [Presence::Absent]);
    assert_eq!(verdicts(&sink, &batch).await, [Verdict::Absent], "and no marker is left by that");
    assert_eq!(bucket.versions().await.len(), 5);
}

/// More than a page of a listing, and more than a request takes.
#[tokio::test]
async fn a_prefix_with_more_versions_than_a_page_is_emptied() {
    let bucket = versioned().await;
    let keys: Vec<String> = (0..300).map(|n| format!("docs/1/{n}")).collect();
    for _ in 0..4 {
        bucket.put_all(&keys).await;
    }
    bucket.put("docs/10/x").await;
    let sink = bucket.sink_with(|config| config.keys_max = 500.try_into().unwrap());
    let outcomes = sink.destroy(&[bucket.prefix("docs/1/")]).await.unwrap();
    assert_eq!(
        (outcomes[0].verdict, &*outcomes[0].said),
        (Verdict::Deleted, "1200 versions erased")
    );
    let left: Vec<String> = bucket.versions().await.into_iter().map(|(key, _, _)| key).collect();
    assert_eq!(left, ["docs/10/x"]);
}

#[tokio::test]
async fn a_key_that_another_one_begins_with_keeps_its_versions() {
    let bucket = versioned().await;
    for key in ["docs/1", "docs/1", "docs/10", "docs/1.x", "docs/1 "] {
        bucket.put(key).await;
    }
    let sink = bucket.sink();
    assert_eq!(verdicts(&sink, &[bucket.object("docs/1")]).await, [Verdict::Deleted]);
    let left: BTreeSet<String> = bucket.versions().await.into_iter().map(|it| it.0).collect();
    assert_eq!(left, ["docs/10", "docs/1.x", "docs/1 "].map(String::from).into());
}

/// Written before versions were switched on, while they were, and after they were suspended.
#[tokio::test]
async fn a_suspended_bucket_is_emptied_of_null_versions_too() {
    let bucket = Bucket::new().await;
    bucket.put("a").await;
    bucket.set_versioning("Enabled").await;
    bucket.put("a").await;
    bucket.set_versioning("Suspended").await;
    bucket.put("a").await;
    bucket.put("b").await;
    bucket.delete("b").await;
    let ids: Vec<String> = bucket.versions().await.into_iter().map(|it| it.1).collect();
    assert!(ids.iter().filter(|id| *id == "null").count() >= 2, "{ids:?}");
    let sink = bucket.sink();
    let batch = ["a", "b", "c"].map(|key| bucket.object(key));
    let expected = [Verdict::Deleted, Verdict::Deleted, Verdict::Absent];
    assert_eq!(verdicts(&sink, &batch).await, expected);
    assert_eq!(bucket.versions().await, []);
    assert_eq!(sink.check().await.unwrap().buckets[0].versioning, Versioning::Suspended);
}

/// The version that a read finds goes, nothing older comes to light, and the receipt says what remains.
#[tokio::test]
async fn of_the_current_version_alone_the_receipt_says_what_remains() {
    let bucket = versioned().await;
    for _ in 0..3 {
        bucket.put("a").await;
    }
    bucket.put("alone").await;
    let newest = bucket.newest("a").await;
    let sink = bucket.sink_with(|config| config.erase = Erase::Current);
    let batch = [bucket.object("a"), bucket.object("alone"), bucket.object("never")];
    let outcomes = sink.destroy(&batch).await.unwrap();
    let said: Vec<(Verdict, &str)> = outcomes.iter().map(|it| (it.verdict, &*it.said)).collect();
    assert_eq!(
        said[0],
        (Verdict::Deleted, "1 version erased; 2 older versions remain by configuration")
    );
    assert_eq!(said[1], (Verdict::Deleted, "1 version erased"));
    assert_eq!(said[2], (Verdict::Absent, "no current version"));
    assert!(bucket.keys().await.is_empty(), "a read finds nothing");
    let left = bucket.versions().await;
    assert!(left.iter().all(|(key, id, _)| key == "a" && *id != newest), "{left:?}");
    assert_eq!(left.iter().filter(|it| !it.2).count(), 2);
    assert_eq!(sink.look(&batch).await.unwrap(), [Presence::Absent; 3]);
    // Asked again it is no failure, and says so again.
    let outcomes = sink.destroy(&batch[..1]).await.unwrap();
    assert_eq!(outcomes[0].verdict, Verdict::Absent);
    assert_eq!(outcomes[0].said, "no current version; 2 older versions remain by configuration");
}

/// F30: of a thousand keys seven are locked, in every way that there is; the rest goes.
#[tokio::test]
async fn of_a_thousand_keys_seven_locked_ones_are_refused_with_the_reason() {
    let bucket = Bucket::locked().await;
    let keys: Vec<String> = (0..1000).map(|n| format!("docs/{n}/original")).collect();
    bucket.put_all(&keys).await;
    let newest: std::collections::HashMap<String, String> =
        bucket.versions().await.into_iter().map(|(key, id, _)| (key, id)).collect();
    let locked: Vec<&String> = keys.iter().step_by(143).collect();
    assert_eq!(locked.len(), 7);
    for (at, key) in locked.iter().enumerate() {
        match at % 3 {
            0 => bucket.lock(key, &newest[*key], "GOVERNANCE", FAR).await,
            1 => bucket.lock(key, &newest[*key], "COMPLIANCE", FAR).await,
            _ => bucket.hold(key, &newest[*key], "ON").await,
        }
    }
    let sink = bucket.sink();
    let batch: Vec<Target> = keys.iter().map(|key| bucket.object(key)).collect();
    let outcomes = sink.destroy(&batch).await.unwrap();
    let count = |verdict| outcomes.iter().filter(|it| it.verdict == verdict).count();
    println!("deleted {}, refused {}", count(Verdict::Deleted), count(Verdict::Refused));
    assert_eq!((count(Verdict::Deleted), count(Verdict::Refused)), (993, 7));
    for (key, outcome) in keys.iter().zip(&outcomes) {
        if let Some(at) = locked.iter().position(|locked| *locked == key) {
            let why = match at % 3 {
                0 => "locked until 2099-01-01T00:00:00Z (GOVERNANCE), version ",
                1 => "locked until 2099-01-01T00:00:00Z (COMPLIANCE), version ",
                _ => "under legal hold, version ",
            };
            assert_eq!(outcome.said, format!("{why}{}", newest[key]), "{key}");
        }
    }
    let left: BTreeSet<String> = bucket.versions().await.into_iter().map(|it| it.0).collect();
    assert_eq!(left, locked.iter().map(|key| (*key).clone()).collect());
}

/// A locked version under a marker must not come to light again.
#[tokio::test]
async fn what_hides_a_locked_version_stays() {
    let bucket = Bucket::locked().await;
    bucket.put("a").await;
    bucket.put("a").await;
    let id = bucket.newest("a").await;
    bucket.hold("a", &id, "ON").await;
    bucket.delete("a").await;
    let sink = bucket.sink();
    let batch = [bucket.object("a")];
    let outcome = &sink.destroy(&batch).await.unwrap()[0];
    assert_eq!(
        (outcome.verdict, &*outcome.said),
        (Verdict::Refused, &*format!("under legal hold, version {id}"))
    );
    assert!(bucket.keys().await.is_empty(), "the marker hides it still");
    assert_eq!(bucket.versions().await.len(), 2, "it and its marker; the free version is gone");
    // Released, it goes.
    bucket.hold("a", &id, "OFF").await;
    assert_eq!(verdicts(&sink, &batch).await, [Verdict::Deleted]);
    assert_eq!(bucket.versions().await, []);
    assert_eq!(sink.check().await.unwrap().buckets[0].object_lock, ObjectLock::On);
}

/// With versions and without.
#[tokio::test]
async fn unfinished_uploads_go_too() {
    for versioning in [None, Some("Enabled")] {
        let bucket = Bucket::new().await;
        if let Some(status) = versioning {
            bucket.set_versioning(status).await;
        }
        for key in ["docs/1/a", "docs/1/a", "docs/2/b/c", "docs/10/a", "docs/1/ab"] {
            bucket.begin_upload(key).await;
        }
        bucket.put("docs/1/a").await;
        bucket.put("docs/3/d").await;
        assert_eq!(bucket.uploads().await.len(), 5);
        let sink = bucket.sink();
        let batch =
            [bucket.object("docs/1/a"), bucket.prefix("docs/2/"), bucket.object("docs/3/d")];
        let outcomes = sink.destroy(&batch).await.unwrap();
        assert!(outcomes.iter().all(|it| it.verdict == Verdict::Deleted), "{outcomes:?}");
        assert!(outcomes[0].said.ends_with("; 2 unfinished uploads aborted"), "{outcomes:?}");
        assert!(outcomes[1].said.ends_with("; 1 unfinished upload aborted"), "{outcomes:?}");
        assert!(!outcomes[2].said.contains("upload"), "{outcomes:?}");
        assert_eq!(bucket.uploads().await, ["docs/1/ab", "docs/10/a"], "the neighbours' stay");
    }
}

/// The bucket becomes versioned while the sink runs: the answers tell, and nothing is confirmed by a
/// marker.
#[tokio::test]
async fn a_bucket_that_becomes_versioned_is_noticed() {
    let bucket = Bucket::new().await;
    bucket.put("a").await;
    bucket.put("b").await;
    bucket.put("c").await;
    let sink = bucket.sink();
    assert_eq!(verdicts(&sink, &[bucket.object("a")]).await, [Verdict::Deleted]);
    bucket.set_versioning("Enabled").await;
    let batch = [bucket.object("b")];
    assert_eq!(verdicts(&sink, &batch).await, [Verdict::Busy]);
    assert_eq!(sink.look(&batch).await.unwrap(), [Presence::Present]);
    assert_eq!(verdicts(&sink, &batch).await, [Verdict::Deleted]);
    // Or a marker of somebody else's, seen before anything is sent.
    let sink = bucket.sink();
    sink.check().await.unwrap();
    bucket.delete("c").await;
    assert_eq!(verdicts(&sink, &[bucket.object("c")]).await, [Verdict::Deleted]);
    assert_eq!(bucket.versions().await, []);
}
