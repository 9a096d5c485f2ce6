//! Rows: made, read, flagged.

use serde_json::json;
use tombstream_api::ApiConfig;
use tombstream_model::{FlagKind, KeyKind};

use crate::harness::{App, DOCUMENTS, api, documents, relation};

#[tokio::test]
async fn a_row_is_made_read_and_flagged() {
    let app = App::documents().await;

    let made = app.post_json("/documents/", r#"{"name": "it's \"x\" 😀"}"#).await;
    assert_eq!(made.status, 201, "{made:?}");
    let row = made.json();
    let id = row["id"].as_str().unwrap().to_owned();
    let path = format!("/documents/{id}");
    assert_eq!(made.header("location"), path);
    assert_eq!(row["name"], "it's \"x\" 😀");
    assert!(row["uploaded_at"].as_str().unwrap().ends_with('Z'), "{row}");
    assert!(row["deleted_at"].is_null());
    let order: Vec<_> = ["id", "name", "uploaded_at", "deleted_at"]
        .map(|c| made.text.find(&format!("\"{c}\":")))
        .into();
    assert!(order.is_sorted() && order[0].is_some(), "{}", made.text);

    let read = app.get(&path).await;
    assert_eq!((read.status.as_u16(), &read.text), (200, &made.text));
    assert_eq!(read.header("cache-control"), "no-store");

    let deleted = app.delete(&path).await;
    assert_eq!(deleted.status, 202, "{deleted:?}");
    assert_eq!(deleted.header("location"), format!("{path}/deletion"));
    assert_eq!(deleted.json(), json!({"status": "file soft-deleted", "id": id}));
    let flag = "select deleted_at from documents";
    let first = app.db.text(flag).await.unwrap();
    let fresh = "select deleted_at between now() - interval '1 minute' and now() from documents";
    assert_eq!(app.db.text(fresh).await.as_deref(), Some("true"));
    assert_eq!(app.get(&path).await.problem(404), "not-found");

    let again = app.delete(&path).await;
    assert_eq!((again.status.as_u16(), &again.text), (202, &deleted.text));
    assert_eq!(app.db.text(flag).await.unwrap(), first, "the flag keeps its value");
    let flips = [format!("create anonymous {{{id}}}"), format!("flag anonymous {{{id}}}")];
    assert_eq!(app.flips().await, flips, "what changed nothing is no flip");
}

#[tokio::test]
async fn a_key_in_any_spelling_is_the_same_row() {
    let app = App::documents().await;
    app.db.run("insert into documents values ('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'x')").await;
    let deleted = app.delete("/documents/A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11").await;
    assert_eq!(deleted.json()["id"], "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11");
    let flips = app.flips().await;
    assert_eq!(flips, ["flag anonymous {a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}"]);
}

#[tokio::test]
async fn a_missing_row_is_404_unless_its_deletion_is_true() {
    let app = App::documents().await;
    let id = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
    let path = format!("/documents/{id}");
    assert_eq!(app.delete(&path).await.problem(404), "not-found");
    assert_eq!(app.get(&path).await.problem(404), "not-found");
    assert_eq!(app.post(&format!("{path}/restore")).await.problem(404), "not-found");
    for (from, claimed, state, status) in [
        ("pending", "null", "cancelled", 404),
        ("claimed", "now()", "finalized", 202),
        ("claimed", "now()", "superseded", 404),
    ] {
        app.db
            .run(&format!(
                "insert into tombstream.deletion (relation, key, state, flag, targets, lease_token, claimed_at)
                 values ('documents', '{{{id}}}', '{from}', '', '[]', 1, {claimed});
                 update tombstream.deletion set state = '{state}', closed_at = now() where closed_at is null"
            ))
            .await;
        assert_eq!(app.delete(&path).await.status, status, "{state}");
    }
    assert!(app.flips().await.is_empty());
}

#[tokio::test]
async fn values_are_spelled_as_postgres_spells_them() {
    let ddl = "create table things (
        id bigint primary key, amount numeric, seen timestamptz, naive timestamp, parts jsonb, tags text[],
        raw bytea, gone boolean not null default false);
        insert into things values (7, 12345678901234567890.10, '2026-11-23 12:00:00.5+02', '2026-11-23 12:00',
            '{\"b\": 1, \"a\": 1.00}', '{x,\"y z\"}', '\\x00ff');
        insert into things (id, seen) values (8, 'infinity')";
    let things = relation("things", &[("id", KeyKind::Bigint)], ("gone", FlagKind::Boolean));
    let columns = ["raw", "tags", "parts", "naive", "seen", "amount", "id", "gone"];
    let app = App::new(ddl, api(things, "things", &columns, None)).await;
    // A session's zone must not show.
    app.db
        .run(&format!(
            "alter database {} set timezone = 'Asia/Tokyo'",
            app.db.text("select current_database()").await.unwrap()
        ))
        .await;
    assert_eq!(
        app.get("/things/7").await.text,
        r#"{"raw":"\\x00ff","tags":["x","y z"],"parts":{"a": 1.00, "b": 1},"naive":"2026-11-23T12:00:00","seen":"2026-11-23T10:00:00.500Z","amount":12345678901234567890.10,"id":7,"gone":false}"#
    );
    assert_eq!(app.get("/things/0008").await.json()["seen"], "infinity");
    assert_eq!(app.post_json("/things/", "{}").await.problem(404), "no-such-route");
}

#[tokio::test]
async fn a_boolean_flag_is_flipped_and_null_is_alive() {
    let ddl = "create table things (id bigint primary key, gone boolean);
        insert into things values (1, false), (2, null), (3, true)";
    let things = relation("things", &[("id", KeyKind::Bigint)], ("gone", FlagKind::Boolean));
    let app = App::new(ddl, api(things, "things", &["id", "gone"], None)).await;
    assert_eq!(app.get("/things/1").await.json(), json!({"id": 1, "gone": false}));
    assert_eq!(app.get("/things/2").await.json(), json!({"id": 2, "gone": null}));
    assert_eq!(app.get("/things/3").await.status, 404);
    for id in 1..=3 {
        let deleted = app.delete(&format!("/things/{id}")).await;
        assert_eq!(deleted.json(), json!({"status": "file soft-deleted", "id": id}));
    }
    assert_eq!(app.flips().await, ["flag anonymous {1}", "flag anonymous {2}"]);
    let status = app.get("/things/2/deletion").await.json();
    assert_eq!((&status["state"], &status["flag"]), (&json!("flagged"), &json!(true)));
    assert_eq!(app.post("/things/2/restore").await.json(), json!({"id": 2, "gone": false}));
    assert_eq!(app.db.text("select gone from things where id = 2").await.as_deref(), Some("false"));
}

#[tokio::test]
async fn a_flag_without_zone_is_written_in_its_own_zone() {
    let ddl = "create table things (id bigint primary key, gone timestamp);
        insert into things values (1)";
    let kind = FlagKind::Timestamp { zone: "Asia/Tokyo".into() };
    let things = relation("things", &[("id", KeyKind::Bigint)], ("gone", kind));
    let app = App::new(ddl, api(things, "things", &["id"], None)).await;
    assert_eq!(app.delete("/things/1").await.status, 202);
    let right =
        "select gone at time zone 'Asia/Tokyo' between now() - interval '1 minute' and now()
        from things";
    assert_eq!(app.db.text(right).await.as_deref(), Some("true"));
    let flag = app.get("/things/1/deletion").await.json()["flag"].as_str().unwrap().to_owned();
    assert!(flag.ends_with('Z'), "{flag}");
    let same = format!("select gone at time zone 'Asia/Tokyo' = '{flag}' from things");
    assert_eq!(app.db.text(&same).await.as_deref(), Some("true"));
}

#[tokio::test]
async fn composite_keys_stay_apart_whatever_they_hold() {
    let ddl = "create table parts (tenant text, name varchar(200), gone timestamptz,
        primary key (tenant, name))";
    let key = [("tenant", KeyKind::Text), ("name", KeyKind::Text)];
    let parts = relation("parts", &key, ("gone", FlagKind::TimestampTz));
    let app =
        App::new(ddl, api(parts, "parts", &["tenant", "name"], Some(&["tenant", "name"]))).await;
    let keys = [
        ("a/b", "c", "a%2Fb/c"),
        ("a", "b/c", "a/b%2Fc"),
        ("it's", "\"x\", {y}", "it%27s/%22x%22%2C%20%7By%7D"),
        ("😀", "a%2Fb", "%F0%9F%98%80/a%252Fb"),
        (
            "line\nbreak",
            "x'; drop table parts; --",
            "line%0Abreak/x%27%3B%20drop%20table%20parts%3B%20--",
        ),
        ("..", "deletion", "%2E./deletion"),
        ("deletions", "restore", "%64eletions/restore"),
        ("ß+ü", "back\\slash", "%C3%9F%2B%C3%BC/back%5Cslash"),
    ];
    for (tenant, name, path) in keys {
        let body = json!({"tenant": tenant, "name": name}).to_string();
        let made = app.post_json("/parts/", &body).await;
        assert_eq!(made.status, 201, "{made:?}");
        assert_eq!(made.header("location"), format!("/parts/{path}"));
    }
    for (tenant, name, path) in keys {
        let path = format!("/parts/{path}");
        assert_eq!(app.get(&path).await.json(), json!({"tenant": tenant, "name": name}));
        let deleted = app.delete(&path).await;
        assert_eq!(deleted.json()["id"], json!([tenant, name]), "{deleted:?}");
        let status = app.get(deleted.header("location")).await.json();
        assert_eq!((&status["key"], &status["row"]), (&json!([tenant, name]), &json!("flagged")));
        let flagged =
            "select string_agg(tenant || '|' || name, ';') from parts where gone is not null";
        let only = format!("{tenant}|{name}");
        assert_eq!(app.db.text(flagged).await, Some(only), "one row alone is flagged");
        let key: Vec<String> =
            sqlx::query_scalar("select key from tombstream.flip order by id desc limit 1")
                .fetch_one(&app.db.pool)
                .await
                .unwrap();
        assert_eq!(key, [tenant, name]);
        assert_eq!(app.post(&format!("{path}/restore")).await.status, 200);
    }
}

#[tokio::test]
async fn a_text_key_that_is_a_route_of_ours_is_reached_encoded() {
    let ddl = "create table notes (name text primary key, gone timestamptz);
        insert into notes values ('deletions'), ('restore'), ('deletion')";
    let notes = relation("notes", &[("name", KeyKind::Text)], ("gone", FlagKind::TimestampTz));
    let app = App::new(ddl, api(notes, "notes", &["name"], None)).await;
    for name in ["%64eletions", "restore", "deletion"] {
        let deleted = app.delete(&format!("/notes/{name}")).await;
        assert_eq!(deleted.header("location"), format!("/notes/{name}/deletion"));
        assert_eq!(app.get(deleted.header("location")).await.json()["state"], "flagged");
    }
    assert!(app.get("/notes/deletions").await.json()["deletions"].is_array());
}

#[tokio::test]
async fn hostile_identifiers_are_names_like_others() {
    let ddl = r#"create schema "s""chema";
        create table "s""chema"."we""ird; drop" (
            "k'ey" bigint generated always as identity, "sel""ect" text, "Gone At" timestamptz,
            primary key ("k'ey"))"#;
    let mut odd =
        relation("we\"ird; drop", &[("k'ey", KeyKind::Bigint)], ("Gone At", FlagKind::TimestampTz));
    odd.schema = "s\"chema".into();
    let odd = api(odd, "odd", &["k'ey", "sel\"ect", "Gone At"], Some(&["sel\"ect"]));
    let app = App::new(ddl, odd).await;
    let made = app.post_json("/odd/", r#"{"sel\"ect": "x"}"#).await;
    assert_eq!(made.json(), json!({"k'ey": 1, "sel\"ect": "x", "Gone At": null}));
    assert_eq!(made.header("location"), "/odd/1");
    assert_eq!(app.delete("/odd/1").await.status, 202);
    assert_eq!(app.get("/odd/1").await.status, 404);
    assert_eq!(app.get("/odd/1/deletion").await.json()["relation"], "we\"ird; drop");
    assert_eq!(app.post("/odd/1/restore").await.status, 200);
    assert_eq!(app.get("/odd/1").await.status, 200);
    assert_eq!(app.get("/odd/deletions").await.status, 200);
}

#[tokio::test]
async fn a_partitioned_table_is_one_table() {
    let ddl = "create table parts (tenant bigint, id uuid default gen_random_uuid(), name text,
            gone timestamptz, primary key (tenant, id)) partition by list (tenant);
        create table parts_1 partition of parts for values in (1);
        create table parts_2 partition of parts for values in (2)";
    let key = [("tenant", KeyKind::Bigint), ("id", KeyKind::Uuid)];
    let parts = relation("parts", &key, ("gone", FlagKind::TimestampTz));
    let columns = ["tenant", "id", "name"];
    let app = App::new(ddl, api(parts, "parts", &columns, Some(&["tenant", "name"]))).await;
    let made = app.post_json("/parts/", r#"{"tenant": 2, "name": "x"}"#).await;
    let path = made.header("location").to_owned();
    assert_eq!(app.delete(&path).await.status, 202, "{made:?}");
    assert_eq!(app.delete(&path).await.status, 202);
    assert_eq!(app.get(&path).await.status, 404);
    assert_eq!(app.post(&format!("{path}/restore")).await.text, made.text);
    assert_eq!(app.db.text("select count(*) from parts_2 where gone is null").await.unwrap(), "1");
    assert_eq!(app.post_json("/parts/", r#"{"tenant": 3}"#).await.problem(422), "bad-values");
}

#[tokio::test]
async fn what_is_left_out_gets_its_default() {
    let ddl = "create table things (id bigint generated always as identity primary key,
        a text default 'A', b integer default 5, gone timestamptz)";
    let things = relation("things", &[("id", KeyKind::Bigint)], ("gone", FlagKind::TimestampTz));
    let app = App::new(ddl, api(things, "things", &["id", "a", "b"], Some(&["a", "b"]))).await;
    for (body, row) in [
        ("{}", json!({"id": 1, "a": "A", "b": 5})),
        (r#"{"b": 7}"#, json!({"id": 2, "a": "A", "b": 7})),
        (r#"{"b": 7, "a": null}"#, json!({"id": 3, "a": null, "b": 7})),
    ] {
        let made = app.post_json("/things", body).await;
        assert_eq!((made.status.as_u16(), made.json()), (201, row));
    }
}

#[tokio::test]
async fn many_deletes_of_one_row_are_one_flip() {
    for isolation in ["read committed", "repeatable read", "serializable"] {
        let app = App::documents().await;
        app.db.isolate(isolation).await;
        let id = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
        app.db.run(&format!("insert into documents values ('{id}', 'x')")).await;
        let path = format!("/documents/{id}");
        let deletes = (0..12).map(|_| {
            let (router, path) = (app.router.clone(), path.clone());
            tokio::spawn(async move {
                crate::harness::send(&router, crate::harness::ask("DELETE", &path)).await.status
            })
        });
        for delete in deletes.collect::<Vec<_>>() {
            assert_eq!(delete.await.unwrap(), 202, "{isolation}");
        }
        assert_eq!(app.flips().await, [format!("flag anonymous {{{id}}}")], "{isolation}");
    }
}

#[tokio::test]
async fn every_route_works_without_prepared_statements() {
    let relations = vec![documents()];
    let config = ApiConfig { relations, prepared_statements: false, ..ApiConfig::default() };
    let app = App::with(DOCUMENTS, config).await;
    let made = app.post_json("/documents/", r#"{"name": "x"}"#).await;
    let path = made.header("location").to_owned();
    assert_eq!(app.delete(&path).await.status, 202);
    assert_eq!(app.get(&format!("{path}/deletion")).await.json()["state"], "flagged");
    assert_eq!(app.get("/documents/deletions").await.status, 200);
    assert_eq!(app.post(&format!("{path}/restore")).await.status, 200);
    assert_eq!(app.get(&path).await.status, 200);
    assert_eq!(app.get("/readyz").await.status, 200);
    assert_eq!(app.flips().await.len(), 3);
}
