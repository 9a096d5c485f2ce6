//! All of history again (F21): it destroys nothing (S1).

use crate::event::{created, mixed, removed, tombstone, updated};
use crate::scene::{NO_SWEEP, Scene, document, object, stop, until};
use anyhow::Result;
use std::collections::HashMap;
use std::time::Instant;
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
