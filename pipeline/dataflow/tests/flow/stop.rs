//! Stopping, and starting again (S7, L4).

use std::time::{Duration, Instant};

use tombstream_model::State;
use tombstream_testing::memory::Mood;

use crate::support::{Rig, event, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_in_mid_stream_drains_what_was_read() {
    let rig = Rig::new(2, 1);
    rig.flag(0..2_000);
    rig.sinks[0].set_delay(Duration::from_millis(2));
    for chunk in 0..200 {
        rig.sources[0].candidates((chunk * 10..chunk * 10 + 10).map(|at| event(at, at as u64)));
    }
    let running = rig.start();
    until("something is finalized", || rig.ledger.count(State::Finalized) > 0).await;
    let stopped = running.stop(Duration::from_secs(30)).await.unwrap();
    assert!(stopped.drained);
    // What is committed is done, and what is done is committed, but for polls that were cut.
    let committed = rig.sources[0].committed() * 10;
    let finalized = rig.ledger.count(State::Finalized);
    assert!(finalized >= committed, "{finalized} finalized, {committed} committed");
    assert_eq!(rig.ledger.count(State::Claimed), 0, "nothing is left half done");

    // The next process reads the rest.
    let running = rig.start();
    rig.committed().await;
    assert_eq!(rig.ledger.count(State::Finalized), 2_000);
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_that_cannot_drain_commits_nothing_undone_and_ends_in_time() {
    let mut rig = Rig::new(1, 1);
    rig.store.stage.timeout = Duration::from_secs(600);
    rig.store.stage.deadline = Duration::from_secs(600);
    rig.flag(0..100);
    rig.sources[0].candidates((0..10).map(|at| event(at, at as u64)));
    let running = rig.start();
    rig.committed().await;
    let asked = rig.sinks[0].requests().len();
    rig.sinks[0].set_mood(Mood::Hanging);
    for at in 10..100 {
        rig.sources[0].candidates([event(at, at as u64)]);
    }
    until("the store is asked", || rig.sinks[0].requests().len() > asked).await;
    let start = Instant::now();
    let stopped = running.stop(Duration::from_millis(200)).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(!stopped.drained);
    assert!(stopped.epochs_open > 0);
    assert_eq!(rig.sources[0].committed(), 1);
    assert_eq!(rig.ledger.count(State::Finalized), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_while_the_intake_waits_for_permits_ends_in_time() {
    let mut rig = Rig::new(1, 1);
    rig.config.in_flight_max = 5;
    rig.ledger.hang();
    rig.sources[0].candidates((0..100).map(|at| event(at, at as u64)));
    let running = rig.start();
    until("the permits are used up", || running.health().in_flight == 5).await;
    let stopped = running.stop(Duration::from_millis(50)).await.unwrap();
    assert!(!stopped.drained);
    assert_eq!(rig.sources[0].committed(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_pipeline_stops_at_once() {
    let rig = Rig::new(1, 1);
    let running = rig.start();
    let start = Instant::now();
    assert!(running.stop(Duration::from_secs(20)).await.unwrap().drained);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_pipeline_commits_nothing_undone() {
    let rig = Rig::new(1, 1);
    rig.flag(0..10);
    rig.ledger.hang();
    rig.sources[0].candidates((0..10).map(|at| event(at, at as u64)));
    let running = rig.start();
    until("the ledger is asked", || rig.ledger.calls("claim") > 0).await;
    drop(running);
    rig.ledger.come_back();
    // The next process does it all.
    let running = rig.start();
    rig.committed().await;
    assert_eq!(rig.ledger.count(State::Finalized) + rig.ledger.count(State::Claimed), 10);
    running.stop(Duration::from_secs(10)).await.unwrap();
}
