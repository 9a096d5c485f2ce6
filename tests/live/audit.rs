//! What comes back after its receipt is found and destroyed again (F37, F39; S1, S6).

use crate::scene::{SWEEP, Scene, document, object, stop, until};
use anyhow::Result;
use std::collections::HashMap;
use std::time::Instant;
use tombstream_e2e::Running;

const TABLES: &str = "create table documents (id bigint primary key, deleted_at timestamptz)";

const RELATION: &str = r#"
[relation.documents]
table = "public.documents"
key = [{ column = "id", type = "bigint" }]
flag = { column = "deleted_at", type = "timestamptz" }
key_reuse = "forbidden"
targets = [{ store = "originals", key = "{id}/original" }, { store = "search", id = "{id}" }]
"#;

const OFF: &str = "[audit]\nafter = []\n";

/// Rows `1..=rows`, all of them finalized by a pipeline that audits nothing.
async fn finalized(name: &str, rows: i64) -> Result<Scene> {
    let scene = Scene::make(name, TABLES).await?;
    let program = scene.migrated(&scene.config("", "", &format!("{SWEEP}{RELATION}{OFF}"))).await?;
    fill(&scene, 1, rows).await?;
    sqlx::query("insert into documents select n, now() from generate_series(1, $1) n")
        .bind(rows)
        .execute(scene.pool())
        .await?;
    let mut running = scene.run(&program).await?;
    let receipts = "select count(*) from tombstream.receipt";
    let done = async || Ok(scene.count(receipts).await? == rows);
    until("all are finalized", &mut running, done).await?;
    stop(running).await?;
    assert!(scene.bucket.keys().await?.is_empty() && scene.index.list().await?.is_empty());
    Ok(scene)
}

/// Copies of the rows `first..=last`, written by somebody who is late.
async fn fill(scene: &Scene, first: i64, last: i64) -> Result<()> {
    scene.bucket.put((first..=last).map(|id| object(&format!("{id}/original")))).await?;
    scene.index.put((first..=last).map(|id| document(&id.to_string()))).await
}

async fn until_copies(scene: &Scene, running: &mut Running, first: i64, last: i64) -> Result<()> {
    let objects: HashMap<_, _> =
        (first..=last).map(|id| object(&format!("{id}/original"))).collect();
    let documents: HashMap<_, _> = (first..=last).map(|id| document(&id.to_string())).collect();
    let left = async || {
        let is_so = scene.bucket.keys().await?.len() == objects.len();
        Ok(is_so && scene.index.list().await?.len() == documents.len())
    };
    until("what came back is gone", running, left).await?;
    assert_eq!(scene.bucket.list().await?, objects, "no other object went");
    assert_eq!(scene.index.list().await?, documents, "no other document went");
    Ok(())
}

const AGAIN: &str = "select coalesce(sum(jsonb_array_length(targets)), 0)::bigint \
    from tombstream.receipt where cause = 'resurrected'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_copies_that_came_back_go_within_one_period_and_none_that_live() -> Result<()> {
    let scene = finalized("audit", 1_200).await?;
    // A thousand come back; the keys of two hundred are used anew, by rows that live and have copies.
    fill(&scene, 1, 1_200).await?;
    let anew = "insert into documents select generate_series(1001, 1200)";
    sqlx::raw_sql(anew).execute(scene.pool()).await?;
    let audit = "[audit]\nafter = [\"8s\"]\nrate = 2000\nwait = \"2s\"\n";
    let program = scene.program(&scene.config("", "", &format!("{SWEEP}{RELATION}{audit}")))?;
    let began = Instant::now();
    let mut running = scene.run(&program).await?;
    let found = "select count(*) from tombstream.audit_pass where looked = 1200 and reused = 200 \
                 and closed_at is not null";
    until("both stores are audited", &mut running, async || Ok(scene.count(found).await? == 2))
        .await?;
    let looked = began.elapsed();
    until_copies(&scene, &mut running, 1_001, 1_200).await?;
    let gone = began.elapsed();
    println!(
        "2,400 copies looked at within {looked:.1?} of the start, 2,000 destroyed again within {gone:.1?}"
    );
    until("each has a receipt", &mut running, async || Ok(scene.count(AGAIN).await? == 2_000))
        .await?;
    let said = String::from_utf8(program.output(&["status"]).await?.stdout)?;
    assert!(said.contains("audit of documents in originals"), "{said}");
    assert_eq!(scene.count("select count(*) from documents").await?, 200);
    stop(running).await?;

    // By hand: nothing is there but what lives; then something is.
    let hand = async || {
        let output = program.output(&["audit", "--once", "--store", "search"]).await?;
        anyhow::Ok((output.status.code(), String::from_utf8(output.stdout)?))
    };
    let (code, said) = hand().await?;
    assert!(code == Some(0) && said.contains("200 are there under keys that have a row"), "{said}");
    fill(&scene, 7, 7).await?;
    let (code, said) = hand().await?;
    assert!(code == Some(3) && said.contains("1 are there again"), "{code:?} {said}");
    scene.remove().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_that_is_killed_goes_on_where_it_was() -> Result<()> {
    let scene = finalized("audit_killed", 300).await?;
    fill(&scene, 1, 300).await?;
    let audit = "[audit]\nafter = [\"8s\"]\nrate = 20\nwait = \"0s\"\n";
    let program = scene.program(&scene.config("", "", &format!("{SWEEP}{RELATION}{audit}")))?;
    let mut running = scene.run(&program).await?;
    let looked = "select coalesce(min(looked), 0) from tombstream.audit_pass";
    let half_way = async || Ok(scene.count(looked).await? >= 100);
    until("it is half-way", &mut running, half_way).await?;
    running.kill().await?;
    let so_far = scene.count(looked).await?;
    assert!(so_far < 300, "{so_far} are looked at");
    let mut running = scene.run(&program).await?;
    until_copies(&scene, &mut running, 1, 0).await?;
    until("each has a receipt", &mut running, async || Ok(scene.count(AGAIN).await? == 600))
        .await?;
    stop(running).await?;
    let twice = "select count(*) from ( \
        select key, t ->> 'store' from tombstream.receipt r, jsonb_array_elements(r.targets) t \
        where cause = 'resurrected' group by 1, 2 having count(*) > 1) as twice";
    assert_eq!(scene.count(twice).await?, 0, "nothing is found twice");
    scene.remove().await
}
