//! What stands between a store's stage and its sink: limits, time-outs, retries, verification and
//! the breaker.
//!
//! One attempt goes through tower's layers (concurrency, time-out). What a general layer can't know
//! is here: that a batch is retried item by item, what proves a verdict, and when a fence is over.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::future::BoxFuture;
use metrics::counter;
use rand::Rng;
use tokio::time::{sleep, timeout_at};
use tombstream_model::{Disposition, Outcome, Presence, SinkError, Target, Verdict, Verification};
use tower::limit::{ConcurrencyLimit, GlobalConcurrencyLimitLayer};
use tower::timeout::{Timeout, TimeoutLayer, error::Elapsed};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};

use crate::breaker::Breaker;
use crate::health::Board;
use crate::metric::{self, tally};
use crate::plan::{Store, StoreConfig, Verify};
use crate::port::ErasedSink;
use crate::retry::{Backoff, chain};

/// One request to a sink.
#[derive(Clone, Debug)]
enum Request {
    Destroy(Arc<[Target]>),
    Look(Arc<[Target]>),
}

/// Its answer.
#[derive(Debug)]
enum Response {
    Destroyed(Vec<Outcome>),
    Looked(Vec<Presence>),
}

/// A sink as a tower service.
#[derive(Clone)]
struct SinkService(Arc<dyn ErasedSink>);

impl Service<Request> for SinkService {
    type Response = Response;
    type Error = SinkError;
    type Future = BoxFuture<'static, Result<Response, SinkError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SinkError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let sink = Arc::clone(&self.0);
        Box::pin(async move {
            match request {
                Request::Destroy(batch) => sink.destroy(&batch).await.map(Response::Destroyed),
                Request::Look(batch) => sink.look(&batch).await.map(Response::Looked),
            }
        })
    }
}

/// Why an attempt brought no answer.
#[derive(Debug)]
struct Failure {
    halted: bool,
    said: String,
    retry_after: Option<std::time::Duration>,
}

/// Keeps one store: everything that is destroyed there goes through it, from all workers.
pub(crate) struct Keeper {
    name: Arc<str>,
    config: StoreConfig,
    service: ConcurrencyLimit<Timeout<SinkService>>,
    breaker: Breaker,
}

impl Keeper {
    pub(crate) fn new(store: &Store, board: Arc<Board>) -> Self {
        let config = store.config.clone();
        let service = ServiceBuilder::new()
            .layer(GlobalConcurrencyLimitLayer::new(config.stage.in_flight_max))
            .layer(TimeoutLayer::new(config.stage.timeout))
            .service(SinkService(Arc::clone(&store.sink)));
        let name = Arc::clone(&store.name);
        let breaker =
            Breaker::new(Arc::clone(&name), config.unavailable_after, config.probe_wait, board);
        Self { name, config, service, breaker }
    }

    /// Destroys the copies of `targets`, and says what became of each, by its place: `early` is given
    /// what is settled while others must be asked again, and the rest is returned. Never fails: what
    /// could not be asked, or proven, within the deadline is `Busy` or `Unknown`.
    pub(crate) async fn destroy(
        &self,
        targets: &[Target],
        early: impl FnMut(Vec<(usize, Outcome)>) + Send,
    ) -> Vec<(usize, Outcome)> {
        let mut work = Work::new(targets);
        self.drive(&mut work, early).await;
        work.open.clear();
        let last = work.settled();
        self.count(&last);
        last
    }

    fn count(&self, outcomes: &[(usize, Outcome)]) {
        let verdicts = outcomes.iter().map(|(_, outcome)| spelled(outcome.verdict));
        for (verdict, count) in tally(verdicts) {
            counter!(metric::OUTCOMES, "store" => self.name.to_string(), "verdict" => verdict)
                .increment(count);
        }
    }

    async fn drive(
        &self,
        work: &mut Work<'_>,
        mut early: impl FnMut(Vec<(usize, Outcome)>) + Send,
    ) {
        let stage = &self.config.stage;
        let now = Instant::now();
        let deadline = now.checked_add(stage.deadline);
        let mut backoff = Backoff::new(stage.retry_wait_min, stage.retry_wait_max);
        loop {
            work.leave_ended_fences();
            if work.open.is_empty() {
                return;
            }
            let Some(turn) = self.breaker.admit() else {
                return work.leave(Verdict::Unknown, "the store is down");
            };
            let batch = work.batch();
            let mut deleted = vec![false; batch.len()];
            let attempt = async {
                match deadline {
                    Some(at) => timeout_at(at.into(), self.attempt(batch, &mut deleted)).await,
                    None => Ok(self.attempt(batch, &mut deleted).await),
                }
            };
            let attempted = tokio::select! {
                biased;
                attempted = attempt => attempted,
                // What hangs with the others need not wait for its own time-out.
                () = self.breaker.went_down(), if !turn.probe => {
                    return work.leave(Verdict::Unknown, "the store went down");
                }
            };
            work.remember(&deleted);
            let wanted = match attempted {
                Ok(Ok(outcomes)) => {
                    turn.answered();
                    let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
                    work.take(outcomes, left)
                }
                Ok(Err(failure)) => {
                    counter!(metric::STORE_ERRORS, "store" => self.name.to_string()).increment(1);
                    tracing::warn!(
                        store = &*self.name,
                        halted = failure.halted,
                        error = failure.said,
                        "batch failed"
                    );
                    turn.failed(failure.halted, &failure.said);
                    work.fail(&failure);
                    if failure.halted {
                        return;
                    }
                    failure.retry_after
                }
                Err(_) => {
                    turn.failed(false, "no answer before the deadline");
                    return work.leave(Verdict::Unknown, "no answer before the deadline");
                }
            };
            if work.open.is_empty() || turn.probe {
                return;
            }
            drop(turn);
            let settled = work.settled();
            if !settled.is_empty() {
                self.count(&settled);
                early(settled);
            }
            let wait = backoff.next().max(wanted.unwrap_or_default());
            let ends = Instant::now().checked_add(wait);
            if ends.is_none() || deadline.is_some_and(|at| ends.is_some_and(|ends| ends >= at)) {
                return;
            }
            tokio::select! {
                () = sleep(wait) => {}
                () = self.breaker.went_down() => return,
            }
        }
    }

    /// One attempt at all of `batch`: destroyed, and looked up as configured. Notes in `deleted` what
    /// the store said that it deleted, whether or not a look could confirm it.
    async fn attempt(
        &self,
        batch: Arc<[Target]>,
        deleted: &mut [bool],
    ) -> Result<Vec<Outcome>, Failure> {
        let mut outcomes = match self.ask(Request::Destroy(Arc::clone(&batch))).await? {
            Response::Destroyed(outcomes) if outcomes.len() == batch.len() => outcomes,
            Response::Destroyed(_) | Response::Looked(_) => {
                return Err(Failure::protocol("not an outcome for each target"));
            }
        };
        for (deleted, outcome) in deleted.iter_mut().zip(&outcomes) {
            *deleted = outcome.verdict == Verdict::Deleted;
        }
        self.verify(&batch, &mut outcomes).await?;
        Ok(outcomes)
    }

    /// Looks confirmed targets up.
    ///
    /// Invariant (S6): what a look finds, or can't tell, is not confirmed, whatever the store said
    /// before; `tests/flow/stores.rs`,
    /// `a_copy_that_is_found_afterwards_is_not_confirmed`.
    async fn verify(&self, batch: &[Target], outcomes: &mut [Outcome]) -> Result<(), Failure> {
        // A store that looked by itself (versions are listed again) is not asked twice.
        let looks_due = |outcome: &Outcome| {
            matches!(outcome.verdict, Verdict::Deleted | Verdict::Absent)
                && outcome.verified != Verification::ReadBack
        };
        let confirmed: Vec<usize> =
            (0..outcomes.len()).filter(|place| looks_due(&outcomes[*place])).collect();
        match self.config.verify {
            Verify::Trust => Ok(()),
            Verify::ReadBack => self.look(batch, outcomes, &confirmed).await.map(drop),
            Verify::Sample { one_in } => {
                let (chosen, rest) = sample(&confirmed, one_in);
                if self.look(batch, outcomes, &chosen).await? {
                    for place in rest {
                        outcomes[place].verified = Verification::Sample;
                    }
                    return Ok(());
                }
                // One of them was not true, so none of them proves anything.
                self.look(batch, outcomes, &rest).await.map(drop)
            }
        }
    }

    /// Looks up the targets at `places`. Says whether all of them are gone.
    async fn look(
        &self,
        batch: &[Target],
        outcomes: &mut [Outcome],
        places: &[usize],
    ) -> Result<bool, Failure> {
        if places.is_empty() {
            return Ok(true);
        }
        let looked: Arc<[Target]> = places.iter().map(|place| batch[*place].clone()).collect();
        let found = match self.ask(Request::Look(looked)).await? {
            Response::Looked(found) if found.len() == places.len() => found,
            Response::Looked(_) | Response::Destroyed(_) => {
                return Err(Failure::protocol("not a presence for each target"));
            }
        };
        let mut gone = true;
        for (place, presence) in places.iter().zip(found) {
            let outcome = &mut outcomes[*place];
            outcome.verified = Verification::ReadBack;
            let but = match presence {
                Presence::Absent => continue,
                Presence::Present => "but the copy is there",
                Presence::Unknown => "but a look could not tell",
            };
            gone = false;
            outcome.verdict = Verdict::Unknown;
            outcome.said = format!("{}, {but}", outcome.said).into();
        }
        Ok(gone)
    }

    async fn ask(&self, request: Request) -> Result<Response, Failure> {
        self.service.clone().oneshot(request).await.map_err(|error| self.failure(error))
    }

    fn failure(&self, error: BoxError) -> Failure {
        if error.is::<Elapsed>() {
            let said = format!("no answer within {:?}", self.config.stage.timeout);
            return Failure { halted: false, said, retry_after: None };
        }
        match error.downcast::<SinkError>() {
            Ok(error) => {
                let retry_after = match &*error {
                    SinkError::Throttled { retry_after } => *retry_after,
                    SinkError::Unavailable(_)
                    | SinkError::Denied(_)
                    | SinkError::Missing(_)
                    | SinkError::Protocol(_) => None,
                };
                let halted = error.disposition() != Disposition::Retry;
                Failure { halted, said: chain(&*error), retry_after }
            }
            Err(error) => Failure { halted: false, said: chain(&*error), retry_after: None },
        }
    }
}

impl Failure {
    fn protocol(said: &str) -> Self {
        Self { halted: false, said: said.to_owned(), retry_after: None }
    }
}

/// A batch on its way: what is answered, and what is still open.
#[derive(Debug)]
struct Work<'a> {
    targets: &'a [Target],
    outcomes: Vec<Outcome>,
    /// Whether the outcome was given already.
    given: Vec<bool>,
    open: Vec<usize>,
    /// Whether an attempt said that it deleted the target.
    deleted: Vec<bool>,
    /// Whether an attempt at the target brought no answer.
    unanswered: Vec<bool>,
}

impl<'a> Work<'a> {
    fn new(targets: &'a [Target]) -> Self {
        Self {
            targets,
            outcomes: vec![Outcome::new(Verdict::Unknown, "not asked"); targets.len()],
            given: vec![false; targets.len()],
            open: (0..targets.len()).collect(),
            deleted: vec![false; targets.len()],
            unanswered: vec![false; targets.len()],
        }
    }

    /// Leaves out the targets whose fence is over. Their last outcome stands, if they were asked.
    ///
    /// Invariant (S1): such a target is not sent; `tests/flow/stores.rs`,
    /// `a_target_whose_fence_is_over_is_not_sent`.
    fn leave_ended_fences(&mut self) {
        let (targets, outcomes) = (self.targets, &mut self.outcomes);
        self.open.retain(|place| {
            let holds = targets[*place].fence.holds();
            if !holds {
                outcomes[*place] = Outcome::new(Verdict::Busy, "the claim's lease is over");
            }
            holds
        });
    }

    fn batch(&self) -> Arc<[Target]> {
        self.open.iter().map(|place| self.targets[*place].clone()).collect()
    }

    /// Takes an answer. What is not open any more needs nothing more; says when the store wants to be
    /// asked for the rest.
    ///
    /// What the store wants to be asked for only when all of the time that is `left` is over is owed at once:
    /// it neither holds up the others nor is asked for in vain (L2); `tests/flow/stores.rs`,
    /// `a_copy_that_rests_for_long_is_owed_at_once_and_the_others_are_asked_again`.
    fn take(
        &mut self,
        outcomes: Vec<Outcome>,
        left: Option<std::time::Duration>,
    ) -> Option<std::time::Duration> {
        let mut retry_after = None;
        let places = std::mem::take(&mut self.open);
        for (place, mut outcome) in places.into_iter().zip(outcomes) {
            let rests = left.is_some_and(|left| outcome.retry_after.is_some_and(|it| it >= left));
            if outcome.verdict.is_open() && !rests {
                self.open.push(place);
                retry_after = retry_after.max(outcome.retry_after);
            } else if outcome.verdict == Verdict::Absent && self.deleted[place] {
                // Deleted by an earlier attempt, and gone now: not the absence that makes a template
                // suspect.
                outcome.verdict = Verdict::Deleted;
            }
            outcome.is_repeated = self.unanswered[place];
            self.outcomes[place] = outcome.settled_now();
        }
        retry_after
    }

    /// Notes what an attempt deleted of what is open.
    fn remember(&mut self, deleted: &[bool]) {
        for (place, deleted) in self.open.iter().zip(deleted) {
            self.deleted[*place] |= deleted;
        }
    }

    /// What needs nothing more and was not given yet. It is given now.
    fn settled(&mut self) -> Vec<(usize, Outcome)> {
        // `open` is in the order of the targets.
        let mut open = self.open.iter().copied().peekable();
        let mut settled = Vec::new();
        for (place, given) in self.given.iter_mut().enumerate() {
            if open.next_if_eq(&place).is_none() && !*given {
                *given = true;
                settled.push((place, self.outcomes[place].clone()));
            }
        }
        settled
    }

    /// An attempt brought no answer for what is open.
    fn fail(&mut self, failure: &Failure) {
        for place in &self.open {
            let mut outcome = Outcome::new(Verdict::Unknown, failure.said.clone());
            outcome.retry_after = failure.retry_after;
            self.outcomes[*place] = outcome;
            self.unanswered[*place] = true;
        }
    }

    /// Gives up what is open.
    fn leave(&mut self, verdict: Verdict, said: &'static str) {
        for place in self.open.drain(..) {
            self.outcomes[place] = Outcome::new(verdict, said);
        }
    }
}

/// About one in `one_in` of `places`, at least one, evenly apart from a random start; and the rest.
fn sample(places: &[usize], one_in: u32) -> (Vec<usize>, Vec<usize>) {
    let step = usize::try_from(one_in.max(1)).unwrap_or(usize::MAX).min(places.len().max(1));
    let start = rand::rng().random_range(0..step);
    let mut chosen = Vec::new();
    let mut rest = Vec::new();
    for (at, place) in places.iter().enumerate() {
        if at % step == start { chosen.push(*place) } else { rest.push(*place) }
    }
    (chosen, rest)
}

fn spelled(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Deleted => "deleted",
        Verdict::Absent => "absent",
        Verdict::Superseded => "superseded",
        Verdict::Busy => "busy",
        Verdict::Refused => "refused",
        Verdict::Unknown => "unknown",
        Verdict::Waived => "waived",
    }
}
