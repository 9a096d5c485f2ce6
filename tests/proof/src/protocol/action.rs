//! What can happen next.

use super::{Deletion, Guard, Lease, Phase, Protocol, Row, STORES, State, Step, WORKERS, Worker};

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It arrives, and so does its answer.
    Answered,
    /// It arrives, its answer is lost.
    AnswerLost,
    /// It never arrives.
    Lost,
}

/// Something that happens. Workers come first, then keys, then stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A worker begins to claim: the first statement's snapshot, or that and the lock.
    Claim(usize, u8),
    /// The claim locks its row.
    Lock(usize),
    /// The claim decides, on a fresh snapshot, and writes.
    Decide(usize),
    /// The claim commits.
    Commit(usize),
    /// A sink reads which version is there.
    Read(usize, usize),
    /// A sink sends its delete, or notices that its lease is over.
    Send(usize, usize),
    /// A request meets its fate.
    Arrive(usize, usize, Fate),
    /// What was not answered is tried again.
    Retry(usize, usize),
    /// A dead worker's request arrives: key, store, the version that it names.
    Orphan(u8, usize, u8),
    /// A worker writes what it has and gives the lease back.
    Owe(usize),
    /// A worker begins to finalize.
    Finalize(usize),
    /// Finalize locks its row.
    LockRow(usize),
    /// Finalize decides, removes, and commits.
    Remove(usize),
    /// A worker takes a deletion over.
    TakeOver(usize, u8),
    /// A lease ends.
    LeaseEnds(u8),
    /// A worker dies.
    Crash(usize),
    /// A person holds a row.
    Hold(u8),
    /// A person lets it go.
    Release(u8),
    /// A restore's snapshot.
    BeginRestore(u8),
    /// A restore's update, and what the trigger says.
    Restore(u8),
    /// An application flags a living row.
    Flag(u8),
    /// An application uses a key again.
    Create(u8),
}

/// Whether a deletion can be taken over.
pub(super) fn is_free(state: &State, key: u8) -> bool {
    let key = &state.keys[usize::from(key)];
    let free =
        matches!(key.deletion, Deletion::Claimed { lease: Lease::Ended | Lease::Released, .. });
    free && !key.held
}

/// Whether a claim of this key is worth an attempt: its row is flagged, and nothing of it is claimed.
pub(super) fn is_due(protocol: &Protocol, state: &State, key: u8) -> bool {
    let key = &state.keys[usize::from(key)];
    matches!(key.row, Row::Flagged(_))
        && key.deletion == Deletion::None
        && (key.event || protocol.keeps(Guard::Sweep))
}

/// Everything that can happen in `state`.
pub(super) fn possible(protocol: &Protocol, state: &State, actions: &mut Vec<Action>) {
    let scope = &protocol.scope;
    for worker in 0..WORKERS {
        of_worker(protocol, state, worker, actions);
        if state.crashes > 0 && state.workers[worker] != Worker::Idle {
            actions.push(Action::Crash(worker));
        }
    }
    for (number, key) in (0_u8..).zip(&state.keys[..scope.keys]) {
        if matches!(key.deletion, Deletion::Claimed { lease: Lease::Taken, .. }) {
            actions.push(Action::LeaseEnds(number));
        }
        for (store, lives) in key.orphans.iter().enumerate() {
            let lives = (0..2).filter(|life| lives & (1 << life) != 0);
            actions.extend(lives.map(|life| Action::Orphan(number, store, life + 1)));
        }
        let locked = state.is_locked(number);
        // A hold and an update wait for the row's lock; to wait is no step.
        if state.holds > 0
            && key.row != Row::Gone
            && !(locked && protocol.keeps(Guard::HoldLocksRow))
        {
            actions.push(Action::Hold(number));
        }
        if key.held {
            actions.push(Action::Release(number));
        }
        let flagged = matches!(key.row, Row::Flagged(_));
        if state.restores > 0 && flagged && key.restoring.is_none() {
            // What the snapshot shows matters only where the trigger does not write.
            actions.push(match protocol.keeps(Guard::RestoreWrites) {
                false => Action::BeginRestore(number),
                true => Action::Restore(number),
            });
        }
        if key.restoring.is_some() {
            actions.push(Action::Restore(number));
        }
        if state.flags > 0 && key.row == Row::Alive {
            actions.push(Action::Flag(number));
        }
        if state.creations > 0 && key.row == Row::Gone {
            actions.push(Action::Create(number));
        }
    }
    actions.retain(|action| match action {
        Action::Restore(key) | Action::Flag(key) => !state.is_locked(*key),
        _ => true,
    });
}

fn of_worker(protocol: &Protocol, state: &State, number: usize, actions: &mut Vec<Action>) {
    match &state.workers[number] {
        Worker::Idle => {
            for key in 0..protocol.scope.keys as u8 {
                if is_due(protocol, state, key) {
                    actions.push(Action::Claim(number, key));
                }
                if is_free(state, key) && protocol.keeps(Guard::TakeOver) {
                    actions.push(Action::TakeOver(number, key));
                }
            }
        }
        Worker::Snapshot(..) => actions.push(Action::Lock(number)),
        Worker::Locked(..) => actions.push(Action::Decide(number)),
        Worker::Decided(_) => actions.push(Action::Commit(number)),
        Worker::Driving(_, Phase::Snapshot(_)) => actions.push(Action::LockRow(number)),
        Worker::Driving(_, Phase::Locked(_)) => actions.push(Action::Remove(number)),
        Worker::Driving(job, Phase::Destroying) => {
            for (store, step) in job.steps.iter().enumerate() {
                match step {
                    // What is read matters only where a key can be used again.
                    Step::Todo if protocol.scope.creations > 0 => {
                        actions.push(Action::Read(number, store));
                    }
                    Step::Todo | Step::Read(_) => actions.push(Action::Send(number, store)),
                    Step::Sent(_) => {
                        let fates = [Fate::Answered, Fate::AnswerLost, Fate::Lost];
                        actions.extend(fates.map(|fate| Action::Arrive(number, store, fate)));
                    }
                    // A sink whose lease is over sends no more.
                    Step::Unknown if job.holds || !protocol.keeps(Guard::Lease) => {
                        actions.push(Action::Retry(number, store));
                    }
                    Step::Unknown => {}
                    Step::Confirmed => {}
                }
            }
            let is_confirmed = |step: &&Step| **step == Step::Confirmed;
            let confirmed = job.steps.iter().filter(is_confirmed).count();
            let enough = if protocol.keeps(Guard::AllStores) { STORES } else { 1 };
            if confirmed >= enough {
                actions.push(Action::Finalize(number));
            }
            // Each store has answered, or its deadline is over.
            let is_sent = |step: &Step| matches!(step, Step::Sent(_));
            if confirmed < STORES && !job.steps.iter().any(is_sent) {
                actions.push(Action::Owe(number));
            }
        }
    }
}
