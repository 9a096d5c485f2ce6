//! The newest position of each key passes once. It saves work; safety never rests on it.

use std::collections::HashMap;

use metrics::counter;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::Operator;
use tombstream_model::{Candidate, Found, Key, Position, RelationId};

use crate::bridge::Epoch;
use crate::metric;

/// The newest positions that have passed, of a flag and of a removal apart.
#[derive(Clone, Copy, Debug, Default)]
struct Passed {
    flagged: Option<Position>,
    removed: Option<Position>,
}

/// The keys that passed lately. Bounded: it forgets the older half at once when the younger is full,
/// and a key that is asked for is young again. Forgetting lets a duplicate pass, nothing worse.
#[derive(Debug)]
pub(crate) struct Seen {
    young: HashMap<(RelationId, Key), Passed>,
    old: HashMap<(RelationId, Key), Passed>,
    half_max: usize,
}

impl Seen {
    pub(crate) fn new(keys_max: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half_max: keys_max.div_ceil(2) }
    }

    /// Whether `candidate` shall pass: it has no position (it comes from a sweep or a snapshot, says
    /// nothing of the order and changes nothing here), or the newest of its key and kind.
    ///
    /// Invariant (S4): in doubt it passes;
    /// `tests::the_newest_position_of_each_key_passes_in_any_order`.
    pub(crate) fn admit(&mut self, candidate: &Candidate) -> bool {
        let Some(position) = candidate.position else { return true };
        let id = (candidate.relation, candidate.key.clone());
        if !self.young.contains_key(&id) {
            if self.young.len() >= self.half_max {
                self.old = std::mem::take(&mut self.young);
            }
            let passed = self.old.remove(&id).unwrap_or_default();
            self.young.insert(id.clone(), passed);
        }
        let passed = self.young.entry(id).or_default();
        let newest = match candidate.found {
            Found::Flagged => &mut passed.flagged,
            Found::Removed => &mut passed.removed,
            // So rare that none is worth a memory.
            Found::Truncated => return true,
        };
        let newer = newest.is_none_or(|newest| newest < position);
        if newer {
            *newest = Some(position);
        }
        newer
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

/// The operator, after an exchange that brings each key to one worker.
pub(crate) fn dedupe(
    candidates: StreamVec<'_, Epoch, Candidate>,
    keys_max: usize,
) -> StreamVec<'_, Epoch, Candidate> {
    let by_key = Exchange::new(|candidate: &Candidate| {
        candidate.key.stable_hash() ^ u64::from(candidate.relation.0)
    });
    candidates.unary::<CapacityContainerBuilder<Vec<Candidate>>, _, _, _>(
        by_key,
        "dedupe",
        |_, _| {
            let mut seen = Seen::new(keys_max);
            move |input, output| {
                input.for_each_stamp(|capability, batches| {
                    let mut session = output.session(&capability);
                    for batch in batches {
                        let count = batch.len();
                        batch.retain(|candidate| seen.admit(candidate));
                        counter!(metric::CANDIDATES).increment(count as u64);
                        counter!(metric::DUPLICATES).increment((count - batch.len()) as u64);
                        session.give_container(batch);
                    }
                });
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use tombstream_model::{Candidate, Cause, Found, Generation, Key, Lsn, Position, RelationId};

    use super::Seen;

    fn candidate() -> impl Strategy<Value = Candidate> {
        let position = (0_u32..2, 0_u64..5, 0_u32..2).prop_map(|(generation, lsn, order)| {
            Position { generation: Generation(generation), lsn: Lsn(lsn), order }
        });
        (0_u16..2, 0_u32..4, proptest::option::weighted(0.8, position), any::<bool>()).prop_map(
            |(relation, key, position, removed)| Candidate {
                relation: RelationId(relation),
                key: Key::from_postgres([key.to_string()]),
                position,
                cause: Cause::Event,
                found: if removed { Found::Removed } else { Found::Flagged },
                removed: None,
            },
        )
    }

    fn id(candidate: &Candidate) -> (RelationId, Key, bool) {
        (candidate.relation, candidate.key.clone(), candidate.found == Found::Removed)
    }

    proptest! {
        #[test]
        fn the_newest_position_of_each_key_passes_in_any_order(
            candidates in proptest::collection::vec(candidate(), 0..60),
            keys_max in 1_usize..20,
        ) {
            let mut seen = Seen::new(keys_max);
            let mut newest = HashMap::new();
            let mut passed = HashMap::new();
            for candidate in &candidates {
                let passes = seen.admit(candidate);
                match candidate.position {
                    None => prop_assert!(passes, "without a position it always passes"),
                    Some(position) => {
                        let best = newest.entry(id(candidate)).or_insert(position);
                        let newer = *best < position || !passed.contains_key(&id(candidate));
                        *best = (*best).max(position);
                        prop_assert!(passes || !newer, "what is newer always passes");
                        if passes {
                            let best = passed.entry(id(candidate)).or_insert(position);
                            *best = (*best).max(position);
                        }
                    }
                }
                prop_assert!(seen.len() <= keys_max + 1, "bounded, rounded up to an even number");
            }
            prop_assert_eq!(passed, newest);
        }

        #[test]
        fn with_room_for_all_keys_nothing_passes_twice(
            candidates in proptest::collection::vec(candidate(), 0..60),
        ) {
            let mut seen = Seen::new(1_000);
            let mut best = HashMap::new();
            for candidate in candidates.iter().filter(|it| it.position.is_some()) {
                let newer = best.get(&id(candidate)).is_none_or(|best| *best < candidate.position);
                prop_assert_eq!(seen.admit(candidate), newer);
                if newer {
                    best.insert(id(candidate), candidate.position);
                }
            }
        }

        #[test]
        fn what_has_no_position_changes_nothing(
            candidates in proptest::collection::vec(candidate(), 0..60),
        ) {
            let (mut with, mut without) = (Seen::new(8), Seen::new(8));
            for candidate in &candidates {
                let passes = with.admit(candidate);
                if candidate.position.is_some() {
                    prop_assert_eq!(passes, without.admit(candidate));
                }
            }
        }
    }
}
