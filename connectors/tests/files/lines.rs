//! What lines bring, and where they stood.

use std::num::NonZeroUsize;

use tombstream_model::{Mark, Source as _};

use crate::support::{
    Folder, KINDS, Kind, all, all_committed, events, lines, next, some, thrice, values,
};

fn record(topic: &str, offset: usize) -> String {
    let value = format!("{{\\\"id\\\":{offset}}}");
    format!(r#"{{"topic":"{topic}","partition":3,"offset":{offset},"key":"k","value":"{value}"}}"#)
        + "\n"
}

#[tokio::test]
async fn files_come_in_the_order_of_their_names_each_line_in_its_order() {
    let folder = Folder::new();
    for kind in KINDS {
        folder.write(&kind.name("2"), kind.pack(lines(20..30).as_bytes()));
        folder.write(&kind.name("sub/1"), kind.pack(lines(30..40).as_bytes()));
        folder.write(&kind.name("10"), kind.pack(lines(10..20).as_bytes()));
    }
    folder.write("1.txt", lines(0..5));
    folder.write("1.jsonl.tmp", lines(0..5));
    let expected = [thrice(10..20), thrice(20..30), thrice(30..40)].concat();
    assert_eq!(all(&mut folder.open()).await, expected);
}

#[tokio::test]
async fn the_same_record_in_two_files_has_two_places_and_one_topic() {
    let folder = Folder::new();
    let text = record("app.public.documents", 7);
    folder.write("a.jsonl", &text);
    folder.write("b.jsonl", text.repeat(2));
    let mut source = folder.open();
    let mut found = Vec::new();
    while !source.has_ended() {
        found.extend(events(&next(&mut source).await.unwrap()));
    }
    let places: Vec<_> = found
        .iter()
        .map(|event| (event.origin.topic.to_string(), event.origin.partition, event.origin.offset))
        .collect();
    let (a, b) = (folder.address("a.jsonl"), folder.address("b.jsonl"));
    assert_eq!(places, [(a, 0, 0), (b.clone(), 0, 0), (b, 0, text.len() as i64)]);
    for event in &found {
        assert_eq!(&**event.topic(), "app.public.documents");
        assert_eq!(event.key.as_deref(), Some(&b"k"[..]));
        assert_eq!(event.value.as_deref(), Some(&b"{\"id\":7}"[..]));
    }
}

#[tokio::test]
async fn a_line_that_names_no_topic_has_the_one_of_the_configuration() {
    let mut folder = Folder::new();
    folder.config.topic = "app.public.documents".to_owned();
    let tombstone = r#"{"topic":"t","partition":0,"offset":1,"value":null}"#;
    folder.write("a.jsonl", format!("{{\"op\":\"u\"}}\nwords\n\n \r\n{tombstone}\n[1]"));
    let found = events(&next(&mut folder.open()).await.unwrap());
    let short: Vec<_> = found
        .iter()
        .map(|it| (&**it.topic(), it.key.clone(), it.value.as_deref(), it.origin.offset))
        .collect();
    let here = "app.public.documents";
    assert_eq!(
        short,
        [
            (here, None, Some(&b"{\"op\":\"u\"}"[..]), 0),
            (here, None, Some(&b"words"[..]), 11),
            ("t", None, None, 21),
            (here, None, Some(&b"[1]"[..]), 73),
        ]
    );
}

#[tokio::test]
async fn a_line_that_is_too_long_comes_cut_and_those_beside_it_whole() {
    for kind in KINDS {
        let mut folder = Folder::new();
        folder.config.line_bytes_max = NonZeroUsize::new(1_000).unwrap();
        let long = format!("{{\"id\":\"{}\"}}", "x".repeat(3 << 20));
        let text = format!("{}{long}\n{}", lines(0..10), lines(10..20));
        folder.write(&kind.name("a"), kind.pack(text.as_bytes()));
        let (texts, marks) = some(&mut folder.open(), usize::MAX).await;
        assert_eq!(texts.len(), 21);
        assert_eq!([&texts[..10], &texts[11..]].concat(), values(0..20));
        let (cut, word) = texts[10].split_once('\n').unwrap();
        assert_eq!(cut, &long[..1_000]);
        let size = long.len();
        let expected =
            format!("[cut by tombstream: the line has {size} bytes, and line_bytes_max is 1000]");
        assert_eq!(word, expected);
        assert!(serde_json::from_str::<serde_json::Value>(&texts[10]).is_err());
        // No mark stands in the middle of it.
        let ends = |mark: &Mark| text[..mark.next as usize].ends_with('\n');
        assert!(marks.len() > 1 && marks.iter().all(ends), "{marks:?}");
    }
}

#[tokio::test]
async fn a_poll_has_no_more_events_than_it_may_and_few_where_they_are_large() {
    let mut folder = Folder::new();
    folder.config.items_max = NonZeroUsize::new(7).unwrap();
    folder.write("a.jsonl", lines(0..20));
    let mut source = folder.open();
    let mut sizes = Vec::new();
    while !source.has_ended() {
        sizes.push(events(&next(&mut source).await.unwrap()).len());
    }
    sizes.retain(|size| *size > 0);
    assert_eq!(sizes, [7, 7, 6]);

    let folder = Folder::new();
    let large = format!("{{\"id\":\"{}\"}}\n", "x".repeat(1 << 20));
    folder.write("a.jsonl", large.repeat(20));
    let mut source = folder.open();
    let mut count = 0;
    while !source.has_ended() {
        let events = events(&next(&mut source).await.unwrap()).len();
        assert!(events <= 9, "{events} of a megabyte in one poll");
        count += events;
    }
    assert_eq!(count, 20);
}

#[tokio::test]
async fn one_file_can_be_meant() {
    for kind in KINDS {
        let mut folder = Folder::new();
        folder.write(&kind.name("a"), kind.pack(lines(0..3).as_bytes()));
        folder.write(&kind.name("b"), kind.pack(lines(3..6).as_bytes()));
        folder.config.path = folder.address(&kind.name("b"));
        assert_eq!(all(&mut folder.open()).await, values(3..6));
    }
}

#[tokio::test]
async fn a_source_of_nothing_ends() {
    let folder = Folder::new();
    folder.write("empty.jsonl", "");
    folder.write("blank.jsonl", "\n\n \n");
    folder.write("empty.jsonl.gz", Kind::Gzip.pack(b""));
    assert_eq!(all_committed(&mut folder.open()).await, Vec::<String>::new());
    assert_eq!(all(&mut folder.open()).await, Vec::<String>::new());
}
