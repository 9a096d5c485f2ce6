//! A database with the ledger, a router on it, and requests to it.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use serde_json::Value;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tombstream_api::{ApiConfig, ApiRelation, connect_options, pool_options, router};
use tombstream_model::{Flag, FlagKind, KeyColumn, KeyKind, OnHardDelete, Relation};
use tower::ServiceExt;
use uuid::Uuid;

pub(crate) const DOCUMENTS: &str = "create table documents (
    id uuid primary key default gen_random_uuid(),
    name text not null,
    uploaded_at timestamptz not null default now(),
    deleted_at timestamptz
)";

/// A database that is dropped with it.
pub(crate) struct Database {
    name: String,
    pub(crate) options: PgConnectOptions,
    /// For the test's own statements.
    pub(crate) pool: PgPool,
}

pub(crate) struct App {
    pub(crate) router: Router,
    pub(crate) db: Database,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

fn server() -> PgConnectOptions {
    let url = std::env::var("TOMBSTREAM_TEST_POSTGRES_URL")
        .expect("set TOMBSTREAM_TEST_POSTGRES_URL to a Postgres in which databases may be made");
    PgConnectOptions::from_str(&url).unwrap()
}

impl Database {
    /// An empty database.
    pub(crate) async fn empty() -> Self {
        let name = format!("api_{}", Uuid::new_v4().simple());
        let mut admin = PgConnection::connect_with(&server()).await.unwrap();
        let create = format!("create database {name}");
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut admin).await.unwrap();
        let options = server().database(&name);
        let pool = pool_options().connect_lazy_with(options.clone());
        Self { name, options, pool }
    }

    /// A database with the ledger and what `ddl` makes.
    pub(crate) async fn with(ddl: &str) -> Self {
        let db = Self::empty().await;
        db.run("create schema tombstream").await;
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations");
        let mut files: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "sql"));
        files.sort();
        for file in files {
            db.run(&std::fs::read_to_string(file).unwrap()).await;
        }
        db.run(ddl).await;
        db
    }

    /// Runs statements without parameters.
    pub(crate) async fn run(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.pool).await.unwrap();
    }

    /// The one value of one row, as text.
    pub(crate) async fn text(&self, sql: &str) -> Option<String> {
        let sql = format!("select (({sql})::text)");
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.pool).await.unwrap()
    }

    /// Gives sessions that begin from now on this isolation level, unless they ask for another.
    pub(crate) async fn isolate(&self, level: &str) {
        let sql =
            format!("alter database {} set default_transaction_isolation = '{level}'", self.name);
        self.run(&sql).await;
    }

    /// Waits until a session of this database waits for a lock.
    pub(crate) async fn somebody_waits(&self) {
        let waits = "select count(*) from pg_stat_activity
            where datname = current_database() and wait_event_type = 'Lock'";
        for _ in 0..2000 {
            if self.text(waits).await.as_deref() != Some("0") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("nobody waited for a lock within 10 s");
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let drop = format!("drop database if exists {} with (force)", self.name);
        let dropper = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(
                async {
                    let mut admin = PgConnection::connect_with(&server()).await?;
                    sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut admin).await
                },
            )
        });
        if let Ok(Err(error)) = dropper.join() {
            eprintln!("database {} stays: {error}", self.name);
        }
    }
}

impl App {
    /// `relation` on a database with `ddl`.
    pub(crate) async fn new(ddl: &str, relation: ApiRelation) -> Self {
        Self::with(ddl, ApiConfig { relations: vec![relation], ..ApiConfig::default() }).await
    }

    /// The proof of concept's documents.
    pub(crate) async fn documents() -> Self {
        Self::new(DOCUMENTS, documents()).await
    }

    pub(crate) async fn with(ddl: &str, config: ApiConfig) -> Self {
        let db = Database::with(ddl).await;
        Self::on(db, config)
    }

    pub(crate) fn on(db: Database, config: ApiConfig) -> Self {
        let options = connect_options(db.options.clone(), config.timeout);
        let pool = pool_options().connect_lazy_with(options);
        Self { router: router(pool, config).unwrap(), db }
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        send(&self.router, request).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(ask("GET", path)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(ask("DELETE", path)).await
    }

    /// A POST without a body.
    pub(crate) async fn post(&self, path: &str) -> Answer {
        self.send(ask("POST", path)).await
    }

    /// A POST of a JSON text.
    pub(crate) async fn post_json(&self, path: &str, body: &str) -> Answer {
        self.send(ask_json(path, body)).await
    }

    /// The flips of the ledger, oldest first: `flag anonymous {a,b}`.
    pub(crate) async fn flips(&self) -> Vec<String> {
        let sql =
            "select action || ' ' || actor || ' ' || key::text from tombstream.flip order by id";
        sqlx::query_scalar(sql).fetch_all(&self.db.pool).await.unwrap()
    }
}

pub(crate) async fn send(router: &Router, request: Request<Body>) -> Answer {
    let response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let text = String::from_utf8(body.into()).unwrap();
    Answer { status: parts.status, headers: parts.headers, text }
}

pub(crate) fn ask(method: &str, path: &str) -> Request<Body> {
    Request::builder().method(method).uri(path).body(Body::empty()).unwrap()
}

pub(crate) fn ask_json(path: &str, body: &str) -> Request<Body> {
    Request::builder()
        .method("POST")
        .uri(path)
        .header("content-type", "application/json")
        .body(Body::from(body.to_owned()))
        .unwrap()
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no json: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        match self.headers.get(name) {
            Some(value) => value.to_str().unwrap(),
            None => panic!("no {name}: {self:?}"),
        }
    }

    /// Holds the answer to what a problem document must be, and gives its slug.
    pub(crate) fn problem(&self, status: u16) -> String {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(self.header("cache-control"), "no-store");
        let problem = self.json();
        assert_eq!(problem["status"], status, "{problem}");
        assert!(problem["title"].is_string(), "{problem}");
        assert!(problem["instance"].as_str().unwrap().starts_with('/'), "{problem}");
        let kind = problem["type"].as_str().unwrap();
        kind.strip_prefix("urn:tombstream:problem:").unwrap_or(kind).to_owned()
    }
}

pub(crate) fn relation(table: &str, key: &[(&str, KeyKind)], flag: (&str, FlagKind)) -> Relation {
    Relation {
        name: table.into(),
        schema: "public".into(),
        table: table.into(),
        key: key
            .iter()
            .map(|(name, kind)| KeyColumn { name: (*name).into(), kind: *kind })
            .collect(),
        flag: Flag { column: flag.0.into(), kind: flag.1 },
        targets: Vec::new(),
        grace: Duration::ZERO,
        hide: None,
        breaker: None,
        on_hard_delete: OnHardDelete::Ignore,
        key_reuse_forbidden: false,
        topics: Vec::new(),
        allow_cascade: Vec::new(),
    }
}

pub(crate) fn api(
    relation: Relation,
    path: &str,
    columns: &[&str],
    create: Option<&[&str]>,
) -> ApiRelation {
    let texts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    ApiRelation {
        relation: Arc::new(relation),
        path: path.into(),
        columns: texts(columns),
        create: create.map(texts),
    }
}

pub(crate) fn documents() -> ApiRelation {
    let relation =
        relation("documents", &[("id", KeyKind::Uuid)], ("deleted_at", FlagKind::TimestampTz));
    api(relation, "documents", &["id", "name", "uploaded_at", "deleted_at"], Some(&["name"]))
}
