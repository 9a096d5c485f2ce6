//! The source that reads the log, with everything behind it null, beside `pg_recvlogical`.
//!
//! Every round has two slots that were made before the flags were written, so both sides read the very
//! same log. They take turns in beginning.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::json;
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgPool};
use tokio::runtime::Handle;
use tombstream_connectors::Secret;
use tombstream_connectors::postgres::{self, PostgresSource, ReplicationConfig, Scope};
use tombstream_dataflow::{Config, Pipeline};
use tombstream_model::{
    AddressTemplate, Flag, FlagKind, KeyColumn, KeyKind, OnHardDelete, Relation, StoreId,
    TargetTemplate, Template,
};

use crate::cpu::{Drained, children_seconds, memory, processor_seconds};
use crate::figures::{Ratio, median, processors, walls};
use crate::null::{Counting, NullLedger, store};
use crate::server::{self, execute};

#[derive(Args)]
pub(crate) struct Options {
    /// How many rows are flagged
    #[arg(long, default_value_t = 1_000_000)]
    rows: u32,
    /// How many of them in one transaction [default: all]
    #[arg(long)]
    transaction: Option<u32>,
    /// How often both sides drain
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Timely workers
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let url = server::postgres_url()?;
    let server = postgres::connect(&url, 2, true, "bench").await?;
    let name = server::new_name("bench_");
    execute(&server, &format!("create database {name}")).await?;
    let done = scene(&options, &url, &name).await;
    let slots = format!(
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots \
         where database = '{name}' and not active"
    );
    // A session that just ended holds its slot for a moment.
    tokio::time::sleep(Duration::from_millis(500)).await;
    execute(&server, &slots).await?;
    execute(&server, &format!("drop database {name} with (force)")).await?;
    done
}

async fn scene(options: &Options, server_url: &str, name: &str) -> Result<()> {
    let at: PgConnectOptions = server_url.parse::<PgConnectOptions>()?.database(name);
    let url = at.to_url_lossy().to_string();
    let pool = postgres::connect(&url, 4, true, "bench").await?;
    postgres::migrate(&pool).await?;
    execute(
        &pool,
        "create table documents (id uuid primary key default gen_random_uuid(), number integer, \
         name text not null, deleted_at timestamptz); create publication bench for table documents",
    )
    .await?;
    let rows = options.rows;
    execute(
        &pool,
        &format!(
            "insert into documents (number, name) select n, 'document ' || n \
             from generate_series(1, {rows}) n; analyze documents; \
             create index on documents (number)"
        ),
    )
    .await?;
    for round in 0..options.rounds {
        for side in ["ours", "theirs"] {
            let slot = format!("{name}_{side}_{round}");
            let make = format!("select pg_create_logical_replication_slot('{slot}', 'pgoutput')");
            execute(&pool, &make).await?;
        }
    }
    let each = options.transaction.unwrap_or(rows).max(1);
    let mut first = 1;
    while first <= rows {
        let last = first.saturating_add(each - 1).min(rows);
        let flag = format!(
            "update documents set deleted_at = now() where number between {first} and {last}"
        );
        execute(&pool, &flag).await?;
        first = last + 1;
    }
    execute(&pool, "select pg_switch_wal(); checkpoint").await?;
    let end: String =
        sqlx::query_scalar("select pg_current_wal_lsn()::text").fetch_one(&pool).await?;
    eprintln!("{rows} flags written, {each} a transaction; the log ends at {end}");

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        let our_slot = format!("{name}_ours_{round}");
        let their_slot = format!("{name}_theirs_{round}");
        for side in [round % 2, (round + 1) % 2] {
            if side == 0 {
                ours.push(tombstream(options, &pool, &url, &our_slot).await?);
            } else {
                theirs.push(recvlogical(&pool, &at, &their_slot, &end).await?);
            }
        }
        let (one, other) = (&ours[ours.len() - 1], &theirs[theirs.len() - 1]);
        eprintln!(
            "round {round}: tombstream {:.2} s wall, {:.2} s processor; pg_recvlogical {:.2} s wall, \
             {:.2} s processor",
            one.wall, one.processor, other.wall, other.processor
        );
    }
    report(options, each, &ours, &theirs);
    Ok(())
}

fn report(options: &Options, each: u32, ours: &[Drained], theirs: &[Drained]) {
    let rows = f64::from(options.rows);
    let ratio = Ratio::of(&walls(theirs), &walls(ours));
    let (ours_s, theirs_s) = (median(&walls(ours)), median(&walls(theirs)));
    if options.json {
        let line = json!({
            "bench": "slot", "rows": options.rows, "transaction": each, "rounds": options.rounds,
            "workers": options.workers,
            "ours_events_per_s": (rows / ours_s).round(),
            "theirs_events_per_s": (rows / theirs_s).round(),
            "ratio": ratio,
            "ours_processor_s": median(&processors(ours)),
            "theirs_processor_s": median(&processors(theirs)),
            "peak_memory_bytes": memory("VmHWM:"),
        });
        println!("{line}");
    } else {
        println!(
            "tombstream {:.0} events/s, pg_recvlogical {:.0} events/s: ratio {ratio}; peak memory {} MB",
            rows / ours_s,
            rows / theirs_s,
            memory("VmHWM:").unwrap_or_default() / 1_000_000
        );
    }
}

/// From the start of the pipeline until every flag is finalized.
async fn tombstream(options: &Options, pool: &PgPool, url: &str, slot: &str) -> Result<Drained> {
    let relations: Arc<[Relation]> = Arc::from([relation()?]);
    let mut config = ReplicationConfig::new(Secret::new(url), slot, "bench");
    config.heartbeat = Duration::ZERO;
    let scope = Scope::Relations(Arc::clone(&relations));
    let source = PostgresSource::new(config, pool.clone(), scope, |_| {})?;
    let ledger = Arc::new(Counting::<NullLedger>::default());
    let pipeline = Pipeline {
        config: Config { workers: options.workers, ..Config::default() },
        relations,
        ledger: Arc::clone(&ledger),
        stores: vec![store()],
        sources: vec![Box::new(source)],
    };
    let (begun, before) = (Instant::now(), processor_seconds("self"));
    let running = pipeline.start(Handle::current())?;
    tokio::select! {
        () = ledger.until(u64::from(options.rows)) => {}
        broken = running.broken() => return Err(broken.into()),
    }
    let drained = Drained {
        wall: begun.elapsed().as_secs_f64(),
        processor: processor_seconds("self") - before,
    };
    running.stop(Duration::from_secs(10)).await?;
    Ok(drained)
}

/// The server's own client, writing to /dev/null.
async fn recvlogical(
    pool: &PgPool,
    at: &PgConnectOptions,
    slot: &str,
    end: &str,
) -> Result<Drained> {
    let mut program = server::program(pool, at, "pg_recvlogical").await?;
    let begun = Instant::now();
    let before = children_seconds();
    let status = program
        .args(["--start", "--no-loop", "--file", "/dev/null", "--slot", slot, "--endpos", end])
        .args(["--option", "proto_version=1", "--option", "publication_names=bench"])
        // The one setting that it does not take from the environment.
        .args(["--dbname", at.get_database().unwrap_or_default()])
        .status()
        .await
        .context("can't run pg_recvlogical")?;
    if !status.success() {
        bail!("pg_recvlogical: {status}");
    }
    let wall = begun.elapsed().as_secs_f64();
    Ok(Drained { wall, processor: children_seconds() - before })
}

pub(crate) fn relation() -> Result<Relation> {
    let key = Template::parse("{id}").map_err(|error| anyhow::anyhow!("{error}"))?;
    let address = AddressTemplate::Object { bucket: "null".into(), key };
    Ok(Relation {
        name: "documents".into(),
        schema: "public".to_owned(),
        table: "documents".to_owned(),
        key: vec![KeyColumn { name: "id".to_owned(), kind: KeyKind::Uuid }],
        flag: Flag { column: "deleted_at".to_owned(), kind: FlagKind::TimestampTz },
        targets: vec![TargetTemplate { store: StoreId(0), address, is_hidden_first: false }],
        grace: Duration::ZERO,
        hide: None,
        breaker: None,
        on_hard_delete: OnHardDelete::Ignore,
        key_reuse_forbidden: false,
        topics: Vec::new(),
        allow_cascade: Vec::new(),
    })
}
