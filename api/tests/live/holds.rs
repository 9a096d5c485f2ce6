//! Holds: set on the row's lock, and worth what they say.

use serde_json::json;
use sqlx::{Connection, PgConnection};

use crate::harness::{App, ask, ask_json, send};

const ID: &str = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
const HOLDS: &str = "/documents/a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11/holds";
const CLAIM: &str = "insert into tombstream.deletion
        (relation, key, state, flag, targets, lease_token, claimed_at)
    values ('documents', '{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}', 'claimed', 'x', '[]', 1, now())";
const CASE: &str = r#"{"case": "7 / 2026"}"#;

async fn with_row(deleted_at: &str) -> App {
    let app = App::documents().await;
    let insert = format!("insert into documents values ('{ID}', 'x', now(), {deleted_at})");
    app.db.run(&insert).await;
    app
}

async fn orders(app: &App) -> Vec<String> {
    let sql = "select action || ' ' || actor || ' ' || coalesce(key::text, '') \
               from tombstream.operator_order order by id";
    sqlx::query_scalar(sql).fetch_all(&app.db.pool).await.unwrap()
}

#[tokio::test]
async fn a_row_has_many_holds_and_each_is_released_once() {
    let app = with_row("null").await;
    let first = app.post_json(HOLDS, CASE).await;
    assert_eq!(first.status, 201, "{first:?}");
    let first = first.json();
    assert_eq!(
        (&first["case"], &first["actor"], &first["claimed"], &first["active"]),
        (&json!("7 / 2026"), &json!("anonymous"), &json!(false), &json!(true))
    );
    let second =
        app.post_json(HOLDS, r#"{"case": "8", "until": "2999-01-01T00:00:00+02:00"}"#).await;
    assert_eq!(second.json()["until"], "2998-12-31T22:00:00Z");

    let path = format!("{HOLDS}/{}", first["id"]);
    let released = app.send(ask("DELETE", &path)).await;
    assert_eq!(released.status, 200, "{released:?}");
    assert_eq!(released.json()["released_by"], "anonymous");
    let again = app.send(ask("DELETE", &path)).await;
    assert_eq!(again.problem(409), "conflict");
    assert!(again.json()["detail"].as_str().unwrap().contains("was released by anonymous at "));
    assert_eq!(app.send(ask("DELETE", &format!("{HOLDS}/99"))).await.problem(404), "not-found");
    assert_eq!(app.send(ask("DELETE", &format!("{HOLDS}/x"))).await.problem(404), "not-found");
    let other =
        format!("/documents/b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11/holds/{}", second.json()["id"]);
    assert_eq!(app.send(ask("DELETE", &other)).await.problem(404), "not-found");

    let holds = app.get(HOLDS).await.json();
    let active: Vec<_> =
        holds["holds"].as_array().unwrap().iter().map(|hold| hold["active"].clone()).collect();
    assert_eq!(active, [json!(true), json!(false)], "newest first");
    let key = format!("{{{ID}}}");
    assert_eq!(
        orders(&app).await,
        ["hold", "hold", "release"].map(|action| format!("{action} anonymous {key}"))
    );
}

#[tokio::test]
async fn a_hold_says_what_is_still_kept() {
    let app = with_row("now()").await;
    let says = async |app: &App| {
        let set = app.post_json(HOLDS, CASE).await.json();
        (set["claimed"].clone(), set["says"].as_str().unwrap().to_owned())
    };
    assert!(says(&app).await.1.starts_with("the row and its copies are kept"));
    let run = async |sql: &str| app.db.run(sql).await;
    run("insert into tombstream.deletion (relation, key, state, hidden_at, targets)
         select 'documents', array[id::text], 'hidden', now(), '[]' from documents")
    .await;
    let hidden = says(&app).await;
    assert!(hidden.0 == false && hidden.1.contains("recoverable stores are gone"), "{hidden:?}");
    run("update tombstream.deletion set state = 'claimed', claimed_at = now(), flag = 'x', lease_token = 1").await;
    let claimed = says(&app).await;
    assert!(claimed.0 == true && claimed.1.contains("copies may be gone"), "{claimed:?}");

    run("delete from documents").await;
    assert_eq!(says(&app).await.0, true, "gone, with an open deletion");
    run("update tombstream.deletion set state = 'finalized', closed_at = now()").await;
    assert_eq!(app.post_json(HOLDS, CASE).await.problem(404), "not-found");
    run("insert into tombstream.deletion (relation, key, state, removed)
         select relation, key, 'pending', '{}' from tombstream.deletion")
    .await;
    let removed = says(&app).await;
    assert!(removed.1.starts_with("the row is gone; its copies are kept"), "{removed:?}");
}

#[tokio::test]
async fn a_hold_that_makes_no_sense_is_refused_and_leaves_nothing() {
    let app = with_row("null").await;
    let long = json!({"case": "x".repeat(1_001)}).to_string();
    for (body, status, slug) in [
        (r#"{"case": ""}"#, 422, "bad-values"),
        (r#"{"case": " "}"#, 422, "bad-values"),
        (r#"{"case": "a\u0000b"}"#, 422, "bad-values"),
        (&*long, 422, "bad-values"),
        (r#"{"case": "7", "until": "2020-01-01T00:00:00Z"}"#, 422, "bad-values"),
        (r#"{"case": "7", "until": "tomorrow"}"#, 422, "bad-values"),
        (r#"{"case": "7", "colour": 1}"#, 422, "bad-values"),
        ("{}", 422, "bad-values"),
        ("{", 400, "bad-json"),
    ] {
        assert_eq!(app.post_json(HOLDS, body).await.problem(status), slug, "{body}");
    }
    assert_eq!(app.post(HOLDS).await.problem(415), "media-type");
    let none = "/documents/b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11/holds";
    assert_eq!(app.post_json(none, CASE).await.problem(404), "not-found");
    assert_eq!(app.get(HOLDS).await.json(), json!({"holds": []}));
    assert!(orders(&app).await.is_empty());
}

/// The claim holds the row when the hold comes, and commits while it waits.
#[tokio::test]
async fn a_hold_that_waited_for_a_claim_says_so() {
    for isolation in ["read committed", "repeatable read", "serializable"] {
        let app = with_row("now()").await;
        app.db.isolate(isolation).await;
        let mut claimer = PgConnection::connect_with(&app.db.options).await.unwrap();
        let mut claim = claimer.begin_with("begin isolation level read committed").await.unwrap();
        let lock = "select from documents for no key update";
        sqlx::raw_sql(lock).execute(&mut *claim).await.unwrap();
        let router = app.router.clone();
        let hold = tokio::spawn(async move { send(&router, ask_json(HOLDS, CASE)).await });
        app.db.somebody_waits().await;
        sqlx::raw_sql(CLAIM).execute(&mut *claim).await.unwrap();
        claim.commit().await.unwrap();
        let hold = hold.await.unwrap();
        assert_eq!(
            (hold.status.as_u16(), &hold.json()["claimed"]),
            (201, &json!(true)),
            "{isolation}"
        );
        assert_eq!(
            app.db
                .text("select set_at >= claimed_at from tombstream.hold, tombstream.deletion")
                .await
                .as_deref(),
            Some("true")
        );
    }
}

/// A row that is gone has no lock of its own: claim and hold meet on the lock of its key's bucket.
#[tokio::test]
async fn a_hold_of_a_removed_row_waits_for_its_claim() {
    let app = with_row("null").await;
    app.db.run("delete from documents").await;
    app.db.run(&format!("insert into tombstream.deletion (relation, key, state, removed) values ('documents', '{{{ID}}}', 'pending', '{{}}')")).await;
    let mut claimer = PgConnection::connect_with(&app.db.options).await.unwrap();
    let mut claim = claimer.begin().await.unwrap();
    let lock = "select pg_try_advisory_xact_lock(hashtext('tombstream.' || relation),
        (hashtextextended(key::text, 0) & 1023)::integer) from tombstream.deletion";
    sqlx::raw_sql(lock).execute(&mut *claim).await.unwrap();
    let router = app.router.clone();
    let hold = tokio::spawn(async move { send(&router, ask_json(HOLDS, CASE)).await });
    app.db.somebody_waits().await;
    let claimed = "update tombstream.deletion set state = 'claimed', claimed_at = now(), targets = '[]', lease_token = 1";
    sqlx::raw_sql(claimed).execute(&mut *claim).await.unwrap();
    claim.commit().await.unwrap();
    assert_eq!(hold.await.unwrap().json()["claimed"], true);
}

/// A route's own segment must not shadow a column of that name.
#[tokio::test]
async fn a_key_column_may_have_any_name() {
    use tombstream_model::{FlagKind, KeyKind};
    let ddl = "create table odd (holds text, hold_number text, gone timestamptz, primary key (holds, hold_number));
        insert into odd values ('parked', '1'), ('holds', 'breaker')";
    let relation = crate::harness::relation(
        "odd",
        &[("holds", KeyKind::Text), ("hold_number", KeyKind::Text)],
        ("gone", FlagKind::TimestampTz),
    );
    let app = App::new(ddl, crate::harness::api(relation, "odd", &["holds"], None)).await;
    let set = app.post_json("/odd/holds/breaker/holds", CASE).await;
    assert_eq!(set.status, 201, "{set:?}");
    let released =
        app.send(ask("DELETE", &format!("/odd/holds/breaker/holds/{}", set.json()["id"]))).await;
    assert_eq!(released.status, 200, "{released:?}");
    assert_eq!(app.post_json("/odd/%70arked/1/holds", CASE).await.status, 201);
}
