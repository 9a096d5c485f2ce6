//! The binary against a real Postgres: migrate, check, run, stop. Its store is a folder, so that the
//! database is all it needs; the other stores have live tests of their own.

#![allow(clippy::unwrap_used, reason = "a test may panic, and so may what it is made of")]

mod support;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use sqlx::AssertSqlSafe;

use support::{Place, terminate, text, until_within};

/// How long anything here may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

const CONFIG: &str = r#"
[database]
url = { env = "NOTES_URL" }
[pipeline]
listen = "127.0.0.1:0"
SOURCES
[store.copies]
kind = "object_store"
url = "file://FOLDER/copies"
[relation.notes]
table = "public.notes"
key = [{ column = "id", type = "bigint" }]
flag = { column = "gone", type = "timestamptz" }
key_reuse = "forbidden"
targets = [{ store = "copies", key = "{id}/original" }]
"#;

impl Place {
    async fn new() -> Self {
        Self::with("[source.sweep]\ninterval = \"100ms\"\nafter = \"0s\"").await
    }

    /// SLOT in `sources` is a name of this place's own.
    async fn with(sources: &str) -> Self {
        let config = CONFIG.replace("SOURCES", &sources.replace("SLOT", "NAME"));
        let envs = [("RECEIPTS_SECRET", "a secret of the tests")];
        Self::made_of("id bigint primary key, gone timestamptz", &config, &envs).await
    }

    async fn rows(&mut self) -> i64 {
        sqlx::query_scalar("select count(*) from public.notes")
            .fetch_one(&mut self.db)
            .await
            .unwrap()
    }
}

/// Reads the process's log until it says `what`.
fn wait_for_log(process: &mut Child, what: &str) -> BufReader<std::process::ChildStderr> {
    let mut log = BufReader::new(process.stderr.take().unwrap());
    let mut line = String::new();
    while log.read_line(&mut line).unwrap() > 0 {
        if line.contains(what) {
            return log;
        }
        line.clear();
    }
    panic!("the process ended without saying {what}");
}

async fn until(what: &str, done: impl AsyncFnMut() -> bool) {
    until_within(PATIENCE, what, done).await;
}

#[tokio::test]
async fn check_live_names_what_is_missing_and_migrate_mends_it() {
    let place = Place::new().await;
    let before = place.run(&["check", "--live"]);
    let said = text(&before.stdout);
    assert_eq!(before.status.code(), Some(1), "{said}");
    assert!(
        said.contains("error   database: the ledger is not migrated: run `tombstream migrate`")
    );
    let unmigrated = place.run(&["run"]);
    assert_eq!(unmigrated.status.code(), Some(1));
    assert!(text(&unmigrated.stderr).contains("run `tombstream migrate`"));

    let migrated = place.run(&["migrate"]);
    assert_eq!(migrated.status.code(), Some(0), "{}", text(&migrated.stderr));
    let after = place.run(&["check", "--live"]);
    let said = text(&after.stdout);
    assert_eq!(after.status.code(), Some(0), "{said}");
    assert!(said.contains("ok      store copies: it answers"), "{said}");
    assert!(!said.contains("error "), "{said}");

    std::fs::remove_dir(place.folder.path().join("copies")).unwrap();
    let gone = place.run(&["check", "--live"]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(text(&gone.stdout).contains("error   store copies: "), "{}", text(&gone.stdout));
    place.end().await;
}

#[tokio::test]
async fn a_flagged_row_goes_after_its_copy_and_sigterm_ends_the_run() {
    let mut place = Place::new().await;
    place.migrate();
    for id in [1_i64, 2] {
        place.note(id);
        let insert = "insert into public.notes values ($1, case when $1 = 1 then now() end)";
        sqlx::query(insert).bind(id).execute(&mut place.db).await.unwrap();
    }
    let mut process = place.command(&["run"]).stderr(Stdio::piped()).spawn().unwrap();
    let log = wait_for_log(&mut process, "running");
    until("the flagged row goes", async || place.rows().await == 1).await;
    let exists = |path: &Path| path.exists();
    assert!(!exists(&place.copy(1)), "the copy went before the row");
    assert!(exists(&place.copy(2)), "nothing alive was touched");

    let status = place.run(&["status", "--json"]);
    assert!(text(&status.stdout).contains(r#""state":"finalized","deletions":1"#));
    terminate(&process);
    let ended = process.wait().unwrap();
    let rest: Vec<String> = log.lines().map_while(Result::ok).collect();
    assert_eq!(ended.code(), Some(0), "{rest:?}");
    assert!(
        rest.iter().any(|line| line.contains("everything that was read is durable")),
        "{rest:?}"
    );
    place.end().await;
}

/// The log tells at once; and what a slot that is gone does not tell, the sweep finds at once, though
/// its own time is hours away.
#[tokio::test]
async fn a_flag_is_told_by_the_log_and_a_slot_that_is_gone_is_made_anew() {
    let mut place = Place::with(
        "[source.postgres]\nslot = \"SLOT\"\npublication = \"SLOT\"\n\
         [source.sweep]\ninterval = \"6h\"\nafter = \"6h\"",
    )
    .await;
    place.migrate();
    let before = text(&place.run(&["check", "--live"]).stdout);
    assert!(before.contains("run `tombstream check --fix`"), "{before}");
    let fixed = place.run(&["check", "--fix"]);
    assert_eq!(fixed.status.code(), Some(0), "{}", text(&fixed.stdout));
    assert!(text(&fixed.stdout).contains("done: create publication"), "{}", text(&fixed.stdout));
    let insert = async |place: &mut Place, id: i64| {
        let insert = "insert into public.notes values ($1, null)";
        sqlx::query(insert).bind(id).execute(&mut place.db).await.unwrap();
        std::fs::create_dir_all(place.copy(id).parent().unwrap()).unwrap();
        std::fs::write(place.copy(id), "bytes").unwrap();
    };
    for id in 1..=3 {
        insert(&mut place, id).await;
    }
    let flag = "update public.notes set gone = now() where id = $1";

    let mut process = place.command(&["run"]).stderr(Stdio::piped()).spawn().unwrap();
    let log = wait_for_log(&mut process, "reading the log");
    sqlx::query(flag).bind(1_i64).execute(&mut place.db).await.unwrap();
    until("the flagged row goes", async || place.rows().await == 2).await;
    terminate(&process);
    assert!(process.wait().unwrap().success());
    drop(log);

    let drop = format!("select pg_drop_replication_slot('{}')", place.name);
    until("the slot is left alone", async || {
        sqlx::raw_sql(AssertSqlSafe(drop.clone())).execute(&mut place.admin).await.is_ok()
    })
    .await;
    sqlx::query(flag).bind(2_i64).execute(&mut place.db).await.unwrap();
    let mut process = place.command(&["run"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = wait_for_log(&mut process, "was gone, and is made anew");
    until("the sweep finds it", async || place.rows().await == 1).await;
    sqlx::query(flag).bind(3_i64).execute(&mut place.db).await.unwrap();
    until("the new slot tells", async || place.rows().await == 0).await;
    assert!((1..=3).all(|id| !place.copy(id).exists()));
    terminate(&process);
    assert!(process.wait().unwrap().success());
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut log, &mut rest).unwrap();
    until("the slot is left alone", async || {
        sqlx::raw_sql(AssertSqlSafe(drop.clone())).execute(&mut place.admin).await.is_ok()
    })
    .await;
    place.end().await;
}

#[tokio::test]
async fn a_removal_that_the_log_tells_is_in_a_chain_that_anyone_can_check() {
    let mut place = Place::with(
        "[source.postgres]\nslot = \"SLOT\"\npublication = \"SLOT\"\n\
         [source.sweep]\ninterval = \"6h\"\nafter = \"6h\"\n\
         [receipts]\nkeys = \"hashed\"\nsecret = { env = \"RECEIPTS_SECRET\" }",
    )
    .await;
    place.migrate();
    let fixed = place.run(&["check", "--fix"]);
    assert_eq!(fixed.status.code(), Some(0), "{}", text(&fixed.stdout));
    let mut process = place.command(&["run"]).stderr(Stdio::piped()).spawn().unwrap();
    let log = wait_for_log(&mut process, "reading the log");
    let insert = "insert into public.notes select n, null from generate_series(4711, 4720) n";
    sqlx::query(insert).execute(&mut place.db).await.unwrap();
    sqlx::query("update public.notes set gone = now()").execute(&mut place.db).await.unwrap();
    until("each removal is seen back and sealed", async || {
        let sealed = "select coalesce(sum(entries), 0)::bigint from tombstream.receipt_block";
        let sealed: i64 = sqlx::query_scalar(sealed).fetch_one(&mut place.db).await.unwrap();
        sealed == 20
    })
    .await;
    terminate(&process);
    assert!(process.wait().unwrap().success());
    drop(log);
    let strange: i64 = sqlx::query_scalar(
        "select count(*) from tombstream.receipt r left join tombstream.receipt_closed c using (deletion_id) \
         where c.removed_lsn is null or c.removed_lsn not between r.locked_lsn and r.removed_lsn",
    )
    .fetch_one(&mut place.db)
    .await
    .unwrap();
    assert_eq!(strange, 0);

    let exported = place.run(&["receipts", "export"]);
    let said = text(&exported.stderr);
    assert_eq!(exported.status.code(), Some(0), "{said}");
    assert!(!text(&exported.stdout).contains("4711"), "hashed receipts name nobody");
    let head = said.rsplit("head ").next().unwrap().trim().to_owned();
    std::fs::write(place.folder.path().join("receipts.jsonl"), &exported.stdout).unwrap();
    let verified = place.run(&["receipts", "verify", "receipts.jsonl", "--head", &head]);
    let said = text(&verified.stdout) + &text(&verified.stderr);
    assert_eq!(verified.status.code(), Some(0), "{said}");
    assert!(said.contains("10 receipts, 10 of them closed by the removal in the log"), "{said}");
    let other = "0123456789abcdef".repeat(4);
    let verified = place.run(&["receipts", "verify", "receipts.jsonl", "--head", &other]);
    assert_eq!(verified.status.code(), Some(1));
    let status = place.run(&["status"]);
    assert!(text(&status.stdout).contains("receipts: 0 not sealed"), "{}", text(&status.stdout));

    let found = place.run(&["receipts", "find", "notes", "4711"]);
    assert_eq!(found.status.code(), Some(0), "{}", text(&found.stderr));
    assert_eq!(text(&found.stdout).lines().count(), 2, "the receipt, and what closes it");
    std::fs::write(place.folder.path().join("proof.json"), &found.stdout).unwrap();
    let proven = place.run(&["receipts", "verify", "--proof", "proof.json"]);
    assert_eq!(proven.status.code(), Some(0), "{}", text(&proven.stderr));
    let none = place.run(&["receipts", "find", "notes", "1"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(text(&none.stderr).contains("there is no such receipt"), "{}", text(&none.stderr));

    // A stranger comes to the same.
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/verify_receipts.py");
    for arguments in [&["--head", &head, "receipts.jsonl"][..], &["--proof", "proof.json"]] {
        let mut python = Command::new("python3");
        python.arg(&script).args(arguments).current_dir(place.folder.path());
        let checked = python.output().expect("python3 is needed for this test: install it");
        assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stdout));
    }
    let drop = format!("select pg_drop_replication_slot('{}')", place.name);
    until("the slot is left alone", async || {
        sqlx::raw_sql(AssertSqlSafe(drop.clone())).execute(&mut place.admin).await.is_ok()
    })
    .await;
    place.end().await;
}

#[tokio::test]
async fn resume_ends_a_pause_and_knows_its_relations() {
    let mut place = Place::new().await;
    place.migrate();
    sqlx::query(
        "insert into tombstream.pause (relation, reason) values ('notes', 'too many absent')",
    )
    .execute(&mut place.db)
    .await
    .unwrap();
    assert!(text(&place.run(&["status"]).stdout).contains("paused: notes since "));
    assert_eq!(
        text(&place.run(&["resume", "notes"]).stdout),
        "notes goes on; its absent share is counted anew\n"
    );
    assert_eq!(text(&place.run(&["resume", "notes"]).stdout), "notes was not paused\n");
    let unknown = place.run(&["resume", "nots"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown.stderr).contains("there is no relation \"nots\"; known are notes"));
    place.end().await;
}

#[tokio::test]
async fn run_refuses_a_relation_whose_removed_rows_would_take_children_along() {
    let mut place = Place::new().await;
    place.migrate();
    sqlx::raw_sql("create table public.child (note bigint references notes on delete cascade)")
        .execute(&mut place.db)
        .await
        .unwrap();
    let refused = place.run(&["run"]);
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    for part in ["public.child", "on delete cascade", "allow_cascade"] {
        assert!(said.contains(part), "{said}");
    }
    place.end().await;
}

/// An update of a note's flag, as Debezium writes it, as a record of Kafka.
fn flagged_record(id: i64) -> String {
    let envelope = serde_json::json!({
        "before": null, "after": {"id": id, "gone": "2026-01-02T03:04:05.000000Z"}, "op": "u",
        "source": {"snapshot": "false", "schema": "public", "table": "notes", "lsn": 10 + id},
    });
    let record = serde_json::json!({
        "topic": "app.public.notes", "partition": 0, "offset": id, "key": null,
        "value": envelope.to_string(),
    });
    record.to_string()
}

#[tokio::test]
async fn events_in_files_are_read_and_their_positions_are_kept() {
    let mut place = Place::new().await;
    let archive = place.folder.path().join("archive");
    std::fs::create_dir(&archive).unwrap();
    let config = place.folder.path().join("tombstream.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    // The sweep would find the flag, too.
    let text = text.replace("after = \"0s\"", "after = \"1h\"").replace(
        "[source.sweep]",
        &format!("[source.files]\npath = \"file://{}\"\n[source.sweep]", archive.display()),
    );
    std::fs::write(&config, text).unwrap();
    place.migrate();
    let insert = "insert into public.notes values (1, '2026-01-02T03:04:05Z'), (2, null)";
    sqlx::raw_sql(insert).execute(&mut place.db).await.unwrap();
    let lines = format!("{}\n{}\nwords\n", flagged_record(1), flagged_record(2));
    std::fs::write(archive.join("a.jsonl"), &lines).unwrap();
    let checked = |place: &Place| text_of(&place.run(&["check", "--live"]));
    let size = lines.len();
    let left = format!("source files: 1 files of {size} bytes; {size} bytes of 1 are left to read");
    assert!(checked(&place).contains(&left), "{}", checked(&place));

    let mut process = place.command(&["run"]).stderr(Stdio::piped()).spawn().unwrap();
    let log = wait_for_log(&mut process, "running");
    until("the flagged row goes", async || place.rows().await == 1).await;
    until("the file is done", async || {
        let done = "select count(*) from tombstream.file_position where whole is not null";
        sqlx::query_scalar::<_, i64>(done).fetch_one(&mut place.db).await.unwrap() == 1
    })
    .await;
    terminate(&process);
    assert_eq!(process.wait().unwrap().code(), Some(0));
    drop(log);
    let letters = text_of(&place.run(&["dead-letters", "list"]));
    let at = size - "words\n".len();
    assert!(
        letters.contains(&format!("file://{}/a.jsonl/0@{at}: ", archive.display())),
        "{letters}"
    );
    let done = checked(&place);
    assert!(done.contains("; 0 bytes of 0 are left to read"), "{done}");
    // Cut, it is an error that says what to do.
    std::fs::write(archive.join("a.jsonl"), "words\n").unwrap();
    let cut = checked(&place);
    assert!(
        cut.contains("error   source files: ") && cut.contains("delete from tombstream."),
        "{cut}"
    );
    place.end().await;
}

fn text_of(output: &Output) -> String {
    text(&output.stdout)
}

#[tokio::test]
async fn every_command_refuses_a_ledger_that_is_newer_and_says_what_to_run() {
    let mut place = Place::new().await;
    place.migrate();
    sqlx::raw_sql(
        "insert into tombstream.migration (version, description, success, checksum, execution_time) \
         values (9999, 'of a newer one', true, '', 0)",
    )
    .execute(&mut place.db)
    .await
    .unwrap();
    for command in [
        &["run"][..],
        &["api"],
        &["migrate"],
        &["check", "--live"],
        &["status"],
        &["dead-letters", "list"],
        &["dead-letters", "redrive", "--all"],
        &["receipts", "export"],
        &["resume", "notes"],
        &["ledger", "tidy"],
        &["hold", "list", "notes", "1"],
        &["parked", "list"],
        &["breaker", "show"],
        &["rehydrations", "list"],
        &["explain", "notes", "1"],
        &["stores", "waive", "gone", "--relation", "notes", "--reason", "r", "--actor", "a"],
    ] {
        let ended = place.run(command);
        assert_eq!(ended.status.code(), Some(1), "{command:?}");
        let said = text(&ended.stdout) + &text(&ended.stderr);
        assert!(said.contains("the ledger is newer than this binary"), "{command:?}: {said}");
        assert!(said.contains("run the newer tombstream"), "{command:?}: {said}");
    }
    place.end().await;
}

#[tokio::test]
async fn a_letter_is_driven_again_by_the_pipeline_that_runs() {
    let folder = tempfile::tempdir().unwrap();
    let sources =
        format!("[source.files]\npath = \"file://{}\"\nfollow = true\n", folder.path().display());
    let mut place = Place::with(&sources).await;
    place.migrate();
    sqlx::raw_sql(
        "insert into tombstream.dead_letter (topic, partition, \"offset\", reason, value) values \
             ('file:///a.jsonl', 0, 1, 'no', '{\"ts_ms\": 1}'), \
             ('file:///a.jsonl', 0, 2, 'no', 'still wrong')",
    )
    .execute(&mut place.db)
    .await
    .unwrap();
    let ordered = place.run(&["dead-letters", "redrive", "--all"]);
    assert!(ordered.status.success(), "{}", text(&ordered.stderr));
    let process = place.command(&["run"]).stderr(Stdio::piped()).spawn().unwrap();
    until("one is resolved, the other is back", async || {
        let text = text(&place.run(&["dead-letters", "list"]).stdout);
        text.contains("(resolved)") && !text.contains("to be driven again")
    })
    .await;
    let shown = text(&place.run(&["dead-letters", "show", "2"]).stdout);
    assert!(shown.contains("undecodable 2 times"), "{shown}");
    terminate(&process);
    let mut process = process;
    assert!(process.wait().unwrap().success());
    place.end().await;
}
