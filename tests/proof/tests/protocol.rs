//! The protocol, explored whole; and without each of its guards, where the checker must find how the
//! contract breaks.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};
use tombstream_proof::protocol::{Guard, Protocol, Scope, property};

/// Two rows, each with two copies, two workers.
const TWO_ROWS: Scope =
    Scope { keys: 2, crashes: 2, restores: 1, flags: 0, creations: 0, holds: 1 };
/// A row that is restored and flagged again.
const TWO_FLAGS: Scope =
    Scope { keys: 1, crashes: 2, restores: 1, flags: 1, creations: 0, holds: 1 };
/// A key that is used again once its row is gone, and flagged again.
const TWO_LIVES: Scope =
    Scope { keys: 1, crashes: 2, restores: 1, flags: 1, creations: 1, holds: 1 };

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

fn explore(name: &str, scope: Scope) {
    let started = Instant::now();
    let protocol = Protocol { scope, without: None };
    let checker = protocol.checker().threads(threads()).spawn_bfs().join();
    println!(
        "{name}: {} states, {} of them different, {} steps deep, {:.1} s",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        started.elapsed().as_secs_f32()
    );
    assert!(checker.is_done());
    checker.assert_properties();
}

#[test]
fn two_rows_keep_the_contract_in_every_history() {
    explore("two rows", TWO_ROWS);
}

#[test]
fn a_row_that_is_flagged_again_keeps_the_contract_in_every_history() {
    explore("two flags", TWO_FLAGS);
}

#[test]
fn a_key_that_is_used_again_keeps_the_contract_in_every_history() {
    explore("two lives", TWO_LIVES);
}

/// What breaks without a guard, and where it is looked for.
fn breaks(guard: Guard) -> (Scope, &'static str) {
    let one_row = Scope { keys: 1, ..TWO_ROWS };
    match guard {
        Guard::FreshSnapshot | Guard::HoldLocksRow | Guard::Recheck => (one_row, property::S1_HELD),
        Guard::Token => (one_row, property::S1_OWNER),
        Guard::Lease | Guard::Condition => (TWO_LIVES, property::S1_ALIVE),
        Guard::RefuseRestore | Guard::RestoreWrites => (one_row, property::S2),
        Guard::AllStores | Guard::LostIsUnknown => (one_row, property::S3),
        Guard::CloseOnce => (one_row, property::S9),
        Guard::TakeOver | Guard::Sweep => (one_row, property::L1),
    }
}

#[test]
fn without_any_one_of_its_guards_the_protocol_breaks() {
    for guard in Guard::ALL {
        let (scope, broken) = breaks(guard);
        let find = |without| {
            let sought = HasDiscoveries::AnyOf(BTreeSet::from([broken]));
            Protocol { scope, without }.checker().threads(1).finish_when(sought).spawn_bfs().join()
        };
        let path = find(Some(guard)).discovery(broken);
        let path = path.unwrap_or_else(|| panic!("without {guard:?} nothing breaks {broken}"));
        let steps: Vec<String> =
            path.into_actions().iter().map(|action| format!("{action:?}")).collect();
        println!("without {guard:?}, {broken} breaks: {}", steps.join(", "));
        // And it is the guard that makes the difference.
        assert!(find(None).discovery(broken).is_none(), "{broken} breaks with {guard:?}, too");
    }
}
