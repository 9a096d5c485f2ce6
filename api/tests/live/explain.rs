//! What a row's deletion waits for, and that it costs little to ask.

use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use tombstream_api::orders::{OrderError, explain};
use tombstream_model::Key;

use crate::harness::{App, documents};

const ID: &str = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
const STATUS: &str = "/documents/a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11/deletion";

async fn with_row(deleted_at: &str) -> App {
    let app = App::documents().await;
    app.db.run(&format!("insert into documents values ('{ID}', 'x', now(), {deleted_at})")).await;
    app
}

fn waits(status: &Value) -> Vec<&str> {
    let waits = status["waits_for"].as_array().unwrap_or_else(|| panic!("{status}"));
    waits.iter().map(|wait| wait["what"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_status_says_what_is_waited_for_and_what_can_be_done() {
    let app = with_row("now()").await;
    let status = async || app.get(STATUS).await.json();
    let held = app.post_json(&STATUS.replace("deletion", "holds"), r#"{"case": "case 7"}"#).await;
    assert_eq!(held.status, 201);
    app.db.run(&format!("insert into tombstream.deletion (relation, key, state, kept_back_at) values ('documents', '{{{ID}}}', 'pending', now());
        insert into tombstream.breaker (relation, tripped_at, reason) values ('documents', now(), 'too many');
        insert into tombstream.pause (relation, reason) values ('documents', 'absent')")).await;
    let kept = status().await;
    assert_eq!(waits(&kept), ["hold", "pause", "kept_back"]);
    let can = kept["can"].to_string();
    for command in [
        &format!("tombstream hold release documents {ID} --id 1"),
        "tombstream resume documents",
        "tombstream breaker approve documents --up-to 1",
    ] {
        assert!(can.contains(command), "{command}: {can}");
    }
    let order = &kept["happened"]
        .as_array()
        .unwrap()
        .iter()
        .find(|event| event["by"] == "anonymous")
        .unwrap()["what"];
    assert!(order.as_str().unwrap().starts_with("hold {"), "{order}");

    app.db.run("delete from tombstream.pause; update tombstream.hold set until = 'infinity';
        update tombstream.deletion set state = 'claimed', claimed_at = now(), flag = 'x', lease_token = 1, due_at = now() + interval '1 hour',
            targets = '[{\"store\": \"a\", \"address\": {}, \"outcome\": {\"verdict\": \"busy\", \"said\": \"503\"}}]'").await;
    let claimed = status().await;
    assert_eq!(waits(&claimed), ["hold", "owed"]);
    assert!(claimed["waits_for"][1]["says"].as_str().unwrap().contains("it said: 503"));
}

#[tokio::test]
async fn a_flag_that_no_clock_holds_is_explained_too() {
    for flag in ["'infinity'", "'-infinity'", "'294276-12-31'", "'4713-01-01 BC'"] {
        let app = with_row(flag).await;
        let status = app.get(STATUS).await;
        assert_eq!((status.status.as_u16(), waits(&status.json())), (200, vec!["grace"]), "{flag}");
    }
}

#[tokio::test]
async fn a_row_that_never_was_is_not_explained() {
    let app = App::documents().await;
    let relation = documents().relation;
    let key = Key::from_postgres([ID.to_owned()]);
    let missing = explain::explain(&app.db.pool, &relation, &key).await;
    assert!(matches!(missing, Err(OrderError::Missing(_))), "{missing:?}");
    app.db.run(&format!("insert into documents values ('{ID}', 'x')")).await;
    let alive = explain::explain(&app.db.pool, &relation, &key).await.unwrap();
    assert_eq!((alive.row, alive.state, alive.told.waits_for), ("alive", None, vec![]));
}

/// Each part goes by an index, with rows enough that Postgres would see the difference. Set
/// `TOMBSTREAM_EXPLAIN_ROWS` to measure with more: the time is printed (`-- --nocapture`).
#[tokio::test]
async fn explaining_a_row_reads_no_table_from_end_to_end() {
    let rows = std::env::var("TOMBSTREAM_EXPLAIN_ROWS").unwrap_or_else(|_| "20000".to_owned());
    let app = App::documents().await;
    app.db.run(&format!(
        "create function id(n bigint) returns uuid language sql immutable as
             $$ select ('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid $$;
         insert into documents select id(n), 'x', now(), now() from generate_series(1, {rows}) as n;
         insert into tombstream.deletion (relation, key, state)
             select 'documents', array[id(n)::text], 'pending' from generate_series(1, {rows}) as n;
         insert into tombstream.flip (relation, key, action, actor)
             select 'documents', array[id(n)::text], 'flag', 'ann' from generate_series(1, {rows}) as n;
         insert into tombstream.hold (relation, key, case_name, actor)
             select 'documents', array[id(n)::text], 'case', 'ann' from generate_series(1, {rows}) as n;
         insert into tombstream.rehydrate (deletion_id, relation, key, targets, ready_at)
             select n, 'documents', array[id(n)::text], '[]', now() from generate_series(1, {rows}) as n;
         insert into tombstream.operator_order (actor, action, relation, key)
             select 'ann', 'hold', 'documents', array[id(n)::text] from generate_series(1, {rows}) as n;
         analyze documents, tombstream.deletion, tombstream.flip, tombstream.hold, tombstream.rehydrate, tombstream.operator_order"
    )).await;
    let relation = documents().relation;
    let key = vec!["00000000-0000-0000-0000-000000007777".to_owned()];
    let sql = format!("explain (analyze, format json) {}", explain::sql(&relation));
    let mut took = Vec::new();
    let mut plan = Value::Null;
    for _ in 0..5 {
        plan = sqlx::query_scalar(AssertSqlSafe(sql.clone()))
            .bind(&key)
            .bind("documents")
            .fetch_one(&app.db.pool)
            .await
            .unwrap();
        took.push(plan[0]["Execution Time"].as_f64().unwrap());
    }
    println!("{rows} rows: {took:?} ms");
    let mut seen = Vec::new();
    read_plan(&plan[0]["Plan"], &mut seen);
    for index in [
        "deletion_key",
        "hold_active",
        "flip_key",
        "operator_order_key",
        "documents_pkey",
        "rehydrate_deletion_id_key",
    ] {
        assert!(seen.iter().any(|node| node == index), "{index}: {seen:?}");
    }
    for table in ["deletion", "hold", "flip", "operator_order", "documents", "rehydrate"] {
        assert!(!seen.contains(&format!("Seq Scan {table}")), "{table}: {seen:?}");
    }
    assert!(took.iter().any(|ms| *ms < 50.0), "{took:?}");
    let shown = explain::explain(&app.db.pool, &relation, &Key::from_postgres(key)).await.unwrap();
    assert_eq!(shown.told.happened.len(), 3);
    assert_eq!(json!(shown.told.waits_for[0].what), "hold");
}

/// The indexes of a plan, and what it reads from end to end.
fn read_plan(node: &Value, seen: &mut Vec<String>) {
    if let Some(index) = node["Index Name"].as_str() {
        seen.push(index.to_owned());
    }
    if let (Some(kind), Some(table)) = (node["Node Type"].as_str(), node["Relation Name"].as_str())
    {
        seen.push(format!("{kind} {table}"));
    }
    for child in node["Plans"].as_array().into_iter().flatten() {
        read_plan(child, seen);
    }
}
