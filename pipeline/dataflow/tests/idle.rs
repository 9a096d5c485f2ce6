//! An idle pipeline parks. A target of its own, since it measures the whole process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tombstream_dataflow::{Config, ErasedSink, ErasedSource, Pipeline, Store, StoreConfig};
use tombstream_model::{Candidate, Cause, Found, Key, RelationId, State, StoreId};
use tombstream_testing::memory::{MemoryLedger, MemorySink, Mood, Row, SourceControl};

/// Ticks of 10 ms that this process has used.
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("linux");
    let after = stat.rsplit(')').next().unwrap_or_default();
    let fields = after.split_whitespace().skip(11).take(2);
    fields.map(|field| field.parse::<u64>().expect("user and system time")).sum()
}

/// The ticks that a second of nothing takes.
async fn a_second() -> u64 {
    let before = ticks();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    ticks() - before
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_pipeline_parks() {
    let key = Key::from_postgres(["1".to_owned()]);
    let ledger = Arc::new(MemoryLedger::new(Duration::from_secs(60), |_, _| {
        let key = "key".to_owned();
        vec![(StoreId(0), tombstream_model::Address::Object { bucket: "b".into(), key })]
    }));
    ledger.put(RelationId(0), key.clone(), Row::flagged());
    let (sink, source) = (MemorySink::shared(10), SourceControl::new("topic"));
    let store = Store {
        id: StoreId(0),
        name: "s".into(),
        sink: Arc::clone(&sink) as Arc<dyn ErasedSink>,
        config: StoreConfig::default(),
    };
    let pipeline = Pipeline {
        config: Config::default(),
        relations: Arc::new([]),
        ledger: Arc::clone(&ledger),
        stores: vec![store],
        sources: vec![Box::new(source.open()) as Box<dyn ErasedSource>],
    };
    let running = pipeline.start(tokio::runtime::Handle::current()).unwrap();

    let idle = a_second().await;
    assert!(idle <= 10, "{idle} ticks in a second with nothing read");

    // With a request in flight that is not answered, and another one waiting behind it.
    sink.set_mood(Mood::Hanging);
    let candidate = Candidate {
        relation: RelationId(0),
        key,
        position: None,
        cause: Cause::Sweep,
        found: Found::Flagged,
        removed: None,
    };
    source.candidates([candidate]);
    while sink.requests().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let waiting = a_second().await;
    assert!(waiting <= 10, "{waiting} ticks in a second with a request in flight");

    sink.set_mood(Mood::Well);
    while source.committed() < source.polls() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(ledger.count(State::Finalized), 1);
    let idle = a_second().await;
    assert!(idle <= 10, "{idle} ticks in a second with everything done");
    running.stop(Duration::from_secs(10)).await.unwrap();
}
