//! Reading one partition, over one connection, until that fails or reading ends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fluvio::FluvioClusterConfig;
use fluvio_spu_schema::server::stream_fetch::DefaultStreamFetchResponse;
use futures::StreamExt;
use tombstream_model::Event;
use tracing::{debug, info};

use super::fault::Fault;
use super::records::{Fetched, decode};
use super::shared::{Shared, count_commit};
use super::spu::{Address, Answers, Spu};
use crate::log::Start;

/// Most bytes of one answer, to begin with. A batch that is larger does not come at all, so it grows.
const BYTES_MAX: i32 = 1 << 20;
/// Where that ends: an SPU takes no request of more than 32 MiB, unless it is set up to.
const BYTES_MAX_MAX: i32 = 128 << 20;
/// How long an end of the log before our place is not believed: a new leader's is behind what the one
/// before it had confirmed, until its followers have spoken.
const END_WAIT: Duration = Duration::from_secs(10);
/// How often it is asked meanwhile.
const END_AGAIN: Duration = Duration::from_millis(500);
/// How often a partition that brings nothing is asked whether it is still there.
const IDLE: Duration = Duration::from_secs(10);

/// Which partition, for whom, and what was found out before.
#[derive(Clone)]
pub(super) struct Task {
    pub(super) shared: Arc<Shared>,
    pub(super) cluster: Arc<FluvioClusterConfig>,
    pub(super) consumer: String,
    pub(super) topic: Arc<str>,
    pub(super) partition: u32,
    pub(super) number: i32,
    pub(super) leader: Address,
    /// What the consumer committed; looked up for a partition that was not read before.
    pub(super) committed: Option<i64>,
}

/// How reading a partition ended, when nothing failed.
pub(super) enum End {
    /// Reading ends as a whole.
    Stopped,
    /// The stream is to be opened anew, at once.
    Again,
}

struct Open {
    task: Task,
    spu: Spu,
    answers: Answers,
    /// What the SPU calls the stream; known with its first answer.
    session: Option<u32>,
    assignment: u64,
    /// What is read next.
    next: i64,
    /// What the log had when that was last heard: its first offset, and the one after its last.
    range: (i64, i64),
    /// What was read and has no room yet.
    pending: VecDeque<Event>,
    /// What is acknowledged once nothing is pending.
    owed: Option<i64>,
    bytes_max: i32,
}

/// Reads the partition. It ends with an error that says why it can't go on.
pub(super) async fn read(task: Task) -> Result<(), Fault> {
    let mut bytes_max = BYTES_MAX;
    loop {
        let mut open = Open::new(task.clone(), bytes_max).await?;
        match open.run().await? {
            End::Stopped => return Ok(()),
            End::Again => bytes_max = open.bytes_max,
        }
    }
}

impl Task {
    fn what(&self) -> String {
        format!("partition {} of {} at {}", self.number, self.topic, self.leader.endpoint)
    }

    /// What the log has.
    async fn range(&self, spu: &Spu) -> Result<(i64, i64), Fault> {
        let known = self.shared.lock().assignments.position(&self.topic, self.number);
        let place = known.map_or(self.committed, |(_, next)| next);
        let until = Instant::now() + END_WAIT;
        loop {
            let range = spu.range(&self.topic, self.partition).await?;
            let is_behind = place.is_some_and(|place| range.1 < place);
            if !is_behind || Instant::now() > until || self.shared.is_stopping() {
                return Ok(range);
            }
            tokio::time::sleep(END_AGAIN).await;
        }
    }

    /// Where reading goes on, or begins; a place that the log no longer has is reported.
    fn start(&self, low: i64, high: i64) -> (u64, i64) {
        let mut state = self.shared.lock();
        let known = state.assignments.position(&self.topic, self.number);
        let (start, kept) = match known {
            None => (Start::decide(self.committed, low, high), None),
            Some((number, None)) => (Start::Beginning, Some(number)),
            // Nobody else reads for this consumer: what was read and not committed stays ours.
            Some((number, Some(next))) => match Start::decide(Some(next), low, high) {
                start @ Start::OutOfRange { .. } => (start, None),
                start => (start, Some(number)),
            },
        };
        let assignment =
            kept.unwrap_or_else(|| state.assignments.assign(&self.topic, self.number, start));
        drop(state);
        let next = match start {
            Start::Committed(next) => next,
            Start::Beginning | Start::OutOfRange { .. } => low,
        };
        info!(topic = %self.topic, partition = self.number, assignment, start = ?start, "reading");
        self.shared.report(&self.topic, self.number, start);
        self.shared.set_lag(&self.topic, self.number, low, high);
        (assignment, next)
    }
}

impl Open {
    async fn new(task: Task, bytes_max: i32) -> Result<Self, Fault> {
        let spu = Spu::connect(&task.cluster, &task.leader).await?;
        let range @ (low, high) = task.range(&spu).await?;
        let (assignment, next) = task.start(low, high);
        // One earlier: an answer comes at once, and names the stream, which commits need. Else
        // what was read over a connection that broke could not be committed before something new.
        let from = if next > low { next - 1 } else { next };
        let answers =
            spu.stream(&task.topic, task.partition, from, bytes_max, &task.consumer).await?;
        Ok(Self {
            task,
            spu,
            answers,
            session: None,
            assignment,
            next,
            range,
            pending: VecDeque::new(),
            owed: None,
            bytes_max,
        })
    }

    async fn run(&mut self) -> Result<End, Fault> {
        let shared = Arc::clone(&self.task.shared);
        let mut stop = shared.stop.subscribe();
        loop {
            // Made before the looks below, so that no call falls between.
            let (due, room) = (shared.due.notified(), shared.room.notified());
            // Looked at before the commit: what was handed in until reading ends is part of it.
            let stopping = shared.is_stopping();
            self.commit().await?;
            if stopping {
                return Ok(End::Stopped);
            }
            self.pass_on();
            if self.pending.is_empty()
                && let (Some(next), Some(session)) = (self.owed.take(), self.session)
            {
                self.spu.acknowledge(session, next).await?;
            }
            let paused = shared.lock().paused.contains(&*self.task.topic);
            tokio::select! {
                _ = stop.changed() => {}
                () = due => {}
                () = room, if !self.pending.is_empty() => {}
                answer = self.answers.next(),
                    if self.pending.is_empty() && (!paused || self.session.is_none()) => {
                    match answer {
                        Some(Ok(answer)) => {
                            if let Some(end) = self.take(answer)? {
                                return Ok(end);
                            }
                        }
                        Some(Err(error)) => return Err(Fault::connection(self.task.what(), error)),
                        None => return Err(Fault::broken(self.task.what(), "the stream ended")),
                    }
                }
                () = tokio::time::sleep(IDLE) => {
                    self.range = self.spu.range(&self.task.topic, self.task.partition).await?;
                    self.set_lag();
                }
            }
        }
    }

    /// Takes an answer in.
    fn take(&mut self, answer: DefaultStreamFetchResponse) -> Result<Option<End>, Fault> {
        let Task { topic, partition, number, shared, .. } = &self.task;
        let found = answer.partition;
        // The log has moved on under the stream, or the leader changed: all of it is looked up anew.
        Fault::check(found.error_code, || self.task.what())?;
        self.session = Some(answer.stream_id);
        self.range = (found.log_start_offset, found.high_watermark);
        let fetched = decode(topic, *partition, self.next, &found.records)
            .map_err(|why| Fault::broken(self.task.what(), why))?;
        let Fetched { events, hole, next: Some(next) } = fetched else {
            return self.grow().map(Some);
        };
        if let Some(low) = hole {
            let high = found.high_watermark;
            let start = Start::OutOfRange { committed: self.next, low, high };
            self.assignment = shared.lock().assignments.assign(topic, *number, start);
            shared.report(topic, *number, start);
        }
        self.pending.extend(events);
        self.next = next;
        self.owed = Some(next);
        self.set_lag();
        Ok(None)
    }

    fn set_lag(&self) {
        let (low, high) = self.range;
        self.task.shared.set_lag(&self.task.topic, self.task.number, low, high);
    }

    /// An answer without a whole batch: the next one is larger than an answer may be.
    fn grow(&mut self) -> Result<End, Fault> {
        if self.bytes_max >= BYTES_MAX_MAX {
            let why =
                format!("a batch at offset {} is larger than {BYTES_MAX_MAX} bytes", self.next);
            return Err(Fault::broken(self.task.what(), why));
        }
        self.bytes_max *= 2;
        debug!(bytes_max = self.bytes_max, "a batch did not fit into an answer: asking for more");
        Ok(End::Again)
    }

    /// Hands over what there is room for.
    fn pass_on(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let Task { topic, number, shared, .. } = &self.task;
        let mut state = shared.lock();
        while !state.buffer.is_full()
            && let Some(event) = self.pending.pop_front()
        {
            state.assignments.read(topic, *number, event.origin.offset);
            // What is left of a topic that was paused meanwhile is not for this process.
            if !state.paused.contains(&**topic) {
                state.buffer.push(event, self.assignment);
            }
        }
        state.buffer.publish();
        drop(state);
        shared.readable.notify_one();
    }

    /// Commits what is due.
    async fn commit(&mut self) -> Result<(), Fault> {
        let Some(session) = self.session else { return Ok(()) };
        let Task { topic, number, shared, .. } = &self.task;
        let Some(due) = shared.lock().assignments.due_of(topic, *number) else { return Ok(()) };
        match self.spu.commit(session, due.next).await {
            Ok(()) => {
                count_commit("done");
                shared.lock().assignments.committed(&due);
                shared.answered.notify_one();
                self.set_lag();
                Ok(())
            }
            Err(fault) => {
                count_commit("again");
                Err(fault)
            }
        }
    }
}
