//! All of history again (F21): it destroys nothing (S1).

use crate::count::Door;
use crate::event::{created, mixed, removed, tombstone, updated};
use crate::scene::{NO_SWEEP, Scene, document, object, stop, until};
use anyhow::Result;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tombstream_e2e::{Topic, random_name};

const TABLES: &str = "create table documents (id bigint primary key, deleted_at timestamptz)";

const FLAGGED: i64 = 500;
const ALL: i64 = 1_000;

fn relation(topic: &str) -> String {
    format!(
        r#"
[relation.documents]
table = "public.documents"
key = [{{ column = "id", type = "bigint" }}]
flag = {{ column = "deleted_at", type = "timestamptz" }}
key_reuse = "forbidden"
topics = ["{topic}"]
targets = [{{ store = "originals", key = "{{id}}/original" }}, {{ store = "search", id = "{{id}}" }}]
"#
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_begins_anew_sends_no_destructive_request() -> Result<()> {
    let scene = Scene::make("replay", TABLES).await?;
    let topic = Topic::make(&scene.servers.kafka, &scene.name, 3).await?;
    let config = |group: &str| {
        let rest = format!("{NO_SWEEP}{}{}", scene.kafka(group), relation(topic.name()));
        scene.config("", "", &rest)
    };
    let program = scene.migrated(&config(&scene.name)).await?;
    let fill = "insert into documents select generate_series(1, 1000)";
    sqlx::raw_sql(fill).execute(scene.pool()).await?;
    let name = |id: i64| format!("{id}/original");
    scene.bucket.put((1..=ALL).map(|id| object(&name(id)))).await?;
    scene.index.put((1..=ALL).map(|id| document(&id.to_string()))).await?;
    let set = "update documents set deleted_at = now() where id <= 500";
    sqlx::raw_sql(set).execute(scene.pool()).await?;
    // The whole life of each: made, flagged, and for every other living row restored.
    let mut lsn = 1_000;
    let mut next = || {
        lsn += 8;
        lsn
    };
    let mut events = Vec::new();
    for id in 1..=ALL {
        events.push(created("documents", id, next()));
        if id <= FLAGGED || id % 2 == 0 {
            events.push(updated("documents", id, false, true, next()));
        }
        if id > FLAGGED && id % 2 == 0 {
            events.push(updated("documents", id, true, false, next()));
        }
    }
    topic.append(&events).await?;

    let read = async |group: &str| {
        let progress = topic.progress(group).await?;
        anyhow::Ok(progress.iter().all(|(committed, end)| committed == end))
    };
    let mut running = scene.run(&program).await?;
    until("all is committed", &mut running, async || read(&scene.name).await).await?;
    stop(running).await?;
    assert_eq!(scene.count("select count(*) from documents").await?, ALL - FLAGGED);
    scene.assert_one_receipt_each("documents", usize::try_from(FLAGGED)?).await?;

    // Their end comes back through capture, as Debezium tells it.
    let ends = (1..=FLAGGED).flat_map(|id| [removed("documents", id, 100_000 + 8), tombstone(id)]);
    topic.append(&ends.collect::<Vec<_>>()).await?;
    // Objects and documents at the old addresses, made by hand: a request would take them.
    let mut objects: HashMap<String, Vec<u8>> =
        (FLAGGED + 1..=ALL).map(|id| object(&name(id))).collect();
    let mut documents: HashMap<_, _> =
        (FLAGGED + 1..=ALL).map(|id| document(&id.to_string())).collect();
    for id in 1..=FLAGGED {
        objects.insert(name(id), mixed(id.unsigned_abs()).to_be_bytes().to_vec());
        documents.insert(id.to_string(), serde_json::json!({ "text": mixed(id.unsigned_abs()) }));
    }
    scene.bucket.put(objects.clone().into_iter()).await?;
    scene.index.put(documents.clone().into_iter()).await?;
    // Some of the keys live again.
    let again = "insert into documents select generate_series(1, 50)";
    sqlx::raw_sql(again).execute(scene.pool()).await?;
    let evidence = "select count(*) + (select count(*) from tombstream.deletion) \
                    from tombstream.receipt";
    let before = scene.count(evidence).await?;

    let group = random_name("replay_again");
    let program = scene.program(&config(&group))?;
    let started = Instant::now();
    let mut running = scene.run(&program).await?;
    until("all of history is committed again", &mut running, async || read(&group).await).await?;
    let took = started.elapsed();
    stop(running).await?;
    assert_eq!(scene.bucket.list().await?, objects, "no object was destroyed");
    assert_eq!(scene.index.list().await?, documents, "no document was destroyed");
    assert_eq!(scene.count("select count(*) from documents").await?, ALL - FLAGGED + 50);
    assert_eq!(scene.count(evidence).await?, before, "nothing was claimed or finalized again");
    println!("{} events again in {took:.1?}: nothing destroyed", events.len() + 1_000);
    topic.remove().await?;
    scene.remove().await
}

/// How many rows the history is of: 50,000 of them are 200,000 events, which is a run by hand.
fn rows() -> i64 {
    let asked = std::env::var("TOMBSTREAM_TEST_REPLAY_ROWS").ok();
    asked.and_then(|rows| rows.parse().ok()).unwrap_or(1_000)
}

/// A topic that is finished, from its first event: `replay` destroys nothing. In it, a fifth of all: rows that live
/// though an event flagged them, that were restored, or whose key is used anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_of_a_finished_topic_sends_no_destructive_request() -> Result<()> {
    let rows = rows();
    let (alive, restored, anew) = (rows / 15, rows / 15, rows / 15);
    // In this order: what goes, what is used anew (and goes before), what lives, what was restored.
    let goes = rows - alive - restored;
    let mut scene = Scene::make("replayed", TABLES).await?;
    let originals = Door::before(&scene.servers.s3).await?;
    let search = Door::before(&scene.servers.elasticsearch).await?;
    let direct = scene.servers.clone();
    (scene.servers.s3, scene.servers.elasticsearch) = (originals.url.clone(), search.url.clone());
    let topic = Topic::make(&scene.servers.kafka, &scene.name, 3).await?;
    let rest = format!("{NO_SWEEP}{}{}", scene.kafka(&scene.name), relation(topic.name()));
    let program = scene.migrated(&scene.config("", "", &rest)).await?;
    scene.servers = direct;

    sqlx::query("insert into documents select generate_series(1, $1)")
        .bind(rows)
        .execute(scene.pool())
        .await?;
    let flag = "update documents set deleted_at = now() where id <= $1 or id > $2";
    sqlx::query(flag).bind(goes).bind(goes + alive).execute(scene.pool()).await?;
    let restore = "update documents set deleted_at = null where id > $1";
    sqlx::query(restore).bind(goes + alive).execute(scene.pool()).await?;
    let name = |id: i64| format!("{id}/original");
    scene.bucket.put((1..=rows).map(|id| object(&name(id)))).await?;
    scene.index.put((1..=rows).map(|id| document(&id.to_string()))).await?;
    let mut events = Vec::new();
    for id in 1..=rows {
        let lsn = 1_000 + id.unsigned_abs() * 8;
        events.push(created("documents", id, lsn));
        events.push(updated("documents", id, false, true, lsn + (1 << 32)));
        match id <= goes {
            true => events.extend([removed("documents", id, lsn + (2 << 32)), tombstone(id)]),
            false => events.extend([
                updated("documents", id, true, false, lsn + (2 << 32)),
                updated("documents", id, false, false, lsn + (3 << 32)),
            ]),
        }
    }
    topic.append(&events).await?;

    let patience = Duration::from_secs(120) + Duration::from_millis(100) * u32::try_from(rows)?;
    let started = Instant::now();
    let mut running = scene.run(&program).await?;
    loop {
        running.check()?;
        let progress = topic.progress(&scene.name).await?;
        if progress.iter().all(|(committed, end)| committed == end) {
            break;
        }
        assert!(started.elapsed() < patience, "the first pass takes too long");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let first = started.elapsed();
    stop(running).await?;
    scene.assert_one_receipt_each("documents", usize::try_from(goes)?).await?;
    let destroyed = originals.destructive() + search.destructive();
    assert!(originals.destructive() > 0 && search.destructive() > 0, "the doors see them");
    let committed = topic.progress(&scene.name).await?;

    // Keys that are used anew, their copies too.
    let from = goes - anew;
    sqlx::query("insert into documents select generate_series($1, $2)")
        .bind(from + 1)
        .bind(goes)
        .execute(scene.pool())
        .await?;
    scene.bucket.put((from + 1..=goes).map(|id| object(&name(id)))).await?;
    scene.index.put((from + 1..=goes).map(|id| document(&id.to_string()))).await?;
    let requests = originals.requests() + search.requests();

    for (what, arguments) in [
        ("looked at", &["replay", "--kafka", "--dry-run", "--json"][..]),
        ("replayed", &["replay", "--kafka", "--json"]),
    ] {
        let started = Instant::now();
        let output = program.output_within(patience, arguments).await?;
        let took = started.elapsed();
        let said = String::from_utf8_lossy(&output.stdout);
        let report: serde_json::Value =
            serde_json::from_str(said.lines().last().unwrap_or_default())?;
        assert_eq!(output.status.code(), Some(0), "{report}");
        assert_eq!(report["looked_at"], events.len(), "{report}");
        let count = |name: &str| report["counts"][name].as_i64().unwrap_or_default();
        assert_eq!(count("done"), goes - anew, "{report}");
        assert_eq!(count("alive") + count("restored"), anew + alive + restored, "{report}");
        assert_eq!((count("claimed"), count("due")), (0, 0), "{report}");
        println!(
            "{} events {what} in {took:.1?}; the first pass took {first:.1?} with {destroyed} destructive requests; now {}",
            events.len(),
            originals.destructive() + search.destructive() - destroyed,
        );
    }
    assert_eq!(originals.destructive() + search.destructive(), destroyed, "nothing is destroyed");
    assert_eq!(originals.requests() + search.requests(), requests, "nor is anything asked");
    assert_eq!(topic.progress(&scene.name).await?, committed, "the live group stays where it is");
    let left = usize::try_from(anew + alive + restored)?;
    assert_eq!((scene.bucket.list().await?.len(), scene.index.list().await?.len()), (left, left));
    assert_eq!(scene.count("select count(*) from documents").await?, left as i64);
    topic.remove().await?;
    scene.remove().await
}
