//! A pipeline at work: starting it, asking how it is, stopping it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use timely::dataflow::operators::probe;
use timely::worker::Worker;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::timeout;
use tombstream_model::Ledger;
use tombstream_model::decode::Decoder;

use crate::assemble;
use crate::bridge::{Epoch, FeedReceiver, Flag, Frontier, Runtime, Waker, feed};
use crate::flow::Flow;
use crate::health::{Board, Health};
use crate::intake::{Committer, Ended, Intake, Ledge, Reader, Reading};
use crate::layers::Keeper;
use crate::plan::{Pipeline, StartError};
use crate::port::ErasedSource;
use crate::topic::Topics;

/// A pipeline at work. Dropping it ends the workers at once, and waits for nothing.
#[derive(Debug)]
pub struct Running {
    board: Arc<Board>,
    ledge: Arc<Ledge>,
    stop: watch::Sender<bool>,
    /// The sources that still read or have to commit.
    left: watch::Receiver<usize>,
    end: End,
    commit_timeout: Duration,
    tasks: Vec<JoinHandle<()>>,
    threads: Option<oneshot::Receiver<Result<(), String>>>,
}

/// Ends everything at once.
#[derive(Clone, Debug)]
struct End {
    flag: Arc<watch::Sender<bool>>,
    wakers: Vec<Waker>,
}

impl End {
    fn now(&self) {
        self.flag.send_replace(true);
        self.wakers.iter().for_each(Waker::wake);
    }
}

/// How a pipeline ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Whether everything that was read is durable and committed.
    pub drained: bool,
    /// Epochs that were not durable: they are read again by the next process.
    pub epochs_open: usize,
}

/// What must not happen to a pipeline.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A worker or the intake ended by itself.
    #[error("the pipeline broke: {0}")]
    Broken(String),
}

/// Why not everything was read that the sources have, though none of them reads any more.
#[derive(Debug, thiserror::Error)]
pub enum Unfinished {
    /// The pipeline broke.
    #[error("the pipeline broke: {0}")]
    Broken(String),
    /// Sources that need a person, by their place, with what they said.
    #[error("{}", said(.0))]
    Halted(Vec<(usize, String)>),
}

fn said(halted: &[(usize, String)]) -> String {
    let each = halted.iter().map(|(_, said)| said.as_str());
    format!("not everything could be read: {}", each.collect::<Vec<_>>().join("; "))
}

impl<L: Ledger> Pipeline<L> {
    /// Starts the workers' threads, and the pipeline's tasks on `handle`.
    pub fn start(self, handle: Handle) -> Result<Running, StartError> {
        self.check()?;
        let Self { config, relations, ledger, stores, sources } = self;
        let board = Arc::new(Board::default());
        let ledge = Arc::new(Ledge::new(config.in_flight_max));
        let (stop, stopping) = Flag::new();
        let (end, ended) = Flag::new();
        let (frontier, durable) = Frontier::new();
        let (feeds, receivers): (Vec<_>, Vec<_>) =
            (0..config.workers).map(|_| feed(ended.clone())).unzip();
        let wakers = feeds.iter().map(|feed| feed.waker()).collect();
        let end = End { flag: Arc::new(end), wakers };

        let (polled_to, polled) = mpsc::channel(1);
        let (orders_to, readers) = readers(sources, &polled_to, &stopping, &board, &config);
        drop(polled_to);

        let flow = Flow {
            runtime: Runtime { handle: handle.clone(), ended: ended.clone() },
            decoder: Decoder::new(&relations),
            topics: Arc::new(Topics::new(orders_to.clone(), Arc::clone(&board))),
            keepers: stores
                .iter()
                .map(|store| Arc::new(Keeper::new(store, Arc::clone(&board))))
                .collect(),
            stores,
            relations,
            ledger,
            config: config.clone(),
            board: Arc::clone(&board),
        };
        let threads = work(flow, receivers, frontier, &ended, &end)?;

        let committer = Committer {
            frontier: durable,
            ledge: Arc::clone(&ledge),
            orders: orders_to,
            ended: ended.clone(),
        };
        let intake = Intake {
            polled,
            feeds,
            ledge: Arc::clone(&ledge),
            stopping,
            epoch_wait: config.epoch_wait,
            epoch_items_max: config.epoch_items_max,
            reading: Reading::default(),
        };
        let mut tasks = Vec::new();
        let (left_to, left) = watch::channel(readers.len());
        for (place, reader) in readers.into_iter().enumerate() {
            let fuse = Fuse::new(format!("the task of source {place}"), &board, &end);
            let left_to = left_to.clone();
            tasks.push(handle.spawn(async move {
                reader.run().await;
                fuse.safe();
                left_to.send_modify(|left| *left -= 1);
            }));
        }
        let fuse = Fuse::new("the committer".to_owned(), &board, &end);
        tasks.push(handle.spawn(async move {
            committer.run().await;
            fuse.safe();
        }));
        let fuse = Fuse::new("the intake".to_owned(), &board, &end);
        tasks.push(handle.spawn(async move {
            match intake.run().await {
                Ended::Stopped => fuse.safe(),
                Ended::Worker if ended.is_up() => fuse.safe(),
                Ended::Worker => drop(fuse),
            }
        }));
        let commit_timeout = config.commit_timeout;
        let threads = Some(threads);
        Ok(Running { board, ledge, stop, left, end, commit_timeout, tasks, threads })
    }
}

/// The sources' tasks, not started yet, and the way to give each its orders.
fn readers(
    sources: Vec<Box<dyn ErasedSource>>,
    polled: &mpsc::Sender<(usize, tombstream_model::Polled)>,
    stopping: &Flag,
    board: &Arc<Board>,
    config: &crate::plan::Config,
) -> (Vec<mpsc::UnboundedSender<crate::intake::Order>>, Vec<Reader>) {
    let reader = |(place, source)| {
        let (orders_to, orders) = mpsc::unbounded_channel();
        let reader = Reader {
            place,
            source,
            polled: polled.clone(),
            orders,
            stopping: stopping.clone(),
            board: Arc::clone(board),
            config: config.clone(),
        };
        (orders_to, reader)
    };
    sources.into_iter().enumerate().map(reader).unzip()
}

/// Starts the workers' threads. What comes back says how they ended.
fn work<L: Ledger>(
    flow: Flow<L>,
    feeds: Vec<FeedReceiver>,
    frontier: Frontier,
    ended: &Flag,
    end: &End,
) -> Result<oneshot::Receiver<Result<(), String>>, StartError> {
    let workers = feeds.len();
    let feeds: Vec<_> = feeds.into_iter().map(|feed| Mutex::new(Some(feed))).collect();
    let (board, ended, end) = (Arc::clone(&flow.board), ended.clone(), end.clone());
    let run = move |worker: &mut Worker| {
        let fuse = Fuse::new(format!("worker {}", worker.index()), &flow.board, &end);
        let feed = feeds[worker.index()].lock().unwrap_or_else(PoisonError::into_inner).take();
        let feed = feed.expect("each worker runs once");
        let probe = worker.dataflow(|scope| assemble(scope, feed, &flow));
        step(worker, &probe, &frontier, &ended);
        fuse.safe();
    };
    let guards = timely::execute(timely::Config::process(workers), run);
    let guards = guards.map_err(StartError::Workers)?;
    let (done, threads) = oneshot::channel();
    // Joining blocks, and must not be left to whoever drops the guards.
    let join = move || {
        let result = guards.join().into_iter().collect::<Result<Vec<()>, String>>().map(drop);
        if let Err(error) = &result {
            board.broken(error);
        }
        if done.send(result).is_err() {
            tracing::trace!("nobody waits for the workers");
        }
    };
    let joiner = std::thread::Builder::new().name("timely:join".to_owned()).spawn(join);
    joiner.map(drop).map_err(|error| StartError::Workers(error.to_string()))?;
    Ok(threads)
}

/// Steps a worker until its dataflow is finished, or it is told to end. It parks when there is
/// nothing to do.
fn step(worker: &mut Worker, probe: &probe::Handle<Epoch>, frontier: &Frontier, ended: &Flag) {
    while !ended.is_up() {
        let more = worker.step_or_park(None);
        frontier.publish(probe);
        if !more {
            return;
        }
    }
    for dataflow in worker.installed_dataflows() {
        worker.drop_dataflow(dataflow);
    }
}

/// Says that the pipeline is broken, and ends it, unless it is made safe before it is dropped.
struct Fuse {
    part: String,
    board: Arc<Board>,
    end: End,
    safe: bool,
}

impl Fuse {
    fn new(part: String, board: &Arc<Board>, end: &End) -> Self {
        Self { part, board: Arc::clone(board), end: end.clone(), safe: false }
    }

    fn safe(mut self) {
        self.safe = true;
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        // An ended pipeline's tasks may be dropped with their runtime.
        if !self.safe && !*self.end.flag.borrow() {
            let said = format!("{} ended by itself", self.part);
            tracing::error!(said, "the pipeline broke");
            self.board.broken(&said);
            self.end.now();
        }
    }
}

impl Running {
    /// How the pipeline is.
    pub fn health(&self) -> Health {
        Health {
            oldest_epoch: self.ledge.log().oldest(Instant::now()),
            in_flight: self.ledge.in_flight(),
            ..self.board.health()
        }
    }

    /// Waits until the pipeline breaks, which it never should. Dropping the future is harmless.
    pub async fn broken(&self) -> RunError {
        RunError::Broken(self.board.until_broken().await)
    }

    /// Waits until every source has ended, and what they read is durable and committed. A source that
    /// needs a person ends too, with an error when all others have. Dropping the future is harmless.
    ///
    /// Most sources follow a log for ever: then this never comes.
    pub async fn finished(&self) -> Result<(), Unfinished> {
        let mut left = self.left.clone();
        tokio::select! {
            biased;
            broken = self.board.until_broken() => return Err(Unfinished::Broken(broken)),
            none = left.wait_for(|left| *left == 0) => if none.is_err() {
                tracing::trace!("the sources' tasks are gone");
            },
        }
        let health = self.board.health();
        let halted = health.sources.into_iter().filter(|(_, source)| source.halted);
        let halted: Vec<_> = halted.map(|(place, source)| (place, source.said)).collect();
        if halted.is_empty() { Ok(()) } else { Err(Unfinished::Halted(halted)) }
    }

    /// Stops reading, waits up to `drain` until what was read is durable, commits that, and ends the
    /// workers. What is not durable by then is not committed.
    pub async fn stop(mut self, drain: Duration) -> Result<Stopped, RunError> {
        self.stop.send_replace(true);
        let aborts: Vec<_> = self.tasks.iter().map(JoinHandle::abort_handle).collect();
        let mut tasks = futures::future::join_all(self.tasks.drain(..));
        let mut drained = timeout(drain, &mut tasks).await.is_ok();
        self.end.now();
        if !drained {
            // What became durable in time has been handed to the sources; they may finish that.
            let grace = self.commit_timeout.min(Duration::from_secs(2));
            if timeout(grace, &mut tasks).await.is_err() {
                tracing::warn!("a source did not commit in time");
                aborts.iter().for_each(AbortHandle::abort);
            }
        }
        if let Some(threads) = self.threads.take()
            && threads.await.is_err()
        {
            tracing::warn!("the workers' end was not seen");
        }
        let epochs_open = self.ledge.log().len();
        drained &= epochs_open == 0;
        match self.board.health().broken {
            Some(said) => Err(RunError::Broken(said)),
            None => Ok(Stopped { drained, epochs_open }),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        self.end.now();
    }
}
