//! `tombstream capture` beside a real Debezium: the same database, the same statements, two slots.

use anyhow::{Context, Result};
use serde_json::Value;
use sqlx::AssertSqlSafe;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tombstream_e2e::{
    Connector, Database, Program, Running, Servers, Topic, free_port, random_name,
};

const PATIENCE: Duration = Duration::from_secs(120);

/// The tables of the recorded events, and one with a column of each type.
const TABLES: &str = "
create table documents (id uuid primary key, name text not null, uploaded_at timestamptz, deleted_at timestamptz);
alter table documents replica identity full;
create table contents (id uuid primary key, name text not null, body text);
alter table contents alter column body set storage external;
create table contents_full (id uuid primary key, name text not null, body text);
alter table contents_full alter column body set storage external;
alter table contents_full replica identity full;
create type mood as enum ('sad', 'happy');
create table kinds (
    a integer, b text, is_set boolean, small smallint, big bigint, price numeric(10, 2), free numeric,
    float real, double double precision, short varchar(20), padded char(5), raw bytea, day date,
    clock time, clock_ms time(3), clock_tz timetz, at timestamp, at_ms timestamp(3), at_tz timestamptz,
    wait interval, doc json, docb jsonb, other uuid, feeling mood, address inet, numbers integer[],
    texts text[], times timestamptz[], primary key (b, a));
";

/// The statements of the recorded events (`capture.py` beside them), but for what is no change of a row.
const SCENARIO: &str = "
insert into documents values (uid(10), 'invoice', '2026-02-01T12:00:00Z', null);
update documents set name = 'invoice, corrected' where id = uid(10);
update documents set deleted_at = '2026-02-02T12:00:00Z' where id = uid(10);
update documents set deleted_at = null where id = uid(10);
update documents set deleted_at = '2026-02-03T12:00:00Z' where id = uid(10);
delete from documents where id = uid(10);
insert into documents values (uid(11), E'quotes \" and \\\\ backslash, newline\\n, Ünïcødé 文書 🗂, <html> & null\\t', null, null);
update documents set name = name where id = uid(11);
update documents set uploaded_at = 'infinity' where id = uid(11);
update documents set uploaded_at = '1969-12-31T23:59:59.999999Z' where id = uid(11);
update documents set id = uid(12) where id = uid(11);
delete from documents where id = uid(12);
insert into documents values (uid(12), 'the same id again', '2026-02-05T00:00:00Z', null);
begin;
insert into documents values (uid(20), 'in one transaction 20', '2026-03-01T00:00:00Z', null);
insert into documents values (uid(21), 'in one transaction 21', '2026-03-01T00:00:00Z', null);
insert into documents values (uid(22), 'in one transaction 22', '2026-03-01T00:00:00Z', null);
insert into contents values (uid(120), 'in one transaction', 'small');
update documents set deleted_at = '2026-03-02T00:00:00Z' where id in (uid(20), uid(21));
delete from documents where id = uid(22);
commit;
begin;
insert into documents values (uid(30), 'rolled back', null, null);
rollback;
insert into documents select uid(100 + n), 'bulk ' || n, '2026-04-01T00:00:00Z', null from generate_series(1, 10) n;
update documents set deleted_at = '2026-04-02T00:00:00Z' where name like 'bulk %';
delete from documents where name like 'bulk %';
update contents set name = 'renamed, body untouched' where id = uid(101);
update contents set body = repeat('9876543210', 500) where id = uid(101);
update contents set id = uid(105) where id = uid(102);
delete from contents where id = uid(101);
update contents_full set name = 'renamed, body untouched' where id = uid(101);
update contents_full set body = repeat('9876543210', 500) where id = uid(101);
delete from contents_full where id = uid(101);
alter table contents add column pages integer not null default 1;
insert into contents (id, name, body, pages) values (uid(103), 'after the column was added', null, 7);
insert into kinds values (
    1, 'all', true, -3, 9007199254740993, 12345.67, 0.000001, 1.5, 0.1, 'short', 'abc', '\\x00ff10',
    '2026-02-03', '12:34:56.789012', '12:34:56.789', '12:34:56.789+02', '2026-02-03 12:34:56.789012',
    '2026-02-03 12:34:56.789', '2026-02-03 12:34:56.789012+02', '1 day 02:03:04.5', '{\"a\": [1, 2]}',
    '{\"a\": [1, 2]}', uid(1), 'happy', '10.0.0.1/8', '{1,NULL,3}', '{a,\"b c\",NULL,\"q\\\"\"}',
    '{\"2026-02-03 12:00:00+00\"}');
insert into kinds (a, b) values (2, 'nothing');
insert into kinds (a, b, price, free, day, at, double, big, clock) values
    (3, 'edges', -0.01, -123456789012345678901234567890.5, '1969-12-31', 'infinity', 'infinity', -9223372036854775808, '00:00');
update kinds set is_set = not is_set where a = 1;
delete from kinds where a = 1;
truncate documents;
insert into documents values (uid(999), 'end', null, null);
insert into contents values (uid(999), 'end', null);
insert into contents_full values (uid(999), 'end', null);
insert into kinds (a, b) values (999, 'end');
";

struct Scene {
    name: String,
    servers: Servers,
    database: Database,
}

impl Scene {
    async fn make(tables: &'static str, publication: &str) -> Result<Self> {
        let servers = Servers::from_env()?;
        let name = random_name("capture");
        let database = Database::make(&servers.postgres, &name).await?;
        let uid = "create function uid(n bigint) returns uuid immutable language sql as \
                   $$ select ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid $$";
        sqlx::raw_sql(uid).execute(database.pool()).await?;
        sqlx::raw_sql(tables).execute(database.pool()).await.context("the tables")?;
        let publish = format!("create publication {name}_c for table {publication}");
        sqlx::raw_sql(AssertSqlSafe(publish)).execute(database.pool()).await?;
        Ok(Self { name, servers, database })
    }

    /// The slot, and the topics' prefix, of the capture.
    fn captured(&self) -> String {
        format!("{}_c", self.name)
    }

    fn program(&self, brokers: &str, port: u16) -> Result<Program> {
        let (name, slot) = (&self.name, self.captured());
        let config = format!(
            r#"[database]
url = {{ env = "DATABASE_URL" }}
[capture]
slot = "{slot}"
publication = "{slot}"
topic_prefix = "{slot}"
listen = "127.0.0.1:{port}"
heartbeat = "500ms"
[capture.kafka.settings]
"bootstrap.servers" = "{brokers}"
"message.timeout.ms" = 3000
[store.copies]
kind = "object_store"
url = "file:///nowhere/{name}"
[relation.documents]
table = "public.documents"
key = [{{ column = "id", type = "uuid" }}]
flag = {{ column = "deleted_at", type = "timestamptz" }}
key_reuse = "forbidden"
targets = [{{ store = "copies", key = "{{id}}" }}]
"#
        );
        let variables = vec![("DATABASE_URL", self.database.url().to_owned())];
        Program::beside_test(&self.name, &config, variables)
    }

    async fn start(&self, brokers: &str) -> Result<(Program, Running, u16)> {
        let port = free_port()?;
        let program = self.program(brokers, port)?;
        program.finish(&["migrate"]).await.or_else(|error| {
            // Without the table of the relation the ledger is made all the same.
            if error.to_string().contains("look up the table") { Ok(()) } else { Err(error) }
        })?;
        let running =
            program.start(&["capture"], &format!("http://127.0.0.1:{port}/healthz")).await?;
        Ok((program, running, port))
    }

    async fn sql(&self, sql: &str) -> Result<()> {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(self.database.pool()).await?;
        Ok(())
    }

    async fn remove(self) -> Result<()> {
        until("the slot is dropped", async || self.database.drop_slot(&self.captured()).await)
            .await?;
        self.database.remove().await
    }
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !done().await? {
        anyhow::ensure!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// A record as it can be compared: its key and its value, as JSON.
type Told = (Value, Value);

async fn told(topic: &Topic) -> Result<Vec<Told>> {
    let json = |bytes: Option<Vec<u8>>| match bytes {
        Some(bytes) => serde_json::from_slice(&bytes).context("a record is JSON"),
        None => Ok(Value::Null),
    };
    topic.records().await?.into_iter().map(|(key, value)| Ok((json(key)?, json(value)?))).collect()
}

fn is_end(told: &Told) -> bool {
    let after = &told.1["after"];
    after["name"] == "end" || after["b"] == "end"
}

/// The paths at which two values differ.
fn differences(one: &Value, other: &Value, path: &str, found: &mut BTreeSet<String>) {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            let names: BTreeSet<_> = one.keys().chain(other.keys()).collect();
            for name in names {
                let missing = Value::String("(missing)".into());
                let (a, b) = (one.get(name), other.get(name));
                let path = format!("{path}.{name}");
                differences(a.unwrap_or(&missing), b.unwrap_or(&missing), &path, found);
            }
        }
        (one, other) if one == other => {}
        _ => {
            found.insert(path.trim_start_matches('.').to_owned());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_captured_is_what_debezium_publishes() -> Result<()> {
    const NAMES: [&str; 4] = ["contents", "contents_full", "documents", "kinds"];
    let scene = Scene::make(TABLES, &NAMES.join(", ")).await?;
    scene
        .sql(
            "insert into documents select uid(n), 'before snapshot ' || n, '2026-01-01T10:00:00.123456Z', \
                 case when n = 3 then '2026-01-02T00:00:00Z'::timestamptz end from generate_series(1, 3) n; \
             insert into contents values (uid(101), 'with body', repeat('0123456789', 500)), (uid(102), 'no body', null); \
             insert into contents_full values (uid(101), 'with body', repeat('0123456789', 500)); \
             insert into kinds (a, b, price) values (0, E'tab\\tline\\nslash\\\\', 1)",
        )
        .await?;
    let mut topics = BTreeMap::new();
    for name in NAMES {
        for prefix in [scene.name.clone(), scene.captured()] {
            let full = format!("{prefix}.public.{name}");
            let topic = Topic::make(&scene.servers.kafka, &full, 1).await?;
            topics.insert((name, prefix), topic);
        }
    }
    let mut connector = Connector::new(&scene.servers, &scene.name)?;
    let tables: Vec<String> = NAMES.iter().map(|name| format!("public.{name}")).collect();
    connector.set("table.include.list", &tables.join(","));
    connector.register().await?;
    connector.wait_until_streaming(&scene.database).await?;
    let (_, running, _) = scene.start(&scene.servers.kafka).await?;
    until("both read", async || scene.database.slot_is_read(&scene.captured()).await).await?;
    // The snapshot is published before anything is streamed.
    let of = |name, prefix: &str| &topics[&(name, prefix.to_owned())];
    until("the snapshots are published", async || {
        let mut all = true;
        for name in NAMES {
            for prefix in [&scene.name, &scene.captured()] {
                all &= !told(of(name, prefix)).await?.is_empty();
            }
        }
        Ok(all)
    })
    .await?;
    // One statement a round trip, as the recorded ones were sent.
    let mut connection = scene.database.pool().acquire().await?;
    for statement in SCENARIO.split(";\n").map(str::trim).filter(|it| !it.is_empty()) {
        sqlx::raw_sql(AssertSqlSafe(statement.to_owned()))
            .execute(&mut *connection)
            .await
            .with_context(|| statement.to_owned())?;
    }
    drop(connection);

    let (mut compared, mut found) = (0, BTreeSet::new());
    for name in NAMES {
        for prefix in [&scene.name, &scene.captured()] {
            until("the end is published", async || {
                Ok(told(of(name, prefix)).await?.last().is_some_and(is_end))
            })
            .await?;
        }
        let (theirs, ours) =
            (told(of(name, &scene.name)).await?, told(of(name, &scene.captured())).await?);
        let shown = |all: &[Told]| {
            let short = |(key, value): &Told| {
                format!("{key} {} {}", value["op"], value["source"]["snapshot"])
            };
            all.iter().map(short).collect::<Vec<_>>()
        };
        assert_eq!(
            shown(&theirs),
            shown(&ours),
            "{name}: which rows, what happened, in which order"
        );
        for ((their_key, theirs), (our_key, ours)) in theirs.iter().zip(&ours) {
            assert_eq!(their_key, our_key);
            let mut paths = BTreeSet::new();
            differences(theirs, ours, "", &mut paths);
            let is_snapshot = theirs["op"] == "r";
            for path in paths {
                match path.as_str() {
                    // When each was published; who publishes.
                    "ts_ms" | "ts_us" | "ts_ns" | "source.version" | "source.name" => {}
                    // Debezium's begins with the last commit that it stored.
                    "source.sequence" => {}
                    // Two snapshots are taken at two moments.
                    "source.ts_ms" | "source.ts_us" | "source.ts_ns" | "source.lsn"
                    | "source.txId"
                        if is_snapshot => {}
                    _ => {
                        found.insert(format!("{name} {} {path}: {theirs} {ours}", theirs["op"]));
                    }
                }
            }
            compared += 1;
        }
    }
    // Under the default identity the log tells of a deleted row its key alone; Debezium writes the type's
    // zero where a column is NOT NULL, which the log does not tell either.
    let expected = |line: &String| {
        line.starts_with("contents \"d\" before.name: ")
            || line.starts_with("contents \"d\" before.pages: ")
    };
    let unexpected: Vec<_> = found.iter().filter(|line| !expected(line)).collect();
    assert!(unexpected.is_empty(), "{unexpected:#?}");
    println!("{compared} messages compared; {} differ as expected", found.len());
    assert!(compared >= 90, "{compared}");
    assert!(running.stop().await?.success());
    connector.remove(&scene.database).await?;
    for topic in topics.values() {
        topic.remove().await?;
    }
    scene.remove().await
}

const DOCUMENTS: &str =
    "create table documents (id uuid primary key, name text not null, deleted_at timestamptz)";

/// At least once, whenever it dies, and the last word of every key is the row's.
#[tokio::test(flavor = "multi_thread")]
async fn a_capture_that_is_killed_leaves_nothing_out() -> Result<()> {
    let scene = Scene::make(DOCUMENTS, "documents").await?;
    let topic =
        Topic::make(&scene.servers.kafka, &format!("{}.public.documents", scene.captured()), 4)
            .await?;
    let (program, mut running, port) = scene.start(&scene.servers.kafka).await?;
    let health = format!("http://127.0.0.1:{port}/healthz");
    for round in 0..4 {
        scene
            .sql(&format!(
                "insert into documents select uid(n), 'first', null from generate_series({0}, {0} + 499) n; \
                 update documents set name = 'round {1}', deleted_at = now() where id <= uid({0} + 249)",
                round * 500,
                round
            ))
            .await?;
        running.kill().await?;
        running = program.start(&["capture"], &health).await?;
    }
    scene.sql("insert into documents values (uid(999999), 'end', null)").await?;
    until("the end is published", async || Ok(told(&topic).await?.iter().any(is_end))).await?;
    assert!(running.stop().await?.success());

    let rows: Vec<(String, String)> = sqlx::query_as("select id::text, name from documents")
        .fetch_all(scene.database.pool())
        .await?;
    let mut last: BTreeMap<String, Value> = BTreeMap::new();
    for (key, value) in told(&topic).await? {
        let id = key["id"].as_str().context("a key")?.to_owned();
        last.insert(id, value["after"]["name"].clone());
    }
    assert_eq!(last.len(), rows.len());
    for (id, name) in rows {
        assert_eq!(last[&id], name.as_str(), "the last word on {id}");
    }
    topic.remove().await?;
    scene.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_was_not_finished_is_taken_again() -> Result<()> {
    let scene = Scene::make(DOCUMENTS, "documents").await?;
    scene
        .sql("insert into documents select uid(n), 'there', null from generate_series(1, 3000) n")
        .await?;
    // No broker: the slot is made, and nothing can be published.
    let (_, running, port) = scene.start("127.0.0.1:1").await?;
    let unfinished = "select count(*) from tombstream.slot where not is_complete";
    until("the slot is made", async || {
        let count: i64 = sqlx::query_scalar(unfinished).fetch_one(scene.database.pool()).await?;
        Ok(count == 1)
    })
    .await?;
    let ready = format!("http://127.0.0.1:{port}/readyz");
    until("it says that it can't publish", async || {
        Ok(reqwest::get(&ready).await?.text().await?.contains("unavailable"))
    })
    .await?;
    running.kill().await?;
    scene.sql("insert into documents values (uid(5000), 'between', null)").await?;

    let topic =
        Topic::make(&scene.servers.kafka, &format!("{}.public.documents", scene.captured()), 2)
            .await?;
    let (_, running, _) = scene.start(&scene.servers.kafka).await?;
    until("all rows are published", async || Ok(told(&topic).await?.len() >= 3_001)).await?;
    let all = told(&topic).await?;
    let reads = all.iter().filter(|(_, value)| value["op"] == "r").count();
    assert_eq!((reads, all.len()), (3_001, 3_001), "each once, the one between too");
    assert!(running.stop().await?.success());
    topic.remove().await?;
    scene.remove().await
}
