//! What operators ask of the ledger.

use serde::Serialize;
use sqlx::PgPool;
use sqlx::types::Json;

use super::schedule::{self, ScheduleRow};
use super::seal::{Sealing, sealing_in};
use super::statement::whole;

/// Where everything stands. One snapshot.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Deletions by relation and state.
    pub relations: Vec<RelationStatus>,
    /// What is owed to which store.
    pub owed: Vec<OwedStore>,
    /// Relations of which nothing is claimed or finalized.
    pub paused: Vec<PausedRelation>,
    /// What waits, beside what time brings: relations of which something does.
    pub waiting: Vec<WaitingRelation>,
    /// The parts of the audit's passes.
    pub audit: Vec<AuditStatus>,
    /// What is begun by the clock.
    pub schedules: Vec<ScheduleRow>,
    /// How many messages could not be decoded and are not resolved.
    pub dead_letters: i64,
    /// How far the receipts are sealed.
    pub receipts: Sealing,
}

/// How far a pass of the audit is with one relation's copies in one store.
#[derive(Clone, Debug, Serialize, sqlx::FromRow)]
pub struct AuditStatus {
    /// The relation's name.
    pub relation: String,
    /// The store's name.
    pub store: String,
    /// How long after its closing a deletion is looked at.
    pub lag_seconds: f64,
    /// How much later than that it is; none before the first page.
    pub behind_seconds: Option<f64>,
    /// Targets that were looked at.
    pub looked: i64,
    /// Copies that were there, and were destroyed again.
    pub resurrected: i64,
    /// Copies that were there under keys that have a row again.
    pub reused: i64,
    /// Deletions of this relation in this store that are to be looked at again, since a look could not tell.
    pub again: i64,
    /// Of those: how many it could not tell of for long.
    pub unknown: i64,
    /// Why, of one of them.
    pub reason: Option<String>,
    /// What stops it.
    pub failure: Option<String>,
}

/// What of one relation waits for a person, or is hidden.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct WaitingRelation {
    /// The relation's name.
    pub relation: String,
    /// Since when its breaker is tripped.
    pub tripped_at: Option<chrono::DateTime<chrono::Utc>>,
    /// Why.
    pub tripped: Option<String>,
    /// Deletions that the breaker kept back, undecided.
    pub kept_back: i64,
    /// Active holds.
    pub holds: i64,
    /// Parked deletions.
    pub parked: i64,
    /// Deletions whose recoverable copies are gone, or going, before the claim.
    pub hidden: i64,
    /// Restored rows whose hidden copies nobody has said to be there again.
    pub rehydrations: i64,
}

/// Deletions of one relation in one state.
#[derive(Clone, Debug, Serialize, sqlx::FromRow)]
pub struct RelationStatus {
    /// The relation's name.
    pub relation: String,
    /// The state, as the ledger spells it.
    pub state: String,
    /// How many.
    pub deletions: i64,
    /// Seconds since the oldest was first seen.
    pub oldest_seconds: f64,
}

/// Targets of open claims that a store has not confirmed.
#[derive(Clone, Debug, Serialize, sqlx::FromRow)]
pub struct OwedStore {
    /// The relation's name.
    pub relation: String,
    /// The store's name.
    pub store: String,
    /// How many targets.
    pub targets: i64,
    /// What the store said last of one of them.
    pub said: Option<String>,
}

/// A paused relation.
#[derive(Clone, Debug, Serialize, sqlx::FromRow)]
pub struct PausedRelation {
    /// The relation's name.
    pub relation: String,
    /// Why.
    pub reason: String,
    /// The store and some of the addresses that were not there.
    pub detail: Json<serde_json::Value>,
    /// Since when.
    pub paused_at: chrono::DateTime<chrono::Utc>,
}

/// A message that could not be decoded.
#[derive(Clone, Debug, Serialize, sqlx::FromRow)]
pub struct DeadLetterRow {
    /// Its number.
    pub id: i64,
    /// Where it stood.
    pub topic: String,
    /// Where it stood.
    pub partition: i32,
    /// Where it stood.
    pub offset: i64,
    /// Why it can't be decoded.
    pub reason: String,
    /// Its key.
    #[serde(skip)]
    pub key: Option<Vec<u8>>,
    /// Its value.
    #[serde(skip)]
    pub value: Option<Vec<u8>>,
    /// When it was kept.
    pub buried_at: chrono::DateTime<chrono::Utc>,
    /// The topic that it was written to, where that is not where it stood.
    pub written_to: Option<String>,
    /// `message`, or `row`: of Postgres's own log.
    pub form: String,
    /// `whole`, `cut` or `redacted`.
    pub kept: String,
    /// How many bytes key and value had.
    pub bytes: i64,
    /// The SHA-256 of what is not kept whole.
    #[serde(serialize_with = "digits")]
    pub sha256: Option<Vec<u8>>,
    /// How often it was found undecodable.
    pub attempts: i32,
    /// When it was ordered to be driven again.
    pub redrive_at: Option<chrono::DateTime<chrono::Utc>>,
    /// When it was decoded after all.
    pub resolved_at: Option<chrono::DateTime<chrono::Utc>>,
}

fn digits<S: serde::Serializer>(bytes: &Option<Vec<u8>>, to: S) -> Result<S::Ok, S::Error> {
    bytes.as_ref().map(hex::encode).serialize(to)
}

/// Each count is of a partial index's predicate, so that closed deletions cost nothing.
const WAITING: &str = "\
    select relation, max(tripped_at) as tripped_at, max(tripped) as tripped, \
        sum(kept_back)::bigint as kept_back, sum(holds)::bigint as holds, sum(parked)::bigint as parked, \
        sum(hidden)::bigint as hidden, sum(rehydrations)::bigint as rehydrations \
    from ( \
        select relation, tripped_at, reason as tripped, 0 as kept_back, 0 as holds, 0 as parked, \
            0 as hidden, 0 as rehydrations from tombstream.breaker where tripped_at is not null \
        union all \
        select relation, null, null, count(*), 0, 0, 0, 0 from tombstream.deletion \
        where kept_back_at is not null and approved_at is null and state in ('pending', 'hidden') group by relation \
        union all \
        select relation, null, null, 0, count(*), 0, 0, 0 from tombstream.hold \
        where released_at is null and (until is null or until > now()) group by relation \
        union all \
        select relation, null, null, 0, 0, count(*), 0, 0 from tombstream.deletion \
        where state = 'parked' group by relation \
        union all \
        select relation, null, null, 0, 0, 0, count(*) filter (where state = 'hidden'), 0 from tombstream.deletion \
        where state in ('pending', 'hidden') and claimed_at is null group by relation \
        union all \
        select relation, null, null, 0, 0, 0, 0, count(*) from tombstream.rehydrate \
        where done_at is null group by relation \
    ) as w group by relation \
    having max(tripped_at) is not null or sum(kept_back + holds + parked + hidden + rehydrations) > 0 \
    order by relation";

/// What waits, beside what time brings.
pub async fn waiting(pool: &PgPool) -> Result<Vec<WaitingRelation>, sqlx::Error> {
    let mut snapshot = whole(pool, "begin isolation level repeatable read read only").await?;
    let waiting = sqlx::query_as(WAITING).persistent(false).fetch_all(&mut *snapshot).await?;
    snapshot.rollback().await?;
    Ok(waiting)
}

/// Where everything stands.
pub async fn status(pool: &PgPool) -> Result<Status, sqlx::Error> {
    let mut snapshot = whole(pool, "begin isolation level repeatable read read only").await?;
    let relations = sqlx::query_as(
        "select relation, state, count(*) as deletions, \
             extract(epoch from now() - min(first_seen))::float8 as oldest_seconds \
         from tombstream.deletion_all group by relation, state order by relation, state",
    )
    .persistent(false)
    .fetch_all(&mut *snapshot)
    .await?;
    let owed = sqlx::query_as(
        "select d.relation, t.entry ->> 'store' as store, count(*) as targets, \
             max(t.entry -> 'outcome' ->> 'said') as said \
         from tombstream.deletion d cross join jsonb_array_elements(d.targets) as t(entry) \
         where d.state = 'claimed' and d.lease_until is null \
             and coalesce(t.entry -> 'outcome' ->> 'verdict', '') not in ('deleted', 'absent', 'waived') \
         group by 1, 2 order by 1, 2",
    )
    .persistent(false)
    .fetch_all(&mut *snapshot)
    .await?;
    let paused = sqlx::query_as("select * from tombstream.pause order by relation")
        .persistent(false)
        .fetch_all(&mut *snapshot)
        .await?;
    let waiting = sqlx::query_as(WAITING).persistent(false).fetch_all(&mut *snapshot).await?;
    let dead_letters =
        sqlx::query_scalar("select count(*) from tombstream.dead_letter where resolved_at is null")
            .persistent(false)
            .fetch_one(&mut *snapshot)
            .await?;
    let audit = sqlx::query_as(
        "select p.relation, p.store, (p.lag_ms / 1000.0)::float8 as lag_seconds, \
             greatest(0, extract(epoch from now() - p.closed_at) - p.lag_ms / 1000.0)::float8 \
                 as behind_seconds, \
             p.looked, p.resurrected, p.reused, a.again, a.unknown, a.reason, p.failure \
         from tombstream.audit_pass p left join lateral ( \
             select count(*) as again, count(a.unknown_at) as unknown, max(a.reason) as reason \
             from tombstream.audit_again a where a.relation = p.relation and a.store = p.store \
         ) a on true order by p.relation, p.store, p.lag_ms",
    )
    .persistent(false)
    .fetch_all(&mut *snapshot)
    .await?;
    let schedules =
        sqlx::query_as(schedule::ROWS).persistent(false).fetch_all(&mut *snapshot).await?;
    let receipts = sealing_in(&mut snapshot).await?;
    snapshot.rollback().await?;
    Ok(Status { relations, owed, paused, waiting, audit, schedules, dead_letters, receipts })
}

/// Dead letters with an id above `after`, oldest first, at most `limit`.
pub async fn dead_letters(
    pool: &PgPool,
    after: i64,
    limit: i64,
) -> Result<Vec<DeadLetterRow>, sqlx::Error> {
    let mut transaction = whole(pool, "begin").await?;
    let letters =
        sqlx::query_as("select * from tombstream.dead_letter where id > $1 order by id limit $2")
            .persistent(false)
            .bind(after)
            .bind(limit)
            .fetch_all(&mut *transaction)
            .await?;
    transaction.rollback().await?;
    Ok(letters)
}

/// One dead letter, whole.
pub async fn dead_letter(pool: &PgPool, id: i64) -> Result<Option<DeadLetterRow>, sqlx::Error> {
    let mut transaction = whole(pool, "begin").await?;
    let letter = sqlx::query_as("select * from tombstream.dead_letter where id = $1")
        .persistent(false)
        .bind(id)
        .fetch_optional(&mut *transaction)
        .await?;
    transaction.rollback().await?;
    Ok(letter)
}
