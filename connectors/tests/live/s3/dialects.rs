//! Servers that differ: checksums, requests that they do not take, conditions that they do not heed, and
//! what is written while a deletion is on its way.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tombstream_connectors::s3::{Checksum, Conditional, Conditions};
use tombstream_model::{Sink as _, SinkError, Verdict};

use super::server::{Bucket, verdicts};
use super::told::{Told, deleted, error, listing, versions};
use super::{between, documents};

/// The real server takes either; `auto` says neither more nor less than it must.
#[tokio::test]
async fn each_checksum_is_taken_by_the_real_server() {
    let bucket = Bucket::new().await;
    for checksum in [Checksum::Auto, Checksum::Crc32, Checksum::Md5] {
        bucket.put("a").await;
        let sink = bucket.sink_with(|config| config.checksum = checksum);
        assert_eq!(verdicts(&sink, &[bucket.object("a")]).await, [Verdict::Deleted]);
    }
}

#[tokio::test]
async fn a_server_that_demands_crc32_gets_it_from_then_on() {
    let told = Told::start(|request| {
        let refused =
            request.method == "POST" && !request.headers.contains_key("x-amz-checksum-crc32");
        refused.then(|| (400, error("InvalidRequest", "Missing x-amz-checksum-crc32")))
    })
    .await;
    let sink = told.sink(|_| ());
    assert_eq!(verdicts(&sink, &documents(&["a"])).await, [Verdict::Deleted]);
    let first = told.with("POST").len();
    assert_eq!(verdicts(&sink, &documents(&["b"])).await, [Verdict::Deleted]);
    assert_eq!(told.with("POST").len(), first + 1, "it is not tried with MD5 again");
    let sink = told.sink(|config| config.checksum = Checksum::Md5);
    let failed = sink.destroy(&documents(&["a"])).await.unwrap_err();
    assert!(matches!(failed, SinkError::Protocol(_)), "{failed}");
}

#[tokio::test]
async fn where_bulk_is_not_offered_each_object_goes_by_itself() {
    for status in [501, 405] {
        let told = Told::start(move |request| match request.method.as_str() {
            "POST" => Some((status, error("NotImplemented", "m"))),
            "DELETE" if request.target.ends_with("/c") => Some((404, error("NoSuchKey", "m"))),
            _ => None,
        })
        .await;
        let sink = told.sink(|config| config.conditional = Conditional::Never);
        let batch = documents(&["a", "b", "c"]);
        let expected = [Verdict::Deleted, Verdict::Deleted, Verdict::Absent];
        assert_eq!(verdicts(&sink, &batch).await, expected);
        assert_eq!(verdicts(&sink, &batch).await, expected);
        assert_eq!(told.with("POST").len(), 1, "it is asked once");
        assert_eq!(told.with("DELETE").len(), 6);
    }
}

/// Some servers refuse a whole request for one locked object of it.
#[tokio::test]
async fn one_locked_object_does_not_keep_the_others_of_its_request() {
    let lock = "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>";
    let retention = "<Retention><Mode>GOVERNANCE</Mode><RetainUntilDate>2099-01-01T00:00:00Z\
                     </RetainUntilDate></Retention>";
    let told = Told::start(move |request| match (request.method.as_str(), &*request.target) {
        ("POST", _) => Some((
            403,
            error("AccessDenied", "Access Denied because object protected by object lock."),
        )),
        ("DELETE", target) if target.ends_with("/b") => Some((403, error("AccessDenied", "m"))),
        ("GET", target) if target.contains("object-lock=") => Some((200, lock.to_owned())),
        ("GET", target) if target.contains("retention=") => Some((200, retention.to_owned())),
        _ => None,
    })
    .await;
    let sink = told.sink(|config| config.conditional = Conditional::Never);
    let outcomes = sink.destroy(&documents(&["a", "b", "c"])).await.unwrap();
    let said: Vec<Verdict> = outcomes.iter().map(|it| it.verdict).collect();
    assert_eq!(said, [Verdict::Deleted, Verdict::Refused, Verdict::Deleted]);
    assert_eq!(outcomes[1].said, "locked until 2099-01-01T00:00:00Z (GOVERNANCE)");
    let bypass = "x-amz-bypass-governance-retention";
    assert!(told.with("DELETE").iter().all(|it| !it.headers.contains_key(bypass)));
}

/// What a lock is costs requests: they are saved where nothing can be locked.
#[tokio::test]
async fn a_bucket_without_locks_is_asked_for_none() {
    let told = Told::start(|request| {
        (request.method == "POST").then(|| {
            let entry =
                |key: &str| format!("<Error><Key>{key}</Key><Code>AccessDenied</Code></Error>");
            let all: String = request.keys().into_iter().map(entry).collect();
            (200, format!("<DeleteResult>{all}</DeleteResult>"))
        })
    })
    .await;
    let sink = told.sink(|config| config.conditional = Conditional::Never);
    assert_eq!(verdicts(&sink, &documents(&["a", "b"])).await, [Verdict::Refused; 2]);
    let asked = told.with("GET");
    let count = |part: &str| asked.iter().filter(|it| it.target.contains(part)).count();
    assert_eq!((count("object-lock="), count("retention="), count("legal-hold=")), (1, 0, 0));
}

/// S5: a delete names what was listed under the claim.
#[tokio::test]
async fn a_version_written_after_the_listing_stays_and_is_not_confirmed() {
    let listings = AtomicUsize::new(0);
    let told = Told::start(move |request| match request.method.as_str() {
        "GET" if request.target.contains("versioning=") => {
            let body =
                "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
            Some((200, body.to_owned()))
        }
        "GET" if request.target.contains("versions=") => {
            let id = ["1", "2"][listings.fetch_add(1, Ordering::SeqCst).min(1)];
            Some((200, versions(&[("a", id)])))
        }
        "POST" => {
            let body = deleted(&["a"]).replace("</Key>", "</Key><VersionId>1</VersionId>");
            Some((200, body))
        }
        _ => None,
    })
    .await;
    let sink = told.sink(|_| ());
    let outcomes = sink.destroy(&documents(&["a"])).await.unwrap();
    assert_eq!(
        (outcomes[0].verdict, &*outcomes[0].said),
        (Verdict::Busy, "1 version written since it was listed")
    );
    let sent = told.with("POST");
    assert_eq!(sent.len(), 1);
    assert!(sent[0].body.contains("<VersionId>1</VersionId>"), "{}", sent[0].body);
}

#[tokio::test]
async fn an_upload_that_can_not_be_aborted_is_not_confirmed() {
    let told = Told::start(|request| {
        let upload = "<Upload><Key>a</Key><UploadId>u</UploadId></Upload>";
        let asked = request.method == "GET" && request.target.contains("uploads=");
        asked.then(|| (200, listing("ListMultipartUploadsResult", "Bucket", upload)))
    })
    .await;
    let sink = told.sink(|config| config.conditional = Conditional::Never);
    let outcomes = sink.destroy(&documents(&["a", "b"])).await.unwrap();
    assert_eq!((outcomes[0].verdict, outcomes[1].verdict), (Verdict::Busy, Verdict::Deleted));
    assert_eq!(outcomes[0].said, "an unfinished upload is listed still");
}

/// Without the right to look, nothing is confirmed, and the error names it.
#[tokio::test]
async fn a_denied_listing_of_uploads_is_said_with_what_is_missing() {
    let told = Told::start(|request| {
        request.target.contains("uploads=").then(|| (403, error("AccessDenied", "m")))
    })
    .await;
    let sink = told.sink(|_| ());
    for denied in
        [sink.destroy(&documents(&["a"])).await.unwrap_err(), sink.check().await.unwrap_err()]
    {
        assert!(denied.to_string().contains("needs s3:ListBucketMultipartUploads"), "{denied}");
    }
    assert_eq!(told.with("POST").len(), 0);
}

/// versitygw 1.8.0 heeds a condition in a DeleteObject, and not in a DeleteObjects.
#[tokio::test]
async fn the_real_server_heeds_conditions_one_by_one() {
    let bucket = Bucket::new().await;
    let sink = bucket.sink_with(|config| {
        config.conditional = Conditional::Required;
        config.prefix = "docs/".into();
    });
    let facts = sink.check().await.unwrap();
    assert_eq!(facts.buckets[0].conditions, Some(Conditions::OneByOne));
    assert!(bucket.keys().await.is_empty(), "what it was tried on is gone");
    bucket.put("docs/a").await;
    let batch = [bucket.object("docs/a"), bucket.object("docs/never")];
    assert_eq!(verdicts(&sink, &batch).await, [Verdict::Deleted, Verdict::Absent]);
    // By default it is learned from what goes anyway, and costs one request once.
    let sink = bucket.sink();
    for _ in 0..2 {
        bucket.put("docs/a").await;
        bucket.put("docs/b").await;
        let batch = [bucket.object("docs/a"), bucket.object("docs/b")];
        assert_eq!(verdicts(&sink, &batch).await, [Verdict::Deleted, Verdict::Deleted]);
    }
    assert!(bucket.keys().await.is_empty());
}

/// F31. The object is replaced after the look and before the delete, on the real server.
#[tokio::test]
async fn bytes_written_between_look_and_delete_stay() {
    let bucket = Arc::new(Bucket::new().await);
    bucket.put("a").await;
    let writer = Arc::clone(&bucket);
    let newer = move || -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let writer = Arc::clone(&writer);
        Box::pin(async move { writer.put_bytes("a", b"newer".to_vec()).await })
    };
    let endpoint = between::start(bucket.address(), Arc::new(newer)).await;
    let sink = bucket.sink_with(|config| {
        config.conditional = Conditional::Required;
        config.endpoint = Some(endpoint);
    });
    let outcomes = sink.destroy(&[bucket.object("a")]).await.unwrap();
    assert_eq!(outcomes[0].verdict, Verdict::Busy, "{}", outcomes[0].said);
    assert!(outcomes[0].said.starts_with("PreconditionFailed"), "{}", outcomes[0].said);
    assert_eq!(bucket.get("a").await, b"newer");
    // Looked at again, under the same claim, it is what it is.
    assert_eq!(verdicts(&sink, &[bucket.object("a")]).await, [Verdict::Deleted]);
}

#[tokio::test]
async fn a_server_that_ignores_conditions_deletes_nothing_where_they_are_required() {
    let told = Told::start(|_| None).await;
    let sink = told.sink(|config| config.conditional = Conditional::Required);
    let refused = sink.destroy(&documents(&["a"])).await.unwrap_err();
    assert!(matches!(refused, SinkError::Denied(_)), "{refused}");
    let sent = told.with("POST").into_iter().chain(told.with("DELETE"));
    let others = sent.filter(|it| !it.target.contains("probe") && !it.body.contains("probe"));
    assert_eq!(others.count(), 0, "nothing but the object it was tried on");
}

#[tokio::test]
async fn a_lease_that_ends_while_the_pace_is_waited_for_stops_the_delete() {
    let told = Told::start(|_| None).await;
    let sink = told.sink(|config| {
        config.conditional = Conditional::Never;
        config.rate_per_prefix = 10.try_into().unwrap();
    });
    assert_eq!(verdicts(&sink, &documents(&["a"; 1])).await, [Verdict::Deleted]);
    let first: Vec<String> = (0..10).map(|n| format!("k{n}")).collect();
    let first: Vec<&str> = first.iter().map(String::as_str).collect();
    sink.destroy(&documents(&first)).await.unwrap();
    // A second's worth was sent, so the next turn is a second away, and the lease ends before.
    let mut batch = documents(&["late"]);
    batch[0].fence.until = Instant::now() + Duration::from_millis(200);
    let outcomes = sink.destroy(&batch).await.unwrap();
    assert_eq!((outcomes[0].verdict, &*outcomes[0].said), (Verdict::Busy, "lease over"));
    assert!(told.with("POST").iter().all(|it| !it.keys().contains(&"late")));
}
