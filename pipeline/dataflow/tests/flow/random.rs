//! Random runs of the real dataflow against a simple oracle: fast, slow and failing stores, ledger outages,
//! duplicates, any order, stops and deaths in between, and an application that restores, flags, holds, locks,
//! removes and uses keys again meanwhile.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use tombstream_model::State;
use tombstream_testing::memory::{Mood, Row};

use crate::support::{BOUND, RELATION, Rig, address, event, key, swept};

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
    /// The process dies, with what it had in flight, and another starts.
    Kill,
    /// The application restores rows, as far as the guard lets it.
    Restore(Vec<usize>),
    /// The application flags rows that live.
    Flag(Vec<usize>),
    /// A person holds a row that is not claimed, or lets it go.
    Hold(usize, bool),
    /// The application has a row locked, or ends that.
    Lock(usize, bool),
    /// Another hand removes a row.
    Remove(usize),
    /// The application uses the keys of removed rows again, with new copies.
    Insert(Vec<usize>),
}

const KEYS: usize = 60;

fn some_keys() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(0..KEYS, 1..20)
}

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
        1 => Just(Step::Kill),
        2 => some_keys().prop_map(Step::Restore),
        2 => some_keys().prop_map(Step::Flag),
        1 => (0..KEYS, any::<bool>()).prop_map(|(key, on)| Step::Hold(key, on)),
        1 => (0..KEYS, any::<bool>()).prop_map(|(key, on)| Step::Lock(key, on)),
        1 => (0..KEYS).prop_map(Step::Remove),
        2 => some_keys().prop_map(Step::Insert),
    ]
}

#[test]
fn what_lives_keeps_its_copies_and_what_is_flagged_goes_in_the_end() {
    let cases = Cases { max_shrink_iters: 40, ..Cases::default() };
    let steps = (proptest::collection::vec(step(), 1..40), 1_usize..60, 1_usize..40);
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
    // Short leases: some end while stores are slow, and those of the dead are taken over before the end.
    let mut rig = Rig::with_lease(2, 2, Duration::from_millis(150));
    rig.config.in_flight_max = permits;
    rig.config.epoch_items_max = epoch_items_max;
    rig.store.stage.timeout = Duration::from_millis(20);
    rig.store.stage.deadline = Duration::from_millis(60);
    rig.store.unavailable_after = Duration::from_millis(50);
    rig.store.probe_wait = Duration::from_millis(10);
    rig.flag(0..KEYS);
    // Every fifth row is alive.
    (0..KEYS).step_by(5).for_each(|at| rig.ledger.put(RELATION, key(at), Row::default()));

    let mut running = rig.start();
    let dies = steps.iter().any(|step| matches!(step, Step::Kill));
    for step in steps {
        match step {
            Step::Read(source, keys, lsn) => {
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
            Step::Kill => {
                drop(running);
                running = rig.start();
            }
            step => apply(&rig, step),
        }
        tokio::task::yield_now().await;
        lives_keep_their_copies(&rig);
    }

    // The faults are over, and a sweep brings what is flagged and what is open until nothing is left of it.
    rig.ledger.come_back();
    for sink in &rig.sinks {
        sink.set_mood(Mood::Well);
        sink.set_delay(Duration::ZERO);
    }
    for number in 0..KEYS {
        rig.ledger.change(RELATION, &key(number), |row| (row.locked, row.held) = (false, false));
    }
    let start = Instant::now();
    while is_left(&rig) {
        assert!(start.elapsed() < BOUND, "what is flagged or claimed never ends");
        rig.sources[0].candidates((0..KEYS).map(swept));
        rig.sources[0].open_deletions(rig.ledger.owed());
        rig.committed().await;
    }
    let stopped = running.stop(Duration::from_secs(20)).await.expect("it did not break");
    assert!(stopped.drained);

    lives_keep_their_copies(&rig);
    // What has a receipt is gone from every store.
    let receipts: Vec<_> = rig.ledger.receipts().iter().map(|it| it.claimed.id).collect();
    assert_eq!(receipts.len(), receipts.iter().collect::<HashSet<_>>().len(), "one a deletion");
    for receipt in rig.ledger.receipts() {
        let key = &receipt.claimed.key;
        if rig.ledger.row(RELATION, key).is_none() {
            for (store, sink) in rig.sinks.iter().enumerate() {
                assert!(
                    !sink.exists(&address(store, key)),
                    "{key} is gone, its copy in {store} is not"
                );
            }
        }
    }
    // Marks in order, each once, unless a process died: here its last commit may still be under way beside
    // the next one's first.
    for source in rig.sources.iter().filter(|_| !dies) {
        let marks: Vec<i64> = source.commits().into_iter().flatten().map(|it| it.next).collect();
        assert!(marks.is_sorted_by(|one, next| one < next), "{marks:?}");
    }
}

/// What the application and people do. What makes no sense, and what the guards refuse, does nothing.
fn apply(rig: &Rig, step: Step) {
    match step {
        Step::Restore(keys) => keys.into_iter().for_each(|number| {
            rig.ledger.restore(RELATION, &key(number));
        }),
        Step::Flag(keys) => keys.into_iter().for_each(|number| {
            // No two lives have one value.
            static LIVES: AtomicUsize = AtomicUsize::new(0);
            let value = || format!("life {}", LIVES.fetch_add(1, Ordering::Relaxed));
            rig.ledger.change(RELATION, &key(number), |row| {
                row.flag.get_or_insert_with(value);
            });
        }),
        Step::Hold(number, on) => rig.ledger.change(RELATION, &key(number), |row| row.held = on),
        Step::Lock(number, on) => rig.ledger.change(RELATION, &key(number), |row| row.locked = on),
        // With its copies, unless they are Tombstream's already: nothing here tells it of a hard delete.
        Step::Remove(number) => {
            if !is_claimed(rig, number) {
                for (store, sink) in rig.sinks.iter().enumerate() {
                    sink.remove(&address(store, &key(number)));
                }
            }
            rig.ledger.remove(RELATION, &key(number));
        }
        Step::Insert(keys) => {
            for number in keys {
                // As the guard over arriving rows: not while the copies of an earlier life are destroyed.
                if rig.ledger.row(RELATION, &key(number)).is_none() && !is_claimed(rig, number) {
                    rig.flag([number]);
                    rig.ledger.put(RELATION, key(number), Row::default());
                }
            }
        }
        step => unreachable!("{step:?} is the rig's"),
    }
}

fn is_claimed(rig: &Rig, number: usize) -> bool {
    let newest = rig.ledger.deletion(RELATION, &key(number));
    newest.is_some_and(|(_, state)| state == State::Claimed)
}

/// Invariant (S1): whatever happens, a row that is not flagged has all its copies.
fn lives_keep_their_copies(rig: &Rig) {
    for number in 0..KEYS {
        let copies = || {
            rig.sinks.iter().enumerate().map(|(at, sink)| sink.exists(&address(at, &key(number))))
        };
        let seen: Vec<bool> = copies().collect();
        let alive = rig.ledger.row(RELATION, &key(number)).is_some_and(|row| row.flag.is_none());
        assert!(
            !alive || seen.iter().all(|there| *there),
            "{number} lives, and of its copies: {seen:?}"
        );
    }
}

/// Whether something is flagged or claimed still.
fn is_left(rig: &Rig) -> bool {
    let flagged = |number: &usize| {
        rig.ledger.row(RELATION, &key(*number)).is_some_and(|row| row.flag.is_some())
    };
    (0..KEYS).any(|number| flagged(&number)) || rig.ledger.count(State::Claimed) > 0
}
