//! What an action does.

use super::action::{Action, Fate, is_due};
use super::{
    Deletion, Guard, Job, Key, Lease, Phase, Protocol, Row, STORES, State, Step, WORKERS, Worker,
};

/// Takes one step.
pub(super) fn take(protocol: &Protocol, state: &mut State, action: Action) {
    match action {
        Action::Claim(..)
        | Action::Lock(_)
        | Action::Decide(_)
        | Action::Commit(_)
        | Action::TakeOver(..) => claim(protocol, state, action),
        Action::Read(..)
        | Action::Send(..)
        | Action::Arrive(..)
        | Action::Retry(..)
        | Action::Orphan(..)
        | Action::Owe(_) => destroy(protocol, state, action),
        Action::Finalize(_) | Action::LockRow(_) | Action::Remove(_) => {
            finalize(protocol, state, action);
        }
        Action::LeaseEnds(key) => {
            end_lease(&mut state.keys[usize::from(key)], Lease::Ended);
            for job in state.workers.iter_mut().filter_map(job_of) {
                job.holds &= !(job.key == key && job.is_current);
            }
        }
        Action::Crash(worker) => crash(state, worker),
        Action::Hold(_)
        | Action::Release(_)
        | Action::BeginRestore(_)
        | Action::Restore(_)
        | Action::Flag(_)
        | Action::Create(_) => others(protocol, state, action),
    }
}

fn job_of(worker: &mut Worker) -> Option<&mut Job> {
    match worker {
        Worker::Driving(job, _) => Some(job),
        Worker::Idle | Worker::Snapshot(..) | Worker::Locked(..) | Worker::Decided(_) => None,
    }
}

fn driving(state: &mut State, worker: usize) -> &mut Job {
    job_of(&mut state.workers[worker]).expect("the action is of a driving worker")
}

fn end_lease(key: &mut Key, how: Lease) {
    if let Deletion::Claimed { lease, .. } = &mut key.deletion {
        *lease = how;
    }
}

/// From now on no token of this key is the ledger's but one that is made after this.
fn outdate(state: &mut State, key: u8) {
    for job in state.workers.iter_mut().filter_map(job_of).filter(|job| job.key == key) {
        job.is_current = false;
    }
}

fn claim(protocol: &Protocol, state: &mut State, action: Action) {
    match action {
        Action::Claim(worker, key) => {
            let held = state.keys[usize::from(key)].held;
            state.keys[usize::from(key)].event &= protocol.keeps(Guard::Sweep);
            state.workers[worker] = Worker::Snapshot(key, held);
            // What the snapshot shows matters only where nothing is looked at again.
            if protocol.keeps(Guard::FreshSnapshot) {
                claim(protocol, state, Action::Lock(worker));
            }
        }
        Action::Lock(worker) => {
            let Worker::Snapshot(key, held) = state.workers[worker] else { return };
            let held = held && !protocol.keeps(Guard::FreshSnapshot);
            let skipped = state.is_locked(key) || !is_flagged(state, key);
            state.workers[worker] = if skipped { Worker::Idle } else { Worker::Locked(key, held) };
        }
        Action::Decide(worker) => {
            let Worker::Locked(key, was_held) = state.workers[worker] else { return };
            let now = &state.keys[usize::from(key)];
            let held = if protocol.keeps(Guard::FreshSnapshot) { now.held } else { was_held };
            let claims = !held && now.deletion == Deletion::None;
            state.workers[worker] = if claims { Worker::Decided(key) } else { Worker::Idle };
            // Nobody comes between, since nobody gets past the row's lock.
            if claims && protocol.keeps(Guard::HoldLocksRow) {
                claim(protocol, state, Action::Commit(worker));
            }
        }
        Action::Commit(worker) => {
            let Worker::Decided(number) = state.workers[worker] else { return };
            let key = &mut state.keys[usize::from(number)];
            let Row::Flagged(flag) = key.row else { return };
            state.hold_was_broken |= key.held;
            key.claims += 1;
            key.deletion =
                Deletion::Claimed { flag, lease: Lease::Taken, confirmed: [false; STORES] };
            drive(state, worker, number, [false; STORES]);
        }
        Action::TakeOver(worker, number) => {
            let key = &mut state.keys[usize::from(number)];
            let Deletion::Claimed { flag, confirmed, .. } = key.deletion else { return };
            // It reads whether the row came back to life, where no trigger refused it: a late restore.
            if matches!(key.row, Row::Alive) {
                key.deletion = Deletion::None;
                return outdate(state, number);
            }
            key.deletion = Deletion::Claimed { flag, lease: Lease::Taken, confirmed };
            drive(state, worker, number, confirmed);
        }
        _ => {}
    }
}

fn is_flagged(state: &State, key: u8) -> bool {
    matches!(state.keys[usize::from(key)].row, Row::Flagged(_))
}

fn drive(state: &mut State, worker: usize, key: u8, confirmed: [bool; STORES]) {
    outdate(state, key);
    let number = state.keys[usize::from(key)].claims;
    let step = |confirmed| if confirmed { Step::Confirmed } else { Step::Todo };
    let steps = confirmed.map(step);
    let job = Job { key, number, is_current: true, holds: true, steps };
    state.workers[worker] = Worker::Driving(job, Phase::Destroying);
}

fn destroy(protocol: &Protocol, state: &mut State, action: Action) {
    match action {
        Action::Read(worker, store) => {
            let key = driving(state, worker).key;
            let there = state.keys[usize::from(key)].copies[store];
            driving(state, worker).steps[store] = Step::Read(there);
        }
        Action::Send(worker, store) => {
            let key = driving(state, worker).key;
            let there = state.keys[usize::from(key)].copies[store];
            let job = driving(state, worker);
            let read = if let Step::Read(read) = job.steps[store] { read } else { there };
            let may = job.holds || !protocol.keeps(Guard::Lease);
            job.steps[store] = if may { Step::Sent(read) } else { Step::Unknown };
        }
        Action::Arrive(worker, store, fate) => {
            let job = *driving(state, worker);
            let Step::Sent(read) = job.steps[store] else { return };
            let key = &mut state.keys[usize::from(job.key)];
            let absent = key.copies[store] == 0;
            let done = fate != Fate::Lost && arrive(protocol, key, store, read);
            let confirmed = match fate {
                Fate::Answered => done || absent,
                Fate::AnswerLost | Fate::Lost => !protocol.keeps(Guard::LostIsUnknown),
            };
            let step = if confirmed { Step::Confirmed } else { Step::Unknown };
            driving(state, worker).steps[store] = step;
        }
        Action::Retry(worker, store) => driving(state, worker).steps[store] = Step::Todo,
        Action::Orphan(key, store, read) => {
            arrive(protocol, &mut state.keys[usize::from(key)], store, read);
        }
        Action::Owe(worker) => {
            let job = *driving(state, worker);
            let key = &mut state.keys[usize::from(job.key)];
            if is_accepted(protocol, key, &job)
                && let Deletion::Claimed { lease, confirmed, .. } = &mut key.deletion
            {
                *lease = Lease::Released;
                *confirmed = job.steps.map(|step| step == Step::Confirmed);
                outdate(state, job.key);
            }
            state.workers[worker] = Worker::Idle;
        }
        _ => {}
    }
}

/// A delete arrives that names a version: whether it destroyed something.
fn arrive(protocol: &Protocol, key: &mut Key, store: usize, read: u8) -> bool {
    let there = key.copies[store];
    let matches = there == read || !protocol.keeps(Guard::Condition);
    let destroys = there != 0 && read != 0 && matches;
    if destroys {
        key.copies[store] = 0;
    }
    destroys
}

/// Whether the ledger takes what a job says of its deletion.
fn is_accepted(protocol: &Protocol, key: &Key, job: &Job) -> bool {
    let is_open = matches!(key.deletion, Deletion::Claimed { .. }) && key.claims == job.number;
    is_open && (job.is_current || !protocol.keeps(Guard::Token))
}

fn finalize(protocol: &Protocol, state: &mut State, action: Action) {
    match action {
        Action::Finalize(worker) => {
            let key = driving(state, worker).key;
            let held = state.keys[usize::from(key)].held;
            set_phase(state, worker, Phase::Snapshot(held));
            if protocol.keeps(Guard::FreshSnapshot) {
                finalize(protocol, state, Action::LockRow(worker));
            }
        }
        Action::LockRow(worker) => {
            let Worker::Driving(job, Phase::Snapshot(held)) = state.workers[worker] else { return };
            let held = held && !protocol.keeps(Guard::FreshSnapshot);
            if state.is_locked(job.key) {
                return later(protocol, state, worker);
            }
            set_phase(state, worker, Phase::Locked(held));
        }
        Action::Remove(worker) => {
            let Worker::Driving(job, Phase::Locked(was_held)) = state.workers[worker] else {
                return;
            };
            remove(protocol, state, worker, &job, was_held);
        }
        _ => {}
    }
}

fn set_phase(state: &mut State, worker: usize, to: Phase) {
    if let Worker::Driving(_, phase) = &mut state.workers[worker] {
        *phase = to;
    }
}

/// The row is another's for now: the sweep comes again.
fn later(protocol: &Protocol, state: &mut State, worker: usize) {
    destroy(protocol, state, Action::Owe(worker));
}

fn remove(protocol: &Protocol, state: &mut State, worker: usize, job: &Job, was_held: bool) {
    let key = &mut state.keys[usize::from(job.key)];
    let claimed = match key.deletion {
        Deletion::Claimed { flag, .. } if is_accepted(protocol, key, job) => flag,
        _ if protocol.keeps(Guard::CloseOnce) || key.row != Row::Gone => {
            state.workers[worker] = Worker::Idle;
            return;
        }
        _ => key.flag,
    };
    let held = if protocol.keeps(Guard::FreshSnapshot) { key.held } else { was_held };
    if held && protocol.keeps(Guard::Recheck) {
        return later(protocol, state, worker);
    }
    // Alive is a late restore, another value a newer life: the deletion is over and the row stays.
    let is_same = matches!(key.row, Row::Flagged(flag) if flag == claimed) || key.row == Row::Gone;
    if is_same || !protocol.keeps(Guard::Recheck) {
        state.hold_was_broken |= key.held && key.row != Row::Gone;
        key.row = Row::Gone;
        key.held = false;
        key.receipts += 1;
    }
    key.deletion = Deletion::None;
    outdate(state, job.key);
    state.workers[worker] = Worker::Idle;
}

/// What is in memory is gone; locks and what is not committed too. Requests are on their way.
fn crash(state: &mut State, worker: usize) {
    if let Worker::Driving(job, _) = state.workers[worker] {
        for (store, step) in job.steps.iter().enumerate() {
            if let Step::Sent(read @ 1..) = step {
                state.keys[usize::from(job.key)].orphans[store] |= 1 << (read - 1);
            }
        }
    }
    state.workers[worker] = Worker::Idle;
    state.crashes -= 1;
}

fn others(protocol: &Protocol, state: &mut State, action: Action) {
    match action {
        Action::Hold(key) => {
            state.keys[usize::from(key)].held = true;
            state.holds -= 1;
        }
        Action::Release(key) => state.keys[usize::from(key)].held = false,
        Action::BeginRestore(key) => {
            let key = &mut state.keys[usize::from(key)];
            key.restoring = Some(key.deletion != Deletion::None);
            state.restores -= 1;
        }
        Action::Restore(key) => {
            let key = &mut state.keys[usize::from(key)];
            if key.restoring.is_none() {
                state.restores -= 1;
            }
            let is_claimed = match key.restoring.take() {
                Some(shown) => shown,
                None => key.deletion != Deletion::None,
            };
            let refused = is_claimed && protocol.keeps(Guard::RefuseRestore);
            if matches!(key.row, Row::Flagged(_)) && !refused {
                key.row = Row::Alive;
            }
        }
        Action::Flag(key) => {
            let key = &mut state.keys[usize::from(key)];
            key.flag += 1;
            key.row = Row::Flagged(key.flag);
            key.event = true;
            state.flags -= 1;
        }
        Action::Create(key) => {
            let key = &mut state.keys[usize::from(key)];
            key.life += 1;
            key.row = Row::Alive;
            key.copies = [key.life; STORES];
            key.receipts = 0;
            state.creations -= 1;
        }
        _ => {}
    }
}

/// Whether all that is flagged and not held is finalized in the end, if nothing goes wrong from here on and
/// every step that can be taken is: a fair schedule, one of many.
pub(super) fn recovers(protocol: &Protocol, state: &State) -> bool {
    const STEPS_MAX: usize = 200;
    let mut state = *state;
    for _ in 0..STEPS_MAX {
        match next_good(protocol, &state) {
            Some(action) => take(protocol, &mut state, action),
            None => break,
        }
    }
    state.keys[..protocol.scope.keys].iter().all(|key| {
        let is_open = key.deletion != Deletion::None;
        key.held || !matches!(key.row, Row::Flagged(_)) && !is_open
    })
}

fn next_good(protocol: &Protocol, state: &State) -> Option<Action> {
    let keys = 0..protocol.scope.keys as u8;
    // Whoever has a row locked goes first: others would try its lock for ever.
    let mut workers: Vec<usize> = (0..WORKERS).collect();
    workers.sort_by_key(|worker| !has_lock(&state.workers[*worker]));
    workers.into_iter().find_map(|worker| of_worker(protocol, state, worker)).or_else(|| {
        keys.into_iter().find_map(|key| {
            let is_driven = state.workers.iter().any(|worker| {
                matches!(worker, Worker::Driving(job, _) if job.key == key && job.is_current)
            });
            let deletion = state.keys[usize::from(key)].deletion;
            let is_taken = matches!(deletion, Deletion::Claimed { lease: Lease::Taken, .. });
            (is_taken && !is_driven).then_some(Action::LeaseEnds(key))
        })
    })
}

fn has_lock(worker: &Worker) -> bool {
    matches!(worker, Worker::Locked(..) | Worker::Decided(_) | Worker::Driving(_, Phase::Locked(_)))
}

fn of_worker(protocol: &Protocol, state: &State, number: usize) -> Option<Action> {
    let keys = 0..protocol.scope.keys as u8;
    match &state.workers[number] {
        Worker::Idle => keys.into_iter().find_map(|key| {
            let held = state.keys[usize::from(key)].held;
            let free = protocol.keeps(Guard::TakeOver) && super::action::is_free(state, key);
            let due = is_due(protocol, state, key) && !held && !state.is_locked(key);
            match (free, due) {
                (true, _) => Some(Action::TakeOver(number, key)),
                (_, true) => Some(Action::Claim(number, key)),
                _ => None,
            }
        }),
        Worker::Snapshot(..) => Some(Action::Lock(number)),
        Worker::Locked(..) => Some(Action::Decide(number)),
        Worker::Decided(_) => Some(Action::Commit(number)),
        Worker::Driving(_, Phase::Snapshot(_)) => Some(Action::LockRow(number)),
        Worker::Driving(_, Phase::Locked(_)) => Some(Action::Remove(number)),
        Worker::Driving(job, Phase::Destroying) => {
            let steps = || job.steps.iter().enumerate();
            let sent = steps().find(|(_, step)| matches!(step, Step::Sent(_)));
            let open = steps().find(|(_, step)| **step != Step::Confirmed);
            match (sent, open) {
                (Some((store, _)), _) => Some(Action::Arrive(number, store, Fate::Answered)),
                (None, None) => Some(Action::Finalize(number)),
                (None, Some(_)) if !job.holds => Some(Action::Owe(number)),
                (None, Some((store, Step::Todo))) => Some(Action::Read(number, store)),
                (None, Some((store, Step::Unknown))) => Some(Action::Retry(number, store)),
                (None, Some((store, _))) => Some(Action::Send(number, store)),
            }
        }
    }
}
