//! What chained receipts cost the finalizer, and how long sealing takes.
//!
//! Two databases side by side: the ledger as it is, with a sealer beside it, and one whose receipts take no
//! number and have no index over it. Rounds of finalizing alternate between the two. Then receipts written by SQL
//! are sealed, and their storage is looked at.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;
use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::{ConnectOptions as _, Row as _};
use tombstream_connectors::postgres::{
    self, LedgerConfig, LedgerStore, PgLedger, ReceiptExport, Sealer, Turn,
};
use tombstream_model::{Candidate, End, Ending, Hash, Ledger as _, export_header};

use crate::scene::{DOCUMENTS, candidate, settled};
use crate::server::{self, execute};
use crate::slot;

#[derive(Args)]
pub(crate) struct Options {
    /// How many rounds each of the two databases has
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// How many rows a round finalizes, in batches of 500, four at a time
    #[arg(long, default_value_t = 10_000)]
    rows: usize,
    /// How many receipts, written by SQL, are sealed afterwards
    #[arg(long, default_value_t = 0)]
    sealed: u64,
    /// Write the export of those to this file
    #[arg(long, value_name = "FILE")]
    export: Option<std::path::PathBuf>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// What the chain adds to a receipt, taken away.
const UNCHAINED: &str = "drop index tombstream.receipt_entry_number; \
    alter table tombstream.receipt alter column entry drop not null, alter column entry drop default";

/// A database of its own.
struct Scene {
    pool: PgPool,
    ledger: PgLedger,
    name: String,
}

impl Scene {
    async fn new(server: &PgPool, url: &str) -> Result<Self> {
        let name = server::new_name("bench_");
        execute(server, &format!("create database {name}")).await?;
        let at: PgConnectOptions = url.parse::<PgConnectOptions>()?.database(&name);
        let pool = postgres::connect(at.to_url_lossy().as_str(), 8, true, "bench").await?;
        let relation = slot::relation()?;
        postgres::migrate(&pool).await?;
        execute(
            &pool,
            "create table documents (id uuid primary key default gen_random_uuid(), number integer, \
             name text not null, deleted_at timestamptz)",
        )
        .await?;
        postgres::install_relation(&pool, &relation).await?;
        let config = LedgerConfig {
            owner: "bench".to_owned(),
            lease: Duration::from_secs(600),
            stores: vec![LedgerStore { name: "null".into(), absent_share_max: 1.0 }],
            owed_wait_min: Duration::from_secs(5),
            owed_wait_max: Duration::from_secs(600),
            prepared_statements: true,
        };
        let ledger = PgLedger::new(pool.clone(), [relation].into(), config);
        Ok(Self { pool, ledger, name })
    }

    /// Finalizes so many rows, and gives how many in a second, and the bytes of log that each took.
    async fn round(&self, rows: usize) -> Result<(f64, f64)> {
        let ids: Vec<String> = sqlx::query_scalar(
            "insert into documents (name, deleted_at) select 'n', now() from generate_series(1, $1) \
             returning id::text",
        )
        .bind(i32::try_from(rows)?)
        .fetch_all(&self.pool)
        .await?;
        let candidates: Vec<Candidate> = ids.into_iter().map(candidate).collect();
        let mut batches = Vec::new();
        for part in candidates.chunks(500) {
            let claimed = self.ledger.claim(DOCUMENTS, part).await?;
            ensure!(claimed.len() == part.len(), "not all were claimed");
            batches.push(claimed.into_iter().map(settled).collect::<Vec<_>>());
        }
        execute(&self.pool, "checkpoint").await?;
        let log = "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8";
        let log = async || sqlx::query_scalar::<_, f64>(log).fetch_one(&self.pool).await;
        let (before, begun) = (log().await?, Instant::now());
        let all = async |share: usize| -> Result<()> {
            for batch in batches.iter().skip(share).step_by(4) {
                let endings = self.ledger.finalize(DOCUMENTS, batch).await?;
                ensure!(endings.iter().all(|it| *it == Ending::Finalized), "not all went");
            }
            Ok(())
        };
        tokio::try_join!(all(0), all(1), all(2), all(3))?;
        let rate = rows as f64 / begun.elapsed().as_secs_f64();
        Ok((rate, (log().await? - before) / rows as f64))
    }
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let url = server::postgres_url()?;
    let server = postgres::connect(&url, 2, true, "bench").await?;
    let (chained, plain) = (Scene::new(&server, &url).await?, Scene::new(&server, &url).await?);
    let done = measure(&options, &chained, &plain).await;
    for scene in [chained, plain] {
        scene.pool.close().await;
        execute(&server, &format!("drop database {} with (force)", scene.name)).await?;
    }
    done
}

async fn measure(options: &Options, chained: &Scene, plain: &Scene) -> Result<()> {
    execute(&plain.pool, UNCHAINED).await?;
    let sealer = tokio::spawn(beside(Sealer::new(chained.pool.clone())));
    let (mut with, mut without) = (Vec::new(), Vec::new());
    // The first of each fills caches, and is not counted.
    chained.round(options.rows).await?;
    plain.round(options.rows).await?;
    for round in 0..options.rounds {
        // Whoever is second meets what the first has left to the disk: they take turns in that, too.
        if round % 2 == 0 {
            with.push(chained.round(options.rows).await?);
            without.push(plain.round(options.rows).await?);
        } else {
            without.push(plain.round(options.rows).await?);
            with.push(chained.round(options.rows).await?);
        }
    }
    sealer.abort();
    let mut ratios: Vec<f64> =
        with.iter().zip(&without).map(|(with, out)| with.0 / out.0).collect();
    let (mut with, mut with_log): (Vec<f64>, Vec<f64>) = with.into_iter().unzip();
    let (mut without, mut without_log): (Vec<f64>, Vec<f64>) = without.into_iter().unzip();
    let sealed = match options.sealed {
        0 => None,
        count => Some(seal(options, &chained.pool, count).await?),
    };
    let result = json!({
        "rounds": options.rounds,
        "rows_a_round": options.rows,
        "finalized_per_s_chained": spread(&mut with),
        "finalized_per_s_unchained": spread(&mut without),
        "chained_over_unchained": spread(&mut ratios),
        "log_bytes_a_row_chained": spread(&mut with_log),
        "log_bytes_a_row_unchained": spread(&mut without_log),
        "sealing": sealed,
    });
    if options.json {
        println!("{result}");
    } else {
        println!("{}", serde_json::to_string_pretty(&result)?);
    }
    Ok(())
}

/// As `run` does.
pub(crate) async fn beside(mut sealer: Sealer) {
    loop {
        match sealer.turn().await {
            Ok(Turn::Sealed(entries)) if entries >= Sealer::BLOCK_MAX => {}
            _ => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

fn spread(values: &mut [f64]) -> serde_json::Value {
    values.sort_by(f64::total_cmp);
    let rounded = |at: usize| values.get(at).map(|value| (value * 1e3).round() / 1e3);
    json!({
        "median": rounded(values.len() / 2),
        "least": rounded(0),
        "most": rounded(values.len().saturating_sub(1)),
    })
}

async fn seal(options: &Options, pool: &PgPool, count: u64) -> Result<serde_json::Value> {
    let mut sealer = Sealer::new(pool.clone());
    sealer.all(Duration::from_secs(30)).await?;
    execute(
        pool,
        &format!(
            "insert into tombstream.receipt (deletion_id, relation, key, flag, flip_lsn, claimed_at, \
                 finalized_at, row_gone, targets, locked_lsn, removed_lsn) \
             select 100000000 + n, 'documents', array[gen_random_uuid()::text], now()::text, \
                 pg_current_wal_lsn(), now(), now(), false, \
                 jsonb_build_array(jsonb_build_object('store', 'originals', 'address', \
                     jsonb_build_object('kind', 'object', 'bucket', 'originals', 'key', n || '/original'), \
                     'outcome', jsonb_build_object('verdict', 'deleted', 'said', 'deleted', \
                         'verified', 'read_back', 'at', '2026-03-01T10:00:00.123456789Z')), \
                     jsonb_build_object('store', 'search', 'address', \
                     jsonb_build_object('kind', 'document', 'index', 'documents', 'id', n::text, 'routing', null), \
                     'outcome', jsonb_build_object('verdict', 'deleted', 'said', 'deleted', \
                         'verified', 'read_back', 'at', '2026-03-01T10:00:00.123456789Z'))), \
                 pg_current_wal_lsn(), pg_current_wal_lsn() from generate_series(1, {count}) n"
        ),
    )
    .await?;
    let begun = Instant::now();
    let sealed = sealer.all(Duration::from_secs(30)).await?;
    let seal_s = begun.elapsed().as_secs_f64();
    ensure!(sealed == i64::try_from(count)?, "{sealed} were sealed");
    let sizes = sqlx::query(
        "select pg_relation_size('tombstream.receipt'), pg_indexes_size('tombstream.receipt'), \
             pg_relation_size('tombstream.receipt_entry_number'), \
             pg_total_relation_size('tombstream.receipt_block'), (select count(*) from tombstream.receipt), \
             (select count(*) from tombstream.receipt_block)",
    )
    .fetch_one(pool)
    .await?;
    let size = |n: usize| sizes.try_get::<i64, _>(n);
    let mut export_s = None;
    if let Some(path) = &options.export {
        let begun = Instant::now();
        export(pool, path).await?;
        export_s = Some(begun.elapsed().as_secs_f64());
    }
    Ok(json!({
        "receipts": count,
        "seal_s": seal_s,
        "export_s": export_s,
        "receipt_bytes": size(0)?, "receipt_index_bytes": size(1)?, "entry_index_bytes": size(2)?,
        "block_bytes": size(3)?, "all_receipts": size(4)?, "blocks": size(5)?,
    }))
}

async fn export(pool: &PgPool, path: &std::path::Path) -> Result<()> {
    let mut lines = std::io::BufWriter::new(std::fs::File::create(path)?);
    writeln!(lines, "{}", export_header())?;
    let mut export = ReceiptExport::begin(pool).await?;
    let (mut blocks, mut entries, mut head) = (0, 0, Hash::ZERO);
    while let Some((block, of)) = export.block().await? {
        writeln!(lines, "{}", block.text())?;
        for entry in &of {
            writeln!(lines, "{}", entry.text())?;
        }
        (blocks, entries, head) = (blocks + 1, entries + i64::try_from(of.len())?, block.hash);
    }
    writeln!(lines, "{}", End::new(blocks, entries, head, export.unsealed().await?).text())?;
    Ok(lines.flush()?)
}
