//! Dead letters driven again: a source over the ledger's own table.
//!
//! Invariant (S7): a letter is resolved only once what came of it is behind the frontier. One that can't be
//! decoded again is buried again by then, and stands as it was with its new reason;
//! `a_letter_is_resolved_behind_the_frontier_and_not_before`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use sqlx::{PgPool, Row as _};
use tokio::time::{Instant, sleep_until};

use tombstream_model::{Event, Mark, Origin, Polled, Records, Source, SourceError};

use super::statement::{BEGIN, Statements, whole};

/// Most letters at once: each may be as large as `bytes_max`.
const PAGE: i64 = 50;
/// How long letters are this process's own. What it did not resolve by then is driven again.
const LEASE: Duration = Duration::from_secs(120);
/// The partition that this source's marks are of.
const TOPIC: &str = "tombstream.dead_letter";

/// Takes letters that somebody ordered to be driven again and that nobody drives. A mark of who drives
/// them, not a lock: it must outlast the transaction.
const TAKE: &str = "\
    with due as ( \
        select id from tombstream.dead_letter \
        where redrive_at is not null \
            and (driven_until is null or driven_until < clock_timestamp()) \
            and (coalesce(written_to, topic) = any($2) or ($3 and topic like '%/%')) \
        order by id limit $1 for update skip locked \
    ), \
    token as materialized (select nextval('tombstream.lease_token') as token) \
    update tombstream.dead_letter l set drive_token = token.token, \
        driven_until = clock_timestamp() + make_interval(secs => $4) \
    from due cross join token where l.id = due.id \
    returning l.id, l.topic, l.partition, l.\"offset\", l.written_to, l.key, l.value, l.drive_token";

/// What was buried again, or taken by another process, has this token no more.
const RESOLVE: &str = "\
    update tombstream.dead_letter set resolved_at = clock_timestamp(), redrive_at = null, \
        drive_token = null, driven_until = null \
    where id = any($1) and drive_token = $2";

/// Dead letters that are to be driven again, as a source.
#[derive(Debug)]
pub struct Letters {
    statements: Statements,
    topics: Vec<String>,
    reads_files: bool,
    interval: Duration,
    next_look: Instant,
    round: i64,
    /// What is on its way, oldest first.
    handed: VecDeque<Handed>,
}

#[derive(Debug)]
struct Handed {
    round: i64,
    token: i64,
    ids: Vec<i64>,
}

impl Letters {
    /// The letters of `topics`, and, where this process `reads_files`, those of files: others are left to
    /// the process that has their relations, since this one would take them for irrelevant. It looks once
    /// in each `interval`.
    pub fn new(
        pool: PgPool,
        topics: Vec<String>,
        reads_files: bool,
        interval: Duration,
        prepared_statements: bool,
    ) -> Self {
        Self {
            statements: Statements::new(pool, prepared_statements),
            topics,
            reads_files,
            interval,
            next_look: Instant::now(),
            round: 0,
            handed: VecDeque::new(),
        }
    }

    async fn take(&mut self) -> Result<Vec<Event>, sqlx::Error> {
        let mut session = self.statements.session().await?;
        let rows = self
            .statements
            .query(TAKE)
            .bind(PAGE)
            .bind(&self.topics)
            .bind(self.reads_files)
            .bind(LEASE.as_secs_f64())
            .fetch_all(&mut *session)
            .await?;
        let mut events = Vec::with_capacity(rows.len());
        let (mut ids, mut token) = (Vec::with_capacity(rows.len()), 0);
        for row in rows {
            ids.push(row.try_get(0)?);
            token = row.try_get(7)?;
            let bytes = |column| {
                row.try_get::<Option<Vec<u8>>, _>(column).map(|bytes| bytes.map(Into::into))
            };
            events.push(Event {
                origin: Origin {
                    topic: row.try_get::<String, _>(1)?.into(),
                    partition: row.try_get(2)?,
                    offset: row.try_get(3)?,
                },
                topic: row.try_get::<Option<String>, _>(4)?.map(Arc::from),
                key: bytes(5)?,
                value: bytes(6)?,
            });
        }
        session.end().await?;
        if !ids.is_empty() {
            self.handed.push_back(Handed { round: self.round, token, ids });
            self.round += 1;
        }
        Ok(events)
    }
}

impl Source for Letters {
    /// Dropped in the middle of its statement, it may leave letters that come again when their lease ends.
    async fn next(&mut self) -> Result<Polled, SourceError> {
        loop {
            sleep_until(self.next_look).await;
            let taken = self.take().await;
            if !matches!(&taken, Ok(events) if !events.is_empty()) {
                self.next_look = Instant::now() + self.interval;
            }
            let events = taken.map_err(|error| SourceError::Unavailable(Box::new(error)))?;
            if !events.is_empty() {
                let mark =
                    Mark { topic: TOPIC.into(), partition: 0, assignment: 0, next: self.round };
                return Ok(Polled { records: Records::Redriven(events), marks: vec![mark] });
            }
        }
    }

    async fn commit(&mut self, marks: Vec<Mark>) -> Result<(), SourceError> {
        let Some(next) = marks.iter().map(|mark| mark.next).max() else { return Ok(()) };
        let unavailable = |error: sqlx::Error| SourceError::Unavailable(Box::new(error));
        while let Some(handed) = self.handed.front().filter(|handed| handed.round < next) {
            let mut transaction = self.statements.begin(BEGIN).await.map_err(unavailable)?;
            self.statements
                .query(RESOLVE)
                .bind(&handed.ids)
                .bind(handed.token)
                .execute(&mut *transaction)
                .await
                .map_err(unavailable)?;
            transaction.commit().await.map_err(unavailable)?;
            self.handed.pop_front();
        }
        Ok(())
    }

    /// Letters of a paused topic go on: they are decoded with what is configured now, and a person
    /// ordered it.
    fn pause(&mut self, _topic: &str) -> Result<(), SourceError> {
        Ok(())
    }
}

/// Which letters are to be driven again.
#[derive(Clone, Debug, Default)]
pub struct Redrive {
    /// These; none: all that are not resolved.
    pub ids: Vec<i64>,
    /// Of them, those of this topic.
    pub topic: Option<String>,
    /// Of them, those whose reason contains this text.
    pub reason: Option<String>,
}

/// What became of an order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redriven {
    /// Letters that the pipeline takes next.
    pub ordered: Vec<i64>,
    /// Letters that can't be driven again, and why.
    pub refused: Vec<(i64, String)>,
    /// Their topics, once each.
    pub topics: Vec<String>,
}

/// Orders that dead letters be driven again, and writes down who did. One transaction.
pub async fn order_redrive(
    pool: &PgPool,
    redrive: &Redrive,
    actor: &str,
) -> Result<Redriven, sqlx::Error> {
    let mut transaction = whole(pool, BEGIN).await?;
    let rows: Vec<(i64, String, Option<String>)> = sqlx::query_as(
        "select id, coalesce(written_to, topic), case \
             when resolved_at is not null then 'it is resolved' \
             when form = 'row' then 'it is a row of the log, whose columns are not known any more: \
the sweep finds its flag' \
             when kept = 'cut' then 'it was cut to dead_letters.bytes_max: the sweep finds its flag' \
             when kept = 'redacted' then 'no byte of it was kept (dead_letters.redact): the sweep \
finds its flag' end \
         from tombstream.dead_letter \
         where (id = any($1) or cardinality($1) = 0 and resolved_at is null) \
             and ($2::text is null or coalesce(written_to, topic) = $2) \
             and ($3::text is null or strpos(reason, $3) > 0) \
         order by id for update",
    )
    .persistent(false)
    .bind(&redrive.ids)
    .bind(&redrive.topic)
    .bind(&redrive.reason)
    .fetch_all(&mut *transaction)
    .await?;
    let mut redriven = Redriven::default();
    for (id, topic, refusal) in rows {
        match refusal {
            Some(why) => redriven.refused.push((id, why)),
            None => {
                redriven.ordered.push(id);
                redriven.topics.push(topic);
            }
        }
    }
    redriven.topics.sort_unstable();
    redriven.topics.dedup();
    let found = |id: &i64| {
        redriven.ordered.contains(id) || redriven.refused.iter().any(|(known, _)| known == id)
    };
    let unknown: Vec<i64> = redrive.ids.iter().copied().filter(|id| !found(id)).collect();
    redriven.refused.extend(unknown.into_iter().map(|id| (id, "there is no such letter".into())));
    if !redriven.ordered.is_empty() {
        sqlx::query(
            "with ordered as (update tombstream.dead_letter set redrive_at = clock_timestamp() \
                 where id = any($1)) \
             insert into tombstream.operator_order (actor, action, relation, detail) \
             values ($2, 'redrive', '', jsonb_build_object('letters', to_jsonb($1)))",
        )
        .persistent(false)
        .bind(&redriven.ordered)
        .bind(actor)
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await?;
    Ok(redriven)
}
