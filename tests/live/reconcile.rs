//! `tombstream reconcile` on real stores: what is planted is found, nothing else is, and stragglers are mended
//! through the claim.

use crate::scene::{SWEEP, Scene, document, object, stop, until};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Output;
use tombstream_e2e::Program;

const TABLES: &str =
    "create table documents (id bigint primary key, tenant text not null, deleted_at timestamptz)";

const RELATION: &str = r#"[relation.documents]
table = "public.documents"
key = [{ column = "id", type = "bigint" }]
flag = { column = "deleted_at", type = "timestamptz" }
key_reuse = "forbidden"
targets = [{ store = "originals", key = "{tenant}/{id}/original" }, { store = "search", id = "{id}" }]
"#;

const ROWS: i32 = 2_000;

fn tenant(id: i32) -> String {
    format!("t{}", id % 17)
}

async fn put(scene: &Scene, ids: impl Iterator<Item = i32> + Clone) -> Result<()> {
    let objects = ids.clone().map(|id| object(&format!("{}/{id}/original", tenant(id))));
    scene.bucket.put(objects).await?;
    scene.index.put(ids.map(|id| document(&id.to_string()))).await
}

/// Runs the command with a report in a file: how it ended, and the report's lines.
async fn reconcile(
    scene: &Scene,
    program: &Program,
    more: &[&str],
) -> Result<(Output, Vec<Value>)> {
    let folder = std::env::temp_dir().join(&scene.name);
    std::fs::create_dir_all(&folder)?;
    let report = folder.join("report.jsonl");
    let path = report.to_str().context("a path")?;
    let settle = ["reconcile", "--settle", "100ms", "--report", path];
    let output = program.output(&[&settle, more].concat()).await?;
    let lines = match std::fs::read_to_string(&report) {
        Ok(text) => text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?,
        Err(_) => Vec::new(),
    };
    std::fs::remove_dir_all(&folder)?;
    Ok((output, lines))
}

/// Ids by kind and store.
fn found(lines: &[Value]) -> Result<BTreeMap<(String, String), BTreeSet<i32>>> {
    let mut found: BTreeMap<_, BTreeSet<i32>> = BTreeMap::new();
    let (last, findings) = lines.split_last().context("a report has its last line")?;
    assert_eq!(last["kind"], "summary", "{last}");
    for line in findings {
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let id = line["key"][0].as_str().context("a key")?.parse()?;
        let is_new = found.entry((text("kind"), text("store"))).or_default().insert(id);
        assert!(is_new, "told twice: {line}");
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_planted_is_found_and_mended_through_the_claim() -> Result<()> {
    let scene = Scene::make("reconcile", TABLES).await?;
    let config = scene.config("", "", &format!("{SWEEP}{RELATION}"));
    let program = scene.migrated(&config).await?;
    let sql = format!(
        "insert into documents select id, 't' || id % 17 from generate_series(1, {ROWS}) as id; analyze"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(scene.pool()).await?;
    // Missing: 151 to 200 have no copies. Orphans: no row ever had these ids.
    put(&scene, (1..=150).chain(201..=ROWS).chain(5_001..=5_050)).await?;

    // A hundred rows go; half of their copies come back.
    let mut running = scene.run(&program).await?;
    sqlx::raw_sql("update documents set deleted_at = now() where id <= 100")
        .execute(scene.pool())
        .await?;
    let finalized = "select count(*) from tombstream.receipt";
    until("a hundred are finalized", &mut running, async || {
        Ok(scene.count(finalized).await? == 100)
    })
    .await?;
    stop(running).await?;
    put(&scene, 1..=50).await?;
    // Flagged, and nobody looks; ten of them are held.
    sqlx::raw_sql(
        "update documents set deleted_at = now() - interval '1 hour' where id between 101 and 150; \
         insert into tombstream.hold (relation, key, case_name, actor) \
         select 'documents', array[id::text], 'case', 'test' from generate_series(141, 150) as id",
    )
    .execute(scene.pool())
    .await?;

    // What nobody would take for a copy.
    scene.bucket.put([object("readme"), object("t1/007/original")].into_iter()).await?;

    let both = |kind: &str, ids: BTreeSet<i32>| {
        ["originals", "search"].map(|store| ((kind.to_owned(), store.to_owned()), ids.clone()))
    };
    let expected: BTreeMap<_, _> = [
        both("straggler", (101..=140).collect()),
        both("zombie", (1..=50).collect()),
        both("orphan", (5_001..=5_050).collect()),
        both("missing", (151..=200).collect()),
    ]
    .into_iter()
    .flatten()
    .collect();
    let (output, lines) = reconcile(&scene, &program, &[]).await?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(found(&lines)?, expected);
    let last = lines.last().context("a last line")?;
    assert_eq!(last["stores"][0]["elsewhere"], json!(2), "{last}");
    let (_, lines) = reconcile(&scene, &program, &["--workers", "1", "--parts", "1"]).await?;
    assert_eq!(found(&lines)?, expected, "however it is cut");

    let refused = program.output(&["reconcile", "--repair", "orphans"]).await?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("--approve DIGEST"), "{said}");
    let (output, _) = reconcile(&scene, &program, &["--repair", "stragglers"]).await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("40 keys, 40 of them finalized"), "{output:?}");
    assert_eq!(scene.count("select count(*) from tombstream.receipt").await?, 140);
    assert_eq!(scene.count("select count(*) from documents").await?, 1_860);
    let (output, lines) = reconcile(&scene, &program, &["--repair", "stragglers,zombies"]).await?;
    let mut left = expected;
    left.retain(|(kind, _), _| kind != "straggler");
    assert_eq!(found(&lines)?, left, "what is reported is what was there before");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("50 keys, 50 of them finalized"), "{output:?}");
    assert_eq!(
        scene.count("select count(*) from documents").await?,
        1_860,
        "no row goes with them"
    );
    let (_, lines) = reconcile(&scene, &program, &[]).await?;
    left.retain(|(kind, _), _| kind != "zombie");
    assert_eq!(found(&lines)?, left);

    // A person has looked at the orphans of one report, and approves of them.
    let folder = std::env::temp_dir().join(format!("{}-seen", scene.name));
    std::fs::create_dir_all(&folder)?;
    let seen = folder.join("seen.jsonl");
    let seen = seen.to_str().context("a path")?;
    let output = program.output(&["reconcile", "--settle", "100ms", "--report", seen]).await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let digest = said.trim_end().rsplit(' ').next().context("a digest")?;
    let approved = ["--repair", "orphans", "--of", seen, "--approve", digest, "--actor", "test"];
    let (output, _) = reconcile(&scene, &program, &approved).await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("50 keys, 50 of them finalized"), "{output:?}");
    std::fs::remove_dir_all(&folder)?;
    let (_, lines) = reconcile(&scene, &program, &[]).await?;
    left.retain(|(kind, _), _| kind != "orphan");
    assert_eq!(found(&lines)?, left);
    scene.remove().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_shows_nothing_is_no_report() -> Result<()> {
    let scene = Scene::make("reconcile", TABLES).await?;
    let program = scene.migrated(&scene.config("", "", RELATION)).await?;
    sqlx::raw_sql(
        "insert into documents select id, 't' || id % 17 from generate_series(1, 20) as id",
    )
    .execute(scene.pool())
    .await?;
    scene.index.put((1..=20).map(|id| document(&id.to_string()))).await?;
    let (output, lines) = reconcile(&scene, &program, &[]).await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("store originals shows no copy at all"), "{said}");
    assert_eq!((output.status.code(), lines.len()), (Some(1), 0));
    let (output, lines) = reconcile(&scene, &program, &["--allow-empty", "originals"]).await?;
    assert_eq!((output.status.code(), lines.len()), (Some(1), 21), "{output:?}");
    // A store that is left out says nothing, for or against.
    let (output, lines) = reconcile(&scene, &program, &["--store", "search"]).await?;
    assert_eq!((output.status.code(), lines.len()), (Some(0), 1), "{output:?}");
    scene.remove().await
}
