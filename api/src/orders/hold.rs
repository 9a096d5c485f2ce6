//! Holds: a person's order that a row must stay.
//!
//! Invariant (S1): whoever sets one locks the row first, and inserts in a later statement of the same
//! transaction. A claim that held the row until then is seen, and said; one that comes later sees the hold.
//! `a_hold_that_waited_for_a_claim_says_so`.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, PgPool, Row as _};
use tombstream_model::{Key, Relation};

use super::{OrderError, begin, check_text, columns, end, note, query, shown};
use crate::sql;

/// A hold that is to be set.
#[derive(Clone, Copy, Debug)]
pub struct NewHold<'a> {
    /// What it is for, such as the number of a case.
    pub case: &'a str,
    /// When it ends by itself. None: it is released by a person.
    pub until: Option<DateTime<Utc>>,
    /// Who orders it.
    pub actor: &'a str,
}

/// A hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, FromRow)]
pub struct Hold {
    /// Its number.
    pub id: i64,
    /// What it is for.
    #[sqlx(rename = "case_name")]
    pub case: String,
    /// Who set it.
    pub actor: String,
    /// When.
    pub set_at: DateTime<Utc>,
    /// When it ends by itself.
    pub until: Option<DateTime<Utc>>,
    /// When a person released it.
    pub released_at: Option<DateTime<Utc>>,
    /// Who did.
    pub released_by: Option<String>,
    /// Whether it keeps the row, by Postgres's clock.
    pub active: bool,
}

/// A hold that was set, and what it is worth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HoldSet {
    /// The hold.
    #[serde(flatten)]
    pub hold: Hold,
    /// Whether the row's deletion was claimed before.
    pub claimed: bool,
    /// What is kept.
    pub says: String,
}

/// An open deletion, as far as a hold is concerned.
struct Open {
    id: i64,
    claimed: bool,
    hidden: bool,
    removed: bool,
}

const HOLD: &str = "id, case_name, actor, set_at, nullif(until, 'infinity') as until, released_at, released_by, \
                    released_at is null and (until is null or until > clock_timestamp()) as active";

/// Holds the row of `key`: alive, flagged, or gone with an open deletion.
pub async fn set(
    pool: &PgPool,
    relation: &Relation,
    key: &Key,
    new: NewHold<'_>,
) -> Result<HoldSet, OrderError> {
    check_text("the case", new.case)?;
    check_text("the actor", new.actor)?;
    let mut transaction = begin(pool).await?;
    let held = insert(&mut transaction, relation, key, new).await;
    end(transaction, held).await
}

async fn insert(
    connection: &mut PgConnection,
    relation: &Relation,
    key: &Key,
    new: NewHold<'_>,
) -> Result<HoldSet, OrderError> {
    let table = sql::Table::new(relation);
    let lock = format!(
        "select {is_set} as flagged from {name} as r where {matches} for no key update of r",
        is_set = table.is_set,
        name = table.name,
        matches = table.matches("$1::text[]"),
    );
    let row = query(AssertSqlSafe(lock)).bind(columns(key)).fetch_optional(&mut *connection);
    let row = row.await?;
    if row.is_none() {
        // A claim of a row that is gone has no row to lock: it takes this lock alone.
        let bucket = "select pg_catalog.pg_advisory_xact_lock_shared( \
                          pg_catalog.hashtext('tombstream.' || $2), \
                          (pg_catalog.hashtextextended(($1::text[])::text, 0) & 1023)::integer)";
        let bucket = query(bucket).bind(columns(key)).bind(&*relation.name);
        bucket.execute(&mut *connection).await?;
    }
    let open = open_deletion(&mut *connection, relation, key).await?;
    if row.is_none() && open.is_none() {
        let missing = "there is no row with this key, and no open deletion of one";
        return Err(OrderError::Missing(missing.into()));
    }
    let insert = format!(
        "insert into tombstream.hold (relation, key, case_name, actor, until, set_at) \
         values ($1, $2, $3, $4, $5, clock_timestamp()) returning {HOLD}"
    );
    let inserted = query(AssertSqlSafe(insert)).bind(&*relation.name).bind(columns(key));
    let inserted = inserted.bind(new.case).bind(new.actor).bind(new.until);
    let hold = Hold::from_row(&inserted.fetch_one(&mut *connection).await?)?;
    if !hold.active {
        return Err(OrderError::Wrong(
            "the hold would end before it begins: `until` is over".into(),
        ));
    }
    let detail = json!({"hold": hold.id, "case": new.case, "until": new.until});
    let deletion = open.as_ref().map(|open| open.id);
    let order = (new.actor, "hold");
    note(&mut *connection, order, &relation.name, (Some(key), deletion), detail).await?;
    let claimed = open.as_ref().is_some_and(|open| open.claimed);
    Ok(HoldSet { hold, claimed, says: says(open.as_ref()).to_owned() })
}

/// The holds of `key`, newest first, at most 1,000: also those that are over.
pub async fn list(pool: &PgPool, relation: &Relation, key: &Key) -> Result<Vec<Hold>, OrderError> {
    let mut transaction = begin(pool).await?;
    let sql = format!(
        "select {HOLD} from tombstream.hold where relation = $1 and key = $2 order by id desc limit 1000"
    );
    let rows = query(AssertSqlSafe(sql)).bind(&*relation.name).bind(columns(key));
    let rows = rows.fetch_all(&mut *transaction).await?;
    transaction.rollback().await?;
    Ok(rows.iter().map(Hold::from_row).collect::<Result<_, _>>()?)
}

/// Releases one hold of `key`. The deletion goes on when no other is left, found by the sweep.
pub async fn release(
    pool: &PgPool,
    relation: &Relation,
    key: &Key,
    id: i64,
    actor: &str,
) -> Result<Hold, OrderError> {
    check_text("the actor", actor)?;
    let mut transaction = begin(pool).await?;
    let sql = format!(
        "update tombstream.hold set released_at = clock_timestamp(), released_by = $4 \
         where id = $3 and relation = $1 and key = $2 and released_at is null \
             and (until is null or until > clock_timestamp()) \
         returning {HOLD}"
    );
    let bind = |sql: String| {
        query(AssertSqlSafe(sql)).bind(relation.name.to_string()).bind(columns(key)).bind(id)
    };
    let released = bind(sql).bind(actor).fetch_optional(&mut *transaction).await?;
    let Some(released) = released else {
        let sql = format!(
            "select {HOLD} from tombstream.hold where relation = $1 and key = $2 and id = $3"
        );
        let known = bind(sql).fetch_optional(&mut *transaction).await?;
        transaction.rollback().await?;
        let Some(known) = known else {
            return Err(OrderError::Missing(format!("this row has no hold {id}")));
        };
        return Err(OrderError::Refused(over(&Hold::from_row(&known)?)));
    };
    let hold = Hold::from_row(&released)?;
    let detail = json!({"hold": id, "case": hold.case});
    note(&mut transaction, (actor, "release"), &relation.name, (Some(key), None), detail).await?;
    transaction.commit().await?;
    Ok(hold)
}

/// Why a hold can't be released any more.
fn over(hold: &Hold) -> String {
    let id = hold.id;
    match (hold.released_at, &hold.released_by, hold.until) {
        (Some(at), Some(by), _) => format!("hold {id} was released by {by} at {}", shown(at)),
        (Some(at), None, _) => format!("hold {id} was released at {}", shown(at)),
        (None, _, Some(until)) => format!("hold {id} ended at {}", shown(until)),
        (None, _, None) => format!("hold {id} is changed by another at this moment; try again"),
    }
}

/// The open deletion on a snapshot that is newer than the lock.
async fn open_deletion(
    connection: &mut PgConnection,
    relation: &Relation,
    key: &Key,
) -> Result<Option<Open>, sqlx::Error> {
    let sql = "select id, claimed_at is not null as claimed, hidden_at is not null as hidden, \
                   removed is not null as removed \
               from tombstream.deletion \
               where relation = $1 and key = $2 and state in ('pending', 'hidden', 'claimed', 'parked')";
    let row =
        query(sql).bind(&*relation.name).bind(columns(key)).fetch_optional(connection).await?;
    let open = |row: PgRow| {
        Ok(Open {
            id: row.try_get("id")?,
            claimed: row.try_get("claimed")?,
            hidden: row.try_get("hidden")?,
            removed: row.try_get("removed")?,
        })
    };
    row.map(open).transpose()
}

fn says(open: Option<&Open>) -> &'static str {
    match open {
        Some(Open { claimed: true, removed: true, .. }) => {
            "the row is gone and its deletion claimed already: nothing more is destroyed while the hold lasts, \
             but copies may be gone"
        }
        Some(Open { claimed: true, .. }) => {
            "the deletion is claimed already: the row is kept while the hold lasts, but copies may be gone"
        }
        Some(Open { hidden: true, .. }) => {
            "the row is kept while the hold lasts; its copies in recoverable stores are gone already, or going"
        }
        Some(Open { removed: true, .. }) => {
            "the row is gone; its copies are kept while the hold lasts"
        }
        Some(_) | None => {
            "the row and its copies are kept while the hold lasts, whatever its flag says"
        }
    }
}
