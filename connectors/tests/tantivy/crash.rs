//! A process that is killed while it deletes.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

#[allow(dead_code, reason = "the other target needs all of it")]
mod fixture;

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use tombstream_connectors::tantivy::{TantivyConfig, TantivySink};
use tombstream_model::{Address, Sink as _, Verdict};

use fixture::{Fixture, NONE, document, target, writer};

const DOCUMENTS: usize = 60;
const TEST: &str = "a_process_killed_at_any_moment_leaves_each_document_whole_or_gone";
const PATH: &str = "TOMBSTREAM_TEST_CRASH_PATH";

fn marker(number: usize) -> String {
    format!("marker{number:04}marker")
}

/// What the killed process does: every other document, one by one, a line for each that is gone.
#[tokio::main(flavor = "current_thread")]
async fn delete(path: &str) {
    let mut config = TantivyConfig::new(path);
    config.purge_wait = Duration::ZERO;
    let sink = TantivySink::new(config).unwrap();
    for number in (0..DOCUMENTS).step_by(2) {
        let id = number.to_string();
        let address = Address::Document { index: path.into(), id, routing: None };
        let outcome = &sink.destroy(&[target(address)]).await.unwrap()[0];
        assert!(outcome.verdict.is_confirmed(), "{outcome:?}");
        println!("gone {number}");
    }
}

#[test]
fn a_process_killed_at_any_moment_leaves_each_document_whole_or_gone() {
    if let Ok(path) = std::env::var(PATH) {
        return delete(&path);
    }
    let fixture = Fixture::new(false);
    // Several documents a segment, so that each rewrite has neighbours to keep.
    for chunk in (0..DOCUMENTS).collect::<Vec<_>>().chunks(6) {
        let mut writer = writer(&fixture.index());
        for number in chunk {
            writer.add_document(document(&number.to_string(), "", &marker(*number))).unwrap();
        }
        writer.commit().unwrap();
        writer.wait_merging_threads().unwrap();
    }
    let whole = fixture.documents();
    assert_eq!(whole.len(), DOCUMENTS);
    let mut kills = 0;
    // Each process begins anew, and gets somewhat farther than the one before.
    for beyond in (0..).step_by(3) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture"])
            .env(PATH, fixture.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let gone = |line: String| line.split_once("gone ")?.1.parse::<usize>().ok();
        let early = lines.by_ref().map_while(Result::ok).filter_map(gone).take(beyond + 1);
        let mut answered: Vec<usize> = early.collect();
        if answered.len() > beyond {
            // Somewhere in the next document's way.
            std::thread::sleep(Duration::from_micros(rand::random_range(0..40_000)));
        }
        let over = child.try_wait().unwrap().is_some();
        child.kill().unwrap();
        child.wait().unwrap();
        answered.extend(lines.map_while(Result::ok).filter_map(gone));
        let left = fixture.documents();
        for (id, text) in &whole {
            let number: usize = id.parse().unwrap();
            match left.get(id) {
                Some(there) => assert_eq!(there, text, "not as it was"),
                None => assert_eq!(number % 2, 0, "document {id} went, and nobody asked for it"),
            }
            if answered.contains(&number) {
                assert!(!left.contains_key(id), "document {id} was confirmed, and is there");
                assert_eq!(fixture.files_with(&marker(number)), NONE);
            }
        }
        if over {
            break;
        }
        kills += 1;
    }
    assert!(kills > 2, "the process was killed {kills} times only");
    assert_eq!(fixture.documents().len(), DOCUMENTS / 2);
    let gone = (0..DOCUMENTS).step_by(2).map(marker);
    gone.for_each(|marker| assert_eq!(fixture.files_with(&marker), NONE));
    let sink = &fixture.sink;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let again = runtime.block_on(sink.destroy(&[fixture.id("0")])).unwrap();
    assert_eq!(again[0].verdict, Verdict::Absent);
}
