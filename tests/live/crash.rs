//! `kill -9` again and again while deletions flow (F41, F54).

use crate::scene::{SWEEP, Scene, document, object, stop, until};
use anyhow::Result;
use std::collections::HashMap;
use std::time::Instant;

const TABLES: &str = "create table documents (id bigint primary key, deleted_at timestamptz)";

const RELATION: &str = r#"
[relation.documents]
table = "public.documents"
key = [{ column = "id", type = "bigint" }]
flag = { column = "deleted_at", type = "timestamptz" }
key_reuse = "forbidden"
targets = [{ store = "originals", key = "{id}/original" }, { store = "search", id = "{id}" }]
"#;

const FLAGGED: i64 = 1_000;
const LIVING: i64 = 100;
const KILLS: i64 = 5;

/// A lease that is over soon after its owner: small batches, so that each kill meets several.
const PIPELINE: &str = "lease = \"5s\"\ntransaction_timeout = \"2s\"\nbatch_max = 20\n";
const STORE: &str = "timeout = \"2s\"\ndeadline = \"2s\"\nbatch_max = 10\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_kills_leak_nothing_destroy_nothing_alive_and_repeat_no_receipt() -> Result<()> {
    let scene = Scene::make("crash", TABLES).await?;
    let config = scene.config(PIPELINE, STORE, &format!("{SWEEP}{RELATION}"));
    let program = scene.migrated(&config).await?;
    let fill = "insert into documents select generate_series(1, 1100)";
    sqlx::raw_sql(fill).execute(scene.pool()).await?;
    let name = |id: i64| format!("{id}/original");
    let all = 1..=FLAGGED + LIVING;
    scene.bucket.put(all.clone().map(|id| object(&name(id)))).await?;
    scene.index.put(all.map(|id| document(&id.to_string()))).await?;

    let gone = "select count(*) from tombstream.receipt";
    let claimed = "select count(*) from tombstream.deletion where state = 'claimed'";
    let started = Instant::now();
    let mut orphans = Vec::new();
    for kill in 0..KILLS {
        let share = FLAGGED / KILLS;
        sqlx::query("update documents set deleted_at = now() where id > $1 and id <= $2")
            .bind(kill * share)
            .bind((kill + 1) * share)
            .execute(scene.pool())
            .await?;
        let before = scene.count(gone).await?;
        let mut running = scene.run(&program).await?;
        // In the middle of it: some are done, and some are claimed and not done.
        let busy = async || Ok(scene.count(gone).await? >= before + 20);
        until("deletions flow", &mut running, busy).await?;
        running.kill().await?;
        orphans.push(scene.count(claimed).await?);
    }
    let mut running = scene.run(&program).await?;
    let open = "select count(*) from documents where deleted_at is not null";
    until("all are finalized", &mut running, async || Ok(scene.count(open).await? == 0)).await?;
    stop(running).await?;
    println!(
        "{KILLS} kills, claims left by each: {orphans:?}; all done in {:.1?}",
        started.elapsed()
    );
    assert!(orphans.iter().any(|left| *left > 0), "no kill met a claim: {orphans:?}");

    scene.assert_one_receipt_each("documents", usize::try_from(FLAGGED)?).await?;
    let deletions = "select count(*) from tombstream.deletion";
    assert_eq!(scene.count(deletions).await?, FLAGGED, "no deletion was opened twice");
    assert_eq!(scene.count("select count(*) from documents").await?, LIVING);
    let living = FLAGGED + 1..=FLAGGED + LIVING;
    let objects: HashMap<_, _> = living.clone().map(|id| object(&name(id))).collect();
    assert_eq!(scene.bucket.list().await?, objects, "no object leaked, none wrongly destroyed");
    let documents: HashMap<_, _> = living.map(|id| document(&id.to_string())).collect();
    assert_eq!(scene.index.list().await?, documents, "no document leaked, none wrongly destroyed");
    scene.remove().await
}
