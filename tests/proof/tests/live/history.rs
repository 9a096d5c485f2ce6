//! Histories at random.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use tombstream_proof::reference::{Age, Fate, Step, Value};

/// A history that can be made shorter.
pub(crate) struct Drawn(Box<dyn ValueTree<Value = Vec<Step>>>);

impl Drawn {
    pub(crate) fn steps(&self) -> Vec<Step> {
        self.0.current()
    }

    /// The next simpler one, if there is one.
    pub(crate) fn shorter(&mut self) -> Option<Vec<Step>> {
        self.0.simplify().then(|| self.0.current())
    }

    /// That one was too simple.
    pub(crate) fn longer(&mut self) -> bool {
        self.0.complicate()
    }
}

/// Draws histories, the same ones for each seed.
pub(crate) fn histories(seed: u64) -> impl FnMut() -> Drawn {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let strategy = proptest::collection::vec(step(), 1..=20).boxed();
    move || Drawn(Box::new(strategy.new_tree(&mut runner).expect("nothing is filtered")))
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
    let worker = || 0_u8..2;
    prop_oneof![
        6 => proptest::option::weighted(0.6, value()).prop_map(Step::Insert),
        4 => value().prop_map(Step::Flag),
        4 => Just(Step::Restore),
        2 => Just(Step::Delete),
        9 => (worker(), age()).prop_map(|(worker, age)| Step::Flagged(worker, age)),
        4 => (worker(), age(), 0_u8..3)
            .prop_map(|(worker, age, back)| Step::Removed(worker, age, back)),
        1 => Just(Step::Hold),
        1 => Just(Step::Release),
        9 => (worker(), [fate(), fate()]).prop_map(|(worker, fates)| Step::Destroy(worker, fates)),
        8 => worker().prop_map(Step::Settle),
        3 => Just(Step::LeaseOver),
        4 => worker().prop_map(Step::Resume),
        1 => worker().prop_map(Step::Crash),
    ]
}
