//! Files that are broken, that go away, and topics that are paused.

use tombstream_connectors::files::Gap;
use tombstream_model::{Source as _, SourceError};

use crate::support::{
    Folder, Kind, PACKED, all, all_committed, events, failing, lines, next, said, some, values,
};

#[tokio::test]
async fn a_compressed_file_that_is_cut_gives_what_is_whole_and_then_an_error() {
    for kind in PACKED {
        let folder = Folder::new();
        let file = kind.pack(lines(0..50_000).as_bytes());
        let name = kind.name("a");
        folder.write(&name, &file[..file.len() / 2]);
        let mut source = folder.open();
        let (texts, error) = failing(&mut source).await;
        assert!(!texts.is_empty() && texts == values(0..texts.len()), "{kind:?}: {}", texts.len());
        let at = lines(0..texts.len()).len();
        let SourceError::Fatal(said) = error else { panic!("{error:?}") };
        let what = format!("{}: it ends in the middle", folder.address(&name));
        assert!(said.starts_with(&what), "{said}");
        assert!(said.contains(&format!("after byte {at} ")) && said.contains("restart"), "{said}");
        assert!(!source.has_ended());
        // Mended, it is read on.
        let (_, marks) = some(&mut folder.open(), texts.len()).await;
        drop(source);
        let mut source = folder.open();
        some(&mut source, texts.len()).await;
        source.commit(marks).await.unwrap();
        drop(source);
        folder.write(&name, &file);
        assert_eq!(all(&mut folder.open()).await, values(texts.len()..50_000), "{kind:?}");
    }
}

#[tokio::test]
async fn a_broken_file_is_an_error_that_names_it() {
    for kind in PACKED {
        let folder = Folder::new();
        folder.write("0.jsonl", lines(0..3));
        // Not compressed at all.
        folder.write(&kind.name("a"), lines(3..6));
        folder.write("b.jsonl", lines(6..9));
        let (texts, error) = failing(&mut folder.open()).await;
        assert_eq!(texts, values(0..3));
        assert!(matches!(error, SourceError::Fatal(_)), "{error:?}");
        let said = said(&error);
        assert!(
            said.contains(&kind.name("a")) && said.contains("is broken after byte 0"),
            "{said}"
        );
    }
}

#[tokio::test]
async fn a_checksum_that_is_wrong_is_an_error_and_no_end() {
    let folder = Folder::new();
    let mut file = Kind::Gzip.pack(lines(0..3).as_bytes());
    let at = file.len() - 6;
    file[at] ^= 1;
    folder.write("a.jsonl.gz", file);
    let mut source = folder.open();
    let (texts, error) = failing(&mut source).await;
    assert_eq!(texts, values(0..3));
    assert!(said(&error).contains("its gzip stream is broken"), "{}", said(&error));
}

#[tokio::test]
async fn what_is_no_text_comes_as_it_is() {
    let folder = Folder::new();
    let bytes = b"\xff\xfe\x00\n{\"a\":\x01}\n\x00";
    folder.write("a.jsonl", bytes);
    let mut source = folder.open();
    let mut found = Vec::new();
    while !source.has_ended() {
        let polled = next(&mut source).await.unwrap();
        found.extend(events(&polled));
    }
    let values: Vec<_> = found.iter().map(|event| event.value.as_deref().unwrap()).collect();
    assert_eq!(values, [&b"\xff\xfe\x00"[..], b"{\"a\":\x01}", b"\x00"]);
}

#[tokio::test]
async fn a_file_that_goes_away_unread_is_reported_once_and_stops_nothing() {
    let mut folder = Folder::following();
    folder.config.items_max = std::num::NonZeroUsize::new(5).unwrap();
    folder.write("a.jsonl", lines(0..10));
    folder.write("b.jsonl", lines(10..20));
    let mut source = folder.open();
    let (_, marks) = some(&mut source, 5).await;
    source.commit(marks).await.unwrap();
    drop(source);
    std::fs::remove_file(folder.path("a.jsonl")).unwrap();
    let mut source = folder.open();
    assert_eq!(some(&mut source, 10).await.0, values(10..20));
    let gap = Gap { file: folder.address("a.jsonl"), next: lines(0..5).len() as u64 };
    assert_eq!(*folder.gaps.lock().unwrap(), std::slice::from_ref(&gap));
    // One that was read to its end may go.
    std::fs::remove_file(folder.path("b.jsonl")).unwrap();
    folder.write("c.jsonl", lines(20..30));
    assert_eq!(some(&mut source, 10).await.0, values(20..30));
    assert_eq!(*folder.gaps.lock().unwrap(), [gap]);
    // It came back.
    folder.write("a.jsonl", lines(0..10));
    assert_eq!(some(&mut source, 5).await.0, values(5..10));
}

#[tokio::test]
async fn a_folder_that_goes_away_is_no_end() {
    let folder = Folder::new();
    folder.write("a.jsonl", lines(0..3));
    let mut source = folder.open();
    let away = folder.files().with_file_name("away");
    std::fs::rename(folder.files(), &away).unwrap();
    for _ in 0..3 {
        let error = next(&mut source).await.unwrap_err();
        assert!(matches!(error, SourceError::Unavailable(_)), "{error:?}");
        assert!(said(&error).contains("the folder"), "{}", said(&error));
    }
    assert!(!source.has_ended());
    std::fs::rename(away, folder.files()).unwrap();
    assert_eq!(all(&mut source).await, values(0..3));
}

#[tokio::test]
async fn a_paused_topic_stops_each_file_before_its_next_line_of_it() {
    let record = |topic: &str, at: usize| {
        let value = format!("{{\\\"id\\\":{at}}}");
        format!(r#"{{"topic":"{topic}","partition":0,"offset":{at},"value":"{value}"}}"#) + "\n"
    };
    let folder = Folder::new();
    folder.write("a.jsonl", [record("good", 0), record("bad", 1), record("good", 2)].concat());
    folder.write("b.jsonl", [record("good", 3), record("good", 4)].concat());
    folder.write("c.jsonl", [record("bad", 5), record("good", 6)].concat());
    let mut source = folder.open();
    source.pause("bad").unwrap();
    let (mut texts, mut marks) = some(&mut source, 3).await;
    texts.sort();
    let ids = |ids: &[usize]| ids.iter().map(|id| format!("{{\"id\":{id}}}")).collect::<Vec<_>>();
    assert_eq!(texts, ids(&[0, 3, 4]));
    // It does not end: not everything is read.
    let error = loop {
        match next(&mut source).await {
            Ok(polled) => marks.extend(polled.marks),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, SourceError::Fatal(_)), "{error:?}");
    assert!(said(&error).starts_with("2 files are not read to their end"), "{}", said(&error));
    assert!(!source.has_ended());
    // No position passes what was left out: the next process reads it.
    source.commit(marks).await.unwrap();
    drop(source);
    assert_eq!(all(&mut folder.open()).await, ids(&[1, 2, 5, 6]));
}

/// A retry is the same call again, of the same source: it looks at everything anew, and reads nothing twice.
#[tokio::test]
async fn what_is_mended_is_read_on_by_the_same_source() {
    let folder = Folder::new();
    folder.write("a.jsonl", lines(0..3));
    folder.write(&Kind::Gzip.name("b"), lines(3..6));
    let mut source = folder.open();
    let (texts, _) = failing(&mut source).await;
    assert_eq!(texts, values(0..3));
    folder.write(&Kind::Gzip.name("b"), Kind::Gzip.pack(lines(3..6).as_bytes()));
    assert_eq!(all_committed(&mut source).await, values(3..6));
    assert_eq!(all(&mut folder.open()).await, values(0..3), "these were not committed");
}
