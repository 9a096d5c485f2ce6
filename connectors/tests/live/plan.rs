//! What is pending: counted once each, for what it waits for.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor as _};

use tombstream_connectors::postgres::plan;
use tombstream_model::{BreakerLimits, FlagKind, Key, Ledger as _, Relation, Verdict};

use super::support::{DOCUMENTS, Database, all, candidates, documents};

const STORES: [&str; 3] = ["originals", "search", "unused"];

/// As rows that have been flagged for long: no guard sees it, and all stand again.
async fn flagged_before(database: &Database, keys: &[Key], ago: &str) {
    let ids: Vec<String> = keys.iter().map(|key| format!("'{key}'")).collect();
    let sql = format!(
        "begin; alter table documents disable trigger user; \
         update documents set deleted_at = now() - interval '{ago}' where id in ({}); \
         do $$ declare name text; begin for name in select tgname from pg_trigger \
             where tgrelid = 'documents'::regclass and not tgisinternal loop \
             execute format('alter table documents enable always trigger %I', name); end loop; end $$; commit",
        ids.join(", ")
    );
    database.pool.execute(AssertSqlSafe(sql)).await.unwrap();
}

#[tokio::test]
async fn each_flagged_row_is_counted_once_for_what_it_waits_for() {
    let database = Database::with_documents(true).await;
    let relation = Relation { grace: Duration::from_secs(30 * 86_400), ..documents() };
    database.insert(4, false).await;
    let key = database.insert(16, true).await;
    flagged_before(&database, &key[0..5], "40 days").await;
    flagged_before(&database, &key[5..7], "29 days 23 hours 30 minutes").await;
    flagged_before(&database, &key[7..10], "29 days 12 hours").await;
    flagged_before(&database, &key[10..11], "25 days").await;
    flagged_before(&database, &key[11..16], "2 hours").await;
    let ledger = database.ledger(relation.clone());
    let claimed = ledger.claim(DOCUMENTS, &candidates(&key[0..2])).await.unwrap();
    let mut claimed = claimed.into_iter();
    ledger.owe(&all(vec![claimed.next().unwrap()], Verdict::Unknown)).await.unwrap();
    ledger.owe(&all(vec![claimed.next().unwrap()], Verdict::Refused)).await.unwrap();
    database.hold(&key[2]).await;
    database.hold(&key[15]).await;

    let planned = plan(&database.pool, &relation, &STORES).await.unwrap();
    let rows = &planned.rows;
    assert_eq!((rows.flagged, rows.due), (16, 2), "{rows:?}");
    assert_eq!(
        (rows.due_in_hour, rows.due_in_day, rows.due_in_week, rows.due_later),
        (2, 3, 1, 4),
        "{rows:?}"
    );
    assert_eq!((rows.claimed, rows.owed, rows.parked, rows.held), (1, 1, 1, 2), "{rows:?}");
    let sum = rows.due
        + rows.due_in_hour
        + rows.due_in_day
        + rows.due_in_week
        + rows.due_later
        + rows.claimed
        + rows.parked
        + rows.held
        + rows.kept_back
        + rows.unseen;
    assert_eq!(sum, rows.flagged);
    let wait = rows.next_due.unwrap() - planned.at;
    assert!((25..=30).contains(&wait.num_minutes()), "{wait}");
    let ages = &planned.ages;
    assert_eq!((ages.hour, ages.day, ages.month, ages.year, ages.older), (0, 5, 6, 5, 0));
    let stores: Vec<_> =
        planned.stores.iter().map(|it| (it.name.as_str(), it.copies, it.owed)).collect();
    assert_eq!(stores, [("originals", 16, 1), ("search", 16, 1)]);
    assert_eq!(planned.holds, 2);
    database.drop_database().await;
}

#[tokio::test]
async fn the_breaker_says_what_it_would_before_it_is_asked() {
    let database = Database::with_documents(true).await;
    let relation = Relation {
        breaker: Some(BreakerLimits {
            claims_max: Some(5),
            window: Duration::from_secs(3600),
            share_max: None,
            rate_max: None,
        }),
        ..documents()
    };
    let key = database.insert(8, true).await;
    let ledger = database.ledger(relation.clone());
    ledger.claim(DOCUMENTS, &candidates(&key[..3])).await.unwrap();
    let said = async || plan(&database.pool, &relation, &STORES).await.unwrap();
    let breaker = said().await.breaker.unwrap();
    assert_eq!((breaker.spent, breaker.left, breaker.trips), (3, Some(2), true));
    // It was right, and now says so.
    assert!(ledger.claim(DOCUMENTS, &candidates(&key[3..])).await.unwrap().is_empty());
    let planned = said().await;
    let breaker = planned.breaker.unwrap();
    assert_eq!(breaker.left, Some(0));
    assert!(breaker.tripped.unwrap().contains("claims_max is 5"));
    assert_eq!((planned.rows.kept_back, planned.rows.due), (5, 0));
    database.drop_database().await;
}

/// Where nothing vouches for a flag's time its grace has not begun, and booleans tell none.
#[tokio::test]
async fn what_was_not_seen_is_said_so() {
    for (column, kind, value, guard) in [
        ("timestamptz", FlagKind::TimestampTz, "now() - interval '1 year'", false),
        ("timestamptz", FlagKind::TimestampTz, "'infinity'", true),
        ("boolean", FlagKind::Boolean, "true", false),
    ] {
        let database = Database::new().await;
        let sql = format!(
            "create table documents (id uuid primary key, name text, deleted_at {column}); \
             insert into documents select gen_random_uuid(), 'x', {value} from generate_series(1, 3)"
        );
        database.pool.execute(AssertSqlSafe(sql)).await.unwrap();
        let mut relation = documents();
        relation.flag.kind = kind;
        if guard {
            tombstream_connectors::postgres::install_relation(&database.pool, &relation)
                .await
                .unwrap();
        }
        let rows = plan(&database.pool, &relation, &STORES).await.unwrap().rows;
        let expected = if guard { (3, 0, 0, 3) } else { (3, 0, 3, 0) };
        assert_eq!((rows.flagged, rows.due, rows.unseen, rows.due_later), expected, "{column}");
        assert_eq!(rows.next_due, None);
        database.drop_database().await;
    }
}
