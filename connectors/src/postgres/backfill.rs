//! Rows that are flagged already, as a source: a job's ranges of the flag's own index, read side by side.
//!
//! Owned here: which rows are brought, in what order and how fast, and the job's positions. Left to others:
//! whether a row may go (the claim decides it, as for everybody), and what of it is owed (the sweep of `run`).
//!
//! The ranges are of the flag's partial index, not of the key: it holds the flagged rows alone, in an order that
//! every relation has, so that a table of a billion rows with a thousand flagged ones costs a thousand. One pass
//! over it, when the job is planned, counts them and notes every 20,000th: ranges of equal size, also where one
//! statement flagged them all at once. A position is the last row of a range that is durable, so nothing is read
//! anew but what was in flight.
//!
//! Invariant (S7): a position moves only behind the frontier; `a_job_goes_on_behind_what_is_durable`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgPool, Row as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use tombstream_model::{
    Candidate, Cause, DeletionId, FlagKind, Found, Key, Mark, Polled, Records, Relation,
    RelationId, Source, SourceError,
};

use super::filter::filter_sql;
use super::job::{Job, JobError, Moved};
use super::statement::{BEGIN, Statements, whole};
use super::table::{Table, ident, literal};
use super::tally::{Count, Tally};

/// What a backfill is asked: the job's spec in the ledger. The same name goes on only with the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackfillSpec {
    /// The relation's name.
    pub relation: String,
    /// Rows flagged at this time or later. None: from the first.
    pub from: Option<DateTime<Utc>>,
    /// Rows flagged before this. None: before the job was begun; what is flagged later is live traffic.
    pub to: Option<DateTime<Utc>>,
    /// Which of them: a condition over the row's columns.
    pub filter: Option<String>,
}

/// How a backfill goes.
#[derive(Clone, Debug)]
pub struct BackfillConfig {
    /// Rows of a range. A range is the unit of reading side by side, and of one row in the ledger: ten million
    /// rows are 500 ranges.
    pub range_rows: u32,
    /// Most rows of a page. As many as a claim's batches of 500 take two of.
    pub page_max: u32,
    /// Ranges that are read at a time. Reading is a small part of the cost: two keep the pipeline fed.
    pub readers: usize,
    /// Most rows a second. None: as fast as it goes.
    pub rate_max: Option<u32>,
    /// A live deletion that is under way for longer than this has the job wait: stores or the database are
    /// busy. A deletion takes a tenth of a second where nothing is.
    pub yield_after: Duration,
    /// The lease of every process here, as in the configuration: it tells how long a claim is under way.
    pub lease: Duration,
    /// Whether statements stay prepared in their session.
    pub prepared_statements: bool,
}

impl BackfillConfig {
    /// The defaults, for leases of this length.
    pub fn new(lease: Duration) -> Self {
        Self {
            range_rows: 20_000,
            page_max: 1_000,
            readers: 2,
            rate_max: None,
            yield_after: Duration::from_secs(2),
            lease,
            prepared_statements: true,
        }
    }
}

/// The longest that one look at a page may take: a filter that is slow beyond reason is said.
const PAGE_TIMEOUT: &str = "begin isolation level read committed read only; \
    set local search_path = pg_catalog, pg_temp; set local statement_timeout = '60s'";
/// The one pass over the flag's index may take its time, but not for ever.
const PLAN_TIMEOUT: &str = "begin isolation level read committed read only; \
    set local search_path = pg_catalog, pg_temp; set local statement_timeout = '30min'";
/// How often the way is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// A job that gives way still moves: one page in so many looks.
const GIVES_WAY_MAX: u32 = 20;

/// How often the end of the job asks for a dead process's claim.
const TAKES_OVER_MAX: u32 = 20;

/// The owner of a job's claims ends so: they are told from those of live traffic.
pub fn job_owner(process: &str, job: &str) -> String {
    format!("{process}{}", owner_suffix(job))
}

fn owner_suffix(job: &str) -> String {
    format!(" job {job}")
}

/// A row's place in the flag's index.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Cursor {
    flag: Option<String>,
    key: Vec<String>,
}

/// A part of the job.
#[derive(Clone, Debug)]
struct Range {
    number: i32,
    after: Option<Cursor>,
    upto: Option<Cursor>,
    looked_at: i64,
}

/// What one look brought.
#[derive(Debug)]
struct Page {
    range: i32,
    number: i64,
    last: Option<Cursor>,
    /// In the whole range, so far.
    looked_at: i64,
    /// In this page.
    rows: usize,
    is_last: bool,
    keys: Vec<Vec<String>>,
}

/// How far a job is, for whoever shows it.
#[derive(Debug)]
pub struct Progress {
    /// How many rows there are to look at.
    pub total: i64,
    before: i64,
    looked_at: AtomicI64,
    gave_way_ms: AtomicI64,
}

impl Progress {
    /// How many were looked at, and handed on.
    pub fn looked_at(&self) -> i64 {
        self.looked_at.load(Ordering::Relaxed)
    }

    /// How many of them earlier processes had looked at.
    pub fn looked_at_before(&self) -> i64 {
        self.before
    }

    /// How long it gave way to live traffic.
    pub fn gave_way(&self) -> Duration {
        Duration::from_millis(self.gave_way_ms.load(Ordering::Relaxed).unsigned_abs())
    }
}

/// A backfill as a source.
#[derive(Debug)]
pub struct Backfill {
    pool: PgPool,
    job: Arc<Job>,
    relation: RelationId,
    relation_name: Arc<str>,
    config: BackfillConfig,
    tally: Arc<Tally>,
    progress: Arc<Progress>,
    pages: mpsc::Receiver<Result<Page, SourceError>>,
    /// What was handed on and is not durable, by range.
    pending: BTreeMap<i32, VecDeque<(i64, Moved)>>,
    not_before: Instant,
    look_at: Instant,
    gave_way: u32,
    /// How often each claim of a dead process was handed on.
    taken_over: HashMap<i64, u32>,
    has_ended: bool,
}

impl Backfill {
    /// Takes the job's name, plans it if nobody has, and begins to read where it stands.
    ///
    /// The filter was judged before anything is written.
    pub async fn open(
        pool: PgPool,
        (id, relation): (RelationId, &Relation),
        (name, spec): (&str, &BackfillSpec),
        owner: &str,
        config: BackfillConfig,
        tally: Arc<Tally>,
    ) -> Result<Self, JobError> {
        let mut pages = PageSql::new(&pool, relation, spec).await?;
        let json = serde_json::to_value(spec).expect("a spec is json");
        let mut job = Job::take(&pool, name, "backfill", &json, owner).await?;
        if pages.has_flag && spec.to.is_none() {
            let begun = at_sql(relation, &time_sql(&job.begun_at()));
            pages.from += &format!(" and {} < {begun}", Table::new(relation).flag("t"));
        }
        let total = match job.total() {
            Some(total) => total,
            None => plan(&pool, &pages, &mut job, config.range_rows).await?,
        };
        let ranges = job.ranges().await?.into_iter().map(|(number, after, upto, looked_at)| {
            Ok(Range { number, after: cursor(after)?, upto: cursor(upto)?, looked_at })
        });
        let ranges: VecDeque<Range> = ranges.collect::<Result<_, JobError>>()?;
        let looked_at = job.looked_at().await?;
        info!(job = name, total, looked_at, ranges = ranges.len(), "backfill");
        let todo = Arc::new(Mutex::new(ranges));
        let (to, from) = mpsc::channel(config.readers.max(1));
        for _ in 0..config.readers.max(1) {
            let reader = Reader {
                statements: Statements::new(pool.clone(), config.prepared_statements),
                pages: pages.clone(),
                // A burst is no more than a second's worth.
                limit: config
                    .rate_max
                    .map_or(config.page_max, |rate| rate.clamp(1, config.page_max)),
            };
            // It ends by itself, when there is nothing left or nobody to tell.
            tokio::spawn(reader.run(Arc::clone(&todo), to.clone()));
        }
        Ok(Self {
            pool,
            job: Arc::new(job),
            relation: id,
            relation_name: Arc::clone(&relation.name),
            config,
            tally,
            progress: Arc::new(Progress {
                total,
                before: looked_at,
                looked_at: AtomicI64::new(looked_at),
                gave_way_ms: AtomicI64::new(0),
            }),
            pages: from,
            pending: BTreeMap::new(),
            not_before: Instant::now(),
            look_at: Instant::now(),
            gave_way: 0,
            taken_over: HashMap::new(),
            has_ended: false,
        })
    }

    /// How far it is.
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// The job in the ledger.
    pub fn job(&self) -> Arc<Job> {
        Arc::clone(&self.job)
    }

    /// Looks whether anything is in the way. True: it is to wait.
    async fn must_wait(&mut self) -> Result<bool, SourceError> {
        if self.job.is_lost() {
            return Err(SourceError::Fatal(JobError::Lost(self.job.name().to_owned()).to_string()));
        }
        if Instant::now() < self.look_at {
            return Ok(false);
        }
        let way = way(&self.pool, &self.relation_name, self.job.name(), self.config.lease).await;
        let way = way.map_err(unavailable)?;
        self.look_at = Instant::now() + LOOK;
        let name = &self.relation_name;
        if let Some(why) = way.paused {
            return Err(SourceError::Fatal(format!(
                "relation {name} is paused: {why}; when it is mended, `tombstream resume {name}`, and start the \
                 same job again: it goes on where it is"
            )));
        }
        if let Some(why) = way.tripped {
            return Err(SourceError::Fatal(format!(
                "the breaker of {name} is tripped: {why}; `tombstream breaker show {name}`, approve or reject, and \
                 start the same job again: it goes on where it is"
            )));
        }
        let is_busy =
            way.oldest_seconds.is_some_and(|age| age > self.config.yield_after.as_secs_f64());
        if !is_busy || self.gave_way >= GIVES_WAY_MAX {
            self.gave_way = 0;
            return Ok(false);
        }
        self.gave_way += 1;
        let ms = i64::try_from(LOOK.as_millis()).unwrap_or_default();
        self.progress.gave_way_ms.fetch_add(ms, Ordering::Relaxed);
        Ok(true)
    }

    fn hand_on(&mut self, page: Page) -> Polled {
        if let Some(rate) = self.config.rate_max {
            let cost = Duration::from_secs_f64(page.rows as f64 / f64::from(rate.max(1)));
            self.not_before = self.not_before.max(Instant::now()) + cost;
        }
        self.progress.looked_at.fetch_add(page.rows as i64, Ordering::Relaxed);
        self.tally.add(Count::Matched, page.keys.len() as u64);
        let mark = Mark {
            topic: self.job.name().into(),
            partition: page.range,
            assignment: self.job.token().unsigned_abs(),
            next: page.number + 1,
        };
        let moved = Moved {
            range: page.range,
            at: page.last.map(|last| serde_json::to_value(last).expect("a cursor is json")),
            looked_at: page.looked_at,
            is_done: page.is_last,
        };
        self.pending.entry(page.range).or_default().push_back((page.number + 1, moved));
        let candidate = |key| Candidate {
            relation: self.relation,
            key: Key::from_postgres(key),
            // Old: it overrides nothing, and always passes to the claim (S4).
            position: None,
            cause: Cause::Sweep,
            found: Found::Flagged,
            removed: None,
        };
        let candidates = page.keys.into_iter().map(candidate).collect();
        Polled { records: Records::Candidates(candidates), marks: vec![mark] }
    }

    /// All is read. What this job has claimed is waited for; what a process of it that died has claimed is taken
    /// over when its lease is over. What is owed is `run`'s: a store that is down would hold the job for ever.
    async fn finish(&mut self) -> Result<Polled, SourceError> {
        loop {
            let open = open_claims(&self.pool, &self.relation_name, self.job.name()).await;
            let open = open.map_err(unavailable)?;
            let mut due = Vec::new();
            let mut waits = false;
            for (id, is_over) in open {
                let tries = self.taken_over.entry(id).or_default();
                // One that is held or locked can't be had now, and is left to `run`.
                if *tries < TAKES_OVER_MAX {
                    waits = true;
                    if is_over {
                        *tries += 1;
                        due.push(DeletionId(id));
                    }
                }
            }
            if !due.is_empty() {
                sleep(LOOK).await;
                return Ok(Polled { records: Records::Open(due), marks: Vec::new() });
            }
            if !waits {
                self.has_ended = true;
                return Ok(Polled { records: Records::Candidates(Vec::new()), marks: Vec::new() });
            }
            sleep(LOOK).await;
        }
    }
}

impl Source for Backfill {
    async fn next(&mut self) -> Result<Polled, SourceError> {
        loop {
            sleep_until(self.not_before).await;
            if self.must_wait().await? {
                sleep(LOOK).await;
                continue;
            }
            return match self.pages.recv().await {
                Some(page) => Ok(self.hand_on(page?)),
                None => self.finish().await,
            };
        }
    }

    async fn commit(&mut self, marks: Vec<Mark>) -> Result<(), SourceError> {
        // The furthest of each range: a statement updates a row once.
        let mut moved: BTreeMap<i32, (i64, Moved)> = BTreeMap::new();
        let token = self.job.token().unsigned_abs();
        for mark in marks.iter().filter(|mark| mark.assignment == token) {
            let Some(pending) = self.pending.get(&mark.partition) else { continue };
            let durable = pending.iter().take_while(|(next, _)| *next <= mark.next).last();
            let known = moved.get(&mark.partition).map_or(0, |(next, _)| *next);
            if let Some(durable) = durable.filter(|(next, _)| *next > known) {
                moved.insert(mark.partition, durable.clone());
            }
        }
        if moved.is_empty() {
            return Ok(());
        }
        let moved: Vec<Moved> = moved.into_values().map(|(_, moved)| moved).collect();
        match self.job.moved(&moved, &self.tally.counts()).await {
            Ok(()) => {}
            Err(JobError::Database(error)) => return Err(unavailable(error)),
            Err(error) => return Err(SourceError::Fatal(error.to_string())),
        }
        for mark in &marks {
            if let Some(pending) = self.pending.get_mut(&mark.partition) {
                pending.retain(|(next, _)| *next > mark.next);
            }
        }
        Ok(())
    }

    fn has_ended(&self) -> bool {
        self.has_ended
    }

    fn pause(&mut self, _topic: &str) -> Result<(), SourceError> {
        Ok(())
    }
}

fn unavailable(error: sqlx::Error) -> SourceError {
    SourceError::Unavailable(Box::new(error))
}

fn cursor(json: Option<serde_json::Value>) -> Result<Option<Cursor>, JobError> {
    json.map(serde_json::from_value).transpose().map_err(|error| {
        JobError::Refused(format!("the job's position in the ledger can't be read: {error}"))
    })
}

/// What stands in a job's way.
struct Way {
    paused: Option<String>,
    tripped: Option<String>,
    /// How long the oldest live claim of anybody else is under way.
    oldest_seconds: Option<f64>,
}

/// A claim's lease tells when it was taken, also of one that was taken over. Read from the index of open claims,
/// of which live traffic has a few.
async fn way(
    pool: &PgPool,
    relation: &str,
    job: &str,
    lease: Duration,
) -> Result<Way, sqlx::Error> {
    let mut transaction = whole(pool, BEGIN).await?;
    let row = sqlx::query(
        "select (select p.reason from tombstream.pause p where p.relation = $1), \
             (select coalesce(b.reason, '') from tombstream.breaker b \
                 where b.relation = $1 and b.tripped_at is not null), \
             (select $2 - extract(epoch from min(d.lease_until) - clock_timestamp())::float8 \
                 from tombstream.deletion d where d.state = 'claimed' \
                     and d.lease_until > clock_timestamp() and right(d.lease_owner, length($3)) <> $3)",
    )
    .persistent(false)
    .bind(relation)
    .bind(lease.as_secs_f64())
    .bind(owner_suffix(job))
    .fetch_one(&mut *transaction)
    .await?;
    transaction.rollback().await?;
    Ok(Way { paused: row.try_get(0)?, tripped: row.try_get(1)?, oldest_seconds: row.try_get(2)? })
}

/// What the job has claimed or is hiding and not let go, and whether its lease is over.
async fn open_claims(
    pool: &PgPool,
    relation: &str,
    job: &str,
) -> Result<Vec<(i64, bool)>, sqlx::Error> {
    let mut transaction = whole(pool, BEGIN).await?;
    let open = sqlx::query_as(
        "select d.id, d.lease_until < clock_timestamp() from tombstream.deletion d \
         where d.relation = $1 and d.state in ('claimed', 'hidden') and d.lease_until is not null \
             and right(d.lease_owner, length($2)) = $2 order by d.id limit 1000",
    )
    .persistent(false)
    .bind(relation)
    .bind(owner_suffix(job))
    .fetch_all(&mut *transaction)
    .await?;
    transaction.rollback().await?;
    Ok(open)
}

/// One pass over the flagged rows: how many there are, and where each range ends.
async fn plan(
    pool: &PgPool,
    pages: &PageSql,
    job: &mut Job,
    range_rows: u32,
) -> Result<i64, JobError> {
    let mut transaction = whole(pool, PLAN_TIMEOUT).await?;
    let row = sqlx::query(AssertSqlSafe(pages.plan_sql()))
        .persistent(false)
        .bind(i64::from(range_rows.max(1)))
        .fetch_one(&mut *transaction)
        .await?;
    transaction.rollback().await?;
    let total: i64 = row.try_get(0)?;
    let mut ends: Vec<serde_json::Value> = row.try_get(1)?;
    let number = |end: &serde_json::Value| end["n"].as_i64();
    ends.sort_by_key(number);
    let ends: Vec<serde_json::Value> = ends
        .into_iter()
        // The last range has no end but the job's own: what was flagged meanwhile at its end is read, too.
        .filter(|end| number(end).is_some_and(|n| n < total))
        .map(|end| serde_json::json!({ "flag": end["flag"], "key": end["key"] }))
        .collect();
    let mut ranges = Vec::with_capacity(ends.len() + 1);
    let mut after = serde_json::Value::Null;
    for end in ends {
        ranges.push((after, end.clone()));
        after = end;
    }
    ranges.push((after, serde_json::Value::Null));
    job.plan(total, &ranges).await?;
    Ok(total)
}

/// The statements over one relation's flagged rows.
#[derive(Clone, Debug)]
struct PageSql {
    /// `from … where …`: all flagged rows of the job.
    from: String,
    key: String,
    shown: String,
    order: String,
    hit: String,
    /// The columns' types, in the order of the index.
    casts: Vec<String>,
    has_flag: bool,
}

impl PageSql {
    async fn new(
        pool: &PgPool,
        relation: &Relation,
        spec: &BackfillSpec,
    ) -> Result<Self, JobError> {
        let table = Table::new(relation);
        let has_flag = relation.flag.kind != FlagKind::Boolean;
        if !has_flag && (spec.from.is_some() || spec.to.is_some()) {
            return Err(JobError::Refused(format!(
                "relation {}: its flag is a boolean, which tells no time: --from and --to have no meaning",
                relation.name
            )));
        }
        let flag = table.flag("t");
        let at = |time: &DateTime<Utc>| at_sql(relation, &time_sql(time));
        let mut conditions = vec![table.is_set("t")];
        conditions.extend(spec.from.as_ref().map(|from| format!("{flag} >= {}", at(from))));
        conditions.extend(spec.to.as_ref().map(|to| format!("{flag} < {}", at(to))));
        let mut order: Vec<String> = table.key_columns("t").collect();
        let mut casts: Vec<String> = relation
            .key
            .iter()
            .map(|column| format!("::text::{}", column.kind.sql_type()))
            .collect();
        if has_flag {
            order.insert(0, flag.clone());
            let kind = match relation.flag.kind {
                FlagKind::Timestamp { .. } => "timestamp",
                FlagKind::TimestampTz | FlagKind::Boolean => "timestamptz",
            };
            casts.insert(0, format!("::text::{kind}"));
        }
        let hit = match &spec.filter {
            None => "true".to_owned(),
            Some(text) => filter(pool, relation, text).await?,
        };
        Ok(Self {
            from: format!("from {} t where {}", table.name(), conditions.join(" and ")),
            key: table.key("t"),
            shown: if has_flag { format!("{flag}::text") } else { "null::text".to_owned() },
            order: order.join(", "),
            hit,
            casts,
            has_flag,
        })
    }

    /// `$1`: how many rows a range has. The index gives the order: nothing is sorted, or kept, and only where a range
    /// ends is anything spelled.
    fn plan_sql(&self) -> String {
        format!(
            "select count(*), coalesce(array_agg(jsonb_build_object('n', t.\"n of all\", 'flag', {shown}, 'key', {key})) \
                 filter (where t.\"n of all\" % $1 = 0), '{{}}') \
             from (select row_number() over (order by {order}) as \"n of all\", {order} {from}) t",
            order = self.order,
            shown = self.shown,
            key = self.key,
            from = self.from,
        )
    }

    /// `$1`: how many rows; then the row behind which it goes on, and the last one, where they are. A page is of what
    /// is looked at: what the filter leaves out is part of it, so that each look costs the same.
    fn page_sql(&self, goes_on: bool, has_end: bool) -> String {
        let mut next = 2;
        let mut bound = |is: bool, than: &str| {
            if !is {
                return String::new();
            }
            let values: Vec<String> = self
                .casts
                .iter()
                .enumerate()
                .map(|(n, cast)| format!("${}{cast}", next + n))
                .collect();
            next += values.len();
            format!(" and ({}) {than} ({})", self.order, values.join(", "))
        };
        format!(
            "select {key}, {shown}, coalesce({hit}, false) {from}{after}{upto} order by {order} limit $1",
            key = self.key,
            shown = self.shown,
            hit = self.hit,
            from = self.from,
            after = bound(goes_on, ">"),
            upto = bound(has_end, "<="),
            order = self.order,
        )
    }
}

fn time_sql(time: &DateTime<Utc>) -> String {
    format!("{}::timestamptz", literal(&time.to_rfc3339()))
}

/// A time as the flag's column has them.
fn at_sql(relation: &Relation, at: &str) -> String {
    match &relation.flag.kind {
        FlagKind::Timestamp { zone } => format!("({at} at time zone {})", literal(zone)),
        FlagKind::TimestampTz | FlagKind::Boolean => at.to_owned(),
    }
}

/// The filter as SQL, once Postgres has understood it too.
async fn filter(pool: &PgPool, relation: &Relation, text: &str) -> Result<String, JobError> {
    let mut transaction = whole(pool, PAGE_TIMEOUT).await?;
    let columns: Vec<String> = sqlx::query_scalar(
        "select a.attname::text from pg_catalog.pg_attribute a \
         join pg_catalog.pg_class c on c.oid = a.attrelid \
         join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
         where n.nspname = $1 and c.relname = $2 and a.attnum > 0 and not a.attisdropped",
    )
    .persistent(false)
    .bind(&relation.schema)
    .bind(&relation.table)
    .fetch_all(&mut *transaction)
    .await?;
    let sql = filter_sql(text, &columns).map_err(|error| JobError::Refused(error.to_string()))?;
    // Runs nothing.
    let explain = format!(
        "explain select from {}.{} t where {sql}",
        ident(&relation.schema),
        ident(&relation.table)
    );
    let judged =
        sqlx::query(AssertSqlSafe(explain)).persistent(false).fetch_all(&mut *transaction).await;
    transaction.rollback().await?;
    match judged {
        Ok(_) => Ok(sql),
        Err(sqlx::Error::Database(error)) => Err(JobError::Refused(format!(
            "the filter is not understood by Postgres: {} (functions and operators are those of pg_catalog)",
            error.message()
        ))),
        Err(error) => Err(JobError::Database(error)),
    }
}

/// Reads ranges until there are none left.
struct Reader {
    statements: Statements,
    pages: PageSql,
    limit: u32,
}

impl Reader {
    async fn run(
        self,
        todo: Arc<Mutex<VecDeque<Range>>>,
        to: mpsc::Sender<Result<Page, SourceError>>,
    ) {
        loop {
            let range = todo.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(mut range) = range else { return };
            let mut number = 0;
            loop {
                match self.read(&mut range, number).await {
                    Ok(page) => {
                        let is_last = page.is_last;
                        if to.send(Ok(page)).await.is_err() {
                            return;
                        }
                        number += 1;
                        if is_last {
                            break;
                        }
                    }
                    Err(error) => {
                        let error = judge(error);
                        let is_fatal = matches!(error, SourceError::Fatal(_));
                        if to.send(Err(error)).await.is_err() || is_fatal {
                            return;
                        }
                        sleep(LOOK).await;
                    }
                }
            }
        }
    }

    /// The next page. The range's cursor moves with the answer alone.
    async fn read(&self, range: &mut Range, number: i64) -> Result<Page, sqlx::Error> {
        let sql = self.pages.page_sql(range.after.is_some(), range.upto.is_some());
        let mut transaction = self.statements.begin(PAGE_TIMEOUT).await?;
        let mut query = self.statements.query(AssertSqlSafe(sql)).bind(i64::from(self.limit));
        for cursor in [&range.after, &range.upto].into_iter().flatten() {
            if self.pages.has_flag {
                query = query.bind(cursor.flag.clone());
            }
            for column in &cursor.key {
                query = query.bind(column.clone());
            }
        }
        let rows = query.fetch_all(&mut *transaction).await?;
        transaction.rollback().await?;
        let mut keys = Vec::with_capacity(rows.len());
        for row in &rows {
            if row.try_get(2)? {
                keys.push(row.try_get(0)?);
            }
        }
        let last = rows.last();
        let last = last.map(|row| {
            Ok::<_, sqlx::Error>(Cursor { key: row.try_get(0)?, flag: row.try_get(1)? })
        });
        let last = last.transpose()?;
        if last.is_some() {
            range.after.clone_from(&last);
        }
        range.looked_at += rows.len() as i64;
        Ok(Page {
            range: range.number,
            number,
            last,
            looked_at: range.looked_at,
            rows: rows.len(),
            is_last: rows.len() < usize::try_from(self.limit).unwrap_or(usize::MAX),
            keys,
        })
    }
}

/// What a row makes of the filter (a division by zero, a text that is no number) is the same each time.
fn judge(error: sqlx::Error) -> SourceError {
    if let sqlx::Error::Database(database) = &error
        && database
            .code()
            .is_some_and(|code| ["22", "42"].iter().any(|class| code.starts_with(class)))
    {
        return SourceError::Fatal(format!(
            "the rows can't be read: {}; if it is the filter's, give the job another name and another filter",
            database.message()
        ));
    }
    warn!(error = %error, "a page of the backfill can't be read yet");
    unavailable(error)
}
