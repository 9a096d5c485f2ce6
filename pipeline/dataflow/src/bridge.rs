//! The only file where a timely worker and a Tokio task meet.
//!
//! Requests go out as tasks of their own and answers come back on a channel; records come in on a
//! bounded channel; the frontier goes out on a watch. Each arrival wakes the operator it is for, and
//! nothing else does. Tasks hold no capability: an operator keeps it under the request's ticket.

use std::sync::mpsc;
use std::sync::{Arc, OnceLock};

use futures::future::BoxFuture;
use timely::dataflow::operators::probe;
use timely::scheduling::SyncActivator;
use tokio::runtime::Handle;
use tokio::sync::mpsc as channel;
use tokio::sync::watch;
use tombstream_model::Records;

/// The timely timestamp: everything that was read between two ticks.
pub(crate) type Epoch = u64;

/// Makes an answer of a request, on Tokio; what is ready before the rest may go ahead as a part. The
/// operator keeps the request too, to ask again.
pub(crate) type Call<I, O> =
    Arc<dyn Fn(Arc<[I]>, Ahead<O>) -> BoxFuture<'static, Vec<O>> + Send + Sync>;

/// Where tasks run, and until when.
#[derive(Clone, Debug)]
pub(crate) struct Runtime {
    pub(crate) handle: Handle,
    pub(crate) ended: Flag,
}

/// Something that happens once, and that tasks and threads can see.
#[derive(Clone, Debug)]
pub(crate) struct Flag(watch::Receiver<bool>);

impl Flag {
    pub(crate) fn new() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    pub(crate) fn is_up(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it happened. One whose sender is gone has happened.
    pub(crate) async fn up(&self) {
        let mut receiver = self.0.clone();
        if receiver.wait_for(|up| *up).await.is_err() {
            tracing::trace!("the sender of a flag is gone");
        }
    }
}

/// What came back for a ticket.
pub(crate) struct Answer<O> {
    pub(crate) ticket: u64,
    pub(crate) items: Items<O>,
}

/// An answer, or a part of it.
pub(crate) enum Items<O> {
    /// More will come.
    Some(Vec<O>),
    /// These are the last.
    Last(Vec<O>),
    /// The task ended without an answer.
    Lost,
}

/// The way back for the part of an answer that need not wait for the rest (L2).
pub(crate) struct Ahead<O> {
    ticket: u64,
    sender: mpsc::Sender<Answer<O>>,
    activator: SyncActivator,
}

impl<O> Ahead<O> {
    pub(crate) fn send(&self, items: Vec<O>) {
        self.answer(Items::Some(items));
    }

    fn answer(&self, items: Items<O>) {
        let answer = Answer { ticket: self.ticket, items };
        // An operator that is gone waits for nothing.
        if self.sender.send(answer).is_err() || self.activator.activate().is_err() {
            tracing::trace!(ticket = self.ticket, "nobody waits for this answer");
        }
    }
}

/// An operator's way to Tokio and back.
pub(crate) struct Bridge<I, O> {
    runtime: Runtime,
    call: Call<I, O>,
    activator: SyncActivator,
    sender: mpsc::Sender<Answer<O>>,
    answers: mpsc::Receiver<Answer<O>>,
}

impl<I, O> Bridge<I, O>
where
    I: Send + Sync + 'static,
    O: Send + 'static,
{
    pub(crate) fn new(runtime: Runtime, call: Call<I, O>, activator: SyncActivator) -> Self {
        let (sender, answers) = mpsc::channel();
        Self { runtime, call, activator, sender, answers }
    }

    /// Sends a request. Each is a task of its own, so nothing here is bounded and nothing waits:
    /// what is in flight is bounded by the operator, and memory by the permits of the intake.
    pub(crate) fn send(&self, ticket: u64, items: Arc<[I]>) {
        let back =
            || Ahead { ticket, sender: self.sender.clone(), activator: self.activator.clone() };
        let (ahead, mut guard) = (back(), Guard { items: None, back: back() });
        let call = Arc::clone(&self.call);
        let ended = self.runtime.ended.clone();
        // The handle detaches the task: its guard answers for it.
        drop(self.runtime.handle.spawn(async move {
            // Moved in, so that it is dropped, and answers, however the task ends.
            let guard = &mut guard;
            tokio::select! {
                biased;
                () = ended.up() => {}
                items = async { call(items, ahead).await } => guard.items = Some(items),
            }
        }));
    }

    /// The next answer, if one is in.
    pub(crate) fn receive(&self) -> Option<Answer<O>> {
        self.answers.try_recv().ok()
    }
}

/// Answers when dropped.
///
/// Invariant (S7): no request ends without an answer, though its task panics or its runtime is gone;
/// `stage::tests::a_panicking_task_leaves_no_epoch_open`.
struct Guard<O> {
    items: Option<Vec<O>>,
    back: Ahead<O>,
}

impl<O> Drop for Guard<O> {
    fn drop(&mut self) {
        self.back.answer(self.items.take().map_or(Items::Lost, Items::Last));
    }
}

/// What a worker's source is told.
#[derive(Debug)]
pub(crate) enum Feed {
    /// Records of the current epoch, and which source they are from.
    Records { source: usize, records: Records },
    /// The current epoch is over; this is the next one. Every worker gets it, or an idle one would
    /// pin the frontier.
    Advance(Epoch),
}

/// Makes the two ends of one worker's feed.
pub(crate) fn feed<T>(ended: Flag) -> (FeedSender<T>, FeedReceiver<T>) {
    // Records are bounded by permits; this bounds how far the intake runs ahead of a busy worker.
    let (sender, receiver) = channel::channel(64);
    let activator = Arc::new(OnceLock::new());
    (
        FeedSender { sender: Some(sender), activator: Arc::clone(&activator), ended },
        FeedReceiver { receiver, activator },
    )
}

/// The intake's end of a feed. Dropping it ends the worker's source.
#[derive(Debug)]
pub(crate) struct FeedSender<T = Feed> {
    sender: Option<channel::Sender<T>>,
    activator: Arc<OnceLock<SyncActivator>>,
    ended: Flag,
}

/// The worker takes no more.
#[derive(Debug)]
pub(crate) struct Closed;

impl<T> FeedSender<T> {
    pub(crate) async fn send(&self, feed: T) -> Result<(), Closed> {
        let sender = self.sender.as_ref().ok_or(Closed)?;
        tokio::select! {
            biased;
            () = self.ended.up() => return Err(Closed),
            sent = sender.send(feed) => sent.map_err(|_| Closed)?,
        }
        self.wake();
        Ok(())
    }

    /// Wakes the worker. One that is not built yet looks at its feed when it is.
    fn wake(&self) {
        if let Some(activator) = self.activator.get()
            && activator.activate().is_err()
        {
            tracing::trace!("the worker is gone");
        }
    }

    /// Wakes a worker from anywhere.
    pub(crate) fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.activator))
    }
}

impl<T> Drop for FeedSender<T> {
    fn drop(&mut self) {
        // Closed first, then woken: else the worker could look between the two and park for ever.
        self.sender = None;
        self.wake();
    }
}

/// Wakes a worker, so that it sees that it shall end.
#[derive(Clone, Debug)]
pub(crate) struct Waker(Arc<OnceLock<SyncActivator>>);

impl Waker {
    pub(crate) fn wake(&self) {
        if let Some(activator) = self.0.get()
            && activator.activate().is_err()
        {
            tracing::trace!("the worker is gone");
        }
    }
}

/// The worker's end of a feed.
pub(crate) struct FeedReceiver<T = Feed> {
    receiver: channel::Receiver<T>,
    activator: Arc<OnceLock<SyncActivator>>,
}

/// What a look into a feed brings.
pub(crate) enum Fed<T = Feed> {
    Something(T),
    Nothing,
    Closed,
}

impl<T> FeedReceiver<T> {
    /// Says whom to wake. The operator must look once afterwards.
    pub(crate) fn wakes(&self, activator: SyncActivator) {
        self.activator.set(activator).expect("a feed has one operator");
    }

    pub(crate) fn receive(&mut self) -> Fed<T> {
        match self.receiver.try_recv() {
            Ok(feed) => Fed::Something(feed),
            Err(channel::error::TryRecvError::Empty) => Fed::Nothing,
            Err(channel::error::TryRecvError::Disconnected) => Fed::Closed,
        }
    }
}

/// The frontier of the probe: every epoch before it is durable. [`Epoch::MAX`] when nothing is left.
#[derive(Clone, Debug)]
pub(crate) struct Frontier(watch::Sender<Epoch>);

impl Frontier {
    pub(crate) fn new() -> (Self, watch::Receiver<Epoch>) {
        let (sender, receiver) = watch::channel(0);
        (Self(sender), receiver)
    }

    /// Shows Tokio what a worker's probe sees. What any worker sees holds for all of them, so the
    /// furthest one is shown.
    pub(crate) fn publish(&self, probe: &probe::Handle<Epoch>) {
        let seen = probe.with_frontier(|frontier| frontier.first().copied()).unwrap_or(Epoch::MAX);
        self.0.send_if_modified(|shown| {
            let further = seen > *shown;
            if further {
                *shown = seen;
            }
            further
        });
    }
}
