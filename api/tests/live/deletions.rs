//! What became of a flag.

use serde_json::{Value, json};

use crate::harness::{Answer, App};

const ID: &str = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
const STATUS: &str = "/documents/a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11/deletion";
const TARGETS: &str = r#"[{"store": "originals", "address": {"kind": "object", "bucket": "b", "key": "k"},
    "outcome": {"verdict": "deleted", "said": "204", "verified": "read_back"}},
    {"store": "search", "address": {"kind": "document", "index": "i", "id": "x", "routing": null}, "outcome": null}]"#;

async fn with_row(deleted_at: &str) -> App {
    let app = App::documents().await;
    let insert = format!("insert into documents values ('{ID}', 'x', now(), {deleted_at})");
    app.db.run(&insert).await;
    app
}

fn state(answer: &Answer) -> (Value, Value) {
    let status = answer.json();
    (status["state"].clone(), status["row"].clone())
}

#[tokio::test]
async fn a_deletion_is_followed_from_the_flag_to_the_receipt() {
    let app = with_row("'2026-11-23 12:00:00.25+02'").await;
    let status = app.get(STATUS).await;
    assert_eq!(status.status, 200, "{status:?}");
    let mut flagged = status.json();
    for told in ["waits_for", "can", "happened"] {
        assert!(flagged.as_object_mut().unwrap().remove(told).unwrap().is_array(), "{told}");
    }
    assert_eq!(
        flagged,
        json!({
            "relation": "documents", "row": "flagged", "key": ID, "state": "flagged",
            "flag": "2026-11-23T10:00:00.250Z", "first_seen": null, "claimed_at": null,
            "closed_at": null, "due_at": null, "attempts": 0, "reason": null, "flip_lsn": null,
            "targets": null, "receipt": null,
        })
    );

    app.db.run(&format!(
        "insert into tombstream.deletion (relation, key, state) values ('documents', '{{{ID}}}', 'pending')"
    )).await;
    let pending = app.get(STATUS).await;
    assert_eq!(state(&pending), (json!("pending"), json!("flagged")));
    assert!(pending.json()["first_seen"].as_str().unwrap().ends_with('Z'));
    assert!(pending.json()["id"].is_i64());

    app.db.run(&format!(
        "update tombstream.deletion set state = 'claimed', claimed_at = '2026-11-23 10:00:01Z', lease_token = 1,
            flag = '2026-11-23T10:00:00.25+00:00', flip_lsn = '16/B374D848', attempts = 2, targets = '{TARGETS}'"
    )).await;
    let claimed = app.get(STATUS).await;
    assert_eq!(state(&claimed), (json!("claimed"), json!("flagged")));
    let claimed = claimed.json();
    assert_eq!(claimed["claimed_at"], "2026-11-23T10:00:01Z");
    assert_eq!(claimed["flag"], "2026-11-23T10:00:00.250Z");
    assert_eq!(claimed["flip_lsn"], "16/B374D848");
    assert_eq!(claimed["attempts"], 2);
    assert_eq!(claimed["targets"][0]["outcome"]["verdict"], "deleted");
    assert_eq!(claimed["targets"][1]["outcome"], Value::Null);
    assert_eq!(claimed["receipt"], Value::Null);

    app.db
        .run(&format!(
            "begin;
         delete from documents;
         update tombstream.deletion set state = 'finalized', closed_at = now();
         insert into tombstream.receipt
             (deletion_id, relation, key, flag, claimed_at, row_gone, targets)
         select id, relation, key, flag, claimed_at, false, '{TARGETS}' from tombstream.deletion;
         commit"
        ))
        .await;
    let finalized = app.get(STATUS).await;
    assert_eq!(state(&finalized), (json!("finalized"), json!("gone")));
    let receipt = finalized.json()["receipt"].clone();
    assert!(receipt["finalized_at"].as_str().unwrap().ends_with('Z'), "{receipt}");
    assert_eq!(receipt["row_gone"], false);
    assert_eq!(receipt["targets"][0]["said"], Value::Null);
    assert_eq!(receipt["targets"][0]["outcome"]["said"], "204");
    let transaction = app.db.text("select transaction_id from tombstream.receipt").await;
    assert_eq!(receipt["transaction_id"].as_str(), transaction.as_deref());
}

#[tokio::test]
async fn the_newest_deletion_is_shown_and_a_newer_flag_before_it() {
    let app = with_row("null").await;
    assert_eq!(app.get(STATUS).await.problem(404), "not-deleted");
    app.db
        .run(&format!(
            "insert into tombstream.deletion (relation, key, state)
         values ('documents', '{{{ID}}}', 'pending'), ('other', '{{{ID}}}', 'pending');
         update tombstream.deletion set closed_at = now(),
             state = case relation when 'other' then 'superseded' else 'cancelled' end"
        ))
        .await;
    assert_eq!(state(&app.get(STATUS).await), (json!("cancelled"), json!("alive")));
    app.db.run("update documents set deleted_at = now()").await;
    assert_eq!(state(&app.get(STATUS).await), (json!("flagged"), json!("flagged")));
    app.db.run("delete from documents").await;
    assert_eq!(state(&app.get(STATUS).await), (json!("cancelled"), json!("gone")));
    app.db.run("delete from tombstream.deletion").await;
    assert_eq!(app.get(STATUS).await.problem(404), "not-found");
}

#[tokio::test]
async fn a_list_is_read_page_by_page() {
    let app = App::documents().await;
    app.db
        .run(
            "insert into tombstream.deletion (relation, key, state)
         select 'documents', array[gen_random_uuid()::text],
             case when n % 3 = 0 then 'parked' else 'pending' end
         from generate_series(1, 25) as n;
         update tombstream.deletion set state = 'cancelled', closed_at = now() where state = 'pending';
         insert into tombstream.deletion (relation, key, state) values ('other', '{x}', 'parked')",
        )
        .await;
    for (filter, total) in [("", 25), ("&state=parked", 8), ("&state=claimed", 0)] {
        let mut seen = Vec::new();
        let mut cursor = String::new();
        let mut pages = 0;
        loop {
            let page =
                app.get(&format!("/documents/deletions?limit=4{filter}{cursor}")).await.json();
            let deletions = page["deletions"].as_array().unwrap();
            assert!(deletions.len() <= 4);
            seen.extend(deletions.iter().map(|entry| entry["id"].as_i64().unwrap()));
            if !filter.is_empty() {
                assert!(
                    deletions
                        .iter()
                        .all(|entry| filter.ends_with(entry["state"].as_str().unwrap()))
                );
            }
            pages += 1;
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(seen.len(), total, "{filter}");
        assert!(seen.windows(2).all(|pair| pair[0] > pair[1]), "newest first, each once");
        assert_eq!(pages, std::cmp::max(1, total.div_ceil(4)), "{filter}");
    }
    assert_eq!(
        app.get("/documents/deletions").await.json()["deletions"].as_array().unwrap().len(),
        25
    );
}

#[tokio::test]
async fn a_bad_question_to_the_list_is_refused() {
    let app = App::documents().await;
    app.db.run(
        "insert into tombstream.deletion (relation, key, state) values ('documents', '{a}', 'parked'),
         ('documents', '{b}', 'parked')",
    ).await;
    let page = app.get("/documents/deletions?limit=1&state=parked").await.json();
    let cursor = page["next_cursor"].as_str().unwrap();
    for query in [
        "state=gone",
        "limit=0",
        "limit=501",
        "limit=x",
        "cursor=x",
        "cursor=%00",
        "colour=red",
        &format!("cursor={cursor}"),
        &format!("cursor={cursor}&state=claimed"),
    ] {
        let answer = app.get(&format!("/documents/deletions?{query}")).await;
        assert_eq!(answer.problem(400), "bad-query", "{query}");
    }
}
