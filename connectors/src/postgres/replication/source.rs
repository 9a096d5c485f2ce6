//! The port: rows of the log, transaction by transaction.
//!
//! Rows are handed on at the end of their transaction, several small ones together; a large one in
//! pieces, whose marks come with its end. The server keeps what is not confirmed: a transaction that
//! was read half is told again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::super::statement::whole;
use bytes::Bytes;
use futures::FutureExt as _;
use metrics::{counter, gauge};
use pgwire_replication::{PgWireError, ReplicationEvent};
use sqlx::PgPool;
use tokio::time::{Instant, sleep_until};
use tombstream_model::wal::{RowMessage, WalError, WalRow, WalTable, WalTransaction};
use tombstream_model::{
    Generation, Lsn, Mark, Origin, Polled, Records, Relation, Source, SourceError,
};
use tracing::{info, warn};

use super::config::{ReplicationConfig, ReplicationConfigError};
use super::seen::{Snapshot, seen};
use super::session::{Session, unavailable};
use super::slot::{self, Gap};
use super::watch::{HEARTBEAT, Watch};
use crate::postgres::statement::BEGIN;

/// How long the session may end in.
const CLOSE_WAIT: Duration = Duration::from_secs(2);
/// Beyond some heartbeats, how long a session may be silent: a server that decodes a long transaction
/// says nothing else, but keeps the session alive each half of `wal_sender_timeout` (60 s by default).
const SILENCE: Duration = Duration::from_secs(60);

/// Which tables' rows are handed on.
#[derive(Clone, Debug)]
pub enum Scope {
    /// Those of these relations.
    Relations(Arc<[Relation]>),
    /// All that are published.
    Published,
}

/// Rows straight from the write-ahead log.
pub struct PostgresSource {
    config: ReplicationConfig,
    pool: PgPool,
    scope: Scope,
    on_gap: Box<dyn Fn(&Gap) + Send + Sync>,
    /// The mark of a session that ended counts no more.
    assignment: u64,
    paused: HashSet<String>,
    stream: Option<Stream>,
}

/// A session that streams, and what was read of it.
struct Stream {
    session: Session,
    slot: Arc<str>,
    tables: HashMap<u32, Known>,
    transaction: Option<Arc<WalTransaction>>,
    rows: Vec<WalRow>,
    bytes: usize,
    /// The last row's place, and how many rows before it have the same.
    last: (i64, i32),
    /// Whose commits a claim sees.
    seen: Snapshot,
    /// Everything before this was read.
    read: Lsn,
    /// The mark that was handed out last, and when.
    marked: (Lsn, Instant),
    /// Everything before the first is durable; the second was said to the server.
    durable: Lsn,
    acknowledged: (Lsn, Instant),
    watch: Option<Watch>,
    ended: bool,
}

/// A table that the log has described.
#[derive(Clone)]
struct Known {
    table: Arc<WalTable>,
    /// None where nobody wants its rows.
    topic: Option<Arc<str>>,
}

impl PostgresSource {
    /// Reads the slot of `config`. The ledger is in `pool`'s database. Sends nothing yet.
    ///
    /// `on_gap` hears of events that the slot will not tell. It must not block.
    pub fn new(
        config: ReplicationConfig,
        pool: PgPool,
        scope: Scope,
        on_gap: impl Fn(&Gap) + Send + Sync + 'static,
    ) -> Result<Self, ReplicationConfigError> {
        config.validate()?;
        let on_gap = Box::new(on_gap);
        let paused = HashSet::new();
        Ok(Self { config, pool, scope, on_gap, assignment: 0, paused, stream: None })
    }

    /// Opens the session without streaming yet. With `config.snapshot`, and if the slot was made just
    /// now, gives the name of a snapshot of the moment from which on everything will come: what is in
    /// it is the caller's to read ([`read_snapshot`](super::read_snapshot)). It ends with the next call
    /// of [`Source::next`]; until [`Self::complete`] the slot counts as not begun.
    pub async fn open(&mut self) -> Result<Option<String>, SourceError> {
        let session = Session::open(&self.config, &self.pool).await?;
        if let Some(gap) = &session.gap {
            counter!("tombstream_gaps_total", "source" => "postgres", "reason" => gap.reason.code())
                .increment(1);
            (self.on_gap)(gap);
        }
        let snapshot = session.snapshot.clone();
        self.assignment += 1;
        self.stream = Some(Stream::new(session, &self.config));
        Ok(snapshot)
    }

    /// Writes down that everything of the snapshot is durable.
    pub async fn complete(&mut self) -> Result<(), SourceError> {
        let Some((generation, _)) = self.start() else { return Ok(()) };
        let failed = |error: sqlx::Error| SourceError::Unavailable(Box::new(error));
        let mut transaction = whole(&self.pool, BEGIN).await.map_err(failed)?;
        slot::complete(&mut transaction, &self.config.slot, generation).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)
    }

    /// Whether a session is open; after an error there is none.
    pub fn is_open(&self) -> bool {
        self.stream.is_some()
    }

    /// Where the stream begins, once it is open.
    pub fn start(&self) -> Option<(Generation, Lsn)> {
        let session = &self.stream.as_ref()?.session;
        Some((session.generation, session.start))
    }

    async fn begin(&mut self) -> Result<(), SourceError> {
        if self.stream.is_none() {
            self.open().await?;
        }
        let Some(stream) = &mut self.stream else { return Ok(()) };
        if stream.watch.is_none() {
            stream.session.begin().await?;
            let (slot, at) = (&self.config.slot, stream.session.start);
            info!(slot, %at, generation = stream.session.generation.0, "reading the log");
            stream.watch = Some(Watch::start(&self.config, &self.pool, &self.scope));
        }
        Ok(())
    }

    /// Reads until something can be handed on.
    async fn poll(&mut self) -> Result<Polled, SourceError> {
        self.begin().await?;
        let Self { config, pool, scope, paused, assignment, stream, .. } = self;
        let stream = stream.as_mut().expect("it was begun");
        loop {
            if stream.ended || stream.is_full(config) {
                // Nothing was taken yet: a wait that is given up loses nothing.
                stream.seen(pool).await?;
                return Ok(stream.take(*assignment));
            }
            let silence = match config.heartbeat {
                Duration::ZERO => None,
                heartbeat => Some(Instant::now() + heartbeat * 3 + SILENCE),
            };
            let until = |at: Option<Instant>| async move {
                match at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let acknowledges = stream.acknowledges_at(config);
            let marks = stream.marks_at(config);
            tokio::select! {
                biased;
                () = until(acknowledges) => stream.acknowledge(pool).await?,
                event = stream.session.client.recv() => {
                    let mut event = event;
                    loop {
                        stream.hear(event, config, scope, paused)?;
                        if stream.is_full(config) {
                            break;
                        }
                        // What is there already goes along.
                        match stream.session.client.recv().now_or_never() {
                            Some(next) => event = next,
                            None => break,
                        }
                    }
                    stream.reached_end();
                }
                () = until(marks) => stream.ended = true,
                () = until(silence) => {
                    let said = "the session is silent, also of our own heartbeats: opened anew";
                    return Err(SourceError::Unavailable(said.into()));
                }
            }
        }
    }
}

impl Stream {
    fn new(session: Session, config: &ReplicationConfig) -> Self {
        let (start, now) = (session.start, Instant::now());
        Self {
            session,
            slot: config.slot.as_str().into(),
            tables: HashMap::new(),
            transaction: None,
            rows: Vec::new(),
            bytes: 0,
            last: (0, 0),
            seen: Snapshot::default(),
            read: start,
            marked: (start, now),
            durable: start,
            acknowledged: (start, now),
            watch: None,
            ended: false,
        }
    }

    fn is_full(&self, config: &ReplicationConfig) -> bool {
        self.rows.len() >= config.items_max.get() || self.bytes >= config.bytes_max.get()
    }

    /// Nothing more is there now: rows of transactions that have ended can go.
    fn reached_end(&mut self) {
        self.ended |= self.transaction.is_none() && !self.rows.is_empty();
    }

    /// When a mark without rows is due: what was read is of no interest, and the log before it can go.
    fn marks_at(&self, config: &ReplicationConfig) -> Option<Instant> {
        let due = self.rows.is_empty() && self.read > self.marked.0;
        due.then(|| self.marked.1 + config.acknowledge_every)
    }

    fn acknowledges_at(&self, config: &ReplicationConfig) -> Option<Instant> {
        let due = self.durable > self.acknowledged.0;
        due.then(|| self.acknowledged.1 + config.acknowledge_every)
    }

    /// Waits until a claim would see what can be handed on.
    async fn seen(&mut self, pool: &PgPool) -> Result<(), SourceError> {
        let xids = self.rows.iter().map(|row| row.transaction.xid);
        let mut xids: Vec<u32> = xids.filter(|xid| *xid != 0).collect();
        xids.dedup();
        let waited = seen(&mut self.seen, pool, &self.slot, &xids).await;
        waited.map_err(|error| SourceError::Unavailable(Box::new(error)))
    }

    /// What can be handed on, with a mark if a transaction has ended in it.
    fn take(&mut self, assignment: u64) -> Polled {
        self.ended = false;
        self.bytes = 0;
        let rows = std::mem::take(&mut self.rows);
        let mut marks = Vec::new();
        if self.read > self.marked.0 {
            self.marked = (self.read, Instant::now());
            marks.push(Mark {
                topic: Arc::clone(&self.slot),
                partition: 0,
                assignment,
                next: self.read.0.cast_signed(),
            });
        }
        Polled { records: Records::Rows(rows), marks }
    }

    /// Writes down what is durable, then says it to the server.
    ///
    /// Invariant (S7): in this order; a slot that stands beyond what was written down was moved by
    /// another hand, and only so is it noticed.
    async fn acknowledge(&mut self, pool: &PgPool) -> Result<(), SourceError> {
        let lsn = self.durable;
        let failed = |error: sqlx::Error| SourceError::Unavailable(Box::new(error));
        let mut transaction = whole(pool, BEGIN).await.map_err(failed)?;
        slot::acknowledge(&mut transaction, &self.slot, self.session.generation, lsn)
            .await
            .map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        self.session.client.update_applied_lsn(pgwire_replication::Lsn::from_u64(lsn.0));
        self.acknowledged = (lsn, Instant::now());
        Ok(())
    }

    fn hear(
        &mut self,
        event: Result<Option<ReplicationEvent>, PgWireError>,
        config: &ReplicationConfig,
        scope: &Scope,
        paused: &HashSet<String>,
    ) -> Result<(), SourceError> {
        match event.map_err(unavailable)? {
            None => Err(SourceError::Unavailable("the server ended the session".into())),
            Some(ReplicationEvent::KeepAlive { wal_end, .. }) => {
                // Within a transaction its own end is what counts.
                if self.transaction.is_none() {
                    self.read = self.read.max(Lsn(wal_end.as_u64()));
                }
                Ok(())
            }
            Some(ReplicationEvent::Begin { final_lsn, xid, commit_time_micros }) => {
                self.transaction = Some(Arc::new(WalTransaction {
                    xid,
                    commit_lsn: Lsn(final_lsn.as_u64()),
                    committed_micros: commit_time_micros.saturating_add(PG_EPOCH_MICROS),
                }));
                Ok(())
            }
            Some(ReplicationEvent::Commit { end_lsn, .. }) => {
                self.transaction = None;
                self.read = self.read.max(Lsn(end_lsn.as_u64()));
                Ok(())
            }
            Some(ReplicationEvent::XLogData { wal_start, data, .. }) => {
                let lsn = Lsn(wal_start.as_u64());
                self.message(lsn, data, config, scope, paused).map_err(protocol)
            }
            Some(ReplicationEvent::Message { prefix, content, .. }) => {
                if prefix == HEARTBEAT
                    && let Some(lag) = self.watch.as_ref().and_then(|watch| watch.heard(&content))
                {
                    gauge!("tombstream_postgres_lag_seconds", "slot" => self.slot.to_string())
                        .set(lag.as_secs_f64());
                }
                Ok(())
            }
            Some(ReplicationEvent::StoppedAt { .. }) => Ok(()),
        }
    }

    fn message(
        &mut self,
        lsn: Lsn,
        message: Bytes,
        config: &ReplicationConfig,
        scope: &Scope,
        paused: &HashSet<String>,
    ) -> Result<(), WalError> {
        match message.first() {
            Some(b'R') => {
                let table = WalTable::read(&message)?;
                let topic = scope.wants(&table).then(|| topic(&config.slot, &table));
                self.tables.insert(table.oid, Known { table: Arc::new(table), topic });
            }
            Some(b'I' | b'U' | b'D') => {
                let table = RowMessage::table(&message)?;
                self.row(lsn, table, message, paused);
            }
            Some(b'T') => {
                for table in RowMessage::truncated(&message)? {
                    self.row(lsn, table, message.clone(), paused);
                }
            }
            // Types and origins say nothing that is needed.
            Some(_) | None => {}
        }
        Ok(())
    }

    fn row(&mut self, lsn: Lsn, table: u32, message: Bytes, paused: &HashSet<String>) {
        let skipped = || counter!("tombstream_skipped_total", "kind" => "other_table").increment(1);
        let Some(known) = self.tables.get(&table) else { return skipped() };
        let Some(topic) = &known.topic else { return skipped() };
        if paused.contains(&**topic) {
            return;
        }
        let offset = lsn.0.cast_signed();
        self.last = match self.last {
            (last, number) if last == offset => (offset, number.saturating_add(1)),
            _ => (offset, 0),
        };
        self.bytes += message.len() + size_of::<WalRow>();
        self.rows.push(WalRow {
            origin: Origin { topic: Arc::clone(topic), partition: self.last.1, offset },
            generation: self.session.generation,
            table: Arc::clone(&known.table),
            // A row comes in a transaction; one that does not would have no time of its own.
            transaction: self.transaction.clone().unwrap_or_default(),
            message,
        });
    }
}

/// Postgres counts from 2000.
const PG_EPOCH_MICROS: i64 = 946_684_800_000_000;

fn protocol(error: WalError) -> SourceError {
    SourceError::Unavailable(Box::new(error))
}

/// A table's name for metrics, dead letters and people; as Debezium names its topic.
pub(super) fn topic(slot: &str, table: &WalTable) -> Arc<str> {
    format!("{slot}.{}.{}", table.schema, table.name).into()
}

impl Scope {
    fn wants(&self, table: &WalTable) -> bool {
        match self {
            Self::Published => true,
            Self::Relations(relations) => relations.iter().any(|relation| {
                *relation.schema == *table.schema && *relation.table == *table.name
            }),
        }
    }
}

impl Source for PostgresSource {
    async fn next(&mut self) -> Result<Polled, SourceError> {
        let polled = self.poll().await;
        if polled.is_err() {
            // What was read and not handed on comes again, with what was handed on without a mark.
            self.stream = None;
        }
        polled
    }

    async fn commit(&mut self, marks: Vec<Mark>) -> Result<(), SourceError> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        let mine = marks.iter().filter(|mark| mark.assignment == self.assignment);
        let Some(next) = mine.map(|mark| Lsn(mark.next.cast_unsigned())).max() else {
            return Ok(());
        };
        stream.durable = stream.durable.max(next);
        // At once after a rest; else `next` does it when it is time.
        match stream.acknowledges_at(&self.config) {
            Some(at) if at <= Instant::now() => stream.acknowledge(&self.pool).await,
            Some(_) | None => Ok(()),
        }
    }

    fn pause(&mut self, topic: &str) -> Result<(), SourceError> {
        warn!(topic, "rows of this table are left to the sweep until the process is started again");
        self.paused.insert(topic.to_owned());
        if let Some(stream) = &mut self.stream {
            stream.rows.retain(|row| *row.origin.topic != *topic);
        }
        Ok(())
    }

    async fn close(&mut self) {
        let Some(mut stream) = self.stream.take() else { return };
        if stream.durable > stream.acknowledged.0
            && let Err(error) = stream.acknowledge(&self.pool).await
        {
            warn!(%error, "the last acknowledgement was not written; that is read again");
        }
        // The server is told when the session ends; the ledger knows in any case.
        stream.session.client.stop();
        let ended = async { while let Ok(Some(_)) = stream.session.client.recv().await {} };
        if tokio::time::timeout(CLOSE_WAIT, ended).await.is_err() {
            warn!("the session did not end within {CLOSE_WAIT:?}");
        }
    }
}
