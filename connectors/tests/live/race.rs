//! Flags and restores fired at 2,000 rows while they are claimed, destroyed and finalized (S1, S2):
//! every row ends alive with its copies, or finalized with none.
//!
//! The copies are a set in memory; the database, its locks and its triggers are real.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use sqlx::{AssertSqlSafe, Executor, PgPool};

use tombstream_model::{Key, Ledger, Verdict};

use super::support::{DOCUMENTS, Database, candidates, documents, settled};

const ROWS: usize = 2_000;

/// What the race left behind.
struct Left {
    alive: usize,
    finalized: usize,
    alive_without_copy: usize,
    copies_without_row: usize,
}

/// Takes over every claimed deletion at once, as if its lease had run out, and finalizes it. What another
/// worker has locked is left to it: waiting here, two workers would wait for each other.
async fn finish_what_is_open(database: &Database, ledger: &impl Ledger) {
    let due = "update tombstream.deletion set due_at = null where id in ( \
        select id from tombstream.deletion where state = 'claimed' for update skip locked)";
    database.pool.execute(due).await.unwrap();
    let open: Vec<i64> =
        sqlx::query_scalar("select id from tombstream.deletion where state = 'claimed'")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    let open: Vec<_> = open.into_iter().map(tombstream_model::DeletionId).collect();
    let taken = ledger.resume(&open).await.unwrap();
    let batch: Vec<_> = taken.into_iter().map(|it| settled(it, Verdict::Absent)).collect();
    ledger.finalize(DOCUMENTS, &batch).await.unwrap();
}

/// Sets or unsets every flag once, each in a transaction of its own; refusals are counted.
async fn flip(pool: PgPool, keys: Vec<Key>, level: &'static str, set: &'static str) -> usize {
    let mut session = pool.acquire().await.unwrap();
    let default = format!("set session characteristics as transaction isolation level {level}");
    session.execute(AssertSqlSafe(default)).await.unwrap();
    let sql = format!("update documents set deleted_at = {set} where id = $1::uuid");
    let mut refused = 0;
    for key in keys {
        loop {
            let flipped = sqlx::query(AssertSqlSafe(sql.clone()))
                .bind(key.columns().next())
                .execute(&mut *session)
                .await;
            match flipped {
                Ok(_) => break,
                Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("40001") => {}
                Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("TS001") => {
                    refused += 1;
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    session.execute("reset all").await.unwrap();
    session
        .execute("set session characteristics as transaction isolation level read committed")
        .await
        .unwrap();
    refused
}

/// The pipeline's part: claim, destroy, finalize, over and over, until nothing is flagged.
async fn pipeline(
    database: &Database,
    keys: &[Key],
    copies: &Mutex<HashSet<Key>>,
    over: &AtomicBool,
) {
    let ledger = database.ledger(documents());
    loop {
        let last = over.load(Ordering::SeqCst);
        for page in keys.chunks(50) {
            let claimed = ledger.claim(DOCUMENTS, &candidates(page)).await.unwrap();
            let mut batch = Vec::new();
            for claimed in claimed {
                copies.lock().unwrap().remove(&claimed.key);
                batch.push(settled(claimed, Verdict::Deleted));
            }
            tokio::task::yield_now().await;
            ledger.finalize(DOCUMENTS, &batch).await.unwrap();
        }
        finish_what_is_open(database, &ledger).await;
        let flagged =
            database.count("select count(*) from documents where deleted_at is not null").await;
        if last && flagged == 0 {
            return;
        }
    }
}

async fn race(level: &'static str, guard: bool) -> Left {
    let database = Database::with_documents(guard).await;
    let keys = database.insert(ROWS, false).await;
    let copies = Mutex::new(keys.iter().cloned().collect::<HashSet<Key>>());
    let over = Arc::new(AtomicBool::new(false));
    let flips = async {
        let flags = tokio::spawn(flip(database.pool.clone(), keys.clone(), level, "now()"));
        // The restorer comes again and again, so that it meets every stage of a deletion.
        let restores = tokio::spawn({
            let (pool, keys) = (database.pool.clone(), keys.clone());
            async move {
                for _ in 0..2 {
                    flip(pool.clone(), keys.clone(), level, "null").await;
                }
            }
        });
        flags.await.unwrap();
        restores.await.unwrap();
        over.store(true, Ordering::SeqCst);
    };
    tokio::join!(flips, pipeline(&database, &keys, &copies, &over));

    let rows: Vec<String> = sqlx::query_scalar("select id::text from documents")
        .fetch_all(&database.pool)
        .await
        .unwrap();
    let rows: HashSet<Key> = rows.into_iter().map(|id| Key::from_postgres([id])).collect();
    let copies = copies.into_inner().unwrap();
    let receipts = database.count("select count(*) from tombstream.receipt").await;
    assert_eq!(receipts as usize, ROWS - rows.len(), "one receipt for each row that is gone");
    database.drop_database().await;
    Left {
        alive: rows.len(),
        finalized: ROWS - rows.len(),
        alive_without_copy: rows.difference(&copies).count(),
        copies_without_row: copies.difference(&rows).count(),
    }
}

async fn holds(level: &'static str) {
    let left = race(level, true).await;
    println!("{level}: {} alive, {} finalized", left.alive, left.finalized);
    assert_eq!((left.alive_without_copy, left.copies_without_row), (0, 0));
    assert_eq!(left.alive + left.finalized, ROWS);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_row_ends_half_deleted_under_read_committed() {
    holds("read committed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_row_ends_half_deleted_under_repeatable_read() {
    holds("repeatable read").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_row_ends_half_deleted_under_serializable() {
    holds("serializable").await;
}

/// The proof that the races above show the guard: without it they leave rows alive and robbed. A race
/// may miss the window, so it is run again until it meets it, a few times at most.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_guard_the_same_races_leave_rows_alive_without_copies() {
    for level in ["read committed", "repeatable read", "serializable"] {
        let mut robbed = 0;
        for _ in 0..10 {
            robbed = race(level, false).await.alive_without_copy;
            if robbed > 0 {
                break;
            }
        }
        println!("{level}, no guard: {robbed} alive without a copy");
        assert!(robbed > 0, "{level}: no race ever met the window");
    }
}

/// A hold, set as everybody sets one: the row is locked first. Says whether its row was claimed by then.
async fn hold(pool: &PgPool, key: &Key, lock_first: bool) -> bool {
    let mut transaction = pool.begin().await.unwrap();
    let id = key.columns().next().unwrap();
    if lock_first {
        let lock = sqlx::query("select 1 from documents where id = $1::uuid for no key update");
        lock.bind(id).execute(&mut *transaction).await.unwrap();
    }
    let claimed: bool = sqlx::query_scalar(
        "select exists (select from tombstream.deletion where key = array[$1] and claimed_at is not null)",
    )
    .bind(id)
    .fetch_one(&mut *transaction)
    .await
    .unwrap();
    if !lock_first {
        // So that a claim falls between the look and the hold: with the lock none can.
        sqlx::raw_sql("select pg_sleep(0.01)").execute(&mut *transaction).await.unwrap();
    }
    sqlx::query(
        "insert into tombstream.hold (relation, key, case_name, actor) \
         values ('documents', array[$1], 'case 7', 'legal')",
    )
    .bind(id)
    .execute(&mut *transaction)
    .await
    .unwrap();
    transaction.commit().await.unwrap();
    claimed
}

/// What holds fired at 2,000 rows left behind, while these were flagged, restored, claimed and finalized.
struct Held {
    /// Held before the claim, by what the holder saw.
    in_time: usize,
    /// … and robbed of their copy or their row all the same.
    robbed: usize,
    /// Held after the claim, and removed all the same.
    removed: usize,
    /// Whose hold was released, or that had none, and that are there all the same, flagged.
    forgotten: usize,
    finalized: usize,
}

async fn race_with_holds(lock_first: bool) -> Held {
    let database = Database::with_documents(true).await;
    let keys = database.insert(ROWS, false).await;
    let copies = Mutex::new(keys.iter().cloned().collect::<HashSet<Key>>());
    let over = Arc::new(AtomicBool::new(false));
    let front = AtomicUsize::new(0);
    let held = async {
        let mut held = Vec::new();
        // All of it at the same rows at once: flags, holds, restores, and the workers behind them.
        for (place, page) in keys.chunks(50).enumerate() {
            front.store(place, Ordering::SeqCst);
            let flip = |set| flip(database.pool.clone(), page.to_vec(), "read committed", set);
            let flags = tokio::spawn(flip("now()"));
            let holds = tokio::spawn({
                let (pool, page) = (database.pool.clone(), page.to_vec());
                async move {
                    let mut held = Vec::new();
                    for key in page {
                        let claimed = hold(&pool, &key, lock_first).await;
                        held.push((key, claimed));
                    }
                    held
                }
            });
            let restores = tokio::spawn(flip("null"));
            flags.await.unwrap();
            restores.await.unwrap();
            // What was restored too early for its flag.
            flip("now()").await;
            held.extend(holds.await.unwrap());
        }
        let mut place = 0;
        let mut released = Vec::new();
        held.retain(|(key, _)| {
            place += 1;
            if place % 2 == 0 {
                released.push(key.columns().next().unwrap().to_owned());
            }
            place % 2 == 1
        });
        sqlx::query("update tombstream.hold set released_at = now() where key[1] = any($1)")
            .bind(released)
            .execute(&database.pool)
            .await
            .unwrap();
        over.store(true, Ordering::SeqCst);
        held
    };
    // What is held stays flagged: the workers end when nothing else is.
    let worker = || async {
        let ledger = database.ledger(documents());
        loop {
            let last = over.load(Ordering::SeqCst);
            let pages: Vec<_> = keys.chunks(50).collect();
            let pages = if last { &*pages } else { &pages[front.load(Ordering::SeqCst)..][..1] };
            for page in pages {
                let claimed = ledger.claim(DOCUMENTS, &candidates(page)).await.unwrap();
                for claimed in &claimed {
                    copies.lock().unwrap().remove(&claimed.key);
                }
                let batch: Vec<_> =
                    claimed.into_iter().map(|it| settled(it, Verdict::Deleted)).collect();
                tokio::task::yield_now().await;
                ledger.finalize(DOCUMENTS, &batch).await.unwrap();
            }
            finish_what_is_open(&database, &ledger).await;
            let left = "select count(*) from documents d where deleted_at is not null and not exists ( \
                select from tombstream.hold h where h.key = array[d.id::text] and released_at is null)";
            if last && database.count(left).await == 0 {
                return;
            }
        }
    };
    let (held, (), ()) = tokio::join!(held, worker(), worker());

    let rows: Vec<(String, bool)> =
        sqlx::query_as("select id::text, deleted_at is not null from documents")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    let flagged = rows.iter().filter(|(_, flagged)| *flagged).count();
    let rows: HashSet<Key> = rows.into_iter().map(|(id, _)| Key::from_postgres([id])).collect();
    let copies = copies.into_inner().unwrap();
    let there = |key: &Key| rows.contains(key);
    let in_time = || held.iter().filter(|(_, claimed)| !claimed);
    let held_and_flagged = "select count(*) from documents d where deleted_at is not null and exists ( \
        select from tombstream.hold h where h.key = array[d.id::text] and released_at is null)";
    let left = Held {
        in_time: in_time().count(),
        robbed: in_time().filter(|(key, _)| !there(key) || !copies.contains(key)).count(),
        removed: held.iter().filter(|(key, claimed)| *claimed && !there(key)).count(),
        forgotten: flagged - database.count(held_and_flagged).await as usize,
        finalized: ROWS - rows.len(),
    };
    database.drop_database().await;
    left
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_set_in_time_keeps_row_and_copies_and_a_late_one_keeps_the_row() {
    let left = race_with_holds(true).await;
    println!("{} held in time, {} finalized", left.in_time, left.finalized);
    assert_eq!((left.robbed, left.forgotten), (0, 0));
    // A hold that came between claim and finalize keeps the row; one that came after found none.
    println!("{} held too late and removed", left.removed);
    assert!(left.finalized > 0 && left.in_time > 0);
}

/// The proof that the race above shows the row's lock.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_rows_lock_a_hold_is_set_that_keeps_nothing() {
    let mut robbed = 0;
    for _ in 0..10 {
        robbed = race_with_holds(false).await.robbed;
        if robbed > 0 {
            break;
        }
    }
    assert!(robbed > 0, "no race ever met the window");
}
