//! `tombstream capture`: the log's changes published to a broker, as Debezium would publish them.
//!
//! For those who want a broker between the database and the pipeline, and not Kafka Connect. What is
//! published is confirmed to the slot behind the broker's own confirmation: a crash repeats some, and
//! leaves none out. Rows that are there when the slot is made come first, as reads of a snapshot.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use metrics::counter;
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
#[cfg(feature = "fluvio")]
use tombstream_connectors::fluvio::FluvioPublisher;
use tombstream_connectors::postgres::{self, PostgresSource, PrimaryKeys, Scope};
use tombstream_dataflow::{Health, SourceHealth};
use tombstream_model::encode::{self, Context, Snapshot};
use tombstream_model::wal::{WalRow, WalTable};
use tombstream_model::{
    Disposition, Generation, Lsn, Message, PublishError, Publisher, Records, Source as _,
    SourceError,
};
use tracing::{info, warn};

use super::chain;
use crate::config::{Broker, CaptureSection, Config};
use crate::shutdown::Signals;
use crate::telemetry::Metrics;
use crate::{http, wiring};

/// Messages that the broker has taken.
const PUBLISHED: &str = "tombstream_capture_published_total";
/// Tables whose topics are remembered.
const TABLES_MAX: usize = 1_000;
/// The wait after a failure, doubled with each next one …
const RETRY_WAIT_MIN: Duration = Duration::from_millis(200);
/// … up to this.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(10);

pub(super) async fn capture(config: Config) -> anyhow::Result<()> {
    let Some(section) = config.capture.clone() else {
        bail!(
            "{} has no section [capture]: add one with topic_prefix and [capture.kafka.settings]",
            config.file
        )
    };
    let mut signals = Signals::listen().context("signals")?;
    let metrics = Metrics::install().context("metrics")?;
    let listen = section.listen;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("capture.listen: {listen} can't be listened on"))?;
    let pool = wiring::connect(&config.database, "tombstream-capture").await?;
    for finding in postgres::check_ledger(&pool).await.context("the ledger can't be looked at")? {
        if finding.severity == postgres::Severity::Error {
            bail!("{}", finding.text);
        }
    }
    let (asks, asked) = mpsc::channel(64);
    tokio::spawn(http::serve(listener, metrics, asks, Duration::MAX));
    let replication = wiring::capture_config(&config.database, &section)?;
    let source = PostgresSource::new(replication, pool.clone(), Scope::Published, |gap| {
        warn!("{gap}");
    })?;
    let database = sqlx::query_scalar("select current_database()").fetch_one(&pool).await?;
    info!(%listen, slot = section.slot, prefix = section.topic_prefix, "capturing");
    let trouble = Trouble::default();
    tokio::spawn(trouble.clone().answer(asked));
    let broker = section.broker.clone();
    let origin = encode::Origin { prefix: section.topic_prefix.as_str().into(), database };
    let from = Captured { section, origin, pool, source, trouble };
    let captured = async move {
        match broker {
            Broker::Kafka(settings) => from.to(wiring::kafka_publisher(&settings)?).forever().await,
            #[cfg(feature = "fluvio")]
            Broker::Fluvio(target) => {
                let publisher = FluvioPublisher::new(target.config).context("capture.fluvio")?;
                from.to(publisher).forever().await
            }
            #[cfg(not(feature = "fluvio"))]
            Broker::Fluvio(_) => bail!("this build publishes to no Fluvio"),
        }
    };
    tokio::select! {
        failed = captured => failed,
        // What is not confirmed is read again.
        signal = signals.next() => {
            info!(signal, "stopped");
            Ok(())
        }
    }
}

/// What is captured, before it is said where it goes.
struct Captured {
    section: CaptureSection,
    origin: encode::Origin,
    pool: PgPool,
    source: PostgresSource,
    trouble: Trouble,
}

impl Captured {
    fn to<P: Publisher>(self, publisher: P) -> Capture<P> {
        let Self { section, origin, pool, source, trouble } = self;
        let outlet = Outlet {
            section,
            origin,
            pool,
            publisher,
            keys: PrimaryKeys::default(),
            topics: Vec::new(),
            first: (Lsn(0), Lsn(0)),
        };
        Capture { source, outlet, trouble }
    }
}

/// A capture at work.
struct Capture<P> {
    source: PostgresSource,
    outlet: Outlet<P>,
    trouble: Trouble,
}

/// From rows to the broker.
struct Outlet<P> {
    section: CaptureSection,
    origin: encode::Origin,
    pool: PgPool,
    publisher: P,
    keys: PrimaryKeys,
    topics: Vec<(Arc<WalTable>, Arc<str>)>,
    /// The commit of the transaction that is being read, and the place of its first row.
    first: (Lsn, Lsn),
}

/// What goes wrong, and since when.
#[derive(Clone, Default)]
struct Trouble(Arc<Mutex<Option<(Instant, String)>>>);

impl Trouble {
    fn set(&self, said: Option<String>) {
        let mut trouble = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = trouble.take().map_or_else(Instant::now, |(since, _)| since);
        *trouble = said.map(|said| (since, said));
    }

    async fn answer(self, mut asked: mpsc::Receiver<http::Ask>) {
        while let Some(ask) = asked.recv().await {
            let mut health = Health::default();
            if let Some((since, said)) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
                let failing_for = since.elapsed();
                let trouble = SourceHealth { failing_for, halted: false, said: said.clone() };
                health.sources.insert(0, trouble);
            }
            if ask.send(health).is_err() {
                warn!("who asked for the health did not wait");
            }
        }
    }
}

/// What stops a step: it is tried again, unless a person is needed.
enum Failure {
    Again(String),
    Never(String),
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        match error.disposition() {
            Disposition::Retry => Self::Again(chain(&error)),
            Disposition::Park | Disposition::Halt => Self::Never(chain(&error)),
        }
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Again(chain(&error))
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        match error.disposition() {
            Disposition::Retry => Self::Again(chain(&error)),
            Disposition::Park | Disposition::Halt => Self::Never(chain(&error)),
        }
    }
}

impl<P: Publisher> Capture<P> {
    /// Captures until a person is needed.
    async fn forever(mut self) -> anyhow::Result<()> {
        let mut wait = RETRY_WAIT_MIN;
        let mut fails = false;
        loop {
            match self.step().await {
                Ok(()) => {
                    if std::mem::take(&mut fails) {
                        info!("the capture goes on");
                        self.trouble.set(None);
                    }
                    wait = RETRY_WAIT_MIN;
                }
                Err(failure) => {
                    // What was read and not published would be passed by the next confirmation: the
                    // session begins anew where everything is published.
                    self.source.close().await;
                    match failure {
                        Failure::Never(said) => bail!("the capture can't go on: {said}"),
                        Failure::Again(said) => {
                            warn!(error = said, "the capture failed, and is tried again");
                            self.trouble.set(Some(said));
                            fails = true;
                        }
                    }
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY_WAIT_MAX);
                }
            }
        }
    }

    /// Reads once and publishes what came; before that, the rows that were there when the slot was made.
    async fn step(&mut self) -> Result<(), Failure> {
        let Self { source, outlet, .. } = self;
        if !source.is_open()
            && let Some(snapshot) = source.open().await?
        {
            let at = source.start().unwrap_or_default();
            outlet.snapshot(&snapshot, at).await?;
            source.complete().await?;
        }
        let polled = source.next().await?;
        if let Records::Rows(rows) = polled.records {
            let rows = rows.into_iter().map(|row| (row, Snapshot::No)).collect();
            outlet.publish(rows).await?;
        }
        // Invariant (S7): behind the broker's confirmation; `tests/live/capture.rs`.
        Ok(source.commit(polled.marks).await?)
    }
}

impl<P: Publisher> Outlet<P> {
    async fn snapshot(&mut self, snapshot: &str, at: (Generation, Lsn)) -> Result<(), Failure> {
        let (pool, publication) = (self.pool.clone(), self.section.publication.clone());
        let slot = self.section.slot.clone();
        info!(publication, "publishing the rows that are there");
        let give = async |rows: Vec<(WalRow, Snapshot)>| self.publish(rows).await;
        let rows = postgres::read_snapshot(&pool, &publication, &slot, snapshot, at, give).await?;
        info!(rows, "the rows that were there are published");
        Ok(())
    }

    async fn publish(&mut self, rows: Vec<(WalRow, Snapshot)>) -> Result<(), Failure> {
        let mut batch: Vec<Message> = Vec::with_capacity(rows.len());
        for (row, snapshot) in &rows {
            let key = self.keys.of(&self.pool, &row.table).await?;
            let topic = self.topic(&row.table);
            if self.first.0 != row.transaction.commit_lsn {
                self.first = (row.transaction.commit_lsn, row.lsn());
            }
            let context = Context {
                origin: &self.origin,
                topic: &topic,
                key: &key,
                snapshot: *snapshot,
                first: self.first.1,
                now_micros: now_micros(),
            };
            // Bytes that are no message mean that the session is broken.
            let messages = encode::envelopes(row, &context)
                .map_err(|error| Failure::Again(error.to_string()))?;
            batch.extend(messages);
        }
        if batch.is_empty() {
            return Ok(());
        }
        let count = batch.len() as u64;
        self.publisher.publish(batch).await?;
        counter!(PUBLISHED).increment(count);
        Ok(())
    }

    fn topic(&mut self, table: &Arc<WalTable>) -> Arc<str> {
        if let Some((_, topic)) = self.topics.iter().find(|(known, _)| Arc::ptr_eq(known, table)) {
            return Arc::clone(topic);
        }
        let separator = self.section.broker.separator();
        let prefix = &self.section.topic_prefix;
        let topic = encode::topic(prefix, &table.schema, &table.name, separator);
        // Each change of a table describes it anew.
        if self.topics.len() >= TABLES_MAX {
            self.topics.clear();
        }
        self.topics.push((Arc::clone(table), Arc::clone(&topic)));
        topic
    }
}

/// For the envelopes' `ts_ms`, which nobody decides by.
fn now_micros() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX)
}
