//! One store's part of each claimed deletion: what is due there is destroyed, and answered.

use std::sync::Arc;

use timely::dataflow::StreamVec;
use timely::dataflow::operators::vec::Map;
use tombstream_model::{Claimed, Outcome, StoreId, Target, Verdict};

use crate::bridge::{Ahead, Call, Epoch};
use crate::layers::Keeper;

/// A target that a store must still confirm, by its place in the deletion.
#[derive(Clone, Debug)]
pub(crate) struct Due {
    pub(crate) claimed: Arc<Claimed>,
    pub(crate) place: usize,
}

/// What a store said of it.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) claimed: Arc<Claimed>,
    pub(crate) place: usize,
    pub(crate) outcome: Outcome,
}

/// What is due at `store`: its targets that no earlier attempt confirmed.
pub(crate) fn due(
    claimed: StreamVec<'_, Epoch, Arc<Claimed>>,
    store: StoreId,
) -> StreamVec<'_, Epoch, Due> {
    claimed.flat_map(move |claimed| {
        let places: Vec<usize> = claimed
            .targets
            .iter()
            .enumerate()
            .filter(|(_, it)| it.target.store == store && it.confirmed.is_none())
            .map(|(place, _)| place)
            .collect();
        places.into_iter().map(move |place| Due { claimed: Arc::clone(&claimed), place })
    })
}

/// Destroys what is due. What is settled at the first attempt goes ahead of what has to be asked
/// again: a copy that is busy delays its own deletion, not those of its batch (L2).
pub(crate) fn destroy(keeper: Arc<Keeper>) -> Call<Due, Said> {
    Arc::new(move |batch: Arc<[Due]>, ahead: Ahead<Said>| {
        let keeper = Arc::clone(&keeper);
        Box::pin(async move {
            let targets: Vec<Target> =
                batch.iter().map(|due| due.claimed.targets[due.place].target.clone()).collect();
            let say = |(place, outcome): (usize, Outcome)| said(&batch[place], outcome);
            let early = |part: Vec<(usize, Outcome)>| {
                ahead.send(part.into_iter().map(say).collect());
            };
            let last = keeper.destroy(&targets, early).await;
            last.into_iter().map(say).collect()
        })
    })
}

/// What is said in place of a request that got no answer: nothing is known.
pub(crate) fn unanswered(batch: &[Due]) -> Vec<Said> {
    let outcome = Outcome::new(Verdict::Unknown, "the request ended without an answer");
    batch.iter().map(|due| said(due, outcome.clone())).collect()
}

fn said(due: &Due, outcome: Outcome) -> Said {
    Said { claimed: Arc::clone(&due.claimed), place: due.place, outcome }
}
