//! How many destructive requests the stores are asked for a backlog, and for the same with every event ten times.
//!
//! The built binary reads the events from a topic and reaches both stores through proxies that count (`proxy.rs`). The
//! topic holds the events of a backlog of flagged rows; a thousand keys need one request of each store, no less. Three
//! backlogs take turns: every event `once`; all of them ten times over, one time after the other, as when a topic is read
//! again (`replayed`); and every event ten times at any distance (`shuffled`). Looks (HEAD, `_mget`, listings) destroy
//! nothing and are counted beside.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};
use tombstream_e2e::{Record, Topic};

use crate::envelope::flag_event;
use crate::figures::Ratio;
use crate::installation::{Documents, Installation, Setting, Source, Way, binary, topic};
use crate::proxy::{Counts, Proxy};

#[derive(Args)]
pub(crate) struct Options {
    /// How many keys are in the backlog
    #[arg(long, default_value_t = 20_000)]
    keys: usize,
    /// How often every event stands in the second and the third topic
    #[arg(long, default_value_t = 10)]
    times: usize,
    /// How often the backlogs are drained
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[arg(long, default_value_t = 4)]
    partitions: i32,
    /// Timely workers
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Tombstream's binary [default: the one beside this]
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

const DESTROYS: &str = "destroys";
const LOOKS: &str = "looks";
const READ_MAX: Duration = Duration::from_secs(300);

/// In which order events come again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Once,
    Replayed,
    Shuffled,
}

const ORDERS: [(&str, Order); 3] =
    [("once", Order::Once), ("replayed", Order::Replayed), ("shuffled", Order::Shuffled)];

/// Requests of both stores for a backlog.
struct Asked {
    s3: Counts,
    elasticsearch: Counts,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let binary = binary(options.binary.as_ref())?;
    let mut asked: [Vec<Asked>; ORDERS.len()] = Default::default();
    for round in 0..options.rounds {
        for ((name, order), asked) in ORDERS.iter().zip(&mut asked) {
            let counted = backlog(&options, binary.clone(), *order).await?;
            eprintln!(
                "round {round}: {} keys, {name}: s3 {:?}, elasticsearch {:?}",
                options.keys, counted.s3, counted.elasticsearch
            );
            asked.push(counted);
        }
    }
    let mut line = json!({
        "bench": "requests", "keys": options.keys, "times": options.times, "rounds": options.rounds,
        "workers": options.workers, "partitions": options.partitions,
    });
    for ((name, _), asked) in ORDERS.iter().zip(&asked) {
        line[*name] = per_thousand(&options, asked);
    }
    if options.json {
        println!("{line}");
    } else {
        println!("{line:#}");
    }
    Ok(())
}

/// Medians, least and most of requests for a thousand distinct keys.
fn per_thousand(options: &Options, asked: &[Asked]) -> Value {
    let of = |store: fn(&Asked) -> &Counts, kind: &str| -> Value {
        let each: Vec<f64> = asked
            .iter()
            .map(|asked| store(asked).get(kind).copied().unwrap_or_default() as f64)
            .map(|count| count * 1_000.0 / options.keys as f64)
            .collect();
        json!(Ratio::spread(&each))
    };
    let store = |store: fn(&Asked) -> &Counts| json!({ DESTROYS: of(store, DESTROYS), LOOKS: of(store, LOOKS) });
    json!({ "s3": store(|asked| &asked.s3), "elasticsearch": store(|asked| &asked.elasticsearch) })
}

fn of_s3(method: &str, path: &str) -> &'static str {
    let is_bulk =
        method == "POST" && path.split(['?', '&']).skip(1).any(|it| it.starts_with("delete"));
    if is_bulk || method == "DELETE" { DESTROYS } else { LOOKS }
}

fn of_elasticsearch(method: &str, path: &str) -> &'static str {
    let is_document = method == "DELETE" && path.contains("/_doc/");
    let is_bulk = path.contains("_bulk") || path.contains("_delete_by_query");
    if is_bulk || is_document { DESTROYS } else { LOOKS }
}

async fn backlog(options: &Options, binary: PathBuf, order: Order) -> Result<Asked> {
    let documents = Documents::make(options.keys).await?;
    let events =
        Topic::make(&documents.servers.kafka, &topic(&documents), options.partitions).await?;
    let asked = drain(options, binary, order, &documents, &events).await;
    events.remove().await?;
    documents.remove().await?;
    asked
}

async fn drain(
    options: &Options,
    binary: PathBuf,
    order: Order,
    documents: &Documents,
    events: &Topic,
) -> Result<Asked> {
    let s3 = Proxy::before(&documents.servers.s3, of_s3).await?;
    let elasticsearch = Proxy::before(&documents.servers.elasticsearch, of_elasticsearch).await?;
    let setting = Setting {
        source: Source::Topic,
        way: Way::Default,
        workers: options.workers,
        s3: s3.url(),
        elasticsearch: elasticsearch.url(),
    };
    let installation = Installation::make(binary, documents, &setting).await?;
    documents.flag().await?;
    write(documents, events, options.times, order).await?;

    let mut running = installation.run().await?;
    documents.until_rows_are_gone(|| running.check()).await?;
    // What came again has to pass, too.
    until_read(events, &documents.name, || running.check()).await?;
    let status = running.stop().await?;
    ensure!(status.success(), "`tombstream run` ended: {status}");
    installation.judge(documents).await?;
    installation.remove()?;
    Ok(Asked { s3: s3.take()?, elasticsearch: elasticsearch.take()? })
}

/// Writes the events. An event's position is a true one of the server's log, and the same each time, as when it
/// is delivered again.
async fn write(documents: &Documents, events: &Topic, times: usize, order: Order) -> Result<()> {
    let times = if order == Order::Once { 1 } else { times };
    let now: i64 = sqlx::query_scalar("select (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint")
        .fetch_one(documents.pool())
        .await?;
    let first = u64::try_from(now).context("a place in the log")? - documents.ids.len() as u64;
    let mut places: Vec<usize> = (0..times).flat_map(|_| 0..documents.ids.len()).collect();
    if order == Order::Shuffled {
        shuffle(&mut places);
    }
    for some in places.chunks(100_000) {
        let records: Vec<Record> = some
            .iter()
            .map(|at| {
                let event = flag_event(documents.ids[*at], first + *at as u64);
                (event.key.map(|it| it.to_vec()), event.value.map(|it| it.to_vec()))
            })
            .collect();
        events.append(&records).await?;
    }
    Ok(())
}

/// The same order in each run.
fn shuffle(places: &mut [usize]) {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    for at in (1..places.len()).rev() {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        places.swap(at, (state >> 33) as usize % (at + 1));
    }
}

/// Waits until the group has committed all of the topic.
async fn until_read(
    events: &Topic,
    group: &str,
    mut check: impl FnMut() -> Result<()>,
) -> Result<()> {
    let begun = Instant::now();
    while events.progress(group).await?.iter().any(|(committed, end)| committed < end) {
        check()?;
        if begun.elapsed() > READ_MAX {
            bail!("the topic is not read to its end after {READ_MAX:?}");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_destroys_is_told_from_what_looks() {
        for (method, path) in [("POST", "/b?delete="), ("DELETE", "/b/k"), ("POST", "/b/?x&delete")]
        {
            assert_eq!(of_s3(method, path), DESTROYS, "{method} {path}");
        }
        for (method, path) in [("HEAD", "/b/delete"), ("GET", "/b?uploads="), ("PUT", "/b/k")] {
            assert_eq!(of_s3(method, path), LOOKS, "{method} {path}");
        }
        for (method, path) in [("POST", "/_bulk"), ("DELETE", "/i/_doc/1")] {
            assert_eq!(of_elasticsearch(method, path), DESTROYS, "{method} {path}");
        }
        for (method, path) in [("POST", "/_mget"), ("DELETE", "/_pit"), ("GET", "/i")] {
            assert_eq!(of_elasticsearch(method, path), LOOKS, "{method} {path}");
        }
    }

    #[test]
    fn a_shuffled_order_has_the_same_members() {
        let mut order: Vec<usize> = (0..1_000).collect();
        shuffle(&mut order);
        assert!(order.iter().zip(0..).filter(|(is, was)| **is == *was).count() < 20);
        order.sort_unstable();
        assert!(order.into_iter().eq(0..1_000));
    }
}
