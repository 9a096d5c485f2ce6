//! What the ledger must do, for one key, in plain steps: rows, copies, deletions, leases, receipts.
//!
//! No clock, no SQL, nothing concurrent. How old a flag is comes with the step ([`Age`]): a test has a
//! ledger for each. Everything is written from the contract and from the guard's and the claim's promises; where
//! the real ledger differs, one of the two is wrong.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use tombstream_model::{State, Verdict};

/// How many stores there are. The copy in the first is the bytes themselves; the second is recoverable, and is
/// emptied by a hide.
pub const STORES: usize = 2;

/// What is over when a candidate is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Age {
    /// Nothing, whatever the flag's value says.
    Young,
    /// The recoverable store's grace.
    HideOver,
    /// Every grace.
    GraceOver,
}

/// What the relation's breaker says of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Budget {
    /// There is room.
    Left,
    /// There is none: what spends is kept back.
    Spent,
}

/// What becomes of a request to one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// It is done, and answered.
    Done,
    /// It is done, and the answer is lost.
    AnswerLost,
    /// It never arrives.
    Lost,
    /// Not now.
    Busy,
    /// Not at all.
    Refused,
}

/// What the application, time, a person or a worker does next. What makes no sense does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// A row is inserted with its copies: alive, or flagged.
    Insert(Option<Value>),
    /// The flag is set, or set again.
    Flag(Value),
    /// The flag is unset.
    Restore,
    /// Another hand removes the row.
    Delete,
    /// A worker is told that the row is flagged: an event, a duplicate, a replay, the sweep.
    Flagged(u8, Age, Budget),
    /// A worker is told of one of the row's removals, ours or another's, counted from the newest.
    Removed(u8, Age, u8, Budget),
    /// A person holds the row.
    Hold,
    /// … and lets it go.
    Release,
    /// An operator lets what the breaker kept back go on.
    Approve,
    /// A worker asks the stores what its oldest job is about.
    Destroy(u8, [Fate; STORES]),
    /// A worker writes what it has of its oldest job: finalizes, or owes.
    Settle(u8),
    /// The lease of what is open ends.
    LeaseOver,
    /// A worker takes over what is open and due.
    Resume(u8),
    /// A worker dies, with all that it had in memory.
    Crash(u8),
}

/// What a flag says of its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Value {
    /// Now.
    Now,
    /// A year ago: it skips no grace, so the guard writes it down.
    Old,
}

/// A deletion's lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// None, or given back.
    None,
    /// Somebody's.
    Held,
    /// Over.
    Over,
}

/// A deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deletion {
    /// Where it is.
    pub state: State,
    /// It was claimed.
    pub claimed: bool,
    /// It was hidden.
    pub hidden: bool,
    /// It is of a row that another hand removed.
    pub removed: bool,
    /// The breaker kept it back.
    pub kept_back: bool,
    /// … and an operator let it go on.
    pub approved: bool,
    flag: u32,
    token: u32,
    lease: Lease,
    is_due: bool,
    confirmed: [bool; STORES],
}

/// A deletion in a worker's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// Whose.
    pub worker: u8,
    /// It is a hide.
    pub is_hide: bool,
    /// What it has of each store: nothing where the store is not asked, since it is no target.
    pub verdicts: [Option<Verdict>; STORES],
    deletion: usize,
    token: u32,
    holds: bool,
}

/// What a step did that others see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// The database refused it.
    pub refused: bool,
    /// It made a job: the newest one.
    pub claimed: bool,
    /// It ended the worker's oldest job so.
    pub settled: Option<Job>,
}

/// All there is of one key.
#[derive(Clone, Debug, Default)]
pub struct Key {
    /// The row, if it is there: its flag's value, if it is flagged.
    pub row: Option<Option<u32>>,
    /// Its copies, or those that an earlier row left.
    pub copies: [bool; STORES],
    /// Every deletion, oldest first.
    pub deletions: Vec<Deletion>,
    /// What workers have in memory.
    pub jobs: Vec<Job>,
    /// How many receipts there are.
    pub receipts: usize,
    /// How many notices that a recoverable copy is to be filled again.
    pub rehydrates: usize,
    /// Removals of rows, oldest first: whether a receipt of ours speaks for it.
    pub removals: Vec<bool>,
    /// Which of them a finalizing transaction of ours did.
    pub own: BTreeSet<usize>,
    /// Which of those were told to a worker: each closes its receipt.
    pub closed: BTreeSet<usize>,
    /// A person holds it.
    pub held: bool,
    /// What the contract says was broken, if it was.
    pub broken: Option<&'static str>,
    values: u32,
    tokens: u32,
}

impl Deletion {
    /// It waits for an operator.
    pub fn is_kept_back(&self) -> bool {
        self.kept_back && !self.approved
    }

    /// A hide is under way, whose requests may arrive as late as its lease ends.
    fn is_hiding(&self) -> bool {
        self.state == State::Hidden && self.lease == Lease::Held
    }

    /// Its claim, or its hide, counts for the breaker: once a deletion.
    fn spends(&self) -> bool {
        !self.approved && !self.hidden
    }
}

impl Key {
    fn open(&mut self) -> Option<&mut Deletion> {
        self.deletions.iter_mut().find(|deletion| deletion.state.is_open())
    }

    fn begin(&mut self, state: State, flag: u32) -> &mut Deletion {
        self.deletions.push(Deletion {
            state,
            claimed: false,
            hidden: false,
            removed: false,
            kept_back: false,
            approved: false,
            flag,
            token: 0,
            lease: Lease::None,
            is_due: false,
            confirmed: [false; STORES],
        });
        self.deletions.last_mut().expect("pushed above")
    }

    fn flag(&self) -> Option<u32> {
        self.row.flatten()
    }

    fn is_alive(&self) -> bool {
        self.row == Some(None)
    }

    /// Takes a step.
    pub fn take(&mut self, step: Step) -> Effect {
        let mut effect = Effect::default();
        match step {
            Step::Insert(value) => effect.refused = !self.insert(value),
            Step::Flag(value) => self.set(value),
            Step::Restore => effect.refused = !self.restore(),
            Step::Delete => {
                if self.row.take().is_some() {
                    self.removals.push(false);
                }
            }
            Step::Flagged(worker, age, budget) => {
                effect.claimed = self.flagged(worker, age, budget);
            }
            Step::Removed(worker, age, back, budget) => {
                effect.claimed = self.removed(worker, age, back, budget);
            }
            Step::Hold => self.held |= self.row.is_some(),
            Step::Release => self.held = false,
            Step::Approve => self.approve(),
            Step::Destroy(worker, fates) => self.destroy(worker, fates),
            Step::Settle(worker) => effect.settled = self.settle(worker),
            Step::LeaseOver => self.lease_over(),
            Step::Resume(worker) => effect.claimed = self.resume(worker),
            Step::Crash(worker) => self.jobs.retain(|job| job.worker != worker),
        }
        self.judge();
        effect
    }

    /// S1 to S3, whatever happened.
    fn judge(&mut self) {
        let newest = self.deletions.last();
        let is_claimed = self.flag().is_some_and(|flag| {
            newest.is_some_and(|it| it.claimed && it.state.is_open() && it.flag == flag)
        });
        if self.row.is_some() && !is_claimed && !self.copies[0] {
            self.broken = Some("S1: a copy of a row that is not claimed is destroyed");
        }
        // A hide is undone by a notice, no later than the restore.
        if self.is_alive() && !self.copies[1] && self.rehydrates == 0 {
            self.broken = Some("S1: a recoverable copy is gone, and nobody is told");
        }
        if self.is_alive() && newest.is_some_and(|it| it.state == State::Claimed && !it.removed) {
            self.broken = Some("S2: a row is alive, and being destroyed");
        }
        let finalized = self.deletions.iter().filter(|it| it.state == State::Finalized).count();
        if finalized != self.receipts {
            self.broken = Some("S9: a deletion is finalized without its one receipt");
        }
        if self.row.is_none()
            && newest.is_some_and(|it| it.state == State::Finalized)
            && self.removals.last() == Some(&true)
            && self.copies != [false; STORES]
        {
            self.broken = Some("S3: the row went before its copies");
        }
    }

    fn insert(&mut self, value: Option<Value>) -> bool {
        if self.row.is_some() {
            return true;
        }
        // No row comes to life under a key whose copies are being destroyed; under one whose recoverable
        // copies may be, somebody is told.
        let mut was_hidden = false;
        match self.open() {
            Some(open) if open.claimed => return false,
            Some(open) if open.removed || open.hidden => {
                open.state = State::Superseded;
                was_hidden = open.hidden;
            }
            Some(_) | None => {}
        }
        self.rehydrates += usize::from(was_hidden);
        self.copies = [true; STORES];
        self.row = Some(None);
        if let Some(value) = value {
            self.values += 1;
            self.row = Some(Some(self.values));
            if value == Value::Old && self.open().is_none() {
                self.begin(State::Pending, 0);
            }
        }
        true
    }

    fn set(&mut self, value: Value) {
        let Some(now) = self.row else { return };
        self.values += 1;
        let new = self.values;
        let Some(flag) = now else {
            // A life of its own: what is open of an earlier one is over, but for what is being driven.
            if let Some(open) = self.open()
                && open.state != State::Claimed
            {
                open.state = State::Superseded;
            }
            if value == Value::Old && self.open().is_none() {
                self.begin(State::Pending, 0);
            }
            self.row = Some(Some(new));
            return;
        };
        match self.open() {
            // The old value is kept.
            Some(open) if open.claimed && open.flag == flag => return,
            Some(_) => {}
            None => {
                self.begin(State::Pending, 0);
            }
        }
        self.row = Some(Some(new));
    }

    fn restore(&mut self) -> bool {
        let Some(flag) = self.flag() else { return true };
        let mut asks = false;
        match self.open() {
            Some(open) if open.claimed && open.flag == flag => return false,
            Some(open) if open.claimed => {}
            Some(open) => {
                open.state = State::Cancelled;
                asks = open.hidden;
            }
            None => {
                self.begin(State::Cancelled, 0);
            }
        }
        self.rehydrates += usize::from(asks);
        self.row = Some(None);
        true
    }

    fn approve(&mut self) {
        if let Some(open) = self.open()
            && matches!(open.state, State::Pending | State::Hidden)
        {
            open.approved |= open.kept_back;
        }
    }

    fn flagged(&mut self, worker: u8, age: Age, budget: Budget) -> bool {
        let (Some(flag), held) = (self.flag(), self.held) else { return false };
        let mut is_anew = false;
        let mut hidden = false;
        let (mut waits, mut spends) = (false, true);
        if let Some(open) = self.open() {
            if open.state == State::Claimed || open.is_hiding() {
                return false;
            }
            is_anew = open.removed || open.state == State::Parked && open.flag != flag;
            if is_anew {
                open.state = State::Superseded;
            } else if open.claimed {
                return false;
            } else {
                hidden = open.hidden;
                (waits, spends) = (open.is_kept_back(), open.spends());
            }
        }
        let state = match age {
            _ if held => State::Pending,
            Age::Young => State::Pending,
            Age::HideOver if hidden => State::Pending,
            Age::HideOver => State::Hidden,
            Age::GraceOver => State::Claimed,
        };
        let is_kept_back = state != State::Pending && !waits && spends && budget == Budget::Spent;
        if state == State::Pending || waits || is_kept_back {
            // The table remembers what waits, unless it is held, kept back, or something else was waiting here.
            if (held || is_anew || is_kept_back) && self.open().is_none() {
                self.begin(State::Pending, flag);
            }
            if is_kept_back {
                let open = self.open().expect("begun above");
                open.kept_back = true;
                open.flag = flag;
            }
            return false;
        }
        if self.open().is_none() {
            self.begin(State::Pending, flag);
        }
        let open = self.open().expect("begun above");
        open.state = state;
        open.flag = flag;
        open.claimed = state == State::Claimed;
        open.hidden |= state == State::Hidden;
        open.confirmed = [false; STORES];
        self.lease(worker);
        true
    }

    fn removed(&mut self, worker: u8, age: Age, back: u8, budget: Budget) -> bool {
        let held = self.held;
        let Some(at) = self.removals.len().checked_sub(usize::from(back) + 1) else {
            return false;
        };
        if self.own.contains(&at) {
            self.closed.insert(at);
        }
        // Ours is every removal up to our newest one.
        let is_ours =
            self.removals[at..].contains(&true) || self.open().is_some_and(|open| open.claimed);
        if self.row.is_none() && !is_ours {
            match self.open() {
                None => self.begin(State::Pending, 0).removed = true,
                Some(open) if !open.claimed => open.removed = true,
                Some(_) => {}
            }
        }
        let is_there = self.row.is_some();
        let Some(open) = self.open() else { return false };
        let waits = matches!(open.state, State::Pending | State::Hidden) && open.removed;
        if !waits || age != Age::GraceOver || held || open.is_kept_back() || open.is_hiding() {
            return false;
        }
        if is_there {
            open.state = State::Superseded;
            return false;
        }
        if open.spends() && budget == Budget::Spent {
            open.kept_back = true;
            return false;
        }
        open.state = State::Claimed;
        open.claimed = true;
        open.confirmed = [false; STORES];
        self.lease(worker);
        true
    }

    /// A new lease of what is open, and the job.
    fn lease(&mut self, worker: u8) {
        self.tokens += 1;
        let token = self.tokens;
        let deletion = self.deletions.iter().position(|it| it.state.is_open());
        let deletion = deletion.expect("something is open");
        let open = &mut self.deletions[deletion];
        open.token = token;
        open.lease = Lease::Held;
        open.is_due = false;
        let is_hide = open.state == State::Hidden;
        let verdict = |confirmed| if confirmed { Verdict::Deleted } else { Verdict::Unknown };
        let mut verdicts = open.confirmed.map(|confirmed| Some(verdict(confirmed)));
        if is_hide {
            verdicts[0] = None;
        }
        self.jobs.push(Job { worker, is_hide, verdicts, deletion, token, holds: true });
    }

    fn destroy(&mut self, worker: u8, fates: [Fate; STORES]) {
        let Some(job) = self.jobs.iter_mut().find(|job| job.worker == worker) else { return };
        if !job.holds {
            return;
        }
        for ((verdict, copy), fate) in job.verdicts.iter_mut().zip(&mut self.copies).zip(fates) {
            let Some(verdict) = verdict.as_mut().filter(|verdict| !verdict.is_confirmed()) else {
                continue;
            };
            *verdict = match fate {
                Fate::Done if *copy => Verdict::Deleted,
                Fate::Done => Verdict::Absent,
                Fate::AnswerLost | Fate::Lost => Verdict::Unknown,
                Fate::Busy => Verdict::Busy,
                Fate::Refused => Verdict::Refused,
            };
            *copy &= !matches!(fate, Fate::Done | Fate::AnswerLost);
        }
    }

    fn settle(&mut self, worker: u8) -> Option<Job> {
        let place = self.jobs.iter().position(|job| job.worker == worker)?;
        let job = self.jobs.remove(place);
        let flag = self.row;
        let confirmed = job.verdicts.map(|it| it.is_some_and(Verdict::is_confirmed));
        let is_done = job.verdicts.iter().flatten().all(|verdict| verdict.is_confirmed());
        let held = self.held;
        let deletion = &mut self.deletions[job.deletion];
        let is_driven = matches!(deletion.state, State::Claimed | State::Hidden);
        if !is_driven || deletion.token != job.token {
            return Some(job);
        }
        deletion.lease = Lease::None;
        deletion.confirmed = confirmed;
        deletion.is_due = !(job.is_hide && is_done);
        if job.is_hide || !is_done {
            if job.verdicts.contains(&Some(Verdict::Refused)) {
                deletion.state = State::Parked;
            }
            return Some(job);
        }
        if held {
            return Some(job);
        }
        let of_removed = deletion.removed;
        deletion.state = match flag {
            Some(_) if of_removed => State::Superseded,
            Some(None) => State::LateRestore,
            Some(Some(value)) if value != deletion.flag => State::Superseded,
            Some(Some(_)) | None => State::Finalized,
        };
        match deletion.state {
            State::Finalized => {
                self.receipts += 1;
                // The receipt speaks for whatever removed the row until now.
                self.removals.fill(true);
                if self.row.take().is_some() {
                    self.own.insert(self.removals.len());
                    self.removals.push(true);
                }
            }
            State::Superseded if !of_removed => {
                self.begin(State::Pending, 0);
            }
            _ => {}
        }
        Some(job)
    }

    fn lease_over(&mut self) {
        let Some(open) = self.open().filter(|open| open.lease == Lease::Held) else { return };
        open.lease = Lease::Over;
        let token = open.token;
        for job in self.jobs.iter_mut().filter(|job| job.token == token) {
            job.holds = false;
        }
    }

    fn resume(&mut self, worker: u8) -> bool {
        let (row, held) = (self.row, self.held);
        let Some(open) = self.open() else { return false };
        let is_driven = match open.state {
            State::Claimed => true,
            State::Hidden => open.lease != Lease::None || open.is_due,
            _ => false,
        };
        if held || !is_driven || open.lease == Lease::Held {
            return false;
        }
        // What came back to life, where nothing refused it, is not destroyed any further.
        if row.is_some_and(|flag| flag.is_none() || open.removed) {
            let was_hidden = open.state == State::Hidden;
            open.state = match open.state {
                State::Hidden => State::Cancelled,
                _ if open.removed => State::Superseded,
                _ => State::LateRestore,
            };
            self.rehydrates += usize::from(was_hidden);
            return false;
        }
        self.lease(worker);
        true
    }
}
