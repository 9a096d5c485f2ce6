//! Where reading goes on: after a commit, after a kill, in the middle of each kind of file (S7).

use std::num::NonZeroUsize;

use tombstream_connectors::positions::Positions as _;
use tombstream_model::{Mark, Source as _, SourceError};

use crate::support::{
    Folder, KINDS, Kind, PACKED, all, all_committed, events, failing, lines, long_lines, next,
    said, some, text, values,
};

/// Three files of a kind, 60 lines in all, some of them empty, the last one without its end; seven a poll.
fn three(kind: Kind) -> Folder {
    let mut folder = Folder::new();
    folder.config.items_max = NonZeroUsize::new(7).unwrap();
    folder.write(&kind.name("a"), kind.pack(lines(0..20).as_bytes()));
    folder.write(&kind.name("b"), kind.pack(lines(20..40).replace('\n', "\n\n").as_bytes()));
    folder.write(&kind.name("c"), kind.pack(lines(40..60).trim_end().as_bytes()));
    folder
}

#[tokio::test]
async fn reading_goes_on_behind_each_mark_that_was_committed() {
    for kind in KINDS {
        let (_, marks) = some(&mut three(kind).open(), usize::MAX).await;
        assert!(marks.len() >= 9, "{}", marks.len());
        for count in 0..=marks.len() {
            let folder = three(kind);
            let mut source = folder.open();
            let (mut read, mut marks) = (Vec::new(), Vec::new());
            while marks.len() < count {
                let polled = next(&mut source).await.unwrap();
                read.extend(events(&polled).iter().map(text));
                marks.extend(polled.marks);
            }
            // More is read than is committed: that comes again.
            some(&mut source, 1).await;
            source.commit(marks).await.unwrap();
            drop(source);
            read.extend(all(&mut folder.open()).await);
            assert_eq!(read, values(0..60), "{kind:?} after {count} marks");
        }
    }
}

#[tokio::test]
async fn what_was_read_to_its_end_is_not_opened_again() {
    for kind in KINDS {
        let folder = three(kind);
        assert_eq!(all_committed(&mut folder.open()).await, values(0..60));
        let positions = folder.positions().load().await.unwrap();
        assert!(positions.values().all(|position| position.whole.is_some()), "{positions:?}");
        assert_eq!(all(&mut folder.open()).await, Vec::<String>::new());
        // A version that is another and holds the same brings nothing either.
        let name = kind.name("b");
        folder.write(&name, std::fs::read(folder.path(&name)).unwrap());
        assert_eq!(all_committed(&mut folder.open()).await, Vec::<String>::new());
    }
}

/// As it is between a kill and the next start: whatever was committed by then, nothing is left out.
#[tokio::test]
async fn a_kill_between_reading_and_committing_loses_nothing() {
    for kind in KINDS {
        let folder = three(kind);
        let mut seen = Vec::new();
        for life in 1.. {
            let mut source = folder.open();
            let mut last: Option<Vec<Mark>> = None;
            for _ in 0..life {
                if source.has_ended() {
                    break;
                }
                // The marks of the poll before are durable, those of this one are lost with the process.
                if let Some(marks) = last.take() {
                    source.commit(marks).await.unwrap();
                }
                let polled = next(&mut source).await.unwrap();
                seen.extend(events(&polled).iter().map(text));
                last = Some(polled.marks);
            }
            if source.has_ended() {
                break;
            }
        }
        seen.sort_by_key(|value| value.len().to_string() + value);
        seen.dedup();
        assert_eq!(seen, values(0..60), "{kind:?}");
    }
}

#[tokio::test]
async fn a_commit_that_comes_twice_or_late_moves_nothing_back() {
    let folder = three(Kind::Plain);
    let mut source = folder.open();
    let (_, marks) = some(&mut source, 20).await;
    let (early, late) = (vec![marks[0].clone()], vec![marks[2].clone()]);
    source.commit(vec![marks[1].clone()]).await.unwrap();
    source.commit(late.clone()).await.unwrap();
    source.commit(late).await.unwrap();
    source.commit(early).await.unwrap();
    let none = Mark { topic: "nowhere".into(), partition: 0, assignment: 0, next: 1 };
    source.commit(vec![none]).await.unwrap();
    assert_eq!(all(&mut folder.open()).await, values(20..60));
}

#[tokio::test]
async fn a_file_that_was_replaced_is_an_error_that_says_what_to_do() {
    for kind in KINDS {
        for whole in [true, false] {
            let folder = three(kind);
            let mut source = folder.open();
            let (_, marks) = some(&mut source, if whole { usize::MAX } else { 10 }).await;
            source.commit(marks).await.unwrap();
            drop(source);
            // Longer, so that its length gives nothing away.
            let other = lines(0..40).replace("\"id\":1}", "\"id\":7}").replace("id", "di");
            folder.write(&kind.name("a"), kind.pack(other.as_bytes()));
            let (texts, error) = failing(&mut folder.open()).await;
            assert_eq!(texts, Vec::<String>::new());
            let SourceError::Fatal(said) = error else { panic!("{error:?}") };
            let name = folder.address(&kind.name("a"));
            assert!(said.starts_with(&format!("{name}: what stands before byte ")), "{said}");
            for part in ["replaced", "positions.json", "new name", "restart"] {
                assert!(said.contains(part), "{said}");
            }
        }
    }
}

#[tokio::test]
async fn a_file_that_shrank_is_an_error() {
    for kind in KINDS {
        let folder = Folder::new();
        folder.write(&kind.name("a"), kind.pack(lines(0..400).as_bytes()));
        all_committed(&mut folder.open()).await;
        folder.write(&kind.name("a"), kind.pack(lines(0..10).as_bytes()));
        let (_, error) = failing(&mut folder.open()).await;
        let SourceError::Fatal(said) = error else { panic!("{error:?}") };
        let (now, before) = (lines(0..10).len(), lines(0..400).len());
        let what = format!("it ends at byte {now}, and {before} bytes of it were read");
        assert!(said.contains(&what) && said.contains("restart"), "{said}");
    }
}

#[tokio::test]
async fn a_file_whose_position_is_forgotten_is_read_from_its_beginning() {
    let folder = three(Kind::Plain);
    all_committed(&mut folder.open()).await;
    folder.write("a.jsonl", lines(100..110));
    failing(&mut folder.open()).await;
    // As the error says.
    let positions = folder.path("../positions.json");
    std::fs::remove_file(positions).unwrap();
    assert_eq!(all(&mut folder.open()).await, [values(100..110), values(20..60)].concat());
}

#[tokio::test]
async fn a_compressed_file_that_got_another_member_is_read_on() {
    for kind in PACKED {
        let folder = Folder::new();
        let name = kind.name("a");
        folder.write(&name, kind.pack(lines(0..500).as_bytes()));
        all_committed(&mut folder.open()).await;
        let members = [kind.pack(lines(0..500).as_bytes()), kind.pack(lines(500..600).as_bytes())];
        folder.write(&name, members.concat());
        assert_eq!(all(&mut folder.open()).await, values(500..600), "{kind:?}");
    }
}

#[tokio::test]
async fn positions_that_are_torn_stop_the_source_with_a_word() {
    let folder = three(Kind::Plain);
    all_committed(&mut folder.open()).await;
    let path = folder.path("../positions.json");
    let text = std::fs::read_to_string(&path).unwrap().replacen("\"next\":", "\"next\":1", 1);
    std::fs::write(&path, text).unwrap();
    let (_, error) = failing(&mut folder.open()).await;
    assert!(matches!(error, SourceError::Fatal(_)), "{error:?}");
    assert!(said(&error).contains("torn or were changed"), "{}", said(&error));
}

#[tokio::test]
async fn blocks_are_read_across_their_borders() {
    let values = long_lines(0..7_000);
    let text = values.join("\n");
    for kind in KINDS {
        let folder = Folder::new();
        let file = kind.pack(text.as_bytes());
        assert!(file.len() > 5 << 20, "more than one block");
        folder.write(&kind.name("a"), file);
        let mut source = folder.open();
        let (first, marks) = some(&mut source, 4_000).await;
        source.commit(marks).await.unwrap();
        drop(source);
        let rest = all(&mut folder.open()).await;
        assert_eq!(first.len() + rest.len(), values.len());
        assert!([first, rest].concat() == values, "{kind:?}");
    }
}
