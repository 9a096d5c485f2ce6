//! Parked work: what needs a person, and what the person decided.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, PgPool, Row as _};

use super::{OrderError, begin, check_text, end, query};

/// Deletions of one transaction, where many are let go on.
const CHUNK: i64 = 1_000;

/// A parked deletion.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Parked {
    /// Its number.
    pub id: i64,
    /// The relation's name.
    pub relation: String,
    /// The text of each key column.
    pub key: Vec<String>,
    /// Whether it was claimed: then a restore is refused, and copies may be gone.
    pub claimed: bool,
    /// Why it is parked.
    pub reason: Option<String>,
    /// How often its targets were driven.
    pub attempts: i32,
    /// When its flag was first seen.
    pub first_seen: DateTime<Utc>,
    /// When it was claimed.
    pub claimed_at: Option<DateTime<Utc>>,
    /// What each store said last of each target.
    pub targets: Vec<Said>,
    /// Stores that were waived before the claim.
    pub waived: Value,
    /// What to do about it.
    pub next_step: String,
}

/// What a store said last of one target.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Said {
    /// The store's name.
    pub store: String,
    /// Where the copy is, or was.
    pub address: Value,
    /// The verdict; none before the first answer.
    pub verdict: Option<String>,
    /// The answer's text.
    pub said: Option<String>,
}

/// Which parked deletions are let go on.
#[derive(Clone, Debug, Default)]
pub struct Filter<'a> {
    /// Of this relation alone.
    pub relation: Option<&'a str>,
    /// Whose reason holds this text.
    pub reason: Option<&'a str>,
}

/// A deletion that goes on, and as what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, FromRow)]
pub struct GoesOn {
    /// Its number.
    pub id: i64,
    /// Its relation's name.
    pub relation: String,
    /// `pending`: it will be claimed anew. `claimed`: its targets are driven again.
    pub state: String,
}

const PARKED: &str = "id, relation, key, claimed_at is not null as claimed, reason, attempts, first_seen, \
                      claimed_at, targets, waived";

/// Those with a number above `after`, oldest first, at most `limit`.
pub async fn list(
    pool: &PgPool,
    filter: &Filter<'_>,
    after: i64,
    limit: i64,
) -> Result<Vec<Parked>, OrderError> {
    let mut transaction = begin(pool).await?;
    let sql = format!(
        "select {PARKED} from tombstream.deletion \
         where state = 'parked' and id > $1 and ($2::text is null or relation = $2) \
             and ($3::text is null or strpos(reason, $3) > 0) \
         order by id limit $4"
    );
    let rows = query(AssertSqlSafe(sql)).bind(after).bind(filter.relation).bind(filter.reason);
    let rows = rows.bind(limit).fetch_all(&mut *transaction).await?;
    transaction.rollback().await?;
    Ok(rows.iter().map(read).collect::<Result<_, _>>()?)
}

/// One of them.
pub async fn show(pool: &PgPool, id: i64) -> Result<Parked, OrderError> {
    let mut transaction = begin(pool).await?;
    let sql =
        format!("select {PARKED} from tombstream.deletion where id = $1 and state = 'parked'");
    let row = query(AssertSqlSafe(sql)).bind(id).fetch_optional(&mut *transaction).await?;
    let Some(row) = row else { return Err(not_parked(&mut transaction, None, id).await?) };
    transaction.rollback().await?;
    Ok(read(&row)?)
}

/// Lets one go on: anew before its claim, with its targets after it. `relation`: it must be of this one.
pub async fn retry(
    pool: &PgPool,
    relation: Option<&str>,
    id: i64,
    actor: &str,
) -> Result<GoesOn, OrderError> {
    check_text("the actor", actor)?;
    let mut transaction = begin(pool).await?;
    let went = go_on(&mut transaction, relation, &[id], actor).await?;
    let Some(gone_on) = went.into_iter().next() else {
        return Err(not_parked(&mut transaction, relation, id).await?);
    };
    transaction.commit().await?;
    Ok(gone_on)
}

/// Lets all go on that `filter` chooses, in chunks that are transactions of their own; `progress` is told how
/// many went in each. Those that another holds at the moment stay parked.
pub async fn retry_all(
    pool: &PgPool,
    filter: &Filter<'_>,
    actor: &str,
    mut progress: impl FnMut(usize),
) -> Result<u64, OrderError> {
    check_text("the actor", actor)?;
    let (mut after, mut all) = (0, 0);
    loop {
        let ids: Vec<i64> =
            list(pool, filter, after, CHUNK).await?.iter().map(|parked| parked.id).collect();
        let Some(last) = ids.last() else { return Ok(all) };
        after = *last;
        let mut transaction = begin(pool).await?;
        let went = go_on(&mut transaction, filter.relation, &ids, actor).await?;
        transaction.commit().await?;
        all += went.len() as u64;
        progress(went.len());
    }
}

/// Says that a store's part of a deletion needs no proof, and lets it go on. What the store has confirmed
/// stays as it is; the rest is on the receipt as `waived`, with who said so and why.
pub async fn waive(
    pool: &PgPool,
    relation: Option<&str>,
    id: i64,
    (store, reason): (&str, &str),
    actor: &str,
) -> Result<GoesOn, OrderError> {
    check_text("the store", store)?;
    check_text("the reason", reason)?;
    check_text("the actor", actor)?;
    let mut transaction = begin(pool).await?;
    let waived = waive_one(&mut transaction, relation, id, (store, reason), actor).await;
    end(transaction, waived).await
}

async fn waive_one(
    connection: &mut PgConnection,
    relation: Option<&str>,
    id: i64,
    (store, reason): (&str, &str),
    actor: &str,
) -> Result<GoesOn, OrderError> {
    let sql = format!(
        "select {PARKED} from tombstream.deletion \
         where id = $1 and state = 'parked' and ($2::text is null or relation = $2) \
         for update skip locked"
    );
    let row = query(AssertSqlSafe(sql)).bind(id).bind(relation);
    let Some(row) = row.fetch_optional(&mut *connection).await? else {
        return Err(not_parked(connection, relation, id).await?);
    };
    let parked = read(&row)?;
    check_store(&parked, store)?;
    let sql = "with moved as ( \
             update tombstream.deletion d set reason = null, lease_until = null, \
                 state = case when d.claimed_at is null then 'pending' else 'claimed' end, \
                 due_at = case when d.claimed_at is not null then clock_timestamp() end, \
                 attempts = case when d.claimed_at is null then d.attempts else 0 end, \
                 waived = case when d.claimed_at is not null then d.waived \
                     else d.waived || jsonb_build_object($2::text, jsonb_build_object( \
                         'reason', $3::text, 'actor', $4::text, 'at', clock_timestamp())) end, \
                 targets = case when d.claimed_at is null then d.targets else ( \
                     select jsonb_agg(case when t.entry ->> 'store' = $2 and coalesce( \
                             t.entry -> 'outcome' ->> 'verdict', '') not in ('deleted', 'absent', 'waived') \
                         then jsonb_set(t.entry, '{outcome}', jsonb_build_object( \
                             'verdict', 'waived', 'said', $4::text || ': ' || $3::text, 'verified', 'trust')) \
                         else t.entry end order by t.n) \
                     from jsonb_array_elements(d.targets) with ordinality as t(entry, n)) end \
             where d.id = $1 and d.state = 'parked' \
             returning d.id, d.relation, d.key, d.state \
         ), ordered as ( \
             insert into tombstream.operator_order (actor, action, relation, key, deletion_id, detail, at) \
             select $4, 'waive', relation, key, id, \
                 jsonb_build_object('store', $2::text, 'reason', $3::text), clock_timestamp() from moved \
         ) \
         select id, relation, state from moved";
    let moved = query(sql).bind(id).bind(store).bind(reason).bind(actor);
    Ok(GoesOn::from_row(&moved.fetch_one(connection).await?)?)
}

/// A waiver of a store that has no part in a deletion would change nothing, and look as if it had.
fn check_store(parked: &Parked, store: &str) -> Result<(), OrderError> {
    let id = parked.id;
    let confirmed =
        |said: &Said| matches!(said.verdict.as_deref(), Some("deleted" | "absent" | "waived"));
    let mut of_store = parked.targets.iter().filter(|said| said.store == store).peekable();
    let named = || {
        let reason = parked.reason.as_deref().unwrap_or_default();
        reason.contains(&format!("store {store}:")) || reason.contains(&format!("store {store} "))
    };
    match (parked.claimed, of_store.peek().is_some()) {
        (true, true) if of_store.all(confirmed) => Err(OrderError::Refused(format!(
            "store {store} has confirmed its part of deletion {id}: there is nothing to waive; retry it"
        ))),
        (true, true) => Ok(()),
        (false, _) if of_store.peek().is_some() || named() => Ok(()),
        (_, _) => {
            let mut stores: Vec<&str> =
                parked.targets.iter().map(|said| said.store.as_str()).collect();
            stores.dedup();
            let part = match stores.as_slice() {
                [] => parked.reason.clone().unwrap_or_default(),
                stores => format!("its stores are {}", stores.join(", ")),
            };
            Err(OrderError::Refused(format!(
                "deletion {id} has nothing in a store {store}: {part}"
            )))
        }
    }
}

async fn go_on(
    connection: &mut PgConnection,
    relation: Option<&str>,
    ids: &[i64],
    actor: &str,
) -> Result<Vec<GoesOn>, sqlx::Error> {
    let sql = "with chosen as ( \
             select id from tombstream.deletion \
             where id = any($1) and state = 'parked' and ($2::text is null or relation = $2) \
             order by relation, key for update skip locked \
         ), moved as ( \
             update tombstream.deletion d set reason = null, lease_until = null, \
                 state = case when d.claimed_at is null then 'pending' else 'claimed' end, \
                 due_at = case when d.claimed_at is not null then clock_timestamp() end, \
                 attempts = case when d.claimed_at is null then d.attempts else 0 end \
             from chosen where d.id = chosen.id \
             returning d.id, d.relation, d.key, d.state \
         ), ordered as ( \
             insert into tombstream.operator_order (actor, action, relation, key, deletion_id, at) \
             select $3, 'retry', relation, key, id, clock_timestamp() from moved \
         ) \
         select id, relation, state from moved order by id";
    let rows = query(sql).bind(ids).bind(relation).bind(actor).fetch_all(connection).await?;
    rows.iter().map(GoesOn::from_row).collect()
}

/// Why nothing parked has this number.
async fn not_parked(
    connection: &mut PgConnection,
    relation: Option<&str>,
    id: i64,
) -> Result<OrderError, sqlx::Error> {
    let sql = "select state from tombstream.deletion \
               where id = $1 and ($2::text is null or relation = $2)";
    let row = query(sql).bind(id).bind(relation).fetch_optional(connection).await?;
    let state: Option<String> = row.map(|row| row.try_get(0)).transpose()?;
    Ok(match state.as_deref() {
        None => OrderError::Missing(format!("there is no deletion {id}")),
        Some("parked") => OrderError::Refused(format!(
            "deletion {id} is changed by another at this moment; try again"
        )),
        Some(state) => OrderError::Refused(format!("deletion {id} is not parked: it is {state}")),
    })
}

fn read(row: &PgRow) -> Result<Parked, sqlx::Error> {
    let targets: Option<Value> = row.try_get("targets")?;
    let claimed = row.try_get("claimed")?;
    let reason: Option<String> = row.try_get("reason")?;
    let id = row.try_get("id")?;
    Ok(Parked {
        id,
        relation: row.try_get("relation")?,
        key: row.try_get("key")?,
        claimed,
        next_step: next_step(id, claimed, reason.as_deref().unwrap_or_default()),
        reason,
        attempts: row.try_get("attempts")?,
        first_seen: row.try_get("first_seen")?,
        claimed_at: row.try_get("claimed_at")?,
        targets: targets.as_ref().map(said).unwrap_or_default(),
        waived: row.try_get::<Option<Value>, _>("waived")?.unwrap_or_else(|| json!({})),
    })
}

/// What the stores said, as the ledger keeps it.
pub(super) fn said(targets: &Value) -> Vec<Said> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let entries = targets.as_array().map(Vec::as_slice).unwrap_or_default();
    let said = |entry: &Value| Said {
        store: text(&entry["store"]).unwrap_or_default(),
        address: entry["address"].clone(),
        verdict: text(&entry["outcome"]["verdict"]),
        said: text(&entry["outcome"]["said"]),
    };
    entries.iter().map(said).collect()
}

/// What a person is to do about a parked deletion, by its reason.
pub(super) fn next_step(id: i64, claimed: bool, reason: &str) -> String {
    let retry = format!("then: tombstream parked retry {id}");
    let waive = format!(
        "or, if nothing is there to be destroyed: tombstream parked waive {id} --store STORE --reason TEXT"
    );
    if reason.starts_with("no address in store ") {
        format!("correct the row, or the relation's template; {retry}; {waive}")
    } else if reason.starts_with("the database ") {
        format!("mend the foreign key, trigger, rule or policy that keeps the row; {retry}")
    } else if claimed {
        format!(
            "mend what the store refuses (object lock, versions, a privilege); {retry}; {waive}"
        )
    } else {
        format!("mend the reason, or restore the row; {retry}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parked(claimed: bool, reason: &str, targets: &Value) -> Parked {
        Parked {
            id: 7,
            relation: "documents".into(),
            key: vec!["a".into()],
            claimed,
            reason: Some(reason.into()),
            attempts: 1,
            first_seen: DateTime::UNIX_EPOCH,
            claimed_at: None,
            targets: said(targets),
            waived: json!({}),
            next_step: String::new(),
        }
    }

    #[test]
    fn only_a_store_with_a_part_in_the_deletion_is_waived() {
        let targets = json!([
            {"store": "a", "address": {}, "outcome": {"verdict": "deleted", "said": "204"}},
            {"store": "b", "address": {}, "outcome": {"verdict": "refused", "said": "locked"}},
            {"store": "b", "address": {}, "outcome": null},
        ]);
        let refused = |parked: &Parked, store: &str| match check_store(parked, store) {
            Ok(()) => "fine".to_owned(),
            Err(error) => error.to_string(),
        };
        let claimed = parked(true, "store b refuses: locked", &targets);
        assert_eq!(refused(&claimed, "b"), "fine");
        assert!(refused(&claimed, "a").contains("nothing to waive"));
        assert!(refused(&claimed, "c").contains("nothing in a store c: its stores are a, b"));
        let unclaimed = parked(false, "no address in store b: column `x` is null", &json!(null));
        assert_eq!(refused(&unclaimed, "b"), "fine");
        assert!(refused(&unclaimed, "bb").contains("no address in store b"));
    }

    #[test]
    fn each_reason_has_a_next_step_with_a_command() {
        for (claimed, reason, step) in [
            (false, "no address in store a: null", "correct the row"),
            (true, "the database keeps the row: a trigger", "mend the foreign key"),
            (true, "store a refuses: locked", "mend what the store refuses"),
            (false, "store a refuses: locked", "restore the row"),
        ] {
            let said = next_step(7, claimed, reason);
            assert!(said.contains(step) && said.contains("tombstream parked retry 7"), "{said}");
        }
    }
}
