//! Claims and finalizing transactions with their receipts, beside pgbench that flags and removes as many rows in
//! batches as large, without a ledger.
//!
//! Both tables are alike in columns and size; the ledger's has its triggers. One side's rows are flagged before,
//! since that is the application's part; pgbench's part is the flag and the removal.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;
use tombstream_connectors::postgres::{PgLedger, Sealer};
use tombstream_model::{Candidate, Ending, Ledger as _};

use crate::figures::{Ratio, median};
use crate::receipts::beside;
use crate::scene::{DOCUMENTS, Scene, candidate, settled};
use crate::server::execute;
use crate::slot::relation;

#[derive(Args)]
pub(crate) struct Options {
    /// How many rows each side removes in a round
    #[arg(long, default_value_t = 40_000)]
    rows: usize,
    /// Rows of a transaction
    #[arg(long, default_value_t = 500)]
    batch: usize,
    /// Connections
    #[arg(long, default_value_t = 4)]
    clients: usize,
    /// How often both sides take turns
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    ensure!(
        options.rows.is_multiple_of(options.batch * options.clients),
        "--rows must be so many batches for each client"
    );
    let relation = relation()?;
    let scene = Scene::new(&relation, "uuid").await?;
    let ledger = scene.ledger(&relation, &["null"]);
    let sealer = tokio::spawn(beside(Sealer::new(scene.pool.clone())));
    let done = measure(&options, &scene, &ledger).await;
    sealer.abort();
    scene.remove().await?;
    done
}

async fn measure(options: &Options, scene: &Scene, ledger: &PgLedger) -> Result<()> {
    execute(
        &scene.pool,
        "create table plain (like documents including all); alter table plain add number integer; \
         create index on plain (number)",
    )
    .await?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    // The first of each fills caches, and is not counted.
    ours_once(options, scene, ledger).await?;
    theirs_once(options, scene).await?;
    for round in 0..options.rounds {
        for side in [round % 2, (round + 1) % 2] {
            if side == 0 {
                ours.push(ours_once(options, scene, ledger).await?);
            } else {
                theirs.push(theirs_once(options, scene).await?);
            }
        }
        eprintln!("round {round}: {:.2} s, pgbench {:.2} s", ours[round], theirs[round]);
    }
    let ratio = Ratio::of(&theirs, &ours);
    let rate = |of: &[f64]| (options.rows as f64 / median(of)).round();
    if options.json {
        let line = json!({
            "bench": "ledger", "rows": options.rows, "batch": options.batch,
            "clients": options.clients, "rounds": options.rounds,
            "ours_rows_per_s": rate(&ours), "theirs_rows_per_s": rate(&theirs), "ratio": ratio,
        });
        println!("{line}");
    } else {
        println!(
            "claim and finalize {} rows/s, pgbench {} rows/s: {ratio}",
            rate(&ours),
            rate(&theirs)
        );
    }
    Ok(())
}

/// Claims and finalizes that many rows; gives the seconds.
async fn ours_once(options: &Options, scene: &Scene, ledger: &PgLedger) -> Result<f64> {
    let ids: Vec<String> = sqlx::query_scalar(
        "insert into documents (id, name, deleted_at) \
         select gen_random_uuid(), 'document ' || n, now() from generate_series(1, $1) n returning id::text",
    )
    .bind(i32::try_from(options.rows)?)
    .fetch_all(&scene.pool)
    .await?;
    execute(&scene.pool, "checkpoint").await?;
    let candidates: Vec<Candidate> = ids.into_iter().map(candidate).collect();
    let batches: Vec<_> = candidates.chunks(options.batch).collect();
    let begun = Instant::now();
    let share = async |client: usize| -> Result<()> {
        for batch in batches.iter().skip(client).step_by(options.clients) {
            let claimed = ledger.claim(DOCUMENTS, batch).await?;
            ensure!(claimed.len() == batch.len(), "not all were claimed");
            let gone: Vec<_> = claimed.into_iter().map(settled).collect();
            let endings = ledger.finalize(DOCUMENTS, &gone).await?;
            ensure!(endings.iter().all(|it| *it == Ending::Finalized), "not all went");
        }
        Ok(())
    };
    futures::future::try_join_all((0..options.clients).map(share)).await?;
    Ok(begun.elapsed().as_secs_f64())
}

async fn theirs_once(options: &Options, scene: &Scene) -> Result<f64> {
    let rows = options.rows;
    execute(
        &scene.pool,
        &format!(
            "insert into plain (id, name, number) \
             select gen_random_uuid(), 'document ' || n, n from generate_series(1, {rows}) n; checkpoint"
        ),
    )
    .await?;
    let times = rows / options.batch / options.clients;
    let batch = options.batch;
    let script = format!(
        "\\set first (:client_id * {times} + :n) * {batch} + 1\n\\set last :first + {batch} - 1\n\
         \\set n :n + 1\nbegin;\n\
         update plain set deleted_at = now() where number between :first and :last;\n\
         delete from plain where number between :first and :last;\nend;\n"
    );
    let begun = Instant::now();
    scene.pgbench(&script, options.clients, times).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let left: i64 = sqlx::query_scalar("select count(*) from plain").fetch_one(&scene.pool).await?;
    ensure!(left == 0, "pgbench left {left} rows");
    tokio::time::sleep(Duration::from_millis(100)).await;
    Ok(seconds)
}
