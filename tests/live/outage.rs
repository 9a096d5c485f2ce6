//! A store that refuses or is not there holds up its own part only (F33, F36, F38; L3, S3).

use crate::scene::{SWEEP, Scene, document, object, stop, until};
use anyhow::Result;
use serde_json::json;
use tombstream_e2e::{Index, Running};

const TABLES: &str = "create table documents (id bigint primary key, deleted_at timestamptz)";

const RELATION: &str = r#"
[relation.documents]
table = "public.documents"
key = [{ column = "id", type = "bigint" }]
flag = { column = "deleted_at", type = "timestamptz" }
key_reuse = "forbidden"
targets = [{ store = "originals", key = "{id}/original" }, { store = "search", id = "{id}" }]
"#;

const PIPELINE: &str = "lease = \"12s\"\ntransaction_timeout = \"5s\"\n";
const STORE: &str =
    "timeout = \"2s\"\ndeadline = \"3s\"\nunavailable_after = \"2s\"\nprobe_wait = \"200ms\"\n";

const FLAGGED: usize = 120;
const ALL: usize = 150;

async fn seed(scene: &Scene, index: &Index) -> Result<()> {
    let fill = "insert into documents select generate_series(1, 150)";
    sqlx::raw_sql(fill).execute(scene.pool()).await?;
    scene.bucket.put((1..=ALL).map(|id| object(&format!("{id}/original")))).await?;
    index.put((1..=ALL).map(|id| document(&id.to_string()))).await?;
    let set = "update documents set deleted_at = now() where id <= 120";
    sqlx::raw_sql(set).execute(scene.pool()).await?;
    Ok(())
}

/// Until all objects went and the ledger says what the search index owes.
async fn until_owed(scene: &Scene, running: &mut Running) -> Result<()> {
    let objects = async || Ok(scene.bucket.keys().await?.len() == ALL - FLAGGED);
    until("S3's part goes on", running, objects).await?;
    // Whether or not its next attempt is under way.
    let owed = "select count(*) from tombstream.deletion d where state = 'claimed' \
                and d.targets -> 0 -> 'outcome' ->> 'verdict' = 'deleted' \
                and d.targets -> 1 -> 'outcome' ->> 'verdict' not in ('deleted', 'absent')";
    let all = i64::try_from(FLAGGED)?;
    until("it is owed", running, async || Ok(scene.count(owed).await? == all)).await?;
    assert_eq!(scene.count("select count(*) from documents").await?, i64::try_from(ALL)?);
    assert_eq!(scene.count("select count(*) from tombstream.receipt").await?, 0);
    Ok(())
}

async fn until_finalized(scene: &Scene, running: &mut Running) -> Result<()> {
    let open = "select count(*) from documents where deleted_at is not null";
    until("all are finalized", running, async || Ok(scene.count(open).await? == 0)).await?;
    assert_eq!(scene.count("select count(*) from documents").await?, i64::try_from(ALL - FLAGGED)?);
    scene.assert_one_receipt_each("documents", FLAGGED).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_block_owes_its_deletions_until_it_is_lifted() -> Result<()> {
    let scene = Scene::make("blocked", TABLES).await?;
    let config = scene.config(PIPELINE, STORE, &format!("{SWEEP}{RELATION}"));
    let program = scene.migrated(&config).await?;
    seed(&scene, &scene.index).await?;
    scene.index.set(&json!({ "index.blocks.write": true })).await?;
    let mut running = scene.run(&program).await?;
    until_owed(&scene, &mut running).await?;
    assert_eq!(scene.index.list().await?.len(), ALL, "no document went");
    let said = async || {
        let status = program.output(&["status"]).await?;
        let status = String::from_utf8_lossy(&status.stdout).into_owned();
        let line = status.lines().find(|line| line.starts_with("owed by store search"));
        Ok(line.is_some_and(|line| line.contains("takes no deletes (index.blocks.")))
    };
    until("status tells what is owed and why", &mut running, said).await?;

    scene.index.set(&json!({ "index.blocks.write": false })).await?;
    until_finalized(&scene, &mut running).await?;
    stop(running).await?;
    assert_eq!(scene.index.list().await?.len(), ALL - FLAGGED);
    scene.remove().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_index_is_no_absence_and_owes_its_deletions_until_it_is_there() -> Result<()> {
    let scene = Scene::make("missing", TABLES).await?;
    let later = format!("{}_alias", scene.name);
    let config = scene.config(PIPELINE, STORE, &format!("{SWEEP}{RELATION}"));
    let config =
        config.replace(&format!("index = \"{}\"", scene.name), &format!("index = \"{later}\""));
    let program = scene.migrated(&config).await?;
    seed(&scene, &scene.index).await?;
    let mut running = scene.run(&program).await?;
    until_owed(&scene, &mut running).await?;
    let (code, ready) = scene.ask("/readyz").await?;
    assert_eq!(code, 503, "a missing index needs a person: {ready}");
    println!("{}", ready["stores"]);

    // It is there all at once, documents and all.
    scene.index.alias(&later).await?;
    until_finalized(&scene, &mut running).await?;
    stop(running).await?;
    assert_eq!(scene.index.list().await?.len(), ALL - FLAGGED);
    scene.remove().await
}
