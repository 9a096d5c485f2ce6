//! A backfill of a million rows that are flagged already, beside `psql` copying the same rows to /dev/null.
//!
//! Both read the same table in turns. With `--ledger` the ledger is the real one and only the store is null: what a
//! deletion costs in Postgres, which the copy has nothing of. It runs once, since it removes the rows.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::json;
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgPool};
use tombstream_connectors::postgres::{
    self, Backfill, BackfillConfig, BackfillSpec, Count, LedgerConfig, LedgerStore, PgLedger,
    TalliedLedger, Tally,
};
use tombstream_dataflow::{Config, Pipeline};
use tombstream_model::{Ledger, Relation, RelationId};

use crate::cpu::memory;
use crate::figures::median;
use crate::null::{NullLedger, store};
use crate::server::{self, execute};
use crate::slot;
use crate::waiting::behind_the_guard;

#[derive(Args)]
pub(crate) struct Options {
    /// How many rows are flagged
    #[arg(long, default_value_t = 1_000_000)]
    rows: u64,
    /// How often both sides read them
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Once more with the real ledger, which removes them
    #[arg(long)]
    ledger: bool,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

const LEASE: Duration = Duration::from_secs(60);

pub(crate) async fn run(options: Options) -> Result<()> {
    let url = server::postgres_url()?;
    let server = postgres::connect(&url, 2, true, "bench").await?;
    let name = server::new_name("bench_");
    execute(&server, &format!("create database {name}")).await?;
    let at: PgConnectOptions = url.parse::<PgConnectOptions>()?.database(&name);
    let done = scene(&options, &at).await;
    execute(&server, &format!("drop database {name} with (force)")).await?;
    done
}

async fn fill(pool: &PgPool, relation: &Relation, rows: u64) -> Result<()> {
    postgres::migrate(pool).await?;
    execute(
        pool,
        "create table documents (id uuid primary key default gen_random_uuid(), number integer, \
         name text not null, deleted_at timestamptz)",
    )
    .await?;
    postgres::install_relation(pool, relation).await?;
    behind_the_guard(
        pool,
        &format!(
            "insert into documents (number, name, deleted_at) \
             select n, 'document ' || n, now() - random() * interval '300 days' \
             from generate_series(1, {rows}) n"
        ),
    )
    .await?;
    execute(pool, "vacuum analyze documents").await
}

/// What is measured of one run.
struct Ran {
    seconds: f64,
    /// Until the ranges were planned: one pass over the flag's index.
    planned: f64,
}

async fn backfill<L: Ledger>(
    pool: &PgPool,
    relation: &Relation,
    job: &str,
    ledger: L,
    tally: &Arc<Tally>,
) -> Result<Ran> {
    let spec =
        BackfillSpec { relation: relation.name.to_string(), from: None, to: None, filter: None };
    let begun = Instant::now();
    let source = Backfill::open(
        pool.clone(),
        (RelationId(0), relation),
        (job, &spec),
        "bench",
        BackfillConfig::new(LEASE),
        Arc::clone(tally),
    )
    .await?;
    let planned = begun.elapsed().as_secs_f64();
    let row = source.job();
    let pipeline = Pipeline {
        config: Config::default(),
        relations: [relation.clone()].into(),
        ledger: Arc::new(ledger),
        stores: vec![store()],
        sources: vec![Box::new(source)],
    };
    let running = pipeline.start(tokio::runtime::Handle::current())?;
    running.finished().await?;
    let seconds = begun.elapsed().as_secs_f64();
    running.stop(Duration::from_secs(10)).await?;
    row.end(&tally.counts(), None).await?;
    Ok(Ran { seconds, planned })
}

/// The server's own client, writing to /dev/null.
async fn copy(pool: &PgPool, at: &PgConnectOptions) -> Result<f64> {
    let mut program = server::program(pool, at, "psql").await?;
    let sql = "copy (select id, deleted_at from documents where deleted_at is not null) to stdout";
    let begun = Instant::now();
    let status = program
        .args(["-X", "-q", "-c", sql])
        .stdout(Stdio::null())
        .status()
        .await
        .context("can't run psql")?;
    if !status.success() {
        bail!("psql: {status}");
    }
    Ok(begun.elapsed().as_secs_f64())
}

async fn scene(options: &Options, at: &PgConnectOptions) -> Result<()> {
    let pool = postgres::connect(at.to_url_lossy().as_str(), 12, true, "bench").await?;
    let relation = slot::relation()?;
    fill(&pool, &relation, options.rows).await?;
    let (mut copies, mut fills, mut plans) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.rounds {
        copies.push(copy(&pool, at).await?);
        let tally = Arc::new(Tally::default());
        let job = format!("null {round}");
        let ran = backfill(&pool, &relation, &job, NullLedger::default(), &tally).await?;
        if tally.get(Count::Matched) != options.rows {
            bail!("{} of {} rows were brought", tally.get(Count::Matched), options.rows);
        }
        fills.push(ran.seconds);
        plans.push(ran.planned);
    }
    let rows = options.rows as f64;
    let (copied, filled) = (median(&copies), median(&fills));
    let mut result = json!({
        "rows": options.rows,
        "copy_seconds": copies,
        "backfill_seconds": fills,
        "plan_seconds": plans,
        "backfill_rows_per_second": (rows / filled).round(),
        "copy_rows_per_second": (rows / copied).round(),
        "ratio": filled / copied,
    });
    if options.ledger {
        let tally = Arc::new(Tally::default());
        let config = LedgerConfig {
            owner: postgres::job_owner("bench", "real"),
            lease: LEASE,
            stores: vec![LedgerStore { name: "null".into(), absent_share_max: 1.0 }],
            owed_wait_min: Duration::from_secs(5),
            owed_wait_max: Duration::from_secs(600),
            prepared_statements: true,
        };
        let ledger = PgLedger::new(pool.clone(), [relation.clone()].into(), config);
        let ledger =
            TalliedLedger::new(ledger, std::slice::from_ref(&relation), Arc::clone(&tally));
        let ran = backfill(&pool, &relation, "real", ledger, &tally).await?;
        let left: i64 =
            sqlx::query_scalar("select count(*) from documents").fetch_one(&pool).await?;
        result["ledger_rows_per_second"] = (rows / ran.seconds).round().into();
        result["ledger_rows_left"] = left.into();
        result["ledger_counts"] = json!(tally.counts());
    }
    result["memory_max_mb"] = json!(memory("VmHWM:").map(|bytes| bytes as f64 / 1e6));
    if options.json {
        println!("{result}");
    } else {
        println!("{result:#}");
    }
    Ok(())
}
