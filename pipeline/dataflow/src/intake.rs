//! Reads the sources into epochs, and commits what became durable.
//!
//! Each source is owned by a task of its own, so that one which fails, hangs or commits slowly stops
//! no other. One intake makes epochs of all they read, and feeds the workers; one committer hands
//! the marks of durable epochs back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metrics::{counter, gauge, histogram};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout};
use tombstream_model::{Disposition, Mark, Polled, Records};

use crate::bridge::{Epoch, Feed, FeedSender, Flag};
use crate::health::Board;
use crate::metric;
use crate::plan::Config;
use crate::port::ErasedSource;
use crate::progress::{Closed, EpochLog};
use crate::retry::{Backoff, chain};

/// What a source's task is told, beside reading.
#[derive(Debug)]
pub(crate) enum Order {
    /// Everything before these marks is durable.
    Commit(Vec<Mark>),
    /// Read this topic no more.
    Pause(Arc<str>),
    /// Nothing more comes: commit what is to be committed, and end.
    Finish,
}

/// What the intake, the committer and health share.
#[derive(Debug)]
pub(crate) struct Ledge {
    log: Mutex<EpochLog>,
    permits: Semaphore,
    permits_max: usize,
}

impl Ledge {
    pub(crate) fn new(in_flight_max: usize) -> Self {
        let permits_max = in_flight_max.min(u32::MAX as usize >> 1).min(Semaphore::MAX_PERMITS);
        Self { log: Mutex::default(), permits: Semaphore::new(permits_max), permits_max }
    }

    pub(crate) fn log(&self) -> MutexGuard<'_, EpochLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.permits_max - self.permits.available_permits()
    }
}

/// The task of one source.
pub(crate) struct Reader {
    pub(crate) place: usize,
    pub(crate) source: Box<dyn ErasedSource>,
    pub(crate) polled: mpsc::Sender<(usize, Polled)>,
    pub(crate) orders: mpsc::UnboundedReceiver<Order>,
    pub(crate) stopping: Flag,
    pub(crate) board: Arc<Board>,
    pub(crate) config: Config,
}

impl Reader {
    /// Reads, commits and pauses until it is told to finish.
    pub(crate) async fn run(self) {
        let Self { place, mut source, polled, mut orders, stopping, board, config } = self;
        let label = place.to_string();
        let (min, max) = (config.source_retry_wait_min, config.source_retry_wait_max);
        let mut polled = Some(polled);
        let mut due: Vec<Mark> = Vec::new();
        let mut reading = Troubled::new(min, max);
        let mut committing = Troubled::new(min, max);
        let (mut reads, mut finishing) = (true, false);
        let mut read: Option<Polled> = None;
        loop {
            if reads && read.is_none() && source.has_ended() {
                tracing::info!(source = place, "the source has ended: everything of it is read");
                reads = false;
            }
            if !reads {
                // What was read and has no room yet is not committed, and so read again.
                (polled, read) = (None, None);
            }
            if !due.is_empty() && committing.may(Instant::now()) {
                // Marks are merged while commits fail, so a commit never falls behind.
                match timeout(config.commit_timeout, source.commit(due.clone())).await {
                    Ok(Ok(())) => {
                        due.clear();
                        committing.ended();
                        counter!(metric::COMMITS, "source" => label.clone()).increment(1);
                        if !reading.is_on() {
                            board.source_works(place);
                        }
                    }
                    failed => {
                        let said = match failed {
                            Ok(Err(error)) => chain(&error),
                            Ok(Ok(())) | Err(_) => {
                                format!("no answer within {:?}", config.commit_timeout)
                            }
                        };
                        counter!(metric::SOURCE_ERRORS, "source" => label.clone()).increment(1);
                        tracing::warn!(source = place, error = said, "commit failed");
                        committing.began();
                        board.source_failed(place, false, format!("commit: {said}"));
                    }
                }
            }
            if finishing && due.is_empty() {
                source.close().await;
                return;
            }
            let waits = read.is_some();
            let read_next = async {
                reading.wait().await;
                source.next().await
            };
            // Room is taken only for what was read: one source's wait must not take another's room.
            let room = async {
                match &polled {
                    Some(polled) => polled.reserve().await.ok(),
                    None => None,
                }
            };
            tokio::select! {
                biased;
                order = orders.recv(), if !finishing => match order {
                    Some(Order::Commit(marks)) => merge(&mut due, marks),
                    Some(Order::Pause(topic)) => {
                        if let Err(error) = source.pause(&topic) {
                            let error = chain(&error);
                            tracing::error!(source = place, topic = &*topic, error, "not paused");
                        }
                    }
                    Some(Order::Finish) | None => {
                        finishing = true;
                        reads = false;
                    }
                },
                () = stopping.up(), if reads => reads = false,
                () = committing.wait(), if !due.is_empty() => {}
                room = room, if waits => match (room, read.take()) {
                    (Some(room), Some(read)) => room.send((place, read)),
                    _ => reads = false,
                },
                next = read_next, if reads && !waits => match next {
                    Ok(polled) => {
                        if reading.is_on() {
                            tracing::info!(source = place, "the source can be read again");
                            reading.ended();
                            board.source_works(place);
                        }
                        read = Some(polled);
                    }
                    Err(error) => {
                        let halted = error.disposition() != Disposition::Retry;
                        let said = chain(&error);
                        counter!(metric::SOURCE_ERRORS, "source" => label.clone()).increment(1);
                        tracing::warn!(source = place, halted, error = said, "source failed");
                        board.source_failed(place, halted, said);
                        reading.began();
                        reads = !halted;
                    }
                },
            }
        }
    }
}

/// Adds marks to those that wait: the newer one of a partition stands, and the older goes.
fn merge(due: &mut Vec<Mark>, marks: Vec<Mark>) {
    for mark in marks {
        let same = |it: &Mark| it.topic == mark.topic && it.partition == mark.partition;
        due.retain(|it| !same(it));
        due.push(mark);
    }
}

/// Something that fails, and when to try it again.
struct Troubled {
    min: Duration,
    max: Duration,
    backoff: Option<Backoff>,
    again: Option<Instant>,
}

impl Troubled {
    fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, backoff: None, again: None }
    }

    fn is_on(&self) -> bool {
        self.backoff.is_some()
    }

    fn began(&mut self) {
        let backoff = self.backoff.get_or_insert_with(|| Backoff::new(self.min, self.max));
        self.again = Some(Instant::now() + backoff.next());
    }

    fn ended(&mut self) {
        self.backoff = None;
        self.again = None;
    }

    fn may(&self, now: Instant) -> bool {
        self.again.is_none_or(|at| at <= now)
    }

    async fn wait(&self) {
        if let Some(at) = self.again {
            sleep_until(at.into()).await;
        }
    }
}

/// Makes epochs of what all sources read, and feeds the workers.
pub(crate) struct Intake {
    pub(crate) polled: mpsc::Receiver<(usize, Polled)>,
    pub(crate) feeds: Vec<FeedSender>,
    pub(crate) ledge: Arc<Ledge>,
    pub(crate) stopping: Flag,
    pub(crate) epoch_wait: Duration,
    pub(crate) epoch_items_max: usize,
    pub(crate) reading: Reading,
}

/// The epoch that is being read.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    epoch: Epoch,
    opened: Option<Instant>,
    items: usize,
    marks: BTreeMap<usize, Vec<Mark>>,
    turn: usize,
}

/// Why the intake ends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was told to, or every source has ended.
    Stopped,
    /// A worker takes no more.
    Worker,
}

impl Intake {
    /// Reads until it is told to stop.
    pub(crate) async fn run(mut self) -> Ended {
        let ended = loop {
            let closes = self.reading.opened.and_then(|at| at.checked_add(self.epoch_wait));
            let close = async {
                match closes {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let stopping = self.stopping.clone();
            let went = tokio::select! {
                biased;
                () = stopping.up() => break Ended::Stopped,
                () = close => self.close().await,
                polled = self.polled.recv() => match polled {
                    Some((source, polled)) => self.take(source, polled).await,
                    // Every source has ended or needs a person. What was read becomes durable.
                    None => break Ended::Stopped,
                },
            };
            if let Err(ended) = went {
                break ended;
            }
        };
        // What was read is on its way; its marks may be committed when it is durable.
        match self.close().await {
            Ok(()) => ended,
            Err(closed) => closed,
        }
    }

    /// Feeds what a source read, in pieces that the permits can hold.
    async fn take(&mut self, source: usize, polled: Polled) -> Result<(), Ended> {
        let piece_max = self.epoch_items_max.min(self.ledge.permits_max);
        for piece in pieces(polled.records, piece_max) {
            if self.reading.items + piece.len() > self.epoch_items_max {
                self.close().await?;
            }
            self.permit(piece.len()).await?;
            self.open();
            self.reading.items += piece.len();
            self.feed(source, piece).await?;
        }
        // They belong to the last piece: before it, not everything that they stand for was fed.
        if !polled.marks.is_empty() {
            self.open();
            self.reading.marks.entry(source).or_default().extend(polled.marks);
        }
        Ok(())
    }

    /// Takes the permits of so many records.
    ///
    /// An epoch is closed before its source waits for permits: they come back only when epochs are
    /// durable, and an open one never is.
    async fn permit(&mut self, count: usize) -> Result<(), Ended> {
        let count = u32::try_from(count).expect("a piece is not larger than all permits");
        let ledge = Arc::clone(&self.ledge);
        if let Ok(permits) = ledge.permits.try_acquire_many(count) {
            permits.forget();
            return Ok(());
        }
        self.close().await?;
        tokio::select! {
            biased;
            () = self.stopping.up() => Err(Ended::Stopped),
            permits = ledge.permits.acquire_many(count) => {
                permits.expect("the semaphore is never closed").forget();
                Ok(())
            }
        }
    }

    fn open(&mut self) {
        if self.reading.opened.is_none() {
            let now = Instant::now();
            self.reading.opened = Some(now);
            self.ledge.log().open(self.reading.epoch, now);
        }
    }

    /// Deals records out to the workers in turn: few go to one, many to all.
    async fn feed(&mut self, source: usize, records: Records) -> Result<(), Ended> {
        const SMALL: usize = 64;
        let share = records.len().div_ceil(self.feeds.len()).max(SMALL);
        for records in pieces(records, share) {
            let worker = self.reading.turn % self.feeds.len();
            self.reading.turn = worker + 1;
            let fed = self.feeds[worker].send(Feed::Records { source, records }).await;
            fed.map_err(|_| Ended::Worker)?;
        }
        Ok(())
    }

    /// Ends the epoch that is being read, if anything was, and tells every worker.
    async fn close(&mut self) -> Result<(), Ended> {
        let Some(opened) = self.reading.opened.take() else { return Ok(()) };
        // Logged before any worker goes on: the frontier must not pass what the log doesn't know.
        self.ledge.log().close(Closed {
            epoch: self.reading.epoch,
            opened,
            permits: std::mem::take(&mut self.reading.items),
            marks: std::mem::take(&mut self.reading.marks),
        });
        self.reading.epoch += 1;
        for feed in &self.feeds {
            feed.send(Feed::Advance(self.reading.epoch)).await.map_err(|_| Ended::Worker)?;
        }
        Ok(())
    }
}

/// The records in pieces of at most `max`, in their order. No records, no pieces.
fn pieces(records: Records, max: usize) -> impl Iterator<Item = Records> {
    let mut rest = Some(records);
    std::iter::from_fn(move || {
        let mut piece = rest.take().filter(|records| !records.is_empty())?;
        if piece.len() > max {
            rest = Some(match &mut piece {
                Records::Events(all) => Records::Events(all.split_off(max)),
                Records::Rows(all) => Records::Rows(all.split_off(max)),
                Records::Redriven(all) => Records::Redriven(all.split_off(max)),
                Records::Candidates(all) => Records::Candidates(all.split_off(max)),
                Records::Open(all) => Records::Open(all.split_off(max)),
            });
        }
        Some(piece)
    })
}

/// Commits what is behind the frontier, in order, and gives its permits back.
pub(crate) struct Committer {
    pub(crate) frontier: watch::Receiver<Epoch>,
    pub(crate) ledge: Arc<Ledge>,
    pub(crate) orders: Vec<mpsc::UnboundedSender<Order>>,
    pub(crate) ended: Flag,
}

impl Committer {
    /// Commits until nothing more can become durable; then the sources may finish.
    pub(crate) async fn run(mut self) {
        // For the gauges alone.
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ended = self.ended.clone();
        loop {
            let frontier = *self.frontier.borrow_and_update();
            self.commit(frontier);
            if frontier == Epoch::MAX || ended.is_up() {
                break;
            }
            tokio::select! {
                () = ended.up() => {}
                changed = self.frontier.changed() => if changed.is_err() { break },
                _ = tick.tick() => self.measure(),
            }
        }
        self.measure();
        self.orders.iter().for_each(|orders| tell(orders, Order::Finish));
    }

    /// Invariant (S7): positions are committed only behind the probe's frontier;
    /// `tests/flow/commit.rs`.
    fn commit(&self, frontier: Epoch) {
        let durable = self.ledge.log().durable(frontier);
        for Closed { permits, marks, opened, .. } in durable {
            self.ledge.permits.add_permits(permits);
            histogram!(metric::EPOCH_SECONDS).record(opened.elapsed().as_secs_f64());
            for (source, marks) in marks {
                if let Some(orders) = self.orders.get(source) {
                    tell(orders, Order::Commit(marks));
                }
            }
        }
    }

    fn measure(&self) {
        let age = self.ledge.log().oldest(Instant::now()).map(|(_, age)| age);
        gauge!(metric::EPOCH_AGE).set(age.unwrap_or_default().as_secs_f64());
        gauge!(metric::IN_FLIGHT).set(self.ledge.in_flight() as f64);
    }
}

fn tell(orders: &mpsc::UnboundedSender<Order>, order: Order) {
    if orders.send(order).is_err() {
        tracing::warn!("a source has ended, what it read is read again by the next process");
    }
}
