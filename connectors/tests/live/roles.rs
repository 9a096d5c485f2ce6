//! The last guard: what the logins of the pipeline and of the api may do, and what they may not.

use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor};

use tombstream_connectors::postgres::{
    API_ROLE, ApiRights, PIPELINE_ROLE, Severity, check_rights, connect, install_relation,
    relation_role_sql, role_sql, run_role_sql,
};
use tombstream_model::{
    Claimed, Ending, FlagKind, Key, KeyColumn, KeyKind, Ledger, Relation, Settled, Verdict,
};

use super::support::{DOCUMENTS, Database, candidates, documents, settled};

/// A login that is a member of one role.
struct Login {
    name: String,
    pool: PgPool,
}

impl Login {
    async fn member(database: &Database, role: &str) -> Self {
        let name = format!("login_{}", uuid::Uuid::new_v4().simple());
        let make = format!("create role {name} login password 'x'; grant {role} to {name}");
        database.pool.execute(AssertSqlSafe(make)).await.unwrap();
        let options: PgConnectOptions = database.url().parse().unwrap();
        let url = options.username(&name).password("x").to_url_lossy();
        Self { name, pool: connect(url.as_str(), 4, true, "test").await.unwrap() }
    }

    /// The SQLSTATE with which it is refused, and that nothing came of it.
    async fn refused(&self, sql: &'static str) -> String {
        let error = self.pool.execute(sql).await.expect_err(sql);
        error.as_database_error().and_then(|error| error.code()).expect(sql).into_owned()
    }

    async fn remove(self, database: &Database) {
        self.pool.close().await;
        let sql = AssertSqlSafe(format!("drop role {}", self.name));
        database.pool.execute(sql).await.unwrap();
    }
}

async fn with_roles(relation: &Relation, create: Option<&[String]>) -> Database {
    let database = Database::with_documents(true).await;
    give_rights(&database, relation, create).await;
    database
}

async fn give_rights(database: &Database, relation: &Relation, create: Option<&[String]>) {
    let columns = ["name".to_owned()];
    let api = ApiRights { columns: &columns, create };
    let mut statements = role_sql();
    statements.extend(relation_role_sql(relation, Some(api)));
    // Twice: what is there already is no error.
    for _ in 0..2 {
        run_role_sql(&database.pool, &statements).await.unwrap();
    }
}

fn all(claimed: Vec<Claimed>, verdict: Verdict) -> Vec<Settled> {
    claimed.into_iter().map(|claimed| settled(claimed, verdict)).collect()
}

const UNCLAIMED: &str = "TS002";
const DENIED: &str = "42501";

#[tokio::test]
async fn the_pipelines_role_suffices_for_a_deletions_whole_way() {
    let database = with_roles(&documents(), None).await;
    let login = Login::member(&database, PIPELINE_ROLE).await;
    let ledger = Database::ledger_on(login.pool.clone(), documents(), |config| {
        config.stores[0].absent_share_max = 0.5;
    });
    ledger.generation().await.unwrap();
    let keys = database.insert(30, true).await;
    let mut claims = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    assert_eq!(claims.len(), 30);
    // One is owed first, and taken over.
    let owed = claims.pop().unwrap();
    let id = owed.id;
    ledger.owe(&all(vec![owed], Verdict::Unknown)).await.unwrap();
    database.pool.execute("update tombstream.deletion set due_at = null").await.unwrap();
    claims.extend(ledger.resume(&[id]).await.unwrap());
    let endings = ledger.finalize(DOCUMENTS, &all(claims, Verdict::Deleted)).await.unwrap();
    assert_eq!(endings, vec![Ending::Finalized; 30]);
    assert_eq!(database.count("select count(*) from documents").await, 0);
    assert_eq!(database.count("select count(*) from tombstream.receipt").await, 30);

    // Too many absent copies pause the relation; a person ends the pause as the same login.
    let keys = database.insert(150, true).await;
    let claims = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    let endings = ledger.finalize(DOCUMENTS, &all(claims, Verdict::Absent)).await.unwrap();
    assert_eq!(endings, vec![Ending::Paused; 150]);
    assert!(ledger.resume_relation(DOCUMENTS).await.unwrap().was_paused);
    let removed = |key: &Key| tombstream_model::Candidate {
        found: tombstream_model::Found::Removed,
        ..candidates(std::slice::from_ref(key)).remove(0)
    };
    ledger
        .claim(
            DOCUMENTS,
            &[removed(&Key::from_postgres(["00000000-0000-4000-8000-000000000000".to_owned()]))],
        )
        .await
        .unwrap();
    let findings = check_rights(&login.pool, &[documents()]).await.unwrap();
    assert!(findings.iter().all(|it| it.severity == Severity::Good), "{findings:?}");
    login.remove(&database).await;
    database.drop_database().await;
}

#[tokio::test]
async fn a_wrong_finalizing_statement_removes_nothing() {
    let database = with_roles(&documents(), None).await;
    let login = Login::member(&database, PIPELINE_ROLE).await;
    database.insert(3, false).await;
    let flagged = database.insert(3, true).await;
    let claimed = database.insert(3, true).await;
    let ledger = Database::ledger_on(login.pool.clone(), documents(), |_| {});
    let claims = ledger.claim(DOCUMENTS, &candidates(&claimed)).await.unwrap();
    // One was claimed with another flag than it has now: a newer life of the key.
    database
        .pool
        .execute(
            "alter table documents disable trigger user; \
             update documents set deleted_at = deleted_at + interval '1 microsecond' \
             where id = (select key[1]::uuid from tombstream.deletion order by id limit 1); \
             alter table documents enable always trigger zz_tombstream_guard_before; \
             alter table documents enable always trigger zz_tombstream_guard_after; \
             alter table documents enable always trigger zz_tombstream_a_last_guard",
        )
        .await
        .unwrap();
    // Rows whose deletion waits, is parked after its claim, or is closed, and one that is alive though
    // its deletion is claimed.
    let others = database.insert(4, true).await;
    ledger.claim(DOCUMENTS, &candidates(&others)).await.unwrap();
    for (key, sql) in others.iter().zip([
        "update tombstream.deletion set state = 'parked', reason = 'x' where key = array[$1]",
        "update tombstream.deletion set state = 'finalized', closed_at = now() where key = array[$1]",
        "update documents set deleted_at = null where id = $1::uuid",
        "with c as (update tombstream.deletion set state = 'superseded', closed_at = now() \
             where key = array[$1] returning *) insert into tombstream.deletion \
             (relation, key, state, flag) select relation, key, 'pending', flag from c",
    ]) {
        let mut by_hand = database.pool.begin().await.unwrap();
        by_hand.execute("set local session_replication_role = replica").await.unwrap();
        by_hand.execute("alter table documents disable trigger user").await.unwrap();
        sqlx::query(sql).bind(key.columns().next()).execute(&mut *by_hand).await.unwrap();
        by_hand
            .execute(
                "alter table documents enable always trigger zz_tombstream_guard_before; \
                 alter table documents enable always trigger zz_tombstream_guard_after; \
                 alter table documents enable always trigger zz_tombstream_a_last_guard",
            )
            .await
            .unwrap();
        by_hand.commit().await.unwrap();
        let one = format!(
            "delete from documents where id = '{}'",
            key.columns().next().unwrap()
        );
        let error = login.pool.execute(AssertSqlSafe(one)).await.expect_err(sql);
        let code = error.as_database_error().and_then(|error| error.code());
        assert_eq!(code.as_deref(), Some(UNCLAIMED), "{sql}");
    }
    for wrong in [
        "delete from documents",
        "delete from documents where deleted_at is null",
        "delete from documents where deleted_at is not null",
        "delete from documents where deleted_at is not null and not exists (select from \
             tombstream.deletion d where d.key = array[documents.id::text])",
        "delete from documents where id = \
             (select key[1]::uuid from tombstream.deletion order by id limit 1)",
        "with d as (delete from documents returning id) select count(*) from d",
    ] {
        assert_eq!(login.refused(wrong).await, UNCLAIMED, "{wrong}");
    }
    assert_eq!(database.count("select count(*) from documents").await, 13);
    // Neither does it change a row, not even the flag that it may lock with.
    assert_eq!(login.refused("update documents set deleted_at = now()").await, UNCLAIMED);
    assert_eq!(login.refused("update documents set deleted_at = null").await, UNCLAIMED);
    assert_eq!(login.refused("update documents set name = 'x'").await, DENIED);
    assert_eq!(login.refused("truncate documents").await, DENIED);
    assert_eq!(
        login.refused("insert into documents values (gen_random_uuid(), 'x')").await,
        DENIED
    );
    // Nor does it rewrite the evidence, or take the guard away.
    assert_eq!(login.refused("update tombstream.receipt set flag = ''").await, DENIED);
    assert_eq!(login.refused("delete from tombstream.deletion").await, DENIED);
    assert_eq!(login.refused("alter table documents disable trigger all").await, DENIED);
    assert_eq!(
        login.refused("set session_replication_role = replica; delete from documents").await,
        DENIED
    );
    // What was claimed goes, and the row of the newer life stays.
    let mut endings = ledger.finalize(DOCUMENTS, &all(claims, Verdict::Deleted)).await.unwrap();
    endings.sort_by_key(|ending| *ending != Ending::Superseded);
    assert_eq!(endings, [Ending::Superseded, Ending::Finalized, Ending::Finalized]);
    assert_eq!(database.count("select count(*) from documents").await, 11);
    assert_eq!(flagged.len(), 3);
    login.remove(&database).await;
    database.drop_database().await;
}

#[tokio::test]
async fn rows_that_are_not_claimed_are_found_one_by_one() {
    // The decision is wrong here, not the statement: the ledger says claimed for a row that the guard
    // sees otherwise. The batch's others go.
    let database = with_roles(&documents(), None).await;
    let login = Login::member(&database, PIPELINE_ROLE).await;
    let keys = database.insert(20, true).await;
    let ledger = Database::ledger_on(login.pool.clone(), documents(), |_| {});
    let claims = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    database
        .pool
        .execute(
            "create function closes() returns trigger language plpgsql security definer as $$ begin \
                 update tombstream.deletion set state = 'parked' where key = array[old.id::text]; \
                 return old; end $$; \
             create trigger a before delete on documents for each row \
                 when (old.name = 'n7') execute function closes()",
        )
        .await
        .unwrap();
    let endings = ledger.finalize(DOCUMENTS, &all(claims, Verdict::Deleted)).await.unwrap();
    assert_eq!(endings.iter().filter(|ending| **ending == Ending::Finalized).count(), 19);
    assert_eq!(endings.iter().filter(|ending| **ending == Ending::Parked).count(), 1);
    assert_eq!(database.count("select count(*) from documents where name = 'n7'").await, 1);
    login.remove(&database).await;
    database.drop_database().await;
}

#[tokio::test]
async fn the_guard_fits_every_kind_of_key_and_flag() {
    for (kind, column, value) in [
        (FlagKind::Boolean, "boolean", "true"),
        (FlagKind::Timestamp { zone: "Asia/Kolkata".into() }, "timestamp", "'2024-05-01 12:00'"),
        (FlagKind::TimestampTz, "timestamptz", "'-infinity'"),
    ] {
        let mut relation = documents();
        relation.schema = "we\"ird".into();
        relation.table = "do cs".into();
        relation.flag.kind = kind;
        relation.flag.column = "Deleted At".into();
        let column_of = |name: &str, kind| KeyColumn { name: name.to_owned(), kind };
        relation.key = vec![column_of("tenant", KeyKind::Bigint), column_of("path", KeyKind::Text)];
        relation.targets.clear();
        let database = Database::new().await;
        let make = format!(
            "create schema \"we\"\"ird\"; create table \"we\"\"ird\".\"do cs\" (tenant bigint, \
             path text, \"Deleted At\" {column}, primary key (tenant, path)) partition by list (tenant); \
             create table \"we\"\"ird\".one partition of \"we\"\"ird\".\"do cs\" for values in (1); \
             insert into \"we\"\"ird\".\"do cs\" values (1, 'a,b', {value}), (1, 'a', {value})"
        );
        database.pool.execute(AssertSqlSafe(make)).await.unwrap();
        install_relation(&database.pool, &relation).await.unwrap();
        give_rights_without_columns(&database, &relation).await;
        let login = Login::member(&database, PIPELINE_ROLE).await;
        let ledger = Database::ledger_on(login.pool.clone(), relation, |_| {});
        let key = Key::from_postgres(["1".to_owned(), "a,b".to_owned()]);
        let claims = ledger.claim(DOCUMENTS, &candidates(&[key])).await.unwrap();
        assert_eq!(claims.len(), 1, "{column}");
        let wrong = "delete from \"we\"\"ird\".\"do cs\" where path = 'a'";
        assert_eq!(login.refused(wrong).await, UNCLAIMED);
        let endings = ledger.finalize(DOCUMENTS, &all(claims, Verdict::Deleted)).await.unwrap();
        assert_eq!(endings, [Ending::Finalized], "{column}");
        login.remove(&database).await;
        database.drop_database().await;
    }
}

async fn give_rights_without_columns(database: &Database, relation: &Relation) {
    let mut statements = role_sql();
    statements.extend(relation_role_sql(relation, None));
    run_role_sql(&database.pool, &statements).await.unwrap();
}

#[tokio::test]
async fn the_apis_role_sets_the_flag_and_nothing_else() {
    let database = with_roles(&documents(), None).await;
    let login = Login::member(&database, API_ROLE).await;
    database.insert(2, false).await;
    login.pool.execute("update documents set deleted_at = now()").await.unwrap();
    login.pool.execute("update documents set deleted_at = null").await.unwrap();
    assert_eq!(database.count("select count(*) from documents where deleted_at is null").await, 2);
    for wrong in [
        "update documents set name = 'x'",
        "update documents set id = gen_random_uuid()",
        "select uploaded_at from documents",
        "delete from documents",
        "truncate documents",
        "insert into documents (name) values ('x')",
        "update tombstream.deletion set claimed_at = now()",
        "insert into tombstream.deletion (relation, key, state) values ('d', '{1}', 'pending')",
        "insert into tombstream.receipt select",
        "delete from tombstream.hold",
        "select tombstream.archive_closed('0 s', 10)",
    ] {
        assert_eq!(login.refused(wrong).await, DENIED, "{wrong}");
    }
    let findings = check_rights(&login.pool, &[documents()]).await.unwrap();
    assert!(findings.iter().all(|it| it.severity == Severity::Good), "{findings:?}");

    let create = ["id".to_owned(), "name".to_owned()];
    give_rights(&database, &documents(), Some(&create)).await;
    login
        .pool
        .execute("insert into documents (id, name) values (gen_random_uuid(), 'x')")
        .await
        .unwrap();
    let wrong = "insert into documents values (gen_random_uuid(), 'x', now())";
    assert_eq!(login.refused(wrong).await, DENIED);
    // Switched off again, the right goes with it.
    give_rights(&database, &documents(), None).await;
    let wrong = "insert into documents (id, name) values (gen_random_uuid(), 'x')";
    assert_eq!(login.refused(wrong).await, DENIED);
    login.remove(&database).await;
    database.drop_database().await;
}

#[tokio::test]
async fn a_login_without_rights_is_told_what_it_lacks() {
    let database = with_roles(&documents(), None).await;
    let login = Login::member(&database, PIPELINE_ROLE).await;
    let text = |findings: Vec<tombstream_connectors::postgres::Finding>| {
        let bad = findings.into_iter().filter(|it| it.severity != Severity::Good);
        bad.map(|it| format!("{}: {}", it.severity, it.text)).collect::<Vec<_>>()
    };
    let revoke = "revoke delete on documents from tombstream_pipeline";
    database.pool.execute(revoke).await.unwrap();
    let said = text(check_rights(&login.pool, &[documents()]).await.unwrap());
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("may not delete public.documents: run `tombstream migrate --roles`"));
    assert!(said[0].ends_with(&format!("then `grant tombstream_pipeline to \"{}\"`", login.name)));

    // Without the sequence no receipt could be written.
    let other = "grant delete on documents to tombstream_pipeline; \
        revoke usage on sequence tombstream.receipt_entry from tombstream_pipeline";
    sqlx::raw_sql(other).execute(&database.pool).await.unwrap();
    let said = text(check_rights(&login.pool, &[documents()]).await.unwrap());
    assert!(said[0].contains("may not use tombstream.receipt_entry: run"), "{said:?}");

    let take = format!("revoke tombstream_pipeline from {}", login.name);
    database.pool.execute(AssertSqlSafe(take)).await.unwrap();
    let said = text(check_rights(&login.pool, &[documents()]).await.unwrap());
    assert!(said[0].contains("may not select public.documents ("), "{said:?}");
    let said = text(tombstream_connectors::postgres::check_ledger(&login.pool).await.unwrap());
    assert!(said.iter().any(|it| it.contains("may not read the ledger")), "{said:?}");
    // The owner can do everything, and is told that nothing stops it.
    let said = text(check_rights(&database.pool, &[documents()]).await.unwrap());
    assert_eq!(said.len(), 1);
    assert!(said[0].starts_with("warning: the last guard does not bind"), "{said:?}");
    login.remove(&database).await;
    database.drop_database().await;
}

#[tokio::test]
async fn every_table_of_the_ledger_is_judged() {
    let database = Database::new().await;
    let named = role_sql().join("\n");
    let there: Vec<String> = sqlx::query_scalar(
        "select c.relname::text from pg_class c join pg_namespace n on n.oid = c.relnamespace \
         where n.nspname = 'tombstream' and c.relkind in ('r', 'p', 'v', 'm', 'f') \
             and not c.relispartition",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    for table in there {
        assert!(named.contains(&format!("tombstream.{table} to ")), "{table}: add it to LEDGER");
    }
    database.drop_database().await;
}

#[tokio::test]
async fn without_the_roles_the_guard_stands_in_nobodys_way() {
    // The roles are the server's, so one can't be missing here while other tests run: a trigger with the
    // same condition and a name that is nobody's.
    let database = Database::with_documents(true).await;
    let definition: String = sqlx::query_scalar(
        "select pg_get_triggerdef(oid) from pg_trigger where tgname = 'zz_tombstream_a_last_guard'",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    let missing = definition
        .replace("zz_tombstream_a_last_guard", "missing_role")
        .replace(PIPELINE_ROLE, "nobodys_role");
    database.pool.execute(AssertSqlSafe(missing)).await.unwrap();
    database.insert(2, true).await;
    let login = Login::member(&database, "pg_read_all_data, pg_write_all_data").await;
    login.pool.execute("update documents set name = 'x'").await.unwrap();
    login.pool.execute("delete from documents").await.unwrap();
    assert_eq!(database.count("select count(*) from documents").await, 0);
    login.remove(&database).await;
    database.drop_database().await;
}

/// `cargo test -p tombstream-connectors --features live --test live-ledger -- --ignored --nocapture
/// what_the_last_guard_costs`
#[tokio::test]
#[ignore = "a measurement"]
async fn what_the_last_guard_costs() {
    let database = with_roles(&documents(), None).await;
    let login = Login::member(&database, PIPELINE_ROLE).await;
    let ledger = Database::ledger_on(login.pool.clone(), documents(), |_| {});
    let mut seconds = [0.0, 0.0];
    // In turns, so that what else runs here disturbs both alike.
    for round in 0..40 {
        let with = round % 2;
        let switch = ["disable", "enable always"][with];
        let sql = format!("alter table documents {switch} trigger zz_tombstream_a_last_guard");
        database.pool.execute(AssertSqlSafe(sql)).await.unwrap();
        let keys = database.insert(500, true).await;
        let claims = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
        let batch = all(claims, Verdict::Deleted);
        let begun = std::time::Instant::now();
        let endings = ledger.finalize(DOCUMENTS, &batch).await.unwrap();
        seconds[with] += begun.elapsed().as_secs_f64();
        assert_eq!(endings, vec![Ending::Finalized; 500]);
    }
    let ms = seconds.map(|seconds| seconds * 1_000.0 / 20.0);
    println!(
        "finalizing 500 rows: {:.1} ms without the guard, {:.1} ms with it, {:.2} times",
        ms[0],
        ms[1],
        ms[1] / ms[0]
    );
    login.remove(&database).await;
    database.drop_database().await;
}
