//! Answers as real servers gave them (AWS, MinIO, versitygw), and what they prove.

use super::*;
use Verdict::{Absent, Busy, Deleted, Refused, Unknown};

fn reply(status: u16, body: &str) -> Reply {
    Reply { status, body: body.as_bytes().to_vec(), ..Reply::default() }
}

fn asked(keys: &[&'static str]) -> Vec<Asked<'static>> {
    keys.iter().map(|key| Asked { key, version: None, probed: Some(Presence::Present) }).collect()
}

fn verdicts(keys: &[&'static str], body: &str) -> Vec<Verdict> {
    let outcomes = deleted(&asked(keys), &reply(200, body)).unwrap().outcomes;
    outcomes.iter().map(|outcome| outcome.verdict).collect()
}

/// AWS, with an error for one key of three.
const AWS: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Deleted><Key>a/original</Key></Deleted><Error><Key>b/original</Key><Code>InternalError</Code><Message>We encountered an internal error. Please try again.</Message></Error><Deleted><Key>c&amp;d&#13;</Key></Deleted></DeleteResult>"#;

/// versitygw, with the references that Go writes.
const VERSITY: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<DeleteResult><Deleted><Key>nl&#xA;a</Key>\
    </Deleted><Deleted><Key>cr&#xD;a</Key></Deleted><Deleted><Key>&#34;q&#39;&amp;&lt;&gt;</Key></Deleted>\
    </DeleteResult>";

/// AWS, versioning enabled.
const MARKER: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Deleted><Key>a</Key><DeleteMarker>true</DeleteMarker><DeleteMarkerVersionId>A._w1z6EFiCF5uhtQMDal9JDkID9tQ7F</DeleteMarkerVersionId></Deleted></DeleteResult>"#;

#[test]
fn each_key_is_judged_by_its_own_entry() {
    assert_eq!(
        verdicts(&["a/original", "b/original", "c&d\r"], AWS),
        [Deleted, Busy, Deleted],
        "aws"
    );
    // The order of an answer is nobody's promise.
    assert_eq!(verdicts(&["\"q'&<>", "cr\ra", "nl\na"], VERSITY), [Deleted; 3], "versitygw");
}

#[test]
fn a_key_that_the_answer_leaves_out_is_unknown() {
    let keys = ["a/original", "b/original", "c&d\r", "left-out"];
    assert_eq!(verdicts(&keys, AWS), [Deleted, Busy, Deleted, Unknown]);
    for empty in
        ["<DeleteResult/>", "<DeleteResult></DeleteResult>", "<DeleteResult>\n </DeleteResult>"]
    {
        assert_eq!(verdicts(&["a", "b"], empty), [Unknown, Unknown], "{empty}");
    }
}

#[test]
fn an_answer_cut_anywhere_proves_nothing() {
    for cut in 0..AWS.len() {
        let body = &AWS[..cut];
        assert_eq!(verdicts(&["a/original", "b/original", "c&d\r"], body), [Unknown; 3], "{body}");
    }
}

#[test]
fn an_answer_to_another_request_proves_nothing() {
    for body in [
        "<DeleteResult><Deleted><Key>a</Key></Deleted><Deleted><Key>other</Key></Deleted></DeleteResult>",
        "<DeleteResult><Deleted><Key>a</Key></Deleted><Deleted><Key>A</Key></Deleted></DeleteResult>",
        "<DeleteResult><Deleted><Key>a</Key></Deleted><Deleted><Key>a </Key></Deleted></DeleteResult>",
        "<DeleteResult><Deleted><Key>a</Key></Deleted><Deleted></Deleted></DeleteResult>",
        "<DeleteResult><Deleted><Key>a</Key></Deleted><Error><Code>AccessDenied</Code></Error></DeleteResult>",
        "<ListBucketResult><Deleted><Key>a</Key></Deleted></ListBucketResult>",
        "<html><body>It works!</body></html>",
        "{\"deleted\": [\"a\"]}",
        "",
    ] {
        assert_eq!(verdicts(&["a"], body), [Unknown], "{body}");
    }
}

#[test]
fn a_key_named_twice_is_unknown_whatever_is_said() {
    let body = "<DeleteResult><Deleted><Key>a</Key></Deleted><Error><Key>a</Key><Code>SlowDown\
        </Code></Error><Deleted><Key>b</Key></Deleted></DeleteResult>";
    assert_eq!(verdicts(&["a", "b"], body), [Unknown, Deleted]);
}

#[test]
fn a_delete_marker_erases_nothing() {
    let outcomes = deleted(&asked(&["a"]), &reply(200, MARKER)).unwrap().outcomes;
    assert_eq!((outcomes[0].verdict, &*outcomes[0].said), (Busy, VERSIONED));
    let only_id = MARKER.replace("<DeleteMarker>true</DeleteMarker>", "");
    assert_eq!(verdicts(&["a"], &only_id), [Busy]);
    // Object by object.
    let marker = Reply { status: 204, delete_marker: true, ..Reply::default() };
    assert_eq!(deleted_one(&asked(&["a"])[0], &marker).unwrap().said, VERSIONED);
    let no_marker = MARKER.replace("true", "false").replace("DeleteMarkerVersionId", "VersionId");
    assert_eq!(verdicts(&["a"], &no_marker), [Deleted]);
}

/// versitygw 1.8.0, and an older one, which leaves the version out of an error.
#[test]
fn each_version_is_judged_by_its_own_entry() {
    let of = |version| Asked { key: "k", version: Some(version), probed: Some(Presence::Present) };
    let judge = |inner: &str| {
        let body = format!("<DeleteResult>{inner}</DeleteResult>");
        let outcomes = deleted(&[of("1"), of("2")], &reply(200, &body)).unwrap().outcomes;
        outcomes.iter().map(|outcome| outcome.verdict).collect::<Vec<_>>()
    };
    let gone =
        |version: &str| format!("<Deleted><Key>k</Key><VersionId>{version}</VersionId></Deleted>");
    let marker = "<Deleted><DeleteMarker>true</DeleteMarker><DeleteMarkerVersionId>2\
        </DeleteMarkerVersionId><Key>k</Key><VersionId>2</VersionId></Deleted>";
    let locked = "<Error><Code>AccessDenied</Code><Key>k</Key><VersionId>2</VersionId></Error>";
    assert_eq!(judge(&(gone("1") + &gone("2"))), [Deleted, Deleted]);
    assert_eq!(judge(&(gone("1") + marker)), [Deleted, Deleted], "a marker that was named");
    assert_eq!(judge(&(gone("1") + locked)), [Deleted, Refused]);
    let nameless = locked.replace("<VersionId>2</VersionId>", "");
    assert_eq!(judge(&(gone("1") + &nameless)), [Deleted, Refused]);
    assert_eq!(judge(&nameless), [Refused, Refused], "it may be either");
    assert_eq!(judge(&gone("1")), [Deleted, Unknown]);
    // Not which version, and so of none.
    assert_eq!(judge("<Deleted><Key>k</Key></Deleted>"), [Unknown, Unknown]);
    assert_eq!(judge(&(gone("1") + &gone("3"))), [Unknown, Unknown]);
}

#[test]
fn an_error_inside_a_200_has_a_verdict_by_its_code() {
    for (code, verdict) in [
        ("InternalError", Busy),
        ("SlowDown", Busy),
        ("ServiceUnavailable", Busy),
        ("RequestTimeout", Busy),
        ("OperationAborted", Busy),
        ("AccessDenied", Refused),
        ("MethodNotAllowed", Refused),
        ("InvalidObjectState", Refused),
        ("NoSuchKey", Absent),
        ("NeverHeardOf", Unknown),
        ("", Unknown),
    ] {
        let body = format!(
            "<DeleteResult><Error><Key>a</Key><Code>{code}</Code><Message>m</Message></Error>\
             </DeleteResult>"
        );
        assert_eq!(verdicts(&["a"], &body), [verdict], "{code}");
    }
    let body = "<DeleteResult><Error><Key>a</Key><Code>NoSuchBucket</Code></Error></DeleteResult>";
    let error = deleted(&asked(&["a"]), &reply(200, body)).unwrap_err();
    assert!(matches!(error, SinkError::Missing(_)), "{error}");
}

#[test]
fn what_was_there_is_told_from_what_was_not() {
    let body = "<DeleteResult><Deleted><Key>a</Key></Deleted></DeleteResult>";
    for (probed, verdict, said) in [
        (Some(Presence::Present), Deleted, "was there"),
        (Some(Presence::Absent), Absent, "was not there"),
        (Some(Presence::Unknown), Unknown, "marker"),
        (None, Deleted, "not probed"),
    ] {
        let outcomes =
            deleted(&[Asked { key: "a", version: None, probed }], &reply(200, body)).unwrap();
        let outcomes = outcomes.outcomes;
        assert_eq!(outcomes[0].verdict, verdict);
        assert!(outcomes[0].said.contains(said), "{}", outcomes[0].said);
    }
}

fn kind(error: &SinkError) -> &'static str {
    match error {
        SinkError::Throttled { .. } => "throttled",
        SinkError::Unavailable(_) => "unavailable",
        SinkError::Denied(_) => "denied",
        SinkError::Missing(_) => "missing",
        SinkError::Protocol(_) => "protocol",
    }
}

#[test]
fn a_failed_request_is_classified_by_status_and_code() {
    for (status, code, expected) in [
        (503, "SlowDown", "throttled"),
        (503, "", "throttled"),
        (429, "", "throttled"),
        (400, "SlowDown", "throttled"),
        (500, "InternalError", "unavailable"),
        (502, "", "unavailable"),
        (504, "", "unavailable"),
        (400, "RequestTimeout", "unavailable"),
        (403, "AccessDenied", "denied"),
        (403, "SignatureDoesNotMatch", "denied"),
        (403, "InvalidAccessKeyId", "denied"),
        (404, "NoSuchBucket", "missing"),
        (404, "", "protocol"),
        (301, "PermanentRedirect", "protocol"),
        (400, "MalformedXML", "protocol"),
        (200, "InternalError", "unavailable"),
        (200, "SlowDown", "throttled"),
        (200, "NoSuchBucket", "missing"),
        (204, "", "protocol"),
    ] {
        let body = match code {
            "" => String::new(),
            code => format!("<Error><Code>{code}</Code><Message>m</Message></Error>"),
        };
        if (status, code) != (200, "") {
            let error = deleted(&asked(&["a"]), &reply(status, &body)).unwrap_err();
            assert_eq!(kind(&error), expected, "{status} {code}");
            if expected == "protocol" && !code.is_empty() {
                assert!(error.to_string().contains(code), "{error}");
            }
        }
    }
    let mut throttled = reply(503, "");
    throttled.retry_after = Some(Duration::from_secs(7));
    let error = failure(&throttled);
    assert!(
        matches!(error, SinkError::Throttled { retry_after: Some(wait) } if wait.as_secs() == 7)
    );
}

#[test]
fn a_head_proves_little() {
    assert_eq!(head(&reply(200, "")).unwrap(), Presence::Present);
    assert_eq!(head(&reply(404, "")).unwrap(), Presence::Absent);
    let marker = Reply { status: 404, delete_marker: true, ..Reply::default() };
    assert_eq!(head(&marker).unwrap(), Presence::Unknown);
    for (status, expected) in [
        (403, "denied"),
        (503, "throttled"),
        (500, "unavailable"),
        (301, "protocol"),
        (206, "protocol"),
    ] {
        assert_eq!(kind(&head(&reply(status, "")).unwrap_err()), expected);
    }
}

/// AWS, `encoding-type=url`.
const LISTING: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>documents</Name><Prefix>docs/1+2/</Prefix><KeyCount>3</KeyCount><MaxKeys>1000</MaxKeys><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated><Contents><Key>docs/1+2/a%2Bb</Key><Size>1</Size></Contents><Contents><Key>docs/1+2/%01</Key><Size>1</Size></Contents><Contents><Key>docs/1+2/%25</Key><Size>1</Size></Contents></ListBucketResult>"#;

#[test]
fn a_listing_names_keys_of_its_prefix_alone() {
    let read = |body: &str| listing("documents", "docs/1 2/", &reply(200, body));
    let keys = read(LISTING).unwrap();
    assert_eq!(keys, ["docs/1 2/a+b", "docs/1 2/\u{1}", "docs/1 2/%"]);
    for (from, to, why) in [
        ("<Name>documents", "<Name>others", "another bucket"),
        ("<Prefix>docs/1+2/", "<Prefix>docs/", "another prefix"),
        ("<Key>docs/1+2/a", "<Key>docs/1+20/a", "outside of its prefix"),
        ("<Key>docs/1+2/a%2Bb", "<Key>docs/1+2/a%2", "does not decode"),
        ("<Key>docs/1+2/a%2Bb", "<Key>docs/1+2/a%ff", "does not decode"),
        ("<IsTruncated>false</IsTruncated>", "", "whether it is whole"),
        ("</ListBucketResult>", "", "does not parse"),
        ("ListBucketResult", "ListAllMyBucketsResult", "another kind"),
    ] {
        let error = read(&LISTING.replace(from, to)).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    let plain = "<ListBucketResult><Name>documents</Name><IsTruncated>false</IsTruncated><Contents>\
        <Key>docs/1 2/a+b%20</Key></Contents><EncodingType></EncodingType></ListBucketResult>";
    assert_eq!(read(plain).unwrap(), ["docs/1 2/a+b%20"]);
    let empty = "<ListBucketResult><Name>documents</Name><IsTruncated>true</IsTruncated>\
        </ListBucketResult>";
    assert!(read(empty).unwrap_err().to_string().contains("not whole"));
}

#[test]
fn a_bucket_says_what_it_is_or_why_it_does_not() {
    let config = |inner: &str| {
        reply(200, &format!("<VersioningConfiguration>{inner}</VersioningConfiguration>"))
    };
    assert_eq!(versioning(&config("")).unwrap(), Versioning::Off);
    let enabled = config("<Status>Enabled</Status>");
    assert_eq!(versioning(&enabled).unwrap(), Versioning::Enabled);
    let suspended = config("<Status>Suspended</Status>");
    assert_eq!(versioning(&suspended).unwrap(), Versioning::Suspended);
    let denied = reply(403, "<Error><Code>AccessDenied</Code></Error>");
    assert!(matches!(versioning(&denied).unwrap(), Versioning::Unknown(_)));
    let missing = reply(404, "<Error><Code>NoSuchBucket</Code></Error>");
    assert_eq!(kind(&versioning(&missing).unwrap_err()), "missing");
    assert_eq!(kind(&versioning(&reply(200, "")).unwrap_err()), "protocol");

    let unset = "<Error><Code>ObjectLockConfigurationNotFoundError</Code></Error>";
    assert_eq!(object_lock(&reply(404, unset)).unwrap(), ObjectLock::Off);
    let on = "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled>\
        </ObjectLockConfiguration>";
    assert_eq!(object_lock(&reply(200, on)).unwrap(), ObjectLock::On);
    let unheard = reply(501, "<Error><Code>NotImplemented</Code></Error>");
    assert!(matches!(object_lock(&unheard).unwrap(), ObjectLock::Unknown(_)));
}
