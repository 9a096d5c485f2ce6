//! `re-erase` and `receipts import` after a restored backup, against a real Postgres. The store is a folder.
//!
//! A backup is a database made of another one as its template: its files as they are, so that rows keep the transactions
//! that wrote them, as in a restored physical backup.

#![allow(clippy::unwrap_used, reason = "a test may panic, and so may what it is made of")]

mod support;

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};

use support::{Place, terminate, text, until_within};

/// How long anything here may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(600);

/// The breaker has room for what is deleted once, and the absent share for few copies that are not there.
const CONFIG: &str = r#"
[database]
url = { env = "NOTES_URL" }
[pipeline]
listen = "127.0.0.1:0"
RECEIPTS
[source.sweep]
interval = "100ms"
after = "0s"
[store.copies]
kind = "object_store"
url = "file://FOLDER/copies"
[relation.notes]
table = "public.notes"
key = [{ column = "id", type = "bigint" }]
flag = { column = "gone", type = "timestamptz" }
key_reuse = "forbidden"
breaker = { claims_max = BUDGET }
CREATED
targets = [{ store = "copies", key = "{id}/original" }]
"#;

const CREATED: &str = "created = \"born\"";
const SECRET: (&str, &str) = ("NOTES_SECRET", "0123456789abcdef0123456789abcdef");

/// How many rows a history has.
#[derive(Clone, Copy)]
struct Size {
    /// Erased after the backup, and in it.
    erased: i64,
    /// Of each kind of key that is used anew.
    anew: i64,
    /// That live through it all.
    alive: i64,
}

impl Size {
    /// The suite's, or what the environment asks for.
    fn of_suite() -> Self {
        let erased = std::env::var("TOMBSTREAM_RE_ERASE_ROWS").ok().and_then(|it| it.parse().ok());
        let erased = erased.unwrap_or(1_200);
        Self { erased, anew: erased / 20, alive: 30 }
    }
}

/// Keys: 1.. erased, then alive ones, then keys that were used anew before the backup, then those that rows got which
/// were born after the backup.
impl Size {
    fn first_old(&self) -> i64 {
        self.erased + self.alive + 1
    }

    fn first_new(&self) -> i64 {
        self.first_old() + self.anew
    }
}

async fn place(size: Size, created: &str, hashed: bool) -> Place {
    let receipts = match hashed {
        true => "[receipts]\nkeys = \"hashed\"\nsecret = { env = \"NOTES_SECRET\" }",
        false => "",
    };
    let budget = (size.erased + 3 * size.anew).to_string();
    let config =
        CONFIG.replace("CREATED", created).replace("RECEIPTS", receipts).replace("BUDGET", &budget);
    let columns =
        "id bigserial primary key, gone timestamptz, born timestamptz not null default now()";
    let place = Place::made_of(columns, &config, &[SECRET, ("TOMBSTREAM_ACTOR", "test")]).await;
    place.migrate();
    place
}

impl Place {
    /// Runs the pipeline until there are so many receipts.
    async fn run_until(&mut self, receipts: i64) {
        let mut run = self.begin();
        until_within(PATIENCE, "all are finalized", async || {
            self.count("select count(*) from tombstream.receipt").await >= receipts
        })
        .await;
        terminate(&run);
        assert!(run.wait().unwrap().success());
    }

    fn export(&self, to: &str) {
        let exported = self.run(&["receipts", "export"]);
        assert!(exported.status.success(), "{}", text(&exported.stderr));
        std::fs::write(self.folder.path().join(to), exported.stdout).unwrap();
    }

    /// Makes `to` of `from`: nobody may be at either.
    async fn copy_database(&mut self, from: &str, to: &str) {
        let url = self.url.clone();
        let free = self.admin.clone_options(&url);
        let db = std::mem::replace(&mut self.db, free.connect().await.unwrap());
        db.close().await.unwrap();
        for sql in [
            format!("drop database if exists {to} with (force)"),
            format!("create database {to} template {from} strategy = file_copy"),
        ] {
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut self.admin).await.unwrap();
        }
    }

    async fn back_up(&mut self) {
        let (name, backup) = (self.name.clone(), format!("{}_backup", self.name));
        self.copy_database(&name, &backup).await;
        self.reopen().await;
    }

    async fn restore(&mut self) {
        let (name, backup) = (self.name.clone(), format!("{}_backup", self.name));
        self.copy_database(&backup, &name).await;
        self.reopen().await;
    }

    async fn reopen(&mut self) {
        let options: PgConnectOptions = self.url.parse().unwrap();
        self.db = options.connect().await.unwrap();
    }

    async fn end_with_backup(mut self) {
        let drop = AssertSqlSafe(format!("drop database if exists {}_backup", self.name));
        sqlx::raw_sql(drop).execute(&mut self.admin).await.unwrap();
        self.end().await;
    }
}

/// Where to be while the database itself is copied.
trait Elsewhere {
    fn clone_options(&self, url: &str) -> PgConnectOptions;
}

impl Elsewhere for sqlx::PgConnection {
    fn clone_options(&self, url: &str) -> PgConnectOptions {
        url.parse::<PgConnectOptions>().unwrap().database("postgres")
    }
}

/// A table's history up to the disaster: keys that were used anew before the backup, a backup, erased rows, rows that
/// were born after the backup and erased. The export is of the last moment; then the backup is restored, and the
/// application gives out the same numbers again.
async fn history(place: &mut Place, size: Size) {
    let Size { erased, anew, alive } = size;
    let (old, new) = (size.first_old(), size.first_new());
    place
        .sql(&format!(
            "insert into notes (born) select now() - interval '2 days' from generate_series(1, {})",
            erased + alive + anew
        ))
        .await;
    (1..old + anew).for_each(|id| place.note(id));
    place.sql(&format!("update notes set gone = now() where id >= {old}")).await;
    place.run_until(anew).await;
    place
        .sql(&format!("insert into notes (id) select n from generate_series({old}, {}) n", new - 1))
        .await;
    (old..new).for_each(|id| place.note(id));
    // A receipt behind them: what was written before it is of the backup for certain.
    place.sql("insert into notes (id) values (1000000); update notes set gone = now() where id = 1000000").await;
    place.run_until(anew + 1).await;
    // It seals, too.
    place.export("before.jsonl");
    place.back_up().await;
    place
        .sql(&format!(
            "insert into notes (id) select n from generate_series({new}, {}) n",
            new + anew - 1
        ))
        .await;
    (new..new + anew).for_each(|id| place.note(id));
    place
        .sql(&format!(
            "update notes set gone = now() where id <= {erased} or id between {new} and {}",
            new + anew - 1
        ))
        .await;
    place.run_until(erased + 2 * anew + 1).await;
    assert_eq!(place.count("select count(*) from notes").await, alive + anew);
    place.export("receipts.jsonl");
    place.restore().await;
    assert_eq!(place.count("select count(*) from notes").await, erased + alive + anew);
    place
        .sql(&format!(
            "insert into notes (id) select n from generate_series({new}, {}) n",
            new + anew - 1
        ))
        .await;
    (new..new + anew).for_each(|id| place.note(id));
}

const SINCE: &[&str] =
    &["re-erase", "--since", "2020-01-01T00:00:00Z", "--ledger", "receipts.jsonl"];
const RECEIPTS: &str = "select count(*) from tombstream.receipt";

fn lines(place: &Place, file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(place.folder.path().join(file)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn of(lines: &[Value], ending: &str) -> Vec<i64> {
    let of = lines.iter().filter(|line| line["ending"] == ending);
    let mut keys: Vec<i64> =
        of.map(|line| line["key"][0].as_str().unwrap().parse().unwrap()).collect();
    keys.sort_unstable();
    keys
}

/// Everything that the export says was erased, and that is of the backup, is erased again, with a receipt that says why;
/// no key that was used anew is touched, before the backup or after it. Killed on the way, it goes on.
#[tokio::test]
async fn a_restored_backup_is_erased_again_and_keys_that_were_used_anew_stay() {
    let size = Size::of_suite();
    let Size { erased, anew, alive } = size;
    let mut place = place(size, CREATED, false).await;
    history(&mut place, size).await;
    let (old, new) = (size.first_old(), size.first_new());
    // The backup of the store brought half of the copies back.
    (1..erased / 2).for_each(|id| place.note(id));

    let dry = place.run(&[SINCE, &["--dry-run", "--report", "dry.jsonl"]].concat());
    assert_eq!(dry.status.code(), Some(0), "{}{}", text(&dry.stdout), text(&dry.stderr));
    assert_eq!(place.count("select count(*) from notes where gone is not null").await, 0);
    assert_eq!(of(&lines(&place, "dry.jsonl"), "re_erased"), (1..=erased).collect::<Vec<_>>());

    let imported = place.run(&["receipts", "import", "receipts.jsonl"]);
    assert!(imported.status.success(), "{}", text(&imported.stderr));
    assert_eq!(place.count(RECEIPTS).await, erased + 2 * anew + 1);

    // Killed in the middle, as often as that is hit.
    let flagged = "select count(*) from notes where gone is not null";
    let again = [SINCE, &["--report", "report.jsonl"]].concat();
    let begun = Instant::now();
    let mut killed =
        place.command(&again).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until_within(PATIENCE, "a part is done", async || place.count(flagged).await > erased / 4)
        .await;
    killed.kill().unwrap();
    killed.wait().unwrap();
    let before = place.count(flagged).await;
    let ended = place.run(&again);
    let said = text(&ended.stdout);
    println!("{}{said}", text(&imported.stdout));
    match ended.status.code() {
        // It was through before the kill.
        Some(1) => assert!(text(&ended.stderr).contains("is done"), "{}", text(&ended.stderr)),
        code => {
            assert_eq!(code, Some(0), "{said}{}", text(&ended.stderr));
            let report = lines(&place, "report.jsonl");
            assert_eq!(of(&report, "re_erased"), (1..=erased).collect::<Vec<_>>(), "{said}");
            assert_eq!(of(&report, "alive_anew"), (old..new + anew).collect::<Vec<_>>(), "{said}");
            assert_eq!(report.last().unwrap()["ambiguous"], 0, "{said}");
        }
    }
    println!(
        "{before} of {erased} were flagged at the kill; flagged in {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    assert_eq!(place.count(flagged).await, erased);

    let begun = Instant::now();
    place.run_until(2 * erased + 2 * anew + 1).await;
    println!("{erased} erased again in {:.1} s", begun.elapsed().as_secs_f64());
    let again = "select count(*) from tombstream.receipt where cause = 're_erase' and not imported";
    assert_eq!(place.count(again).await, erased);
    assert_eq!(place.count("select count(*) from notes").await, alive + 2 * anew);
    assert_eq!(place.count("select count(*) from tombstream.pause").await, 0);
    assert!((1..=erased).all(|id| !place.copy(id).exists()));
    assert!((erased + 1..new + anew).all(|id| place.copy(id).exists()));

    // One chain: the old head is still in it.
    place.export("after.jsonl");
    let head =
        lines(&place, "receipts.jsonl").pop().unwrap()["end"]["head"].as_str().unwrap().to_owned();
    let verified = place.run(&["receipts", "verify", "after.jsonl", "--head", &head]);
    assert!(verified.status.success(), "{}", text(&verified.stderr));
    place.end_with_backup().await;
}

/// Without a column that tells it, the server's transactions show what is of the backup; what they don't show stays.
#[tokio::test]
async fn without_a_column_of_creation_the_servers_transactions_show_what_is_of_the_backup() {
    let size = Size { erased: 20, anew: 4, alive: 3 };
    let mut place = place(size, "", false).await;
    history(&mut place, size).await;
    // Written since the restore: nothing shows any more that it was there before.
    place.sql("update notes set born = born where id = 7").await;
    let ended = place.run(&[SINCE, &["--report", "report.jsonl"]].concat());
    assert_eq!(ended.status.code(), Some(3), "{}{}", text(&ended.stdout), text(&ended.stderr));
    let report = lines(&place, "report.jsonl");
    let expected: Vec<i64> = (1..=20).filter(|id| *id != 7).collect();
    assert_eq!(of(&report, "re_erased"), expected);
    let new = size.first_new();
    let unclear: Vec<i64> = std::iter::once(7).chain(new..new + 4).collect();
    assert_eq!(of(&report, "ambiguous"), unclear);
    assert_eq!(of(&report, "alive_anew"), (size.first_old()..new).collect::<Vec<_>>());
    // Nobody was told to import: two histories now, and the command still says the right things.
    place.run_until(4 + 1 + 19).await;
    place.export("own.jsonl");
    let more = place.run(&[SINCE, &["--job", "again"]].concat());
    assert!(text(&more.stdout).contains("are two histories"), "{}", text(&more.stdout));
    assert_eq!(more.status.code(), Some(3), "{}", text(&more.stderr));
    let refused = place.run(&["receipts", "import", "receipts.jsonl"]);
    assert!(
        text(&refused.stderr).contains("two histories can't be one"),
        "{}",
        text(&refused.stderr)
    );
    place.end_with_backup().await;
}

/// Receipts that name nobody: the keys of the rows that are there are hashed and compared.
#[tokio::test]
async fn rows_of_hashed_receipts_are_found_by_their_hash() {
    let size = Size { erased: 12, anew: 2, alive: 3 };
    let mut place = place(size, CREATED, true).await;
    history(&mut place, size).await;
    let exported = std::fs::read_to_string(place.folder.path().join("receipts.jsonl")).unwrap();
    assert!(exported.contains("\"hashed\":true") && !exported.contains("original"));
    let ended = place.run(&[SINCE, &["--report", "report.jsonl"]].concat());
    assert_eq!(ended.status.code(), Some(0), "{}{}", text(&ended.stdout), text(&ended.stderr));
    let report = lines(&place, "report.jsonl");
    assert_eq!(of(&report, "re_erased"), (1..=12).collect::<Vec<_>>());
    assert_eq!(report.last().unwrap()["alive_anew"], 4);
    place.end_with_backup().await;
}

/// A table that was put back alone, with the ledger as it was: nobody is taken for back who was put back on purpose, unless an
/// operator says that a table was restored.
#[tokio::test]
async fn a_table_that_was_put_back_alone_is_erased_again_by_an_operators_word() {
    let size = Size { erased: 0, anew: 3, alive: 2 };
    let mut place = place(size, CREATED, false).await;
    place
        .sql("insert into notes (born) select now() - interval '2 days' from generate_series(1, 5)")
        .await;
    (1..6).for_each(|id| place.note(id));
    place.sql("create table backup as select * from notes; update notes set gone = now() where id <= 3").await;
    place.run_until(3).await;
    place.export("receipts.jsonl");
    place.sql("insert into notes select * from backup on conflict do nothing").await;
    let ended = place.run(&[SINCE, &["--report", "report.jsonl"]].concat());
    assert_eq!(ended.status.code(), Some(3), "{}{}", text(&ended.stdout), text(&ended.stderr));
    assert_eq!(of(&lines(&place, "report.jsonl"), "ambiguous"), [1, 2, 3]);
    let said = [SINCE, &["--tables-alone", "--job", "alone", "--report", "alone.jsonl"]].concat();
    let ended = place.run(&said);
    assert_eq!(ended.status.code(), Some(0), "{}{}", text(&ended.stdout), text(&ended.stderr));
    assert_eq!(of(&lines(&place, "alone.jsonl"), "re_erased"), [1, 2, 3]);
    place.run_until(6).await;
    assert_eq!(place.count("select count(*) from notes").await, 2);
    place.end().await;
}

/// What a person took back stays, and what is no whole export moves nothing.
#[tokio::test]
async fn a_restored_row_stays_and_a_spoiled_export_is_not_believed() {
    let size = Size { erased: 6, anew: 1, alive: 2 };
    let mut place = place(size, CREATED, false).await;
    history(&mut place, size).await;
    let path = place.folder.path().join("receipts.jsonl");
    let whole = std::fs::read_to_string(&path).unwrap();
    let spoiled = whole.replacen("\"key\":[\"3\"]", "\"key\":[\"8\"]", 1);
    assert_ne!(whole, spoiled);
    let cut: String = whole.lines().take(3).map(|line| format!("{line}\n")).collect();
    for wrong in [spoiled.as_str(), &cut, "", "garbage\n"] {
        std::fs::write(&path, wrong).unwrap();
        for command in [SINCE, &["receipts", "import", "receipts.jsonl"]] {
            let refused = place.run(command);
            assert_eq!(refused.status.code(), Some(1));
            let said = text(&refused.stderr);
            assert!(said.contains("nothing of it is believed"), "{said}");
        }
    }
    assert_eq!(place.count("select count(*) from notes where gone is not null").await, 0);
    std::fs::write(&path, &whole).unwrap();
    let head = ["--head", "ab00000000000000000000000000000000000000000000000000000000000000"];
    assert_eq!(place.run(&[SINCE, &head].concat()).status.code(), Some(1));

    assert_eq!(place.run(SINCE).status.code(), Some(0));
    place.sql("update notes set gone = null where id = 2").await;
    let again = place.run(&[SINCE, &["--job", "again", "--report", "report.jsonl"]].concat());
    assert_eq!(again.status.code(), Some(3), "{}", text(&again.stderr));
    let report = lines(&place, "report.jsonl");
    assert_eq!(of(&report, "ambiguous"), [2]);
    assert_eq!(of(&report, "already_flagged"), [1, 3, 4, 5, 6]);
    place.end_with_backup().await;
}
