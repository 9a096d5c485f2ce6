//! Files that grow, and files that come later.

use std::time::Duration;

use tokio::time::timeout;
use tombstream_model::{Mark, Source, SourceError};

use crate::support::{
    BOUND, Folder, Kind, PACKED, all, events, lines, long_lines, next, said, some, text, values,
};

/// No event comes, for several looks. What comes are marks, at most.
async fn nothing<S: Source>(source: &mut S) -> Vec<Mark> {
    let until = tokio::time::Instant::now() + Duration::from_millis(60);
    let mut marks = Vec::new();
    while let Ok(polled) = tokio::time::timeout_at(until, source.next()).await {
        let polled = polled.unwrap();
        assert!(events(&polled).is_empty());
        marks.extend(polled.marks);
    }
    assert!(!source.has_ended(), "a source that follows has no end");
    marks
}

#[tokio::test]
async fn lines_that_are_appended_come_and_so_do_new_files() {
    let folder = Folder::following();
    folder.append("b.jsonl", &lines(0..3));
    let mut source = folder.open();
    assert_eq!(some(&mut source, 3).await.0, values(0..3));
    nothing(&mut source).await;
    folder.append("b.jsonl", &lines(3..5));
    assert_eq!(some(&mut source, 2).await.0, values(3..5));
    // Before the other one by its name.
    folder.write("a.jsonl", lines(5..8));
    assert_eq!(some(&mut source, 3).await.0, values(5..8));
    folder.write("c.jsonl.gz", Kind::Gzip.pack(lines(8..10).as_bytes()));
    folder.append("b.jsonl", &lines(10..11));
    let mut both = some(&mut source, 3).await.0;
    both.sort();
    assert_eq!(both, ["{\"id\":10}", "{\"id\":8}", "{\"id\":9}"]);
    nothing(&mut source).await;
}

#[tokio::test]
async fn half_a_line_waits_for_its_other_half() {
    let mut folder = Folder::following();
    let whole = lines(0..3);
    let (half, rest) = whole.split_at(whole.len() - 4);
    folder.append("a.jsonl", half);
    let mut source = folder.open();
    let (texts, mut marks) = some(&mut source, 2).await;
    assert_eq!(texts, values(0..2));
    marks.extend(nothing(&mut source).await);
    source.commit(marks).await.unwrap();
    drop(source);
    // Neither does a restart read it.
    let mut source = folder.open();
    nothing(&mut source).await;
    folder.append("a.jsonl", &rest[..2]);
    nothing(&mut source).await;
    folder.append("a.jsonl", &rest[2..]);
    assert_eq!(some(&mut source, 1).await.0, values(2..3));
    drop(source);
    // Who reads once reads it as it is.
    folder.append("a.jsonl", "{\"id\":");
    folder.config.follow = false;
    assert_eq!(all(&mut folder.open()).await, ["{\"id\":2}", "{\"id\":"]);
}

#[tokio::test]
async fn half_a_line_that_is_too_long_waits_as_well() {
    let mut folder = Folder::following();
    folder.config.line_bytes_max = std::num::NonZeroUsize::new(100).unwrap();
    folder.append("a.jsonl", &format!("{}{}", lines(0..2), "x".repeat(5_000)));
    let mut source = folder.open();
    let (texts, mut marks) = some(&mut source, 2).await;
    assert_eq!(texts, values(0..2));
    marks.extend(nothing(&mut source).await);
    source.commit(marks).await.unwrap();
    drop(source);
    let mut source = folder.open();
    folder.append("a.jsonl", &format!("{}\n{}", "x".repeat(5_000), lines(2..3)));
    let texts = some(&mut source, 2).await.0;
    assert!(texts[0].contains("the line has 10000 bytes"), "{}", texts[0]);
    assert_eq!(texts[1..], values(2..3));
}

#[tokio::test]
async fn a_file_that_shrinks_or_is_replaced_while_it_is_followed_is_an_error() {
    for (then, what) in [(lines(0..2), "it ends at byte"), (lines(7..100), "what stands before")] {
        let folder = Folder::following();
        folder.write("a.jsonl", lines(0..10));
        let mut source = folder.open();
        some(&mut source, 10).await;
        folder.write("a.jsonl", then);
        let error = loop {
            match next(&mut source).await {
                Ok(polled) => assert!(events(&polled).is_empty()),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, SourceError::Fatal(_)), "{error:?}");
        assert!(said(&error).contains(what), "{}", said(&error));
    }
}

#[tokio::test]
async fn a_compressed_file_that_is_being_written_is_waited_for() {
    for kind in PACKED {
        let folder = Folder::following();
        let file = kind.pack(lines(0..10_000).as_bytes());
        let name = kind.name("a");
        folder.write(&name, &file[..file.len() / 2]);
        let mut source = folder.open();
        let mut texts = Vec::new();
        for _ in 0..3 {
            let error = loop {
                match next(&mut source).await {
                    Ok(polled) => texts.extend(events(&polled).iter().map(text)),
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, SourceError::Unavailable(_)), "{kind:?}: {error:?}");
            let said = said(&error);
            assert!(said.contains("is it still being written?") && said.contains(&name), "{said}");
        }
        folder.write(&name, &file);
        texts.extend(some(&mut source, 10_000 - texts.len()).await.0);
        assert_eq!(texts, values(0..10_000), "{kind:?}");
    }
}

#[tokio::test]
async fn a_file_that_grows_all_the_time_is_read_all_the_same() {
    let folder = Folder::following();
    // More than one block, so that it changes between two of them.
    let values = long_lines(0..10_000);
    let line = |at: usize| format!("{}\n", values[at]);
    let mut written = 9_000;
    folder.append("a.jsonl", &(0..written).map(line).collect::<String>());
    let mut source = folder.open();
    let mut texts = Vec::new();
    while texts.len() < 9_000 {
        folder.append("a.jsonl", &line(written));
        written += 1;
        let polled = timeout(BOUND, source.next()).await.unwrap().unwrap();
        texts.extend(events(&polled).iter().map(text));
    }
    texts.extend(some(&mut source, written - texts.len()).await.0);
    assert!(texts == values[..written]);
}
