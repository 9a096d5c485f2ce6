//! The one asynchronous operator: it batches, bounds what is in flight, and holds capabilities.
//!
//! What is asked, of whom and how often is the business of the stage's [`Call`].

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

use crate::bridge::{Bridge, Call, Epoch, Runtime};
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
}

/// A request that is out.
struct Sent<I> {
    items: Arc<[I]>,
    /// The epoch stays open while this is held.
    held: Rc<Capability<Epoch>>,
    at: Instant,
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
        let Self { name, config, call, lost, runtime } = self;
        let worker = input.scope().worker();
        input.unary::<CapacityContainerBuilder<Vec<O>>, _, _, _>(
            Pipeline,
            &name.clone(),
            |_, info| {
                let activator = worker.activator_for(Rc::clone(&info.address));
                let bridge =
                    Bridge::new(runtime, call, worker.sync_activator_for(info.address.to_vec()));
                let mut pending =
                    Pending::new(config.items_max, config.linger, config.in_flight_max);
                let mut in_flight: HashMap<u64, Sent<I>> = HashMap::new();
                let mut again: VecDeque<(Instant, u64)> = VecDeque::new();
                let mut next_ticket = 0_u64;
                let mut wakes_at: Option<Instant> = None;

                move |input, output| {
                    let now = Instant::now();
                    wakes_at = wakes_at.filter(|at| *at > now);

                    while let Some(answer) = bridge.receive() {
                        if let (None, Lost::Resend) = (&answer.items, &lost) {
                            counter!(metric::LOST, "stage" => name.clone()).increment(1);
                            tracing::error!(
                                stage = name,
                                "a request got no answer, it is sent again"
                            );
                            again.push_back((now + config.retry_wait_min, answer.ticket));
                            continue;
                        }
                        let sent = in_flight.remove(&answer.ticket).expect("one answer a ticket");
                        histogram!(metric::STAGE_SECONDS, "stage" => name.clone())
                            .record(sent.at.elapsed().as_secs_f64());
                        let mut items = match (answer.items, &lost) {
                            (Some(items), _) => items,
                            (None, Lost::Answer(instead)) => {
                                counter!(metric::LOST, "stage" => name.clone()).increment(1);
                                tracing::error!(stage = name, "a request got no answer");
                                instead(&sent.items)
                            }
                            (None, Lost::Resend) => unreachable!("sent again above"),
                        };
                        output.session(&*sent.held).give_container(&mut items);
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
                    while let Some((held, items)) = pending.next_batch(now, in_flight.len()) {
                        let items: Arc<[I]> = items.into();
                        next_ticket += 1;
                        bridge.send(next_ticket, Arc::clone(&items));
                        in_flight.insert(next_ticket, Sent { items, held, at: now });
                    }

                    // An answer wakes this operator by itself; only time needs an alarm, and one is
                    // enough.
                    let linger = pending.wakes_at(in_flight.len());
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
    fn new(items_max: usize, linger: Duration, in_flight_max: usize) -> Self {
        Self { items: VecDeque::new(), items_max, linger, in_flight_max }
    }

    fn extend(&mut self, held: &Rc<H>, now: Instant, items: impl Iterator<Item = I>) {
        self.items.extend(items.map(|item| (Rc::clone(held), now, item)));
    }

    /// The next batch that may go, while `in_flight` are out: a full one; any, if nothing is out;
    /// one that is not full if its oldest item has waited long enough.
    ///
    /// Invariant (S7): a batch holds the least epoch of all its items, since an item that waited
    /// longest need not be of the oldest epoch;
    /// `tests::a_batch_holds_its_least_epoch_not_its_first`.
    fn next_batch(&mut self, now: Instant, in_flight: usize) -> Option<(Rc<H>, Vec<I>)> {
        let (_, since, _) = self.items.front()?;
        let waited = now.saturating_duration_since(*since) >= self.linger;
        let full = self.items.len() >= self.items_max;
        let may = in_flight == 0 || (in_flight < self.in_flight_max && (full || waited));
        if !may {
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

    /// When a batch that is not full may go, if no answer comes before.
    fn wakes_at(&self, in_flight: usize) -> Option<Instant> {
        if in_flight >= self.in_flight_max {
            return None;
        }
        self.items.front().and_then(|(_, since, _)| since.checked_add(self.linger))
    }
}
