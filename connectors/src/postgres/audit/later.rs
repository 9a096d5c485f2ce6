//! What a look could not tell of: kept, and looked at again, less and less often.

use std::time::Duration;

use sqlx::types::Json;
use sqlx::{PgConnection, Row as _};

use super::super::ledger::TargetEntry;
use super::super::statement::Statements;
use super::pass::{Item, Part, item};

/// How often a look may fail to tell before people are told: an hour and a half at first waits of ten seconds.
pub(super) const TRIES_MAX: i32 = 10;

const KEEP: &str = "\
    insert into tombstream.audit_again as a (relation, store, deletion_id, due_at, reason) \
    select $1, $2, i.id, clock_timestamp() + make_interval(secs => $5), i.reason \
    from unnest($3::bigint[], $4::text[]) as i(id, reason) order by i.id \
    on conflict (relation, store, deletion_id) do update set tries = a.tries + 1, \
        reason = excluded.reason, \
        due_at = clock_timestamp() + make_interval(secs => least($6, $5 * 2 ^ least(a.tries, 20))), \
        unknown_at = case when a.tries + 1 >= $7 then coalesce(a.unknown_at, clock_timestamp()) end \
    returning tries = $7";

const DUE: &str = "\
    select a.deletion_id, d.key, d.targets from ( \
        select deletion_id, due_at from tombstream.audit_again \
        where relation = $1 and store = $2 and due_at <= clock_timestamp() order by due_at limit $3 \
    ) a left join tombstream.deletion_all d on d.id = a.deletion_id order by a.due_at";

const FORGET: &str = "delete from tombstream.audit_again a \
    where a.relation = $1 and a.store = $2 and a.deletion_id = any($3)";

/// Keeps them with their reasons. Says how many are now unknown for long.
pub(super) async fn keep(
    statements: &Statements,
    connection: &mut PgConnection,
    part: &Part,
    unclear: &[(i64, String)],
    (wait, wait_max): (Duration, Duration),
) -> Result<u64, sqlx::Error> {
    if unclear.is_empty() {
        return Ok(0);
    }
    let (ids, reasons): (Vec<i64>, Vec<&str>) =
        unclear.iter().map(|(id, reason)| (*id, reason.as_str())).unzip();
    let told: Vec<bool> = statements
        .scalar(KEEP)
        .bind(&part.relation)
        .bind(&part.store)
        .bind(ids)
        .bind(reasons)
        .bind(wait.as_secs_f64())
        .bind(wait_max.as_secs_f64())
        .bind(TRIES_MAX)
        .fetch_all(connection)
        .await?;
    Ok(told.into_iter().filter(|told| *told).count() as u64)
}

/// What is due, and which of it nothing is known of any more: its month of the archive was dropped.
pub(super) async fn due(
    statements: &Statements,
    part: &Part,
    items_max: u32,
) -> Result<(Vec<Item>, Vec<i64>), sqlx::Error> {
    let mut session = statements.session().await?;
    let rows = statements
        .query(DUE)
        .bind(&part.relation)
        .bind(&part.store)
        .bind(i64::from(items_max))
        .fetch_all(&mut *session)
        .await?;
    session.end().await?;
    let (mut items, mut gone) = (Vec::new(), Vec::new());
    for row in &rows {
        let id: i64 = row.try_get(0)?;
        let key: Option<Vec<String>> = row.try_get(1)?;
        let targets: Option<Json<Vec<TargetEntry>>> = row.try_get(2)?;
        match key.and_then(|key| item(&part.store, id, key, targets)) {
            Some(item) => items.push(item),
            None => gone.push(id),
        }
    }
    Ok((items, gone))
}

/// Takes out what is settled.
pub(super) async fn forget(
    statements: &Statements,
    connection: &mut PgConnection,
    part: &Part,
    ids: &[i64],
) -> Result<(), sqlx::Error> {
    if ids.is_empty() {
        return Ok(());
    }
    let query = statements.query(FORGET).bind(&part.relation).bind(&part.store).bind(ids);
    query.execute(connection).await.map(drop)
}
