//! What a test plays on: a database, a bucket, an index, and the binary with a configuration.

use anyhow::{Context, Result, bail};
use reqwest::Client;
use serde_json::{Value, json};
use sqlx::postgres::PgPool;
use std::time::{Duration, Instant};
use tombstream_e2e::{Bucket, Database, Index, Program, Running, Servers, free_port, random_name};

/// How long anything may take before a test fails: far beyond what it takes, since machines differ.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A sweep that finds every flag at once.
pub(crate) const SWEEP: &str = "[source.sweep]\ninterval = \"100ms\"\nafter = \"0s\"\n";
/// A sweep that finds nothing while a test runs, so that only events can have done it.
pub(crate) const NO_SWEEP: &str = "[source.sweep]\ninterval = \"6h\"\nafter = \"6h\"\n";

/// All that one test touches, under one random name.
pub(crate) struct Scene {
    pub(crate) name: String,
    pub(crate) servers: Servers,
    pub(crate) database: Database,
    pub(crate) bucket: Bucket,
    pub(crate) index: Index,
    port: u16,
}

impl Scene {
    /// Makes it all; `tables` is SQL that makes the relations' tables.
    pub(crate) async fn make(start: &str, tables: &'static str) -> Result<Self> {
        let servers = Servers::from_env()?;
        let name = random_name(start);
        let database = Database::make(&servers.postgres, &name).await?;
        sqlx::raw_sql(tables).execute(database.pool()).await.context("the tables")?;
        let bucket = Bucket::make(&servers, &name).await?;
        let index = Index::make(&servers.elasticsearch, &name).await?;
        Ok(Self { name, servers, database, bucket, index, port: free_port()? })
    }

    pub(crate) fn pool(&self) -> &PgPool {
        self.database.pool()
    }

    /// Keys of `[pipeline]`; the sections of the stores `originals` (S3) and `search`
    /// (Elasticsearch); and what the test adds: sources and relations.
    pub(crate) fn config(&self, pipeline: &str, store: &str, rest: &str) -> String {
        format!(
            r#"[database]
url = {{ env = "DATABASE_URL" }}
[pipeline]
listen = "127.0.0.1:{port}"
owed_wait_min = "200ms"
owed_wait_max = "1s"
{pipeline}
[store.originals]
kind = "s3"
endpoint = "{s3}"
bucket = "{bucket}"
access_key_id = {{ env = "AWS_ACCESS_KEY_ID" }}
secret_access_key = {{ env = "AWS_SECRET_ACCESS_KEY" }}
{store}
[store.search]
kind = "elasticsearch"
url = "{elasticsearch}"
index = "{name}"
{store}
{rest}
"#,
            port = self.port,
            s3 = self.servers.s3,
            bucket = self.bucket.name(),
            elasticsearch = self.servers.elasticsearch,
            name = self.name,
        )
    }

    /// `[source.kafka]` for a group of one's own.
    pub(crate) fn kafka(&self, group: &str) -> String {
        let brokers = &self.servers.kafka;
        format!(
            "[source.kafka]\ngroup = \"{group}\"\n[source.kafka.settings]\n\
             \"bootstrap.servers\" = \"{brokers}\"\n"
        )
    }

    /// The binary with this configuration, which replaces an earlier one.
    pub(crate) fn program(&self, config: &str) -> Result<Program> {
        let variables = vec![
            ("DATABASE_URL", self.database.url().to_owned()),
            ("AWS_ACCESS_KEY_ID", self.servers.s3_access_key.clone()),
            ("AWS_SECRET_ACCESS_KEY", self.servers.s3_secret_key.clone()),
        ];
        Program::beside_test(&self.name, config, variables)
    }

    /// The binary, its ledger and triggers made.
    pub(crate) async fn migrated(&self, config: &str) -> Result<Program> {
        let program = self.program(config)?;
        program.finish(&["migrate"]).await?;
        Ok(program)
    }

    /// Starts the pipeline and waits until it answers.
    pub(crate) async fn run(&self, program: &Program) -> Result<Running> {
        program.start(&["run"], &format!("http://127.0.0.1:{}/healthz", self.port)).await
    }

    /// The address of a path of the pipeline's own port.
    pub(crate) fn at(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// What `/readyz` or `/healthz` says: its status and body.
    pub(crate) async fn ask(&self, path: &str) -> Result<(u16, Value)> {
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
        let response = client.get(format!("http://127.0.0.1:{}{path}", self.port)).send().await?;
        Ok((response.status().as_u16(), response.json().await?))
    }

    /// A count, by SQL without parameters.
    pub(crate) async fn count(&self, sql: &'static str) -> Result<i64> {
        sqlx::query_scalar(sql).fetch_one(self.pool()).await.with_context(|| sql.to_owned())
    }

    /// State and reason of a key's only deletion.
    pub(crate) async fn deletion(
        &self,
        relation: &str,
        key: &[&str],
    ) -> Result<(String, Option<String>)> {
        let key: Vec<String> = key.iter().map(|part| (*part).to_owned()).collect();
        sqlx::query_as(
            "select state, reason from tombstream.deletion where relation = $1 and key = $2",
        )
        .bind(relation)
        .bind(&key)
        .fetch_one(self.pool())
        .await
        .with_context(|| format!("the deletion of {relation} {key:?}"))
    }

    /// The safety of a receipt: one for each finalized deletion, and one finalized deletion a key.
    pub(crate) async fn assert_one_receipt_each(&self, relation: &str, keys: usize) -> Result<()> {
        let (receipts, distinct, finalized): (i64, i64, i64) = sqlx::query_as(
            "select (select count(*) from tombstream.receipt where relation = $1), \
                 (select count(distinct key) from tombstream.receipt where relation = $1), \
                 (select count(*) from tombstream.deletion \
                     where relation = $1 and state = 'finalized')",
        )
        .bind(relation)
        .fetch_one(self.pool())
        .await?;
        let keys = i64::try_from(keys)?;
        assert_eq!((receipts, distinct, finalized), (keys, keys, keys), "receipts of {relation}");
        Ok(())
    }

    /// Everything goes. Where a test fails it stays, for whoever looks; all names are random.
    pub(crate) async fn remove(self) -> Result<()> {
        self.bucket.remove().await?;
        self.index.remove().await?;
        self.database.remove().await
    }
}

/// Waits until `done`; an error when the process ended by itself, or it takes too long.
pub(crate) async fn until(
    what: &str,
    running: &mut Running,
    mut done: impl AsyncFnMut() -> Result<bool>,
) -> Result<()> {
    let started = Instant::now();
    loop {
        running.check()?;
        if done().await? {
            return Ok(());
        }
        if started.elapsed() > PATIENCE {
            bail!("not within {PATIENCE:?}: {what}\n{}", running.end_of_log());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Stops the pipeline with SIGTERM: it must say that it ended well.
pub(crate) async fn stop(running: Running) -> Result<()> {
    let status = running.stop().await?;
    assert!(status.success(), "the pipeline ended with {status}");
    Ok(())
}

/// The bytes of the copy at a key: no two alike.
pub(crate) fn object(key: &str) -> (String, Vec<u8>) {
    (key.to_owned(), format!("the object at {key}").into_bytes())
}

/// The document of an id: no two alike.
pub(crate) fn document(id: &str) -> (String, Value) {
    (id.to_owned(), json!({ "text": format!("the document {id}") }))
}
