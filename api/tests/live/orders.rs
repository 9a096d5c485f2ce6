//! Parked work, the breaker, bulk flags, rehydrations: what operators order over HTTP.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tombstream_api::ApiRelation;
use tombstream_api::orders::breaker::{self, Chosen};
use tombstream_model::{BreakerLimits, Relation};

use crate::harness::{App, DOCUMENTS, ask_json, documents, send};

/// `id(n)`: a uuid that ends with `n`.
const MAKE: &str = "create function id(n bigint) returns uuid language sql immutable as
    $$ select ('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid $$";
const GUARD: &str = "create function guard() returns trigger language plpgsql as $$ begin
        if exists (select from tombstream.deletion where relation = 'documents' and key = array[old.id::text]
            and claimed_at is not null and closed_at is null) then
            raise exception 'claimed' using errcode = 'TS001';
        end if;
        return new;
    end $$;
    create trigger guard before update on documents for each row
        when (old.deleted_at is not null and new.deleted_at is null) execute function guard()";

fn id(n: i64) -> String {
    format!("00000000-0000-0000-0000-{n:012}")
}

async fn app(limits: Option<BreakerLimits>) -> App {
    let mut api: ApiRelation = documents();
    let relation = Relation { breaker: limits, ..Arc::unwrap_or_clone(api.relation) };
    api.relation = relation.into();
    App::new(&format!("{DOCUMENTS};{MAKE}"), api).await
}

/// `rows` rows, flagged a minute apart by the hundred, whose deletions are kept back.
async fn kept_back(app: &App, rows: i64) {
    app.db
        .run(&format!(
            "insert into documents select id(n), 'x', now(), '2026-11-23T10:00:00Z'::timestamptz + n / 100 * interval '1 minute'
                 from generate_series(1, {rows}) as n;
             insert into tombstream.deletion (relation, key, state, flag, kept_back_at)
                 select 'documents', array[id(n)::text], 'pending', 'x', now() from generate_series(1, {rows}) as n;
             insert into tombstream.breaker (relation, tripped_at, reason) values ('documents', now(), 'too many');
             insert into tombstream.breaker_spent values ('documents', 'window', now(), 5)"
        ))
        .await;
}

async fn count(app: &App, what: &str) -> i64 {
    app.db.text(&format!("select count(*) from {what}")).await.unwrap().parse().unwrap()
}

async fn tripped(app: &App) -> bool {
    app.db.text("select tripped_at is not null from tombstream.breaker").await.as_deref()
        == Some("true")
}

fn relation() -> Relation {
    Arc::unwrap_or_clone(documents().relation)
}

async fn parked(app: &App, claimed: bool, reason: &str, targets: &str) -> i64 {
    let (at, token) = if claimed { ("now()", "1") } else { ("null", "null") };
    let targets = if targets.is_empty() { "null".to_owned() } else { format!("'{targets}'") };
    app.db
        .run(&format!(
            "insert into tombstream.deletion (relation, key, state, flag, targets, claimed_at, lease_token, reason, attempts)
             values ('documents', array[gen_random_uuid()::text], 'parked', 'x', {targets}, {at}, {token}, '{reason}', 9)"
        ))
        .await;
    let max = app.db.text("select max(id) from tombstream.deletion").await;
    max.unwrap().parse().unwrap()
}

const REFUSED: &str = r#"[
    {"store": "a", "address": {"k": 1}, "outcome": {"verdict": "deleted", "said": "204", "verified": "read_back"}},
    {"store": "b", "address": {"k": 2}, "outcome": {"verdict": "refused", "said": "locked", "verified": "trust"}},
    {"store": "b", "address": {"k": 3}, "outcome": null}]"#;

#[tokio::test]
async fn parked_work_is_shown_with_what_to_do_and_goes_on_as_it_was() {
    let app = app(None).await;
    let before = parked(&app, false, "no address in store a: null", "").await;
    let after = parked(&app, true, "store b refuses: locked", REFUSED).await;
    let page = app.get("/documents/parked?limit=1").await.json();
    assert_eq!(page["parked"][0]["id"], before);
    assert_eq!(page["parked"][0]["claimed"], false);
    let cursor = page["next_cursor"].as_str().unwrap();
    let page = app.get(&format!("/documents/parked?limit=1&cursor={cursor}")).await.json();
    let shown = &page["parked"][0];
    assert_eq!((&shown["id"], &page["next_cursor"]), (&json!(after), &Value::Null));
    assert_eq!(shown["targets"][1]["said"], "locked");
    assert!(shown["next_step"].as_str().unwrap().contains(&format!("parked retry {after}")));
    assert_eq!(app.get("/documents/parked?limit=0").await.problem(400), "bad-query");
    assert_eq!(
        app.get(&format!("/documents/deletions?cursor={cursor}")).await.problem(400),
        "bad-query"
    );

    let retry = async |id: i64| app.post(&format!("/documents/parked/{id}/retry")).await;
    assert_eq!(retry(before).await.json()["state"], "pending");
    assert_eq!(retry(after).await.json()["state"], "claimed");
    let due = "select count(*) from tombstream.deletion where state = 'claimed' and attempts = 0
        and due_at <= now() and lease_until is null and reason is null";
    assert_eq!(app.db.text(due).await.as_deref(), Some("1"));
    let again = retry(after).await;
    assert_eq!(again.problem(409), "conflict");
    assert!(again.json()["detail"].as_str().unwrap().ends_with("is not parked: it is claimed"));
    assert_eq!(retry(99).await.problem(404), "not-found");
    assert_eq!(app.post("/documents/parked/x/retry").await.problem(404), "not-found");
    app.db.run("insert into tombstream.deletion (relation, key, state) values ('other', '{x}', 'parked')").await;
    assert_eq!(retry(after + 1).await.problem(404), "not-found", "another relation's");
    assert_eq!(
        count(&app, "tombstream.operator_order where action = 'retry' and deletion_id is not null")
            .await,
        2
    );
}

#[tokio::test]
async fn a_waiver_is_evidence_with_a_name_and_a_reason_and_leaves_what_was_confirmed() {
    let app = app(None).await;
    let after = parked(&app, true, "store b refuses: locked", REFUSED).await;
    let path = format!("/documents/parked/{after}/waive");
    for (body, status) in [
        (r#"{"store": "b"}"#, 422),
        (r#"{"store": "b", "reason": " "}"#, 422),
        (r#"{"store": "c", "reason": "x"}"#, 409),
        (r#"{"store": "a", "reason": "x"}"#, 409),
    ] {
        app.post_json(&path, body).await.problem(status);
    }
    let waived = app.post_json(&path, r#"{"store": "b", "reason": "the bucket is gone"}"#).await;
    assert_eq!(waived.json()["state"], "claimed", "{waived:?}");
    let targets = app.db.text("select targets from tombstream.deletion").await.unwrap();
    let targets: Value = serde_json::from_str(&targets).unwrap();
    let outcome =
        json!({"verdict": "waived", "said": "anonymous: the bucket is gone", "verified": "trust"});
    assert_eq!((&targets[1]["outcome"], &targets[2]["outcome"]), (&outcome, &outcome));
    assert_eq!(targets[0]["outcome"]["verdict"], "deleted");
    assert_eq!(targets[2]["address"], json!({"k": 3}), "in their order");

    let before = parked(&app, false, "no address in store a: null", "").await;
    let path = format!("/documents/parked/{before}/waive");
    assert_eq!(
        app.post_json(&path, r#"{"store": "b", "reason": "x"}"#).await.problem(409),
        "conflict"
    );
    let waived = app.post_json(&path, r#"{"store": "a", "reason": "never uploaded"}"#).await;
    assert_eq!(waived.json()["state"], "pending", "{waived:?}");
    let waived =
        "select waived -> 'a' ->> 'reason' from tombstream.deletion order by id desc limit 1";
    assert_eq!(app.db.text(waived).await.as_deref(), Some("never uploaded"));
    assert_eq!(count(&app, "tombstream.operator_order where action = 'waive'").await, 2);
}

#[tokio::test]
async fn a_breaker_shows_when_its_rows_were_flagged() {
    let app = app(None).await;
    kept_back(&app, 250).await;
    app.db.run("insert into tombstream.deletion (relation, key, state, removed, kept_back_at) values ('documents', array[id(0)::text], 'pending', '{}', now())").await;
    let shown = app.get("/documents/breaker").await.json();
    assert_eq!(
        (&shown["waiting"], &shown["up_to"], &shown["reason"]),
        (&json!(251), &json!(251), &json!("too many"))
    );
    assert_eq!(shown["minutes"][0], json!({"minute": "2026-11-23T10:01Z", "rows": 100}));
    assert_eq!(shown["minutes"].as_array().unwrap().len(), 3);
    assert_eq!(shown["without_time"], 1);
}

#[tokio::test]
async fn exactly_the_chosen_ones_are_approved_and_the_last_resets_the_breaker() {
    let app = app(None).await;
    kept_back(&app, 300).await;
    for body in [
        "{}",
        r#"{"all": true, "up_to": 3}"#,
        r#"{"from": "2026-11-23T10:01:00Z", "to": "2026-11-23T10:01:00Z"}"#,
    ] {
        assert_eq!(
            app.post_json("/documents/breaker/approve", body).await.problem(422),
            "bad-values",
            "{body}"
        );
    }
    let span = r#"{"from": "2026-11-23T10:01:00Z", "to": "2026-11-23T10:02:00Z", "up_to": 150}"#;
    let some = app.post_json("/documents/breaker/approve", span).await.json();
    assert_eq!(
        (&some["decided"], &some["waiting"], &some["reset"]),
        (&json!(51), &json!(249), &json!(false))
    );
    assert_eq!(
        count(&app, "tombstream.deletion where approved_at is not null and id between 100 and 150")
            .await,
        51
    );
    assert!(tripped(&app).await);
    let all = app.post_json("/documents/breaker/approve", r#"{"all": true}"#).await.json();
    assert_eq!(
        (&all["decided"], &all["reset"], &all["complete"]),
        (&json!(249), &json!(true), &json!(true))
    );
    assert!(!tripped(&app).await);
    assert_eq!(count(&app, "tombstream.breaker_spent").await, 0);
    assert_eq!(count(&app, "tombstream.operator_order where action = 'approve'").await, 2);
}

#[tokio::test]
async fn a_reject_restores_and_goes_around_a_row_that_a_rule_keeps() {
    let app = app(None).await;
    kept_back(&app, 1_203).await;
    app.db
        .run(&format!(
            "{GUARD}; create function keep() returns trigger language plpgsql as $$ begin
            if old.id = id(7) then raise exception 'not this one'; end if; return new; end $$;
        create trigger keep before update on documents for each row execute function keep()"
        ))
        .await;
    let rejected = app.post_json("/documents/breaker/reject", r#"{"up_to": 1202}"#).await.json();
    assert_eq!(
        (&rejected["decided"], &rejected["refused"]),
        (&json!(1201), &json!(1)),
        "{rejected}"
    );
    assert_eq!(rejected["refusal"], "deletion 7: not this one");
    assert_eq!((&rejected["waiting"], &rejected["reset"]), (&json!(2), &json!(false)));
    assert_eq!(count(&app, "documents where deleted_at is null").await, 1201);
    assert_eq!(count(&app, "tombstream.deletion where state = 'cancelled'").await, 1201);
    assert_eq!(
        count(&app, "tombstream.flip where action = 'restore' and actor = 'anonymous'").await,
        1201
    );
    app.db.run("drop trigger keep on documents").await;
    let rest = app.post_json("/documents/breaker/reject", r#"{"all": true}"#).await.json();
    assert_eq!((&rest["decided"], &rest["reset"]), (&json!(2), &json!(true)));
}

#[tokio::test]
async fn a_reject_ends_what_has_no_row_and_asks_for_what_was_hidden() {
    let app = app(None).await;
    kept_back(&app, 3).await;
    app.db.run("update tombstream.deletion set state = 'hidden', hidden_at = now(), targets = '[]' where id = 1;
        delete from documents where id = id(2);
        insert into tombstream.deletion (relation, key, state, removed, kept_back_at) values ('documents', array[id(0)::text], 'pending', '{}', now())").await;
    let rejected = app.post_json("/documents/breaker/reject", r#"{"all": true}"#).await.json();
    assert_eq!(
        (&rejected["decided"], &rejected["cancelled"], &rejected["reset"]),
        (&json!(2), &json!(2), &json!(true))
    );
    assert_eq!(count(&app, "tombstream.rehydrate where deletion_id = 1").await, 1);
    assert_eq!(
        count(&app, "tombstream.deletion where reason like '%its copies are left'").await,
        1
    );
}

/// Half-way, the rest still waits, and the same order once more ends it.
#[tokio::test]
async fn a_reject_that_was_cut_is_ended_by_another() {
    let app = app(None).await;
    kept_back(&app, 2_500).await;
    let relation = relation();
    let stop = |_: &breaker::Decided| ControlFlow::Break(());
    let cut =
        breaker::reject(&app.db.pool, &relation, Chosen::default(), "me", stop).await.unwrap();
    assert_eq!((cut.decided, cut.waiting, cut.reset), (1_000, 1_500, false));
    assert!(tripped(&app).await);
    let go = |_: &breaker::Decided| ControlFlow::Continue(());
    let rest = breaker::reject(&app.db.pool, &relation, Chosen::default(), "me", go).await.unwrap();
    assert_eq!((rest.decided, rest.waiting, rest.reset), (1_500, 0, true));
    assert_eq!(count(&app, "documents where deleted_at is not null").await, 0);
}

/// A claim of what another operator approved has the row: it is not waited for.
#[tokio::test]
async fn a_row_that_a_claim_holds_is_left_to_it() {
    let app = app(None).await;
    kept_back(&app, 1).await;
    let mut other = PgConnection::connect_with(&app.db.options).await.unwrap();
    let mut claim = other.begin().await.unwrap();
    let lock = "select from documents for no key update";
    sqlx::raw_sql(lock).execute(&mut *claim).await.unwrap();
    let go = |_: &breaker::Decided| ControlFlow::Continue(());
    let skipped =
        breaker::reject(&app.db.pool, &relation(), Chosen::default(), "me", go).await.unwrap();
    assert_eq!((skipped.decided, skipped.cancelled, skipped.waiting), (0, 0, 1));
    claim.rollback().await.unwrap();
    let after =
        breaker::reject(&app.db.pool, &relation(), Chosen::default(), "me", go).await.unwrap();
    assert_eq!((after.decided, after.reset), (1, true));
}

/// After the reject has read which rows it is about, another operator approves one, and it is claimed.
#[tokio::test]
async fn what_is_approved_meanwhile_is_not_rejected() {
    let app = app(None).await;
    kept_back(&app, 2).await;
    // The first attempt waits at row 1 and fails; row 2 is then tried alone, from the same page.
    app.db.run("create function stop() returns trigger language plpgsql as $$ begin
            if old.id = id(1) then perform pg_advisory_xact_lock(7); raise exception 'not this one'; end if;
            return new; end $$;
        create trigger stop before update on documents for each row execute function stop()").await;
    let mut other = PgConnection::connect_with(&app.db.options).await.unwrap();
    sqlx::raw_sql("select pg_advisory_lock(7)").execute(&mut other).await.unwrap();
    let pool = app.db.pool.clone();
    let reject = tokio::spawn(async move {
        let go = |_: &breaker::Decided| ControlFlow::Continue(());
        breaker::reject(&pool, &relation(), Chosen::default(), "me", go).await.unwrap()
    });
    app.db.somebody_waits().await;
    let claim =
        "update tombstream.deletion set approved_at = now(), state = 'claimed', claimed_at = now(),
        targets = '[]', lease_token = 1 where id = 2";
    sqlx::raw_sql(claim).execute(&mut other).await.unwrap();
    sqlx::raw_sql("select pg_advisory_unlock(7)").execute(&mut other).await.unwrap();
    let rejected = reject.await.unwrap();
    assert_eq!((rejected.decided, rejected.refused, rejected.waiting), (0, 1, 1));
    assert_eq!(count(&app, "documents where deleted_at is not null").await, 2);
}

fn keys(ids: impl Iterator<Item = i64>) -> String {
    json!({"keys": ids.map(id).collect::<Vec<_>>()}).to_string()
}

fn became(answer: &crate::harness::Answer) -> Vec<String> {
    let answer = answer.json();
    let keys = answer["keys"].as_array().unwrap_or_else(|| panic!("{answer}"));
    keys.iter().map(|one| one["became"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn many_keys_are_flagged_and_restored_and_each_is_told() {
    let app = app(None).await;
    app.db.run(&format!("{GUARD}; insert into documents select id(n), 'x', now(), case when n = 2 then now() end
            from generate_series(1, 4) as n;
        insert into tombstream.deletion (relation, key, state) values ('documents', array[id(9)::text], 'pending')")).await;
    let flagged =
        app.post_json("/documents/bulk/delete", &keys([1, 2, 3, 9, 8, 1].into_iter())).await;
    assert_eq!(
        became(&flagged),
        ["flagged", "already", "flagged", "already", "not_found", "flagged"]
    );
    assert_eq!(flagged.json()["keys"][0]["key"], id(1));
    assert_eq!(count(&app, "documents where deleted_at is not null").await, 3);
    assert_eq!(count(&app, "tombstream.flip where action = 'flag'").await, 2);

    app.db.run("insert into tombstream.deletion (relation, key, state, flag, targets, lease_token, claimed_at)
        values ('documents', array[id(3)::text], 'claimed', 'x', '[]', 1, now());
        insert into tombstream.deletion (relation, key, state, hidden_at, targets)
        values ('documents', array[id(1)::text], 'hidden', now(), '[]')").await;
    let restored =
        app.post_json("/documents/bulk/restore", &keys([1, 2, 3, 4, 8].into_iter())).await;
    assert_eq!(became(&restored), ["restored", "restored", "claimed", "alive", "not_found"]);
    assert_eq!(count(&app, "documents where deleted_at is not null").await, 1);
    assert_eq!(count(&app, "tombstream.rehydrate").await, 1, "it was hidden");
    assert_eq!(
        count(&app, "tombstream.operator_order where action in ('bulk_flag', 'bulk_restore')")
            .await,
        2
    );
}

/// The claim holds the row when the order comes, and commits while it waits.
#[tokio::test]
async fn a_bulk_restore_that_waited_for_a_claim_leaves_it() {
    let app = app(None).await;
    app.db.run("insert into documents values (id(1), 'x', now(), now())").await;
    let mut claimer = PgConnection::connect_with(&app.db.options).await.unwrap();
    let mut claim = claimer.begin().await.unwrap();
    let lock = "select from documents for no key update";
    sqlx::raw_sql(lock).execute(&mut *claim).await.unwrap();
    let (router, body) = (app.router.clone(), keys([1].into_iter()));
    let restore =
        tokio::spawn(
            async move { send(&router, ask_json("/documents/bulk/restore", &body)).await },
        );
    app.db.somebody_waits().await;
    let claimed = "insert into tombstream.deletion (relation, key, state, flag, targets, lease_token, claimed_at)
        values ('documents', array[id(1)::text], 'claimed', 'x', '[]', 1, now())";
    sqlx::raw_sql(claimed).execute(&mut *claim).await.unwrap();
    claim.commit().await.unwrap();
    assert_eq!(became(&restore.await.unwrap()), ["claimed"]);
    assert_eq!(count(&app, "documents where deleted_at is not null").await, 1);
}

#[tokio::test]
async fn a_bulk_order_that_makes_no_sense_changes_nothing() {
    let app = app(None).await;
    app.db.run("insert into documents values (id(1), 'x')").await;
    for body in [
        r#"{"keys": []}"#.to_owned(),
        r#"{"keys": [1]}"#.to_owned(),
        r#"{"keys": [["a", "b"]]}"#.to_owned(),
        format!(r#"{{"keys": ["{}", "nonsense"]}}"#, id(1)),
        keys(1..=1_001),
        r#"{"key": []}"#.to_owned(),
    ] {
        assert_eq!(
            app.post_json("/documents/bulk/delete", &body).await.problem(422),
            "bad-values",
            "{body}"
        );
    }
    let whole = app.post_json("/documents/bulk/delete", &keys(1..=1_000)).await;
    assert_eq!(became(&whole).len(), 1_000);
    assert_eq!(count(&app, "tombstream.flip").await, 1);
}

/// Two orders over the same rows, in opposite orders: each waits for the other's rows, none dies of it.
#[tokio::test]
async fn bulk_orders_over_the_same_rows_do_not_deadlock() {
    let app = app(None).await;
    app.db.run("insert into documents select id(n), 'x' from generate_series(1, 300) as n").await;
    let mut asked = Vec::new();
    for turn in 0..10 {
        let (path, body) = match turn % 2 {
            0 => ("/documents/bulk/delete", keys(1..=300)),
            _ => ("/documents/bulk/restore", keys((1..=300).rev())),
        };
        let router = app.router.clone();
        asked.push(tokio::spawn(async move { send(&router, ask_json(path, &body)).await }));
    }
    for answer in asked {
        let answer = answer.await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

#[tokio::test]
async fn a_bulk_flag_stops_at_the_breaker() {
    let limits = |claims_max, share_max, rate_max| {
        Some(BreakerLimits { claims_max, window: Duration::from_secs(3_600), share_max, rate_max })
    };
    let ask = async |app: &App, n: i64| app.post_json("/documents/bulk/delete", &keys(1..=n)).await;
    let it = app(limits(Some(10), None, None)).await;
    it.db.run("insert into tombstream.breaker (relation) values ('documents');
        insert into tombstream.breaker_spent values ('documents', 'window', now(), 4), ('documents', 'window', now() - interval '2 hours', 9)").await;
    assert_eq!(ask(&it, 6).await.status, 200);
    let more = ask(&it, 7).await;
    assert_eq!(more.problem(409), "breaker");
    assert!(
        more.json()["detail"].as_str().unwrap().contains("claims_max allows 6 now"),
        "{more:?}"
    );
    it.db.run("update tombstream.breaker set tripped_at = now(), reason = 'enough'").await;
    let tripped = ask(&it, 1).await;
    assert_eq!(tripped.problem(409), "breaker");
    assert!(tripped.json()["detail"].as_str().unwrap().contains("is tripped: enough"));
    assert_eq!(
        it.post_json("/documents/bulk/restore", &keys(1..=1)).await.status,
        200,
        "a restore is never stopped"
    );

    let it = app(limits(None, None, Some(2))).await;
    assert_eq!(ask(&it, 20).await.status, 200);
    assert_eq!(ask(&it, 21).await.problem(409), "breaker");
    let it = app(limits(None, Some(0.5), None)).await;
    it.db
        .run("insert into tombstream.breaker (relation, row_count) values ('documents', 300)")
        .await;
    assert_eq!(ask(&it, 150).await.status, 200);
    assert_eq!(ask(&it, 151).await.problem(409), "breaker");
}

#[tokio::test]
async fn a_rehydration_is_open_once_nothing_destroys_any_more() {
    let app = app(None).await;
    app.db.run("insert into tombstream.rehydrate (deletion_id, relation, key, targets, ready_at) values
        (1, 'documents', '{a}', '[]', now()), (2, 'documents', '{b}', '[]', now() + interval '1 hour'),
        (3, 'other', '{c}', '[]', now())").await;
    let ids = |answer: crate::harness::Answer| -> Vec<i64> {
        answer.json()["rehydrations"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["id"].as_i64().unwrap())
            .collect()
    };
    assert_eq!(ids(app.get("/documents/rehydrations?open=true").await), [1]);
    assert_eq!(ids(app.get("/documents/rehydrations").await), [1, 2]);
    let page = app.get("/documents/rehydrations?limit=1").await.json();
    let cursor = page["next_cursor"].as_str().unwrap();
    assert_eq!(ids(app.get(&format!("/documents/rehydrations?cursor={cursor}")).await), [2]);
    assert_eq!(
        app.get(&format!("/documents/rehydrations?open=true&cursor={cursor}")).await.problem(400),
        "bad-query"
    );

    let early = app.post("/documents/rehydrations/2/done").await;
    assert_eq!(early.problem(409), "conflict");
    let done = app.post("/documents/rehydrations/1/done").await;
    assert_eq!(done.json()["done_by"], "anonymous");
    assert_eq!(
        app.post("/documents/rehydrations/1/done").await.text,
        done.text,
        "again is harmless"
    );
    assert_eq!(app.post("/documents/rehydrations/3/done").await.problem(404), "not-found");
    assert!(ids(app.get("/documents/rehydrations?open=true").await).is_empty());
    assert_eq!(count(&app, "tombstream.operator_order where action = 'rehydrated'").await, 1);
}
