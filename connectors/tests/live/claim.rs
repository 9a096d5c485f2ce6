//! What is claimed, and what is left alone.

use sqlx::Executor;

use tombstream_model::{Candidate, Found, Key, Ledger, Verdict};

use super::support::{DOCUMENTS, Database, candidates, documents, settled};

#[tokio::test]
async fn only_flagged_rows_are_claimed() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let flagged = database.insert(3, true).await;
    let alive = database.insert(3, false).await;
    let unknown = vec![Key::from_postgres([uuid::Uuid::new_v4().to_string()])];
    let batch = candidates(&[flagged.clone(), alive, unknown].concat());

    let mut claimed: Vec<Key> = ledger
        .claim(DOCUMENTS, &batch)
        .await
        .unwrap()
        .into_iter()
        .map(|claimed| claimed.key)
        .collect();

    claimed.sort();
    let mut expected = flagged;
    expected.sort();
    assert_eq!(claimed, expected);
    assert_eq!(database.count("select count(*) from tombstream.deletion").await, 3);
    database.drop_database().await;
}

#[tokio::test]
async fn a_key_is_claimed_once_however_often_it_comes() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let keys = database.insert(1, true).await;
    let twice = candidates(&[keys.clone(), keys.clone()].concat());
    assert_eq!(ledger.claim(DOCUMENTS, &twice).await.unwrap().len(), 1);
    assert_eq!(ledger.claim(DOCUMENTS, &twice).await.unwrap().len(), 0);
    database.drop_database().await;
}

/// A second claim of the same keys would keep the first one's finalizing from its rows.
#[tokio::test]
async fn what_is_claimed_is_not_locked_again() {
    let database = Database::with_documents(true).await;
    let keys = database.insert(5, true).await;
    let ledger = database.ledger(documents());
    assert_eq!(ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().len(), 5);
    // The last transaction that locked a row is written in the row.
    let lockers = async || -> Vec<String> {
        let lockers = "select concat_ws(' ', t.xmax, d.xmax) from documents t \
                       join tombstream.deletion d on d.key = array[t.id::text] order by t.id";
        sqlx::query_scalar(lockers).fetch_all(&database.pool).await.unwrap()
    };
    let before = lockers().await;
    assert_eq!(before.len(), 5);
    assert!(ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().is_empty());
    assert_eq!(lockers().await, before);
    database.drop_database().await;
}

#[tokio::test]
async fn a_locked_row_is_skipped_at_once_and_left_to_the_sweep() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let keys = database.insert(50, true).await;
    let mut application = database.pool.begin().await.unwrap();
    sqlx::query("select 1 from documents where id = $1::uuid for update")
        .bind(keys[0].columns().next())
        .execute(&mut *application)
        .await
        .unwrap();

    let batch = candidates(&keys);
    let claim = ledger.claim(DOCUMENTS, &batch);
    let claimed = tokio::time::timeout(std::time::Duration::from_secs(5), claim).await;

    assert_eq!(claimed.expect("the claim waits for no lock").unwrap().len(), 49);
    application.rollback().await.unwrap();
    assert_eq!(ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().len(), 1);
    database.drop_database().await;
}

#[tokio::test]
async fn a_held_row_waits_until_the_hold_is_released() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let keys = database.insert(2, true).await;
    database.hold(&keys[0]).await;

    let claimed = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].key, keys[1]);
    let pending = "select count(*) from tombstream.deletion where state = 'pending'";
    assert_eq!(database.count(pending).await, 1);

    database.pool.execute("update tombstream.hold set released_at = now()").await.unwrap();
    let claimed = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].key, keys[0]);
    database.drop_database().await;
}

#[tokio::test]
async fn grace_runs_from_the_later_of_the_flag_and_first_sight() {
    let database = Database::with_documents(true).await;
    let mut relation = documents();
    relation.grace = std::time::Duration::from_secs(3600);
    let ledger = database.ledger(relation);
    let keys = database.insert(2, false).await;
    // Back-dated: the guard writes it down as first seen now.
    database
        .pool
        .execute("update documents set deleted_at = now() - interval '1 year'")
        .await
        .unwrap();
    assert!(ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().is_empty());
    database
        .pool
        .execute("update tombstream.deletion set first_seen = now() - interval '2 hours' where closed_at is null")
        .await
        .unwrap();
    assert_eq!(ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().len(), 2);
    database.drop_database().await;
}

#[tokio::test]
async fn a_row_without_a_safe_address_is_parked_and_never_claimed() {
    let database = Database::new().await;
    database
        .pool
        .execute("create table documents (id text primary key, deleted_at timestamptz)")
        .await
        .unwrap();
    let mut relation = documents();
    relation.key[0].kind = tombstream_model::KeyKind::Text;
    let ledger = database.ledger(relation);
    database
        .pool
        .execute("insert into documents values ('..', now()), ('fine', now())")
        .await
        .unwrap();
    let keys = ["..", "fine"].map(|id| Key::from_postgres([id.to_owned()]));

    let claimed = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();

    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].key, keys[1]);
    let reason: String =
        sqlx::query_scalar("select reason from tombstream.deletion where state = 'parked'")
            .fetch_one(&database.pool)
            .await
            .unwrap();
    assert!(reason.contains("originals"), "{reason}");
    database.drop_database().await;
}

#[tokio::test]
async fn a_paused_relation_claims_nothing() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let keys = database.insert(2, true).await;
    database
        .pool
        .execute("insert into tombstream.pause (relation, reason) values ('documents', 'test')")
        .await
        .unwrap();
    assert!(ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().is_empty());
    database.drop_database().await;
}

#[tokio::test]
async fn an_event_of_a_removed_row_claims_nothing() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let mut batch = candidates(&database.insert(2, true).await);
    for candidate in &mut batch {
        *candidate = Candidate { found: Found::Removed, ..candidate.clone() };
    }
    assert!(ledger.claim(DOCUMENTS, &batch).await.unwrap().is_empty());
    database.drop_database().await;
}

#[tokio::test]
async fn an_expired_lease_is_taken_over_and_its_owner_fenced() {
    let database = Database::with_documents(true).await;
    let short = std::time::Duration::from_millis(1);
    let slow = database.ledger_with(documents(), |config| config.lease = short);
    let other = database.ledger(documents());
    let keys = database.insert(1, true).await;
    let claimed = slow.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().remove(0);

    let taken = loop {
        let mut taken = other.resume(&[claimed.id]).await.unwrap();
        if let Some(taken) = taken.pop() {
            break taken;
        }
    };

    assert!(taken.fence.token > claimed.fence.token);
    assert!(!taken.first_attempt);
    let endings = slow.finalize(DOCUMENTS, &[settled(claimed, Verdict::Deleted)]).await.unwrap();
    assert_eq!(endings, [tombstream_model::Ending::Fenced]);
    assert_eq!(database.count("select count(*) from documents").await, 1);
    let endings = other.finalize(DOCUMENTS, &[settled(taken, Verdict::Absent)]).await.unwrap();
    assert_eq!(endings, [tombstream_model::Ending::Finalized]);
    database.drop_database().await;
}

#[tokio::test]
async fn a_live_lease_is_not_taken_over() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let keys = database.insert(1, true).await;
    let claimed = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().remove(0);
    assert!(ledger.resume(&[claimed.id]).await.unwrap().is_empty());
    database.drop_database().await;
}

/// A row whose lock statement stops, behind its lock, at a gate: a view's column that waits for an
/// advisory lock. What others commit meanwhile is not in that statement's snapshot.
async fn gated(database: &Database) -> (tombstream_model::Relation, Vec<Key>) {
    let keys = database.insert(1, true).await;
    database
        .pool
        .execute(
            "create function gate() returns text language plpgsql volatile as \
             $$ begin perform pg_advisory_xact_lock(42); return 'original'; end $$; \
             create view gated as select id, deleted_at, gate() as gate from documents",
        )
        .await
        .unwrap();
    let mut relation = documents();
    relation.table = "gated".to_owned();
    relation.targets.truncate(1);
    relation.targets[0].address = tombstream_model::AddressTemplate::Object {
        bucket: "documents".into(),
        key: tombstream_model::Template::parse("{id}/{gate}").unwrap(),
    };
    (relation, keys)
}

/// Sets a hold by hand (without locking the row first, as nobody should) while `behind_its_lock` waits
/// at the gate, then opens the gate.
async fn hold_at_the_gate<T>(
    database: &Database,
    key: &Key,
    behind_its_lock: impl Future<Output = T>,
) -> T {
    let mut gate = database.pool.acquire().await.unwrap();
    gate.execute("select pg_advisory_lock(42)").await.unwrap();
    let hold = async {
        let waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted \
                       and database = (select oid from pg_database where datname = current_database())";
        while database.count(waiting).await == 0 {
            tokio::task::yield_now().await;
        }
        database.hold(key).await;
        gate.execute("select pg_advisory_unlock(42)").await.unwrap();
    };
    tokio::join!(behind_its_lock, hold).0
}

#[tokio::test]
async fn a_hold_set_between_the_snapshot_and_the_lock_is_seen_by_the_second_statement() {
    let database = Database::with_documents(true).await;
    let (relation, keys) = gated(&database).await;
    let ledger = database.ledger(relation);
    let batch = candidates(&keys);
    let claimed = hold_at_the_gate(&database, &keys[0], ledger.claim(DOCUMENTS, &batch)).await;
    assert!(claimed.unwrap().is_empty(), "a held row is not claimed");
    database.drop_database().await;
}

/// Why there are two statements: one alone decides on a snapshot that is older than its lock.
#[tokio::test]
async fn one_statement_alone_does_not_see_that_hold() {
    let database = Database::with_documents(true).await;
    let (_, keys) = gated(&database).await;
    let alone = sqlx::query_scalar::<_, String>(
        "select gate from gated t where deleted_at is not null and not exists ( \
             select from tombstream.hold h where h.relation = 'documents' \
             and h.key = array[t.id::text]) for no key update of t skip locked",
    );
    let locked = hold_at_the_gate(&database, &keys[0], alone.fetch_all(&database.pool)).await;
    assert_eq!(locked.unwrap().len(), 1, "the hold is committed, and was not seen");
    database.drop_database().await;
}

#[tokio::test]
async fn another_server_is_another_generation() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let first = ledger.generation().await.unwrap().generation;
    assert_eq!(ledger.generation().await.unwrap().generation, first);
    let promote = "update tombstream.generation set identity = identity || '{\"timeline\": 99}'";
    database.pool.execute(promote).await.unwrap();
    let second = ledger.generation().await.unwrap().generation;
    assert!(second > first);
    assert_eq!(ledger.generation().await.unwrap().generation, second);
    database.drop_database().await;
}
