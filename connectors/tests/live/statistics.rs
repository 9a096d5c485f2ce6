//! What the planner believes of the ledger does not decide what a batch costs.

use std::time::{Duration, Instant};

use sqlx::Executor as _;
use tombstream_connectors::postgres::connect;
use tombstream_model::{
    Candidate, Ending, Found, Generation, Key, Ledger as _, Lsn, Position, Verdict,
};

use super::support::{DOCUMENTS, Database, all, candidates, documents};

/// Claims and finalizes `keys` in batches; all are open before the first is finalized.
async fn finish(database: &Database, keys: &[Key], batch: usize) {
    // One session, which says what it has read when it ends.
    let pool = connect(database.url(), 1, true, "test").await.unwrap();
    let ledger = Database::ledger_on(pool.clone(), documents(), |_| {});
    let mut claimed = Vec::new();
    for part in keys.chunks(batch) {
        claimed.extend(ledger.claim(DOCUMENTS, &candidates(part)).await.unwrap());
    }
    assert_eq!(claimed.len(), keys.len());
    for part in all(claimed, Verdict::Deleted).chunks(batch) {
        let endings = ledger.finalize(DOCUMENTS, part).await.unwrap();
        assert!(endings.iter().all(|ending| *ending == Ending::Finalized), "{endings:?}");
    }
    pool.close().await;
}

/// How often the ledger's indexes were asked, and how many entries they gave.
async fn read(database: &Database) -> (i64, i64) {
    let read = "select sum(idx_scan)::bigint, sum(idx_tup_read)::bigint from pg_stat_user_indexes \
                where schemaname = 'tombstream' and relname = 'deletion'";
    sqlx::query_as(read).fetch_one(&database.pool).await.unwrap()
}

/// Statistics are of a moment when nothing was open: a join over the index of what is open would then read all of
/// it for each key.
#[tokio::test]
async fn a_key_is_looked_up_by_the_index_whatever_the_statistics_say() {
    let database = Database::with_documents(true).await;
    let before = database.insert(1_000, true).await;
    finish(&database, &before, 500).await;
    for batch in [500, 10] {
        database.pool.execute("vacuum analyze tombstream.deletion").await.unwrap();
        let (asked, given) = read(&database).await;
        let keys = database.insert(1_500, true).await;
        finish(&database, &keys, batch).await;
        // Each key is looked up in the index of what is open at least once by its claim.
        let begun = Instant::now();
        let given = loop {
            let (now_asked, now_given) = read(&database).await;
            if now_asked - asked >= 1_500 {
                break now_given - given;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{now_asked} after {asked}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert!(given < 50 * 1_500, "{given} entries for 1,500 keys in batches of {batch}");
    }
    database.drop_database().await;
}

/// The table's own statistics are of a moment when it was empty, and all rows have one flag, as after a mistake.
#[tokio::test]
async fn a_batch_costs_its_rows_though_the_table_was_empty_when_it_was_looked_at_last() {
    let database = Database::with_documents(true).await;
    let before = database.insert(500, true).await;
    finish(&database, &before, 500).await;
    database.pool.execute("vacuum analyze documents").await.unwrap();
    let keys = database.insert(10_000, true).await;
    // Some seconds; compared each with each it would be minutes.
    let done = tokio::time::timeout(Duration::from_secs(60), finish(&database, &keys, 500)).await;
    assert!(done.is_ok(), "more than a minute for 10,000 rows");
    assert_eq!(database.count("select count(*) from documents").await, 0);
    database.drop_database().await;
}

/// The log tells the pipeline of its own removals: each closes its receipt. The session's plan is of a time when there
/// were few.
#[tokio::test]
async fn a_removal_that_comes_back_costs_its_own_receipt() {
    let database = Database::with_documents(true).await;
    // One session, which says what it has read when it ends.
    let pool = connect(database.url(), 1, true, "test").await.unwrap();
    let ledger = Database::ledger_on(pool.clone(), documents(), |_| {});
    let mut closed = 0;
    for count in [40, 3_000] {
        let keys = database.insert(count, true).await;
        finish(&database, &keys, 500).await;
        let told = "select key, removed_lsn::text from tombstream.receipt r where not exists (select \
            from tombstream.receipt_closed c where c.deletion_id = r.deletion_id) limit 400";
        let told: Vec<(Vec<String>, String)> =
            sqlx::query_as(told).fetch_all(&database.pool).await.unwrap();
        closed += told.len() as i64;
        for part in told.chunks(4) {
            let part: Vec<Candidate> = part.iter().map(removed).collect();
            assert!(ledger.claim(DOCUMENTS, &part).await.unwrap().is_empty());
        }
    }
    assert_eq!(database.count("select count(*) from tombstream.receipt_closed").await, closed);
    pool.close().await;
    let read = "select (seq_tup_read + idx_tup_fetch)::bigint from pg_stat_user_tables \
        where schemaname = 'tombstream' and relname = 'receipt'";
    let begun = Instant::now();
    let given = loop {
        let given = database.count(read).await;
        if given >= closed {
            break given;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{given} rows are read");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    // By the key, some times each; read whole for each batch, it would be 300,000.
    assert!(given < 20_000, "{given} receipts are read for {closed} removals");
    database.drop_database().await;
}

fn removed((key, lsn): &(Vec<String>, String)) -> Candidate {
    let lsn: Lsn = lsn.parse().unwrap();
    let position = Some(Position { generation: Generation(0), lsn, order: 0 });
    let of = candidates(&[Key::from_postgres(key.clone())]).remove(0);
    Candidate { position, found: Found::Removed, ..of }
}
