//! Change events on their way to the archive.
//!
//! Owned here: that an event is durable in the ledger before it is claimed, and leaves it once a file has it. Left to
//! others: the files (`files/parquet`).
//!
//! Invariant (S7): an offset waits for the ledger's row and not for the file; a row goes only after its file is
//! there; `an_event_is_in_the_ledger_or_in_a_file_whatever_dies`,
//! `a_file_that_can_not_be_written_takes_no_event_from_the_ledger`.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgPool, Row as _};

use tombstream_model::{Candidate, Cause, Found, LedgerError, Lsn};

use super::claim::keys_json;
use super::ledger::{PgLedger, Prepared};
use super::pool::ledger_error;
use super::statement::{BEGIN, Statements};
use crate::archive::{ArchivedEvent, found, kind};

/// The order of `id` is that of writing: what a slow transaction adds late is behind what was read, and is read next.
const KEEP: &str = "\
    insert into tombstream.archive_event (relation, key, event, generation, lsn) \
    select $1, array(select jsonb_array_elements_text(u.key::jsonb)), u.event, u.generation, u.lsn::pg_lsn \
    from unnest($2::text[], $3::text[], $4::integer[], $5::text[]) as u(key, event, generation, lsn)";

const TAKE: &str = "\
    update tombstream.archive_writer set owner = $1, \
        lease_until = clock_timestamp() + make_interval(secs => $2) \
    where one and (owner = $1 or lease_until is null or lease_until < clock_timestamp()) returning 1";

const WAITING: &str = "\
    select (select count(*) from (select from tombstream.archive_event limit $1) as counted), \
        (select extract(epoch from clock_timestamp() - a.at)::float8 from tombstream.archive_event a \
            order by a.id limit 1)";

const PAGE: &str = "\
    select id, relation, key, event, generation, lsn::text, at from tombstream.archive_event order by id limit $1";

const DONE: &str = "delete from tombstream.archive_event where id = any($1)";

impl PgLedger {
    /// The same, which keeps change events for the archive before they are claimed.
    #[must_use]
    pub fn with_archive(mut self) -> Self {
        self.archives = true;
        self
    }

    /// What the sweep brings stands in the table; what an event tells may be told by it alone.
    pub(super) async fn archive(
        &self,
        prepared: &Prepared,
        batch: &[Candidate],
    ) -> Result<(), LedgerError> {
        let is_kept = |it: &&Candidate| it.cause == Cause::Event && it.found != Found::Truncated;
        let kept: Vec<&Candidate> = batch.iter().filter(is_kept).collect();
        if !self.archives || kept.is_empty() {
            return Ok(());
        }
        let generation = |it: &&Candidate| {
            it.position.and_then(|position| i32::try_from(position.generation.0).ok())
        };
        let query = self
            .statements
            .query(KEEP)
            .bind(&*prepared.relation.name)
            .bind(keys_json(kept.iter().map(|it| &it.key)).map_err(ledger_error)?)
            .bind(kept.iter().map(|it| kind(it.found)).collect::<Vec<_>>())
            .bind(kept.iter().map(generation).collect::<Vec<_>>())
            .bind(
                kept.iter().map(|it| it.position.map(|at| at.lsn.to_string())).collect::<Vec<_>>(),
            );
        let mut session = self.statements.session().await.map_err(ledger_error)?;
        query.execute(&mut *session).await.map_err(ledger_error)?;
        session.end().await.map_err(ledger_error)
    }
}

/// What waits for a file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Unarchived {
    /// How many events, up to the number that was asked about.
    pub events: i64,
    /// How old the oldest one is.
    pub age: Option<Duration>,
}

/// Events that wait for a file, in their order.
#[derive(Debug)]
pub struct ArchivePage {
    ids: Vec<i64>,
    /// The events.
    pub events: Vec<ArchivedEvent>,
}

/// The events that wait for a file, for whoever writes files.
#[derive(Clone, Debug)]
pub struct ArchiveQueue {
    statements: Statements,
    owner: Arc<str>,
}

impl ArchiveQueue {
    /// How long files are one process's to write after it last said so.
    const LEASE: Duration = Duration::from_secs(60);

    /// The queue of the ledger in this database; `owner` is one name a process.
    pub fn new(pool: PgPool, owner: &str, prepared_statements: bool) -> Self {
        Self { statements: Statements::new(pool, prepared_statements), owner: owner.into() }
    }

    /// Whether it is this process's to write files now.
    pub async fn take(&self) -> Result<bool, sqlx::Error> {
        let mut session = self.statements.session().await?;
        let query = self.statements.query(TAKE).bind(&*self.owner).bind(Self::LEASE.as_secs_f64());
        let taken = query.fetch_optional(&mut *session).await?;
        session.end().await?;
        Ok(taken.is_some())
    }

    /// What waits; no more than `upto` are counted.
    pub async fn waiting(&self, upto: i64) -> Result<Unarchived, sqlx::Error> {
        let mut session = self.statements.session().await?;
        let row = self.statements.query(WAITING).bind(upto).fetch_one(&mut *session).await?;
        session.end().await?;
        let age: Option<f64> = row.try_get(1)?;
        let age = age.map(|age| Duration::try_from_secs_f64(age).unwrap_or_default());
        Ok(Unarchived { events: row.try_get(0)?, age })
    }

    /// The oldest ones.
    pub async fn page(&self, limit: i64) -> Result<ArchivePage, sqlx::Error> {
        let mut session = self.statements.session().await?;
        let rows = self.statements.query(PAGE).bind(limit).fetch_all(&mut *session).await?;
        session.end().await?;
        let mut page = ArchivePage { ids: Vec::new(), events: Vec::new() };
        for row in &rows {
            let generation: Option<i32> = row.try_get(4)?;
            let lsn: Option<String> = row.try_get(5)?;
            let lsn = lsn.and_then(|text| text.parse::<Lsn>().ok());
            let generation = generation.and_then(|it| u32::try_from(it).ok()).unwrap_or_default();
            let at: DateTime<Utc> = row.try_get(6)?;
            page.ids.push(row.try_get(0)?);
            page.events.push(ArchivedEvent {
                relation: row.try_get(1)?,
                key: row.try_get(2)?,
                found: found(row.try_get(3)?).unwrap_or(Found::Flagged),
                position: lsn.map(|lsn| (generation, lsn)),
                at,
            });
        }
        Ok(page)
    }

    /// Files have these: they need not be here any more.
    pub async fn done(&self, page: &ArchivePage) -> Result<(), sqlx::Error> {
        let mut transaction = self.statements.begin(BEGIN).await?;
        self.statements.query(DONE).bind(&page.ids).execute(&mut *transaction).await?;
        transaction.commit().await
    }
}
