//! Documents that are not where, or not as, an address says: behind an alias of two indices, under another
//! routing value, in a blocked index, indexed late (F36, F38, F39; S6).

use crate::scene::{SWEEP, Scene, stop, until};
use anyhow::{Context as _, Result};
use reqwest::{Client, Method};
use serde_json::{Value, json};

const TABLES: &str =
    "create table documents (tenant text, id bigint primary key, deleted_at timestamptz)";

const RELATION: &str = r#"
[relation.documents]
table = "public.documents"
key = [{ column = "id", type = "bigint" }]
flag = { column = "deleted_at", type = "timestamptz" }
targets = [{ store = "search", id = "{id}", routing = "{tenant}" }]
"#;

const PIPELINE: &str = "lease = \"12s\"\ntransaction_timeout = \"5s\"\n";
const STORE: &str = "timeout = \"2s\"\ndeadline = \"3s\"\n";

/// Elasticsearch, as an application and an operator speak to it.
struct Search {
    client: Client,
    url: String,
}

impl Search {
    async fn ask(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        let request = self.client.request(method, format!("{}/{path}", self.url));
        // Some requests take no body, not even an empty one.
        let request = if body.is_null() { request } else { request.json(body) };
        let response = request.send().await?;
        let status = response.status();
        let answer: Value = response.json().await?;
        anyhow::ensure!(status.is_success(), "{path}: {status} {answer}");
        Ok(answer)
    }

    async fn index(
        &self,
        index: &str,
        routing: &str,
        ids: impl Iterator<Item = i64>,
    ) -> Result<()> {
        let line = |id: i64| json!({"index": {"_id": id.to_string(), "routing": routing}});
        let body: String = ids.map(|id| format!("{}\n{{}}\n", line(id))).collect();
        let request = self.client.post(format!("{}/{index}/_bulk", self.url));
        let request = request.header("content-type", "application/x-ndjson").body(body);
        let answer: Value = request.send().await?.json().await?;
        anyhow::ensure!(answer["errors"] == json!(false), "{answer}");
        Ok(())
    }

    /// The ids of all documents of an index or alias, in order, once for each copy.
    async fn ids(&self, index: &str) -> Result<Vec<i64>> {
        self.ask(Method::POST, &format!("{index}/_refresh"), &Value::Null).await?;
        let all = json!({"size": 10_000, "query": {"match_all": {}}});
        let answer = self.ask(Method::POST, &format!("{index}/_search"), &all).await?;
        let hits = answer["hits"]["hits"].as_array().context("hits")?;
        let id = |hit: &Value| hit["_id"].as_str().unwrap_or_default().parse();
        let mut ids: Vec<i64> = hits.iter().map(id).collect::<Result<_, _>>()?;
        ids.sort_unstable();
        Ok(ids)
    }
}

/// Two indices of five shards behind the alias that the configuration names.
async fn stage(scene: &Scene) -> Result<(Search, [String; 2], String)> {
    let client = Client::builder().no_proxy().build()?;
    let search = Search { client, url: scene.servers.elasticsearch.clone() };
    let indices = ["old", "new"].map(|which| format!("{}-{which}", scene.name));
    let alias = format!("{}-alias", scene.name);
    for index in &indices {
        let shape = json!({
            "settings": {"number_of_shards": 5, "number_of_replicas": 0},
            "aliases": {alias.as_str(): {}},
        });
        search.ask(Method::PUT, index, &shape).await?;
    }
    Ok((search, indices, alias))
}

/// The scene's configuration with the search store alone, on the alias.
fn config(scene: &Scene, alias: &str) -> Result<String> {
    let whole = scene.config(PIPELINE, STORE, &format!("{SWEEP}{RELATION}"));
    let (before, rest) = whole.split_once("[store.originals]").context("originals")?;
    let (_, search) = rest.split_once("[store.search]").context("search")?;
    let named = format!("index = \"{}\"", scene.name);
    Ok(format!("{before}[store.search]{}", search.replace(&named, &format!("index = \"{alias}\""))))
}

async fn remove(scene: Scene, search: &Search, indices: &[String; 2]) -> Result<()> {
    search.ask(Method::DELETE, &indices.join(","), &Value::Null).await?;
    scene.remove().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_an_alias_and_under_any_routing_every_document_goes_and_blocks_are_waited_for()
-> Result<()> {
    let scene = Scene::make("search", TABLES).await?;
    let (search, indices, alias) = stage(&scene).await?;
    let fill =
        "insert into documents select 'tenant-' || id % 7, id from generate_series(1, 300) id";
    sqlx::raw_sql(fill).execute(scene.pool()).await?;
    for tenant in 0..7 {
        let name = format!("tenant-{tenant}");
        // The old index has all, the new one the later half; a tenth was indexed under another value.
        let theirs = || (1..=300_i64).filter(move |id| id % 7 == tenant);
        search.index(&indices[0], &name, theirs().filter(|id| id % 10 != 0)).await?;
        search.index(&indices[0], "moved", theirs().filter(|id| id % 10 == 0)).await?;
        search.index(&indices[1], &name, theirs().filter(|id| *id > 150)).await?;
    }
    let before = search.ids(&alias).await?.len();
    assert_eq!(before, 450);
    let flag = "update documents set deleted_at = now() where id % 3 <> 0";
    sqlx::raw_sql(flag).execute(scene.pool()).await?;
    // As at the flood stage of a full disk.
    let blocked = json!({"index.blocks.read_only_allow_delete": true});
    search.ask(Method::PUT, &format!("{}/_settings", indices[1]), &blocked).await?;

    let program = scene.migrated(&config(&scene, &alias)?).await?;
    let checked = program.output(&["check", "--live"]).await?;
    let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.contains("is blocked (read_only_allow_delete)"), "{checked}");
    let mut running = scene.run(&program).await?;
    let finalized = "select count(*) from tombstream.deletion where state = 'finalized'";
    // Of the flagged, those up to 150 are in the open index alone.
    until(
        "the open index's go on",
        &mut running,
        async || Ok(scene.count(finalized).await? == 100),
    )
    .await?;
    let owed = "select count(*) from tombstream.deletion where state = 'claimed' and \
                targets -> 0 -> 'outcome' ->> 'said' like '%takes no deletes (index.blocks.%'";
    until("the rest is owed", &mut running, async || Ok(scene.count(owed).await? == 100)).await?;
    assert_eq!(
        scene.count("select count(*) from documents where deleted_at is not null").await?,
        100
    );
    let metrics = search.client.get(scene.at("/metrics")).send().await?.text().await?;
    let gauge = format!("tombstream_elasticsearch_blocked{{index=\"{}\"}} 1", indices[1]);
    assert!(metrics.contains(&gauge), "{metrics}");

    let lifted = json!({"index.blocks.read_only_allow_delete": null});
    search.ask(Method::PUT, &format!("{}/_settings", indices[1]), &lifted).await?;
    until("all go", &mut running, async || Ok(scene.count(finalized).await? == 200)).await?;
    let metrics = search.client.get(scene.at("/metrics")).send().await?.text().await?;
    assert!(metrics.contains(&gauge.replace("} 1", "} 0")), "{metrics}");
    let log = running.log()?;
    let told = |what: &str| log.lines().filter(|line| line.contains(what)).count();
    assert_eq!(told("takes no deletes (index.blocks.read_only_allow_delete"), 1, "once");
    assert_eq!(told("the index takes deletes again"), 1, "once");
    stop(running).await?;

    let mut alive: Vec<i64> = (1..=300).filter(|id| id % 3 == 0).collect();
    alive.extend((151..=300).filter(|id| id % 3 == 0));
    alive.sort_unstable();
    assert_eq!(search.ids(&alias).await?, alive, "the living in both indices, and nothing else");
    scene.assert_one_receipt_each("documents", 200).await?;
    let strayed =
        "select count(*) from tombstream.receipt where targets::text like '%another routing%'";
    println!("{} of 200 receipts name another routing value", scene.count(strayed).await?);
    assert!(scene.count(strayed).await? > 0);
    remove(scene, &search, &indices).await
}

/// An indexer whose queue is behind writes the document again and again: what the sink sees of it is owed, and
/// the row stays until it stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_whose_document_is_indexed_again_and_again_stays_until_that_ends() -> Result<()> {
    let scene = Scene::make("late", TABLES).await?;
    let (search, indices, alias) = stage(&scene).await?;
    let fill = "insert into documents select 'tenant', id from generate_series(1, 20) id";
    sqlx::raw_sql(fill).execute(scene.pool()).await?;
    let program = scene.migrated(&config(&scene, &alias)?).await?;
    let mut running = scene.run(&program).await?;
    search.index(&indices[0], "tenant", 1..=20).await?;
    let flag = "update documents set deleted_at = now()";
    let late = async {
        loop {
            search.index(&indices[0], "tenant", 1..=20).await?;
        }
    };
    let owed = "select count(*) from tombstream.deletion where state = 'claimed' \
                and targets -> 0 -> 'outcome' ->> 'verdict' in ('busy', 'unknown')";
    let watched = async {
        sqlx::raw_sql(flag).execute(scene.pool()).await?;
        until("one is owed", &mut running, async || Ok(scene.count(owed).await? > 0)).await
    };
    let ended: Result<()> = tokio::select! { ended = late => ended, ended = watched => ended };
    ended?;
    let said = "select string_agg(distinct targets -> 0 -> 'outcome' ->> 'said', '; ') \
                from tombstream.deletion where state = 'claimed'";
    let said: Option<String> = sqlx::query_scalar(said).fetch_one(scene.pool()).await?;
    println!("said while it is indexed late: {said:?}");
    let left = "select count(*) from documents";
    until("all go when it ends", &mut running, async || Ok(scene.count(left).await? == 0)).await?;
    stop(running).await?;
    // What came after its row was finalized is nobody's here: an audit finds it.
    println!("indexed after their rows were finalized: {:?}", search.ids(&alias).await?);
    scene.assert_one_receipt_each("documents", 20).await?;
    remove(scene, &search, &indices).await
}
