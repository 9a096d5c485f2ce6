//! A database of one's own, with the ledger's schema and a table of documents behind its triggers.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgPool};
use tombstream_connectors::postgres::{self, LedgerConfig, LedgerStore, PgLedger};
use tombstream_model::{
    Candidate, Cause, Claimed, Found, Key, Outcome, Relation, RelationId, Settled, Verdict,
};

use crate::server::{self, execute};

pub(crate) struct Scene {
    server: PgPool,
    pub(crate) pool: PgPool,
    pub(crate) at: PgConnectOptions,
    pub(crate) name: String,
}

impl Scene {
    /// With a table `documents` whose key is of `key_type`; its rows are told whole in the log.
    pub(crate) async fn new(relation: &Relation, key_type: &str) -> Result<Self> {
        let url = server::postgres_url()?;
        let server = postgres::connect(&url, 2, true, "bench").await?;
        let name = server::new_name("bench_");
        execute(&server, &format!("create database {name}")).await?;
        let at: PgConnectOptions = url.parse::<PgConnectOptions>()?.database(&name);
        let pool = postgres::connect(at.to_url_lossy().as_str(), 12, true, "bench").await?;
        postgres::migrate(&pool).await?;
        execute(
            &pool,
            &format!(
                "create table documents (id {key_type} primary key, name text not null, \
                     deleted_at timestamptz); \
                 alter table documents replica identity full"
            ),
        )
        .await?;
        postgres::install_relation(&pool, relation).await?;
        Ok(Self { server, pool, at, name })
    }

    pub(crate) fn url(&self) -> String {
        self.at.to_url_lossy().to_string()
    }

    /// The real ledger, whose stores are called `stores`.
    pub(crate) fn ledger(&self, relation: &Relation, stores: &[&str]) -> PgLedger {
        let store = |name: &&str| LedgerStore { name: (*name).into(), absent_share_max: 1.0 };
        let config = LedgerConfig {
            owner: "bench".to_owned(),
            lease: Duration::from_secs(600),
            stores: stores.iter().map(store).collect(),
            owed_wait_min: Duration::from_secs(5),
            owed_wait_max: Duration::from_secs(600),
            prepared_statements: true,
        };
        PgLedger::new(self.pool.clone(), [relation.clone()].into(), config)
    }

    /// Runs a script with pgbench, each of `clients` so many times; its own figures go nowhere.
    pub(crate) async fn pgbench(&self, script: &str, clients: usize, times: usize) -> Result<()> {
        let file = std::env::temp_dir().join(format!("{}.sql", self.name));
        std::fs::write(&file, script).with_context(|| file.display().to_string())?;
        let mut command = server::program(&self.pool, &self.at, "pgbench").await?;
        command
            .args(["--no-vacuum", "--protocol=prepared", "--define=n=0"])
            .args(["--client", &clients.to_string(), "--transactions", &times.to_string()])
            .arg("--file")
            .arg(&file)
            .stdout(std::process::Stdio::null());
        let output = command.stderr(std::process::Stdio::piped()).output().await;
        let removed = std::fs::remove_file(&file);
        let output = output.context("can't run pgbench")?;
        removed?;
        let said = String::from_utf8_lossy(&output.stderr);
        // It ends with 0, too, when some of its clients were aborted.
        anyhow::ensure!(
            output.status.success() && !said.contains("aborted"),
            "pgbench failed: {}\n{said}",
            output.status
        );
        Ok(())
    }

    pub(crate) async fn remove(self) -> Result<()> {
        self.pool.close().await;
        execute(&self.server, &format!("drop database {} with (force)", self.name)).await
    }
}

/// The relation of every scene.
pub(crate) const DOCUMENTS: RelationId = RelationId(0);

/// A row whose flag was found.
pub(crate) fn candidate(id: String) -> Candidate {
    Candidate {
        relation: DOCUMENTS,
        key: Key::from_postgres([id]),
        position: None,
        cause: Cause::Sweep,
        found: Found::Flagged,
        removed: None,
    }
}

/// What was claimed, with every copy deleted.
pub(crate) fn settled(claimed: Claimed) -> Settled {
    let deleted = || Outcome::new(Verdict::Deleted, "deleted").settled_now();
    let outcomes = claimed.targets.iter().map(|_| deleted()).collect();
    Settled { claimed: Arc::new(claimed), outcomes }
}
