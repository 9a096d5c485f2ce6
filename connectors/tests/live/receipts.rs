//! The chain of receipts: what is sealed and when, what closes a receipt, what hashed ones hide.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor, PgPool};

use tombstream_connectors::postgres::{
    ReceiptExport, SealError, Sealer, Turn, prove, receipts_of, sealing,
};
use tombstream_model::{
    Candidate, Cause, ChainCheck, DeletionId, End, Ending, Found, Generation, Key, KeyedHash,
    Ledger, Lsn, OnHardDelete, Outcome, Position, Proof, ProofError, Relation, Verdict,
    export_header,
};

use super::support::{DOCUMENTS, Database, all, candidates, documents, settled};

/// Longer than any transaction of these tests.
const WAIT: Duration = Duration::from_secs(30);

async fn finalize(database: &Database, rows: usize) -> Vec<Key> {
    let ledger = database.ledger(documents());
    let keys = database.insert(rows, true).await;
    let claims = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    let endings = ledger.finalize(DOCUMENTS, &all(claims, Verdict::Deleted)).await.unwrap();
    assert_eq!(endings, vec![Ending::Finalized; rows]);
    keys
}

/// A receipt written by hand, in `from` deletions on.
const BY_HAND: &str = "insert into tombstream.receipt \
    (deletion_id, relation, key, flag, claimed_at, finalized_at, row_gone, targets) \
    select n, 'documents', array[n::text], 'true', now(), now(), false, \
        '[{\"store\": \"originals\", \"address\": {\"kind\": \"object\", \"bucket\": \"b\", \"key\": \"k\"}, \
           \"outcome\": {\"verdict\": \"deleted\", \"said\": \"deleted\", \"verified\": \"trust\"}}]' \
    from generate_series($1::bigint, $2::bigint) n";

/// The ledger's export, checked: what is wrong with it, and the check.
async fn exported(pool: &PgPool) -> (Vec<String>, ChainCheck) {
    let mut export = ReceiptExport::begin(pool).await.unwrap();
    let mut lines = vec![export_header()];
    let (mut blocks, mut entries, mut head) = (0, 0, tombstream_model::Hash::ZERO);
    while let Some((block, of)) = export.block().await.unwrap() {
        lines.push(block.text());
        lines.extend(of.iter().map(|entry| entry.text().to_owned()));
        (blocks, entries, head) = (blocks + 1, entries + of.len() as i64, block.hash);
    }
    lines.push(End::new(blocks, entries, head, export.unsealed().await.unwrap()).text());
    let mut check = ChainCheck::default();
    let mut said = Vec::new();
    for line in lines {
        check.line(&line, &mut |problem| said.push(problem.to_string()));
    }
    check.finish(&mut |problem| said.push(problem.to_string()));
    (said, check)
}

#[tokio::test]
async fn receipts_are_sealed_in_order_and_an_export_holds() {
    let database = Database::with_documents(true).await;
    finalize(&database, 20).await;
    let mut sealer = Sealer::new(database.pool.clone());
    assert_eq!(sealing(&database.pool).await.unwrap().unsealed, 20);
    assert_eq!(sealer.all(WAIT).await.unwrap(), 20);
    assert_eq!(sealer.turn().await.unwrap(), Turn::Nothing);
    finalize(&database, 7).await;
    let before = sealing(&database.pool).await.unwrap();
    assert_eq!((before.unsealed, before.blocks), (7, 1));
    assert!(before.waits_seconds.is_some() && before.age_seconds.is_some());
    let (said, check) = exported(&database.pool).await;
    assert_eq!((said, check.unsealed()), (vec![], Some(7)));
    assert_eq!(check.counts().entries, 20);

    assert_eq!(sealer.all(WAIT).await.unwrap(), 7);
    let (said, check) = exported(&database.pool).await;
    assert_eq!((said, check.unsealed()), (vec![], Some(0)));
    assert_eq!((check.counts().blocks, check.counts().entries), (2, 27));
    let after = sealing(&database.pool).await.unwrap();
    assert_eq!((after.unsealed, after.blocks, after.head), (0, 2, check.head()));
    assert_eq!(after.waits_seconds, None);
    database.drop_database().await;
}

#[tokio::test]
async fn an_entry_that_is_not_committed_is_waited_for() {
    let database = Database::with_documents(true).await;
    let mut early = database.pool.begin().await.unwrap();
    sqlx::query(BY_HAND).bind(9_001_i64).bind(9_001_i64).execute(&mut *early).await.unwrap();
    finalize(&database, 3).await;
    let mut sealer = Sealer::new(database.pool.clone());
    assert_eq!(sealer.turn().await.unwrap(), Turn::Waits);
    // What begins now may take a number, too, and is not waited for.
    let mut late = database.pool.begin().await.unwrap();
    sqlx::query(BY_HAND).bind(9_002_i64).bind(9_002_i64).execute(&mut *late).await.unwrap();
    assert_eq!(sealer.turn().await.unwrap(), Turn::Waits);
    early.commit().await.unwrap();
    // Transaction ids are the server's: another test's open transaction is waited for, too.
    let ends = tokio::time::Instant::now() + WAIT;
    let mut turn = sealer.turn().await.unwrap();
    while turn == Turn::Waits && tokio::time::Instant::now() < ends {
        tokio::time::sleep(Duration::from_millis(20)).await;
        turn = sealer.turn().await.unwrap();
    }
    assert_eq!(turn, Turn::Sealed(4));
    assert_eq!(sealer.turn().await.unwrap(), Turn::Waits);
    late.commit().await.unwrap();
    assert_eq!(sealer.all(WAIT).await.unwrap(), 1);
    let (said, check) = exported(&database.pool).await;
    assert_eq!((said, check.counts().entries), (vec![], 5));
    database.drop_database().await;
}

#[tokio::test]
async fn numbers_that_were_rolled_back_hold_up_nothing() {
    let database = Database::with_documents(true).await;
    let mut never = database.pool.begin().await.unwrap();
    sqlx::query(BY_HAND).bind(9_001_i64).bind(9_003_i64).execute(&mut *never).await.unwrap();
    never.rollback().await.unwrap();
    let mut sealer = Sealer::new(database.pool.clone());
    assert_eq!(sealer.all(WAIT).await.unwrap(), 0);
    finalize(&database, 2).await;
    assert_eq!(sealer.all(WAIT).await.unwrap(), 2);
    database.drop_database().await;
}

#[tokio::test]
async fn one_process_seals_at_a_time_and_finalizers_at_once_lose_nothing() {
    let database = Database::with_documents(true).await;
    let mut other = database.pool.begin().await.unwrap();
    other
        .execute("select pg_advisory_xact_lock(hashtextextended('tombstream.seal', 0))")
        .await
        .unwrap();
    finalize(&database, 1).await;
    let mut sealer = Sealer::new(database.pool.clone());
    assert_eq!(sealer.turn().await.unwrap(), Turn::Another);
    other.rollback().await.unwrap();

    let write = async |worker: i64| {
        for n in 0..60 {
            let (from, to) = (10_000 * worker + n * 10, 10_000 * worker + n * 10 + 9);
            let mut writes = database.pool.begin().await.unwrap();
            sqlx::query(BY_HAND).bind(from).bind(to).execute(&mut *writes).await.unwrap();
            match n % 7 {
                6 => writes.rollback().await.unwrap(),
                _ => writes.commit().await.unwrap(),
            }
        }
    };
    let seal = async || {
        let mut sealer = Sealer::new(database.pool.clone());
        for _ in 0..200 {
            sealer.turn().await.unwrap();
        }
    };
    tokio::join!(write(1), write(2), write(3), write(4), seal(), seal());
    sealer.all(WAIT).await.unwrap();
    let receipts = database.count("select count(*) from tombstream.receipt").await;
    let (said, check) = exported(&database.pool).await;
    assert_eq!((said, check.counts().entries), (vec![], receipts));
    assert!(check.counts().blocks > 1);
    database.drop_database().await;
}

#[tokio::test]
async fn a_large_rest_is_sealed_block_by_block() {
    let database = Database::new().await;
    sqlx::query(BY_HAND).bind(1_i64).bind(10_000_i64).execute(&database.pool).await.unwrap();
    let mut sealer = Sealer::new(database.pool.clone());
    assert_eq!(sealer.all(WAIT).await.unwrap(), 10_000);
    let (said, check) = exported(&database.pool).await;
    assert_eq!((said, check.counts().blocks, check.counts().entries), (vec![], 3, 10_000));
    database.drop_database().await;
}

#[tokio::test]
async fn a_receipt_that_was_changed_or_taken_out_of_the_ledger_is_found() {
    let database = Database::with_documents(true).await;
    finalize(&database, 5).await;
    let mut sealer = Sealer::new(database.pool.clone());
    sealer.all(WAIT).await.unwrap();
    finalize(&database, 5).await;
    sealer.all(WAIT).await.unwrap();
    let refused = database.pool.execute("delete from tombstream.receipt_block").await.unwrap_err();
    assert!(refused.to_string().contains("append-only"), "{refused}");
    for (table, change, finding) in [
        (
            "receipt",
            "update tombstream.receipt set flag = '1999-01-01 00:00:00+00' where deletion_id = \
          (select min(deletion_id) from tombstream.receipt)",
            "block 1 ",
        ),
        (
            "receipt",
            "update tombstream.receipt set row_gone = true where deletion_id = \
          (select max(deletion_id) from tombstream.receipt)",
            "block 2 ",
        ),
        (
            "receipt",
            "delete from tombstream.receipt where deletion_id = \
          (select max(deletion_id) from tombstream.receipt)",
            "says that it has 5 entries, and has 4",
        ),
        (
            "receipt_block",
            "update tombstream.receipt_block set sealed_at = now() where number = 1",
            "block 1: its hash is another",
        ),
        (
            "receipt_block",
            "delete from tombstream.receipt_block where number = 1",
            "block 2 comes after block 0",
        ),
    ] {
        // The owner takes the trigger away for a moment.
        let mut owner = database.pool.begin().await.unwrap();
        let (off, on) = ("disable", "enable");
        let trigger = |is: &str| {
            AssertSqlSafe(format!("alter table tombstream.{table} {is} trigger append_only"))
        };
        owner.execute(trigger(off)).await.unwrap();
        owner.execute(change).await.unwrap();
        owner.execute(trigger(on)).await.unwrap();
        owner.commit().await.unwrap();
        let (said, _) = exported(&database.pool).await;
        assert!(said.iter().any(|it| it.contains(finding)), "{change}: {said:?}");
    }
    database.drop_database().await;
}

#[tokio::test]
async fn a_sequence_that_was_set_back_is_an_error_with_its_remedy() {
    let database = Database::with_documents(true).await;
    finalize(&database, 5).await;
    let mut sealer = Sealer::new(database.pool.clone());
    sealer.all(WAIT).await.unwrap();
    database.pool.execute("select setval('tombstream.receipt_entry', 2)").await.unwrap();
    let error = sealer.turn().await.unwrap_err();
    assert!(matches!(error, SealError::Behind { at: 2, sealed: 5 }), "{error}");
    assert!(error.to_string().contains("select setval('tombstream.receipt_entry', 5)"));
    database.drop_database().await;
}

/// The event of a row's removal, at a place in the log.
fn removal(key: &Key, at: Lsn) -> Candidate {
    let mut candidate = candidates(std::slice::from_ref(key)).remove(0);
    (candidate.cause, candidate.found) = (Cause::Event, Found::Removed);
    candidate.position = Some(Position { generation: Generation(0), lsn: at, order: 0 });
    candidate
}

async fn window(database: &Database, key: &Key) -> (Lsn, Lsn) {
    let (locked, removed): (String, String) = sqlx::query_as(
        "select locked_lsn::text, removed_lsn::text from tombstream.receipt where key = $1 \
         order by entry desc limit 1",
    )
    .bind(key.columns().map(str::to_owned).collect::<Vec<_>>())
    .fetch_one(&database.pool)
    .await
    .unwrap();
    (locked.parse().unwrap(), removed.parse().unwrap())
}

#[tokio::test]
async fn the_removal_that_is_seen_back_closes_its_receipt_once() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let keys = finalize(&database, 2).await;
    let (locked, removed) = window(&database, &keys[0]).await;
    let closed = "select count(*) from tombstream.receipt_closed";
    // Another hand's, before; what came behind; another key's place.
    for at in [Lsn(locked.0 - 1), Lsn(removed.0 + 1)] {
        assert!(ledger.claim(DOCUMENTS, &[removal(&keys[0], at)]).await.unwrap().is_empty());
        assert_eq!(database.count(closed).await, 0, "{at}");
    }
    for _ in 0..2 {
        ledger.claim(DOCUMENTS, &[removal(&keys[0], locked)]).await.unwrap();
        assert_eq!(database.count(closed).await, 1);
    }
    let mut sealer = Sealer::new(database.pool.clone());
    sealer.all(WAIT).await.unwrap();
    let (said, check) = exported(&database.pool).await;
    assert_eq!((said, check.counts().entries, check.counts().closed), (vec![], 3, 1));
    // A row that another hand had removed has no removal of ours.
    let gone = database.insert(1, true).await;
    let claims = ledger.claim(DOCUMENTS, &candidates(&gone)).await.unwrap();
    database.pool.execute("delete from documents").await.unwrap();
    let endings = ledger.finalize(DOCUMENTS, &all(claims, Verdict::Deleted)).await.unwrap();
    assert_eq!(endings, [Ending::FinalizedRowGone]);
    let (locked, _) = window(&database, &gone[0]).await;
    ledger.claim(DOCUMENTS, &[removal(&gone[0], locked)]).await.unwrap();
    assert_eq!(database.count(closed).await, 1);
    database.drop_database().await;
}

#[tokio::test]
async fn the_life_that_was_removed_is_closed_and_not_another_of_its_key() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let keys = finalize(&database, 1).await;
    let (first, _) = window(&database, &keys[0]).await;
    sqlx::query("insert into documents values ($1::uuid, 'again', now(), null)")
        .bind(keys[0].columns().next())
        .execute(&database.pool)
        .await
        .unwrap();
    database.pool.execute("update documents set deleted_at = now()").await.unwrap();
    let claims = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    ledger.finalize(DOCUMENTS, &all(claims, Verdict::Deleted)).await.unwrap();
    let (second, _) = window(&database, &keys[0]).await;
    let events = [removal(&keys[0], second), removal(&keys[0], first)];
    ledger.claim(DOCUMENTS, &events).await.unwrap();
    let closed: Vec<String> = sqlx::query_scalar(
        "select c.removed_lsn::text from tombstream.receipt_closed c order by c.deletion_id",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    assert_eq!(closed, [first.to_string(), second.to_string()]);
    database.drop_database().await;
}

#[tokio::test]
async fn a_hashed_receipt_names_nobody_and_is_found_by_its_key() {
    let database = Database::with_documents(true).await;
    let relation = Relation { on_hard_delete: OnHardDelete::Destroy, ..documents() };
    tombstream_connectors::postgres::install_relation(&database.pool, &relation).await.unwrap();
    let keyed = KeyedHash::new(b"a secret of the tests").unwrap();
    let ledger = database.ledger(relation).with_hashed_receipts(keyed.clone());
    let keys = database.insert(2, true).await;
    let claims = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    let batch = claims.into_iter().map(|claimed| {
        let key = claimed.key.columns().next().unwrap().to_owned();
        let mut settled = settled(claimed, Verdict::Deleted);
        settled.outcomes[0] = Outcome::new(Verdict::Deleted, format!("deleted {key}"));
        settled
    });
    let batch: Vec<_> = batch.collect();
    assert_eq!(ledger.finalize(DOCUMENTS, &batch).await.unwrap(), vec![Ending::Finalized; 2]);

    let receipts: Vec<String> =
        sqlx::query_scalar("select row_to_json(r)::text from tombstream.receipt r")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    for key in &keys {
        let id = key.columns().next().unwrap();
        assert!(receipts.iter().all(|it| !it.contains(id)), "{receipts:?}");
    }
    assert!(receipts[0].contains("withheld"), "{receipts:?}");
    let found = receipts_of(&database.pool, "documents", &keys[1], Some(&keyed)).await.unwrap();
    assert_eq!(found.len(), 1);
    let found = receipts_of(&database.pool, "documents", &keys[1], None).await.unwrap();
    assert_eq!(found, [] as [DeletionId; 0]);
    Sealer::new(database.pool.clone()).all(WAIT).await.unwrap();
    let (said, check) = exported(&database.pool).await;
    assert_eq!((said, check.counts().entries), (vec![], 2));

    // Its own removal is known by the hash, and is no hard delete.
    let (locked, _): (String, String) = sqlx::query_as(
        "select locked_lsn::text, removed_lsn::text from tombstream.receipt where key = array[$1]",
    )
    .bind(keyed.key("documents", &keys[0]).to_string())
    .fetch_one(&database.pool)
    .await
    .unwrap();
    let mut event = removal(&keys[0], locked.parse().unwrap());
    event.removed = Some(vec![keys[0].columns().next().map(Box::from)].into());
    assert!(ledger.claim(DOCUMENTS, &[event]).await.unwrap().is_empty());
    assert_eq!(database.count("select count(*) from tombstream.receipt_closed").await, 1);
    let open = "select count(*) from tombstream.deletion where closed_at is null";
    assert_eq!(database.count(open).await, 0);
    database.drop_database().await;
}

#[tokio::test]
async fn a_deletion_is_proven_as_far_as_it_is_sealed() {
    let database = Database::with_documents(true).await;
    finalize(&database, 5).await;
    let keys = finalize(&database, 6).await;
    let found = receipts_of(&database.pool, "documents", &keys[2], None).await.unwrap();
    let proofs = prove(&database.pool, found[0]).await.unwrap();
    assert!(matches!(Proof::check(&proofs[0].text()), Err(ProofError::Unsealed)));
    let mut sealer = Sealer::new(database.pool.clone());
    sealer.all(WAIT).await.unwrap();
    let (locked, _) = window(&database, &keys[2]).await;
    let ledger = database.ledger(documents());
    ledger.claim(DOCUMENTS, &[removal(&keys[2], locked)]).await.unwrap();
    sealer.all(WAIT).await.unwrap();
    let proofs = prove(&database.pool, found[0]).await.unwrap();
    let blocks: Vec<i64> = proofs
        .iter()
        .map(|proof| {
            let (block, deletion) = Proof::check(&proof.text()).unwrap();
            assert_eq!(deletion, found[0]);
            block.number
        })
        .collect();
    assert_eq!(blocks, [1, 2]);
    assert!(prove(&database.pool, DeletionId(i64::MAX)).await.unwrap().is_empty());
    database.drop_database().await;
}
