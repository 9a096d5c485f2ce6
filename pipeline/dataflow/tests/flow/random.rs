//! Random runs against a simple oracle: fast, slow and failing stores, ledger outages, duplicates,
//! any order, stops in between.

use std::collections::HashSet;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use tombstream_model::State;
use tombstream_testing::memory::{Mood, Row};

use crate::support::{RELATION, Rig, address, event, key, swept};

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    /// Candidates of these keys are read, by this source, with an LSN or by a sweep.
    Read(usize, Vec<usize>, Option<u64>),
    /// A store changes its mood.
    Mood(usize, Mood),
    /// A store becomes slower or faster.
    Delay(usize, u64),
    /// A copy is busy so many times.
    Busy(usize, usize, usize),
    /// The ledger goes away or comes back.
    Ledger(bool),
    /// The process stops, with so many milliseconds to drain, and starts again.
    Restart(u64),
}

const KEYS: usize = 60;

fn step() -> impl Strategy<Value = Step> {
    let keys = proptest::collection::vec(0..KEYS, 1..30);
    let mood = prop_oneof![
        4 => Just(Mood::Well),
        1 => Just(Mood::Unavailable),
        1 => Just(Mood::AnswerLost),
        1 => Just(Mood::Hanging),
        1 => Just(Mood::Panicking),
        1 => Just(Mood::Short),
        1 => Just(Mood::Throttled(Some(Duration::from_millis(3)))),
        1 => Just(Mood::Denied),
    ];
    prop_oneof![
        8 => (0_usize..2, keys, proptest::option::of(0_u64..100))
            .prop_map(|(source, keys, lsn)| Step::Read(source, keys, lsn)),
        3 => (0_usize..2, mood).prop_map(|(store, mood)| Step::Mood(store, mood)),
        1 => (0_usize..2, 0_u64..5).prop_map(|(store, delay)| Step::Delay(store, delay)),
        1 => (0_usize..2, 0..KEYS, 1_usize..4)
            .prop_map(|(store, key, times)| Step::Busy(store, key, times)),
        1 => any::<bool>().prop_map(Step::Ledger),
        1 => (0_u64..30).prop_map(Step::Restart),
    ]
}

#[test]
fn everything_claimed_ends_finalized_or_owed_and_marks_go_in_order() {
    let cases = Cases { cases: 24, max_shrink_iters: 40, ..Cases::default() };
    let steps = (proptest::collection::vec(step(), 1..25), 1_usize..60, 1_usize..40);
    let result = TestRunner::new(cases).run(&steps, |(steps, permits, epoch_items_max)| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(run(steps, permits, epoch_items_max));
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

async fn run(steps: Vec<Step>, permits: usize, epoch_items_max: usize) {
    let mut rig = Rig::new(2, 2);
    rig.config.in_flight_max = permits;
    rig.config.epoch_items_max = epoch_items_max;
    rig.store.stage.timeout = Duration::from_millis(20);
    rig.store.stage.deadline = Duration::from_millis(60);
    rig.store.unavailable_after = Duration::from_millis(50);
    rig.store.probe_wait = Duration::from_millis(10);
    rig.flag(0..KEYS);
    // Every fifth row is alive.
    (0..KEYS).step_by(5).for_each(|at| rig.ledger.put(RELATION, key(at), Row::default()));

    let mut read = HashSet::new();
    let mut running = rig.start();
    for step in steps {
        match step {
            Step::Read(source, keys, lsn) => {
                read.extend(keys.iter().copied());
                rig.sources[source].candidates(keys.into_iter().map(|at| match lsn {
                    Some(lsn) => event(at, lsn),
                    None => swept(at),
                }));
            }
            Step::Mood(store, mood) => rig.sinks[store].set_mood(mood),
            Step::Delay(store, millis) => rig.sinks[store].set_delay(Duration::from_millis(millis)),
            Step::Busy(store, number, times) => {
                rig.sinks[store].busy(address(store, &key(number)), times);
            }
            Step::Ledger(true) => rig.ledger.come_back(),
            Step::Ledger(false) => rig.ledger.go_away(),
            Step::Restart(drain) => {
                running.stop(Duration::from_millis(drain)).await.expect("it did not break");
                running = rig.start();
            }
        }
        tokio::task::yield_now().await;
    }

    // The faults are over: everything is committed.
    rig.ledger.come_back();
    for sink in &rig.sinks {
        sink.set_mood(Mood::Well);
        sink.set_delay(Duration::ZERO);
    }
    rig.committed().await;
    let stopped = running.stop(Duration::from_secs(20)).await.expect("it did not break");
    assert!(stopped.drained);

    // Every key that was read and flagged is finalized or owed; those of a process that was cut are
    // claimed, with a lease that a sweep takes over: here, none of them is forgotten.
    for number in read.iter().filter(|number| *number % 5 != 0) {
        let (_, state) = rig.ledger.deletion(RELATION, &key(*number)).expect("it was claimed");
        assert!(matches!(state, State::Finalized | State::Claimed), "{number}: {state:?}");
        let gone = rig.ledger.row(RELATION, &key(*number)).is_none();
        assert_eq!(gone, state == State::Finalized, "{number}");
        for (store, sink) in rig.sinks.iter().enumerate() {
            let there = sink.exists(&address(store, &key(*number)));
            assert!(!(gone && there), "the row {number} went before its copy in {store}");
        }
    }
    // What was not read, or is alive, is untouched.
    for number in (0..KEYS).filter(|number| number % 5 == 0 || !read.contains(number)) {
        assert!(rig.ledger.row(RELATION, &key(number)).is_some());
        for (store, sink) in rig.sinks.iter().enumerate() {
            assert!(sink.exists(&address(store, &key(number))), "{number} is untouched");
        }
    }
    // One receipt a deletion; marks in order, each once within a process.
    let receipts: Vec<_> = rig.ledger.receipts().iter().map(|it| it.claimed.id).collect();
    assert_eq!(receipts.len(), receipts.iter().collect::<HashSet<_>>().len());
    for source in &rig.sources {
        let marks: Vec<i64> = source.commits().into_iter().flatten().map(|it| it.next).collect();
        assert!(marks.is_sorted_by(|one, next| one < next), "{marks:?}");
    }
}
