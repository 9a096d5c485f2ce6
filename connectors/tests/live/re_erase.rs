//! Rows that a backup brought back: every kind of flag and key, what a flag again costs and what it waits for, who may
//! do it. The whole way, with an export and a restored database, is `pipeline/tombstream/tests/re_erase.rs`.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{AssertSqlSafe, Executor};

use tombstream_connectors::postgres::{
    Erased, PIPELINE_ROLE, ReErase, ReEraseConfig, ReEraseError, ReEraseSpec, RowBack, connect,
    install_relation, relation_role_sql, role_sql, run_role_sql,
};
use tombstream_model::{
    AddressTemplate, BreakerLimits, Ending, FlagKind, Hash, Key, KeyColumn, KeyKind, Ledger as _,
    OnHardDelete, Relation, StoreId, TargetTemplate, Template, Verdict,
};

use super::support::{DOCUMENTS, Database, all, candidates, documents};

const MONTH: Duration = Duration::from_secs(30 * 86_400);

/// As a receipt says it: flagged two months ago, claimed and removed a month later.
fn erased(deletion: i64, flag: Option<&str>) -> Erased {
    let now = Utc::now();
    Erased {
        deletion,
        entry: deletion,
        transaction_id: "700".to_owned(),
        flag: flag.map(str::to_owned),
        claimed_at: now - TimeDelta::days(30),
        finalized_at: now - TimeDelta::days(30) + TimeDelta::seconds(1),
    }
}

fn flag_of(text_at: DateTime<Utc>) -> String {
    text_at.format("%Y-%m-%d %H:%M:%S%.6f+00").to_string()
}

async fn begin(
    database: &Database,
    relation: &Relation,
    job: &str,
    created: Option<&str>,
) -> Result<ReErase, ReEraseError> {
    begin_on(database.pool.clone(), relation, job, created).await
}

async fn begin_on(
    pool: sqlx::PgPool,
    relation: &Relation,
    job: &str,
    created: Option<&str>,
) -> Result<ReErase, ReEraseError> {
    let spec = ReEraseSpec { since: DateTime::UNIX_EPOCH, head: Hash::ZERO, tables_alone: false };
    let config = ReEraseConfig {
        created: vec![created.map(str::to_owned)],
        keyed: None,
        actor: "test".to_owned(),
        is_dry: false,
    };
    let relations = Arc::from([relation.clone()]);
    ReErase::begin(pool, relations, (job, &spec), (&[], 0), "test", config).await
}

async fn run(
    database: &Database,
    relation: &Relation,
    job: &str,
    batch: &[(Key, Erased)],
) -> Vec<RowBack> {
    let mut job = begin(database, relation, job, Some("born")).await.unwrap();
    let batch: Vec<_> =
        batch.iter().map(|(key, erased)| (DOCUMENTS, key.clone(), erased.clone())).collect();
    let found = job.receipts(&batch, 1_000, true).await.unwrap();
    job.end(None).await.unwrap();
    found
}

fn endings(found: &[RowBack]) -> Vec<&str> {
    found.iter().map(|row| row.ending.as_str()).collect()
}

/// A table `documents` of other columns, in the place of the usual one.
async fn table(columns: &str, relation: &Relation) -> Database {
    let database = Database::new().await;
    let sql = AssertSqlSafe(format!("create table documents ({columns})"));
    database.pool.execute(sql).await.unwrap();
    install_relation(&database.pool, relation).await.unwrap();
    database
}

async fn texts(database: &Database, sql: &'static str) -> Vec<String> {
    sqlx::query_scalar(sql).fetch_all(&database.pool).await.unwrap()
}

fn born(kind: FlagKind) -> Relation {
    let mut relation = Relation { grace: MONTH, key_reuse_forbidden: true, ..documents() };
    relation.flag.kind = kind;
    relation.key = vec![
        KeyColumn { name: "tenant".to_owned(), kind: KeyKind::Text },
        KeyColumn { name: "id".to_owned(), kind: KeyKind::Bigint },
    ];
    relation.targets = vec![TargetTemplate {
        store: StoreId(0),
        address: AddressTemplate::Object {
            bucket: "documents".into(),
            key: Template::parse("{tenant}/{id}").unwrap(),
        },
        is_hidden_first: false,
    }];
    relation
}

fn key(tenant: &str, id: i64) -> Key {
    Key::from_postgres([tenant.to_owned(), id.to_string()])
}

/// The row gets the flag that was claimed, had its grace then, spends nothing of the breaker's budget, and its copies may
/// all be absent: the first claim takes it, and its receipt says why.
#[tokio::test]
async fn what_is_flagged_again_is_claimed_at_once_beside_breaker_and_absent_share() {
    let zone = "Europe/Berlin".to_owned();
    let flagged = Utc::now() - TimeDelta::days(60);
    for (kind, column, flag) in [
        (FlagKind::TimestampTz, "timestamptz", Some(flag_of(flagged))),
        (
            FlagKind::Timestamp { zone },
            "timestamp",
            Some(flagged.format("%Y-%m-%d %H:%M:%S%.6f").to_string()),
        ),
        (FlagKind::Boolean, "boolean", Some("true".to_owned())),
        // Of a row that another hand had removed.
        (FlagKind::TimestampTz, "timestamptz", None),
    ] {
        let limits = BreakerLimits {
            claims_max: Some(1),
            window: Duration::from_secs(3_600),
            share_max: None,
            rate_max: None,
        };
        let relation = Relation { breaker: Some(limits), ..born(kind.clone()) };
        let database = table(
            &format!(
                "tenant text, id bigint, deleted_at {column}, born timestamptz, primary key (tenant, id)"
            ),
            &relation,
        )
        .await;
        database
            .pool
            .execute(
                "insert into documents select 'a''b', n, null, now() - interval '90 days' from generate_series(1, 200) n",
            )
            .await
            .unwrap();
        let batch: Vec<(Key, Erased)> =
            (1..=200).map(|n| (key("a'b", n), erased(n, flag.as_deref()))).collect();
        let found = run(&database, &relation, "one", &batch).await;
        assert_eq!(endings(&found), vec!["re_erased"; 200], "{kind:?}: {:?}", found.first());
        let ledger = database.ledger_with(relation.clone(), |config| {
            config.stores[0].absent_share_max = 0.1;
        });
        let keys: Vec<Key> = batch.iter().map(|(key, _)| key.clone()).collect();
        let claims = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
        assert_eq!(claims.len(), 200, "{kind:?}");
        assert!(claims.iter().all(|claimed| !claimed.first_attempt));
        if let (Some(flag), true) = (&flag, kind != FlagKind::Boolean) {
            let claimed = &claims[0].flag;
            assert!(flag.starts_with(claimed.trim_end_matches("+00")), "{claimed} is {flag}");
        }
        let ended = ledger.finalize(DOCUMENTS, &all(claims, Verdict::Absent)).await.unwrap();
        assert_eq!(ended, vec![Ending::Finalized; 200], "{kind:?}");
        let why = "select cause || ' ' || count(*) from tombstream.receipt group by cause";
        assert_eq!(texts(&database, why).await, ["re_erase 200"], "{kind:?}");
        assert_eq!(database.count("select count(*) from tombstream.pause").await, 0);
        assert_eq!(database.count("select count(*) from tombstream.breaker_spent").await, 0);
        let flips = "select count(*) from tombstream.flip where action = 'flag' and actor = 'test'";
        assert_eq!(database.count(flips).await, 200);
        // The same receipts once more: there is nothing.
        assert!(run(&database, &relation, "two", &batch).await.is_empty());
        // And a row under such a key now came after the removal, whatever it says of itself.
        database
            .pool
            .execute("insert into documents values ('a''b', 7, null, now() - interval '90 days')")
            .await
            .unwrap();
        let found = run(&database, &relation, "three", &batch).await;
        assert_eq!(endings(&found), ["alive_anew"], "{kind:?}");
        database.drop_database().await;
    }
}

/// Of a partitioned table as of any other. A hold keeps the row all the same, and one that is flagged already is told apart
/// by its flag.
#[tokio::test]
async fn a_partitioned_table_holds_and_flags_that_are_there() {
    let flag = flag_of(Utc::now() - TimeDelta::days(60));
    let relation = born(FlagKind::TimestampTz);
    let database = table(
        "tenant text, id bigint, deleted_at timestamptz, born timestamptz, primary key (tenant, id)) \
         partition by list (tenant); create table documents_a partition of documents for values in ('a'); \
         create table documents_b partition of documents for values in ('b'",
        &relation,
    )
    .await;
    let sql = format!(
        "insert into documents values ('a', 1, null, now() - interval '90 days'), \
             ('b', 2, null, now() - interval '90 days'), ('b', 3, '{flag}', now() - interval '90 days'), \
             ('b', 4, now(), now() - interval '90 days'), ('b', 5, null, now()), ('b', 6, null, null)"
    );
    database.pool.execute(AssertSqlSafe(sql)).await.unwrap();
    database.hold(&key("b", 2)).await;
    let tenants = ["a", "b", "b", "b", "b", "b", "b"];
    let batch: Vec<(Key, Erased)> =
        (1..=7).zip(tenants).map(|(n, tenant)| (key(tenant, n), erased(n, Some(&flag)))).collect();
    let found = run(&database, &relation, "one", &batch).await;
    assert_eq!(
        endings(&found),
        ["re_erased", "re_erased", "already_flagged", "already_flagged", "alive_anew", "ambiguous"]
    );
    // The erased row that was flagged is marked as one, and the other is not.
    let again = "select key[2] from tombstream.deletion where cause = 're_erase' order by key[2]";
    assert_eq!(texts(&database, again).await, ["1", "2", "3"]);
    let ledger = database.ledger(relation);
    let keys: Vec<Key> = batch.iter().map(|(key, _)| key.clone()).collect();
    let mut claims = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    claims.sort_by_key(|claimed| claimed.key.clone());
    let claimed: Vec<&Key> = claims.iter().map(|claimed| &claimed.key).collect();
    assert_eq!(claimed, [&keys[0], &keys[2]], "a hold keeps one, and the grace of another begins");
    database.drop_database().await;
}

/// A page that finds a row locked waits, and one that is read twice flags nothing twice.
#[tokio::test]
async fn a_page_waits_for_the_application_and_goes_on_where_it_was() {
    let relation = born(FlagKind::TimestampTz);
    let database = table(
        "tenant text, id bigint, deleted_at timestamptz, born timestamptz, primary key (tenant, id)",
        &relation,
    )
    .await;
    database
        .pool
        .execute("insert into documents select 'a', n, null, now() - interval '90 days' from generate_series(1, 4) n")
        .await
        .unwrap();
    let mut application = database.pool.begin().await.unwrap();
    application.execute("update documents set born = born where id = 2").await.unwrap();
    let flag = flag_of(Utc::now() - TimeDelta::days(60));
    let page = |ids: std::ops::RangeInclusive<i64>| -> Vec<_> {
        ids.map(|n| (DOCUMENTS, key("a", n), erased(n, Some(&flag)))).collect()
    };
    let mut first = begin(&database, &relation, "one", Some("born")).await.unwrap();
    let release = async {
        let waits = "select count(*) from pg_stat_activity \
            where datname = current_database() and wait_event_type = 'Lock'";
        while database.count(waits).await == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        application.commit().await.unwrap();
    };
    let batch = page(1..=2);
    let (found, ()) = tokio::join!(first.receipts(&batch, 2, false), release);
    assert_eq!(endings(&found.unwrap()), ["re_erased", "re_erased"]);
    first.end(Some("stopped by the test")).await.unwrap();
    let mut second = begin(&database, &relation, "one", Some("born")).await.unwrap();
    assert_eq!(second.after_entry(), Some(2));
    second.receipts(&page(1..=2), 2, false).await.unwrap();
    let found = second.receipts(&page(3..=4), 4, true).await.unwrap();
    assert_eq!(endings(&found), ["re_erased", "re_erased"]);
    assert_eq!(second.counts().await.unwrap()["re_erased"], 4);
    assert_eq!(second.after_entry(), None);
    assert_eq!(database.count("select count(*) from tombstream.deletion").await, 4);
    second.end(None).await.unwrap();
    let other = begin(&database, &relation, "one", Some("born")).await.unwrap_err();
    assert!(other.to_string().contains("is done"), "{other}");
    database.drop_database().await;
}

/// Whoever may remove rows sets no flag: the pipeline's login is told who does this. And a column that tells no time is
/// refused before anything is.
#[tokio::test]
async fn the_pipelines_login_flags_nothing_and_a_wrong_column_is_refused() {
    let relation = Relation { on_hard_delete: OnHardDelete::Ignore, ..documents() };
    let database = Database::with_documents(true).await;
    let mut statements = role_sql();
    statements.extend(relation_role_sql(&relation, None));
    run_role_sql(&database.pool, &statements).await.unwrap();
    let login = format!("login_{}", uuid::Uuid::new_v4().simple());
    let make = format!("create role {login} login password 'x'; grant {PIPELINE_ROLE} to {login}");
    database.pool.execute(AssertSqlSafe(make)).await.unwrap();
    let options: sqlx::postgres::PgConnectOptions = database.url().parse().unwrap();
    let url = sqlx::ConnectOptions::to_url_lossy(&options.username(&login).password("x"));
    let pool = connect(url.as_str(), 4, true, "test").await.unwrap();
    let keys = database.insert(1, false).await;
    let mut job = begin_on(pool.clone(), &relation, "one", Some("uploaded_at")).await.unwrap();
    database
        .pool
        .execute("update documents set uploaded_at = now() - interval '90 days'")
        .await
        .unwrap();
    let flag = flag_of(Utc::now() - TimeDelta::days(60));
    let batch = [(DOCUMENTS, keys[0].clone(), erased(1, Some(&flag)))];
    let refused = job.receipts(&batch, 1, true).await.unwrap_err().to_string();
    assert!(refused.contains("run this as the tables' owner"), "{refused}");
    assert_eq!(database.count("select count(*) from documents where deleted_at is null").await, 1);
    for (column, said) in [("name", "is of type text"), ("none", "there is no column")] {
        let refused = begin(&database, &relation, "two", Some(column)).await.unwrap_err();
        assert!(refused.to_string().contains(said), "{refused}");
    }
    drop(job);
    pool.close().await;
    database.pool.execute(AssertSqlSafe(format!("drop role {login}"))).await.unwrap();
    database.drop_database().await;
}
