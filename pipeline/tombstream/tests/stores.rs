//! The binary with copies in a service of somebody else's and in a table of another database: one run from
//! the flags to the receipts.

#![allow(clippy::unwrap_used, reason = "a test may panic, and so may what it is made of")]

mod support;

use std::collections::HashSet;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::{AssertSqlSafe, ConnectOptions as _};

use support::{text, until_within};

/// How long anything here may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(60);
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A service that holds contacts, and keeps what the law keeps.
#[derive(Clone, Default)]
struct Crm {
    contacts: Arc<Mutex<HashSet<String>>>,
    kept: Arc<Mutex<HashSet<String>>>,
    signed: Arc<Mutex<Vec<String>>>,
}

impl Crm {
    async fn start(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/erase", listener.local_addr().unwrap());
        let router = axum::Router::new().route("/erase", post(erase)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        url
    }

    fn fill(&self, ids: impl IntoIterator<Item = i64>) {
        self.contacts.lock().unwrap().extend(ids.into_iter().map(|id| id.to_string()));
    }

    fn has(&self) -> Vec<String> {
        let mut has: Vec<String> = self.contacts.lock().unwrap().iter().cloned().collect();
        has.sort();
        has
    }
}

async fn erase(
    State(crm): State<Crm>,
    headers: HeaderMap,
    Json(asked): Json<Value>,
) -> Json<Value> {
    let signed = headers["webhook-signature"].to_str().unwrap().to_owned();
    crm.signed.lock().unwrap().push(signed);
    let mut contacts = crm.contacts.lock().unwrap();
    let results = asked["deletions"].as_array().unwrap().iter().map(|item| {
        let contact = item["address"]["id"].as_str().unwrap();
        if crm.kept.lock().unwrap().contains(contact) {
            return json!({"id": item["id"], "verdict": "refused", "reason": "legal_hold"});
        }
        let verdict = if contacts.remove(contact) { "deleted" } else { "absent" };
        json!({"id": item["id"], "verdict": verdict})
    });
    Json(json!({"results": results.collect::<Vec<_>>()}))
}

/// Two databases and a configuration of their own, all gone with the test.
struct Place {
    names: [String; 2],
    folder: tempfile::TempDir,
    admin: PgPool,
    /// With the relation, and with the copies.
    databases: [(PgPool, String); 2],
}

impl Place {
    async fn new(crm: &str) -> Self {
        let server: PgConnectOptions = std::env::var("TOMBSTREAM_TEST_POSTGRES_URL")
            .expect("set TOMBSTREAM_TEST_POSTGRES_URL; `cargo xtask services env` prints it")
            .parse()
            .unwrap();
        let admin = PgPool::connect_with(server.clone()).await.unwrap();
        let names = [(); 2].map(|()| format!("stores_{:016x}", rand::random::<u64>()));
        let mut databases = Vec::new();
        for (name, table) in names.iter().zip([
            "create table public.notes (id bigint primary key, gone timestamptz)",
            "create table public.note_copies (kind text, note bigint, body text, primary key (kind, note))",
        ]) {
            let create = AssertSqlSafe(format!("create database {name}"));
            sqlx::query(create).execute(&admin).await.unwrap();
            let options = server.clone().database(name);
            let url = options.to_url_lossy().to_string();
            let pool = PgPool::connect_with(options).await.unwrap();
            sqlx::raw_sql(table).execute(&pool).await.unwrap();
            databases.push((pool, url));
        }
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            r#"
[database]
url = {{ env = "NOTES_URL" }}
[pipeline]
listen = "127.0.0.1:0"
[source.sweep]
interval = "100ms"
after = "0s"
[store.crm]
kind = "webhook"
url = "{crm}"
collection = "contacts"
secret = {{ env = "CRM_SECRET" }}
[store.reporting]
kind = "postgres_table"
url = {{ env = "REPORTING_URL" }}
table = "public.note_copies"
[relation.notes]
table = "public.notes"
key = [{{ column = "id", type = "bigint" }}]
flag = {{ column = "gone", type = "timestamptz" }}
key_reuse = "forbidden"
targets = [
    {{ store = "crm", item = "{{id}}" }},
    {{ store = "reporting", row = {{ kind = "note", note = "{{id}}" }} }},
]
"#
        );
        std::fs::write(folder.path().join("tombstream.toml"), config).unwrap();
        let databases = databases.try_into().unwrap();
        Self { names, folder, admin, databases }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tombstream"));
        let [(_, notes), (_, copies)] = &self.databases;
        command.env("NOTES_URL", notes).env("REPORTING_URL", copies).env("CRM_SECRET", SECRET);
        command.current_dir(self.folder.path()).args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    async fn sql(&self, database: usize, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        sqlx::raw_sql(sql).execute(&self.databases[database].0).await.unwrap();
    }

    async fn list(&self, database: usize, sql: &'static str) -> Vec<String> {
        sqlx::query_scalar(sql).fetch_all(&self.databases[database].0).await.unwrap()
    }

    async fn end(self) {
        for (pool, _) in &self.databases {
            pool.close().await;
        }
        for name in &self.names {
            let drop = AssertSqlSafe(format!("drop database {name} with (force)"));
            sqlx::query(drop).execute(&self.admin).await.unwrap();
        }
    }
}

/// The process, ended with the test however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait().map(drop)) {
            eprintln!("the process could not be ended: {error}");
        }
    }
}

async fn until(what: &str, done: impl AsyncFnMut() -> bool) {
    until_within(PATIENCE, what, done).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_with_a_service_and_in_another_database_go_before_their_rows() {
    let crm = Crm::default();
    let place = Place::new(&crm.start().await).await;
    assert!(place.run(&["migrate"]).status.success());
    crm.fill(1..=200);
    crm.kept.lock().unwrap().insert("7".to_owned());
    place.sql(0, "insert into notes select n, case when n <= 150 then now() end from generate_series(1, 200) n").await;
    place.sql(1, "insert into note_copies select kind, n from unnest(array['note', 'other']) kind, generate_series(1, 200) n").await;

    let checked = place.run(&["check", "--live"]);
    let said = text(&checked.stdout);
    assert_eq!(checked.status.code(), Some(0), "{said}{}", text(&checked.stderr));
    assert!(
        said.contains("ok      store crm: the service answers, and knows the secret"),
        "{said}"
    );
    assert!(
        said.contains("warning store crm: it can't be asked whether a thing is there"),
        "{said}"
    );
    assert!(said.contains("ok      store reporting: the table is there"), "{said}");

    let _running = Running(place.command(&["run"]).stderr(Stdio::null()).spawn().unwrap());
    let left = "select id::text from notes where gone is not null";
    until("all but the kept one go", async || place.list(0, left).await == ["7"]).await;
    let state =
        "select state || ': ' || reason from tombstream.deletion where state <> 'finalized'";
    until("it is parked", async || {
        let parked = place.list(0, state).await;
        parked.len() == 1 && parked[0].contains("parked") && parked[0].contains("legal_hold")
    })
    .await;

    let mut kept: Vec<String> = (151..=200).map(|id| id.to_string()).collect();
    kept.push("7".to_owned());
    kept.sort();
    assert_eq!(crm.has(), kept);
    let copies =
        "select note::text from note_copies where kind = 'note' order by note::text collate \"C\"";
    let in_table: Vec<String> = kept.iter().filter(|id| *id != "7").cloned().collect();
    assert_eq!(place.list(1, copies).await, in_table, "a kept copy stops no other store");
    let others = "select note::text from note_copies where kind = 'other'";
    assert_eq!(place.list(1, others).await.len(), 200, "another kind's rows");
    assert!(crm.signed.lock().unwrap().iter().all(|signed| signed.starts_with("v1,")));

    let receipts = place.list(0, "select targets::text from tombstream.receipt").await;
    assert_eq!(receipts.len(), 149);
    let targets: Value = serde_json::from_str(&receipts[0]).unwrap();
    let told = |at: usize| targets[at].to_string();
    assert!(told(0).contains(r#""kind":"item""#) && told(0).contains("trust"), "{}", told(0));
    assert!(told(1).contains(r#""kind":"row""#) && told(1).contains("read_back"), "{}", told(1));
    place.end().await;
}
