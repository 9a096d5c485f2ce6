//! `backfill`, `jobs` and `plan` against a real Postgres: killed, stopped, gone on. The store is a folder.

#![allow(clippy::unwrap_used, reason = "a test may panic, and so may what it is made of")]

mod support;

use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::{Notes, Place, terminate, text, until_within};

/// How long anything here may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(120);

impl Place {
    async fn new(grace: &str) -> Self {
        let columns = "id bigint primary key, kind text, gone timestamptz";
        let place =
            Self::made_of(columns, &Notes { grace, ..Notes::default() }.config(), &[]).await;
        place.migrate();
        place
    }

    /// Rows with a copy each, flagged some days ago before anybody guarded them, and as many that live.
    async fn fill(&mut self, flagged: i64, alive: i64) {
        let sql = format!(
            "begin; alter table notes disable trigger user; \
             insert into notes select n, 'k' || n % 3, case when n <= {flagged} \
                 then now() - interval '3 days' end from generate_series(1, {flagged} + {alive}) n; \
             do $$ declare name text; begin for name in select tgname from pg_trigger \
                 where tgrelid = 'notes'::regclass and not tgisinternal loop \
                 execute format('alter table notes enable always trigger %I', name); end loop; end $$; \
             commit; analyze notes"
        );
        self.sql(&sql).await;
        (1..=flagged + alive).for_each(|id| self.note(id));
    }
}

/// The last line of stdout: how a job ended.
fn last(output: &Output) -> Value {
    let out = text(&output.stdout);
    let line = out.lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|_| panic!("{out}{}", text(&output.stderr)))
}

async fn until(what: &str, done: impl AsyncFnMut() -> bool) {
    until_within(PATIENCE, what, done).await;
}

const RECEIPTS: &str = "select count(*) from tombstream.receipt";
const LOOKED_AT: &str = "select coalesce(sum(looked_at), 0)::bigint from tombstream.job_range";

/// Killed three times, in the middle of its work, with nobody else running: every flagged row goes once, nothing
/// that lives is touched, and no more is done twice than was in flight.
#[tokio::test]
async fn a_backfill_that_is_killed_three_times_goes_on_and_misses_nothing() {
    const FLAGGED: i64 = 4_000;
    let mut place = Place::new("0s").await;
    place.fill(FLAGGED, 50).await;
    let args = ["backfill", "--relation", "notes", "--job", "old"];
    let mut before = 0;
    for kill in 1..=3 {
        let mut process = place
            .command(&[&args[..], &["--rate", "800"]].concat())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("a part of it is done", async || place.count(RECEIPTS).await > before + 500).await;
        process.kill().unwrap();
        process.wait().unwrap();
        let looked_at = place.count(LOOKED_AT).await;
        assert!(looked_at < FLAGGED, "it was killed in the middle ({kill}): {looked_at}");
        before = place.count(RECEIPTS).await;
    }
    let ended = place.run(&args);
    let report = last(&ended);
    assert_eq!(ended.status.code(), Some(0), "{report}");
    assert_eq!((&report["total"], &report["state"]), (&FLAGGED.into(), &"done".into()));
    // What a killed process had finished and not noted is gone, and looked at by nobody.
    assert!(report["looked_at"].as_i64().unwrap() <= FLAGGED, "{report}");
    assert_eq!(place.count("select count(*) from notes").await, 50);
    assert_eq!(place.count("select count(*) from notes where gone is not null").await, 0);
    assert_eq!(place.count(RECEIPTS).await, FLAGGED);
    assert_eq!(place.count("select count(distinct key) from tombstream.receipt").await, FLAGGED);
    assert!((1..=FLAGGED).all(|id| !place.copy(id).exists()));
    assert!((FLAGGED + 1..=FLAGGED + 50).all(|id| place.copy(id).exists()));
    // An attempt sends a destroy; a second one is of what was in flight at a kill.
    let twice = "select coalesce(sum(attempts - 1), 0)::bigint from tombstream.deletion";
    let twice = place.count(twice).await;
    println!("{twice} of {FLAGGED} deletions were driven twice, after three kills");
    assert!(twice <= 3 * 2_000, "{twice}");
    let again = place.run(&args);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("job old is done"), "{}", text(&again.stderr));
    place.end().await;
}

#[tokio::test]
async fn a_backfill_that_is_told_to_stop_says_so_and_jobs_show_it() {
    let mut place = Place::new("0s").await;
    place.fill(500, 0).await;
    let args = ["backfill", "--relation", "notes", "--job", "slow", "--where", "kind = 'k1'"];
    let process = place
        .command(&[&args[..], &["--rate", "50", "--json"]].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("a part of it is done", async || place.count(LOOKED_AT).await > 0).await;
    let shown = text(&place.run(&["jobs", "list"]).stdout);
    assert!(shown.starts_with("slow backfill running: "), "{shown}");
    let second = place.run(&args);
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("job slow is run by "), "{}", text(&second.stderr));
    terminate(&process);
    let stopped = process.wait_with_output().unwrap();
    assert_eq!(stopped.status.code(), Some(4));
    assert_eq!(last(&stopped)["state"], "stopped");
    let shown = text(&place.run(&["jobs", "show", "slow"]).stdout);
    assert!(shown.contains("stopped: told to stop by SIGTERM"), "{shown}");
    let other = place.run(&["backfill", "--relation", "notes", "--job", "slow"]);
    assert!(text(&other.stderr).contains("was asked for something else"));
    // No time is lost: the name was given back.
    let ended = place.run(&args);
    assert_eq!(ended.status.code(), Some(0), "{}", text(&ended.stderr));
    let left = "select count(*) from notes where kind = 'k1'";
    assert_eq!(
        (place.count(left).await, place.count("select count(*) from notes").await),
        (0, 333)
    );
    assert!(text(&place.run(&["jobs", "forget", "slow"]).stdout).contains("is forgotten"));
    let evil = place.run(&[
        "backfill",
        "--relation",
        "notes",
        "--job",
        "evil",
        "--where",
        "true; delete from notes",
    ]);
    assert_eq!(evil.status.code(), Some(1));
    assert!(text(&evil.stderr).contains("ends before `;`"), "{}", text(&evil.stderr));
    assert_eq!(place.count("select count(*) from notes").await, 333);
    place.end().await;
}

/// With `run` beside: each row is one's or the other's, and all go.
#[tokio::test]
async fn a_backfill_and_run_share_the_rows() {
    let mut place = Place::new("0s").await;
    place.fill(1_500, 10).await;
    let mut run = place.begin();
    let ended = place.run(&["backfill", "--relation", "notes", "--job", "beside"]);
    let report = last(&ended);
    assert!([Some(0), Some(3)].contains(&ended.status.code()), "{report}");
    until("all go", async || place.count(RECEIPTS).await == 1_500).await;
    assert_eq!(place.count("select count(*) from notes").await, 10);
    let counts = &report["counts"];
    let of = |name: &str| counts[name].as_i64().unwrap_or_default();
    let known = ["claimed", "underway", "locked", "gone", "cancelled", "waiting"];
    assert_eq!(known.map(of).iter().sum::<i64>(), of("matched"), "{counts}");
    terminate(&run);
    assert!(run.wait().unwrap().success());
    place.end().await;
}

#[tokio::test]
async fn rows_in_grace_wait_and_plan_says_until_when() {
    let mut place = Place::new("30d").await;
    place.fill(20, 5).await;
    let planned = text(&place.run(&["plan", "--relation", "notes"]).stdout);
    assert!(planned.starts_with("notes: 20 rows are flagged\n    20 due later\n"), "{planned}");
    assert!(planned.contains("store copies: 20 copies"), "{planned}");
    let ended = place.run(&["backfill", "--relation", "notes", "--job", "early"]);
    let report = last(&ended);
    assert_eq!(ended.status.code(), Some(0), "{report}");
    assert_eq!(report["counts"], serde_json::json!({ "matched": 20, "waiting": 20 }));
    assert_eq!(place.count("select count(*) from notes").await, 25);
    let row = text(&place.run(&["plan", "--relation", "notes", "--for-key", "7"]).stdout);
    assert!(row.contains("notes 7: the row is flagged") && row.contains("waits (grace)"), "{row}");
    let json = text(&place.run(&["plan", "--json"]).stdout);
    let json: Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    assert_eq!(json["rows"]["due_later"], 20);
    place.end().await;
}
