//! Sources that misbehave, and what they read.

use std::sync::Arc;
use std::time::Duration;

use tombstream_dataflow::{ErasedSource, Pipeline, RunError, Unfinished};
use tombstream_model::{Event, Mark, Origin, Polled, Records, Source, SourceError, State};

use crate::support::{RELATION, Rig, event, key, until};

fn unavailable() -> SourceError {
    SourceError::Unavailable("the broker is away".into())
}

/// An update of a row's flag, as Debezium writes it without the schema.
fn envelope(number: usize, lsn: u64, flag: &str) -> String {
    format!(
        r#"{{"before":null,"after":{{"id":{number},"name":"a","deleted_at":{flag}}},
        "source":{{"version":"3.6.3.Final","connector":"postgresql","name":"app","ts_ms":1,
        "snapshot":"false","db":"app","schema":"public","table":"documents","txId":7,"lsn":{lsn},
        "xmin":null}},"transaction":null,"op":"u","ts_ms":2}}"#
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envelopes_become_deletions() {
    let rig = Rig::new(2, 1);
    rig.flag(0..100);
    let flag = r#""2026-01-02T03:04:05.000000Z""#;
    rig.sources[0].values((0..100).map(|at| envelope(at, at as u64, flag)));
    // Living rows, and rows of another table, are not even asked for.
    rig.sources[0].values((100..200).map(|at| envelope(at, at as u64, "null")));
    let other = |at| envelope(at, at as u64, flag).replace("\"documents\"", "\"invoices\"");
    rig.sources[0].values((200..300).map(other));
    let running = rig.start();
    rig.committed().await;
    assert_eq!(rig.ledger.count(State::Finalized), 100);
    assert_eq!(rig.ledger.buried(), []);
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_decoded_is_buried_before_it_is_committed() {
    let rig = Rig::new(1, 1);
    rig.flag(0..1);
    rig.ledger.go_away();
    rig.sources[0].values(["{", "[]", "\u{0}", "{\"op\":\"u\"}"]);
    let running = rig.start();
    until("burying was tried again", || rig.ledger.calls("bury") > 3).await;
    assert_eq!(rig.sources[0].committed(), 0);
    rig.ledger.come_back();
    rig.committed().await;
    assert_eq!(rig.ledger.buried().len(), 4);
    assert!(rig.sources[0].paused().is_empty());
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wholly_wrong_converter_pauses_its_topic_and_no_other() {
    let rig = Rig::new(1, 2);
    rig.flag(0..10);
    for _ in 0..100 {
        rig.sources[0].values((0..50).map(|_| "not an envelope"));
    }
    let running = rig.start();
    until("the topic is paused", || !rig.sources[0].paused().is_empty()).await;
    assert_eq!(rig.sources[0].paused(), ["topic-0"]);
    assert!(running.health().topics_paused.contains_key("topic-0"));
    // What was read before is buried and committed, and the other source goes on.
    rig.sources[1].candidates((0..10).map(|at| event(at, at as u64)));
    until("the other is committed", || rig.is_committed(1)).await;
    until("what was read is durable", || running.health().in_flight == 0).await;
    let stopped = running.stop(Duration::from_secs(10)).await.unwrap();
    assert!(stopped.drained);
    let buried = rig.ledger.buried().len();
    assert!((101..5_000).contains(&buried), "{buried} buried");
    assert_eq!(rig.sources[0].committed() * 50, buried, "what is committed is buried");
    assert_eq!(rig.ledger.count(State::Finalized), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_of_a_file_counts_for_its_topic_and_is_buried_with_its_place() {
    let rig = Rig::new(1, 1);
    let line = |at: i64| Event {
        origin: Origin { topic: "file:///a.jsonl".into(), partition: 0, offset: at * 10 },
        topic: Some("app.public.documents".into()),
        key: None,
        value: Some("not an envelope".into()),
    };
    // Flattened, so that nothing but the topic says whose row it is.
    let flat = r#"{"id":1,"deleted_at":"2026-01-02T03:04:05.000000Z"}"#;
    rig.flag(1..2);
    let row = Event { value: Some(flat.into()), ..line(0) };
    rig.sources[0].push(Records::Events(vec![row]));
    let running = rig.start();
    until("the row goes", || rig.ledger.count(State::Finalized) == 1).await;
    rig.sources[0].push(Records::Events((1..200).map(line).collect()));
    until("the topic is paused", || !rig.sources[0].paused().is_empty()).await;
    assert_eq!(rig.sources[0].paused(), ["app.public.documents"]);
    until("all are buried", || rig.ledger.buried().len() == 199).await;
    assert!(rig.ledger.buried().iter().all(|origin| &*origin.topic == "file:///a.jsonl"));
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_few_bad_messages_do_not_pause_a_topic() {
    // A tenth is the limit (`topic.rs` has it exactly); two workers decode in an order of their own,
    // so this stays well below.
    let rig = Rig::new(1, 1);
    for _ in 0..30 {
        let good = |at: usize| envelope(at, at as u64, "null");
        let value = |at| if at % 20 == 0 { "bad".to_owned() } else { good(at) };
        rig.sources[0].values((0..100).map(value));
    }
    let running = rig.start();
    rig.committed().await;
    assert!(rig.sources[0].paused().is_empty());
    assert_eq!(rig.ledger.buried().len(), 150);
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_source_is_read_again_and_stops_no_other() {
    let rig = Rig::new(1, 2);
    rig.flag(0..20);
    (0..8).for_each(|_| rig.sources[0].fail_next(unavailable()));
    rig.sources[0].candidates((0..10).map(|at| event(at, at as u64)));
    rig.sources[1].candidates((10..20).map(|at| event(at, at as u64)));
    let running = rig.start();
    rig.committed().await;
    assert_eq!(rig.ledger.count(State::Finalized), 20);
    assert!(running.health().is_well(), "{:?}", running.health());
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_needs_a_person_is_shown_and_stops_no_other() {
    let rig = Rig::new(1, 2);
    rig.flag(0..20);
    rig.sources[0].fail_next(SourceError::Fatal("no such group".to_owned()));
    rig.sources[1].candidates((10..20).map(|at| event(at, at as u64)));
    let running = rig.start();
    until("the other is committed", || rig.is_committed(1)).await;
    until("it is shown", || running.health().sources.get(&0).is_some_and(|it| it.halted)).await;
    assert!(running.health().sources[&0].said.contains("no such group"));
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_hangs_blocks_no_other_source() {
    let mut rig = Rig::new(1, 2);
    rig.config.commit_timeout = Duration::from_secs(600);
    rig.flag(0..100);
    rig.sources[0].commits_hang(true);
    rig.sources[0].candidates([event(0, 0)]);
    let running = rig.start();
    until("the first is finalized", || rig.ledger.count(State::Finalized) == 1).await;
    for at in 1..100 {
        rig.sources[1].candidates([event(at, at as u64)]);
    }
    until("the other is committed", || rig.is_committed(1)).await;
    assert_eq!(rig.sources[0].committed(), 0);
    rig.sources[0].commits_hang(false);
    rig.committed().await;
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_commit_is_made_again() {
    let rig = Rig::new(1, 1);
    (0..3).for_each(|_| rig.sources[0].fail_commit(unavailable()));
    rig.sources[0].candidates([event(0, 0)]);
    let running = rig.start();
    rig.committed().await;
    assert!(rig.ledger.row(RELATION, &key(0)).is_none());
    until("all is well", || running.health().is_well()).await;
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncate_is_shown_and_holds_nothing_up() {
    let rig = Rig::new(1, 1);
    let truncate = envelope(1, 1, "null").replace(r#""op":"u""#, r#""op":"t""#);
    let after = truncate.find(r#""after":"#).unwrap();
    let source = truncate.find(r#""source":"#).unwrap();
    let truncate = format!("{}\"after\":null,{}", &truncate[..after], &truncate[source..]);
    rig.sources[0].values([truncate]);
    let running = rig.start();
    rig.committed().await;
    assert_eq!(rig.ledger.buried(), []);
    assert_eq!(running.health().truncated.get("documents"), Some(&1));
    running.stop(Duration::from_secs(10)).await.unwrap();
}

/// A source whose task panics.
struct Panicking;

impl Source for Panicking {
    async fn next(&mut self) -> Result<Polled, SourceError> {
        panic!("the source panics, as it was told to")
    }

    async fn commit(&mut self, _: Vec<Mark>) -> Result<(), SourceError> {
        Ok(())
    }

    fn pause(&mut self, _: &str) -> Result<(), SourceError> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_breaks_ends_the_pipeline_and_says_so() {
    let rig = Rig::new(1, 0);
    let pipeline = Pipeline {
        config: rig.config.clone(),
        relations: Arc::new([]),
        ledger: Arc::clone(&rig.ledger),
        stores: Vec::new(),
        sources: vec![Box::new(Panicking) as Box<dyn ErasedSource>],
    };
    let running = pipeline.start(tokio::runtime::Handle::current()).unwrap();
    let RunError::Broken(said) = running.broken().await;
    assert!(said.contains("source 0"), "{said}");
    assert!(running.health().broken.is_some());
    assert!(matches!(running.finished().await, Err(Unfinished::Broken(_))));
    assert!(running.stop(Duration::from_secs(10)).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_that_are_driven_again_say_nothing_of_their_topic() {
    let rig = Rig::new(1, 1);
    let letter = |at: i64, value: &'static str| Event {
        origin: Origin { topic: "file:///a.jsonl".into(), partition: 0, offset: at },
        topic: Some("app.public.documents".into()),
        key: None,
        value: Some(value.into()),
    };
    let flat = r#"{"id":1,"deleted_at":"2026-01-02T03:04:05.000000Z"}"#;
    rig.flag(1..2);
    // More than would pause the topic, and one that can be decoded now.
    let mut letters: Vec<Event> = (1..300).map(|at| letter(at, "not an envelope")).collect();
    letters.push(letter(300, flat));
    rig.sources[0].push(Records::Redriven(letters));
    let running = rig.start();
    until("the row goes", || rig.ledger.count(State::Finalized) == 1).await;
    until("the others are buried again", || rig.ledger.buried().len() == 299).await;
    until("all are durable", || running.health().in_flight == 0).await;
    assert!(rig.sources[0].paused().is_empty());
    assert!(running.health().topics_paused.is_empty());
    running.stop(Duration::from_secs(10)).await.unwrap();
}
