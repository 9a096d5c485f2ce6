//! The tantivy sink on indexes in temporary folders.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

#[path = "tantivy/fixture.rs"]
mod fixture;
#[path = "tantivy/list.rs"]
mod list;

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use fixture::{Fixture, NONE, document, schema, target, writer};
use futures::FutureExt as _;
use tantivy::indexer::NoMergePolicy;
use tantivy::schema::{FAST, STORED, STRING, Schema, TEXT};
use tantivy::{Index, TantivyDocument, Term};
use tombstream_connectors::tantivy::{Facts, FieldFacts, TantivyConfig, TantivySink};
use tombstream_model::{Address, Presence, Sink as _, SinkError, Target, Verdict};
use tombstream_testing::conformance::sink;

#[tokio::test]
async fn documents_conform() {
    sink::all(&Fixture::new(false)).await;
}

#[tokio::test]
async fn chunks_conform() {
    sink::all(&Fixture::new(true)).await;
}

/// Ids that differ by little; what stays is the same byte for byte.
#[tokio::test]
async fn exactly_the_ids_asked_for_go() {
    let fixture = Fixture::with(false, |config| config.purge = false);
    let long = "x".repeat(60_000);
    let longest = "x".repeat(65_530);
    let ids = [
        "1",
        "10",
        "01",
        "1 ",
        " 1",
        "A",
        "a",
        "it's",
        "it\"s",
        "a\nb",
        "a\r\nb",
        "a\tb",
        "a\0b",
        "caf\u{e9}",
        "cafe\u{301}",
        "\u{feff}1",
        "id:1",
        "a AND b",
        "*",
        "?",
        "a/b",
        "a//b",
        "../a",
        "%31",
        "{id}",
        "😀",
        "😁",
        &long,
        &longest,
    ];
    fixture.add_all(&ids);
    let mut expected = fixture.documents();
    assert_eq!(expected.len(), ids.len());
    for id in ids {
        let outcome = &fixture.sink.destroy(&[fixture.id(id)]).await.unwrap()[0];
        assert_eq!(outcome.verdict, Verdict::Deleted, "{id:?}: {}", outcome.said);
        expected.remove(id);
        assert_eq!(fixture.documents(), expected, "{id:?}");
    }
    let never = [fixture.id("2"), fixture.id("b"), fixture.id("caf"), fixture.id(&long[1..])];
    assert_eq!(fixture.verdicts(&never).await, [Verdict::Absent; 4]);
}

#[tokio::test]
async fn a_value_that_no_term_can_hold_is_refused() {
    let fixture = Fixture::new(false);
    let too_long = "x".repeat(65_531);
    fixture.add_all(&["x", &too_long[..65_530]]);
    let before = fixture.documents();
    let batch = [
        fixture.id(&too_long),
        fixture.field("document", &too_long),
        fixture.field("number", "01"),
        fixture.field("number", "-1"),
        fixture.id(""),
    ];
    for (target, outcome) in batch.iter().zip(fixture.sink.destroy(&batch).await.unwrap()) {
        assert_eq!(outcome.verdict, Verdict::Refused, "{:?}", target.address);
        assert!(outcome.said.starts_with("not sent: "), "{}", outcome.said);
    }
    assert_eq!(fixture.sink.look(&batch).await.unwrap(), [Presence::Unknown; 5]);
    assert_eq!(fixture.documents(), before);
}

#[tokio::test]
async fn what_lies_elsewhere_is_refused() {
    let fixture = Fixture::new(false);
    fixture.add_all(&["1"]);
    let index = fixture.path().to_str().unwrap();
    let elsewhere = [
        Address::Document { index: "/srv/other".into(), id: "1".into(), routing: None },
        Address::Document { index: format!("{index}/").into(), id: "1".into(), routing: None },
        Address::Document { index: index.into(), id: "1".into(), routing: Some("t".into()) },
        Address::Object { bucket: index.into(), key: "1".into() },
        Address::Prefix { bucket: index.into(), prefix: "1/".into() },
    ];
    let batch: Vec<Target> = elsewhere.into_iter().map(target).collect();
    assert_eq!(fixture.verdicts(&batch).await, [Verdict::Refused; 5]);
    assert_eq!(fixture.sink.look(&batch).await.unwrap(), [Presence::Unknown; 5]);
    assert_eq!(fixture.documents().len(), 1);
}

#[tokio::test]
async fn chunks_go_with_their_row_alone_also_by_number() {
    let fixture = Fixture::new(true);
    let (_, fields) = schema();
    let mut writer = writer(&fixture.index());
    for (id, row, number) in [("a", "1", 1_u64), ("b", "1", 1), ("c", "10", 10), ("d", "", 1)] {
        let mut document = document(id, row, "text");
        document.add_u64(fields.number, number);
        writer.add_document(document).unwrap();
    }
    writer.commit().unwrap();
    drop(writer);
    let outcome = &fixture.sink.destroy(&[fixture.field("document", "1")]).await.unwrap()[0];
    assert_eq!(outcome.verdict, Verdict::Deleted);
    assert_eq!(outcome.said, "2 documents deleted, segments rewritten");
    assert_eq!(fixture.documents().into_keys().collect::<Vec<_>>(), ["c", "d"]);
    assert_eq!(fixture.verdicts(&[fixture.field("number", "1")]).await, [Verdict::Deleted]);
    assert_eq!(fixture.documents().into_keys().collect::<Vec<_>>(), ["c"]);
}

/// Of a field with norms (`id`), and of one whose values are stored (`document`).
#[tokio::test]
async fn a_document_that_holds_another_key_too_stays() {
    let fixture = Fixture::new(false);
    let (_, fields) = schema();
    let mut writer = writer(&fixture.index());
    let mut shared = document("1", "7", "both");
    shared.add_text(fields.id, "2");
    shared.add_text(fields.document, "8");
    for document in [shared, document("1", "7", "own"), document("3", "9", "neighbour")] {
        writer.add_document(document).unwrap();
    }
    writer.commit().unwrap();
    drop(writer);
    let all = [fixture.id("1"), fixture.id("2"), fixture.field("document", "7")];
    let outcomes = fixture.sink.destroy(&all).await.unwrap();
    for outcome in outcomes {
        assert_eq!(outcome.verdict, Verdict::Refused, "{}", outcome.said);
        assert_eq!(outcome.said, "1 documents have another value too, so nothing goes");
    }
    assert_eq!(fixture.index().reader().unwrap().searcher().num_docs(), 3);
    assert_eq!(fixture.sink.look(&all).await.unwrap(), [Presence::Present; 3]);
}

#[tokio::test]
async fn a_field_that_is_not_exact_is_refused() {
    let fixture = Fixture::with(false, |config| config.id_field = "body".into());
    fixture.add("1", "1", "one word of many");
    for error in [
        fixture.sink.destroy(&[fixture.id("word")]).await.unwrap_err(),
        fixture.sink.look(&[fixture.id("word")]).await.unwrap_err(),
    ] {
        assert!(matches!(error, SinkError::Missing(_)), "{error}");
        let said = error.to_string();
        assert!(said.contains("id field `body`") && said.contains("STRING"), "{said}");
    }
    let fixture = Fixture::new(false);
    fixture.add("1", "1", "one word of many");
    let batch = [fixture.field("body", "word"), fixture.field("nowhere", "1"), fixture.id("2")];
    let outcomes = fixture.sink.destroy(&batch).await.unwrap();
    assert_eq!(outcomes[0].verdict, Verdict::Refused);
    assert!(outcomes[0].said.contains("tokenized (default)"), "{}", outcomes[0].said);
    assert_eq!(outcomes[1].verdict, Verdict::Refused);
    assert_eq!(outcomes[1].said, "not sent: field `nowhere`: the schema has no such field");
    assert_eq!(outcomes[2].verdict, Verdict::Absent);
    assert_eq!(fixture.documents().len(), 1);
}

#[tokio::test]
async fn a_missing_index_is_no_absence_and_is_not_made() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().join("none"), folder.path().to_owned()] {
        let path = path.to_str().unwrap();
        let sink = TantivySink::new(TantivyConfig::new(path)).unwrap();
        let one = [target(Address::Document { index: path.into(), id: "1".into(), routing: None })];
        for error in [
            sink.destroy(&one).await.unwrap_err(),
            sink.look(&one).await.unwrap_err(),
            sink.check(&[]).await.unwrap_err(),
        ] {
            assert!(matches!(&error, SinkError::Missing(said) if said.contains(path)), "{error}");
        }
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "something was made");
}

#[tokio::test]
async fn a_lock_that_another_writer_holds_is_waited_for_and_then_said() {
    let fixture = Fixture::new(false);
    fixture.add_all(&["1"]);
    let mut config = TantivyConfig::new(fixture.path().to_str().unwrap());
    config.timeout = Duration::from_secs(1);
    let impatient = TantivySink::new(config).unwrap();
    let index = fixture.index();
    let mut other = writer(&index);
    other.add_document(document("2", "", "not committed")).unwrap();
    // An absence beside a writer with work in hand would prove nothing.
    for id in ["1", "2"] {
        let error = impatient.destroy(&[fixture.id(id)]).await.unwrap_err();
        let SinkError::Unavailable(said) = error else { panic!("{error}") };
        assert!(said.to_string().contains("must drop its writer"), "{said}");
    }
    assert_eq!(fixture.sink.look(&[fixture.id("1")]).await.unwrap(), [Presence::Present]);
    let batch = [fixture.id("1"), fixture.id("2")];
    let mut waiting = Box::pin(fixture.sink.destroy(&batch));
    assert!(waiting.as_mut().now_or_never().is_none());
    other.commit().unwrap();
    drop(other);
    let outcomes = waiting.await.unwrap();
    assert!(outcomes.iter().all(|it| it.verdict == Verdict::Deleted), "{outcomes:?}");
    assert_eq!(fixture.documents(), BTreeMap::new());
}

#[tokio::test]
async fn a_lease_that_ends_while_the_lock_is_waited_for_stops_the_delete() {
    let fixture = Fixture::new(false);
    fixture.add_all(&["1", "2"]);
    let index = fixture.index();
    let other: tantivy::IndexWriter = writer(&index);
    let mut batch = [fixture.id("1"), fixture.id("2"), fixture.id("3")];
    let ends = Instant::now() + Duration::from_millis(100);
    batch[0].fence.until = ends;
    batch[2].fence.until = ends;
    let mut waiting = Box::pin(fixture.sink.destroy(&batch));
    tokio::select! {
        _ = &mut waiting => panic!("nobody gave the lock up"),
        () = tokio::time::sleep_until(ends.into()) => drop(other),
    }
    let outcomes = waiting.await.unwrap();
    let said: Vec<_> = outcomes.iter().map(|it| (it.verdict, &*it.said)).collect();
    assert_eq!(said[0], (Verdict::Busy, "lease over"));
    assert_eq!(said[1].0, Verdict::Deleted);
    assert_eq!(said[2], (Verdict::Busy, "lease over"), "an absence seen too late is none");
    assert_eq!(fixture.documents().into_keys().collect::<Vec<_>>(), ["1"]);
}

/// The caller's time is over when the work has just begun.
#[tokio::test]
async fn a_caller_that_gives_up_loses_no_verdict() {
    let fixture = Fixture::new(false);
    fixture.add_all(&["1", "2"]);
    let batch = [fixture.id("1")];
    assert!(fixture.sink.destroy(&batch).now_or_never().is_none());
    let outcomes = fixture.sink.destroy(&[fixture.id("1"), fixture.id("3")]).await.unwrap();
    assert_eq!(outcomes[0].verdict, Verdict::Deleted, "{}", outcomes[0].said);
    assert_eq!(outcomes[1].verdict, Verdict::Absent, "{}", outcomes[1].said);
    assert_eq!(fixture.documents().len(), 1);
    // Confirmed once, it is as any other.
    assert_eq!(fixture.verdicts(&batch).await, [Verdict::Absent]);
}

/// In the stored text, in the terms, in the columns; of this commit and of versions before it.
#[tokio::test]
async fn a_deleted_document_leaves_no_byte_in_any_file() {
    let fixture = Fixture::new(false);
    let (_, fields) = schema();
    fixture.add_all(&["before", "after"]);
    let mut writer = writer(&fixture.index());
    writer.add_document(document("1", "1", "markerold")).unwrap();
    writer.add_document(document("2", "2", "neighbour")).unwrap();
    writer.commit().unwrap();
    writer.delete_term(Term::from_field_text(fields.id, "1"));
    writer.add_document(document("1", "1", "markernew")).unwrap();
    writer.commit().unwrap();
    writer.wait_merging_threads().unwrap();
    for there in ["markerold", "markernew"] {
        assert_eq!(fixture.files_with(there), ["fast", "store"]);
        assert!(fixture.terms(fields.body).contains(there));
    }
    let mut rest = fixture.documents();
    rest.remove("1");
    let outcome = &fixture.sink.destroy(&[fixture.id("1")]).await.unwrap()[0];
    assert_eq!(outcome.verdict, Verdict::Deleted);
    assert_eq!(outcome.said, "1 document deleted, segments rewritten");
    for gone in ["markerold", "markernew"] {
        assert_eq!(fixture.files_with(gone), NONE);
        assert!(!fixture.terms(fields.body).contains(gone));
    }
    assert!(!fixture.terms(fields.id).contains("1"));
    assert_eq!(fixture.documents(), rest);
    // A segment of which nothing is left goes as a whole.
    assert_eq!(fixture.verdicts(&["before", "after", "2"].map(|id| fixture.id(id))).await.len(), 3);
    assert_eq!(fixture.files_with("neighbour"), NONE);
    assert_eq!(fixture.index().searchable_segment_ids().unwrap(), []);
}

/// Which segments are merged, and when, is the application's matter.
#[tokio::test]
async fn segments_that_hold_nothing_deleted_are_left_as_they_are() {
    let fixture = Fixture::new(false);
    let mut writer = writer(&fixture.index());
    writer.set_merge_policy(Box::new(NoMergePolicy));
    for number in 0..20 {
        for part in ["a", "b"] {
            writer.add_document(document(&format!("{number}{part}"), "", "text")).unwrap();
        }
        writer.commit().unwrap();
    }
    drop(writer);
    let before = fixture.index().searchable_segment_ids().unwrap();
    assert_eq!(fixture.verdicts(&[fixture.id("7a"), fixture.id("7c")]).await.len(), 2);
    let after = fixture.index().searchable_segment_ids().unwrap();
    assert_eq!((before.len(), after.len()), (20, 20));
    assert_eq!(before.iter().filter(|segment| !after.contains(segment)).count(), 1);
}

/// Deleted and committed by somebody who did not rewrite: a process that died, or the application.
#[tokio::test]
async fn what_an_earlier_attempt_left_on_the_disk_is_no_absence() {
    let fixture = Fixture::new(false);
    let (_, fields) = schema();
    fixture.add("1", "", "markerone");
    fixture.add_all(&["2"]);
    let mut writer = writer(&fixture.index());
    writer.add_document(document("3", "", "markertwo")).unwrap();
    writer.add_document(document("4", "", "neighbour")).unwrap();
    writer.commit().unwrap();
    writer.delete_term(Term::from_field_text(fields.id, "3"));
    writer.commit().unwrap();
    drop(writer);
    // What a merge that nobody waited for leaves: a segment's file that no list names.
    let stray = fixture.path().join("0123456789abcdef0123456789abcdef.store");
    fs::write(&stray, "markertwo").unwrap();
    let foreign = fixture.path().join("notes.txt");
    fs::write(&foreign, "not tantivy's").unwrap();
    assert!(fixture.files_with("markertwo").len() > 1);
    assert_eq!(fixture.verdicts(&[fixture.id("3")]).await, [Verdict::Absent]);
    assert_eq!(fixture.files_with("markertwo"), NONE);
    assert!(!stray.exists() && foreign.exists());
    assert_eq!(fixture.documents().into_keys().collect::<Vec<_>>(), ["1", "2", "4"]);
}

#[tokio::test]
async fn until_the_rewrite_nothing_is_confirmed_and_then_it_is_deleted_not_absent() {
    let fixture = Fixture::with(false, |config| {
        config.purge_wait = Duration::from_secs(3);
        config.timeout = Duration::from_secs(1);
    });
    fixture.add_all(&["1", "2"]);
    fixture.add("3", "", "markerthree");
    fixture.add_all(&["4", "5"]);
    assert_eq!(fixture.settled(&[fixture.id("1")]).await, [Verdict::Deleted]);
    let batch = [fixture.id("4"), fixture.id("6")];
    let outcomes = fixture.sink.destroy(&batch).await.unwrap();
    assert_eq!(outcomes[0].verdict, Verdict::Busy);
    assert_eq!(outcomes[0].said, "1 document deleted, and on the disk until the rewrite");
    assert_eq!(outcomes[1].verdict, Verdict::Busy);
    assert_eq!(fixture.sink.look(&batch).await.unwrap(), [Presence::Absent; 2]);
    assert_ne!(fixture.files_with("the copy of 4"), NONE);
    assert_eq!(fixture.settled(&batch).await, [Verdict::Deleted, Verdict::Absent]);
    assert_eq!(fixture.files_with("the copy of 4"), NONE);
}

/// Else a busy index that takes long to rewrite would confirm nothing: something is always deleted
/// after the last rewrite began.
#[tokio::test]
async fn the_first_rewrite_after_a_delete_is_enough_whatever_is_deleted_since() {
    let fixture = Fixture::with(false, |config| {
        config.purge_wait = Duration::from_secs(3);
        config.timeout = Duration::from_secs(1);
    });
    fixture.add_all(&["1", "2", "3", "4", "5"]);
    assert_eq!(fixture.settled(&[fixture.id("1")]).await, [Verdict::Deleted]);
    let waits = [fixture.id("2"), fixture.id("6")];
    assert_eq!(fixture.verdicts(&waits).await, [Verdict::Busy; 2]);
    assert_eq!(fixture.settled(&[fixture.id("3")]).await, [Verdict::Deleted]);
    assert_eq!(fixture.verdicts(&[fixture.id("4")]).await, [Verdict::Busy]);
    assert_ne!(fixture.files_with("the copy of 4"), NONE);
    assert_eq!(fixture.verdicts(&waits).await, [Verdict::Deleted, Verdict::Absent]);
}

#[tokio::test]
async fn without_purge_the_outcome_says_that_the_bytes_stay() {
    let fixture = Fixture::with(false, |config| config.purge = false);
    fixture.add_all(&["1", "2"]);
    let outcome = &fixture.sink.destroy(&[fixture.id("1")]).await.unwrap()[0];
    assert_eq!(outcome.verdict, Verdict::Deleted);
    assert_eq!(outcome.said, "1 document deleted; the bytes wait for a merge");
    assert_ne!(fixture.files_with("the copy of 1"), NONE);
    assert_eq!(fixture.documents().into_keys().collect::<Vec<_>>(), ["2"]);
}

/// An application that keeps its index open, and makes a writer for each of its turns.
#[tokio::test]
async fn an_application_and_the_sink_write_by_turns() {
    let fixture = Fixture::new(false);
    let index = fixture.index();
    let reader = index.reader().unwrap();
    for turn in 0..8 {
        let mut writer = writer(&index);
        for place in 0..4 {
            let text = format!("marker{turn}of{place}");
            writer.add_document(document(&format!("{turn}-{place}"), "", &text)).unwrap();
        }
        let mut commit = writer.prepare_commit().unwrap();
        commit.set_payload(&format!("offset {turn}"));
        commit.commit().unwrap();
        writer.wait_merging_threads().unwrap();
        let batch = [fixture.id(&format!("{turn}-1")), fixture.id(&format!("{turn}-2"))];
        assert_eq!(fixture.verdicts(&batch).await, [Verdict::Deleted; 2]);
        let payload = index.load_metas().unwrap().payload;
        assert_eq!(payload.as_deref(), Some(&*format!("offset {turn}")), "the application's");
        reader.reload().unwrap();
        assert_eq!(reader.searcher().num_docs(), 2 * (turn + 1));
        for turn in 0..=turn {
            for place in [1, 2] {
                let gone = fixture.files_with(&format!("marker{turn}of{place}"));
                assert_eq!(gone, NONE);
            }
        }
    }
}

#[tokio::test]
async fn batches_side_by_side_are_answered_each_for_itself() {
    let fixture = Fixture::with(false, |config| config.purge_wait = Duration::from_millis(100));
    let ids: Vec<String> = (0..80).map(|number| number.to_string()).collect();
    fixture.add_all(&ids.iter().map(String::as_str).collect::<Vec<_>>());
    let batches = ids.chunks(10).map(|ids| {
        let batch: Vec<Target> = ids.iter().map(|id| fixture.id(id)).collect();
        let fixture = &fixture;
        async move { fixture.verdicts(&batch).await }
    });
    for verdicts in futures::future::join_all(batches).await {
        assert_eq!(verdicts, [Verdict::Deleted; 10]);
    }
    assert_eq!(fixture.documents(), BTreeMap::new());
    assert_eq!(fixture.files_with("the copy of"), NONE);
}

/// A tantivy before 0.24 can't open an index with a single file of today's format.
#[tokio::test]
async fn an_index_of_an_older_format_is_left_as_it_is() {
    let fixture = Fixture::new(false);
    fixture.add_all(&["1", "2"]);
    for entry in fs::read_dir(fixture.path()).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let (new, old) = (br#""index_format_version":7"#, br#""index_format_version":6"#);
        let at = bytes.windows(new.len()).rposition(|window| window == new);
        if let Some(at) = at {
            bytes[at..at + old.len()].copy_from_slice(old);
            fs::write(path, bytes).unwrap();
        }
    }
    let before = fixture.files();
    let error = fixture.sink.destroy(&[fixture.id("1")]).await.unwrap_err();
    assert!(matches!(&error, SinkError::Missing(it) if it.contains("in format 6")), "{error}");
    let error = fixture.sink.check(&[]).await.unwrap_err();
    assert!(matches!(error, SinkError::Missing(_)), "{error}");
    assert_eq!(fixture.sink.look(&[fixture.id("1")]).await.unwrap(), [Presence::Present]);
    assert_eq!(fixture.files(), before);
    // Once its application has moved on, so does the sink.
    fixture.add_all(&["3"]);
    assert_eq!(fixture.verdicts(&[fixture.id("1")]).await, [Verdict::Deleted]);
}

/// tantivy's own default compresses, and so do applications.
#[tokio::test]
async fn what_is_compressed_can_be_rewritten() {
    for settings in [r#""lz4""#, r#""zstd""#, r#""zstd(compression_level=5)""#] {
        let folder = tempfile::tempdir().unwrap();
        let mut schema = Schema::builder();
        let id = schema.add_text_field("id", STRING | STORED | FAST);
        let compressed = tantivy::IndexSettings {
            docstore_compression: serde_json::from_str(settings).unwrap(),
            ..tantivy::IndexSettings::default()
        };
        let builder = Index::builder().schema(schema.build()).settings(compressed);
        let index = builder.create_in_dir(folder.path()).unwrap();
        let mut writer = writer(&index);
        for number in 0..2_000 {
            let mut document = TantivyDocument::default();
            document.add_text(id, format!("{number:040}"));
            writer.add_document(document).unwrap();
        }
        writer.commit().unwrap();
        drop(writer);
        let path = folder.path().to_str().unwrap();
        let sink = TantivySink::new(TantivyConfig::new(path)).unwrap();
        let id = format!("{:040}", 7);
        let one = [target(Address::Document { index: path.into(), id, routing: None })];
        assert_eq!(sink.destroy(&one).await.unwrap()[0].verdict, Verdict::Deleted);
        let searcher = index.reader().unwrap().searcher();
        assert_eq!(searcher.num_docs(), 1_999);
        assert_eq!(searcher.segment_readers().iter().map(|it| it.max_doc()).sum::<u32>(), 1_999);
    }
}

#[tokio::test]
async fn check_says_what_an_index_is() {
    let fixture = Fixture::with(false, |config| config.id_field = "label".into());
    let facts = fixture.sink.check(&["document", "body"]).await.unwrap();
    let field = |field: &str| FieldFacts { field: field.into(), problem: None };
    assert_eq!(facts.fields[..2], [field("label"), field("document")]);
    assert!(facts.fields[2].problem.as_ref().unwrap().contains("tokenized"), "{facts:?}");
    assert_eq!((facts.documents, facts.segments), (0, 0));
    fixture.add_all(&["1", "2"]);
    let index = fixture.index();
    let mut other: tantivy::IndexWriter = writer(&index);
    other.delete_term(Term::from_field_text(schema().1.id, "1"));
    other.commit().unwrap();
    let facts = fixture.sink.check(&[]).await.unwrap();
    assert!(facts.locked);
    drop(other);
    let facts = fixture.sink.check(&[]).await.unwrap();
    let fields = vec![field("label")];
    assert_eq!(facts, Facts { documents: 1, deleted: 1, segments: 1, locked: false, fields });
}

/// The schema that a text-only index has: nothing in it is a key.
#[tokio::test]
async fn an_index_without_the_id_field_is_said_before_anything_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let mut schema = Schema::builder();
    schema.add_text_field("body", TEXT);
    Index::create_in_dir(folder.path(), schema.build()).unwrap();
    let path = folder.path().to_str().unwrap();
    let sink = TantivySink::new(TantivyConfig::new(path)).unwrap();
    let one = [target(Address::Document { index: path.into(), id: "1".into(), routing: None })];
    let error = sink.destroy(&one).await.unwrap_err();
    let said = format!(
        "missing: an exact id field `id` in the index {path}: the schema has no such field"
    );
    assert_eq!(error.to_string(), said);
}
