//! A mass mistake: every row flagged at once, behind a breaker at one per cent, with two processes running.
//!
//! The binary, Postgres and its log are real; the copies are empty files in a folder. Judged by listing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::Args;
use serde_json::json;
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgPool};
use tombstream_connectors::postgres;

use crate::server::{self, execute};

#[derive(Args)]
pub(crate) struct Options {
    /// How many rows there are, all of them flagged by mistake
    #[arg(long, default_value_t = 1_000_000)]
    rows: u64,
    /// How many processes run
    #[arg(long, default_value_t = 2)]
    processes: u16,
    /// The binary
    #[arg(long, default_value = "target/release/tombstream")]
    binary: PathBuf,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// A process that is killed when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("a process could not be ended: {error}");
        }
    }
}

struct Scene<'a> {
    options: &'a Options,
    folder: &'a Path,
    url: String,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let url = server::postgres_url()?;
    ensure!(options.binary.exists(), "{} is not there: build it", options.binary.display());
    let server = postgres::connect(&url, 2, true, "bench").await?;
    let name = server::new_name("bench_");
    execute(&server, &format!("create database {name}")).await?;
    let folder = std::env::temp_dir().join(&name);
    std::fs::create_dir_all(folder.join("copies"))?;
    let at: PgConnectOptions = url.parse::<PgConnectOptions>()?.database(&name);
    let scene = Scene { options: &options, folder: &folder, url: at.to_url_lossy().to_string() };
    let done = scene.play(&name).await;
    let slots = format!(
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots \
         where database = '{name}' and not active"
    );
    // A session that just ended holds its slot for a moment.
    tokio::time::sleep(Duration::from_millis(500)).await;
    execute(&server, &slots).await?;
    execute(&server, &format!("drop database {name} with (force)")).await?;
    std::fs::remove_dir_all(&folder)?;
    done
}

impl Scene<'_> {
    fn config(&self, name: &str, process: u16) -> Result<PathBuf> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let file = self.folder.join(format!("{process}.toml"));
        let text = format!(
            r#"[database]
url = {{ env = "DATABASE_URL" }}
[pipeline]
listen = "127.0.0.1:{port}"
[source.postgres]
slot = "{name}"
publication = "{name}"
[source.sweep]
interval = "1s"
after = "1s"
[store.copies]
kind = "object_store"
url = "file://{folder}/copies"
[relation.documents]
table = "public.documents"
key = [{{ column = "id", type = "bigint" }}]
flag = {{ column = "deleted_at", type = "timestamptz" }}
key_reuse = "forbidden"
breaker = {{ share_max = 0.01 }}
targets = [{{ store = "copies", key = "{{shard}}/{{id}}" }}]
"#,
            folder = self.folder.display(),
        );
        std::fs::write(&file, text)?;
        Ok(file)
    }

    fn command(&self, config: &Path) -> Command {
        let mut command = Command::new(&self.options.binary);
        command.arg("--config").arg(config).env("DATABASE_URL", &self.url).stdin(Stdio::null());
        command
    }

    fn finish(&self, config: &Path, arguments: &[&str]) -> Result<()> {
        let output = self.command(config).args(arguments).output()?;
        ensure!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    fn copies(&self) -> Result<BTreeSet<u64>> {
        let mut copies = BTreeSet::new();
        for shard in std::fs::read_dir(self.folder.join("copies"))? {
            for copy in std::fs::read_dir(shard?.path())? {
                copies.insert(copy?.file_name().to_string_lossy().parse()?);
            }
        }
        Ok(copies)
    }

    async fn play(&self, name: &str) -> Result<()> {
        let rows = self.options.rows;
        let pool = postgres::connect(&self.url, 4, true, "bench").await?;
        execute(
            &pool,
            &format!(
                "create table documents (id bigint primary key, shard text not null, deleted_at timestamptz); \
                 insert into documents select n, 's' || n % 1000 from generate_series(1, {rows}) n; \
                 analyze documents"
            ),
        )
        .await?;
        for id in 1..=rows {
            let shard = self.folder.join(format!("copies/s{}", id % 1_000));
            if id <= 1_000 {
                std::fs::create_dir(&shard)?;
            }
            std::fs::File::create(shard.join(id.to_string()))?;
        }
        let config = self.config(name, 0)?;
        self.finish(&config, &["migrate"])?;
        self.finish(&config, &["check", "--fix"])?;
        let mut running = Vec::new();
        for process in 1..=self.options.processes {
            let log = std::fs::File::create(self.folder.join(format!("{process}.log")))?;
            let config = self.config(name, process)?;
            running.push(Running(self.command(&config).arg("run").stderr(log).spawn()?));
        }
        tokio::time::sleep(Duration::from_secs(3)).await;

        let begun = Instant::now();
        execute(&pool, "update documents set deleted_at = now()").await?;
        let flagged_s = begun.elapsed().as_secs_f64();
        let kept_back = self.until_all_wait(&pool, &mut running).await?;
        let waited_s = begun.elapsed().as_secs_f64();
        let gone = rows - self.copies()?.len() as u64;

        let begun = Instant::now();
        self.finish(&config, &["breaker", "reject", "documents", "--all", "--actor", "bench"])?;
        let rejected_s = begun.elapsed().as_secs_f64();
        // Whatever they would still do, they do now.
        tokio::time::sleep(Duration::from_secs(5)).await;
        drop(running);
        let alive: Vec<i64> =
            sqlx::query_scalar("select id from documents where deleted_at is null")
                .fetch_all(&pool)
                .await?;
        let alive: BTreeSet<u64> = alive.into_iter().map(|id| id as u64).collect();
        let copies = self.copies()?;
        let tripped: i64 = sqlx::query_scalar(
            "select count(*) from tombstream.breaker where tripped_at is not null",
        )
        .fetch_one(&pool)
        .await?;
        pool.close().await;
        let result = json!({
            "rows": rows,
            "processes": self.options.processes,
            "limit": rows / 100,
            "destroyed": gone,
            "kept_back": kept_back,
            "restored": alive.len(),
            "alive_without_copy": alive.difference(&copies).count(),
            "copy_without_row": copies.difference(&alive).count(),
            "flagged_s": flagged_s,
            "all_wait_after_s": waited_s,
            "rejected_s": rejected_s,
            "still_tripped": tripped > 0,
        });
        if self.options.json {
            println!("{result}");
        } else {
            println!("{result:#}");
        }
        ensure!(gone <= rows / 100, "more was destroyed than the breaker allows");
        ensure!(
            alive == copies && alive.len() as u64 == rows - gone,
            "not all of the rest is intact"
        );
        Ok(())
    }

    /// Until every row is gone or kept back.
    async fn until_all_wait(&self, pool: &PgPool, running: &mut [Running]) -> Result<i64> {
        let begun = Instant::now();
        loop {
            for process in &mut *running {
                if let Some(status) = process.0.try_wait()? {
                    bail!("a process ended: {status}; its log is in {}", self.folder.display());
                }
            }
            let (kept_back, rows): (i64, i64) = sqlx::query_as(
                "select (select count(*) from tombstream.deletion where kept_back_at is not null), \
                     (select count(*) from documents)",
            )
            .fetch_one(pool)
            .await?;
            if kept_back == rows {
                return Ok(kept_back);
            }
            if begun.elapsed() > Duration::from_secs(1_800) {
                bail!("{kept_back} of {rows} rows wait after half an hour");
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}
