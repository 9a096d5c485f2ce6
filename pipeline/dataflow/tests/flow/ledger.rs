//! A ledger that is away, refuses or breaks: nothing goes on, nothing is lost (S1, S7).

use std::time::Duration;

use tombstream_model::State;
use tombstream_testing::memory::Mood;

use crate::support::{RELATION, Rig, event, key, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_stops_progress_and_loses_nothing() {
    let rig = Rig::new(2, 1);
    rig.flag(0..100);
    rig.ledger.go_away();
    rig.sources[0].candidates((0..100).map(|at| event(at, at as u64)));
    let running = rig.start();
    until("claims were tried again", || rig.ledger.calls("claim") > 10).await;
    assert_eq!(rig.sources[0].committed(), 0);
    assert!(!running.health().ledger["claim"].refused);
    assert!(rig.sinks[0].requests().is_empty(), "nothing is destroyed before its claim");
    rig.ledger.come_back();
    rig.committed().await;
    assert_eq!(rig.ledger.count(State::Finalized), 100);
    assert!(running.health().is_well());
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_between_claim_and_finalize_loses_nothing() {
    let mut rig = Rig::new(1, 1);
    rig.store.stage.timeout = Duration::from_secs(30);
    rig.store.unavailable_after = Duration::from_secs(60);
    rig.flag(0..10);
    rig.sinks[0].set_mood(Mood::Hanging);
    rig.sources[0].candidates((0..10).map(|at| event(at, at as u64)));
    let running = rig.start();
    until("the store is asked", || !rig.sinks[0].requests().is_empty()).await;
    rig.ledger.go_away();
    rig.sinks[0].set_mood(Mood::Well);
    until("removals were tried again", || rig.ledger.calls("finalize") > 5).await;
    assert_eq!(rig.sources[0].committed(), 0);
    assert_eq!(rig.ledger.rows(), 10);
    rig.ledger.come_back();
    rig.committed().await;
    assert_eq!(rig.ledger.count(State::Finalized), 10);
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_shown_and_tried_again() {
    let rig = Rig::new(1, 1);
    rig.flag(0..10);
    rig.ledger.refuse();
    rig.sources[0].candidates((0..10).map(|at| event(at, at as u64)));
    let running = rig.start();
    until("it is shown", || running.health().ledger.get("claim").is_some_and(|it| it.refused))
        .await;
    rig.ledger.come_back();
    rig.committed().await;
    assert_eq!(rig.ledger.count(State::Finalized), 10);
    assert!(running.health().is_well());
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_hangs_is_given_up_and_made_again() {
    let mut rig = Rig::new(1, 1);
    rig.config.claim.timeout = Duration::from_millis(20);
    rig.flag(0..10);
    rig.ledger.hang();
    rig.sources[0].candidates((0..10).map(|at| event(at, at as u64)));
    let running = rig.start();
    until("it is made again", || rig.ledger.calls("claim") > 4).await;
    rig.ledger.come_back();
    rig.committed().await;
    assert_eq!(rig.ledger.count(State::Finalized), 10);
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_panic_are_made_again() {
    let mut rig = Rig::new(2, 1);
    rig.store.stage.deadline = Duration::from_millis(50);
    rig.flag(0..20);
    rig.sinks[1].set_mood(Mood::Unavailable);
    for call in ["claim", "resume", "owe", "finalize", "bury"] {
        rig.ledger.panic_at(call, 2);
    }
    rig.sources[0].candidates((0..20).map(|at| event(at, at as u64)));
    rig.sources[0].values(["not an envelope"]);
    let running = rig.start();
    rig.committed().await;
    assert_eq!(rig.ledger.owed().len(), 20);
    assert_eq!(rig.ledger.buried().len(), 1);
    rig.sinks[1].set_mood(Mood::Well);
    rig.sources[0].open_deletions(rig.ledger.owed());
    rig.committed().await;
    until("all are finalized", || rig.ledger.count(State::Finalized) == 20).await;
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_destroyed_that_the_ledger_did_not_claim() {
    let rig = Rig::new(2, 1);
    rig.flag(0..100);
    for number in (0..100).step_by(2) {
        rig.ledger.put(RELATION, key(number), Default::default());
    }
    for _ in 0..3 {
        rig.sources[0].candidates((0..200).map(|at| event(at, at as u64)));
    }
    let running = rig.start();
    rig.committed().await;
    running.stop(Duration::from_secs(10)).await.unwrap();
    let claimed = rig.ledger.claimed_addresses();
    for sink in &rig.sinks {
        assert_eq!(sink.len(), 50);
        for target in sink.requests().iter().flatten() {
            assert!(claimed.contains(&target.address), "{:?}", target.address);
        }
    }
    assert_eq!(rig.ledger.rows(), 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_came_back_is_not_removed() {
    let mut rig = Rig::new(1, 1);
    rig.store.stage.timeout = Duration::from_secs(30);
    rig.store.unavailable_after = Duration::from_secs(60);
    rig.flag(0..2);
    rig.sinks[0].set_mood(Mood::Hanging);
    rig.sources[0].candidates((0..2).map(|at| event(at, at as u64)));
    let running = rig.start();
    until("the store is asked", || {
        rig.sinks[0].requests().iter().map(Vec::len).sum::<usize>() == 2
    })
    .await;
    rig.ledger.put(RELATION, key(0), Default::default());
    rig.sinks[0].set_mood(Mood::Well);
    rig.committed().await;
    assert_eq!(rig.ledger.deletion(RELATION, &key(0)).unwrap().1, State::LateRestore);
    assert_eq!(rig.ledger.rows(), 1);
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_owed_is_written_down_before_it_is_committed() {
    let mut rig = Rig::new(1, 1);
    rig.store.stage.timeout = Duration::from_secs(30);
    rig.flag(0..10);
    rig.sinks[0].set_mood(Mood::Hanging);
    rig.sources[0].candidates((0..10).map(|at| event(at, at as u64)));
    let running = rig.start();
    until("the store is asked for all", || {
        rig.sinks[0].requests().iter().map(Vec::len).sum::<usize>() == 10
    })
    .await;
    rig.ledger.go_away();
    rig.sinks[0].set_mood(Mood::Denied);
    until("owing was tried again", || rig.ledger.calls("owe") > 5).await;
    assert_eq!(rig.sources[0].committed(), 0);
    rig.ledger.come_back();
    rig.committed().await;
    assert_eq!(rig.ledger.owed().len(), 10);
    running.stop(Duration::from_secs(10)).await.unwrap();
}
