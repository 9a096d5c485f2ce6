//! Ten million flags in their grace: what they cost a process that waits for them.
//!
//! The sweep and the ledger are the real ones; the store is null. Two scenes: flags that only the table
//! remembers, and (`--hidden`) flags whose recoverable copies are hidden, with a ledger row each.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgPool};
use tombstream_connectors::postgres::{
    self, LedgerConfig, LedgerStore, PgLedger, Sweep, SweepConfig,
};
use tombstream_dataflow::{Config, Pipeline};
use tombstream_model::{Records, Relation, Source as _};

use crate::cpu::memory;
use crate::null::store;
use crate::server::{self, execute};
use crate::slot;

#[derive(Args)]
pub(crate) struct Options {
    /// How many rows are flagged and wait
    #[arg(long, default_value_t = 10_000_000)]
    rows: u64,
    /// Their recoverable copies are hidden: each has a row in the ledger
    #[arg(long)]
    hidden: bool,
    /// How long the pipeline runs beside them, in seconds, before one is due
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// A database that `--keep` left, in place of a new one; its rows wait already
    #[arg(long, value_name = "URL")]
    on: Option<String>,
    /// Leave the database, and print its url
    #[arg(long)]
    keep: bool,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

const GRACE: Duration = Duration::from_secs(30 * 86_400);

pub(crate) async fn run(options: Options) -> Result<()> {
    let url = server::postgres_url()?;
    if let Some(url) = &options.on {
        return scene(&options, url).await;
    }
    let server = postgres::connect(&url, 2, true, "bench").await?;
    let name = server::new_name("bench_");
    execute(&server, &format!("create database {name}")).await?;
    let at: PgConnectOptions = url.parse::<PgConnectOptions>()?.database(&name);
    let url = at.to_url_lossy().to_string();
    let done = scene(&options, &url).await;
    if options.keep {
        eprintln!("kept: {url}");
    } else {
        execute(&server, &format!("drop database {name} with (force)")).await?;
    }
    done
}

fn relation(hidden: bool) -> Result<Relation> {
    let mut relation = Relation { grace: GRACE, ..slot::relation()? };
    if hidden {
        relation.hide = Some(Duration::ZERO);
        relation.targets[0].is_hidden_first = true;
    }
    Ok(relation)
}

fn sweep(pool: &PgPool, relation: &Relation, rate_max: u32) -> Sweep {
    let config = SweepConfig {
        interval: Duration::from_secs(1),
        page_max: 1_000,
        after: Duration::ZERO,
        rate_max,
        prepared_statements: true,
    };
    Sweep::new(pool.clone(), [relation.clone()].into(), config)
}

/// Without its triggers, as rows that have been flagged for long. One transaction: nobody sees the table
/// without its guard, which would take every flag's time for a lie.
pub(crate) async fn behind_the_guard(pool: &PgPool, sql: &str) -> Result<()> {
    let all = format!(
        "begin; alter table documents disable trigger user; {sql}; \
         do $$ declare name text; begin \
             for name in select tgname from pg_trigger \
                 where tgrelid = 'documents'::regclass and not tgisinternal loop \
                 execute format('alter table documents enable always trigger %I', name); \
             end loop; \
         end $$; commit"
    );
    execute(pool, &all).await
}

fn megabytes(bytes: Option<u64>) -> Option<f64> {
    bytes.map(|bytes| bytes as f64 / 1e6)
}

async fn fill(options: &Options, pool: &PgPool, relation: &Relation) -> Result<()> {
    postgres::migrate(pool).await?;
    execute(
        pool,
        "create table documents (id uuid primary key default gen_random_uuid(), number integer, \
         name text not null, deleted_at timestamptz)",
    )
    .await?;
    postgres::install_relation(pool, relation).await?;
    let begun = Instant::now();
    let rows = options.rows;
    behind_the_guard(
        pool,
        &format!(
            "insert into documents (number, name, deleted_at) \
             select n, 'document ' || n, now() - random() * interval '29 days' \
             from generate_series(1, {rows}) n"
        ),
    )
    .await?;
    if options.hidden {
        execute(
            pool,
            "insert into tombstream.deletion (relation, key, state, flag, targets, first_seen, hidden_at, \
                 lease_token, attempts) \
             select 'documents', array[id::text], 'hidden', deleted_at::text, \
                 jsonb_build_array(jsonb_build_object('store', 'null', 'address', \
                     jsonb_build_object('object', jsonb_build_object('bucket', 'b', 'key', id)), \
                     'outcome', jsonb_build_object('verdict', 'deleted', 'said', '', 'verified', 'trust'))), \
                 deleted_at, deleted_at, 1, 1 from documents",
        )
        .await?;
    }
    execute(pool, "vacuum analyze documents").await?;
    execute(pool, "vacuum analyze tombstream.deletion").await?;
    eprintln!("{rows} rows wait, made in {:.0} s", begun.elapsed().as_secs_f64());
    Ok(())
}

async fn scene(options: &Options, url: &str) -> Result<()> {
    let pool = postgres::connect(url, 8, true, "bench").await?;
    let relation = relation(options.hidden)?;
    let rows = options.rows;
    if options.on.is_none() {
        fill(options, &pool, &relation).await?;
    }
    let before = memory("VmRSS:");
    let ledger = PgLedger::new(
        pool.clone(),
        [relation.clone()].into(),
        LedgerConfig {
            owner: "bench".to_owned(),
            lease: Duration::from_secs(60),
            stores: vec![LedgerStore { name: "null".into(), absent_share_max: 1.0 }],
            owed_wait_min: Duration::from_secs(5),
            owed_wait_max: Duration::from_secs(600),
            prepared_statements: true,
        },
    );
    let pipeline = Pipeline {
        config: Config::default(),
        relations: [relation.clone()].into(),
        ledger: Arc::new(ledger),
        stores: vec![store()],
        sources: vec![Box::new(sweep(&pool, &relation, 20_000))],
    };
    let running = pipeline.start(tokio::runtime::Handle::current())?;
    tokio::time::sleep(Duration::from_secs(options.idle)).await;
    let waited = memory("VmRSS:");

    // One is due.
    behind_the_guard(
        &pool,
        &format!(
            "update documents set deleted_at = now() - interval '31 days' where id = \
                 (select id from documents where number = {})",
            rows / 2
        ),
    )
    .await?;
    if options.hidden {
        execute(
            &pool,
            &format!(
                "update tombstream.deletion set first_seen = now() - interval '31 days' where key = \
                     (select array[id::text] from documents where number = {})",
                rows / 2
            ),
        )
        .await?;
    }
    let begun = Instant::now();
    let to_first = loop {
        let receipts: i64 =
            sqlx::query_scalar("select count(*) from tombstream.receipt").fetch_one(&pool).await?;
        if receipts == 1 {
            break begun.elapsed();
        }
        if begun.elapsed() > Duration::from_secs(300) {
            bail!("the due row was not finalized within 300 s");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    running.stop(Duration::from_secs(5)).await?;

    // Pages of due rows, one after the other.
    behind_the_guard(
        &pool,
        "update documents set deleted_at = now() - interval '31 days' where number <= 20000",
    )
    .await?;
    if options.hidden {
        execute(
            &pool,
            "update tombstream.deletion set first_seen = now() - interval '31 days' where key in \
                 (select array[id::text] from documents where number <= 20000) and state = 'hidden'",
        )
        .await?;
    }
    let mut scan = sweep(&pool, &relation, u32::MAX);
    let mut pages = Vec::new();
    while pages.len() < 20 {
        let begun = Instant::now();
        if let Records::Candidates(found) = scan.next().await?.records
            && found.len() == 1_000
        {
            pages.push(begun.elapsed().as_secs_f64() * 1_000.0);
        }
    }
    pages.sort_by(f64::total_cmp);
    let result = json!({
        "rows": rows,
        "hidden": options.hidden,
        "memory_before_mb": megabytes(before),
        "memory_after_mb": megabytes(waited),
        "idle_s": options.idle,
        "first_due_to_receipt_ms": to_first.as_millis() as u64,
        "page_of_1000_ms_p50": pages.get(pages.len() / 2),
        "page_of_1000_ms_max": pages.last(),
    });
    if options.json {
        println!("{result}");
    } else {
        println!("{result:#}");
    }
    Ok(())
}
