//! Behind a pooler in transaction mode every transaction meets another of the server's sessions.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{Executor, PgPool};

use tombstream_connectors::postgres::{
    PgLedger, Severity, Sweep, SweepConfig, check, check_ledger, dead_letter, dead_letters, guards,
    install_relation, migrate, references, status,
};
use tombstream_model::{
    DeadLetter, Ending, Event, Found, Key, Ledger, LetterForm, LetterLimits, Origin, Outcome,
    Records, Source, Verdict,
};

use super::support::{DOCUMENTS, Database, all, candidates, documents};

const TABLE: &str = "create table documents (id uuid primary key, name text not null, \
                     uploaded_at timestamptz, deleted_at timestamptz)";

/// A migrated database with the guarded table, all of it made through the pooler.
async fn scene() -> (Database, PgPool, PgLedger) {
    let database = Database::empty().await;
    database.pool.execute(TABLE).await.unwrap();
    let pool = database.behind_a_pooler().await;
    migrate(&pool).await.unwrap();
    migrate(&pool).await.unwrap();
    install_relation(&pool, &documents()).await.unwrap();
    let ledger = Database::ledger_on(pool.clone(), documents(), |config| {
        config.prepared_statements = false;
        config.stores[0].absent_share_max = 0.5;
    });
    (database, pool, ledger)
}

/// No session of the server's has a statement with a name: another client's would meet it.
async fn assert_nothing_is_prepared(pool: &PgPool) {
    let mut sessions = std::collections::HashSet::new();
    while sessions.len() < 3 {
        let mut transaction = pool.begin().await.unwrap();
        let (session, prepared): (i32, i64) = sqlx::query_as(
            "select pg_backend_pid(), (select count(*) from pg_prepared_statements)",
        )
        .persistent(false)
        .fetch_one(&mut *transaction)
        .await
        .unwrap();
        transaction.rollback().await.unwrap();
        assert_eq!(prepared, 0);
        sessions.insert(session);
    }
}

#[tokio::test]
async fn a_deletion_goes_its_whole_way_behind_a_pooler() {
    let (database, pool, ledger) = scene().await;
    assert_eq!(
        ledger.generation().await.unwrap().generation,
        ledger.generation().await.unwrap().generation
    );
    let keys = database.insert(20, true).await;

    let interval = Duration::from_millis(1);
    let config = SweepConfig {
        interval,
        page_max: 3,
        after: Duration::ZERO,
        rate_max: 1_000_000,
        prepared_statements: false,
    };
    let mut sweep = Sweep::new(pool.clone(), Arc::from([documents()]), config);
    let mut found = std::collections::HashSet::new();
    while found.len() < keys.len() {
        let Records::Candidates(page) = sweep.next().await.unwrap().records else { continue };
        found.extend(page.into_iter().map(|candidate| candidate.key));
    }
    assert_eq!(found, keys.iter().cloned().collect());

    let mut claimed = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    assert_eq!(claimed.len(), 20);
    let owed = claimed.split_off(10);
    let ids: Vec<_> = owed.iter().map(|claimed| claimed.id).collect();
    let done = all(claimed, Verdict::Deleted);
    assert_eq!(ledger.finalize(DOCUMENTS, &done).await.unwrap(), vec![Ending::Finalized; 10]);

    ledger.owe(&all(owed, Verdict::Unknown)).await.unwrap();
    let mut open = Vec::new();
    while open.is_empty() {
        if let Records::Open(ids) = sweep.next().await.unwrap().records {
            open = ids;
        }
    }
    assert!(open.iter().all(|id| ids.contains(id)), "{open:?}");
    database
        .pool
        .execute("update tombstream.deletion set due_at = null where closed_at is null")
        .await
        .unwrap();
    let taken = ledger.resume(&ids).await.unwrap();
    assert_eq!(taken.len(), 10);
    // One row's removal is refused: the batch is halved down to it, and it is parked.
    database
        .pool
        .execute(
            "create table child (id uuid references documents); \
             insert into child select id from documents limit 1",
        )
        .await
        .unwrap();
    let endings = ledger.finalize(DOCUMENTS, &all(taken, Verdict::Deleted)).await.unwrap();
    assert_eq!(endings.iter().filter(|ending| **ending == Ending::Finalized).count(), 9);
    assert_eq!(endings.iter().filter(|ending| **ending == Ending::Parked).count(), 1);
    assert_eq!(status(&pool).await.unwrap().relations.len(), 2);
    assert_nothing_is_prepared(&pool).await;
    pool.close().await;
    database.drop_database().await;
}

#[tokio::test]
async fn what_is_rare_works_behind_a_pooler() {
    let (database, pool, ledger) = scene().await;

    // A row that another hand removed.
    let mut gone = candidates(&[Key::from_postgres([uuid::Uuid::new_v4().to_string()])]);
    gone[0].found = Found::Removed;
    assert!(ledger.claim(DOCUMENTS, &gone).await.unwrap().is_empty());

    // Too many absent copies: a pause, and its end.
    let keys = database.insert(120, true).await;
    let mut batch =
        all(ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap(), Verdict::Deleted);
    for settled in &mut batch {
        settled.outcomes[0] = Outcome::new(Verdict::Absent, "404");
    }
    assert_eq!(ledger.finalize(DOCUMENTS, &batch).await.unwrap(), vec![Ending::Paused; 120]);
    assert_eq!(status(&pool).await.unwrap().paused.len(), 1);
    let mut moved = documents();
    moved.targets[0].address = tombstream_model::AddressTemplate::Object {
        bucket: "documents".into(),
        key: tombstream_model::Template::parse("right/{id}").unwrap(),
    };
    let moved = Database::ledger_on(pool.clone(), moved, |config| {
        config.prepared_statements = false;
    });
    let resumed = moved.resume_relation(DOCUMENTS).await.unwrap();
    assert_eq!((resumed.was_paused, resumed.corrected), (true, 120));

    // Dead letters.
    let origin = Origin { topic: "t".into(), partition: 0, offset: 7 };
    let event = Event { origin, topic: None, key: None, value: None };
    let limits = LetterLimits::default();
    let letter = DeadLetter::new(event, LetterForm::Message, "no JSON".into(), limits);
    ledger.bury(&[letter]).await.unwrap();
    let listed = dead_letters(&pool, 0, 10).await.unwrap();
    assert_eq!(dead_letter(&pool, listed[0].id).await.unwrap().unwrap().offset, 7);

    // What `check --live` and `run` ask.
    let mut findings = check_ledger(&pool).await.unwrap();
    findings.extend(check(&pool, &documents(), &[]).await.unwrap());
    findings.extend(guards(&pool, &documents()).await.unwrap());
    findings.extend(references(&pool, &documents(), &[]).await.unwrap());
    let errors: Vec<_> =
        findings.iter().filter(|finding| finding.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{errors:?}");
    assert_nothing_is_prepared(&pool).await;
    pool.close().await;
    database.drop_database().await;
}

#[tokio::test]
async fn several_processes_may_migrate_at_once() {
    let database = Database::empty().await;
    // Connected before, so that they really begin at once.
    futures::future::try_join_all([(); 8].map(|()| database.pool.acquire())).await.unwrap();
    futures::future::try_join_all([(); 8].map(|()| migrate(&database.pool))).await.unwrap();
    let applied = "select count(*) from tombstream.migration";
    let known = std::fs::read_dir("../migrations").unwrap().count();
    assert_eq!(usize::try_from(database.count(applied).await).unwrap(), known);
    database.drop_database().await;
}

/// What is edited after it was applied is never taken for what was applied.
#[tokio::test]
async fn a_ledger_of_another_history_is_refused() {
    let database = Database::new().await;
    let newer = "insert into tombstream.migration \
                 select 9999, description, now(), success, checksum, 0 from tombstream.migration \
                 where version = 1";
    database.pool.execute(newer).await.unwrap();
    let refused = migrate(&database.pool).await.unwrap_err().to_string();
    assert!(refused.contains("it has migration 9999"), "{refused}");
    let edit = "update tombstream.migration set checksum = 'edited'";
    database.pool.execute(edit).await.unwrap();
    let refused = migrate(&database.pool).await.unwrap_err();
    let why = std::error::Error::source(&refused).map(ToString::to_string).unwrap_or_default();
    assert!(why.contains("has been modified"), "{why}");
    database.drop_database().await;
}
