//! The sweep: what no event brought is found all the same (L1).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Executor;

use tombstream_connectors::postgres::{Sweep, SweepConfig, status};
use tombstream_model::{FlagKind, Key, Ledger, Records, Relation, Source, Verdict};

use super::support::{DOCUMENTS, Database, candidates, documents, settled};

fn sweep(database: &Database, relation: Relation, page_max: u32, after: Duration) -> Sweep {
    let interval = Duration::from_millis(1);
    let config =
        SweepConfig { interval, page_max, after, rate_max: 1_000_000, prepared_statements: true };
    Sweep::new(database.pool.clone(), Arc::from([relation]), config)
}

/// Everything that comes until each of `expected` has come once.
async fn found(sweep: &mut Sweep, expected: usize) -> HashSet<Key> {
    let mut keys = HashSet::new();
    let all = async {
        while keys.len() < expected {
            if let Records::Candidates(page) = sweep.next().await.unwrap().records {
                keys.extend(page.into_iter().map(|candidate| candidate.key));
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("the sweep finds them all");
    keys
}

/// Nothing comes within several rounds.
async fn finds_nothing(sweep: &mut Sweep) {
    let next = tokio::time::timeout(Duration::from_millis(300), sweep.next()).await;
    assert!(next.is_err(), "{next:?}");
}

#[tokio::test]
async fn every_flagged_row_is_found_page_by_page() {
    let database = Database::with_documents(true).await;
    let flagged = database.insert(257, true).await;
    database.insert(50, false).await;
    // All with one flag value: the key alone must carry the scan on.
    database
        .pool
        .execute("update documents set deleted_at = '2026-01-01' where deleted_at is not null")
        .await
        .unwrap();
    let mut sweep = sweep(&database, documents(), 10, Duration::ZERO);
    assert_eq!(found(&mut sweep, 257).await, flagged.into_iter().collect());
    database.drop_database().await;
}

#[tokio::test]
async fn a_fresh_flag_is_left_to_its_event() {
    let database = Database::with_documents(true).await;
    database.insert(3, true).await;
    finds_nothing(&mut sweep(&database, documents(), 10, Duration::from_secs(3600))).await;
    database.drop_database().await;
}

/// Events were lost: the round does not wait for them, nor for its turn.
#[tokio::test]
async fn a_bell_begins_a_round_that_looks_at_every_flag() {
    let database = Database::with_documents(true).await;
    let flagged = database.insert(25, true).await;
    let config = SweepConfig {
        interval: Duration::from_secs(3600),
        page_max: 10,
        after: Duration::from_secs(3600),
        rate_max: 1_000_000,
        prepared_statements: true,
    };
    let mut sweep = Sweep::new(database.pool.clone(), Arc::from([documents()]), config);
    let bell = sweep.bell();
    finds_nothing(&mut sweep).await;
    bell.ring();
    assert_eq!(found(&mut sweep, 25).await, flagged.into_iter().collect());
    // One ring is one round.
    finds_nothing(&mut sweep).await;
    database.drop_database().await;
}

#[tokio::test]
async fn a_flag_within_its_grace_is_not_brought() {
    let database = Database::with_documents(true).await;
    database.insert(3, true).await;
    let mut relation = documents();
    relation.grace = Duration::from_secs(3600);
    finds_nothing(&mut sweep(&database, relation, 10, Duration::ZERO)).await;
    database.drop_database().await;
}

#[tokio::test]
async fn claimed_and_parked_rows_are_not_brought_again() {
    let database = Database::with_documents(true).await;
    let keys = database.insert(2, true).await;
    let ledger = database.ledger(documents());
    ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    finds_nothing(&mut sweep(&database, documents(), 10, Duration::ZERO)).await;
    database.drop_database().await;
}

#[tokio::test]
async fn what_is_owed_is_brought_when_it_is_due() {
    let database = Database::with_documents(true).await;
    let keys = database.insert(1, true).await;
    let ledger = database.ledger(documents());
    let claimed = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().remove(0);
    let id = claimed.id;
    ledger.owe(&[settled(claimed, Verdict::Unknown)]).await.unwrap();
    let mut sweep = sweep(&database, documents(), 10, Duration::ZERO);
    let polled =
        tokio::time::timeout(Duration::from_secs(20), sweep.next()).await.unwrap().unwrap();
    let Records::Open(open) = polled.records else { panic!("{polled:?}") };
    assert_eq!(open, [id]);
    let status = status(&database.pool).await.unwrap();
    assert_eq!(status.owed.iter().map(|owed| owed.targets).sum::<i64>(), 2);
    database.drop_database().await;
}

#[tokio::test]
async fn a_paused_relation_is_not_swept_until_it_is_resumed() {
    let database = Database::with_documents(true).await;
    database.insert(1, true).await;
    database
        .pool
        .execute("insert into tombstream.pause (relation, reason) values ('documents', 'test')")
        .await
        .unwrap();
    let mut sweep = sweep(&database, documents(), 10, Duration::ZERO);
    finds_nothing(&mut sweep).await;
    let ledger = database.ledger(documents());
    assert!(ledger.resume_relation(DOCUMENTS).await.unwrap().was_paused);
    assert!(!ledger.resume_relation(DOCUMENTS).await.unwrap().was_paused);
    assert_eq!(found(&mut sweep, 1).await.len(), 1);
    database.drop_database().await;
}

#[tokio::test]
async fn timestamps_without_zone_and_boolean_flags_are_swept() {
    for (column, kind, value) in [
        (
            "timestamp",
            FlagKind::Timestamp { zone: "Asia/Tokyo".to_owned() },
            "now() at time zone 'Asia/Tokyo'",
        ),
        ("boolean", FlagKind::Boolean, "true"),
    ] {
        let database = Database::new().await;
        let sql = format!(
            "create table documents (id uuid primary key, deleted_at {column}); \
             insert into documents select gen_random_uuid(), {value} from generate_series(1, 25)"
        );
        database.pool.execute(sqlx::AssertSqlSafe(sql)).await.unwrap();
        let mut relation = documents();
        relation.flag.kind = kind;
        assert_eq!(
            found(&mut sweep(&database, relation.clone(), 10, Duration::ZERO), 25).await.len(),
            25
        );
        let ledger = database.ledger(relation);
        let keys: Vec<Key> =
            found(&mut sweep(&database, ledger_relation(column), 10, Duration::ZERO), 25)
                .await
                .into_iter()
                .collect();
        let claimed = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
        assert_eq!(claimed.len(), 25);
        let batch: Vec<_> =
            claimed.into_iter().map(|claimed| settled(claimed, Verdict::Deleted)).collect();
        ledger.finalize(DOCUMENTS, &batch).await.unwrap();
        assert_eq!(database.count("select count(*) from documents").await, 0);
        database.drop_database().await;
    }
}

fn ledger_relation(column: &str) -> Relation {
    let mut relation = documents();
    relation.flag.kind = match column {
        "boolean" => FlagKind::Boolean,
        _ => FlagKind::Timestamp { zone: "Asia/Tokyo".to_owned() },
    };
    relation
}

#[tokio::test]
async fn dropping_next_loses_nothing() {
    let database = Database::with_documents(true).await;
    database.insert(30, true).await;
    let mut sweep = sweep(&database, documents(), 7, Duration::ZERO);
    let mut keys = HashSet::new();
    for nanos in (0..20_000).step_by(40) {
        let wait = tokio::time::timeout(Duration::from_nanos(nanos * 100), sweep.next());
        if let Ok(polled) = wait.await
            && let Records::Candidates(page) = polled.unwrap().records
        {
            keys.extend(page.into_iter().map(|candidate| candidate.key));
        }
    }
    keys.extend(found(&mut sweep, 30 - keys.len().min(30)).await);
    assert_eq!(keys.len(), 30);
    database.drop_database().await;
}

/// Dropped in the middle of its `begin`, a connection went back to the pool with a transaction that nobody ended, and
/// whoever got it next wrote into that one.
#[tokio::test]
async fn a_begin_that_is_given_up_leaves_no_transaction_behind() {
    let database = Database::with_documents(true).await;
    database.insert(3, true).await;
    let config = SweepConfig {
        interval: Duration::ZERO,
        page_max: 10,
        after: Duration::ZERO,
        rate_max: 1_000_000,
        prepared_statements: false,
    };
    let name = format!("given up {}", uuid::Uuid::new_v4().simple());
    let pool = tombstream_connectors::postgres::connect(database.url(), 3, false, &name);
    let mut sweep = Sweep::new(pool.await.unwrap(), Arc::from([documents()]), config);
    let left = async || -> i64 {
        let sql = "select count(*) from pg_stat_activity \
                       where application_name = $1 and state <> 'idle'";
        sqlx::query_scalar(sql).bind(&name).fetch_one(&database.pool).await.unwrap()
    };
    for turns in (0..3_000).step_by(20) {
        // Finer than any timer: given up after so many turns of the runtime.
        let wait = async {
            for _ in 0..turns {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            polled = sweep.next() => assert!(polled.is_ok()),
            () = wait => {}
        }
        let begun = std::time::Instant::now();
        while left().await > 0 {
            assert!(begun.elapsed() < Duration::from_secs(10), "a transaction is left open");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    database.drop_database().await;
}
