//! Straight from the log beside Debezium and Kafka, over the very same flips: how fast what waits is drained,
//! and how long a flip takes until it is decoded.
//!
//! Both ways are read as the pipeline reads them, and decoded; nothing follows. The drain: the connector is paused
//! (it may hold a queue of 8,192 rows by then) and the slot is read by nobody while the rows are flagged, each in a
//! transaction of its own. The latency: both read at once, from the commit to the decoded event.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::json;
use std::sync::{Arc, Mutex};
use tombstream_connectors::Secret;
use tombstream_connectors::kafka::{KafkaConfig, KafkaSource};
use tombstream_connectors::postgres::{PostgresSource, ReplicationConfig, Scope};
use tombstream_e2e::{Connector, Database, Servers, random_name};
use tombstream_model::decode::{Decoded, Decoder, RowDecoder};
use tombstream_model::{FlagState, Generation, Key, Records, Relation, Source};

use crate::figures::{Ratio, Times, median};
use crate::server::execute;
use crate::slot::relation;

#[derive(Args)]
pub(crate) struct Options {
    /// How many flips wait to be drained, in each round
    #[arg(long, default_value_t = 200_000)]
    rows: u32,
    /// How often both sides drain
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Flips a second, for the latency
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// For how long, in seconds
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let servers = Servers::from_env()?;
    let name = random_name("bench");
    let database = Database::make(&servers.postgres, &name).await?;
    let connector = Connector::new(&servers, &name)?;
    let done = scene(&options, &servers, &name, &database, &connector).await;
    connector.remove(&database).await?;
    let ends = Instant::now() + Duration::from_secs(30);
    while !database.drop_slot(&format!("{name}_direct")).await? {
        ensure!(Instant::now() < ends, "the slot is still in use");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    database.remove().await?;
    done
}

async fn scene(
    options: &Options,
    servers: &Servers,
    name: &str,
    database: &Database,
    connector: &Connector,
) -> Result<()> {
    let pool = database.pool();
    tombstream_connectors::postgres::migrate(pool).await?;
    execute(
        pool,
        "create table documents (id uuid primary key default gen_random_uuid(), number integer, \
             name text not null, deleted_at timestamptz); \
         alter table documents replica identity full; create index on documents (number); \
         create publication direct for table documents",
    )
    .await?;
    execute(
        pool,
        &format!("select pg_create_logical_replication_slot('{name}_direct', 'pgoutput')"),
    )
    .await?;
    connector.register().await?;
    connector.wait_until_streaming(database).await?;

    let relation: Relation = relation()?;
    let mut decoders = [Decoders::new(&relation), Decoders::new(&relation)];
    let [rows, events] = &mut decoders;
    let mut config =
        ReplicationConfig::new(Secret::new(database.url()), format!("{name}_direct"), "direct");
    config.heartbeat = Duration::ZERO;
    let scope = Scope::Relations(Arc::from([relation]));
    let kafka = KafkaConfig::new(format!("{name}-bench"), &servers.kafka);
    let topic = format!("{name}.public.documents");

    let (mut direct, mut through) = (Vec::new(), Vec::new());
    let mut log = PostgresSource::new(config.clone(), pool.clone(), scope.clone(), |_| {})?;
    // Once outside the count: a first row makes the topic, and both sessions stand.
    flip(database, 1, options.rows, 1).await?;
    let mut broker = KafkaSource::new(&kafka, std::slice::from_ref(&topic), |_| {})?;
    drain(&mut broker, events, 1).await?;
    drain(&mut log, rows, 1).await?;
    for round in 0..options.rounds {
        log.close().await;
        drop(log);
        connector.pause(true).await?;
        // It is said at once and done in a moment.
        tokio::time::sleep(Duration::from_secs(2)).await;
        flip(database, options.rows, 20_000, 8).await?;
        let begun = Instant::now();
        log = PostgresSource::new(config.clone(), pool.clone(), scope.clone(), |_| {})?;
        drain(&mut log, rows, options.rows as usize).await?;
        direct.push(begun.elapsed().as_secs_f64());
        let begun = Instant::now();
        connector.pause(false).await?;
        drain(&mut broker, events, options.rows as usize).await?;
        through.push(begun.elapsed().as_secs_f64());
        let at = round as usize;
        eprintln!("round {round}: {:.2} s, through Kafka {:.2} s", direct[at], through[at]);
    }
    let latencies = latency(options, database, (&mut log, rows), (&mut broker, events)).await?;
    log.close().await;
    broker.close().await;
    report(options, &direct, &through, latencies);
    Ok(())
}

fn report(options: &Options, direct: &[f64], through: &[f64], latencies: [Vec<f64>; 2]) {
    let rows = f64::from(options.rows);
    let rate = |of: &[f64]| (rows / median(of)).round();
    let ratio = Ratio::of(through, direct);
    let [ours, theirs] = latencies.map(|all| {
        let times = Times::new(all);
        (times.at(0.5), times.at(0.99))
    });
    let p50 = ours.0 / theirs.0;
    if options.json {
        let line = json!({
            "bench": "direct", "rows": options.rows, "rounds": options.rounds,
            "direct_rows_per_s": rate(direct), "kafka_rows_per_s": rate(through), "drain": ratio,
            "flips_per_s": options.rate, "seconds": options.seconds,
            "direct_ms": {"p50": ours.0, "p99": ours.1},
            "kafka_ms": {"p50": theirs.0, "p99": theirs.1}, "latency_p50": p50,
        });
        println!("{line}");
    } else {
        println!("drained at {} rows/s, through Kafka {}: {ratio}", rate(direct), rate(through));
        println!(
            "commit to decoded, p50 and p99: {:.1} and {:.1} ms, through Kafka {:.1} and {:.1} ms: {p50:.3}",
            ours.0, ours.1, theirs.0, theirs.1
        );
    }
}

/// Inserts rows and flags each in a transaction of its own, over `clients` connections.
async fn flip(database: &Database, rows: u32, page: u32, clients: u32) -> Result<()> {
    let pool = database.pool();
    execute(pool, "truncate documents").await?;
    let insert = format!(
        "insert into documents (number, name) select n, 'document ' || n from generate_series(1, {rows}) n; \
         analyze documents"
    );
    execute(pool, &insert).await?;
    let share = rows.div_ceil(clients);
    let client = async |at: u32| -> Result<()> {
        let (mut first, end) = (at * share + 1, ((at + 1) * share).min(rows));
        while first <= end {
            let last = (first + page - 1).min(end);
            // A procedure that commits after each row: what is measured is not how they come about.
            let sql = format!(
                "do $$ begin for n in {first}..{last} loop \
                     update documents set deleted_at = clock_timestamp() where number = n; commit; \
                 end loop; end $$"
            );
            execute(pool, &sql).await?;
            first = last + 1;
        }
        Ok(())
    };
    futures::future::try_join_all((0..clients).map(client)).await?;
    Ok(())
}

/// Reads until so many flags were decoded.
async fn drain(source: &mut impl Source, decoders: &mut Decoders, rows: usize) -> Result<()> {
    let mut seen = 0;
    while seen < rows {
        let next = tokio::time::timeout(Duration::from_secs(60), source.next()).await;
        let polled =
            next.with_context(|| format!("{seen} of {rows} came, then none for 60 s"))??;
        decoders.flags(&polled.records, |_, _| seen += 1)?;
        source.commit(polled.marks).await?;
    }
    Ok(())
}

/// Both ways to decode.
pub(crate) struct Decoders {
    events: Decoder,
    rows: RowDecoder,
}

impl Decoders {
    pub(crate) fn new(relation: &Relation) -> Self {
        let events = Decoder::new(std::slice::from_ref(relation));
        Self { rows: RowDecoder::new(events.clone()), events }
    }

    /// Gives the keys whose flag is set, and the flag.
    pub(crate) fn flags(
        &mut self,
        records: &Records,
        mut found: impl FnMut(Key, FlagState),
    ) -> Result<()> {
        let mut take = |decoded| {
            if let Decoded::Change(change) = decoded
                && matches!(change.after, FlagState::Set(_))
            {
                found(change.key, change.after);
            }
        };
        match records {
            Records::Events(events) => {
                events.iter().try_for_each(|event| {
                    self.events.decode(event, Generation(1)).map(&mut take)
                })?;
            }
            Records::Rows(rows) => {
                rows.iter().try_for_each(|row| self.rows.decode(row).map(&mut take))?;
            }
            _ => bail!("neither events nor rows"),
        }
        Ok(())
    }
}

/// Both ways at once, each against the moment of the commit.
async fn latency(
    options: &Options,
    database: &Database,
    (log, log_decoders): (&mut PostgresSource, &mut Decoders),
    (broker, broker_decoders): (&mut KafkaSource, &mut Decoders),
) -> Result<[Vec<f64>; 2]> {
    let pool = database.pool();
    let rows = options.rate * options.seconds;
    execute(pool, "truncate documents").await?;
    let insert = "insert into documents (name) select 'document ' || n from generate_series(1, $1) n \
        returning id::text";
    let ids: Vec<String> =
        sqlx::query_scalar(insert).bind(i32::try_from(rows)?).fetch_all(pool).await?;
    let committed: Mutex<HashMap<String, Instant>> = Mutex::default();
    let begin = tokio::time::Instant::now() + Duration::from_secs(1);
    let flips = async {
        let each = Duration::from_secs(1) / options.rate;
        for (n, id) in ids.iter().enumerate() {
            tokio::time::sleep_until(begin + each * n as u32).await;
            let flag = "update documents set deleted_at = now() where id = $1::uuid";
            sqlx::query(flag).bind(id).execute(pool).await?;
            committed.lock().expect("no holder panics").insert(id.clone(), Instant::now());
        }
        Ok::<_, anyhow::Error>(())
    };
    let rows = rows as usize;
    let one = arrivals(log, log_decoders, rows);
    let other = arrivals(broker, broker_decoders, rows);
    let ((), one, other) = tokio::try_join!(flips, one, other)?;
    let committed = committed.into_inner().expect("no holder panics");
    let since = |arrived: Vec<(String, Instant)>| -> Result<Vec<f64>> {
        let each = arrived.iter().map(|(id, at)| {
            let committed = committed.get(id).context("an event of an unknown row")?;
            // The row may arrive before the client has the commit's answer.
            Ok(at.saturating_duration_since(*committed).as_secs_f64())
        });
        each.collect()
    };
    Ok([since(one)?, since(other)?])
}

async fn arrivals(
    source: &mut impl Source,
    decoders: &mut Decoders,
    rows: usize,
) -> Result<Vec<(String, Instant)>> {
    let mut all = Vec::with_capacity(rows);
    while all.len() < rows {
        let polled = tokio::time::timeout(Duration::from_secs(60), source.next());
        let polled = polled.await.context("none came for 60 s")??;
        decoders.flags(&polled.records, |key, _| {
            let id = key.columns().next().unwrap_or_default().to_owned();
            all.push((id, Instant::now()));
        })?;
        source.commit(polled.marks).await?;
    }
    Ok(all)
}
