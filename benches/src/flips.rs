//! Flags through the api, each its own request and its own durable answer, beside pgbench that updates the same
//! rows of the same table over as many connections.
//!
//! The api is the product's own process. The client writes its requests by hand over connections that stay open,
//! so that it takes little of the machine that it shares with api and database.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tombstream_e2e::{Program, free_port};
use tombstream_model::{KeyKind, Relation};

use crate::cpu::processor_seconds;
use crate::figures::{Ratio, median};
use crate::installation::binary;
use crate::scene::Scene;
use crate::server::execute;
use crate::slot;

#[derive(Args)]
pub(crate) struct Options {
    /// How many rows each side flags in a round
    #[arg(long, default_value_t = 16_000)]
    rows: usize,
    /// Connections
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Flags of a request and of pgbench's update; 1 is the route of one row
    #[arg(long, default_value_t = 1)]
    bulk: usize,
    /// Whether flags that come at the same time share a statement
    #[arg(long, value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set)]
    group: bool,
    /// How often both sides take turns
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Tombstream's binary [default: the one beside this]
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    ensure!(
        options.bulk > 0 && options.rows.is_multiple_of(options.clients * options.bulk),
        "--rows must be so many requests for each client"
    );
    let relation = relation()?;
    let scene = Scene::new(&relation, "bigint").await?;
    let done = measure(&options, &scene).await;
    scene.remove().await?;
    done
}

fn relation() -> Result<Relation> {
    let mut relation = slot::relation()?;
    relation.key[0].kind = KeyKind::Bigint;
    Ok(relation)
}

async fn measure(options: &Options, scene: &Scene) -> Result<()> {
    let binary = binary(options.binary.as_ref())?;
    let folder = std::env::temp_dir().join(&scene.name);
    let port = free_port()?;
    let variables = vec![("DATABASE_URL", scene.url())];
    let program = Program::at(binary, folder.clone(), &config(options, port), variables)?;
    let api = program.start(&["api"], &format!("http://127.0.0.1:{port}/readyz")).await?;
    let process = api.id().context("the api has ended")?.to_string();
    let (mut ours, mut theirs, mut busy) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=options.rounds {
        let mut took = (0.0, 0.0);
        let before = processor_seconds(&process);
        for side in [round % 2, (round + 1) % 2] {
            fill(options, scene).await?;
            let begun = Instant::now();
            if side == 0 {
                through_api(options, port).await?;
                took.0 = begun.elapsed().as_secs_f64();
            } else {
                let times = options.rows / options.clients / options.bulk;
                scene.pgbench(&script(options, times), options.clients, times).await?;
                took.1 = begun.elapsed().as_secs_f64();
            }
            all_are_flagged(options, scene).await?;
        }
        // The first fills caches, and is not counted.
        if round > 0 {
            ours.push(took.0);
            theirs.push(took.1);
            busy.push(processor_seconds(&process) - before);
        }
        eprintln!("round {round}: {:.2} s, pgbench {:.2} s", took.0, took.1);
    }
    let status = api.stop().await?;
    ensure!(status.success(), "the api ended with {status}");
    std::fs::remove_dir_all(&folder)?;
    let rate = |of: &[f64]| (options.rows as f64 / median(of)).round();
    let ratio = Ratio::of(&theirs, &ours);
    if options.json {
        let line = json!({
            "bench": "flips", "rows": options.rows, "clients": options.clients, "bulk": options.bulk,
            "group_flags": options.group,
            "rounds": options.rounds, "ours_flips_per_s": rate(&ours),
            "theirs_flips_per_s": rate(&theirs), "ratio": ratio,
            "api_processor_us_a_flip": (median(&busy) * 1e6 / options.rows as f64).round(),
        });
        println!("{line}");
    } else {
        println!("{} flips/s, pgbench {}: {ratio}", rate(&ours), rate(&theirs));
    }
    Ok(())
}

fn config(options: &Options, port: u16) -> String {
    format!(
        r#"[database]
url = {{ env = "DATABASE_URL" }}
[api]
listen = "127.0.0.1:{port}"
group_flags = {group}
[store.nowhere]
kind = "object_store"
url = "file:///tmp"
prefix = "nowhere/"
[relation.documents]
table = "public.documents"
key = [{{ column = "id", type = "bigint" }}]
flag = {{ column = "deleted_at", type = "timestamptz" }}
key_reuse = "forbidden"
targets = [{{ store = "nowhere", key = "nowhere/{{id}}" }}]
[relation.documents.api]
path = "documents"
columns = ["id", "name", "deleted_at"]
"#,
        group = options.group,
    )
}

/// The update that the api's statement holds, and the note of who did it is left out.
fn script(options: &Options, times: usize) -> String {
    let bulk = options.bulk;
    format!(
        "\\set first (:client_id * {times} + :n) * {bulk} + 1\n\\set last :first + {bulk} - 1\n\
         \\set n :n + 1\n\
         update documents set deleted_at = clock_timestamp() where id between :first and :last \
         and deleted_at is null;\n"
    )
}

async fn fill(options: &Options, scene: &Scene) -> Result<()> {
    let rows = options.rows;
    execute(
        &scene.pool,
        &format!(
            "truncate documents; \
             insert into documents (id, name) select n, 'document ' || n from generate_series(1, {rows}) n; \
             analyze documents; checkpoint"
        ),
    )
    .await
}

async fn all_are_flagged(options: &Options, scene: &Scene) -> Result<()> {
    let flagged: i64 =
        sqlx::query_scalar("select count(*) from documents where deleted_at is not null")
            .fetch_one(&scene.pool)
            .await?;
    ensure!(flagged == i64::try_from(options.rows)?, "{flagged} of {} are flagged", options.rows);
    Ok(())
}

async fn through_api(options: &Options, port: u16) -> Result<()> {
    let (each, bulk) = (options.rows / options.clients, options.bulk);
    let clients = (0..options.clients).map(|client| {
        tokio::spawn(async move {
            let mut connection = TcpStream::connect(("127.0.0.1", port)).await?;
            connection.set_nodelay(true)?;
            let mut answer = Vec::new();
            for n in (0..each).step_by(bulk) {
                let first = client * each + n + 1;
                connection.write_all(request(first, bulk).as_bytes()).await?;
                read(&mut connection, &mut answer).await?;
                if !answer.starts_with(b"HTTP/1.1 20") {
                    bail!("from document {first} on: {}", String::from_utf8_lossy(&answer));
                }
            }
            Ok(())
        })
    });
    for client in futures::future::try_join_all(clients).await? {
        client?;
    }
    Ok(())
}

fn request(first: usize, bulk: usize) -> String {
    if bulk == 1 {
        return format!("DELETE /documents/{first} HTTP/1.1\r\nhost: bench\r\n\r\n");
    }
    let keys: Vec<usize> = (first..first + bulk).collect();
    let body = json!({"keys": keys}).to_string();
    format!(
        "POST /documents/bulk/delete HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Reads one whole answer.
async fn read(connection: &mut TcpStream, answer: &mut Vec<u8>) -> Result<()> {
    answer.clear();
    loop {
        ensure!(connection.read_buf(answer).await? > 0, "the api closed the connection");
        let text = String::from_utf8_lossy(answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse::<usize>().ok())?
        });
        if body.len() >= length.context("an answer without its length")? {
            return Ok(());
        }
    }
}
