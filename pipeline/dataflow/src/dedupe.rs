//! The newest position of each key passes once. It saves work; safety never rests on it.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

use metrics::counter;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::Operator;
use tombstream_model::{Candidate, Found, Position};

use crate::bridge::Epoch;
use crate::metric;

/// The newest position of each key that passed lately, of a flag and of a removal apart. Bounded: it forgets the
/// older half at once when the younger is full, and a key that is asked for is young again. Forgetting lets a
/// duplicate pass, nothing worse.
///
/// A key is remembered by 128 bits of two keyed hashes, so an entry takes 32 bytes however long the key is. Two
/// keys with the same bits would hide one of them from the events (the sweep still finds it): among a hundred
/// thousand that are remembered, one in 10^33 events. The hashes' keys are the process's own secret, so nobody can
/// choose such keys.
#[derive(Debug)]
pub(crate) struct Seen {
    young: Half,
    old: Half,
    half_max: usize,
    hashes: [RandomState; 2],
}

type Half = HashMap<u128, Position, BuildHasherDefault<Hashed>>;

/// What is hashed already is not hashed again.
#[derive(Debug, Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("a u128 is written as one");
    }

    fn write_u128(&mut self, bits: u128) {
        self.0 = bits as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Seen {
    /// Remembers at least `keys_max`: as many more as its tables hold anyway.
    pub(crate) fn new(keys_max: usize) -> Self {
        let half =
            Half::with_capacity_and_hasher(keys_max.div_ceil(2), BuildHasherDefault::default());
        // The memory is taken with the first keys: a process without events has no need of it.
        Self {
            half_max: half.capacity(),
            young: Half::default(),
            old: Half::default(),
            hashes: [RandomState::new(), RandomState::new()],
        }
    }

    /// Whether `candidate` shall pass: it has no position (it comes from a sweep or a snapshot, says
    /// nothing of the order and changes nothing here), or the newest of its key and kind.
    ///
    /// Invariant (S4): in doubt it passes;
    /// `tests::the_newest_position_of_each_key_passes_in_any_order`.
    pub(crate) fn admit(&mut self, candidate: &Candidate) -> bool {
        let Some(position) = candidate.position else { return true };
        let kind = match candidate.found {
            Found::Flagged => 0_u8,
            Found::Removed => 1,
            // So rare that none is worth a memory.
            Found::Truncated => return true,
        };
        let id = self.id(candidate, kind);
        if let Some(newest) = self.young.get_mut(&id) {
            let newer = *newest < position;
            *newest = position.max(*newest);
            return newer;
        }
        if self.young.len() >= self.half_max {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        let newest = self.old.remove(&id);
        let newer = newest.is_none_or(|newest| newest < position);
        self.young.insert(id, newest.map_or(position, |newest| newest.max(position)));
        newer
    }

    fn id(&self, candidate: &Candidate, kind: u8) -> u128 {
        let [one, other] = &self.hashes;
        let of = (candidate.relation, &candidate.key, kind);
        u128::from(one.hash_one(of)) << 64 | u128::from(other.hash_one(of))
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

    #[test]
    fn an_entry_takes_32_bytes() {
        assert_eq!(size_of::<(u128, Position)>(), 32);
    }

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

    const KEYS: u64 = 1_000;

    /// Counted by `cargo xtask check` under callgrind.
    #[inline(never)]
    fn counted_admissions(seen: &mut Seen, candidates: &[Candidate]) -> usize {
        candidates.iter().filter(|candidate| seen.admit(candidate)).count()
    }

    #[test]
    fn a_thousand_keys_pass_once() {
        let candidates: Vec<_> = (0..KEYS)
            .flat_map(|n| {
                let id = format!("6f1d0000-0000-4000-8000-{n:012}");
                let position = Position { generation: Generation(1), lsn: Lsn(n), order: 0 };
                let candidate = Candidate {
                    relation: RelationId(0),
                    key: Key::from_postgres([id]),
                    position: Some(position),
                    cause: Cause::Event,
                    found: Found::Flagged,
                    removed: None,
                };
                [candidate.clone(), candidate]
            })
            .collect();
        let mut seen = Seen::new(4_000);
        assert_eq!(counted_admissions(&mut seen, &candidates), KEYS as usize);
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
                prop_assert!(seen.len() <= 2 * seen.half_max, "bounded");
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
