//! What is committed, and when (S7).

use std::time::Duration;

use crate::support::{RELATION, Rig, event, key, swept, until};
use tombstream_model::State;
use tombstream_testing::memory::{Mood, Row};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_epochs_marks_are_committed_once_and_in_order() {
    let rig = Rig::new(1, 2);
    rig.flag(0..400);
    for chunk in 0..40 {
        let source = &rig.sources[chunk % 2];
        source.candidates((chunk * 10..chunk * 10 + 10).map(|at| event(at, at as u64)));
    }
    let running = rig.start();
    rig.committed().await;
    running.stop(Duration::from_secs(10)).await.unwrap();
    for source in &rig.sources {
        let marks: Vec<i64> = source.commits().into_iter().flatten().map(|it| it.next).collect();
        assert!(marks.is_sorted_by(|one, next| one < next), "{marks:?}");
        assert_eq!(source.committed(), 20);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fewer_permits_than_one_polls_records_are_enough() {
    let mut rig = Rig::new(2, 1);
    rig.config.in_flight_max = 7;
    rig.config.epoch_items_max = 4_000;
    // Neither a tick nor a linger helps: an epoch must be closed when its permits are used up, and a
    // batch must go when nothing is in flight.
    rig.config.epoch_wait = Duration::from_secs(600);
    for stage in [&mut rig.config.claim, &mut rig.config.finalize, &mut rig.store.stage] {
        stage.linger = Duration::from_secs(600);
    }
    rig.flag(0..400);
    rig.sources[0].candidates((0..400).map(|at| event(at, at as u64)));
    let running = rig.start();
    until("all are finalized", || rig.ledger.count(State::Finalized) == 400).await;
    // The last epoch is open until its time is over, or the pipeline stops.
    running.stop(Duration::from_secs(10)).await.unwrap();
    assert!(rig.is_committed(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_flight_is_bounded_by_the_permits() {
    let mut rig = Rig::new(1, 1);
    rig.config.in_flight_max = 20;
    rig.ledger.hang();
    for at in 0..100 {
        rig.sources[0].candidates([event(at, at as u64)]);
    }
    let running = rig.start();
    until("the permits are used up", || running.health().in_flight == 20).await;
    until("the ledger is asked", || rig.ledger.calls("claim") > 0).await;
    assert_eq!(running.health().in_flight, 20);
    rig.ledger.come_back();
    rig.committed().await;
    until("the permits are back", || running.health().in_flight == 0).await;
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_are_not_claimed_never_hold_an_epoch() {
    let rig = Rig::new(1, 1);
    // Alive, locked, held, never there; each with a copy that must stay.
    rig.flag(0..40);
    rig.ledger.put(RELATION, key(0), Row::default());
    rig.ledger.put(RELATION, key(1), Row { locked: true, ..Row::flagged() });
    rig.ledger.put(RELATION, key(2), Row { held: true, ..Row::flagged() });
    rig.ledger.remove(RELATION, &key(3));
    rig.sources[0].candidates((0..4).map(|at| event(at, at as u64)));
    let running = rig.start();
    rig.committed().await;
    assert_eq!(running.health().oldest_epoch, None);
    running.stop(Duration::from_secs(10)).await.unwrap();
    assert_eq!(rig.ledger.count(State::Claimed), 0);
    assert_eq!(rig.sinks[0].len(), 40);
    assert!(rig.sinks[0].requests().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marks_without_records_are_committed_too() {
    let rig = Rig::new(1, 1);
    rig.sources[0].candidates([]);
    let running = rig.start();
    rig.committed().await;
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_is_said_of_a_key_is_deduplicated_together() {
    // Whichever worker decoded it: a key is exchanged to one.
    let rig = Rig::new(1, 1);
    rig.sources[0].candidates([event(0, 1_000)]);
    let running = rig.start();
    rig.committed().await;
    for lsn in 0..100 {
        rig.sources[0].candidates([event(0, lsn)]);
    }
    rig.committed().await;
    assert_eq!(rig.ledger.candidates(), 1);
    rig.sources[0].candidates([event(0, 1_001), swept(0)]);
    rig.committed().await;
    running.stop(Duration::from_secs(10)).await.unwrap();
    assert!((2..=3).contains(&rig.ledger.candidates()), "the newer one and the sweep's pass");
}
