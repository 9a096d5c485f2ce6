//! A database of its own for each test, with the ledger and one relation in it.

mod pooler;
pub(crate) mod server;

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor};

use tombstream_connectors::postgres::{
    LedgerConfig, LedgerStore, PgLedger, connect, install_relation, migrate,
};
use tombstream_model::{
    AddressTemplate, Candidate, Cause, Claimed, Flag, FlagKind, Found, Key, KeyColumn, KeyKind,
    OnHardDelete, Outcome, Relation, RelationId, Settled, StoreId, TargetTemplate, Template,
    Verdict,
};

pub(crate) const DOCUMENTS: RelationId = RelationId(0);

/// A fresh database. It is dropped by [`Database::drop_database`], or left behind by a failed test.
pub(crate) struct Database {
    pub(crate) pool: PgPool,
    url: String,
    name: String,
    admin: PgPool,
}

impl Database {
    pub(crate) async fn new() -> Self {
        let database = Self::empty().await;
        migrate(&database.pool).await.unwrap();
        database
    }

    /// Without a ledger.
    pub(crate) async fn empty() -> Self {
        let base = std::env::var("TOMBSTREAM_TEST_POSTGRES_URL").expect(
            "TOMBSTREAM_TEST_POSTGRES_URL is not set: run the tests through `cargo xtask test`",
        );
        Self::empty_on(&base).await
    }

    /// On another server than the tests' own.
    pub(crate) async fn empty_on(base: &str) -> Self {
        let admin = connect(base, 2, true, "test").await.expect("the test server answers");
        let name = format!("tombstream_test_{}", uuid::Uuid::new_v4().simple());
        admin.execute(AssertSqlSafe(format!("create database {name}"))).await.unwrap();
        let (server, _) = base.rsplit_once('/').expect("the url names a database");
        let url = format!("{server}/{name}");
        let pool = connect(&url, 12, true, "test").await.unwrap();
        Self { pool, url, name, admin }
    }

    /// The database of the same name on another server.
    pub(crate) async fn on(&self, server: &str) -> Self {
        let admin = connect(server, 2, true, "test").await.expect("the server answers");
        let (base, _) = server.rsplit_once('/').expect("the url names a database");
        let url = format!("{base}/{}", self.name);
        let pool = connect(&url, 12, true, "test").await.unwrap();
        Self { pool, url, name: self.name.clone(), admin }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// With the table `documents`, and the guard where wanted.
    pub(crate) async fn with_documents(guard: bool) -> Self {
        let database = Self::new().await;
        database.make_documents(guard).await;
        database
    }

    /// The table `documents`, and the guard where wanted.
    pub(crate) async fn make_documents(&self, guard: bool) {
        self.pool
            .execute(
                "create table documents (id uuid primary key, name text not null, \
                 uploaded_at timestamptz, deleted_at timestamptz)",
            )
            .await
            .unwrap();
        if guard {
            install_relation(&self.pool, &documents()).await.unwrap();
        }
    }

    /// A pool of three clients of a pooler in transaction mode, all of them connected.
    pub(crate) async fn behind_a_pooler(&self) -> PgPool {
        let options: PgConnectOptions = self.url.parse().unwrap();
        let port = pooler::start(options.get_host().to_owned(), options.get_port()).await;
        let url = options.host("127.0.0.1").port(port).to_url_lossy();
        let pool = connect(url.as_str(), 3, false, "test").await.unwrap();
        let clients = [pool.acquire(), pool.acquire(), pool.acquire()];
        futures::future::try_join_all(clients).await.unwrap();
        pool
    }

    pub(crate) fn ledger(&self, relation: Relation) -> PgLedger {
        self.ledger_with(relation, |_| {})
    }

    pub(crate) fn ledger_with(
        &self,
        relation: Relation,
        change: impl FnOnce(&mut LedgerConfig),
    ) -> PgLedger {
        Self::ledger_on(self.pool.clone(), relation, change)
    }

    pub(crate) fn ledger_on(
        pool: PgPool,
        relation: Relation,
        change: impl FnOnce(&mut LedgerConfig),
    ) -> PgLedger {
        let store = |name: &str| LedgerStore { name: name.into(), absent_share_max: 1.0 };
        let mut config = LedgerConfig {
            owner: "test".to_owned(),
            lease: Duration::from_secs(60),
            stores: vec![store("originals"), store("search")],
            owed_wait_min: Duration::from_millis(1),
            owed_wait_max: Duration::from_millis(5),
            prepared_statements: true,
        };
        change(&mut config);
        PgLedger::new(pool, Arc::from([relation]), config)
    }

    pub(crate) async fn insert(&self, rows: usize, flagged: bool) -> Vec<Key> {
        let ids: Vec<String> = sqlx::query_scalar(
            "insert into documents select gen_random_uuid(), 'n' || n, now(), \
             case when $2 then now() end from generate_series(1, $1) n returning id::text",
        )
        .bind(i32::try_from(rows).unwrap())
        .bind(flagged)
        .fetch_all(&self.pool)
        .await
        .unwrap();
        ids.into_iter().map(|id| Key::from_postgres([id])).collect()
    }

    /// Sets a hold by hand, without the row's lock.
    pub(crate) async fn hold(&self, key: &Key) {
        sqlx::query(
            "insert into tombstream.hold (relation, key, case_name, actor) \
             values ('documents', $1, 'case 7', 'legal')",
        )
        .bind(key.columns().map(str::to_owned).collect::<Vec<_>>())
        .execute(&self.pool)
        .await
        .unwrap();
    }

    pub(crate) async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap()
    }

    pub(crate) async fn drop_database(self) {
        self.pool.close().await;
        let drop = format!("drop database if exists {} with (force)", self.name);
        self.admin.execute(AssertSqlSafe(drop)).await.unwrap();
    }
}

pub(crate) fn documents() -> Relation {
    let template = |text| Template::parse(text).expect("a template");
    Relation {
        name: "documents".into(),
        schema: "public".to_owned(),
        table: "documents".to_owned(),
        key: vec![KeyColumn { name: "id".to_owned(), kind: KeyKind::Uuid }],
        flag: Flag { column: "deleted_at".to_owned(), kind: FlagKind::TimestampTz },
        targets: vec![
            TargetTemplate {
                store: StoreId(0),
                address: AddressTemplate::Object {
                    bucket: "documents".into(),
                    key: template("{id}/original"),
                },
                is_hidden_first: false,
            },
            TargetTemplate {
                store: StoreId(1),
                address: AddressTemplate::Document {
                    index: "documents".into(),
                    id: template("{id}"),
                    routing: None,
                },
                is_hidden_first: false,
            },
        ],
        grace: Duration::ZERO,
        hide: None,
        breaker: None,
        on_hard_delete: OnHardDelete::Ignore,
        key_reuse_forbidden: false,
        topics: vec!["app.public.documents".to_owned()],
        allow_cascade: Vec::new(),
    }
}

pub(crate) fn candidates(keys: &[Key]) -> Vec<Candidate> {
    let of = |key: &Key| Candidate {
        relation: DOCUMENTS,
        key: key.clone(),
        position: None,
        cause: Cause::Sweep,
        found: Found::Flagged,
        removed: None,
    };
    keys.iter().map(of).collect()
}

/// `claimed` with the same verdict from every store.
pub(crate) fn settled(claimed: Claimed, verdict: Verdict) -> Settled {
    let outcomes = vec![Outcome::new(verdict, "said by the test"); claimed.targets.len()];
    Settled { claimed: Arc::new(claimed), outcomes }
}

/// All of `claimed` so.
pub(crate) fn all(claimed: Vec<Claimed>, verdict: Verdict) -> Vec<Settled> {
    claimed.into_iter().map(|claimed| settled(claimed, verdict)).collect()
}
