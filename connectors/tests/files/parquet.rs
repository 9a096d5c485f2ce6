//! Parquet: messages and archives, written and read back.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::timeout;
use tombstream_connectors::archive::ArchivedEvent;
use tombstream_connectors::files::FilesConfig;
use tombstream_connectors::files::parquet::{
    ArchiveStore, Cell, ColumnKind, ParquetConfig, ParquetSource, TableWriter, archive_file,
};
use tombstream_model::{
    Candidate, Event, Flag, FlagKind, Found, KeyColumn, KeyKind, Lsn, OnHardDelete, Records,
    Relation, Source, SourceError,
};

use super::support::BOUND;

fn relation() -> Relation {
    Relation {
        name: "notes".into(),
        schema: "public".to_owned(),
        table: "notes".to_owned(),
        key: vec![
            KeyColumn { name: "tenant".to_owned(), kind: KeyKind::Text },
            KeyColumn { name: "id".to_owned(), kind: KeyKind::Bigint },
        ],
        flag: Flag { column: "gone".to_owned(), kind: FlagKind::TimestampTz },
        targets: Vec::new(),
        grace: Duration::ZERO,
        hide: None,
        breaker: None,
        on_hard_delete: OnHardDelete::Ignore,
        key_reuse_forbidden: true,
        topics: Vec::new(),
        allow_cascade: Vec::new(),
    }
}

fn time(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn event(id: i64, at: &str) -> ArchivedEvent {
    ArchivedEvent {
        relation: "notes".to_owned(),
        key: vec!["a\"b".to_owned(), id.to_string()],
        found: if id % 7 == 0 { Found::Removed } else { Found::Flagged },
        position: (id % 2 == 0).then_some((3, Lsn(id.unsigned_abs()))),
        at: time(at),
    }
}

/// What a source brought.
#[derive(Default)]
struct Read {
    events: Vec<Event>,
    candidates: Vec<Candidate>,
    polls: usize,
    others: u64,
}

async fn read(path: &Path, (from, to): (Option<&str>, Option<&str>)) -> Result<Read, SourceError> {
    let mut files = FilesConfig::new(format!("file://{}", path.display()));
    files.items_max = 1_000.try_into().unwrap();
    let config = ParquetConfig { files, from: from.map(time), to: to.map(time) };
    let others = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&others);
    let on_other = move |rows| {
        counted.fetch_add(rows, Ordering::Relaxed);
    };
    let mut source = ParquetSource::open(config, [relation()].into(), on_other).await.unwrap();
    let mut read = Read::default();
    while !source.has_ended() {
        let polled = timeout(BOUND, source.next()).await.expect("it goes on")?;
        read.polls += 1;
        assert!(polled.records.len() <= 1_000);
        match polled.records {
            Records::Events(events) => read.events.extend(events),
            Records::Candidates(candidates) => read.candidates.extend(candidates),
            other => panic!("parquet brings no {other:?}"),
        }
    }
    read.others = others.load(Ordering::Relaxed);
    Ok(read)
}

const ALL: (Option<&str>, Option<&str>) = (None, None);

#[tokio::test(flavor = "multi_thread")]
async fn messages_come_back_as_they_stood_in_kafka() {
    let folder = tempfile::tempdir().unwrap();
    let columns = [
        ("topic", ColumnKind::Text),
        ("more", ColumnKind::Integer),
        ("key", ColumnKind::Text),
        ("value", ColumnKind::Text),
    ];
    let mut table = TableWriter::new(Vec::new(), &columns).unwrap();
    // More than a group of rows, and more than a page of it.
    for n in 0..120_000 {
        let (key, value) = (format!("k{n}"), format!("{{\"n\":{n}}}"));
        let is = |nth: i64, text| if n % nth == 0 { Cell::Null } else { Cell::Text(text) };
        let topic = if n % 3 == 0 { "a" } else { "b" };
        table.push(&[is(5, topic), Cell::Integer(n), is(11, &key), is(13, &value)]).unwrap();
    }
    std::fs::write(folder.path().join("1.parquet"), table.close().unwrap()).unwrap();
    std::fs::write(folder.path().join("2.csv"), "not ours").unwrap();
    let read = read(folder.path(), ALL).await.unwrap();
    assert_eq!(read.events.len(), 120_000);
    for (n, event) in read.events.iter().enumerate() {
        let text = |bytes: &Option<bytes::Bytes>| {
            bytes.as_ref().map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
        };
        let topic = if n % 5 == 0 { "files" } else { ["a", "b", "b"][n % 3] };
        assert_eq!(&**event.topic(), topic, "{n}");
        assert_eq!(text(&event.key), (n % 11 != 0).then(|| format!("k{n}")));
        assert_eq!(text(&event.value), (n % 13 != 0).then(|| format!("{{\"n\":{n}}}")));
        assert_eq!(event.origin.offset, n as i64);
        assert!(event.origin.topic.ends_with("/1.parquet"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_comes_back_by_day_and_time_and_with_its_positions() {
    let folder = tempfile::tempdir().unwrap();
    let place = FilesConfig::new(format!("file://{}", folder.path().display()));
    let store = ArchiveStore::open(&place).unwrap();
    let mut events: Vec<_> = (0..2_500).map(|id| event(id, "2026-03-01T10:00:00Z")).collect();
    events.extend((2_500..3_000).map(|id| event(id, "2026-03-02T10:00:00Z")));
    events.extend((3_000..3_100).map(|id| ArchivedEvent {
        relation: "former".to_owned(),
        ..event(id, "2026-03-02T11:00:00Z")
    }));
    assert_eq!(store.put(&events).await.unwrap(), 3);
    assert!(folder.path().join("relation=notes/day=2026-03-02").is_dir());

    let all = read(folder.path(), ALL).await.unwrap();
    assert_eq!(all.candidates.len(), 3_000, "what is not configured is not opened");
    for (id, candidate) in all.candidates.iter().enumerate() {
        let expected = event(id as i64, "2026-03-01T10:00:00Z");
        assert_eq!(candidate.key.columns().collect::<Vec<_>>(), expected.key);
        assert_eq!(candidate.found, expected.found);
        let position = candidate.position.map(|it| (it.generation.0, it.lsn));
        assert_eq!(position, expected.position);
    }
    let ids = async |from, to| read(folder.path(), (from, to)).await.unwrap().candidates.len();
    assert_eq!(ids(Some("2026-03-02T00:00:00Z"), None).await, 500);
    assert_eq!(ids(None, Some("2026-03-01T10:00:00Z")).await, 0);
    assert_eq!(ids(Some("2026-03-01T10:00:00Z"), Some("2026-03-01T10:00:00.000001Z")).await, 2_500);
    assert_eq!(ids(Some("2026-03-03T00:00:00Z"), None).await, 0);

    // One file of both, as somebody may have put them together.
    let together = folder.path().join("together");
    std::fs::create_dir(&together).unwrap();
    std::fs::write(together.join("x.parquet"), archive_file(&events).unwrap()).unwrap();
    let both = read(&together, ALL).await.unwrap();
    assert_eq!((both.candidates.len(), both.others), (3_000, 100));
}

/// A key that Postgres would not take would fail the claim of its batch again and again.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_an_archive_that_is_none_ends_the_reading_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    let said = async |change: fn(&mut ArchivedEvent)| {
        let mut events: Vec<_> = (0..10).map(|id| event(id, "2026-03-01T10:00:00Z")).collect();
        change(&mut events[7]);
        std::fs::write(&path, archive_file(&events).unwrap()).unwrap();
        match read(folder.path(), ALL).await {
            Err(SourceError::Fatal(said)) => said,
            Err(error) => panic!("it would be tried again: {error}"),
            Ok(_) => panic!("it was read"),
        }
    };
    let wrong = said(|event| event.key[1] = "7; drop table notes".to_owned()).await;
    assert!(wrong.contains("x.parquet") && wrong.contains("not a bigint"), "{wrong}");
    assert!(said(|event| event.key.clear()).await.contains("0 key columns, expected 2"));
    assert!(said(|event| event.key[0] = "\0".to_owned()).await.contains("zero byte"));
}

/// Torn, damaged, or something else: it is said, and nothing hangs or panics.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_whole_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    let events: Vec<_> = (0..300).map(|id| event(id, "2026-03-01T10:00:00Z")).collect();
    let whole = archive_file(&events).unwrap();
    let is_refused = async |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        matches!(read(folder.path(), ALL).await, Err(SourceError::Fatal(_)))
    };
    for length in (0..whole.len()).step_by(whole.len() / 40) {
        assert!(is_refused(&whole[..length]).await, "the first {length} of {} bytes", whole.len());
    }
    assert!(is_refused(b"PAR1, says a text, and is none PAR1").await);
    let mut other = TableWriter::new(Vec::new(), &[("id", ColumnKind::Integer)]).unwrap();
    other.push(&[Cell::Integer(1)]).unwrap();
    assert!(is_refused(&other.close().unwrap()).await, "a table of something else");
    // A flipped byte may hit what is not read; it never brings a key that is none, and never hangs.
    let mut refused = 0;
    for at in (4..whole.len()).step_by(whole.len() / 60) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x55;
        refused += usize::from(is_refused(&flipped).await);
    }
    assert!(refused > 20, "{refused} of 60");
}
