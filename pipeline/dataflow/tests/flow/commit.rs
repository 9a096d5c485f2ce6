//! What is committed, and when (S7).

use std::time::Duration;

use crate::support::{Rig, event, swept, until};
use tombstream_model::State;
use tombstream_testing::memory::Mood;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_flagged_is_finalized_and_then_committed() {
    let rig = Rig::new(2, 1);
    rig.flag(0..500);
    for chunk in 0..50 {
        rig.sources[0].candidates((chunk * 10..chunk * 10 + 10).map(|at| event(at, at as u64)));
    }
    let running = rig.start();
    rig.committed().await;
    assert_eq!(rig.ledger.count(State::Finalized), 500);
    assert_eq!(rig.ledger.rows(), 0);
    assert!(rig.sinks.iter().all(|sink| sink.is_empty()));
    let stopped = running.stop(Duration::from_secs(10)).await.unwrap();
    assert!(stopped.drained);
    assert_eq!(stopped.epochs_open, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_committed_while_a_store_has_not_answered() {
    let mut rig = Rig::new(2, 1);
    rig.store.stage.timeout = Duration::from_secs(60);
    rig.store.stage.deadline = Duration::from_secs(60);
    rig.store.unavailable_after = Duration::from_secs(60);
    rig.flag(0..1);
    rig.sinks[1].set_mood(Mood::Hanging);
    rig.sources[0].candidates([event(0, 1)]);
    let running = rig.start();
    until("the other store is empty", || rig.sinks[0].is_empty()).await;
    until("the hanging store is asked", || !rig.sinks[1].requests().is_empty()).await;
    // A record behind it, of no consequence, goes all the way; its epoch waits for the first.
    rig.sources[0].candidates([swept(99)]);
    until("the second is claimed", || rig.ledger.calls("claim") >= 2).await;
    assert_eq!(rig.sources[0].committed(), 0);
    assert!(running.health().oldest_epoch.is_some());
    rig.sinks[1].set_mood(Mood::Well);
    rig.committed().await;
    assert_eq!(rig.ledger.count(State::Finalized), 1);
    running.stop(Duration::from_secs(10)).await.unwrap();
}
