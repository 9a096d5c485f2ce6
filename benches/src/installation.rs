//! A whole Tombstream on the real servers: a table, a bucket and an index of one's own, and the built binary as a
//! process.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use sqlx::postgres::PgPool;
use tombstream_e2e::{Bucket, Database, Index, Program, Running, Servers, free_port};
use uuid::Uuid;

use crate::cpu::{Drained, processor_seconds};
use crate::server;

const TABLE: &str = include_str!("../../deploy/compose/documents.sql");
/// Far beyond what any run takes.
const PATIENCE: Duration = Duration::from_secs(600);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const SLOT_MAX: Duration = Duration::from_secs(30);

/// Documents: a row, an object and a search document each.
pub(crate) struct Documents {
    pub(crate) name: String,
    pub(crate) servers: Servers,
    pub(crate) database: Database,
    pub(crate) bucket: Bucket,
    pub(crate) index: Index,
    pub(crate) ids: Vec<Uuid>,
}

impl Documents {
    /// So many of them. None is flagged.
    pub(crate) async fn make(count: usize) -> Result<Self> {
        let servers = server::all()?;
        let name = server::new_name("bench_");
        let database = Database::make(&servers.postgres, &name).await?;
        sqlx::raw_sql(TABLE).execute(database.pool()).await.context("the table")?;
        let bucket = Bucket::make(&servers, &name).await?;
        let index = Index::make(&servers.elasticsearch, &name).await?;
        let ids = (0..count).map(|_| Uuid::new_v4()).collect();
        let documents = Self { name, servers, database, bucket, index, ids };
        if let Err(error) = documents.fill().await {
            documents.remove().await?;
            return Err(error.context("making the documents"));
        }
        Ok(documents)
    }

    pub(crate) fn pool(&self) -> &PgPool {
        self.database.pool()
    }

    async fn fill(&self) -> Result<()> {
        for some in self.ids.chunks(5_000) {
            sqlx::query(
                "insert into documents (id, name) select id, id::text from unnest($1::uuid[]) id",
            )
            .bind(some)
            .execute(self.pool())
            .await?;
        }
        let objects = self.ids.iter().map(|id| (format!("{id}/original"), b"original".to_vec()));
        self.bucket.put(objects).await?;
        self.index.put(self.ids.iter().map(|id| (id.to_string(), json!({ "name": id })))).await
    }

    /// Flags every row, a thousand a transaction.
    pub(crate) async fn flag(&self) -> Result<()> {
        for some in self.ids.chunks(1_000) {
            sqlx::query("update documents set deleted_at = now() where id = any($1)")
                .bind(some)
                .execute(self.pool())
                .await?;
        }
        Ok(())
    }

    /// Waits until no row is left; `check` says when that is in vain.
    pub(crate) async fn until_rows_are_gone(
        &self,
        mut check: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let begun = Instant::now();
        while sqlx::query_scalar("select exists (select from documents)")
            .fetch_one(self.pool())
            .await?
        {
            check()?;
            if begun.elapsed() > PATIENCE {
                bail!(
                    "rows are left after {PATIENCE:?}: the run's log says why, such as a relation that is paused"
                );
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// An error unless both stores are empty: a row that is gone before its copies counts for nothing.
    pub(crate) async fn copies_must_be_gone(&self) -> Result<()> {
        let (objects, documents) =
            (self.bucket.keys().await?.len(), self.index.list().await?.len());
        ensure!(
            objects == 0 && documents == 0,
            "the rows are gone; {objects} objects and {documents} search documents are left"
        );
        Ok(())
    }

    /// Removes all of it, and the slot that may read it.
    pub(crate) async fn remove(&self) -> Result<()> {
        let begun = Instant::now();
        while !self.database.drop_slot(&self.name).await? {
            ensure!(begun.elapsed() < SLOT_MAX, "the slot {} is still in use", self.name);
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.database.remove().await?;
        self.index.remove().await?;
        self.bucket.remove().await
    }
}

/// How the flags reach the pipeline.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// Straight from Postgres's log.
    Log,
    /// From a topic named by [`topic`].
    Topic,
}

/// How sure it is made that a copy was there, and is gone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// As configured by default: each object is looked at before, one in a hundred after, and each document read back.
    Default,
    /// The stores' word suffices; objects are looked at before.
    Trust,
    /// Objects are not even looked at before: as much is asked of the stores as the other side asks.
    TrustUnprobed,
}

impl Way {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Trust => "trust",
            Self::TrustUnprobed => "trust_unprobed",
        }
    }

    /// The settings of the store of S3, and those of Elasticsearch's.
    fn settings(self) -> (&'static str, &'static str) {
        let trust = "verify = \"trust\"";
        match self {
            Self::Default => ("", ""),
            Self::Trust => (trust, trust),
            Self::TrustUnprobed => ("verify = \"trust\"\nprobe = false", trust),
        }
    }
}

/// What differs from run to run; all else is the configuration's default.
pub(crate) struct Setting<'a> {
    pub(crate) source: Source,
    pub(crate) way: Way,
    pub(crate) workers: usize,
    /// The stores' addresses: their own, or those of what stands before them.
    pub(crate) s3: &'a str,
    pub(crate) elasticsearch: &'a str,
}

/// The binary with a configuration for some documents.
pub(crate) struct Installation {
    program: Program,
    healthy: String,
}

/// The topic of these documents' events.
pub(crate) fn topic(documents: &Documents) -> String {
    format!("{}.public.documents", documents.name)
}

/// The release binary: it is built beside this one.
pub(crate) fn binary(given: Option<&PathBuf>) -> Result<PathBuf> {
    let beside = || Ok(std::env::current_exe()?.with_file_name("tombstream"));
    let binary = given.map_or_else(beside, |given| anyhow::Ok(given.clone()))?;
    ensure!(
        binary.is_file(),
        "{} is not there: `cargo build --release -p tombstream`, or name it by --binary",
        binary.display()
    );
    Ok(binary)
}

impl Installation {
    /// Writes the configuration, and makes the ledger, the table's triggers and, where it is read, the slot.
    pub(crate) async fn make(
        binary: PathBuf,
        documents: &Documents,
        setting: &Setting<'_>,
    ) -> Result<Self> {
        let port = free_port()?;
        let text = configuration(documents, setting, port);
        let folder =
            std::env::current_exe()?.with_file_name("tombstream-bench-runs").join(&documents.name);
        let variables = vec![
            ("DATABASE_URL", documents.database.url().to_owned()),
            ("AWS_ACCESS_KEY_ID", documents.servers.s3_access_key.clone()),
            ("AWS_SECRET_ACCESS_KEY", documents.servers.s3_secret_key.clone()),
        ];
        let program = Program::at(binary, folder, &text, variables)?;
        program.finish(&["migrate"]).await?;
        if setting.source == Source::Log {
            program.finish(&["check", "--fix"]).await?;
        }
        Ok(Self { program, healthy: format!("http://127.0.0.1:{port}/healthz") })
    }

    /// Starts `tombstream run`.
    pub(crate) async fn run(&self) -> Result<Running> {
        self.program.start(&["run"], &self.healthy).await
    }

    /// Runs until no row is left, from the start of the process. An error unless the copies are gone and each
    /// document has its receipt.
    pub(crate) async fn drain(&self, documents: &Documents) -> Result<Drained> {
        let begun = Instant::now();
        let mut running = self.run().await?;
        documents.until_rows_are_gone(|| running.check()).await?;
        let wall = begun.elapsed().as_secs_f64();
        let processor = processor_seconds(&running.id().context("it runs")?.to_string());
        let status = running.stop().await?;
        ensure!(status.success(), "`tombstream run` ended: {status}");
        self.judge(documents).await?;
        Ok(Drained { wall, processor })
    }

    /// An error unless nothing is left, and each document has its receipt.
    pub(crate) async fn judge(&self, documents: &Documents) -> Result<()> {
        documents.copies_must_be_gone().await?;
        let receipts: i64 = sqlx::query_scalar("select count(*) from tombstream.receipt")
            .fetch_one(documents.pool())
            .await?;
        ensure!(receipts == documents.ids.len() as i64, "{receipts} receipts");
        Ok(())
    }

    /// Removes its files. Those of a run that failed are left: its log says why.
    pub(crate) fn remove(&self) -> Result<()> {
        let folder = &self.program.folder;
        std::fs::remove_dir_all(folder)
            .with_context(|| format!("can't remove {}", folder.display()))
    }
}

fn configuration(documents: &Documents, setting: &Setting<'_>, port: u16) -> String {
    let name = &documents.name;
    let (source, topics) = match setting.source {
        Source::Log => (
            format!("[source.postgres]\nslot = \"{name}\"\npublication = \"{name}\"\n"),
            String::new(),
        ),
        Source::Topic => (
            format!(
                "[source.kafka]\ngroup = \"{name}\"\n[source.kafka.settings]\n\
                 \"bootstrap.servers\" = \"{}\"\n",
                documents.servers.kafka
            ),
            format!("topics = [\"{}\"]", topic(documents)),
        ),
    };
    let (of_s3, of_elasticsearch) = setting.way.settings();
    format!(
        r#"[database]
url = {{ env = "DATABASE_URL" }}
[pipeline]
workers = {workers}
listen = "127.0.0.1:{port}"
{source}
[store.originals]
kind = "s3"
endpoint = "{s3}"
bucket = "{bucket}"
access_key_id = {{ env = "AWS_ACCESS_KEY_ID" }}
secret_access_key = {{ env = "AWS_SECRET_ACCESS_KEY" }}
{of_s3}
[store.search]
kind = "elasticsearch"
url = "{elasticsearch}"
index = "{name}"
{of_elasticsearch}
[relation.documents]
table = "public.documents"
key = [{{ column = "id", type = "uuid" }}]
flag = {{ column = "deleted_at", type = "timestamptz" }}
grace = "0s"
key_reuse = "forbidden"
{topics}
targets = [
    {{ store = "originals", key = "{{id}}/original" }},
    {{ store = "search", id = "{{id}}" }},
]
"#,
        workers = setting.workers,
        s3 = setting.s3,
        bucket = documents.bucket.name(),
        elasticsearch = setting.elasticsearch,
    )
}
