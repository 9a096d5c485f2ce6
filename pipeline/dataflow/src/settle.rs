//! Joins all stores' outcomes of a deletion: what is confirmed goes on to be finalized, the rest is
//! recorded as owed.

use std::collections::HashMap;
use std::sync::Arc;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::{Capability, Operator};
use tombstream_model::{Claimed, Outcome, Settled, Verdict};

use crate::bridge::Epoch;
use crate::sink::Said;

/// Deletions that wait for outcomes. `H` is the capability of their epoch.
///
/// They are told apart by the claim itself (its place in memory, which it keeps while it is here):
/// what was said for one claim never counts for another of the same key or deletion (S5).
#[derive(Debug)]
pub(crate) struct Table<H> {
    waiting: HashMap<*const Claimed, Waiting<H>>,
    stores: usize,
}

#[derive(Debug)]
struct Waiting<H> {
    claimed: Arc<Claimed>,
    outcomes: Vec<Option<Outcome>>,
    missing: usize,
    held: H,
}

impl<H> Table<H> {
    pub(crate) fn new(stores: usize) -> Self {
        Self { waiting: HashMap::new(), stores }
    }

    /// A deletion begins to wait, unless nothing of it is due. A target in a store that is not
    /// configured any more is answered here, since nobody else would.
    pub(crate) fn open(&mut self, claimed: Arc<Claimed>, held: H) -> Option<(Settled, H)> {
        let outcomes: Vec<Option<Outcome>> = claimed
            .targets
            .iter()
            .map(|target| match &target.confirmed {
                Some(confirmed) => Some(confirmed.clone()),
                None if usize::from(target.target.store.0) >= self.stores => {
                    Some(Outcome::new(Verdict::Unknown, "the store is not configured"))
                }
                None => None,
            })
            .collect();
        let missing = outcomes.iter().filter(|outcome| outcome.is_none()).count();
        let waiting = Waiting { claimed, outcomes, missing, held };
        if missing == 0 {
            return Some(waiting.settle());
        }
        self.waiting.insert(Arc::as_ptr(&waiting.claimed), waiting);
        None
    }

    /// An outcome is in. The last one settles the deletion.
    pub(crate) fn answer(&mut self, said: Said) -> Option<(Settled, H)> {
        let id = Arc::as_ptr(&said.claimed);
        let waiting = self.waiting.get_mut(&id)?;
        let place = waiting.outcomes.get_mut(said.place)?;
        if place.replace(said.outcome).is_none() {
            waiting.missing -= 1;
        }
        if waiting.missing > 0 {
            return None;
        }
        self.waiting.remove(&id).map(Waiting::settle)
    }
}

impl<H> Waiting<H> {
    fn settle(self) -> (Settled, H) {
        let outcomes = self.outcomes.into_iter().flatten().collect();
        (Settled { claimed: self.claimed, outcomes }, self.held)
    }
}

/// The operator. Claims and outcomes of one deletion are on one worker, so nothing is exchanged.
pub(crate) fn settle<'scope>(
    claimed: StreamVec<'scope, Epoch, Arc<Claimed>>,
    said: StreamVec<'scope, Epoch, Said>,
    stores: usize,
) -> StreamVec<'scope, Epoch, Settled> {
    claimed.binary::<_, CapacityContainerBuilder<Vec<Settled>>, _, _, _, _>(
        said,
        Pipeline,
        Pipeline,
        "settle",
        |_, _| {
            let mut table: Table<Capability<Epoch>> = Table::new(stores);
            let mut settled: Vec<(Settled, Capability<Epoch>)> = Vec::new();
            move |claimed, said, output| {
                // Claims first: an answer is never in before its claim is.
                claimed.for_each_stamp(|capability, batches| {
                    let held = capability.retain_least(output.output_index());
                    let held = held.expect("data comes with a time");
                    for batch in batches {
                        for claimed in batch.drain(..) {
                            settled.extend(table.open(claimed, held.clone()));
                        }
                    }
                });
                said.for_each_stamp(|_, batches| {
                    for batch in batches {
                        settled.extend(batch.drain(..).filter_map(|said| table.answer(said)));
                    }
                });
                for (settled, held) in settled.drain(..) {
                    output.session(&held).give(settled);
                }
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use proptest::prelude::*;
    use tombstream_model::{
        Address, Claimed, ClaimedTarget, DeletionId, Fence, Key, Outcome, RelationId, StoreId,
        Target, Verdict,
    };

    use super::Table;
    use crate::sink::Said;

    /// A deletion with a target in each of these stores; true for one that is confirmed already.
    fn claimed(id: i64, targets: &[(u16, bool)]) -> Arc<Claimed> {
        let fence = Fence { token: id, until: Instant::now() };
        let target = |(store, confirmed): &(u16, bool)| ClaimedTarget {
            target: Target {
                deletion: DeletionId(id),
                store: StoreId(*store),
                address: Address::Object { bucket: "b".into(), key: id.to_string() },
                fence,
                lsn: None,
            },
            confirmed: confirmed.then(|| Outcome::new(Verdict::Absent, "before")),
            was_hidden: false,
        };
        Arc::new(Claimed {
            id: DeletionId(id),
            relation: RelationId(0),
            key: Key::from_postgres([id.to_string()]),
            flag: "true".to_owned(),
            fence,
            first_attempt: true,
            is_hide: false,
            targets: targets.iter().map(target).collect(),
        })
    }

    fn said(claimed: &Arc<Claimed>, place: usize, said: String) -> Said {
        let outcome = Outcome::new(Verdict::Deleted, said);
        Said { claimed: Arc::clone(claimed), place, outcome }
    }

    proptest! {
        #[test]
        fn each_deletion_settles_once_with_the_outcomes_of_its_own_claim(
            deletions in proptest::collection::vec(
                proptest::collection::vec((0_u16..3, any::<bool>()), 0..4), 1..8),
            seed in any::<u64>(),
        ) {
            let mut table = Table::new(3);
            let mut settled = Vec::new();
            let mut answers = Vec::new();
            for (at, targets) in deletions.iter().enumerate() {
                // The same deletion twice, as when two sweeps bring it: each claim has its own.
                for claim in 0..2 {
                    let claimed = claimed(at as i64, targets);
                    for (place, (_, confirmed)) in targets.iter().enumerate() {
                        if !confirmed {
                            answers.push(said(&claimed, place, format!("{claim}/{place}")));
                        }
                    }
                    settled.extend(table.open(claimed, (at, claim)));
                }
            }
            // Any order.
            let mut state = seed;
            for at in (1..answers.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                answers.swap(at, (state >> 33) as usize % (at + 1));
            }
            for said in answers {
                settled.extend(table.answer(said));
            }
            prop_assert!(table.waiting.is_empty());
            prop_assert_eq!(settled.len(), deletions.len() * 2);
            for (settled, (at, claim)) in settled {
                let targets = &deletions[at];
                prop_assert_eq!(settled.claimed.id, DeletionId(at as i64));
                prop_assert_eq!(settled.outcomes.len(), targets.len());
                for (place, (_, confirmed)) in targets.iter().enumerate() {
                    let expected =
                        if *confirmed { "before".to_owned() } else { format!("{claim}/{place}") };
                    prop_assert_eq!(&*settled.outcomes[place].said, expected);
                }
            }
        }
    }

    #[test]
    fn a_store_that_is_not_configured_holds_nothing_up() {
        let mut table = Table::new(1);
        let (settled, ()) = table.open(claimed(1, &[(7, false)]), ()).unwrap();
        assert!(!settled.is_confirmed());
        assert_eq!(settled.outcomes[0].verdict, Verdict::Unknown);
    }

    #[test]
    fn an_answer_twice_counts_once() {
        let mut table = Table::new(1);
        let claimed = claimed(1, &[(0, false), (0, false)]);
        assert!(table.open(Arc::clone(&claimed), ()).is_none());
        assert!(table.answer(said(&claimed, 0, "a".to_owned())).is_none());
        assert!(table.answer(said(&claimed, 0, "b".to_owned())).is_none());
        assert!(table.answer(said(&claimed, 1, "c".to_owned())).is_some());
        assert!(table.answer(said(&claimed, 1, "d".to_owned())).is_none());
    }
}
