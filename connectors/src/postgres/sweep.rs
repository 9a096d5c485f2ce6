//! The sweep: the scan of the flag itself, and of what is open in the ledger.
//!
//! Invariant (L1): nothing depends on an event having come. Grace, outages, lost events, restarts and
//! what is owed are all served by this source. It commits nothing: what it brings is durable already.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgPool, Postgres, Row as _};
use tokio::sync::Notify;
use tokio::time::Instant;

use tombstream_model::{
    Candidate, Cause, DeletionId, FlagKind, Found, Key, Mark, Polled, Records, Relation,
    RelationId, Source, SourceError,
};

use super::removed::is_due;
use super::statement::Statements;
use super::table::{BY_KEY, OPEN_STATES, Table, interval, is_held, literal};

/// How the sweep goes.
#[derive(Clone, Debug)]
pub struct SweepConfig {
    /// How long it rests between two rounds.
    pub interval: Duration,
    /// Most keys it brings at once.
    pub page_max: u32,
    /// How long a flag may stand before the sweep takes it. Events are faster; this leaves them the
    /// time, so that a healthy stream's work is not done twice. Grace, where longer, is used instead.
    pub after: Duration,
    /// Most keys a second that it looks at: what waits by the million is read, but not at the cost of the
    /// application.
    pub rate_max: u32,
    /// Whether statements stay prepared in their session, as in
    /// [`LedgerConfig::prepared_statements`](super::LedgerConfig::prepared_statements).
    pub prepared_statements: bool,
}

/// The scan of the flag itself, as a source.
#[derive(Debug)]
pub struct Sweep {
    statements: Statements,
    config: SweepConfig,
    names: Vec<String>,
    /// One scan for each relation, then those of the ledger.
    scans: Vec<Scan>,
    round: u64,
    /// What is left of this round.
    todo: VecDeque<usize>,
    next_round: Instant,
    /// The next page is not read before this.
    not_before: Instant,
    bell: SweepBell,
    /// Whether this round looks at every flag, also at one that an event should bring.
    is_urgent: bool,
}

/// Has a sweep begin a round at once that looks at every flag: events were lost.
#[derive(Clone, Debug, Default)]
pub struct SweepBell(Arc<Notify>);

impl SweepBell {
    /// Rings it. A ring during such a round leads to one more.
    pub fn ring(&self) {
        self.0.notify_one();
    }
}

#[derive(Debug)]
enum Scan {
    Flags {
        relation: RelationId,
        usual: Pages,
        urgent: Pages,
        after: Option<Cursor>,
    },
    /// Flags in their grace whose recoverable copies are to be hidden. What was flagged lately is looked at in
    /// every round, from a little before the `newest` flag that was seen; the `whole` of it a part a round,
    /// going on where the last one ended, so that millions that wait hold up nothing else.
    Hides {
        relation: RelationId,
        usual: Pages,
        urgent: Pages,
        after: Option<Cursor>,
        newest: Option<String>,
        whole: Option<Whole>,
    },
    /// What was written down of rows that are gone, and is due: hard deletes, and copies that came back.
    Removed {
        relation: RelationId,
        sql: Arc<str>,
        after: i64,
    },
    Orphans {
        relation: RelationId,
        sql: Arc<str>,
        after: Option<Vec<String>>,
        whole: Whole,
    },
    Open {
        after: i64,
    },
}

/// How far a scan is that takes many rounds.
#[derive(Debug)]
struct Whole {
    is_done: bool,
    /// Pages that this round still has for it.
    pages_left: u64,
}

/// The statements of a scan of flags: for its first page, and for the next ones.
#[derive(Debug)]
struct Pages {
    first: Arc<str>,
    next: Arc<str>,
}

impl Pages {
    fn new(relation: &Relation, config: &SweepConfig) -> Self {
        let sql = |goes_on| flags_sql(relation, config, goes_on).into();
        Self { first: sql(false), next: sql(true) }
    }
}

/// The last row of a page: the flag's text (none for boolean flags) and the key's columns.
#[derive(Clone, Debug)]
struct Cursor {
    flag: Option<String>,
    key: Vec<String>,
}

impl Cursor {
    /// The cursor as a page's statement takes it, behind its limit.
    fn bind<'q>(
        &self,
        mut query: Query<'q, Postgres, PgArguments>,
    ) -> Query<'q, Postgres, PgArguments> {
        if let Some(flag) = &self.flag {
            query = query.bind(flag.clone());
        }
        self.key.iter().fold(query, |query, column| query.bind(column.clone()))
    }
}

impl Sweep {
    /// A sweep over `relations`; a [`RelationId`] is an index into them. Its first round begins at
    /// once: after an outage there may be much to find.
    pub fn new(pool: PgPool, relations: Arc<[Relation]>, config: SweepConfig) -> Self {
        let at_once = SweepConfig { after: Duration::ZERO, ..config.clone() };
        let mut scans: Vec<Scan> = relations
            .iter()
            .zip(0..)
            .map(|(relation, id)| Scan::Flags {
                relation: RelationId(id),
                usual: Pages::new(relation, &config),
                urgent: Pages::new(relation, &at_once),
                after: None,
            })
            .collect();
        scans.push(Scan::Open { after: 0 });
        for (relation, id) in relations.iter().zip(0..) {
            let id = RelationId(id);
            if relation.hide.is_some() && relation.flag.kind != FlagKind::Boolean {
                for is_whole in [false, true] {
                    let pages = |config: &SweepConfig| Pages {
                        first: hides_sql(relation, config, is_whole, false).into(),
                        next: hides_sql(relation, config, is_whole, true).into(),
                    };
                    scans.push(Scan::Hides {
                        relation: id,
                        usual: pages(&config),
                        urgent: pages(&at_once),
                        after: None,
                        newest: None,
                        whole: is_whole.then_some(Whole { is_done: false, pages_left: 0 }),
                    });
                }
            }
            let sql = removed_sql(relation).into();
            scans.push(Scan::Removed { relation: id, sql, after: 0 });
        }
        scans.extend(relations.iter().zip(0..).map(|(relation, id)| Scan::Orphans {
            relation: RelationId(id),
            sql: orphans_sql(relation).into(),
            after: None,
            whole: Whole { is_done: true, pages_left: 0 },
        }));
        let names = relations.iter().map(|relation| relation.name.to_string()).collect();
        let todo = VecDeque::new();
        let statements = Statements::new(pool, config.prepared_statements);
        Self {
            statements,
            config,
            names,
            scans,
            todo,
            round: 0,
            next_round: Instant::now(),
            not_before: Instant::now(),
            bell: SweepBell::default(),
            is_urgent: false,
        }
    }

    /// A bell for this sweep.
    pub fn bell(&self) -> SweepBell {
        self.bell.clone()
    }

    /// Reads the next page of the scan at `place`, and says how many keys it looked at. The scan's cursor
    /// moves only with the answer.
    async fn page(&mut self, place: usize) -> Result<(Records, usize), sqlx::Error> {
        let limit = i64::from(self.config.page_max);
        let mut session = self.statements.session().await?;
        let mut looked_at = None;
        let records = match &mut self.scans[place] {
            Scan::Flags { relation, usual, urgent, after } => {
                let pages = if self.is_urgent { urgent } else { usual };
                let sql = if after.is_some() { &pages.next } else { &pages.first };
                let mut query = self.statements.query(AssertSqlSafe(Arc::clone(sql))).bind(limit);
                if let Some(cursor) = &after {
                    query = cursor.bind(query);
                }
                let rows = query.fetch_all(&mut *session).await?;
                let mut candidates = Vec::with_capacity(rows.len());
                let mut last = None;
                for row in rows {
                    let key: Vec<String> = row.try_get(0)?;
                    candidates.push(swept(*relation, key.clone(), Found::Flagged));
                    last = Some(Cursor { flag: row.try_get(1)?, key });
                }
                *after = last;
                Records::Candidates(candidates)
            }
            Scan::Orphans { relation, sql, after, .. } => {
                let query = self.statements.query(AssertSqlSafe(Arc::clone(sql)));
                let rows = query.bind(limit).bind(after.as_ref()).fetch_all(&mut *session).await?;
                looked_at = Some(rows.len());
                let mut candidates = Vec::new();
                for row in &rows {
                    let key: Vec<String> = row.try_get(0)?;
                    if row.try_get(1)? {
                        candidates.push(swept(*relation, key.clone(), Found::Removed));
                    }
                    *after = Some(key);
                }
                Records::Candidates(candidates)
            }
            Scan::Hides { relation, usual, urgent, after, newest, whole } => {
                let pages = if self.is_urgent { urgent } else { usual };
                let sql = if after.is_some() { &pages.next } else { &pages.first };
                let query = self.statements.query(AssertSqlSafe(Arc::clone(sql))).bind(limit);
                let query = match &after {
                    Some(cursor) => cursor.bind(query),
                    None => query.bind(newest.as_ref()),
                };
                let rows = query.fetch_all(&mut *session).await?;
                let mut candidates = Vec::new();
                looked_at = Some(rows.len());
                for row in &rows {
                    if row.try_get(2)? {
                        candidates.push(swept(*relation, row.try_get(0)?, Found::Flagged));
                    }
                }
                if let Some(row) = rows.last() {
                    let cursor = Cursor { flag: row.try_get(1)?, key: row.try_get(0)? };
                    if whole.is_none() {
                        newest.clone_from(&cursor.flag);
                    }
                    *after = Some(cursor);
                }
                Records::Candidates(candidates)
            }
            Scan::Removed { relation, sql, after } => {
                let query = self.statements.query(AssertSqlSafe(Arc::clone(sql)));
                let rows = query.bind(limit).bind(*after).fetch_all(&mut *session).await?;
                let mut candidates = Vec::with_capacity(rows.len());
                for row in &rows {
                    *after = row.try_get(0)?;
                    candidates.push(swept(*relation, row.try_get(1)?, Found::Removed));
                }
                Records::Candidates(candidates)
            }
            Scan::Open { after } => {
                let query = self.statements.scalar(OPEN).bind(limit).bind(*after).bind(&self.names);
                let ids: Vec<i64> = query.fetch_all(&mut *session).await?;
                *after = ids.last().copied().unwrap_or(0);
                Records::Open(ids.into_iter().map(DeletionId).collect())
            }
        };
        session.end().await?;
        let looked_at = looked_at.unwrap_or_else(|| records.len());
        Ok((records, looked_at))
    }

    /// Whether the scan at `place` is through for this round.
    fn ends_turn(&mut self, place: usize, is_last: bool) -> bool {
        let (Scan::Hides { whole: Some(whole), .. } | Scan::Orphans { whole, .. }) =
            &mut self.scans[place]
        else {
            return is_last;
        };
        whole.is_done = is_last;
        whole.pages_left = whole.pages_left.saturating_sub(1);
        is_last || whole.pages_left == 0
    }

    /// Back to the beginning; the whole of what waits to be hidden only when it was looked through, in one
    /// round of so many, or when events were lost.
    fn rewind(&mut self, place: usize, is_whole: bool) {
        match &mut self.scans[place] {
            Scan::Hides { after, whole: None, .. } => *after = None,
            Scan::Hides { after, whole: Some(whole), .. } => {
                whole.pages_left = pages_a_round(&self.config);
                if self.is_urgent || is_whole && whole.is_done {
                    *after = None;
                    whole.is_done = false;
                }
            }
            Scan::Removed { after, .. } => *after = 0,
            Scan::Flags { after, .. } => *after = None,
            Scan::Orphans { after, whole, .. } => {
                whole.pages_left = pages_a_round(&self.config);
                if is_whole && whole.is_done {
                    *after = None;
                    whole.is_done = false;
                }
            }
            Scan::Open { after } => *after = 0,
        }
    }
}

/// Pages of a scan that takes many rounds: half of the time between two of them, at the sweep's own rate.
fn pages_a_round(config: &SweepConfig) -> u64 {
    let keys = config.interval.as_secs_f64() * f64::from(config.rate_max) / 2.0;
    ((keys / f64::from(config.page_max.max(1))) as u64).max(1)
}

/// A candidate that the sweep brings.
fn swept(relation: RelationId, key: Vec<String>, found: Found) -> Candidate {
    Candidate {
        relation,
        key: Key::from_postgres(key),
        position: None,
        cause: Cause::Sweep,
        found,
        removed: None,
    }
}

/// Expired leases and what is owed and due, oldest first. Of the hidden ones an index holds no more than
/// those: the others wait for their claim.
const OPEN: &str = "\
    select o.id from ( \
        (select d.id, d.relation, d.lease_until, d.due_at from tombstream.deletion d \
            where d.state = 'claimed' and d.id > $2 and d.relation = any($3) \
                and (d.lease_until is null or d.lease_until < clock_timestamp()) \
                and (d.due_at is null or d.due_at <= clock_timestamp()) \
            order by d.id limit $1) \
        union all \
        (select d.id, d.relation, d.lease_until, d.due_at from tombstream.deletion d \
            where d.state = 'hidden' and (d.due_at is not null or d.lease_until is not null) \
                and d.id > $2 and d.relation = any($3) \
                and (d.lease_until is null or d.lease_until < clock_timestamp()) \
                and (d.due_at is null or d.due_at <= clock_timestamp()) \
            order by d.id limit $1) \
    ) o \
    where not exists (select from tombstream.pause p where p.relation = o.relation) \
    order by o.id limit $1";

/// Nothing waits for a pending deletion without a row: it is looked for in one round of so many.
const ORPHAN_ROUNDS: u64 = 30;

/// Deletions that wait for a row which another hand removed, or brought back to life where no guard told of
/// it. Nobody else would find them when the event was lost, or told nothing of the flag.
fn orphans_sql(relation: &Relation) -> String {
    let table = Table::new(relation);
    format!(
        "select p.key, not exists (select from {table} t where {matches} and {is_set}) from ( \
             select d.key from tombstream.deletion d where d.relation = {name} \
                 and d.state in ('pending', 'hidden', 'parked') and d.claimed_at is null \
                 and d.removed is null and d.key > coalesce($2::text[], array[]::text[]) \
             order by d.key limit $1) p",
        name = literal(&relation.name),
        table = table.name(),
        is_set = table.is_set("t"),
        matches = table.matches_array("t", "p.key"),
    )
}

/// Hard deletes whose grace is over and copies that came back, which nothing keeps back.
fn removed_sql(relation: &Relation) -> String {
    let name = literal(&relation.name);
    format!(
        "select d.id, d.key from tombstream.deletion d where d.relation = {name} and d.id > $2 \
             and d.removed is not null and d.state in ('pending', 'hidden') \
             and {due} and (d.kept_back_at is null or d.approved_at is not null) \
             and not {held} \
             and not exists (select from tombstream.pause p where p.relation = {name}) \
         order by d.id limit $1",
        due = is_due(relation),
        held = is_held(&name, "d.key"),
    )
}

/// What was flagged lately, when nothing is known yet of what was seen before.
const LATE: Duration = Duration::from_secs(600);

/// A page of flagged rows in their grace, and whether their recoverable copies are still to be hidden. It is
/// a page of what was looked at: where all are hidden already, none of a million is brought.
///
/// A flag that was set while its transaction was long under way stands among older ones, so the scan of late
/// ones begins some time before the newest flag that was seen; that of the whole finds the rest.
fn hides_sql(relation: &Relation, config: &SweepConfig, is_whole: bool, goes_on: bool) -> String {
    let table = Table::new(relation);
    let name = literal(&relation.name);
    let hide = relation.hide.unwrap_or_default();
    let flag = table.flag("t");
    let (order, after) = keyset(relation);
    let begin = if goes_on {
        after
    } else {
        let from = if is_whole { relation.grace } else { hide.max(config.after) + LATE };
        let newest = table.flag_value("$2::text");
        format!("{flag} > coalesce({newest} - interval '2 minutes', {})", ago(relation, from))
    };
    format!(
        "select p.key, p.flag, not {held} and not exists (select from tombstream.deletion d \
                 where d.relation = {name} and d.key = p.key and d.state in {OPEN_STATES} \
                     and (d.state <> 'pending' or d.first_seen > now() - {hide} \
                         or d.kept_back_at is not null and d.approved_at is null) {BY_KEY}) \
         from (select {key} as key, {flag}::text as flag from {table} t \
             where {is_set} and {flag} <= {due} and {flag} > {claimed} and {begin} \
             order by {order} limit $1) p \
         where not exists (select from tombstream.pause p where p.relation = {name})",
        held = is_held(&name, "p.key"),
        hide = interval(hide),
        key = table.key("t"),
        table = table.name(),
        is_set = table.is_set("t"),
        due = ago(relation, hide.max(config.after)),
        claimed = ago(relation, relation.grace),
    )
}

/// The order of the flag's index, and the condition that a row stands behind a cursor, bound from `$2` on.
fn keyset(relation: &Relation) -> (String, String) {
    let table = Table::new(relation);
    let mut columns: Vec<(String, String)> = Vec::new();
    if relation.flag.kind != FlagKind::Boolean {
        columns.push((table.flag("t"), table.flag_value("$2::text")));
    }
    for (column, name) in relation.key.iter().zip(table.key_columns("t")) {
        let n = columns.len() + 2;
        columns.push((name, format!("${n}::text::{}", column.kind.sql_type())));
    }
    let (order, bound): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
    let order = order.join(", ");
    let after = format!("({order}) > ({})", bound.join(", "));
    (order, after)
}

/// So long before now, as the flag's column has times.
fn ago(relation: &Relation, length: Duration) -> String {
    let at = format!("(now() - {})", interval(length));
    match &relation.flag.kind {
        FlagKind::Timestamp { zone } => format!("({at} at time zone {})", literal(zone)),
        FlagKind::TimestampTz | FlagKind::Boolean => at,
    }
}

/// A page of flagged rows that are due and that no open claim, no person, no hold and no grace of
/// their own looks after already: what waits would be locked and decided anew in every round.
/// Ordered as the partial index is, so that the scan costs what it brings.
fn flags_sql(relation: &Relation, config: &SweepConfig, goes_on: bool) -> String {
    let table = Table::new(relation);
    let name = literal(&relation.name);
    let flag = (relation.flag.kind != FlagKind::Boolean).then(|| table.flag("t"));
    let due = ago(relation, relation.grace.max(config.after));
    let due = flag.as_ref().map(|flag| format!(" and {flag} <= {due}")).unwrap_or_default();
    let (order, after) = keyset(relation);
    let after = if goes_on { format!(" and {after}") } else { String::new() };
    let seen = format!("(now() - {})", interval(relation.hide.unwrap_or(relation.grace)));
    let hidden_seen = format!("(now() - {})", interval(relation.grace));
    format!(
        "select {key}, {shown} from {table} t where {is_set}{due}{after} \
         and not exists (select from tombstream.deletion d where d.relation = {name} \
             and d.key = {key} and d.state in {OPEN_STATES} \
             and (d.state = 'claimed' \
                 or d.state = 'parked' and {parked_flag} is not distinct from {flag_column} \
                 or d.state = 'pending' and d.first_seen > {seen} \
                 or d.state = 'hidden' and d.first_seen > {hidden_seen} \
                 or d.kept_back_at is not null and d.approved_at is null) {BY_KEY}) \
         and not {held} \
         and not exists (select from tombstream.pause p where p.relation = {name}) \
         order by {order} limit $1",
        held = is_held(&name, &table.key("t")),
        key = table.key("t"),
        shown = flag.map_or_else(|| "null::text".to_owned(), |flag| format!("{flag}::text")),
        parked_flag = table.flag_value("d.flag"),
        flag_column = table.flag("t"),
        table = table.name(),
        is_set = table.is_set("t"),
    )
}

impl Source for Sweep {
    async fn next(&mut self) -> Result<Polled, SourceError> {
        loop {
            let Some(&place) = self.todo.front() else {
                self.is_urgent = tokio::select! {
                    biased;
                    () = self.bell.0.notified() => true,
                    () = tokio::time::sleep_until(self.next_round) => false,
                };
                let orphans = self.round.is_multiple_of(ORPHAN_ROUNDS);
                let is_whole = orphans || self.is_urgent;
                self.round += 1;
                for place in 0..self.scans.len() {
                    self.rewind(place, is_whole);
                }
                self.todo = (0..self.scans.len())
                    .filter(|&place| match &self.scans[place] {
                        Scan::Orphans { whole, .. } | Scan::Hides { whole: Some(whole), .. } => {
                            !whole.is_done
                        }
                        _ => true,
                    })
                    .collect();
                continue;
            };
            tokio::time::sleep_until(self.not_before).await;
            let (records, looked_at) = match self.page(place).await {
                Ok(page) => page,
                Err(error) => {
                    // The round begins again later; a relation that is refused stops no other.
                    self.todo.pop_front();
                    self.next_round = Instant::now() + self.config.interval;
                    return Err(SourceError::Unavailable(Box::new(error)));
                }
            };
            self.not_before = Instant::now()
                + Duration::from_secs_f64(
                    looked_at as f64 / f64::from(self.config.rate_max.max(1)),
                );
            let is_last = looked_at < usize::try_from(self.config.page_max).unwrap_or(usize::MAX);
            if self.ends_turn(place, is_last) {
                self.todo.pop_front();
                if self.todo.is_empty() {
                    self.next_round = Instant::now() + self.config.interval;
                }
            }
            if !records.is_empty() {
                return Ok(Polled { records, marks: Vec::new() });
            }
        }
    }

    async fn commit(&mut self, _marks: Vec<Mark>) -> Result<(), SourceError> {
        Ok(())
    }

    fn pause(&mut self, _topic: &str) -> Result<(), SourceError> {
        Ok(())
    }
}
