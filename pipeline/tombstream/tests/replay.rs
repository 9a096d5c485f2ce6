//! `replay` against a real Postgres: history read from files once more. The store is a folder.

#![allow(clippy::unwrap_used, reason = "a test may panic, and so may what it is made of")]

mod support;

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use support::{Notes, Place, text, until_within};

impl Place {
    async fn new() -> Self {
        let place = Self::made_of(
            "id bigint primary key, gone timestamptz",
            &Notes::default().config(),
            &[],
        )
        .await;
        place.migrate();
        place
    }

    fn put(&self, ids: impl Iterator<Item = i64>) {
        for id in ids {
            std::fs::create_dir_all(self.copy(id).parent().unwrap()).unwrap();
            std::fs::write(self.copy(id), format!("bytes of {id}")).unwrap();
        }
    }

    fn has_copies(&self, mut ids: impl Iterator<Item = i64>) -> bool {
        ids.all(|id| self.copy(id).is_file())
    }

    /// Everything that may not change while somebody only looks: rows, ledger, copies.
    async fn fingerprint(&mut self) -> (String, usize) {
        let tables: Vec<String> = sqlx::query_scalar(
            "select format('%I.%I', schemaname, tablename) from pg_tables \
             where schemaname in ('public', 'tombstream') order by 1",
        )
        .fetch_all(&mut self.db)
        .await
        .unwrap();
        let mut all = String::new();
        for table in tables {
            let sql = format!(
                "select coalesce(md5(string_agg(t::text || t.xmin::text || t.ctid::text, ';' order by t.ctid)), '') \
                 from only {table} t"
            );
            let sql = if table.contains("deletion_archive") {
                format!("select count(*)::text from {table}")
            } else {
                sql
            };
            let digest: String =
                sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut self.db).await.unwrap();
            writeln!(all, "{table} {digest}").unwrap();
        }
        let copies = std::fs::read_dir(self.folder.path().join("copies")).unwrap();
        (all, copies.filter(|it| it.as_ref().unwrap().path().join("original").is_file()).count())
    }

    fn history(&self, name: &str, lines: &[Value]) {
        let folder = self.folder.path().join("history");
        std::fs::create_dir_all(&folder).unwrap();
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let path = folder.join(name);
        if name.ends_with(".gz") {
            let file = std::fs::File::create(path).unwrap();
            let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
            gzip.write_all(text.as_bytes()).unwrap();
            gzip.finish().unwrap();
        } else {
            std::fs::write(path, text).unwrap();
        }
    }

    fn replay(&self, more: &[&str]) -> Output {
        let files = format!("file://{}/history", self.folder.path().display());
        self.run(&[&["replay", "--files", &files], more].concat())
    }
}

fn event(op: &str, id: i64, flagged: Option<bool>, lsn: i64) -> Value {
    let row =
        |flagged: bool| json!({ "id": id, "gone": flagged.then_some("2025-01-01T00:00:00Z") });
    json!({
        "before": if op == "d" { row(true) } else { Value::Null },
        "after": flagged.map(row),
        "source": { "connector": "postgresql", "schema": "public", "table": "notes", "lsn": lsn, "snapshot": "false" },
        "op": op, "ts_ms": 1
    })
}

/// A row's whole life up to its flag.
fn flagged(id: i64) -> [Value; 2] {
    [event("c", id, Some(false), 100 + id), event("u", id, Some(true), 10_000 + id)]
}

/// The last line of stdout: how it ended.
fn last(output: &Output) -> Value {
    let out = text(&output.stdout);
    let line = out.lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|_| panic!("{out}{}", text(&output.stderr)))
}

const RECEIPTS: &str = "select count(*) from tombstream.receipt";

/// In the history all of them are flagged. Now some are due, some live, some were restored, some keys are used
/// anew, one is held: the due ones go, and no other.
#[tokio::test]
async fn a_history_with_living_restored_and_new_rows_in_it_destroys_none_of_them() {
    let mut place = Place::new().await;
    let all = || (1..=500).flat_map(flagged).collect::<Vec<_>>();
    place.history("1.jsonl", &all()[..500]);
    place.history("2.jsonl.gz", &all()[500..]);
    // What became of some of them, and a truncation.
    let mut rest: Vec<Value> =
        (201..=300).map(|id| event("u", id, Some(false), 20_000 + id)).collect();
    rest.extend((301..=400).map(|id| event("d", id, None, 30_000 + id)));
    rest.push(event("t", 0, None, 40_000));
    place.history("3.jsonl", &rest);

    // The first life of 301 to 400 ends, and their keys are used anew.
    place.sql("insert into notes select n, now() from generate_series(301, 400) n").await;
    let first = place.replay(&["--json"]);
    assert_eq!(last(&first)["counts"]["finalized"], 100, "{}", text(&first.stderr));
    place.sql("alter table notes disable trigger user").await;
    place
        .sql(
            "insert into notes select n, case when n <= 100 then now() - interval '1 day' end \
             from generate_series(1, 400) n",
        )
        .await;
    place
        .sql(
            "do $$ declare name text; begin for name in select tgname from pg_trigger \
             where tgrelid = 'notes'::regclass and not tgisinternal loop \
             execute format('alter table notes enable always trigger %I', name); end loop; end $$",
        )
        .await;
    place.sql("update notes set gone = now() where id between 201 and 300").await;
    place.sql("update notes set gone = null where id between 201 and 300").await;
    let hold = place.run(&["hold", "set", "notes", "1", "--case", "a case", "--actor", "judge"]);
    assert!(hold.status.success(), "{}", text(&hold.stderr));
    place.put(1..=400);

    let before = place.fingerprint().await;
    let dry = place.replay(&["--dry-run", "--json"]);
    let counts = &last(&dry)["counts"];
    assert_eq!(place.fingerprint().await, before, "a look changes nothing");
    let expected = json!({ "matched": 500, "due": 99, "held": 1, "alive": 200, "restored": 100, "gone": 100,
        "removals": 100, "truncates": 1 });
    assert_eq!(*counts, expected);
    assert_eq!(dry.status.code(), Some(3), "one is held");

    let ended = place.replay(&["--json"]);
    let report = last(&ended);
    let expected = json!({ "matched": 500, "claimed": 99, "finalized": 99, "held": 1, "alive": 200, "restored": 100,
        "gone": 100, "removals": 100, "truncates": 1 });
    assert_eq!(report["counts"], expected);
    assert_eq!((ended.status.code(), &report["looked_at"]), (Some(3), &json!(1_201)));
    assert!((2..=100).all(|id| !place.copy(id).exists()), "what is due is gone");
    assert!(place.has_copies((101..=400).chain([1])), "what lives or is held is there");
    assert_eq!(place.count("select count(*) from notes").await, 301);
    assert_eq!(place.count("select count(*) from tombstream.pause").await, 0);
    let told = "select count(*) from tombstream.deletion where flip_lsn is not null";
    assert_eq!(place.count(told).await, 0, "an old event's place is not that of this flag");

    // Once more: there is nothing left to do.
    let receipts = place.count(RECEIPTS).await;
    let again = last(&place.replay(&["--json"]));
    assert_eq!((&again["counts"]["done"], &again["counts"]["claimed"]), (&json!(99), &Value::Null));
    assert_eq!(place.count(RECEIPTS).await, receipts);
    assert!(place.has_copies((101..=400).chain([1])));
    place.end().await;
}

#[tokio::test]
async fn a_replay_that_is_killed_begins_anew_and_destroys_nothing_twice() {
    const ROWS: i64 = 3_000;
    let mut place = Place::new().await;
    place.sql("insert into notes select n, null from generate_series(1, 3000) n").await;
    place.sql("update notes set gone = now()").await;
    place.put(1..=ROWS);
    let lines: Vec<Value> = (1..=ROWS).flat_map(flagged).collect();
    place.history("1.jsonl", &lines);
    let files = format!("file://{}/history", place.folder.path().display());
    let mut process = place
        .command(&["replay", "--files", &files, "--rate", "1000"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until_within(Duration::from_secs(60), "a part of it is done", async || {
        place.count(RECEIPTS).await > 200
    })
    .await;
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(place.count(RECEIPTS).await < ROWS, "it was killed in the middle");
    let ended = last(&place.replay(&["--json"]));
    let count = |name: &str| ended["counts"][name].as_i64().unwrap_or_default();
    assert_eq!(count("finalized") + count("done") + count("underway"), ROWS, "{ended}");
    // What the killed one had claimed is `run`'s, when its lease is over.
    let mut run = place.begin();
    until_within(Duration::from_secs(60), "all go", async || place.count(RECEIPTS).await == ROWS)
        .await;
    run.kill().unwrap();
    run.wait().unwrap();
    assert_eq!(place.count("select count(distinct key) from tombstream.receipt").await, ROWS);
    assert!((1..=ROWS).all(|id| !place.copy(id).exists()));
    place.end().await;
}

/// A wrong converter, or a file of something else, must not fill Postgres with dead letters.
#[tokio::test]
async fn a_replay_of_something_else_ends_with_the_reason_before_it_fills_the_ledger() {
    let mut place = Place::new().await;
    let lines: Vec<Value> = (0..50_000).map(|n| json!({ "op": n, "source": {} })).collect();
    place.history("1.jsonl", &lines);
    let dry = place.replay(&["--dry-run"]);
    assert_eq!(dry.status.code(), Some(1));
    assert_eq!(place.count("select count(*) from tombstream.dead_letter").await, 0);
    let ended = place.replay(&[]);
    assert_eq!(ended.status.code(), Some(1), "{}", text(&ended.stdout));
    assert!(text(&ended.stderr).contains("can't be decoded"), "{}", text(&ended.stderr));
    let letters = place.count("select count(*) from tombstream.dead_letter").await;
    assert!((1..10_000).contains(&letters), "{letters} dead letters");
    place.end().await;
}

#[tokio::test]
async fn a_replay_of_nothing_that_is_there_says_so() {
    let place = Place::new().await;
    let none = place.run(&["replay", "--files", "file:///no/such/folder"]);
    assert_eq!(none.status.code(), Some(1));
    assert!(
        text(&none.stderr).contains("there is no folder and no file"),
        "{}",
        text(&none.stderr)
    );
    let none = place.run(&["replay"]);
    assert_eq!(none.status.code(), Some(2));
    let none = place.run(&["replay", "--kafka"]);
    assert!(text(&none.stderr).contains("there is no [source.kafka]"), "{}", text(&none.stderr));
    place.end().await;
}

/// What `[archive]` and a source of events add.
const ARCHIVE: &str = r#"
[archive]
path = "file://FOLDER/archive"
close_after = "1s"
rows_max = 300
[source.files]
path = "file://FOLDER/events"
"#;

impl Place {
    async fn archiving() -> Self {
        let config = Notes::default().config() + ARCHIVE;
        let place = Self::made_of("id bigint primary key, gone timestamptz", &config, &[]).await;
        place.migrate();
        for folder in ["archive", "events"] {
            std::fs::create_dir(place.folder.path().join(folder)).unwrap();
        }
        place
    }
}

const READ: &str = "select count(*) from tombstream.file_position where whole is not null";
const WAITING: &str = "select count(*) from tombstream.archive_event";

/// Killed again and again while events are read, claimed and archived, and with the archive away for a while: each
/// event is in the ledger or in a file, so that the archive tells in the end of every row that went.
#[tokio::test]
async fn an_event_is_in_the_ledger_or_in_a_file_whatever_dies() {
    const ROWS: i64 = 8_000;
    let mut place = Place::archiving().await;
    place.sql("insert into notes select n, null from generate_series(1, 8000) n").await;
    place.sql("update notes set gone = now()").await;
    place.put(1..=ROWS);
    let lines: String = (1..=ROWS).flat_map(flagged).map(|line| format!("{line}\n")).collect();
    std::fs::write(place.folder.path().join("events/1.jsonl"), lines).unwrap();
    // A process that died may have been the one that writes files, for a minute.
    let patience = Duration::from_secs(150);

    let mut before = 0;
    for _ in 0..3 {
        let mut process = place.begin();
        until_within(patience, "a part of it is done", async || {
            place.count(RECEIPTS).await > (before + 200).min(ROWS - 1)
        })
        .await;
        process.kill().unwrap();
        process.wait().unwrap();
        before = place.count(RECEIPTS).await;
    }
    // The archive goes away: deletions go on, and events wait.
    let (here, away) = (place.folder.path().join("archive"), place.folder.path().join("away"));
    let log = place.folder.path().join("log");
    let mut process = place
        .command(&["run"])
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    until_within(patience, "it runs", async || {
        std::fs::read_to_string(&log).unwrap().contains("running listen")
    })
    .await;
    std::fs::rename(&here, &away).unwrap();
    std::fs::write(&here, "no folder").unwrap();
    until_within(patience, "all go, all is read, and a file was tried", async || {
        let said = std::fs::read_to_string(&log).unwrap();
        place.count(RECEIPTS).await == ROWS
            && place.count(READ).await == 1
            && said.contains("change events are not archived yet")
    })
    .await;
    process.kill().unwrap();
    process.wait().unwrap();
    let waiting = place.count(WAITING).await;
    println!("{waiting} events wait while the archive is away");
    std::fs::remove_file(&here).unwrap();
    std::fs::rename(&away, &here).unwrap();
    let written = place.run(&["archive"]);
    assert!(written.status.success(), "{}", text(&written.stderr));
    assert_eq!(place.count(WAITING).await, 0);

    let replayed = last(&place.run(&["replay", "--archive", "--json"]));
    assert_eq!(replayed["counts"]["done"], ROWS, "{replayed}");
    assert_eq!(replayed["counts"]["claimed"], Value::Null, "{replayed}");
    let none = last(&place.run(&["replay", "--archive", "--to", "2020-01-01T00:00:00Z", "--json"]));
    assert_eq!(none["looked_at"], 0, "{none}");
    place.end().await;
}

/// The ledger's claims were lost with a backup that was restored, and the topic's retention is over: the archive has
/// the keys.
#[tokio::test]
async fn an_archive_brings_flagged_rows_to_the_claim_again() {
    let mut place = Place::archiving().await;
    place.sql("insert into notes select n, null from generate_series(1, 300) n").await;
    // Living rows by their own word; their events say otherwise.
    place.put(1..=300);
    let lines: String = (1..=300).flat_map(flagged).map(|line| format!("{line}\n")).collect();
    std::fs::write(place.folder.path().join("events/1.jsonl"), lines).unwrap();
    let mut process = place.begin();
    until_within(Duration::from_secs(60), "all is archived", async || {
        std::fs::read_dir(place.folder.path().join("archive")).unwrap().count() > 0
            && place.count(WAITING).await == 0
    })
    .await;
    support::terminate(&process);
    assert!(process.wait().unwrap().success());
    assert_eq!(place.count(RECEIPTS).await, 0, "none was flagged");
    place.sql("update notes set gone = now() where id <= 100").await;
    let replayed = last(&place.run(&["replay", "--archive", "--json"]));
    let counts = &replayed["counts"];
    assert_eq!(*counts, json!({ "matched": 300, "claimed": 100, "finalized": 100, "alive": 200 }));
    assert!(place.has_copies(101..=300) && (1..=100).all(|id| !place.copy(id).exists()));
    place.end().await;
}

/// Copies of what was finalized long ago are there again: a replay that asks the stores finds them, leaves those of keys
/// that have a row again, and `run` destroys the others.
#[tokio::test]
async fn a_replay_that_asks_the_stores_finds_what_came_back() {
    let config =
        Notes::default().config() + "[audit]\nafter = []\nwait = \"100ms\"\nrate = 20000\n";
    let mut place = Place::made_of("id bigint primary key, gone timestamptz", &config, &[]).await;
    place.migrate();
    place.sql("insert into notes select n, now() from generate_series(1, 300) n").await;
    place.put(1..=300);
    let lines: Vec<Value> = (1..=300).flat_map(flagged).collect();
    place.history("1.jsonl", &lines);
    assert_eq!(last(&place.replay(&["--json"]))["counts"]["finalized"], 300);
    let clean = place.replay(&["--reverify", "--json"]);
    let counts = &last(&clean)["counts"];
    assert_eq!(*counts, json!({ "matched": 300, "done": 300, "looked": 300 }));
    assert_eq!(clean.status.code(), Some(0));

    place.put(1..=40);
    place.sql("insert into notes values (40, null)").await;
    let dry = place.replay(&["--reverify", "--dry-run"]);
    assert_eq!(dry.status.code(), Some(2), "a look asks no store");
    let found = place.replay(&["--reverify", "--json"]);
    let counts = &last(&found)["counts"];
    let expected =
        json!({ "matched": 300, "done": 299, "alive": 1, "looked": 299, "resurrected": 39 });
    assert_eq!(*counts, expected);
    assert_eq!(found.status.code(), Some(3));
    assert!(place.has_copies(1..=40), "nothing is destroyed without the claim");
    let mut run = place.begin();
    until_within(Duration::from_secs(60), "they go", async || {
        (1..40).all(|id| !place.copy(id).exists())
    })
    .await;
    support::terminate(&run);
    assert!(run.wait().unwrap().success());
    assert!(place.has_copies(40..=40), "it is a living row's");
    place.end().await;
}

#[tokio::test]
async fn a_file_that_can_not_be_written_takes_no_event_from_the_ledger() {
    let mut place = Place::archiving().await;
    place
        .sql(
            "insert into tombstream.archive_event (relation, key, event) \
             select 'notes', array[n::text], 'flagged' from generate_series(1, 500) n",
        )
        .await;
    let blocked = place.folder.path().join("archive/relation=notes");
    std::fs::write(&blocked, "no folder").unwrap();
    let failed = place.run(&["archive"]);
    assert_eq!(failed.status.code(), Some(1), "{}", text(&failed.stdout));
    assert_eq!(place.count(WAITING).await, 500);
    std::fs::remove_file(&blocked).unwrap();
    let written = place.run(&["archive"]);
    assert!(text(&written.stdout).contains("500 events"), "{}", text(&written.stderr));
    assert_eq!(place.count(WAITING).await, 0);
    place.end().await;
}
