//! The contract, as what must hold in every state.

use stateright::Property;

use super::{Deletion, Key, Protocol, Row, State, Worker, step};

/// Nothing alive is destroyed: a row that no claim is past has all of its copies.
pub const S1_ALIVE: &str = "S1: nothing alive is destroyed";
/// No held row is claimed, and none is removed.
pub const S1_HELD: &str = "S1: a hold keeps the row";
/// No two workers may send destructive requests for one key.
pub const S1_OWNER: &str = "S1: a deletion has one owner";
/// A restored row is not being destroyed.
pub const S2: &str = "S2: a restore wins or is refused";
/// Where the row is gone, so are its copies.
pub const S3: &str = "S3: the row outlives its copies";
/// A life ends with one receipt.
pub const S9: &str = "S9: a row that went has one receipt";
/// Nothing is stuck.
pub const L1: &str = "L1: what is flagged is finalized in the end";

fn each(protocol: &Protocol, state: &State, holds: impl Fn(&Key) -> bool) -> bool {
    state.keys[..protocol.scope.keys].iter().all(holds)
}

fn nothing_alive_is_destroyed(protocol: &Protocol, state: &State) -> bool {
    each(protocol, state, |key| {
        let is_past_claim = match (key.row, key.deletion) {
            (Row::Gone, _) => true,
            (Row::Flagged(now), Deletion::Claimed { flag, .. }) => now == flag,
            (Row::Alive | Row::Flagged(_), _) => false,
        };
        is_past_claim || key.copies.iter().all(|copy| *copy == key.life)
    })
}

fn a_deletion_has_one_owner(protocol: &Protocol, state: &State) -> bool {
    (0..protocol.scope.keys).all(|key| {
        let owns = |worker: &&Worker| {
            matches!(worker, Worker::Driving(job, _) if usize::from(job.key) == key && job.holds
                && job.number == state.keys[key].claims
                && state.keys[key].deletion != Deletion::None)
        };
        state.workers.iter().filter(owns).count() <= 1
    })
}

/// Everything that must hold.
pub(super) fn all() -> Vec<Property<Protocol>> {
    vec![
        Property::always(S1_ALIVE, nothing_alive_is_destroyed),
        Property::always(S1_HELD, |_, state: &State| !state.hold_was_broken),
        Property::always(S1_OWNER, a_deletion_has_one_owner),
        Property::always(S2, |protocol, state| {
            each(protocol, state, |key| key.row != Row::Alive || key.deletion == Deletion::None)
        }),
        Property::always(S3, |protocol, state| {
            each(protocol, state, |key| key.row != Row::Gone || key.copies == [0; 2])
        }),
        Property::always(S9, |protocol, state| {
            each(protocol, state, |key| key.receipts == u8::from(key.row == Row::Gone))
        }),
        Property::always(L1, step::recovers),
        // That there is something to hold: a model that does nothing breaks no promise.
        Property::sometimes("a row is finalized", |protocol, state| {
            each(protocol, state, |key| key.row == Row::Gone)
        }),
        Property::sometimes("a row is restored", |protocol, state: &State| {
            state.restores < protocol.scope.restores
                && state.keys[..protocol.scope.keys].iter().any(|key| key.row == Row::Alive)
        }),
    ]
}
