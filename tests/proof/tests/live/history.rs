//! Histories at random.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tombstream_proof::reference::{Age, Budget, Fate, Step, Value};

/// Draws histories, the same ones for each seed.
pub(crate) fn histories(seed: u64) -> impl FnMut() -> Vec<Step> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let strategy = proptest::collection::vec(step(), 15..=20).boxed();
    move || strategy.new_tree(&mut runner).expect("nothing is filtered").current()
}

fn step() -> impl Strategy<Value = Step> {
    let value = || prop_oneof![Just(Value::Now), Just(Value::Old)];
    let age =
        || prop_oneof![1 => Just(Age::Young), 2 => Just(Age::HideOver), 4 => Just(Age::GraceOver)];
    let fate = || {
        prop_oneof![
            8 => Just(Fate::Done),
            1 => Just(Fate::AnswerLost),
            1 => Just(Fate::Lost),
            1 => Just(Fate::Busy),
            1 => Just(Fate::Refused),
        ]
    };
    let budget = || prop_oneof![5 => Just(Budget::Left), 1 => Just(Budget::Spent)];
    let worker = || prop_oneof![3 => Just(0_u8), 1 => Just(1_u8)];
    prop_oneof![
        6 => proptest::option::weighted(0.6, value()).prop_map(Step::Insert),
        4 => value().prop_map(Step::Flag),
        4 => Just(Step::Restore),
        2 => Just(Step::Delete),
        9 => (worker(), age(), budget())
            .prop_map(|(worker, age, budget)| Step::Flagged(worker, age, budget)),
        4 => (worker(), age(), 0_u8..3, budget())
            .prop_map(|(worker, age, back, budget)| Step::Removed(worker, age, back, budget)),
        1 => Just(Step::Hold),
        1 => Just(Step::Release),
        2 => Just(Step::Approve),
        9 => (worker(), [fate(), fate()]).prop_map(|(worker, fates)| Step::Destroy(worker, fates)),
        8 => worker().prop_map(Step::Settle),
        3 => Just(Step::LeaseOver),
        4 => worker().prop_map(Step::Resume),
        1 => worker().prop_map(Step::Crash),
    ]
}
