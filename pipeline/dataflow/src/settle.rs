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
