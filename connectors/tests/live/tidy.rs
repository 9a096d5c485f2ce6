//! Retention: what goes to the archive, what stays, what is dropped.

use std::time::Duration;

use sqlx::Executor;

use tombstream_connectors::postgres::{Retention, Tidied, tidy};
use tombstream_model::{Ending, Ledger, Verdict};

use super::support::{DOCUMENTS, Database, candidates, documents, settled};

const WEEK: Duration = Duration::from_secs(7 * 86_400);
const KEEP: Retention = Retention { closed_keep: WEEK, archive_keep: None };

/// So many deletions, closed so many days ago.
async fn closed(database: &Database, rows: i32, days: i32) {
    sqlx::query(
        "with made as (insert into tombstream.deletion (relation, key, state, first_seen) \
             select 'documents', array[gen_random_uuid()::text], 'pending', now() - interval '2 years' \
             from generate_series(1, $1) returning id) \
         select count(*) from made",
    )
    .bind(rows)
    .execute(&database.pool)
    .await
    .unwrap();
    sqlx::query(
        "update tombstream.deletion set state = 'cancelled', \
             closed_at = now() - make_interval(days => $1) where state = 'pending'",
    )
    .bind(days)
    .execute(&database.pool)
    .await
    .unwrap();
}

#[tokio::test]
async fn what_is_closed_long_enough_goes_to_its_month_and_the_rest_stays() {
    let database = Database::with_documents(true).await;
    closed(&database, 2_500, 40).await;
    closed(&database, 10, 8).await;
    closed(&database, 10, 6).await;
    let keys = database.insert(3, true).await;
    let ledger = database.ledger(documents());
    let claims = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    let tidied = tidy(&database.pool, KEEP).await.unwrap();
    assert_eq!(tidied, Tidied { moved: 2_510, ..Tidied::default() });
    assert_eq!(database.count("select count(*) from tombstream.deletion").await, 13);
    assert_eq!(database.count("select count(*) from tombstream.deletion_all").await, 2_523);
    let months = "select count(distinct tableoid) from tombstream.deletion_archive";
    assert!(database.count(months).await >= 2);
    assert_eq!(tidy(&database.pool, KEEP).await.unwrap(), Tidied::default());

    // Every column went along, and the receipt stays when its deletion goes.
    let batch: Vec<_> = claims.into_iter().map(|it| settled(it, Verdict::Deleted)).collect();
    assert_eq!(ledger.finalize(DOCUMENTS, &batch).await.unwrap(), vec![Ending::Finalized; 3]);
    let before = "select md5(string_agg(d::text, ',' order by id)) from tombstream.deletion_all d \
                  where state = 'finalized'";
    let row: String = sqlx::query_scalar(before).fetch_one(&database.pool).await.unwrap();
    let now = Retention { closed_keep: Duration::ZERO, ..KEEP };
    assert_eq!(tidy(&database.pool, now).await.unwrap().moved, 13);
    let after: String = sqlx::query_scalar(before).fetch_one(&database.pool).await.unwrap();
    assert_eq!(row, after);
    assert_eq!(database.count("select count(*) from tombstream.deletion").await, 0);
    assert_eq!(database.count("select count(*) from tombstream.receipt").await, 3);
    // A row that this process removed is known to be its own, though its deletion is in the archive.
    let changed = database.pool.execute("update tombstream.deletion_archive set state = 'pending'");
    assert!(changed.await.is_err());
    database.drop_database().await;
}

#[tokio::test]
async fn months_that_are_too_old_are_dropped_and_no_other() {
    let database = Database::new().await;
    for days in [1, 100, 500] {
        closed(&database, 5, days).await;
    }
    let moved = tidy(&database.pool, KEEP).await.unwrap();
    assert_eq!((moved.moved, moved.dropped.len()), (10, 0), "kept for ever where nothing is said");
    let year = Retention { archive_keep: Some(Duration::from_secs(365 * 86_400)), ..KEEP };
    let dropped = tidy(&database.pool, year).await.unwrap().dropped;
    assert_eq!(dropped.len(), 1, "{dropped:?}");
    assert!(dropped[0].starts_with("deletion_archive_20"), "{dropped:?}");
    assert_eq!(database.count("select count(*) from tombstream.deletion_archive").await, 5);
    database.drop_database().await;
}

#[tokio::test]
async fn one_process_tidies_and_another_leaves_it_to_it() {
    let database = Database::new().await;
    closed(&database, 5, 40).await;
    let mut other = database.pool.begin().await.unwrap();
    other.execute("select tombstream.archive_closed('7 days', 1)").await.unwrap();
    let tidied = tidy(&database.pool, KEEP).await.unwrap();
    assert_eq!(tidied, Tidied { is_another: true, ..Tidied::default() });
    other.rollback().await.unwrap();
    assert_eq!(tidy(&database.pool, KEEP).await.unwrap().moved, 5);
    database.drop_database().await;
}

#[tokio::test]
async fn an_open_deletion_is_deleted_by_nobody() {
    let database = Database::with_documents(true).await;
    closed(&database, 2, 1).await;
    let keys = database.insert(1, true).await;
    let ledger = database.ledger(documents());
    assert_eq!(ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().len(), 1);
    for wrong in ["delete from tombstream.deletion", "truncate tombstream.deletion"] {
        assert!(database.pool.execute(wrong).await.is_err(), "{wrong}");
    }
    assert_eq!(database.count("select count(*) from tombstream.deletion").await, 3);
    // The guard of a relation takes back what it wrote to meet a claim: also within a savepoint.
    database.insert(1, true).await;
    database
        .pool
        .execute(
            "create function later() returns trigger language plpgsql as $$ begin \
                 new.deleted_at := old.deleted_at + interval '1 microsecond'; return new; end $$; \
             create trigger zzz before update on documents for each row \
                 when (new.name = 'moved') execute function later()",
        )
        .await
        .unwrap();
    let mut application = database.pool.begin().await.unwrap();
    application
        .execute(
            "savepoint a; update documents set name = 'moved' \
             where not exists (select from tombstream.deletion where key = array[documents.id::text])",
        )
        .await
        .unwrap();
    application.commit().await.unwrap();
    assert_eq!(database.count("select count(*) from tombstream.deletion").await, 3);
    database.drop_database().await;
}

#[tokio::test]
async fn the_archive_has_the_columns_of_the_ledger() {
    let database = Database::new().await;
    let columns = "select string_agg(a.attname || ' ' || a.atttypid::regtype, ', ' order by a.attnum) \
                   from pg_attribute a where a.attrelid = $1::regclass and a.attnum > 0 \
                   and not a.attisdropped";
    let mut of = Vec::new();
    for table in ["tombstream.deletion", "tombstream.deletion_archive", "tombstream.deletion_all"] {
        let text: String =
            sqlx::query_scalar(columns).bind(table).fetch_one(&database.pool).await.unwrap();
        of.push(text);
    }
    assert_eq!(of[0], of[1]);
    assert_eq!(of[0], of[2]);
    database.drop_database().await;
}
