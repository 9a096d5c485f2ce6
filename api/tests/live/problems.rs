//! Every error is a problem document, and says nothing of the database.

use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use tokio_util::io::ReaderStream;
use tombstream_api::{ApiConfig, pool_options, router};

use crate::harness::{App, DOCUMENTS, ask, ask_json, documents, send};

const ID: &str = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
const PATH: &str = "/documents/a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";

fn config(timeout: Duration) -> ApiConfig {
    ApiConfig { relations: vec![documents()], timeout, body_max: 1000, ..ApiConfig::default() }
}

#[tokio::test]
async fn what_is_not_there_is_a_problem() {
    let app = App::documents().await;
    for path in ["/nothing", "/documents/a/b", "/documents/a/b/deletion", "//", "/documents/x/y/z"]
    {
        let answer = app.get(path).await;
        assert_eq!(answer.problem(404), "no-such-route", "{path}");
        assert_eq!(answer.json()["instance"], path);
    }
    for (method, path, allow) in [
        ("PUT", PATH, "GET,HEAD,DELETE"),
        ("GET", "/documents/", "POST"),
        ("POST", "/documents/deletions", "GET,HEAD"),
        ("DELETE", "/healthz", "GET,HEAD"),
        ("BREW", "/", "GET,HEAD"),
    ] {
        let answer = app.send(ask(method, path)).await;
        assert_eq!(answer.problem(405), "method-not-allowed", "{method} {path}");
        assert_eq!(answer.header("allow"), allow);
    }
}

#[tokio::test]
async fn a_bad_key_is_400_on_every_route() {
    let app = App::documents().await;
    for (method, path) in [
        ("GET", "/documents/x"),
        ("DELETE", "/documents/x"),
        ("POST", "/documents/x/restore"),
        ("GET", "/documents/x/deletion"),
        ("GET", "/documents/%FF"),
        ("GET", "/documents/%00"),
        ("GET", "/documents/%20a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ] {
        let answer = app.send(ask(method, path)).await;
        assert_eq!(answer.problem(400), "bad-key", "{method} {path}");
    }
    let detail = app.get("/documents/x").await.json()["detail"].clone();
    assert_eq!(detail, "key column `id`: not a uuid");
}

#[tokio::test]
async fn a_bad_body_is_told_what_is_wrong() {
    let app = App::with(DOCUMENTS, config(Duration::from_secs(10))).await;
    for (body, status, problem) in [
        ("", 400, "bad-json"),
        (r#"{"name": }"#, 400, "bad-json"),
        ("{\"name\": \"\u{1}\"}", 400, "bad-json"),
        ("[1]", 422, "bad-values"),
        ("null", 422, "bad-values"),
        ("{}", 422, "bad-values"),
        (r#"{"name": null}"#, 422, "bad-values"),
        (r#"{"name": "x", "id": "y"}"#, 422, "bad-values"),
        (r#"{"name": "x", "deleted_at": null}"#, 422, "bad-values"),
        (r#"{"name": "a\u0000b"}"#, 422, "bad-values"),
        (&format!("{{\"name\": \"{}\"}}", "x".repeat(1000)), 413, "body-too-large"),
    ] {
        let answer = app.post_json("/documents/", body).await;
        assert_eq!(answer.problem(status), problem, "{body}");
    }
    let unknown = app.post_json("/documents/", r#"{"nam": 1}"#).await.json();
    assert_eq!(unknown["detail"], "`nam` can't be set: expected an object of name");
    let missing = app.post_json("/documents/", "{}").await.json();
    assert_eq!(missing["detail"], "`name` is missing, or its value does not fit");
    let mut plain = ask_json("/documents/", r#"{"name": "x"}"#);
    plain.headers_mut().insert("content-type", "text/plain".parse().unwrap());
    assert_eq!(app.send(plain).await.problem(415), "media-type");
    assert_eq!(app.post("/documents/").await.problem(415), "media-type");
    assert_eq!(app.db.text("select count(*) from documents").await.unwrap(), "0");
}

#[tokio::test]
async fn what_the_database_says_stays_in_the_log() {
    let app = App::documents().await;
    app.db.run("create unique index on documents (name)").await;
    app.db.run("alter table documents add constraint secret_rule check (name <> 'bad')").await;
    assert_eq!(app.post_json("/documents/", r#"{"name": "x"}"#).await.status, 201);
    let twice = app.post_json("/documents/", r#"{"name": "x"}"#).await;
    assert_eq!(twice.problem(409), "conflict");
    let bad = app.post_json("/documents/", r#"{"name": "bad"}"#).await;
    assert_eq!(bad.problem(422), "bad-values");
    app.db
        .run(
            "create function refuse() returns trigger language plpgsql as $$
         begin raise exception 'secret of %', new.name; end $$;
         create trigger refuse before update on documents for each row execute function refuse()",
        )
        .await;
    let id = app.db.text("select id from documents").await.unwrap();
    let refused = app.delete(&format!("/documents/{id}")).await;
    assert_eq!(refused.problem(409), "conflict");
    app.db.run("drop table documents").await;
    let broken = app.delete(&format!("/documents/{id}")).await;
    assert_eq!(broken.problem(500), "about:blank");
    for answer in [twice, bad, refused, broken] {
        for told in ["secret", "documents_name", "relation", "constraint", "column"] {
            assert!(!answer.text.replace("/documents", "").contains(told), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn a_row_that_stays_locked_is_504_and_frees_its_connection() {
    let app = App::with(DOCUMENTS, config(Duration::from_secs(1))).await;
    app.db.run(&format!("insert into documents values ('{ID}', 'x')")).await;
    let mut other = PgConnection::connect_with(&app.db.options).await.unwrap();
    let mut holds = other.begin().await.unwrap();
    sqlx::raw_sql("select from documents for update").execute(&mut *holds).await.unwrap();
    assert_eq!(app.delete(PATH).await.problem(504), "timeout");
    assert_eq!(app.post(&format!("{PATH}/restore")).await.problem(504), "timeout");
    let waiting = "select count(*) from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock'";
    let mut left = String::new();
    for _ in 0..1000 {
        left = app.db.text(waiting).await.unwrap();
        if left == "0" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(left, "0", "no statement waits on after its caller went");
    holds.rollback().await.unwrap();
    assert_eq!(app.db.text("select deleted_at from documents").await, None);
    assert_eq!(app.delete(PATH).await.status, 202);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_408() {
    let app = App::with(DOCUMENTS, config(Duration::from_millis(300))).await;
    // A pipe whose other end is open, and silent.
    let (body, silent) = tokio::io::duplex(16);
    let request = Request::builder()
        .method("POST")
        .uri("/documents/")
        .header("content-type", "application/json")
        .body(Body::from_stream(ReaderStream::new(body)))
        .unwrap();
    assert_eq!(app.send(request).await.problem(408), "slow-body");
    drop(silent);
}

#[tokio::test]
async fn without_a_database_every_route_is_503_and_the_process_lives() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let options = PgConnectOptions::new().host("127.0.0.1").port(port).username("x");
    let pool = pool_options().connect_lazy_with(options);
    let router = router(pool, config(Duration::from_secs(2))).unwrap();
    for (method, path) in [
        ("GET", PATH),
        ("DELETE", PATH),
        ("GET", "/documents/deletions"),
        ("POST", "/documents/a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11/restore"),
    ] {
        let answer = send(&router, ask(method, path)).await;
        assert_eq!(answer.problem(503), "unavailable", "{method} {path}");
        assert_eq!(answer.header("retry-after"), "1");
    }
    let answer = send(&router, ask_json("/documents/", r#"{"name": "x"}"#)).await;
    assert_eq!(answer.problem(503), "unavailable");
    assert_eq!(send(&router, ask("GET", "/readyz")).await.problem(503), "not-ready");
    assert_eq!(send(&router, ask("GET", "/healthz")).await.status, 200);
    assert_eq!(send(&router, ask("GET", "/")).await.text, r#"{"status":"ok"}"#);
}

/// As after a restart of the server: every pooled connection is broken.
#[tokio::test]
async fn broken_connections_are_not_the_callers_trouble() {
    let app = App::documents().await;
    app.db.run("insert into documents (name) select 'x' from generate_series(1, 40)").await;
    let ids: Vec<String> =
        sqlx::query_scalar("select id::text from documents").fetch_all(&app.db.pool).await.unwrap();
    for half in ids.chunks(20) {
        app.db
            .run(
                "select pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and application_name = 'tombstream-api'",
            )
            .await;
        let made = app.post_json("/documents/", r#"{"name": "y"}"#).await;
        assert_eq!(made.status, 201, "{made:?}");
        app.db
            .run(
                "select pg_terminate_backend(pid) from pg_stat_activity
             where datname = current_database() and application_name = 'tombstream-api'",
            )
            .await;
        let deletes: Vec<_> = half
            .iter()
            .map(|id| {
                let (router, path) = (app.router.clone(), format!("/documents/{id}"));
                tokio::spawn(async move { send(&router, ask("DELETE", &path)).await.status })
            })
            .collect();
        for delete in deletes {
            assert_eq!(delete.await.unwrap(), 202);
        }
    }
    assert_eq!(app.flips().await.len(), 42);
}
