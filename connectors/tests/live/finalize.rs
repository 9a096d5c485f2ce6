//! The finalizing transaction: what goes, what stays, what is written down.

use std::sync::Arc;

use sqlx::Executor;

use tombstream_model::{
    Claimed, DeadLetter, Ending, Event, Key, Ledger, LetterForm, LetterLimits, Origin, Outcome,
    Verdict,
};

use super::support::{DOCUMENTS, Database, all, candidates, documents, settled};

async fn claimed(database: &Database, rows: usize) -> (Vec<Key>, Vec<Claimed>) {
    let keys = database.insert(rows, true).await;
    let ledger = database.ledger(documents());
    let claimed = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    assert_eq!(claimed.len(), rows);
    (keys, claimed)
}

#[tokio::test]
async fn a_confirmed_row_goes_and_leaves_one_receipt() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let (_, claimed) = claimed(&database, 20).await;
    let others = database.insert(5, false).await;

    let batch = all(claimed, Verdict::Deleted);
    assert_eq!(ledger.finalize(DOCUMENTS, &batch).await.unwrap(), vec![Ending::Finalized; 20]);
    // The same again, as after a crash between the removal and the commit of the offset.
    assert_eq!(ledger.finalize(DOCUMENTS, &batch).await.unwrap(), vec![Ending::Fenced; 20]);

    assert_eq!(database.count("select count(*) from documents").await, others.len() as i64);
    assert_eq!(
        database
            .count(
                "select count(*) from tombstream.receipt r join tombstream.deletion d \
                 on d.id = r.deletion_id where d.state = 'finalized' and not r.row_gone \
                 and jsonb_array_length(r.targets) = 2"
            )
            .await,
        20
    );
    database.drop_database().await;
}

#[tokio::test]
async fn an_unconfirmed_target_keeps_the_row() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let (_, mut claims) = claimed(&database, 2).await;
    let mut one_short = settled(claims.remove(0), Verdict::Deleted);
    one_short.outcomes[1] = Outcome::new(Verdict::Unknown, "no answer");
    let mut missing = settled(claims.remove(0), Verdict::Deleted);
    missing.outcomes.pop();
    let endings = ledger.finalize(DOCUMENTS, &[one_short, missing]).await.unwrap();
    assert_eq!(endings, [Ending::Later, Ending::Later]);
    assert_eq!(database.count("select count(*) from documents").await, 2);
    assert_eq!(database.count("select count(*) from tombstream.receipt").await, 0);
    database.drop_database().await;
}

#[tokio::test]
async fn a_hold_that_came_after_the_claim_keeps_the_row() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let (keys, claims) = claimed(&database, 2).await;
    database.hold(&keys[0]).await;
    let endings = ledger.finalize(DOCUMENTS, &all(claims, Verdict::Deleted)).await.unwrap();
    assert_eq!(endings.iter().filter(|ending| **ending == Ending::Later).count(), 1);
    assert_eq!(database.count("select count(*) from documents").await, 1);
    database.drop_database().await;
}

#[tokio::test]
async fn a_locked_row_is_told_from_a_gone_one() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let (keys, claims) = claimed(&database, 3).await;
    let id = |key: &Key| key.columns().next().unwrap().to_owned();
    sqlx::query("delete from documents where id = $1::uuid")
        .bind(id(&keys[0]))
        .execute(&database.pool)
        .await
        .unwrap();
    let mut application = database.pool.begin().await.unwrap();
    sqlx::query("select 1 from documents where id = $1::uuid for update")
        .bind(id(&keys[1]))
        .execute(&mut *application)
        .await
        .unwrap();

    let of: Vec<Key> = claims.iter().map(|claimed| claimed.key.clone()).collect();
    let endings = ledger.finalize(DOCUMENTS, &all(claims, Verdict::Deleted)).await.unwrap();

    let ending = |key: &Key| endings[of.iter().position(|known| known == key).unwrap()].clone();
    assert_eq!(ending(&keys[0]), Ending::FinalizedRowGone);
    assert_eq!(ending(&keys[1]), Ending::Later);
    assert_eq!(ending(&keys[2]), Ending::Finalized);
    application.rollback().await.unwrap();
    assert_eq!(database.count("select count(*) from tombstream.receipt where row_gone").await, 1);
    // What was put off is driven again without another destroy: its outcomes were kept.
    database
        .pool
        .execute("update tombstream.deletion set due_at = now() where closed_at is null")
        .await
        .unwrap();
    let open: Vec<i64> =
        sqlx::query_scalar("select id from tombstream.deletion where state = 'claimed'")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    let taken = ledger.resume(&[tombstream_model::DeletionId(open[0])]).await.unwrap();
    assert!(taken[0].targets.iter().all(|target| target.confirmed.is_some()));
    database.drop_database().await;
}

#[tokio::test]
async fn another_flag_value_is_a_newer_life_and_stays() {
    // Without the guard: with it nobody changes a claimed flag.
    let database = Database::with_documents(false).await;
    let ledger = database.ledger(documents());
    let (_, claims) = claimed(&database, 1).await;
    database
        .pool
        .execute("update documents set deleted_at = deleted_at + interval '1 microsecond'")
        .await
        .unwrap();
    let endings = ledger.finalize(DOCUMENTS, &all(claims, Verdict::Deleted)).await.unwrap();
    assert_eq!(endings, [Ending::Superseded]);
    assert_eq!(database.count("select count(*) from documents").await, 1);
    database.drop_database().await;
}

#[tokio::test]
async fn a_row_that_came_back_to_life_is_a_late_restore() {
    let database = Database::with_documents(false).await;
    let ledger = database.ledger(documents());
    let (_, claims) = claimed(&database, 2).await;
    database.pool.execute("update documents set deleted_at = null").await.unwrap();
    let (first, second) = (claims[0].clone(), claims[1].clone());
    let endings = ledger.finalize(DOCUMENTS, &[settled(first, Verdict::Deleted)]).await.unwrap();
    assert_eq!(endings, [Ending::LateRestore]);
    // The same seen by a takeover: what remains is not destroyed.
    database
        .pool
        .execute("update tombstream.deletion set lease_until = null where closed_at is null")
        .await
        .unwrap();
    assert!(ledger.resume(&[second.id]).await.unwrap().is_empty());
    assert_eq!(database.count("select count(*) from documents").await, 2);
    let late = "select count(*) from tombstream.deletion where state = 'late_restore'";
    assert_eq!(database.count(late).await, 2);
    database.drop_database().await;
}

#[tokio::test]
async fn a_row_that_the_database_refuses_to_remove_is_parked_and_the_others_go() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let (keys, claims) = claimed(&database, 100).await;
    database
        .pool
        .execute("create table child (id uuid references documents (id) on delete restrict)")
        .await
        .unwrap();
    sqlx::query("insert into child values ($1::uuid)")
        .bind(keys[41].columns().next())
        .execute(&database.pool)
        .await
        .unwrap();
    let endings = ledger.finalize(DOCUMENTS, &all(claims, Verdict::Deleted)).await.unwrap();
    assert_eq!(endings.iter().filter(|ending| **ending == Ending::Finalized).count(), 99);
    assert_eq!(endings.iter().filter(|ending| **ending == Ending::Parked).count(), 1);
    let reason: String =
        sqlx::query_scalar("select reason from tombstream.deletion where state = 'parked'")
            .fetch_one(&database.pool)
            .await
            .unwrap();
    assert!(reason.contains("refuses to remove"), "{reason}");
    assert_eq!(database.count("select count(*) from documents").await, 1);
    database.drop_database().await;
}

#[tokio::test]
async fn a_wrong_template_pauses_the_relation_before_the_rows_go() {
    let database = Database::with_documents(true).await;
    let ledger =
        database.ledger_with(documents(), |config| config.stores[0].absent_share_max = 0.5);
    let (_, claims) = claimed(&database, 150).await;
    let mut batch = all(claims, Verdict::Deleted);
    for settled in &mut batch {
        settled.outcomes[0] = Outcome::new(Verdict::Absent, "404");
    }
    let rest = batch.split_off(50);
    // Below 100 first attempts the share says nothing.
    assert_eq!(ledger.finalize(DOCUMENTS, &batch).await.unwrap(), vec![Ending::Finalized; 50]);
    assert_eq!(ledger.finalize(DOCUMENTS, &rest).await.unwrap(), vec![Ending::Paused; 100]);
    assert_eq!(database.count("select count(*) from documents").await, 100);
    let addresses = "select jsonb_array_length(detail -> 'absent')::bigint from tombstream.pause";
    assert_eq!(database.count(addresses).await, 10);
    database.drop_database().await;
}

#[tokio::test]
async fn what_was_claimed_under_a_wrong_template_gets_the_right_address_when_resumed() {
    let database = Database::with_documents(true).await;
    let strict = |config: &mut tombstream_connectors::postgres::LedgerConfig| {
        config.stores[0].absent_share_max = 0.5;
    };
    let wrong = database.ledger_with(documents(), strict);
    let (_, claims) = claimed(&database, 120).await;
    let mut batch = all(claims, Verdict::Deleted);
    for settled in &mut batch {
        settled.outcomes[0] = Outcome::new(Verdict::Absent, "404");
    }
    assert_eq!(wrong.finalize(DOCUMENTS, &batch).await.unwrap(), vec![Ending::Paused; 120]);

    let mut relation = documents();
    relation.targets[0].address = tombstream_model::AddressTemplate::Object {
        bucket: "documents".into(),
        key: tombstream_model::Template::parse("right/{id}").unwrap(),
    };
    let right = database.ledger_with(relation, strict);
    let resumed = right.resume_relation(DOCUMENTS).await.unwrap();
    assert!(resumed.was_paused);
    assert_eq!(resumed.corrected, 120);

    let open: Vec<i64> = sqlx::query_scalar("select id from tombstream.deletion")
        .fetch_all(&database.pool)
        .await
        .unwrap();
    let open: Vec<_> = open.into_iter().map(tombstream_model::DeletionId).collect();
    let taken = right.resume(&open).await.unwrap();
    assert_eq!(taken.len(), 120);
    for claimed in &taken {
        let tombstream_model::Address::Object { key, .. } = &claimed.targets[0].target.address
        else {
            panic!("an object")
        };
        assert!(key.starts_with("right/"), "{key}");
        assert!(claimed.targets[0].confirmed.is_none(), "it is looked for again");
        assert!(claimed.targets[1].confirmed.is_some(), "what was right stays confirmed");
    }
    database.drop_database().await;
}

#[tokio::test]
async fn a_wrong_template_is_noticed_while_another_store_owes() {
    let database = Database::with_documents(true).await;
    let ledger =
        database.ledger_with(documents(), |config| config.stores[0].absent_share_max = 0.5);
    let (_, claims) = claimed(&database, 120).await;
    let mut batch = all(claims, Verdict::Unknown);
    for settled in &mut batch {
        settled.outcomes[0] = Outcome::new(Verdict::Absent, "404");
    }
    ledger.owe(&batch).await.unwrap();
    assert_eq!(database.count("select count(*) from tombstream.pause").await, 1);
    database.drop_database().await;
}

#[tokio::test]
async fn a_hold_that_came_after_the_claim_stops_what_is_left_to_destroy() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let (keys, claims) = claimed(&database, 1).await;
    let id = claims[0].id;
    ledger.owe(&all(claims, Verdict::Unknown)).await.unwrap();
    database.hold(&keys[0]).await;
    database
        .pool
        .execute("update tombstream.deletion set due_at = null where closed_at is null")
        .await
        .unwrap();
    assert!(ledger.resume(&[id]).await.unwrap().is_empty());
    database.pool.execute("update tombstream.hold set released_at = now()").await.unwrap();
    assert_eq!(ledger.resume(&[id]).await.unwrap().len(), 1);
    database.drop_database().await;
}

#[tokio::test]
async fn rows_without_copies_are_finalized_while_their_share_is_small() {
    let database = Database::with_documents(true).await;
    let ledger =
        database.ledger_with(documents(), |config| config.stores[0].absent_share_max = 0.5);
    let (_, claims) = claimed(&database, 400).await;
    let mut batch = all(claims, Verdict::Deleted);
    for settled in batch.iter_mut().step_by(2) {
        settled.outcomes[0] = Outcome::new(Verdict::Absent, "404");
    }
    assert_eq!(ledger.finalize(DOCUMENTS, &batch).await.unwrap(), vec![Ending::Finalized; 400]);
    database.drop_database().await;
}

#[tokio::test]
async fn what_is_owed_is_driven_again_and_what_is_refused_is_parked() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let (_, claims) = claimed(&database, 2).await;
    let mut owed = settled(claims[0].clone(), Verdict::Deleted);
    owed.outcomes[1] = Outcome::new(Verdict::Unknown, "no answer");
    let mut refused = settled(claims[1].clone(), Verdict::Deleted);
    refused.outcomes[1] = Outcome::new(Verdict::Refused, "legal hold");
    ledger.owe(&[owed, refused]).await.unwrap();

    let leased = "select count(*) from tombstream.deletion where lease_until is not null";
    assert_eq!(database.count(leased).await, 0, "the leases are given back, not waited for");
    let reason: String =
        sqlx::query_scalar("select reason from tombstream.deletion where state = 'parked'")
            .fetch_one(&database.pool)
            .await
            .unwrap();
    assert!(reason.contains("search") && reason.contains("legal hold"), "{reason}");
    let taken = loop {
        let mut taken = ledger.resume(&[claims[0].id, claims[1].id]).await.unwrap();
        if let Some(one) = taken.pop() {
            assert!(taken.is_empty(), "a parked deletion is nobody's to resume");
            break one;
        }
    };
    assert_eq!(taken.id, claims[0].id);
    assert!(taken.targets[0].confirmed.is_some());
    assert!(taken.targets[1].confirmed.is_none());
    database.drop_database().await;
}

#[tokio::test]
async fn a_dead_letter_is_kept_whole_and_once() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let event = Event {
        origin: Origin { topic: Arc::from("t"), partition: 3, offset: 9 },
        topic: None,
        key: None,
        value: Some(vec![0, 159, 146, 150].into()),
    };
    let limits = LetterLimits::default();
    let letter = DeadLetter::new(event, LetterForm::Message, "not json\0".to_owned(), limits);
    ledger.bury(std::slice::from_ref(&letter)).await.unwrap();
    ledger.bury(&[letter]).await.unwrap();
    let kept = "select count(*) from tombstream.dead_letter where topic = 't' and partition = 3 \
                and \"offset\" = 9 and key is null and value = '\\x009f9296'";
    assert_eq!(database.count(kept).await, 1);
    database.drop_database().await;
}
