//! The archive beside a pipeline that runs: what waits in the ledger is written into files, by one process at a time.

use std::time::Duration;

use anyhow::Context as _;
use sqlx::PgPool;
use tombstream_connectors::files::parquet::ArchiveStore;
use tombstream_connectors::postgres::ArchiveQueue;
use tracing::{debug, warn};

use crate::config::{ArchiveSection, Config};
use crate::wiring;

/// How often it is looked whether a file is to be closed.
const LOOK: Duration = Duration::from_secs(1);
/// The longest wait after a file could not be written.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Writes the archive's files.
pub(crate) struct Archivist {
    queue: ArchiveQueue,
    store: ArchiveStore,
    close_after: Duration,
    rows_max: i64,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Written {
    pub(crate) events: usize,
    pub(crate) files: usize,
}

impl Archivist {
    pub(crate) fn new(
        config: &Config,
        section: &ArchiveSection,
        pool: PgPool,
    ) -> anyhow::Result<Self> {
        let prepared = config.database.prepared_statements;
        Ok(Self {
            queue: ArchiveQueue::new(pool, &wiring::owner(), prepared),
            store: ArchiveStore::open(&wiring::archive_place(section)?).context("archive")?,
            close_after: section.close_after,
            rows_max: section.rows_max.get().into(),
        })
    }

    /// For as long as the process lives.
    pub(crate) async fn run(self) {
        let mut wait = LOOK;
        loop {
            tokio::time::sleep(wait).await;
            match self.turn().await {
                Ok(Written { events: 0, .. }) => wait = LOOK,
                Ok(Written { events, files }) => {
                    debug!(events, files, "archived");
                    metrics::counter!("tombstream_archived_total").increment(events as u64);
                    wait = Duration::ZERO;
                }
                Err(failed) => {
                    let error = crate::command::chain(failed.as_ref());
                    wait = (wait.max(LOOK) * 2).min(WAIT_MAX);
                    warn!(error, "change events are not archived yet: they wait in the ledger");
                }
            }
        }
    }

    /// Writes what is due, if that is this process's to do.
    async fn turn(&self) -> anyhow::Result<Written> {
        let waiting = self.queue.waiting(self.rows_max).await?;
        metrics::gauge!("tombstream_archive_waiting_seconds")
            .set(waiting.age.unwrap_or_default().as_secs_f64());
        let is_due = waiting.events >= self.rows_max
            || waiting.age.is_some_and(|age| age >= self.close_after);
        match is_due && self.queue.take().await? {
            true => self.write().await,
            false => Ok(Written::default()),
        }
    }

    /// Writes the oldest that waits. Killed in the middle, it is written again: an event in two files is replayed
    /// twice, which is harmless.
    pub(crate) async fn write(&self) -> anyhow::Result<Written> {
        let page = self.queue.page(self.rows_max).await?;
        if page.events.is_empty() {
            return Ok(Written::default());
        }
        let files = self.store.put(&page.events).await?;
        self.queue.done(&page).await?;
        Ok(Written { events: page.events.len(), files })
    }
}
