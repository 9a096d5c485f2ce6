//! The recorded files of Debezium, read through the source.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tombstream_model::decode::{DecodeError, Decoded, Decoder};
use tombstream_model::{
    Event, Flag, FlagKind, Generation, KeyColumn, KeyKind, OnHardDelete, Origin, Relation,
    Source as _,
};

use crate::support::{Folder, KINDS, events, next};

#[derive(Deserialize)]
struct Line {
    topic: String,
    key: Option<String>,
    value: Option<String>,
}

fn recorded() -> Vec<PathBuf> {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../pipeline/model/tests/fixtures/debezium");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|it| it == "jsonl")).collect();
    files.sort();
    files
}

/// `documents`, whose flattened rows are known by their topic alone.
fn decoder() -> Decoder {
    Decoder::new(&[Relation {
        name: "documents".into(),
        schema: "public".to_owned(),
        table: "documents".to_owned(),
        key: vec![KeyColumn { name: "id".to_owned(), kind: KeyKind::Uuid }],
        flag: Flag { column: "deleted_at".to_owned(), kind: FlagKind::TimestampTz },
        targets: Vec::new(),
        grace: Duration::ZERO,
        hide: None,
        breaker: None,
        on_hard_delete: OnHardDelete::Ignore,
        key_reuse_forbidden: false,
        topics: vec!["flat.public.documents".to_owned()],
        allow_cascade: Vec::new(),
    }])
}

/// What the lines of a file mean, read as the model's own tests read them.
fn straight(decoder: &Decoder, text: &str) -> Vec<Result<Decoded, DecodeError>> {
    let decode = |line: &str| {
        let line: Line = serde_json::from_str(line).unwrap();
        let origin = Origin { topic: Arc::from(line.topic), partition: 0, offset: 0 };
        let (key, value) = (line.key.map(Into::into), line.value.map(Into::into));
        decoder.decode(&Event { origin, topic: None, key, value }, Generation(0))
    };
    text.lines().map(decode).collect()
}

#[tokio::test]
async fn every_recorded_file_means_the_same_through_the_source() {
    let (decoder, files) = (decoder(), recorded());
    let mut changes = 0;
    for path in &files {
        let text = std::fs::read_to_string(path).unwrap();
        let expected = straight(&decoder, &text);
        for kind in KINDS {
            let folder = Folder::new();
            folder.write(&kind.name("recorded"), kind.pack(text.as_bytes()));
            let mut source = folder.open();
            let mut found = Vec::new();
            while !source.has_ended() {
                found.extend(events(&next(&mut source).await.unwrap()));
            }
            let meant = found.iter().map(|event| decoder.decode(event, Generation(0)));
            assert_eq!(meant.collect::<Vec<_>>(), expected, "{} {kind:?}", path.display());
            // Each event stands where its line begins.
            let starts = text.match_indices('\n').map(|(at, _)| at + 1);
            let starts: Vec<_> =
                std::iter::once(0).chain(starts).take(found.len()).map(|at| at as i64).collect();
            let places: Vec<_> = found.iter().map(|event| event.origin.offset).collect();
            assert_eq!(places, starts, "{}", path.display());
        }
        let is_change = |it: &&Result<Decoded, _>| matches!(it, Ok(Decoded::Change(_)));
        changes += expected.iter().filter(is_change).count();
    }
    assert_eq!(files.len(), 17);
    assert!(changes > 250, "{changes} changes");
}
