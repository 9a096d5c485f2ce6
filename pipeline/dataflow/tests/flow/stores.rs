//! Stores that misbehave (S1, S6, L2, L3).

use std::time::Duration;

use tombstream_dataflow::Verify;
use tombstream_model::{State, Verdict};
use tombstream_testing::memory::Mood;

use crate::support::{RELATION, Rig, address, event, key, swept, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_hangs_is_marked_down_and_the_rest_goes_on() {
    let rig = Rig::new(2, 1);
    rig.flag(0..100);
    rig.sinks[1].set_mood(Mood::Hanging);
    for at in 0..50 {
        rig.sources[0].candidates([event(at, at as u64)]);
    }
    let running = rig.start();
    until("the store is marked down", || {
        running.health().stores.get("store-1").is_some_and(|store| store.down)
    })
    .await;
    rig.committed().await;
    assert_eq!(rig.ledger.owed().len(), 50, "what the store did not confirm is owed");
    assert_eq!(rig.ledger.count(State::Finalized), 0);
    assert_eq!(rig.sinks[0].len(), 50, "the other store's copies are gone");

    // Down as it is, what comes now is owed at once.
    let asked = rig.sinks[1].requests().len();
    for at in 50..100 {
        rig.sources[0].candidates([event(at, at as u64)]);
    }
    rig.committed().await;
    assert_eq!(rig.ledger.owed().len(), 100);
    assert!(rig.sinks[0].is_empty());
    let probes = rig.sinks[1].requests().len() - asked;
    assert!(probes < 25, "a store that is down is probed, not asked: {probes} requests");

    // It comes back; the sweep brings what is owed, and a probe lets it through.
    rig.sinks[1].set_mood(Mood::Well);
    while rig.ledger.count(State::Finalized) < 100 {
        rig.sources[0].open_deletions(rig.ledger.owed());
        rig.committed().await;
    }
    assert!(running.health().is_well(), "{:?}", running.health());
    assert!(rig.sinks[1].is_empty());
    // What the first store confirmed was not asked of it again.
    let asked: usize = rig.sinks[0].requests().iter().map(Vec::len).sum();
    assert_eq!(asked, 100);
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panicking_sink_leaves_no_epoch_open() {
    let rig = Rig::new(2, 1);
    rig.flag(0..20);
    rig.sinks[0].set_mood(Mood::Panicking);
    rig.sources[0].candidates((0..20).map(|at| event(at, at as u64)));
    let running = rig.start();
    rig.committed().await;
    assert_eq!(rig.ledger.owed().len(), 20);
    assert!(rig.sinks[1].is_empty());
    rig.sinks[0].set_mood(Mood::Well);
    rig.sources[0].open_deletions(rig.ledger.owed());
    rig.committed().await;
    assert_eq!(rig.ledger.count(State::Finalized), 20);
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_too_short_proves_nothing() {
    let mut rig = Rig::new(1, 1);
    rig.store.stage.deadline = Duration::from_millis(100);
    rig.flag(0..5);
    rig.sinks[0].set_mood(Mood::Short);
    rig.sources[0].candidates((0..5).map(|at| event(at, at as u64)));
    let running = rig.start();
    rig.committed().await;
    running.stop(Duration::from_secs(10)).await.unwrap();
    assert_eq!(rig.ledger.count(State::Finalized), 0);
    assert_eq!(rig.ledger.owed().len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_is_asked_again() {
    let rig = Rig::new(1, 1);
    rig.flag(0..5);
    rig.sinks[0].set_mood(Mood::AnswerLost);
    rig.sources[0].candidates((0..5).map(|at| event(at, at as u64)));
    let running = rig.start();
    until("the work is done", || rig.sinks[0].is_empty()).await;
    assert_eq!(rig.ledger.count(State::Finalized), 0);
    rig.sinks[0].set_mood(Mood::Well);
    rig.committed().await;
    assert_eq!(rig.ledger.count(State::Finalized), 5);
    // Absent, but by the attempt whose answer was lost: that must not count as a wrong template's (S6).
    for receipt in rig.ledger.receipts() {
        let outcome = &receipt.outcomes[0];
        assert_eq!((outcome.verdict, outcome.is_repeated), (Verdict::Absent, true));
    }
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_denies_is_shown_and_its_part_is_owed_at_once() {
    let mut rig = Rig::new(1, 1);
    rig.store.stage.deadline = Duration::from_secs(600);
    rig.store.unavailable_after = Duration::from_secs(600);
    rig.flag(0..5);
    rig.sinks[0].set_mood(Mood::Denied);
    rig.sources[0].candidates((0..5).map(|at| event(at, at as u64)));
    let running = rig.start();
    rig.committed().await;
    assert!(running.health().stores["store-0"].halted);
    assert_eq!(rig.ledger.owed().len(), 5);
    let (id, _) = rig.ledger.deletion(RELATION, &key(0)).unwrap();
    assert!(rig.ledger.outcomes(id)[0].as_ref().unwrap().said.contains("denied"));
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_busy_is_asked_again() {
    let rig = Rig::new(1, 1);
    rig.flag(0..10);
    rig.sinks[0].busy(address(0, &key(3)), 2);
    rig.sources[0].candidates((0..10).map(|at| event(at, at as u64)));
    let running = rig.start();
    rig.committed().await;
    assert_eq!(rig.ledger.count(State::Finalized), 10);
    let asked = |number| {
        let at = address(0, &key(number));
        rig.sinks[0].requests().iter().flatten().filter(|it| it.address == at).count()
    };
    assert_eq!(asked(3), 3);
    assert!((0..10).filter(|number| *number != 3).all(|number| asked(number) == 1));
    running.stop(Duration::from_secs(10)).await.unwrap();
}

/// As of an index that is blocked until somebody acts (F36).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_rests_for_long_is_owed_at_once_and_the_others_are_asked_again() {
    let mut rig = Rig::new(1, 1);
    rig.config.workers = 1; // So that they travel together.
    rig.flag(0..10);
    rig.sinks[0].rest(address(0, &key(3)), Duration::from_secs(3_600));
    for number in (0..10).filter(|number| *number != 3) {
        rig.sinks[0].busy(address(0, &key(number)), 2);
    }
    rig.sources[0].candidates((0..10).map(|at| event(at, at as u64)));
    let running = rig.start();
    rig.committed().await;
    assert_eq!(rig.ledger.count(State::Finalized), 9);
    assert_eq!(rig.ledger.deletion(RELATION, &key(3)).unwrap().1, State::Claimed);
    let asked = |number| {
        let at = address(0, &key(number));
        rig.sinks[0].requests().iter().flatten().filter(|it| it.address == at).count()
    };
    assert_eq!(asked(3), 1);
    assert!((0..10).filter(|number| *number != 3).all(|number| asked(number) == 3));
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_a_person_must_see_delays_only_itself() {
    let rig = Rig::new(1, 1);
    rig.flag(0..10);
    rig.sinks[0].refuse(address(0, &key(3)));
    rig.sources[0].candidates((0..10).map(|at| event(at, at as u64)));
    let running = rig.start();
    rig.committed().await;
    assert_eq!(rig.ledger.count(State::Finalized), 9);
    assert_eq!(rig.ledger.deletion(RELATION, &key(3)).unwrap().1, State::Parked);
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_found_afterwards_is_not_confirmed() {
    let mut rig = Rig::new(1, 1);
    rig.store.stage.deadline = Duration::from_millis(100);
    rig.flag(0..10);
    rig.sinks[0].stick(address(0, &key(3)));
    rig.sources[0].candidates((0..10).map(|at| event(at, at as u64)));
    let running = rig.start();
    rig.committed().await;
    assert_eq!(rig.ledger.count(State::Finalized), 9);
    let (id, state) = rig.ledger.deletion(RELATION, &key(3)).unwrap();
    assert_eq!(state, State::Claimed);
    assert_eq!(rig.ledger.outcomes(id)[0].as_ref().unwrap().verdict, Verdict::Unknown);
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sample_that_contradicts_has_all_of_its_answer_looked_up() {
    let mut rig = Rig::new(1, 1);
    rig.store.stage.deadline = Duration::from_millis(100);
    rig.store.verify = Verify::Sample { one_in: 10 };
    rig.flag(0..40);
    // All of them stay; at least one of each answer is in the sample, and gives all of it away.
    (0..40).for_each(|number| rig.sinks[0].stick(address(0, &key(number))));
    rig.sources[0].candidates((0..40).map(|at| event(at, at as u64)));
    let running = rig.start();
    rig.committed().await;
    assert_eq!(rig.ledger.count(State::Finalized), 0);
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_looked_by_itself_is_not_asked_twice_and_the_receipt_says_so() {
    for verify in [Verify::ReadBack, Verify::Sample { one_in: 10 }, Verify::Trust] {
        let mut rig = Rig::new(1, 1);
        rig.store.verify = verify;
        rig.sinks[0].read_back();
        rig.flag(0..40);
        rig.sources[0].candidates((0..40).map(|at| event(at, at as u64)));
        let running = rig.start();
        rig.committed().await;
        assert_eq!(rig.sinks[0].looks().len(), 0);
        let receipts = rig.ledger.receipts();
        assert_eq!(receipts.len(), 40);
        let read_back = tombstream_model::Verification::ReadBack;
        assert!(receipts.iter().all(|it| it.outcomes[0].verified == read_back));
        running.stop(Duration::from_secs(10)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sample_looks_at_a_part_and_says_so() {
    let mut rig = Rig::new(1, 1);
    rig.store.verify = Verify::Sample { one_in: 10 };
    rig.flag(0..40);
    rig.sources[0].candidates((0..40).map(|at| event(at, at as u64)));
    let running = rig.start();
    rig.committed().await;
    assert_eq!(rig.ledger.count(State::Finalized), 40);
    let looked: usize = rig.sinks[0].looks().iter().map(Vec::len).sum();
    assert!((1..40).contains(&looked), "{looked} looked at");
    let verified = |how| {
        let receipts = rig.ledger.receipts();
        receipts.iter().filter(|it| it.outcomes[0].verified == how).count()
    };
    assert_eq!(verified(tombstream_model::Verification::ReadBack), looked);
    assert_eq!(verified(tombstream_model::Verification::Sample), 40 - looked);
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_whose_fence_is_over_is_not_sent() {
    let rig = Rig::with_lease(1, 1, Duration::ZERO);
    rig.flag(0..10);
    rig.sources[0].candidates((0..10).map(|at| event(at, at as u64)));
    let running = rig.start();
    rig.committed().await;
    assert!(rig.sinks[0].requests().is_empty());
    assert_eq!(rig.sinks[0].len(), 10);
    assert_eq!(rig.ledger.owed().len(), 10);
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_gets_no_more_requests_at_a_time_than_it_may() {
    let mut rig = Rig::new(1, 1);
    rig.store.stage.in_flight_max = 3;
    rig.store.stage.items_max = 2;
    rig.sinks[0].set_delay(Duration::from_millis(2));
    rig.flag(0..200);
    rig.sources[0].candidates((0..200).map(|at| event(at, at as u64)));
    let running = rig.start();
    rig.committed().await;
    assert!(rig.sinks[0].requests().iter().all(|batch| batch.len() <= 2));
    assert!(rig.sinks[0].at_once_most() <= 3, "{}", rig.sinks[0].at_once_most());
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_taken_over_is_finalized_once() {
    let mut rig = Rig::new(2, 2);
    rig.store.stage.deadline = Duration::from_millis(100);
    rig.flag(0..10);
    rig.sinks[1].set_mood(Mood::Unavailable);
    rig.sources[0].candidates((0..10).map(swept));
    let running = rig.start();
    rig.committed().await;
    rig.sinks[1].set_mood(Mood::Well);
    // The sweep may bring the same deletion twice, and the same key beside it.
    let owed = rig.ledger.owed();
    rig.sources[0].open_deletions(owed.iter().chain(&owed).copied());
    rig.sources[1].candidates((0..10).map(swept));
    rig.committed().await;
    until("all are finalized", || rig.ledger.count(State::Finalized) == 10).await;
    assert_eq!(rig.ledger.receipts().len(), 10);
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_stays_busy_delays_only_its_own_deletion() {
    let mut rig = Rig::new(1, 1);
    rig.store.stage.deadline = Duration::from_secs(600);
    // One slot a worker: what is busy must not keep it.
    rig.store.stage.in_flight_max = 1;
    rig.flag(0..200);
    (0..200).step_by(20).for_each(|at| rig.sinks[0].busy(address(0, &key(at)), usize::MAX));
    rig.sources[0].candidates((0..200).map(|at| event(at, at as u64)));
    let running = rig.start();
    until("all others are finalized", || rig.ledger.count(State::Finalized) == 190).await;
    assert_eq!(rig.sources[0].committed(), 0, "their epoch is open");
    (0..200).step_by(20).for_each(|at| rig.sinks[0].release(&address(0, &key(at))));
    rig.committed().await;
    assert_eq!(rig.ledger.count(State::Finalized), 200);
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_asks_for_more_time_than_there_is_has_its_part_owed_at_once() {
    let mut rig = Rig::new(1, 1);
    rig.store.stage.deadline = Duration::from_secs(60);
    rig.store.unavailable_after = Duration::from_secs(600);
    rig.flag(0..10);
    rig.sinks[0].set_mood(Mood::Throttled(Some(Duration::from_secs(120))));
    rig.sources[0].candidates((0..10).map(|at| event(at, at as u64)));
    let running = rig.start();
    rig.committed().await;
    assert_eq!(rig.ledger.owed().len(), 10);
    let asked: usize = rig.sinks[0].requests().iter().map(Vec::len).sum();
    assert_eq!(asked, 10, "each was asked once");
    running.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_hangs_is_owed_as_soon_as_its_store_is_down() {
    let mut rig = Rig::new(1, 1);
    rig.store.stage.timeout = Duration::from_secs(600);
    rig.store.stage.deadline = Duration::from_secs(600);
    rig.store.unavailable_after = Duration::from_millis(50);
    rig.flag(0..20);
    rig.sinks[0].stall(address(0, &key(0)));
    rig.sources[0].candidates([event(0, 0)]);
    let running = rig.start();
    until("it hangs", || !rig.sinks[0].requests().is_empty()).await;
    rig.sinks[0].set_mood(Mood::Unavailable);
    rig.sources[0].candidates((1..20).map(|at| event(at, at as u64)));
    rig.committed().await;
    assert_eq!(rig.ledger.owed().len(), 20);
    running.stop(Duration::from_secs(10)).await.unwrap();
}

/// Two claims fill a request of the store: a backlog is not sent claim by claim.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_goes_in_full_requests() {
    let mut rig = Rig::new(1, 1);
    rig.config.workers = 1;
    rig.config.claim.items_max = 50;
    rig.config.claim.in_flight_max = 1;
    rig.config.epoch_items_max = 1_000;
    rig.store.stage.items_max = 100;
    // It waits for the claims, whatever the machine does meanwhile; the tail waits for nothing.
    rig.store.stage.gather = Duration::from_secs(10);
    rig.ledger.set_delay(Duration::from_millis(10));
    rig.flag(0..1_000);
    rig.sources[0].candidates((0..1_000).map(|at| event(at, at as u64)));
    let running = rig.start();
    rig.committed().await;
    assert_eq!(rig.ledger.count(State::Finalized), 1_000);
    let asked: Vec<usize> = rig.sinks[0].requests().iter().map(Vec::len).collect();
    assert!(asked.len() <= 11, "a thousand in requests of at most a hundred: {asked:?}");
    running.stop(Duration::from_secs(10)).await.unwrap();
}

/// What is claimed does not wait for claims that are over: those of rows that were deleted before, or that another
/// process has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_claims_goes_when_they_come_to_nothing() {
    let mut rig = Rig::new(1, 1);
    rig.config.workers = 1;
    rig.config.claim.items_max = 5;
    rig.config.claim.in_flight_max = 1;
    rig.config.epoch_items_max = 1_000;
    rig.store.stage.items_max = 100;
    rig.store.stage.gather = Duration::from_secs(600);
    rig.ledger.set_delay(Duration::from_millis(10));
    // Five rows; of the other keys there is none.
    rig.flag(0..5);
    rig.sources[0].candidates((0..200).map(|at| event(at, at as u64)));
    let running = rig.start();
    rig.committed().await;
    assert_eq!(rig.ledger.count(State::Finalized), 5);
    assert_eq!(rig.sinks[0].requests().len(), 1);
    running.stop(Duration::from_secs(10)).await.unwrap();
}
