//! What `run` begins by the clock, against a real Postgres: two processes, one of which is killed. The store is a folder.

#![allow(clippy::unwrap_used, reason = "a test may panic, and so may what it is made of")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::time::Duration;

use sqlx::AssertSqlSafe;

use support::{Notes, Place, terminate, text, until_within};

const PATIENCE: Duration = Duration::from_secs(90);

fn notes(port: u16) -> String {
    Notes { port, absent_share_max: 0.9, ..Notes::default() }.config()
}

/// A port that nobody has, to be had a moment later.
fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn metrics(port: u16) -> String {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return String::new() };
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A pipeline with these jobs, of a configuration of its own.
struct Pipeline {
    process: Child,
    port: u16,
}

impl Pipeline {
    fn start(place: &Place, jobs: &str) -> Self {
        let port = port();
        let file = place.folder.path().join(format!("{port}.toml"));
        let path = place.folder.path().display().to_string();
        let config = notes(port).replace("FOLDER", &path);
        std::fs::write(&file, format!("{config}{jobs}")).unwrap();
        let file = file.display().to_string();
        let mut command = place.command(&["run", "--config", &file]);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { process, port }
    }
}

async fn place() -> Place {
    let columns = "id bigint primary key, gone timestamptz";
    let place = Place::made_of(columns, &notes(0), &[]).await;
    place.migrate();
    place
}

impl Place {
    async fn one(&mut self, sql: &str) -> Option<String> {
        let query = sqlx::query_scalar::<_, Option<String>>(AssertSqlSafe(sql.to_owned()));
        query.fetch_optional(&mut self.db).await.unwrap().flatten()
    }
}

const OWNER: &str =
    "select max(lease_owner) from tombstream.schedule where lease_until > clock_timestamp()";

/// One of two processes is at it; killed, the other takes over within the lease's length, and its result is in the ledger,
/// in `status` and in both's metrics.
#[tokio::test]
async fn two_processes_have_one_owner_and_a_killed_one_is_followed() {
    let mut place = place().await;
    place.sql("insert into notes select n from generate_series(1, 5) n").await;
    (1..=4).for_each(|id| place.note(id)); // One is missing …
    place.note(77); // … and one is nobody's.
    // Something is suspected, so that it waits before it looks again.
    let jobs =
        "[jobs]\nreconcile = { every = \"1h\", settle = \"6s\", report = \"reconcile.jsonl\" }\n";
    let mut both = [Pipeline::start(&place, jobs), Pipeline::start(&place, jobs)];
    let begun = "select count(*)::text from tombstream.schedule";
    until_within(PATIENCE, "it is begun", async || place.one(OWNER).await.is_some()).await;
    let first = place.one(OWNER).await.unwrap();
    assert_eq!(place.one(begun).await.as_deref(), Some("1"));
    let token = "select max(lease_token)::text from tombstream.schedule";
    assert_eq!(place.one(token).await.as_deref(), Some("1"), "nobody else has begun it");
    let is_of = |pipeline: &Pipeline| first.contains(&pipeline.process.id().to_string());
    let owner = both.iter().position(is_of).unwrap_or_else(|| panic!("{first} is one of them"));
    both[owner].process.kill().unwrap();
    both[owner].process.wait().unwrap();
    until_within(PATIENCE, "the other takes over", async || {
        place.one(OWNER).await.is_some_and(|owner| owner != first)
    })
    .await;
    let result = "select max(result) from tombstream.schedule";
    until_within(PATIENCE, "it has ended", async || place.one(result).await.is_some()).await;
    assert_eq!(place.one(result).await.as_deref(), Some("found"));
    assert_eq!(
        place.one("select max(runs)::text from tombstream.schedule").await.as_deref(),
        Some("1")
    );
    let status = text(&place.run(&["status"]).stdout);
    assert!(status.contains("job reconcile every 1h: found "), "{status}");
    assert!(status.contains("\"missing\":1") && status.contains("\"orphans\":1"), "{status}");
    let report = std::fs::read_to_string(place.folder.path().join("reconcile.jsonl")).unwrap();
    assert_eq!(report.lines().count(), 3, "{report}");
    let port = both[1 - owner].port;
    until_within(PATIENCE, "the metrics say so", async || {
        let shown = metrics(port);
        shown.contains("tombstream_job_result{job=\"reconcile\",result=\"found\"} 1")
            && shown.contains("tombstream_job_duration_seconds{job=\"reconcile\"} ")
    })
    .await;
    terminate(&both[1 - owner].process);
    assert!(both[1 - owner].process.wait().unwrap().success());
    place.end().await;
}

/// Finalized keys are looked up again and again, and what somebody changed in the chain of receipts is found.
#[tokio::test]
async fn finalized_keys_and_receipts_are_looked_at_again_by_the_clock() {
    let mut place = place().await;
    place.sql("insert into notes select n from generate_series(1, 3) n").await;
    (1..=3).for_each(|id| place.note(id));
    let jobs = "[audit]\nafter = []\nwait = \"0s\"\n[jobs]\nreaudit = { every = \"1s\" }\nreceipts = { every = \"1s\" }\n";
    let mut run = Pipeline::start(&place, jobs);
    let of = |name: &str, what: &str| {
        format!("select {what}::text from tombstream.schedule where name = '{name}'")
    };
    place.sql("update notes set gone = now()").await;
    let blocks = of("receipts", "(detail ->> 'entries')");
    until_within(PATIENCE, "they are sealed and checked", async || {
        let left = "select (select count(*) from notes)::text";
        place.one(left).await.as_deref() == Some("0")
            && place.one(&blocks).await.as_deref() == Some("3")
    })
    .await;
    assert_eq!(place.one(&of("receipts", "result")).await.as_deref(), Some("ok"));
    // It comes back: the passes are off, and the clock's look finds it all the same. (What was closed just now is left.)
    place.note(2);
    until_within(PATIENCE, "what came back is destroyed again", async || {
        let again = "select count(*)::text from tombstream.receipt where cause = 'resurrected'";
        place.one(again).await.as_deref() == Some("1")
    })
    .await;
    assert!(!place.copy(2).exists());
    place
        .sql(
            "alter table tombstream.receipt disable trigger append_only; \
             update tombstream.receipt set relation = 'other' where key = array['1']; \
             alter table tombstream.receipt enable trigger append_only",
        )
        .await;
    let result = of("receipts", "result");
    until_within(PATIENCE, "the change is found", async || {
        place.one(&result).await.as_deref() == Some("found")
    })
    .await;
    let said = place.one(&of("receipts", "detail")).await.unwrap();
    assert!(said.contains("do not give its root"), "{said}");
    terminate(&run.process);
    assert!(run.process.wait().unwrap().success());
    place.end().await;
}
