//! Objects that the store locks: they wait for a person, and hold nobody else up (F30, L2).

use crate::scene::{SWEEP, Scene, object, stop, until};
use anyhow::Result;
use tombstream_e2e::Bucket;

const TABLES: &str = "create table documents (id bigint primary key, deleted_at timestamptz)";

const RELATION: &str = r#"
[relation.documents]
table = "public.documents"
key = [{ column = "id", type = "bigint" }]
flag = { column = "deleted_at", type = "timestamptz" }
key_reuse = "forbidden"
targets = [{ store = "vault", key = "{id}/original" }]
"#;

/// Of a thousand rows seven have a copy under legal hold: 993 are finalized, seven parked with the reason and
/// not asked again, until the hold is released and an operator says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_rows_seven_are_held_by_the_store_and_the_others_go() -> Result<()> {
    let scene = Scene::make("locked", TABLES).await?;
    let vault = Bucket::make_locking(&scene.servers, &format!("{}-vault", scene.name)).await?;
    let store = format!(
        "[store.vault]\nkind = \"s3\"\nendpoint = \"{}\"\nbucket = \"{}\"\n\
         access_key_id = {{ env = \"AWS_ACCESS_KEY_ID\" }}\n\
         secret_access_key = {{ env = \"AWS_SECRET_ACCESS_KEY\" }}\ntimeout = \"30s\"\n",
        scene.servers.s3,
        vault.name(),
    );
    let config = scene.config("", "", &format!("{store}{SWEEP}{RELATION}"));
    let program = scene.migrated(&config).await?;
    let fill = "insert into documents select generate_series(1, 1000)";
    sqlx::raw_sql(fill).execute(scene.pool()).await?;
    vault.put((1..=1000).map(|id| object(&format!("{id}/original")))).await?;
    let held: Vec<String> = (1..=7).map(|n| format!("{}/original", n * 100)).collect();
    for key in &held {
        vault.hold(key, true).await?;
    }
    sqlx::raw_sql("update documents set deleted_at = now()").execute(scene.pool()).await?;
    let mut running = scene.run(&program).await?;
    let receipts = "select count(*) from tombstream.receipt";
    until("993 are finalized", &mut running, async || Ok(scene.count(receipts).await? == 993))
        .await?;
    let parked = "select count(*) from tombstream.deletion where state = 'parked'";
    until("seven are parked", &mut running, async || Ok(scene.count(parked).await? == 7)).await?;
    let why = "select count(*) from tombstream.deletion where state = 'parked' \
               and targets -> 0 -> 'outcome' ->> 'said' like 'under legal hold, version %'";
    assert_eq!(scene.count(why).await?, 7, "with the reason");
    let read_back = "select count(*) from tombstream.receipt \
                     where targets -> 0 -> 'outcome' ->> 'verified' = 'read_back' \
                     and targets -> 0 -> 'outcome' ->> 'said' = '1 version erased'";
    assert_eq!(scene.count(read_back).await?, 993, "and how the others were checked");
    let attempts = "select coalesce(sum(attempts), 0)::bigint from tombstream.deletion \
                    where state = 'parked'";
    let before = scene.count(attempts).await?;
    assert_eq!(vault.versions().await?, 7);
    assert_eq!(scene.count("select count(*) from documents").await?, 7);

    for key in &held {
        vault.hold(key, false).await?;
    }
    assert_eq!(scene.count(parked).await?, 7, "nothing is asked again by itself");
    assert_eq!(scene.count(attempts).await?, before);
    program.finish(&["parked", "retry", "--all", "--actor", "somebody"]).await?;
    until("the seven go, too", &mut running, async || Ok(scene.count(receipts).await? == 1000))
        .await?;
    stop(running).await?;
    assert_eq!(vault.versions().await?, 0);
    scene.assert_one_receipt_each("documents", 1000).await?;
    vault.remove().await?;
    scene.remove().await
}
