//! Copies that were never there, and templates that look in the wrong place (S6).

use crate::scene::{SWEEP, Scene, document, object, stop, until};
use anyhow::{Context, Result};
use serde_json::Value;
use tombstream_e2e::Program;

const TABLES: &str = "create table documents (id bigint primary key, deleted_at timestamptz)";

fn relation(key: &str) -> String {
    format!(
        r#"{SWEEP}
[relation.documents]
table = "public.documents"
key = [{{ column = "id", type = "bigint" }}]
flag = {{ column = "deleted_at", type = "timestamptz" }}
key_reuse = "forbidden"
targets = [{{ store = "originals", key = "{key}" }}, {{ store = "search", id = "{{id}}" }}]
"#
    )
}

/// Below this many first attempts no share is judged.
const JUDGED_FROM: usize = 100;

async fn status(program: &Program) -> Result<Value> {
    let output = program.output(&["status", "--json"]).await?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("status --json is no JSON")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_any_copies_are_finalized_too() -> Result<()> {
    let scene = Scene::make("absent", TABLES).await?;
    let program = scene.migrated(&scene.config("", "", &relation("{id}/original"))).await?;
    let fill = "insert into documents select generate_series(1, 400)";
    sqlx::raw_sql(fill).execute(scene.pool()).await?;
    // Every third was never uploaded, never indexed; every fifth only one of both.
    let uploaded = (1..=400).filter(|id| id % 3 != 0);
    let indexed = uploaded.clone().filter(|id| id % 5 != 0);
    scene.bucket.put(uploaded.clone().map(|id| object(&format!("{id}/original")))).await?;
    scene.index.put(indexed.clone().map(|id| document(&id.to_string()))).await?;
    let set = "update documents set deleted_at = now() where id <= 300";
    sqlx::raw_sql(set).execute(scene.pool()).await?;

    let mut running = scene.run(&program).await?;
    let open = "select count(*) from documents where deleted_at is not null";
    until("all are finalized", &mut running, async || Ok(scene.count(open).await? == 0)).await?;
    stop(running).await?;

    assert_eq!(scene.count("select count(*) from documents").await?, 100);
    scene.assert_one_receipt_each("documents", 300).await?;
    let absent = "select count(*) from tombstream.receipt r where not exists (select from \
                  jsonb_array_elements(r.targets) t where t -> 'outcome' ->> 'verdict' <> 'absent')";
    assert_eq!(scene.count(absent).await?, 100, "their receipts say that no copy was there");
    let deleted = "select count(*) from tombstream.receipt r where not exists (select from \
                   jsonb_array_elements(r.targets) t where t -> 'outcome' ->> 'verdict' <> 'deleted')";
    assert_eq!(scene.count(deleted).await?, 160);
    let living = |ids: &mut dyn Iterator<Item = i32>| ids.filter(|id| *id > 300).count();
    assert_eq!(scene.bucket.keys().await?.len(), living(&mut uploaded.clone()));
    assert_eq!(scene.index.list().await?.len(), living(&mut indexed.clone()));
    println!("300 finalized, 100 of them without any copy");
    scene.remove().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_template_pauses_the_relation_and_a_corrected_one_finishes_all() -> Result<()> {
    let scene = Scene::make("template", TABLES).await?;
    let wrong = scene.migrated(&scene.config("", "", &relation("{id}/orignal"))).await?;
    let fill = "insert into documents select generate_series(1, 600)";
    sqlx::raw_sql(fill).execute(scene.pool()).await?;
    scene.bucket.put((1..=600).map(|id| object(&format!("{id}/original")))).await?;
    scene.index.put((1..=600).map(|id| document(&id.to_string()))).await?;
    let set = "update documents set deleted_at = now() where id <= 500";
    sqlx::raw_sql(set).execute(scene.pool()).await?;

    let mut running = scene.run(&wrong).await?;
    let paused = "select count(*) from tombstream.pause";
    until("the relation pauses", &mut running, async || Ok(scene.count(paused).await? == 1))
        .await?;
    stop(running).await?;
    let said = status(&wrong).await?;
    let pause = &said["paused"][0];
    assert_eq!(pause["relation"], "documents", "{said}");
    let reason = pause["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("copies in store originals were not there"), "{reason}");
    assert_eq!(pause["detail"]["store"], "originals");
    let shown = pause["detail"]["absent"].as_array().context("the addresses are shown")?;
    assert!(!shown.is_empty());
    for address in shown {
        assert_eq!(address["bucket"], scene.bucket.name(), "{address}");
        let key = address["key"].as_str().unwrap_or_default();
        assert!(key.ends_with("/orignal"), "the resolved address shows the mistake: {address}");
    }
    let rows = scene.count("select count(*) from documents").await?;
    let lost = usize::try_from(600 - rows)?;
    assert!(lost < JUDGED_FROM, "{lost} rows went before anything was suspected");
    assert_eq!(scene.bucket.keys().await?.len(), 600, "no object was touched");
    println!("paused after {lost} of 500 rows: {reason}");

    // A restart does not lift it.
    let mut running = scene.run(&wrong).await?;
    until("it is ready", &mut running, async || Ok(scene.ask("/readyz").await?.0 == 200)).await?;
    stop(running).await?;
    assert_eq!(
        scene.count("select count(*) from documents").await?,
        rows,
        "nothing goes meanwhile"
    );

    let mended = scene.program(&scene.config("", "", &relation("{id}/original")))?;
    let mut running = scene.run(&mended).await?;
    mended.finish(&["resume", "documents"]).await?;
    let open = "select count(*) from documents where deleted_at is not null";
    let finished = async || {
        let stopped = scene.count(paused).await?;
        assert_eq!(stopped, 0, "paused again: {}", status(&mended).await?);
        Ok(scene.count(open).await? == 0)
    };
    until("all are finalized", &mut running, finished).await?;
    stop(running).await?;
    // Only rows that went before the template was suspected may have left their object behind.
    let leaked = scene.bucket.keys().await?.len() - 100;
    assert_eq!(leaked, lost, "objects whose row went without them");
    assert_eq!(scene.index.list().await?.len(), 100);
    scene.assert_one_receipt_each("documents", 500).await?;
    scene.remove().await
}
