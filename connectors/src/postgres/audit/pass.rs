//! The passes in the ledger: who is at which part, and how far it is.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::types::Json;
use sqlx::{PgConnection, Row as _};

use tombstream_model::{Address, DeletionId, Key};

use super::super::claim::keys_json;
use super::super::ledger::TargetEntry;
use super::super::statement::Statements;

/// A part of a pass: one relation's copies in one store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Part {
    pub(super) lag: Duration,
    pub(super) relation: String,
    pub(super) store: String,
}

/// A part that is ours for a while.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) part: Part,
    pub(super) token: i64,
    /// Everything before it is looked at.
    pub(super) at: Place,
    /// What is closed at or after this is not looked at yet.
    pub(super) horizon: DateTime<Utc>,
}

/// A place in the order of closing. No time: before everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) closed_at: Option<DateTime<Utc>>,
    pub(super) deletion: i64,
}

/// A finalized deletion's targets in the store of a part.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) id: DeletionId,
    pub(super) key: Key,
    pub(super) addresses: Vec<Address>,
}

/// A page of closed deletions.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) items: Vec<Item>,
    /// Where it ends.
    pub(super) end: Place,
    /// Whether nothing is behind it before the horizon.
    pub(super) is_last: bool,
}

/// What a page or a round came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct AuditTally {
    /// Targets that were looked at.
    pub looked: u64,
    /// Copies that were there, and are destroyed again.
    pub resurrected: u64,
    /// Of those: copies that wait for a person.
    pub parked: u64,
    /// Copies that were there, and that an open deletion has already.
    pub known: u64,
    /// Copies under keys that have a row again: they may be that row's, and are left.
    pub reused: u64,
    /// Looks that could not tell. They are looked at again.
    pub unclear: u64,
    /// Of those: targets of which looks could not tell for long.
    pub unknown: u64,
}

impl AuditTally {
    /// Adds another's counts.
    pub fn add(&mut self, other: Self) {
        self.looked += other.looked;
        self.resurrected += other.resurrected;
        self.parked += other.parked;
        self.known += other.known;
        self.reused += other.reused;
        self.unclear += other.unclear;
        self.unknown += other.unknown;
    }
}

const MAKE: &str = "insert into tombstream.audit_pass (lag_ms, relation, store) values ($1, $2, $3) \
    on conflict do nothing";

/// One process at a time is at a part. A lease, since a lock would hold a transaction open while a store is
/// asked.
const TAKE: &str = "\
    update tombstream.audit_pass p set lease_owner = $4, \
        lease_token = nextval('tombstream.lease_token'), \
        lease_until = clock_timestamp() + make_interval(secs => $5) \
    where p.lag_ms = $1 and p.relation = $2 and p.store = $3 \
        and (p.lease_until is null or p.lease_until < clock_timestamp()) \
    returning p.lease_token, p.closed_at, p.deletion_id, \
        least(now() - make_interval(secs => p.lag_ms / 1000.0), $6) as horizon";

const GET_ON: &str = "\
    update tombstream.audit_pass p set closed_at = $5, deletion_id = $6, looked = looked + $7, \
        resurrected = resurrected + $8, reused = reused + $9, unknown = unknown + $10, \
        lease_until = clock_timestamp() + make_interval(secs => $11), ran_at = clock_timestamp(), \
        failed_at = null, failure = null \
    where p.lag_ms = $1 and p.relation = $2 and p.store = $3 and p.lease_token = $4";

const RELEASE: &str = "\
    update tombstream.audit_pass p set lease_until = null, \
        failed_at = case when $5::text is null then p.failed_at else clock_timestamp() end, \
        failure = coalesce($5, p.failure) \
    where p.lag_ms = $1 and p.relation = $2 and p.store = $3 and p.lease_token = $4";

/// A page in the order of closing, of all that is closed, so that its cost is bounded whatever the others
/// are; the archive's part of it goes by the same order.
const PAGE: &str = "\
    select d.id, d.closed_at, d.relation = $5 and d.state = 'finalized' as is_mine, d.key, \
        case when d.relation = $5 and d.state = 'finalized' then d.targets end as targets \
    from tombstream.deletion_all d \
    where d.closed_at >= coalesce($1, '-infinity'::timestamptz) \
        and (d.closed_at, d.id) > (coalesce($1, '-infinity'::timestamptz), $2) and d.closed_at < $3 \
    order by d.closed_at, d.id limit $4";

/// The finalized deletions of some keys, however old.
const OF_KEYS: &str = "\
    select d.id, d.key, d.targets from unnest($2::text[]) as k(key) join tombstream.deletion_all d \
        on d.relation = $1 and d.key = array(select jsonb_array_elements_text(k.key::jsonb)) \
    where d.state = 'finalized' order by d.id";

impl Part {
    pub(super) fn lag_ms(&self) -> i64 {
        i64::try_from(self.lag.as_millis()).unwrap_or(i64::MAX)
    }
}

/// Takes a part, unless another is at it.
pub(super) async fn take(
    statements: &Statements,
    part: &Part,
    owner: &str,
    lease: Duration,
    safe: DateTime<Utc>,
) -> Result<Option<Held>, sqlx::Error> {
    let mut session = statements.session().await?;
    statements
        .query(MAKE)
        .bind(part.lag_ms())
        .bind(&part.relation)
        .bind(&part.store)
        .execute(&mut *session)
        .await?;
    let row = statements
        .query(TAKE)
        .bind(part.lag_ms())
        .bind(&part.relation)
        .bind(&part.store)
        .bind(owner)
        .bind(lease.as_secs_f64())
        .bind(safe)
        .fetch_optional(&mut *session)
        .await?;
    session.end().await?;
    let Some(row) = row else { return Ok(None) };
    let at = Place { closed_at: row.try_get(1)?, deletion: row.try_get(2)? };
    let token = row.try_get(0)?;
    Ok(Some(Held { part: part.clone(), token, at, horizon: row.try_get(3)? }))
}

/// Writes how far a part is, in the transaction that keeps what was found. False: another has taken it.
pub(super) async fn get_on(
    statements: &Statements,
    connection: &mut PgConnection,
    held: &Held,
    to: Place,
    tally: &AuditTally,
    lease: Duration,
) -> Result<bool, sqlx::Error> {
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let done = statements
        .query(GET_ON)
        .bind(held.part.lag_ms())
        .bind(&held.part.relation)
        .bind(&held.part.store)
        .bind(held.token)
        .bind(to.closed_at)
        .bind(to.deletion)
        .bind(count(tally.looked))
        .bind(count(tally.resurrected))
        .bind(count(tally.reused))
        .bind(count(tally.unknown))
        .bind(lease.as_secs_f64())
        .execute(connection)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// Lets a part go, with what stopped it.
pub(super) async fn release(
    statements: &Statements,
    held: &Held,
    failure: Option<&str>,
) -> Result<(), sqlx::Error> {
    let mut session = statements.session().await?;
    statements
        .query(RELEASE)
        .bind(held.part.lag_ms())
        .bind(&held.part.relation)
        .bind(&held.part.store)
        .bind(held.token)
        .bind(failure)
        .execute(&mut *session)
        .await?;
    session.end().await
}

/// The next page behind `at` and before `horizon`.
pub(super) async fn page(
    statements: &Statements,
    part: &Part,
    at: Place,
    horizon: DateTime<Utc>,
    items_max: u32,
) -> Result<Page, sqlx::Error> {
    let mut session = statements.session().await?;
    let rows = statements
        .query(PAGE)
        .bind(at.closed_at)
        .bind(at.deletion)
        .bind(horizon)
        .bind(i64::from(items_max))
        .bind(&part.relation)
        .fetch_all(&mut *session)
        .await?;
    session.end().await?;
    let is_last = rows.len() < usize::try_from(items_max).unwrap_or(usize::MAX);
    let mut end = Place { closed_at: Some(horizon), deletion: 0 };
    if let (false, Some(last)) = (is_last, rows.last()) {
        end = Place { closed_at: Some(last.try_get(1)?), deletion: last.try_get(0)? };
    }
    // What was closed at the horizon's very moment is still to come.
    if at.closed_at > end.closed_at {
        end = at;
    }
    let mut items = Vec::new();
    for row in &rows {
        if row.try_get::<bool, _>(2)? {
            let targets: Option<Json<Vec<TargetEntry>>> = row.try_get(4)?;
            items.extend(item(&part.store, row.try_get(0)?, row.try_get(3)?, targets));
        }
    }
    Ok(Page { items, end, is_last })
}

/// What of a deletion is in `store`. A target that was waived was never shown to be gone.
pub(super) fn item(
    store: &str,
    id: i64,
    key: Vec<String>,
    targets: Option<Json<Vec<TargetEntry>>>,
) -> Option<Item> {
    let Json(targets) = targets?;
    let shown = |entry: &TargetEntry| {
        use tombstream_model::Verdict::{Absent, Deleted};
        let verdict = entry.outcome.as_ref().map(|outcome| outcome.verdict);
        entry.store == store && matches!(verdict, Some(Deleted | Absent))
    };
    let addresses: Vec<Address> =
        targets.into_iter().filter(shown).map(|entry| entry.address).collect();
    (!addresses.is_empty()).then(|| Item {
        id: DeletionId(id),
        key: Key::from_postgres(key),
        addresses,
    })
}

/// The finalized deletions of these keys.
pub(super) async fn of_keys(
    statements: &Statements,
    part: &Part,
    keys: &[Key],
) -> Result<Vec<Item>, sqlx::Error> {
    let mut session = statements.session().await?;
    let query = statements.query(OF_KEYS).bind(&part.relation).bind(keys_json(keys.iter())?);
    let rows = query.fetch_all(&mut *session).await?;
    session.end().await?;
    let mut items = Vec::new();
    for row in &rows {
        let targets: Option<Json<Vec<TargetEntry>>> = row.try_get(2)?;
        items.extend(item(&part.store, row.try_get(0)?, row.try_get(1)?, targets));
    }
    Ok(items)
}
