//! The guard triggers (S2): a restore wins or is refused, never half.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};

use tombstream_connectors::postgres::{Severity, guards, install_relation, relation_sql};
use tombstream_model::{AddressTemplate, FlagKind, Key, Ledger, OnHardDelete, Relation, Template};

use super::support::{DOCUMENTS, Database, candidates, documents};

const LEVELS: [&str; 3] = ["read committed", "repeatable read", "serializable"];

fn code(error: &sqlx::Error) -> String {
    error.as_database_error().and_then(|error| error.code()).unwrap_or_default().into_owned()
}

async fn restore(connection: &mut PgConnection, key: &Key) -> Result<u64, sqlx::Error> {
    sqlx::query("update documents set deleted_at = null where id = $1::uuid")
        .bind(key.columns().next())
        .execute(connection)
        .await
        .map(|done| done.rows_affected())
}

/// Restores `key` in a transaction whose snapshot is older than the claim.
async fn restore_on_an_old_snapshot(
    database: &Database,
    level: &str,
    guard: bool,
) -> Option<String> {
    let ledger = database.ledger(documents());
    let keys = database.insert(1, true).await;
    let mut session = database.pool.acquire().await.unwrap();
    let mut transaction =
        session.begin_with(AssertSqlSafe(format!("begin isolation level {level}"))).await.unwrap();
    transaction.execute("select count(*) from documents").await.unwrap();
    assert_eq!(ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().len(), 1);
    let outcome = match restore(&mut transaction, &keys[0]).await {
        Ok(_) => transaction.commit().await.err().map(|error| code(&error)),
        Err(error) => Some(code(&error)),
    };
    assert!(guard || outcome.is_none(), "without a guard nothing refuses: {outcome:?}");
    outcome
}

#[tokio::test]
async fn a_restore_after_the_claim_is_refused_under_every_isolation_level() {
    let database = Database::with_documents(true).await;
    let refused = |level| restore_on_an_old_snapshot(&database, level, true);
    assert_eq!(refused(LEVELS[0]).await.as_deref(), Some("TS001"));
    assert_eq!(refused(LEVELS[1]).await.as_deref(), Some("40001"));
    assert_eq!(refused(LEVELS[2]).await.as_deref(), Some("40001"));
    assert_eq!(database.count("select count(*) from documents where deleted_at is null").await, 0);
    database.drop_database().await;
}

#[tokio::test]
async fn without_the_guard_a_restore_after_the_claim_passes() {
    let database = Database::with_documents(false).await;
    for level in LEVELS {
        assert_eq!(restore_on_an_old_snapshot(&database, level, false).await, None);
    }
    assert_eq!(database.count("select count(*) from documents where deleted_at is null").await, 3);
    database.drop_database().await;
}

#[tokio::test]
async fn a_restore_before_the_claim_cancels_under_every_isolation_level() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    for level in LEVELS {
        let keys = database.insert(1, true).await;
        let mut session = database.pool.acquire().await.unwrap();
        let mut transaction = session
            .begin_with(AssertSqlSafe(format!("begin isolation level {level}")))
            .await
            .unwrap();
        assert_eq!(restore(&mut transaction, &keys[0]).await.unwrap(), 1);
        // The restorer holds the row: the claim skips it.
        assert!(ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().is_empty());
        transaction.commit().await.unwrap();
        assert!(ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().is_empty());
    }
    let cancelled = "select count(*) from tombstream.deletion where state = 'cancelled'";
    assert_eq!(database.count(cancelled).await, 3);
    assert_eq!(database.count("select count(*) from tombstream.deletion").await, 3);
    database.drop_database().await;
}

#[tokio::test]
async fn deleted_restored_and_deleted_again_is_two_deletions() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let keys = database.insert(1, false).await;
    for set in ["now()", "null", "now()"] {
        let sql = format!("update documents set deleted_at = {set}");
        database.pool.execute(AssertSqlSafe(sql)).await.unwrap();
    }
    assert_eq!(ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().len(), 1);
    let states: Vec<String> =
        sqlx::query_scalar("select state from tombstream.deletion order by id")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    assert_eq!(states, ["cancelled", "claimed"]);
    database.drop_database().await;
}

#[tokio::test]
async fn stamping_a_claimed_row_again_keeps_the_old_value() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let keys = database.insert(1, true).await;
    let claimed = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().remove(0);
    database
        .pool
        .execute("update documents set deleted_at = '2030-01-01', name = 'x'")
        .await
        .unwrap();
    let kept: (String, String) = sqlx::query_as("select deleted_at::text, name from documents")
        .fetch_one(&database.pool)
        .await
        .unwrap();
    assert_eq!(kept, (claimed.flag, "x".to_owned()));
    database.drop_database().await;
}

#[tokio::test]
async fn the_key_of_a_claimed_row_can_not_be_changed() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let keys = database.insert(1, true).await;
    ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    let error =
        database.pool.execute("update documents set id = gen_random_uuid()").await.unwrap_err();
    assert_eq!(code(&error), "TS001");
    database.drop_database().await;
}

#[tokio::test]
async fn an_upsert_can_not_revive_a_claimed_row() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let keys = database.insert(1, true).await;
    ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    for level in LEVELS {
        let mut session = database.pool.acquire().await.unwrap();
        let mut transaction = session
            .begin_with(AssertSqlSafe(format!("begin isolation level {level}")))
            .await
            .unwrap();
        let error = sqlx::query(
            "insert into documents values ($1::uuid, 'again') \
             on conflict (id) do update set deleted_at = null",
        )
        .bind(keys[0].columns().next())
        .execute(&mut *transaction)
        .await
        .unwrap_err();
        assert_eq!(code(&error), "TS001", "{level}");
    }
    database.drop_database().await;
}

#[tokio::test]
async fn an_application_role_without_rights_on_the_ledger_can_restore() {
    let database = Database::with_documents(true).await;
    let keys = database.insert(2, true).await;
    let ledger = database.ledger(documents());
    ledger.claim(DOCUMENTS, &candidates(&keys[..1])).await.unwrap();
    let role = format!("app_{}", uuid::Uuid::new_v4().simple());
    let mut session = database.pool.acquire().await.unwrap();
    for sql in [
        format!("create role {role}"),
        format!("grant select, update on documents to {role}"),
        format!("set role {role}"),
    ] {
        session.execute(AssertSqlSafe(sql)).await.unwrap();
    }
    assert_eq!(code(&restore(&mut session, &keys[0]).await.unwrap_err()), "TS001");
    assert_eq!(restore(&mut session, &keys[1]).await.unwrap(), 1);
    for sql in [
        "reset role".to_owned(),
        format!("revoke all on documents from {role}"),
        format!("drop role {role}"),
    ] {
        session.execute(AssertSqlSafe(sql)).await.unwrap();
    }
    drop(session);
    database.drop_database().await;
}

#[tokio::test]
async fn a_trigger_that_fires_later_can_not_revive_a_claimed_row() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let keys = database.insert(1, true).await;
    ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    database
        .pool
        .execute(
            "create function revive() returns trigger language plpgsql as \
             $$ begin new.deleted_at := null; return new; end $$; \
             create trigger zzz_last before update on documents \
             for each row execute function revive()",
        )
        .await
        .unwrap();
    let error = database.pool.execute("update documents set name = 'x'").await.unwrap_err();
    assert_eq!(code(&error), "TS001");
    database.drop_database().await;
}

#[tokio::test]
async fn the_guard_holds_on_partitions_and_when_a_row_moves() {
    let database = Database::new().await;
    database
        .pool
        .execute(
            "create table documents (id uuid, tenant int, deleted_at timestamptz, \
                 primary key (id, tenant)) partition by list (tenant); \
             create table documents_1 partition of documents for values in (1); \
             create table documents_2 partition of documents for values in (2)",
        )
        .await
        .unwrap();
    install_relation(&database.pool, &documents()).await.unwrap();
    database
        .pool
        .execute("insert into documents values (gen_random_uuid(), 1, now())")
        .await
        .unwrap();
    let id: String = sqlx::query_scalar("select id::text from documents")
        .fetch_one(&database.pool)
        .await
        .unwrap();
    let ledger = database.ledger(documents());
    let keys = [Key::from_postgres([id])];
    assert_eq!(ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().len(), 1);
    for sql in [
        "update documents set deleted_at = null",
        "update documents_1 set deleted_at = null",
        "update documents set deleted_at = null, tenant = 2",
    ] {
        let error = database.pool.execute(sql).await.unwrap_err();
        assert_eq!(code(&error), "TS001", "{sql}");
    }
    database.drop_database().await;
}

#[tokio::test]
async fn a_boolean_flag_is_guarded_and_always_written_down() {
    let database = Database::new().await;
    database
        .pool
        .execute("create table documents (id uuid primary key, gone boolean)")
        .await
        .unwrap();
    let mut relation = documents();
    relation.flag.column = "gone".to_owned();
    relation.flag.kind = FlagKind::Boolean;
    install_relation(&database.pool, &relation).await.unwrap();
    let id: String =
        sqlx::query_scalar("insert into documents values (gen_random_uuid()) returning id::text")
            .fetch_one(&database.pool)
            .await
            .unwrap();
    database.pool.execute("update documents set gone = true").await.unwrap();
    let pending = "select count(*) from tombstream.deletion where state = 'pending'";
    assert_eq!(database.count(pending).await, 1);
    database.pool.execute("update documents set gone = false").await.unwrap();
    database.pool.execute("update documents set gone = true").await.unwrap();
    let ledger = database.ledger(relation);
    let keys = [Key::from_postgres([id])];
    assert_eq!(ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().len(), 1);
    let error = database.pool.execute("update documents set gone = null").await.unwrap_err();
    assert_eq!(code(&error), "TS001");
    database.drop_database().await;
}

#[tokio::test]
async fn hostile_names_are_quoted_everywhere() {
    let database = Database::new().await;
    let mut relation = documents();
    relation.name = "we'ird \\ \"$tombstream$\"".into();
    relation.schema = "s\"; drop".to_owned();
    relation.table = "t'a\"b".to_owned();
    relation.key[0].name = "i\"d".to_owned();
    relation.flag.column = "del eted\"".to_owned();
    relation.targets.truncate(1);
    relation.targets[0].address = tombstream_model::AddressTemplate::Object {
        bucket: "documents".into(),
        key: tombstream_model::Template::parse("{i\"d}").unwrap(),
    };
    database
        .pool
        .execute(
            "create schema \"s\"\"; drop\"; create table \"s\"\"; drop\".\"t'a\"\"b\" \
             (\"i\"\"d\" uuid primary key, \"del eted\"\"\" timestamptz)",
        )
        .await
        .unwrap();
    install_relation(&database.pool, &relation).await.unwrap();
    install_relation(&database.pool, &relation).await.expect("twice is harmless");
    assert!(!relation_sql(&relation, true).iter().any(|sql| sql.contains("concurrently")));
    let id: String = sqlx::query_scalar(
        "insert into \"s\"\"; drop\".\"t'a\"\"b\" values (gen_random_uuid(), now()) \
         returning \"i\"\"d\"::text",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    let ledger = database.ledger(relation);
    let keys = [Key::from_postgres([id])];
    let claimed = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    assert_eq!(claimed.len(), 1);
    let mut session = database.pool.acquire().await.unwrap();
    let error = session
        .execute("update \"s\"\"; drop\".\"t'a\"\"b\" set \"del eted\"\"\" = null")
        .await
        .unwrap_err();
    assert_eq!(code(&error), "TS001");
    // An error is told before its transaction has given its locks back; the next answer comes after.
    session.execute("select 1").await.unwrap();
    drop(session);
    let settled = super::support::settled(claimed[0].clone(), tombstream_model::Verdict::Deleted);
    let endings = ledger.finalize(DOCUMENTS, &[settled]).await.unwrap();
    assert_eq!(endings, [tombstream_model::Ending::Finalized]);
    database.drop_database().await;
}

#[tokio::test]
async fn each_trigger_that_is_missing_or_asleep_is_found() {
    let database = Database::with_documents(false).await;
    // An address that can change has a trigger of its own.
    database.pool.execute("alter table documents add column tenant text").await.unwrap();
    let mut relation = Relation { on_hard_delete: OnHardDelete::Destroy, ..documents() };
    relation.targets[0].address = AddressTemplate::Object {
        bucket: "documents".into(),
        key: Template::parse("{tenant}/{id}").unwrap(),
    };
    let bad = async || {
        let found = guards(&database.pool, &relation).await.unwrap();
        let bad = found.into_iter().filter(|finding| finding.severity == Severity::Error);
        bad.map(|finding| finding.text).collect::<Vec<_>>()
    };
    let installed = bad().await.len();
    assert_eq!(installed, 6, "{:?}", bad().await);
    install_relation(&database.pool, &relation).await.unwrap();
    assert_eq!(bad().await, Vec::<String>::new());
    let triggers: Vec<String> = sqlx::query_scalar(
        "select tgname::text from pg_trigger where tgrelid = 'documents'::regclass and not tgisinternal",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    assert_eq!(triggers.len(), installed);
    for trigger in triggers {
        let sql = format!("alter table documents enable trigger \"{trigger}\"");
        database.pool.execute(AssertSqlSafe(sql)).await.unwrap();
        assert!(bad().await[0].contains("is not `enable always`"), "{trigger}");
        let sql = format!("drop trigger \"{trigger}\" on documents");
        database.pool.execute(AssertSqlSafe(sql)).await.unwrap();
        let said = bad().await;
        assert_eq!(said.len(), 1, "{trigger}: {said:?}");
        assert!(said[0].contains("is missing, so") && said[0].contains("migrate"), "{}", said[0]);
        install_relation(&database.pool, &relation).await.unwrap();
    }
    database.drop_database().await;
}
