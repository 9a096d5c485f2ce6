//! Sources that end, and when a pipeline is finished.

use std::time::Duration;

use tokio::time::timeout;
use tombstream_dataflow::Unfinished;
use tombstream_model::{SourceError, State};
use tombstream_testing::memory::Mood;

use crate::support::{BOUND, Rig, event, until};

/// Long enough for a pipeline that does not wait for what it must to say that it is finished.
const SOON: Duration = Duration::from_millis(100);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_is_finished_when_its_sources_have_ended_and_all_is_committed() {
    let rig = Rig::new(2, 2);
    rig.flag(0..500);
    for chunk in 0..50 {
        let source = &rig.sources[chunk % 2];
        source.candidates((chunk * 10..chunk * 10 + 10).map(|at| event(at, at as u64)));
    }
    rig.sources.iter().for_each(|source| source.ends());
    let running = rig.start();
    timeout(BOUND, running.finished()).await.unwrap().unwrap();
    // At once, with no further wait.
    assert!(rig.is_committed(0) && rig.is_committed(1));
    assert_eq!(rig.ledger.count(State::Finalized), 500);
    assert_eq!((running.health().in_flight, running.health().oldest_epoch), (0, None));
    let stopped = running.stop(Duration::from_secs(10)).await.unwrap();
    assert!(stopped.drained);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_with_nothing_in_them_are_finished_at_once() {
    let rig = Rig::new(1, 2);
    rig.sources.iter().for_each(|source| source.ends());
    let running = rig.start();
    timeout(BOUND, running.finished()).await.unwrap().unwrap();
    assert!(running.stop(Duration::from_secs(10)).await.unwrap().drained);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ended_source_still_commits_and_stops_no_other() {
    let rig = Rig::new(1, 2);
    rig.flag(0..20);
    rig.sinks[0].set_mood(Mood::Hanging);
    rig.sources[0].candidates((0..10).map(|at| event(at, at as u64)));
    rig.sources[0].ends();
    let running = rig.start();
    until("the store is asked", || !rig.sinks[0].requests().is_empty()).await;
    assert_eq!(rig.sources[0].committed(), 0);
    rig.sinks[0].set_mood(Mood::Well);
    rig.sources[1].candidates((10..20).map(|at| event(at, at as u64)));
    rig.committed().await;
    // The other one may bring more at any time.
    assert!(timeout(SOON, running.finished()).await.is_err());
    rig.sources[1].ends();
    timeout(BOUND, running.finished()).await.unwrap().unwrap();
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_finished_before_it_is_committed() {
    let mut rig = Rig::new(1, 1);
    rig.config.commit_timeout = Duration::from_secs(600);
    rig.flag(0..10);
    rig.sources[0].commits_hang(true);
    rig.sources[0].candidates((0..10).map(|at| event(at, at as u64)));
    rig.sources[0].ends();
    let running = rig.start();
    until("all are finalized", || rig.ledger.count(State::Finalized) == 10).await;
    assert!(timeout(SOON, running.finished()).await.is_err());
    rig.sources[0].commits_hang(false);
    timeout(BOUND, running.finished()).await.unwrap().unwrap();
    assert!(rig.is_committed(0));
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_needs_a_person_is_no_end() {
    let rig = Rig::new(1, 2);
    rig.flag(0..10);
    rig.sources[0].fail_next(SourceError::Fatal("the file is torn".to_owned()));
    rig.sources[0].ends();
    rig.sources[1].candidates((0..10).map(|at| event(at, at as u64)));
    rig.sources[1].ends();
    let running = rig.start();
    let unfinished = timeout(BOUND, running.finished()).await.unwrap().unwrap_err();
    assert_eq!(unfinished.to_string(), "not everything could be read: the file is torn");
    assert!(matches!(unfinished, Unfinished::Halted(halted) if halted[0].0 == 0));
    // What could be read is done.
    assert!(rig.is_committed(1));
    assert_eq!(rig.ledger.count(State::Finalized), 10);
    assert!(running.stop(Duration::from_secs(10)).await.unwrap().drained);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_no_end() {
    let rig = Rig::new(1, 1);
    rig.flag(0..10);
    (0..3).for_each(|_| rig.sources[0].fail_next(SourceError::Unavailable("away".into())));
    rig.sources[0].candidates((0..10).map(|at| event(at, at as u64)));
    rig.sources[0].ends();
    let running = rig.start();
    timeout(BOUND, running.finished()).await.unwrap().unwrap();
    assert_eq!(rig.ledger.count(State::Finalized), 10);
    running.stop(Duration::from_secs(10)).await.unwrap();
}
