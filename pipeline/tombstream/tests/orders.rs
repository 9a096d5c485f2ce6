//! What operators order on the command line, against a real Postgres with the guard triggers that `migrate` makes.

#![allow(clippy::unwrap_used, reason = "a test may panic, and so may what it is made of")]

mod support;

use support::{Place, text};

const CONFIG: &str = r#"
[database]
url = { env = "NOTES_URL" }
[store.copies]
kind = "object_store"
url = "file:///nowhere"
[relation.notes]
table = "public.notes"
key = [{ column = "id", type = "bigint" }]
flag = { column = "gone", type = "timestamptz" }
key_reuse = "forbidden"
grace = "1h"
breaker = { claims_max = 10 }
targets = [{ store = "copies", key = "{id}/original" }]
"#;

impl Place {
    async fn new() -> Self {
        let envs = [("TOMBSTREAM_ACTOR", "ann")];
        let place = Self::made_of("id bigint primary key, gone timestamptz", CONFIG, &envs).await;
        place.migrate();
        place
    }

    /// What a command that succeeds prints.
    fn says(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// What a command that fails with `code` complains of.
    fn complains(&self, args: &[&str], code: i32) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output.stdout));
        text(&output.stderr)
    }

    async fn count_of(&mut self, what: &str) -> i64 {
        self.count(&format!("select count(*) from {what}")).await
    }
}

#[tokio::test]
async fn a_hold_is_set_listed_and_released_and_explained() {
    let mut place = Place::new().await;
    place.sql("insert into notes values (-7, now())").await;
    let row = ["notes", "-7"];
    let with = |before: &[&'static str], after: &[&'static str]| -> Vec<&'static str> {
        [before, &row, after].concat()
    };
    let set = place
        .says(&with(&["hold", "set"], &["--case", "case 7", "--until", "2999-01-01T00:00:00Z"]));
    assert_eq!(
        set,
        "hold 1: the row and its copies are kept while the hold lasts, whatever its flag says\n"
    );
    let listed = place.says(&with(&["hold", "list"], &[]));
    assert!(
        listed.ends_with(" by ann, case 7: active until 2999-01-01 00:00:00 UTC\n"),
        "{listed}"
    );
    assert!(place.says(&["status"]).contains("notes: 1 holds active\n"));
    let explained = place.says(&with(&["explain"], &[]));
    for part in [
        "notes -7: the row is flagged; flagged, and the ledger has nothing of it yet\n",
        "waits (hold): hold 1, case 7 by ann, until 2999-01-01 00:00:00 UTC\n",
        "waits (grace): it is claimed when 1h have passed since its flag",
        "can: tombstream hold release notes '-7' --id 1\n",
    ] {
        assert!(explained.contains(part), "{part}: {explained}");
    }
    let released = place.says(&with(&["hold", "release"], &["--id", "1", "--actor", "bob"]));
    assert_eq!(released, "hold 1 (case 7) is released\n");
    let again = place.complains(&with(&["hold", "release"], &["--id", "1"]), 1);
    assert!(again.contains("hold 1 was released by bob at "), "{again}");
    let late = place
        .complains(&with(&["hold", "set"], &["--case", "x", "--until", "2020-01-01T00:00:00Z"]), 1);
    assert!(late.contains("`until` is over"), "{late}");
    let missing = place.complains(&["hold", "set", "notes", "8", "--case", "x"], 1);
    assert!(missing.contains("there is no row with this key"), "{missing}");
    assert!(
        place
            .complains(&["hold", "list", "notes", "x"], 1)
            .contains("key column `id`: not a bigint")
    );
    assert!(place.complains(&["explain", "nots", "1"], 1).contains("known are notes"));
    assert!(place.complains(&["explain", "notes", "1"], 1).contains("notes has no row 1"));
    assert_eq!(place.count_of("tombstream.operator_order where actor in ('ann', 'bob')").await, 2);
    place.end().await;
}

#[tokio::test]
async fn parked_work_is_shown_retried_and_waived() {
    let mut place = Place::new().await;
    place.sql("insert into tombstream.deletion (relation, key, state, reason)
            select 'notes', array[n::text], 'parked', 'no address in store copies: ' || n % 2 from generate_series(1, 1500) as n;
        insert into tombstream.deletion (relation, key, state, flag, targets, claimed_at, lease_token, reason) values
            ('notes', '{9999}', 'parked', 'x', '[{\"store\": \"copies\", \"address\": {}, \"outcome\": {\"verdict\": \"refused\", \"said\": \"locked\"}}]', now(), 1, 'store copies refuses: locked')").await;
    let listed = place.says(&["parked", "list", "notes", "--limit", "2", "--after", "1499"]);
    assert_eq!(listed.lines().count(), 2, "{listed}");
    assert!(listed.lines().nth(1).unwrap().starts_with("1501 notes 9999: claimed "), "{listed}");
    let shown = place.says(&["parked", "show", "1501"]);
    assert!(shown.contains("store copies: refused: locked ({})\n"), "{shown}");
    assert!(shown.contains("next: mend what the store refuses"), "{shown}");
    let json = place.says(&["parked", "list", "--json", "--limit", "1"]);
    assert!(json.starts_with("{\"id\":1,\"relation\":\"notes\",\"key\":[\"1\"]"), "{json}");

    let waived =
        place.says(&["parked", "waive", "1501", "--store", "copies", "--reason", "an old bucket"]);
    assert_eq!(waived, "store copies is waived; deletion 1501 of notes is claimed again\n");
    assert_eq!(place.count_of("tombstream.deletion where targets @> '[{\"outcome\": {\"verdict\": \"waived\", \"said\": \"ann: an old bucket\"}}]'").await, 1);
    assert!(
        place
            .complains(&["parked", "retry", "1", "1501"], 1)
            .contains("is not parked: it is claimed")
    );
    assert_eq!(
        place.count_of("tombstream.deletion where state = 'pending'").await,
        1,
        "the other went on"
    );
    let all = place.says(&["parked", "retry", "--all", "--relation", "notes", "--reason", ": 0"]);
    assert_eq!(all, "750 go on\n");
    assert_eq!(place.says(&["parked", "retry", "--all"]), "749 go on\n");
    assert_eq!(place.says(&["parked", "list"]), "");
    place.complains(&["parked", "retry"], 2);
    place.complains(&["parked", "retry", "1", "--all"], 2);
    place.complains(&["parked", "waive", "1", "--store", "copies"], 2);
    place.end().await;
}

#[tokio::test]
async fn the_breaker_is_shown_and_exactly_what_was_seen_is_decided() {
    let mut place = Place::new().await;
    place.sql("insert into notes select n, '2026-11-23T10:00:30Z' from generate_series(1, 2100) as n;
        insert into tombstream.deletion (relation, key, state, flag, kept_back_at)
            select 'notes', array[n::text], 'pending', 'x', now() from generate_series(1, 2100) as n
            on conflict (relation, key) where state in ('pending', 'hidden', 'claimed', 'parked')
            do update set kept_back_at = now();
        insert into tombstream.breaker (relation, tripped_at, reason) values ('notes', now(), 'too many')").await;
    let shown = place.says(&["breaker", "show"]);
    let up_to: i64 = sqlx::query_scalar("select max(id) from tombstream.deletion")
        .fetch_one(&mut place.db)
        .await
        .unwrap();
    for part in [
        ": too many\n".to_owned(),
        "limits: claims_max 10 within 3600 s; 0 spent\n".to_owned(),
        format!("waiting: 2100, up to id {up_to}\n"),
        "flagged 2026-11-23T10:00Z: 2100\n".to_owned(),
        format!("tombstream breaker reject notes --up-to {up_to}\n"),
    ] {
        assert!(shown.contains(&part), "{part}: {shown}");
    }
    assert!(
        place
            .says(&["status"])
            .contains("notes: 2100 kept back by the breaker: tombstream breaker show notes\n")
    );
    place.complains(&["breaker", "reject", "notes"], 2);
    place.complains(&["breaker", "reject", "notes", "--all", "--up-to", "1"], 2);

    let half = (up_to - 100).to_string();
    let approved = place.says(&["breaker", "approve", "notes", "--to", "2026-11-23T10:00:00Z"]);
    assert!(approved.starts_with("0 approved\n2100 still wait"), "{approved}");
    // The guard cancels each deletion, so a reject is a restore like any other.
    let rejected = place.run(&["breaker", "reject", "notes", "--up-to", &half]);
    assert_eq!(
        text(&rejected.stdout),
        "2000 restored\n100 still wait: not chosen, or held by others at the moment (see tombstream breaker show notes)\n"
    );
    assert_eq!(text(&rejected.stderr), "1000 …\n2000 …\n");
    assert_eq!(place.count_of("notes where gone is null").await, 2000);
    assert_eq!(place.count_of("tombstream.deletion where state = 'cancelled'").await, 2000);
    let approved = place.says(&["breaker", "approve", "notes", "--all"]);
    assert_eq!(approved, "100 approved\nnothing waits: the breaker is reset\n");
    assert!(place.says(&["breaker", "show", "notes"]).starts_with("notes: not tripped\n"));
    place.end().await;
}

#[tokio::test]
async fn a_rehydration_is_listed_and_done() {
    let mut place = Place::new().await;
    place.sql("insert into tombstream.rehydrate (deletion_id, relation, key, targets, ready_at) values
        (1, 'notes', '{1}', '[{\"store\": \"copies\"}]', now()), (2, 'notes', '{2}', '[]', now() + interval '1 hour')").await;
    let listed = place.says(&["rehydrations", "list"]);
    assert!(
        listed.starts_with("1 notes 1: ready from ") && listed.ends_with("; copies\n"),
        "{listed}"
    );
    assert_eq!(place.says(&["rehydrations", "list", "notes", "--all"]).lines().count(), 2);
    assert_eq!(
        place.says(&["rehydrations", "done", "1"]),
        "rehydration 1 of notes is done, said by ann\n"
    );
    assert!(
        place
            .complains(&["rehydrations", "done", "2"], 1)
            .contains("a hide may still destroy copies until ")
    );
    assert!(
        place.complains(&["rehydrations", "done", "3"], 1).contains("there is no rehydration 3")
    );
    assert_eq!(place.says(&["rehydrations", "list"]), "");
    place.end().await;
}
