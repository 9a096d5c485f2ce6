//! Who may ask, what the process says of itself, and the socket.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use metrics_exporter_prometheus::PrometheusBuilder;
use sqlx::postgres::PgSslMode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tombstream_api::{
    ApiConfig, REQUEST_DURATION_SECONDS, REQUESTS_TOTAL, Tokens, hash_token, pool_options, router,
    serve,
};

use crate::harness::{App, DOCUMENTS, Database, ask, documents, send};

fn with_token(method: &str, path: &str, authorization: &str) -> Request<Body> {
    let mut request = ask(method, path);
    request.headers_mut().insert("authorization", authorization.parse().unwrap());
    request
}

async fn guarded() -> App {
    let text = format!("ann {}\nbackup-job {}\n", hash_token("alpha"), hash_token("beta"));
    let tokens = Some(Tokens::parse(&text, "tokens").unwrap());
    let config = ApiConfig { relations: vec![documents()], tokens, ..ApiConfig::default() };
    App::with(DOCUMENTS, config).await
}

#[tokio::test]
async fn who_has_no_token_reaches_no_row() {
    let app = guarded().await;
    app.db.run("insert into documents (name) values ('x')").await;
    let id = app.db.text("select id from documents").await.unwrap();
    for (method, path) in [
        ("GET", format!("/documents/{id}")),
        ("DELETE", format!("/documents/{id}")),
        ("POST", format!("/documents/{id}/restore")),
        ("GET", format!("/documents/{id}/deletion")),
        ("GET", "/documents/deletions".into()),
        ("POST", "/documents/".into()),
        ("GET", "/openapi.json".into()),
    ] {
        let answer = app.send(ask(method, &path)).await;
        assert_eq!(answer.problem(401), "unauthorized", "{method} {path}");
        assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"tombstream\"");
        for wrong in ["Bearer gamma", "Bearer", "Bearer ", "Basic alpha", &hash_token("alpha")] {
            let answer = app.send(with_token(method, &path, wrong)).await;
            assert_eq!(answer.problem(401), "unauthorized", "{method} {path} {wrong}");
        }
    }
    let wrong = app.send(with_token("GET", "/documents/deletions", "Bearer gamma")).await;
    assert!(wrong.header("www-authenticate").contains("error=\"invalid_token\""));
    assert_eq!(
        app.db.text("select count(*) from documents where deleted_at is null").await.unwrap(),
        "1"
    );
    for open in ["/", "/healthz", "/readyz"] {
        assert_eq!(app.get(open).await.status, 200, "{open}");
    }
}

#[tokio::test]
async fn every_flip_keeps_who_did_it() {
    let app = guarded().await;
    let mut create = crate::harness::ask_json("/documents/", r#"{"name": "x"}"#);
    create.headers_mut().insert("authorization", "Bearer alpha".parse().unwrap());
    let made = app.send(create).await;
    let path = made.header("location").to_owned();
    let id = made.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(app.send(with_token("DELETE", &path, "bearer beta")).await.status, 202);
    let restore = format!("{path}/restore");
    assert_eq!(app.send(with_token("POST", &restore, "Bearer alpha")).await.status, 200);
    assert_eq!(
        app.flips().await,
        [
            format!("create ann {{{id}}}"),
            format!("flag backup-job {{{id}}}"),
            format!("restore ann {{{id}}}")
        ]
    );
    let document = app.send(with_token("GET", "/openapi.json", "Bearer alpha")).await;
    assert_eq!(document.header("content-type"), "application/json");
    assert_eq!(document.json()["openapi"], "3.1.0");
}

#[tokio::test]
async fn ready_means_that_the_ledger_is_there_and_may_be_used() {
    let config = || ApiConfig { relations: vec![documents()], ..ApiConfig::default() };
    let app = App::on(Database::empty().await, config());
    let answer = app.get("/readyz").await;
    assert_eq!(answer.problem(503), "not-ready");
    assert!(answer.json()["detail"].as_str().unwrap().contains("tombstream migrate"));
    assert_eq!(answer.header("retry-after"), "1");

    let app = App::with(DOCUMENTS, config()).await;
    assert_eq!(app.get("/readyz").await.status, 200);
    app.db.run("alter table tombstream.flip rename to away").await;
    assert_eq!(app.get("/readyz").await.problem(503), "not-ready");
}

#[tokio::test]
async fn requests_are_counted_by_route_and_never_by_path() {
    let handle = PrometheusBuilder::new().install_recorder().unwrap();
    let metrics = Some(Arc::new(move || handle.render()) as _);
    let mut relation = documents();
    relation.path = "counted".into();
    let config = ApiConfig { relations: vec![relation], metrics, ..ApiConfig::default() };
    let app = App::with(DOCUMENTS, config).await;
    let id = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
    app.db.run(&format!("insert into documents values ('{id}', 'x')")).await;
    app.delete(&format!("/counted/{id}")).await;
    app.delete(&format!("/counted/{id}")).await;
    app.get(&format!("/counted/{id}")).await;
    app.get("/counted-unknown").await;
    let text = app.get("/metrics").await.text;
    let count = |method: &str, status: u16| {
        let labels = format!(
            "{REQUESTS_TOTAL}{{route=\"/counted/{{id}}\",method=\"{method}\",status=\"{status}\"}} "
        );
        text.lines().find_map(|line| line.strip_prefix(&labels)).map(str::to_owned)
    };
    assert_eq!(count("DELETE", 202).as_deref(), Some("2"), "{text}");
    assert_eq!(count("GET", 404).as_deref(), Some("1"), "{text}");
    assert!(text.contains(REQUEST_DURATION_SECONDS), "{text}");
    assert!(
        text.contains("tombstream_api_flips_total{relation=\"documents\",action=\"flag\"}"),
        "{text}"
    );
    assert!(!text.contains(id) && !text.contains("counted-unknown"), "{text}");
}

#[tokio::test]
async fn without_an_exposition_there_is_no_metrics_route() {
    let app = App::documents().await;
    assert_eq!(app.get("/metrics").await.problem(404), "no-such-route");
}

#[tokio::test]
async fn the_server_stops_when_told_and_answers_what_is_under_way() {
    let app = App::documents().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, app.router.clone(), async {
        assert!(stopped.await.is_ok());
    }));
    let mut idle = TcpStream::connect(addr).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = [0; 15];
    idle.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
    assert!(TcpStream::connect(addr).await.is_err());
}

/// Between api and database: counts the client's round trips, each of which ends in a Sync or is a
/// simple query.
#[tokio::test]
async fn a_delete_is_one_round_trip() {
    let app = App::documents().await;
    app.db.run("insert into documents (name) select 'x' from generate_series(1, 3)").await;
    let ids: Vec<String> =
        sqlx::query_scalar("select id::text from documents").fetch_all(&app.db.pool).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = format!("{}:{}", app.db.options.get_host(), app.db.options.get_port());
    let seen: Arc<Mutex<Vec<u8>>> = Arc::default();
    tokio::spawn(count_messages(listener, server, Arc::clone(&seen)));
    let options = app.db.options.clone().host("127.0.0.1").port(port).ssl_mode(PgSslMode::Disable);
    let pool = pool_options().max_connections(1).connect_lazy_with(options);
    let config = ApiConfig { relations: vec![documents()], ..ApiConfig::default() };
    let router = router(pool.clone(), config).unwrap();
    // The pool tries a connection that comes back, out of the answer's time: wait until it did.
    let idle = async || {
        for _ in 0..2000 {
            if pool.num_idle() > 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the connection did not come back within 10 s");
    };
    for (id, first) in [(&ids[0], true), (&ids[1], false), (&ids[2], false), (&ids[0], false)] {
        seen.lock().unwrap().clear();
        assert_eq!(send(&router, ask("DELETE", &format!("/documents/{id}"))).await.status, 202);
        idle().await;
        let seen = String::from_utf8(seen.lock().unwrap().clone()).unwrap();
        // Bind, execute, close the portal, sync: one trip, and none before it. The last sync is the
        // pool's.
        assert!(first || seen == "BECSS", "{seen}");
    }
}

/// Passes one connection on, and notes the type of each message from the client.
async fn count_messages(listener: TcpListener, server: String, seen: Arc<Mutex<Vec<u8>>>) {
    let (client, _) = listener.accept().await.unwrap();
    let server = TcpStream::connect(server).await.unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
    // The first message has no type.
    let mut length = from_client.read_u32().await.unwrap();
    let mut kind = None;
    loop {
        let mut body = vec![0; length as usize - 4];
        from_client.read_exact(&mut body).await.unwrap();
        let mut message = Vec::from_iter(kind);
        message.extend(length.to_be_bytes());
        message.extend(body);
        to_server.write_all(&message).await.unwrap();
        let Ok(next) = from_client.read_u8().await else { return };
        length = from_client.read_u32().await.unwrap();
        kind = Some(next);
        seen.lock().unwrap().push(next);
    }
}
