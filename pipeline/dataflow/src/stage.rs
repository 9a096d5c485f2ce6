//! The one asynchronous operator: it batches, bounds what is in flight, and holds capabilities.
//!
//! What is asked, of whom and how often is the business of the stage's [`Call`].

use std::cell::{Cell, RefCell};
use std::cmp::min;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{counter, histogram};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::{Capability, Operator};
use timely::scheduling::Activator;

use crate::bridge::{Answer, Bridge, Call, Epoch, Items, Runtime};
use crate::metric;
use crate::plan::StageConfig;

/// What to do when a request's task ended without an answer.
pub(crate) enum Lost<I, O> {
    /// Ask again: the ledger's calls can be repeated, and must not be given up.
    Resend,
    /// Answer in its place.
    Answer(fn(&[I]) -> Vec<O>),
}

/// An asynchronous stage.
pub(crate) struct Stage<I, O> {
    /// The operator's, span's and metrics' name.
    pub(crate) name: String,
    /// Its limits.
    pub(crate) config: StageConfig,
    /// What it asks.
    pub(crate) call: Call<I, O>,
    /// What becomes of requests without an answer.
    pub(crate) lost: Lost<I, O>,
    /// Where its tasks run.
    pub(crate) runtime: Runtime,
    /// Who is told what is on its way through this stage.
    pub(crate) tells: Option<Coming>,
    /// What is on its way to this one.
    pub(crate) awaits: Option<Coming>,
}

/// How many items are on their way to the stages that follow, on one worker: what waits in the stage before them and
/// what is in its requests. Some of them may never arrive: who waits for them is told when they are fewer.
#[derive(Clone, Default)]
pub(crate) struct Coming(Rc<OnTheirWay>);

#[derive(Default)]
struct OnTheirWay {
    count: Cell<usize>,
    /// The stages that wait.
    waiting: RefCell<Vec<Activator>>,
}

impl Coming {
    fn count(&self) -> usize {
        self.0.count.get()
    }

    fn wakes(&self, stage: Activator) {
        self.0.waiting.borrow_mut().push(stage);
    }

    /// Nothing else may wake who waits: what was on its way and came to nothing brings no data. Its alarm would be the
    /// end of the longest wait.
    fn are(&self, count: usize) {
        if count < self.0.count.replace(count) {
            self.0.waiting.borrow().iter().for_each(Activator::activate);
        }
    }
}

/// A request that is out.
struct Sent<I> {
    items: Arc<[I]>,
    /// The epoch stays open while this is held.
    held: Rc<Capability<Epoch>>,
    at: Instant,
    /// A part of its answer is in: what is left are stragglers, and no slot is kept for them. They
    /// are bounded by the permits, and their requests by the store's own limit.
    trails: bool,
}

impl<I, O> Stage<I, O>
where
    I: Send + Sync + Clone + 'static,
    O: Send + Clone + 'static,
{
    /// The stage as an operator over `input`. Answers come out at the least epoch of their batch.
    pub(crate) fn over<'scope>(
        self,
        input: StreamVec<'scope, Epoch, I>,
    ) -> StreamVec<'scope, Epoch, O> {
        let Self { name, config, call, lost, runtime, tells, awaits } = self;
        let worker = input.scope().worker();
        input.unary::<CapacityContainerBuilder<Vec<O>>, _, _, _>(
            Pipeline,
            &name.clone(),
            |_, info| {
                let activator = worker.activator_for(Rc::clone(&info.address));
                if let Some(awaits) = &awaits {
                    awaits.wakes(worker.activator_for(Rc::clone(&info.address)));
                }
                let bridge =
                    Bridge::new(runtime, call, worker.sync_activator_for(info.address.to_vec()));
                let mut pending = Pending::new(&config);
                let mut in_flight: HashMap<u64, Sent<I>> = HashMap::new();
                let mut again: VecDeque<(Instant, u64)> = VecDeque::new();
                let mut next_ticket = 0_u64;
                let mut slots = 0;
                let mut wakes_at: Option<Instant> = None;

                move |input, output| {
                    let now = Instant::now();
                    wakes_at = wakes_at.filter(|at| *at > now);

                    while let Some(Answer { ticket, items }) = bridge.receive() {
                        let sent = in_flight.get_mut(&ticket).expect("held until its last answer");
                        if !sent.trails && !matches!((&items, &lost), (Items::Lost, Lost::Resend)) {
                            slots -= 1;
                            sent.trails = true;
                            histogram!(metric::STAGE_SECONDS, "stage" => name.clone())
                                .record(sent.at.elapsed().as_secs_f64());
                        }
                        let (mut items, last) = match items {
                            Items::Some(items) => (items, false),
                            Items::Last(items) => (items, true),
                            Items::Lost => {
                                counter!(metric::LOST, "stage" => name.clone()).increment(1);
                                tracing::error!(stage = name, "a request got no answer");
                                match &lost {
                                    Lost::Answer(instead) => (instead(&sent.items), true),
                                    Lost::Resend => {
                                        again.push_back((now + config.retry_wait_min, ticket));
                                        continue;
                                    }
                                }
                            }
                        };
                        output.session(&*sent.held).give_container(&mut items);
                        if last {
                            in_flight.remove(&ticket);
                        }
                    }

                    input.for_each_stamp(|capability, batches| {
                        let held = capability.retain_least(output.output_index());
                        let held = Rc::new(held.expect("data comes with a time"));
                        for batch in batches {
                            pending.extend(&held, now, batch.drain(..));
                        }
                    });

                    while let Some(&(at, ticket)) = again.front() {
                        if at > now {
                            break;
                        }
                        again.pop_front();
                        let sent = in_flight.get(&ticket).expect("held until its answer is in");
                        bridge.send(ticket, Arc::clone(&sent.items));
                    }
                    let coming = awaits.as_ref().map_or(0, Coming::count);
                    while let Some((held, items)) = pending.next_batch(now, slots, coming) {
                        let items: Arc<[I]> = items.into();
                        next_ticket += 1;
                        bridge.send(next_ticket, Arc::clone(&items));
                        in_flight.insert(next_ticket, Sent { items, held, at: now, trails: false });
                        slots += 1;
                    }
                    if let Some(tells) = &tells {
                        let out: usize = in_flight.values().map(|sent| sent.items.len()).sum();
                        tells.are(pending.items.len() + out);
                    }

                    // An answer wakes this operator by itself; only time needs an alarm, and one is
                    // enough.
                    let linger = pending.wakes_at(slots, coming);
                    let again = again.front().map(|(at, _)| *at);
                    if let Some(at) = linger.into_iter().chain(again).min()
                        && wakes_at.is_none_or(|earlier| at < earlier)
                    {
                        // At least a moment: timely takes zero for "now", and that would spin.
                        let wait = at.saturating_duration_since(now).max(Duration::from_millis(1));
                        activator.activate_after(wait);
                        wakes_at = Some(now + wait);
                    }
                }
            },
        )
    }
}

/// What waits for its batch: items, each with the right to answer at its epoch.
///
/// `H` is a capability, or in tests the epoch alone.
struct Pending<H, I> {
    items: VecDeque<(Rc<H>, Instant, I)>,
    items_max: usize,
    linger: Duration,
    gather: Duration,
    in_flight_max: usize,
}

/// Something that has an epoch.
trait Held {
    fn epoch(&self) -> Epoch;
}

impl Held for Capability<Epoch> {
    fn epoch(&self) -> Epoch {
        *self.time()
    }
}

impl<H: Held, I> Pending<H, I> {
    fn new(config: &StageConfig) -> Self {
        let StageConfig { items_max, linger, gather, in_flight_max, .. } = *config;
        Self { items: VecDeque::new(), items_max, linger, gather, in_flight_max }
    }

    fn extend(&mut self, held: &Rc<H>, now: Instant, items: impl Iterator<Item = I>) {
        self.items.extend(items.map(|item| (Rc::clone(held), now, item)));
    }

    /// The next batch that may go, while `in_flight` are out: a full one; any, if nothing is out;
    /// one that is not full if its oldest item has waited long enough. One that what is `coming` would fill waits
    /// for that, but not for ever: a backlog goes in few large requests, and a lone item at once.
    ///
    /// Invariant (S7): a batch holds the least epoch of all its items, since an item that waited
    /// longest need not be of the oldest epoch;
    /// `tests::a_batch_holds_its_least_epoch_not_its_first`.
    fn next_batch(
        &mut self,
        now: Instant,
        in_flight: usize,
        coming: usize,
    ) -> Option<(Rc<H>, Vec<I>)> {
        let (_, since, _) = self.items.front()?;
        let waited = now.saturating_duration_since(*since);
        let full = self.items.len() >= self.items_max;
        let gathers = !full && self.is_filled_by(coming) && waited < self.gather;
        let has_room = in_flight < self.in_flight_max;
        let may = in_flight == 0 || (has_room && (full || waited >= self.linger));
        if !may || gathers {
            return None;
        }
        let count = min(self.items.len(), self.items_max);
        let mut least: Option<Rc<H>> = None;
        let mut batch = Vec::with_capacity(count);
        for (held, _, item) in self.items.drain(..count) {
            if least.as_ref().is_none_or(|least| held.epoch() < least.epoch()) {
                least = Some(held);
            }
            batch.push(item);
        }
        least.map(|held| (held, batch))
    }

    fn is_filled_by(&self, coming: usize) -> bool {
        self.items.len() + coming >= self.items_max
    }

    /// When a batch that is not full may go, if nothing comes before.
    fn wakes_at(&self, in_flight: usize, coming: usize) -> Option<Instant> {
        if in_flight >= self.in_flight_max {
            return None;
        }
        let wait = match self.is_filled_by(coming) {
            true => self.linger.max(self.gather),
            false => self.linger,
        };
        self.items.front().and_then(|(_, since, _)| since.checked_add(wait))
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    use proptest::prelude::*;
    use timely::WorkerConfig;
    use timely::communication::WorkerGuards;
    use timely::dataflow::channels::pact::Exchange;
    use timely::dataflow::operators::{Inspect, Operator, Probe};
    use tokio::runtime;
    use tokio::sync::watch;
    use tombstream_model::{Candidate, Cause, Found, Key, Records, RelationId};

    use super::{Held, Lost, Pending, Stage};
    use crate::bridge::{Call, Epoch, Feed, FeedSender, Flag, Frontier, Runtime, feed};
    use crate::plan::StageConfig;
    use crate::source::source;

    impl Held for Epoch {
        fn epoch(&self) -> Epoch {
            *self
        }
    }

    fn limits(items_max: usize, linger: Duration, in_flight_max: usize) -> StageConfig {
        StageConfig { items_max, linger, in_flight_max, ..StageConfig::store() }
    }

    #[test]
    fn a_lone_item_goes_at_once_and_others_linger_only_while_it_is_out() {
        let start = Instant::now();
        let linger = Duration::from_millis(5);
        let mut pending = Pending::<Epoch, u32>::new(&limits(3, linger, 2));
        let held = Rc::new(0);
        pending.extend(&held, start, [1].into_iter());
        assert_eq!(pending.next_batch(start, 0, 0).unwrap().1, [1]);
        pending.extend(&held, start, [2, 3].into_iter());
        assert!(pending.next_batch(start, 1, 0).is_none());
        assert_eq!(pending.wakes_at(1, 0), Some(start + linger));
        assert_eq!(pending.next_batch(start + linger, 1, 0).unwrap().1, [2, 3]);
        pending.extend(&held, start, [4, 5, 6, 7].into_iter());
        assert_eq!(
            pending.next_batch(start, 1, 0).unwrap().1,
            [4, 5, 6],
            "a full one does not wait"
        );
        assert!(pending.next_batch(start + linger, 2, 0).is_none(), "no more than may be out");
        assert_eq!(pending.wakes_at(2, 0), None, "an answer wakes it, and no alarm");
        assert_eq!(pending.next_batch(start, 0, 0).unwrap().1, [7], "an answer lets the rest go");
        assert_eq!(pending.wakes_at(0, 0), None);
    }

    #[test]
    fn a_batch_waits_for_what_fills_it_and_not_for_ever() {
        let start = Instant::now();
        let gather = Duration::from_millis(250);
        let config = StageConfig { gather, ..limits(10, Duration::from_millis(5), 2) };
        let mut pending = Pending::<Epoch, u32>::new(&config);
        let held = Rc::new(0);
        pending.extend(&held, start, 0..4);
        assert!(pending.next_batch(start, 0, 6).is_none(), "six are coming, which fill it");
        assert_eq!(pending.wakes_at(0, 6), Some(start + gather));
        pending.extend(&held, start, 4..12);
        assert_eq!(pending.next_batch(start, 0, 3).unwrap().1.len(), 10, "a full one goes");
        assert_eq!(pending.next_batch(start, 0, 7).unwrap().1, [10, 11], "seven do not fill it");
        pending.extend(&held, start, 12..13);
        assert!(pending.next_batch(start, 1, 500).is_none());
        let waited = start + gather;
        assert_eq!(
            pending.next_batch(waited, 1, 500).unwrap().1,
            [12],
            "it has waited long enough"
        );
    }

    proptest! {
        #[test]
        fn batches_hold_their_least_epoch_and_lose_nothing(
            arrivals in proptest::collection::vec((0_u64..5, 1_usize..6), 1..30),
            items_max in 1_usize..10,
        ) {
            let now = Instant::now();
            let mut pending = Pending::new(&limits(items_max, Duration::ZERO, 1));
            let mut given = Vec::new();
            for (epoch, count) in arrivals {
                let held = Rc::new(epoch);
                pending.extend(&held, now, (0..count).map(|_| epoch));
                given.extend(std::iter::repeat_n(epoch, count));
            }
            let mut taken = Vec::new();
            while let Some((held, batch)) = pending.next_batch(now, 0, 0) {
                prop_assert!(batch.len() <= items_max);
                prop_assert_eq!(Some(&*held), batch.iter().min());
                taken.extend(batch);
            }
            prop_assert_eq!(taken, given);
        }
    }

    /// Two workers with a source, an exchange that brings everything to worker 0, and one stage.
    struct Two {
        tokio: Option<runtime::Runtime>,
        feeds: Vec<FeedSender>,
        before: watch::Receiver<Epoch>,
        behind: watch::Receiver<Epoch>,
        arrived: Arc<AtomicUsize>,
        steps: Arc<AtomicUsize>,
        end: watch::Sender<bool>,
        workers: Option<WorkerGuards<()>>,
    }

    impl Two {
        fn new(
            config: StageConfig,
            lost: fn() -> Lost<Candidate, ()>,
            call: Call<Candidate, ()>,
        ) -> Self {
            let tokio = runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            let (end, ended) = Flag::new();
            let runtime = Runtime { handle: tokio.handle().clone(), ended: ended.clone() };
            let (feeds, receivers): (Vec<_>, Vec<_>) = (0..2).map(|_| feed(ended.clone())).unzip();
            let receivers: Vec<_> = receivers.into_iter().map(|it| Mutex::new(Some(it))).collect();
            let (before_to, before) = Frontier::new();
            let (behind_to, behind) = Frontier::new();
            let arrived = Arc::new(AtomicUsize::new(0));
            let steps = Arc::new(AtomicUsize::new(0));
            let (counted, stepped) = (Arc::clone(&arrived), Arc::clone(&steps));
            let config = move |worker: &mut timely::worker::Worker| {
                let feed = receivers[worker.index()].lock().unwrap().take().unwrap();
                let arrived = Arc::clone(&counted);
                let stage = Stage {
                    name: "stage".to_owned(),
                    config: config.clone(),
                    call: Arc::clone(&call),
                    lost: lost(),
                    runtime: runtime.clone(),
                    tells: None,
                    awaits: None,
                };
                let (before, behind) = worker.dataflow::<Epoch, _, _>(|scope| {
                    let read = source(scope, feed);
                    let to_one = Exchange::new(|_: &Candidate| 0);
                    let all = read.candidates.unary::<timely::container::CapacityContainerBuilder<
                        Vec<Candidate>,
                    >, _, _, _>(
                        to_one,
                        "to one",
                        |_, _| {
                            |input, output| {
                                input.for_each(|capability, data| {
                                    output.session(&capability).give_container(data);
                                });
                            }
                        },
                    );
                    let (before, all) = all
                        .inspect(move |_| {
                            arrived.fetch_add(1, Ordering::SeqCst);
                        })
                        .probe();
                    (before, stage.over(all).probe().0)
                });
                while !ended.is_up() && worker.step_or_park(None) {
                    stepped.fetch_add(1, Ordering::SeqCst);
                    before_to.publish(&before);
                    behind_to.publish(&behind);
                }
                before_to.publish(&before);
                behind_to.publish(&behind);
                for dataflow in worker.installed_dataflows() {
                    worker.drop_dataflow(dataflow);
                }
            };
            let timely = timely::Config {
                communication: timely::CommunicationConfig::Process(2),
                worker: WorkerConfig::default(),
            };
            let workers = Some(timely::execute(timely, config).unwrap());
            let tokio = Some(tokio);
            Self { tokio, feeds, before, behind, arrived, steps, end, workers }
        }

        fn send(&self, worker: usize, feed: Feed) {
            let tokio = self.tokio.as_ref().unwrap();
            tokio.block_on(self.feeds[worker].send(feed)).unwrap();
        }

        /// Feeds an item to a worker, and waits until it has arrived at the stage.
        fn give(&self, worker: usize, number: usize) {
            let before = self.arrived.load(Ordering::SeqCst);
            let records = Records::Candidates(vec![item(number)]);
            self.send(worker, Feed::Records { source: 0, records });
            until("it has arrived", || self.arrived.load(Ordering::SeqCst) > before);
        }

        /// Everyone goes on to `epoch`; returns when all that was before has been seen.
        fn advance(&self, epoch: Epoch) {
            (0..2).for_each(|worker| self.send(worker, Feed::Advance(epoch)));
            until("the frontier before the stage is there", || *self.before.borrow() >= epoch);
        }

        /// Ends the sources, and waits until nothing is left.
        fn finish(mut self) {
            self.feeds.clear();
            until("nothing is left", || *self.behind.borrow() == Epoch::MAX);
        }
    }

    impl Drop for Two {
        fn drop(&mut self) {
            self.end.send_replace(true);
            let wakers: Vec<_> = self.feeds.iter().map(FeedSender::waker).collect();
            self.feeds.clear();
            wakers.iter().for_each(crate::bridge::Waker::wake);
            if let Some(workers) = self.workers.take() {
                drop(workers.join());
            }
            if let Some(tokio) = self.tokio.take() {
                tokio.shutdown_background();
            }
        }
    }

    fn item(number: usize) -> Candidate {
        Candidate {
            relation: RelationId(0),
            key: Key::from_postgres([number.to_string()]),
            position: None,
            cause: Cause::Sweep,
            found: Found::Flagged,
            removed: None,
        }
    }

    fn until(what: &str, mut condition: impl FnMut() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(20), "waited in vain until {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn config() -> StageConfig {
        StageConfig {
            items_max: 10,
            linger: Duration::from_secs(600),
            in_flight_max: 1,
            retry_wait_min: Duration::from_millis(1),
            ..StageConfig::ledger()
        }
    }

    /// A call that answers so many batches as it is allowed, and notes them all.
    #[derive(Clone)]
    struct Gate {
        batches: Arc<Mutex<Vec<Vec<String>>>>,
        allowed: watch::Sender<usize>,
    }

    impl Gate {
        fn new() -> Self {
            Self { batches: Arc::default(), allowed: watch::channel(0).0 }
        }

        fn call(&self) -> Call<Candidate, ()> {
            let gate = self.clone();
            Arc::new(move |batch: Arc<[Candidate]>, _| {
                let gate = gate.clone();
                Box::pin(async move {
                    let turn = {
                        let mut batches = gate.batches.lock().unwrap();
                        batches.push(batch.iter().map(|it| it.key.to_string()).collect());
                        batches.len()
                    };
                    let mut allowed = gate.allowed.subscribe();
                    assert!(allowed.wait_for(|allowed| *allowed >= turn).await.is_ok());
                    Vec::new()
                })
            })
        }

        fn batches(&self) -> Vec<Vec<String>> {
            self.batches.lock().unwrap().clone()
        }
    }

    #[test]
    fn a_batch_holds_its_least_epoch_not_its_first() {
        let gate = Gate::new();
        let two = Two::new(config(), || Lost::Resend, gate.call());
        // The first is out, so that the next ones wait for one batch.
        two.give(0, 0);
        until("the first is out", || gate.batches().len() == 1);
        // Worker 0 is an epoch ahead; what it read arrives first.
        two.send(0, Feed::Advance(1));
        two.give(0, 1);
        two.give(1, 2);
        two.advance(2);
        gate.allowed.send_replace(1);
        until("the second batch is out", || gate.batches().len() == 2);
        assert_eq!(gate.batches()[1], ["1", "2"], "the younger epoch arrived first");
        // Whatever was released by then has been seen when this is.
        two.advance(3);
        assert_eq!(*two.behind.borrow(), 0, "the second item is of epoch 0 and not answered");
        gate.allowed.send_replace(2);
        until("both epochs are over", || *two.behind.borrow() == 3);
        two.finish();
    }

    #[test]
    fn an_epoch_stays_open_until_its_answer_is_in() {
        let gate = Gate::new();
        let two = Two::new(config(), || Lost::Resend, gate.call());
        two.give(1, 0);
        two.advance(1);
        until("it is out", || gate.batches().len() == 1);
        two.advance(2);
        assert_eq!(*two.behind.borrow(), 0);
        gate.allowed.send_replace(1);
        until("it is over", || *two.behind.borrow() == 2);
        two.finish();
    }

    #[test]
    fn a_stage_that_may_send_no_more_does_not_spin() {
        let gate = Gate::new();
        let config = StageConfig { linger: Duration::from_millis(1), ..config() };
        let two = Two::new(config, || Lost::Resend, gate.call());
        for number in 0..50 {
            two.give(number % 2, number);
        }
        two.advance(1);
        until("one is out", || gate.batches().len() == 1);
        let before = two.steps.load(Ordering::SeqCst);
        // The bound of the wait is what is measured.
        std::thread::sleep(Duration::from_millis(300));
        let steps = two.steps.load(Ordering::SeqCst) - before;
        assert!(steps < 30, "{steps} steps while nothing can be done");
        gate.allowed.send_replace(usize::MAX);
        two.finish();
    }

    #[test]
    fn a_panicking_task_leaves_no_epoch_open() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let call: Call<Candidate, ()> = Arc::new(move |_, _| {
            let calls = Arc::clone(&counted);
            Box::pin(async move {
                calls.fetch_add(1, Ordering::SeqCst);
                panic!("as it was told to")
            })
        });
        let two = Two::new(config(), || Lost::Answer(|_| vec![()]), call);
        (0..20).for_each(|number| two.give(number % 2, number));
        two.advance(1);
        until("the epoch is over", || *two.behind.borrow() == 1);
        assert!(calls.load(Ordering::SeqCst) > 0);
        two.finish();
    }

    #[test]
    fn a_call_that_panics_before_it_has_a_future_leaves_no_epoch_open() {
        let call: Call<Candidate, ()> = Arc::new(|_, _| panic!("as it was told to"));
        let two = Two::new(config(), || Lost::Answer(|_| vec![()]), call);
        two.give(0, 0);
        two.finish();
    }

    #[test]
    fn a_request_without_an_answer_is_sent_again_with_its_epoch_open() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let call: Call<Candidate, ()> = Arc::new(move |batch: Arc<[Candidate]>, _| {
            let calls = Arc::clone(&counted);
            Box::pin(async move {
                assert_eq!(batch.len(), 1, "the same batch");
                assert!(calls.fetch_add(1, Ordering::SeqCst) >= 3, "as it was told to");
                Vec::new()
            })
        });
        let two = Two::new(config(), || Lost::Resend, call);
        two.give(0, 0);
        two.advance(1);
        until("the epoch is over", || *two.behind.borrow() == 1);
        assert_eq!(calls.load(Ordering::SeqCst), 4);
        two.finish();
    }

    #[test]
    fn a_runtime_that_is_gone_leaves_no_epoch_open() {
        let mut two = Two::new(config(), || Lost::Answer(|_| vec![()]), Gate::new().call());
        two.give(0, 0);
        two.give(1, 1);
        two.advance(1);
        two.tokio.take().unwrap().shutdown_background();
        until("the epoch is over", || *two.behind.borrow() == 1);
        two.finish();
    }
}
