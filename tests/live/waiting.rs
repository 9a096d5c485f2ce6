//! Copies that are hidden before the claim, asked for again after a restore; hard deletes that are deletions;
//! a mass mistake behind the breaker. The processes, the stores and Postgres's log are real.

use crate::scene::{SWEEP, Scene, document, object, stop, until};
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeSet;
use tombstream_e2e::Topic;

const TABLES: &str = "create table documents (id bigint primary key, deleted_at timestamptz)";

/// The relation, with what a test says of it and of its target in the index.
fn relation(more: &str, of_search: &str) -> String {
    format!(
        r#"[relation.documents]
table = "public.documents"
key = [{{ column = "id", type = "bigint" }}]
flag = {{ column = "deleted_at", type = "timestamptz" }}
key_reuse = "forbidden"
{more}
targets = [{{ store = "originals", key = "{{id}}/original" }}, {{ store = "search", id = "{{id}}"{of_search} }}]
"#
    )
}

async fn fill(scene: &Scene, rows: i32) -> Result<()> {
    let sql = format!("insert into documents select generate_series(1, {rows})");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(scene.pool()).await?;
    scene.bucket.put((1..=rows).map(|id| object(&format!("{id}/original")))).await?;
    scene.index.put((1..=rows).map(|id| document(&id.to_string()))).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_are_hidden_at_once_and_asked_for_again_when_their_rows_are_restored()
-> Result<()> {
    let scene = Scene::make("hidden", TABLES).await?;
    let topic = Topic::make(&scene.servers.kafka, &format!("{}.rehydrate", scene.name), 1).await?;
    let rest = format!(
        "{SWEEP}{}[rehydrate]\ntopic = \"{}\"\n[rehydrate.settings]\n\"bootstrap.servers\" = \"{}\"\n",
        relation("grace = \"30d\"", ", grace = \"0s\""),
        topic.name(),
        scene.servers.kafka,
    );
    let program = scene.migrated(&scene.config("", "", &rest)).await?;
    fill(&scene, 300).await?;
    let mut running = scene.run(&program).await?;
    sqlx::raw_sql("update documents set deleted_at = now() where id <= 200")
        .execute(scene.pool())
        .await?;
    let hidden = "select count(*) from tombstream.deletion where state = 'hidden' \
                  and lease_until is null and due_at is null";
    until("all are hidden", &mut running, async || Ok(scene.count(hidden).await? == 200)).await?;
    assert_eq!(scene.index.list().await?.len(), 100, "what was flagged is not found any more");
    assert_eq!(scene.bucket.keys().await?.len(), 300, "no object goes before the claim");
    assert_eq!(scene.count("select count(*) from documents").await?, 300);

    sqlx::raw_sql("update documents set deleted_at = null where id <= 50")
        .execute(scene.pool())
        .await?;
    let told = "select count(*) from tombstream.rehydrate where published_at is not null";
    until("all notices are told", &mut running, async || Ok(scene.count(told).await? == 50))
        .await?;
    let mut asked = BTreeSet::new();
    for (key, value) in topic.records().await? {
        let notice: Value = serde_json::from_slice(&value.context("a notice has a value")?)?;
        let key: Vec<String> = serde_json::from_slice(&key.context("a notice has a key")?)?;
        assert_eq!(notice["targets"].as_array().map(Vec::len), Some(1), "{notice}");
        assert_eq!(notice["targets"][0]["store"], "search", "{notice}");
        asked.insert(key[0].parse::<i32>()?);
    }
    assert_eq!(asked, (1..=50).collect(), "of each restored row, and of no other");

    // A month later: the rest is claimed, in both stores.
    sqlx::raw_sql(
        "begin; alter table documents disable trigger user; \
         update documents set deleted_at = deleted_at - interval '31 days'; \
         update tombstream.deletion set first_seen = first_seen - interval '31 days' where closed_at is null; \
         alter table documents enable always trigger zz_tombstream_guard_before; \
         alter table documents enable always trigger zz_tombstream_guard_after; \
         alter table documents enable always trigger zz_tombstream_guard_arrived; commit",
    )
    .execute(scene.pool())
    .await?;
    let left = "select count(*) from documents where deleted_at is not null";
    until("all are finalized", &mut running, async || Ok(scene.count(left).await? == 0)).await?;
    stop(running).await?;
    assert_eq!(scene.bucket.keys().await?.len(), 150);
    assert_eq!(scene.index.list().await?.len(), 100);
    let receipts = "select count(*) from tombstream.receipt";
    assert_eq!(scene.count(receipts).await?, 150);
    topic.remove().await?;
    scene.remove().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_of_hard_deleted_rows_go_where_that_is_wanted_and_ours_come_back_as_nothing()
-> Result<()> {
    let scene = Scene::make("removed", TABLES).await?;
    let name = &scene.name;
    let rest = format!(
        "[source.postgres]\nslot = \"{name}\"\npublication = \"{name}\"\n{SWEEP}{}",
        relation("on_hard_delete = \"destroy\"", ""),
    );
    let program = scene.migrated(&scene.config("", "", &rest)).await?;
    program.finish(&["check", "--fix"]).await?;
    fill(&scene, 300).await?;
    let mut running = scene.run(&program).await?;
    sqlx::raw_sql("delete from documents where id <= 100").execute(scene.pool()).await?;
    sqlx::raw_sql("update documents set deleted_at = now() where id between 101 and 200")
        .execute(scene.pool())
        .await?;
    // A key that a row left is no hard delete, and neither of both keys' copies is touched.
    sqlx::raw_sql("update documents set id = 1300 where id = 300").execute(scene.pool()).await?;
    let receipts = "select count(*) from tombstream.receipt";
    until("all are finalized", &mut running, async || Ok(scene.count(receipts).await? == 200))
        .await?;
    // Our own removals come back through the log before this one does.
    sqlx::raw_sql("delete from documents where id = 201").execute(scene.pool()).await?;
    until("the last one, too", &mut running, async || Ok(scene.count(receipts).await? == 201))
        .await?;
    stop(running).await?;
    let expected: BTreeSet<String> = (202..=300).map(|id| format!("{id}/original")).collect();
    assert_eq!(scene.bucket.keys().await?.into_iter().collect::<BTreeSet<_>>(), expected);
    assert_eq!(scene.index.list().await?.len(), 99);
    assert_eq!(scene.count("select count(*) from tombstream.receipt where row_gone").await?, 101);
    assert_eq!(scene.count("select count(*) from tombstream.deletion").await?, 201, "one each");
    sqlx::query("select pg_drop_replication_slot($1)").bind(name).execute(scene.pool()).await?;
    scene.remove().await
}
