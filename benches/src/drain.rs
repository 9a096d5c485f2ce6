//! A topic drained by the pipeline with null sinks, beside librdkafka that reads it and counts. The ledger is null,
//! or the real one, whose rows are there and flagged.
//!
//! Both sides are of this process and take turns; the topic is written once, before.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaErrorCode;
use serde_json::json;
use std::sync::Arc;
use tokio::runtime::Handle;
use tombstream_connectors::kafka::{KafkaConfig, KafkaSource};
use tombstream_dataflow::{Config, Pipeline};
use tombstream_model::Ledger;

use crate::cpu::{Drained, Threads, processor_seconds};
use crate::envelope::envelope;
use crate::figures::{Ratio, median, processors, walls};
use crate::null::{Counting, NullLedger, store};
use crate::scene::Scene;
use crate::server::{self, execute};
use crate::slot::relation;

#[derive(Args)]
pub(crate) struct Options {
    /// How many events
    #[arg(long, default_value_t = 5_000_000)]
    events: usize,
    /// One in so many is a deletion
    #[arg(long, default_value_t = 20)]
    one_in: usize,
    #[arg(long, default_value_t = 4)]
    partitions: i32,
    /// Timely workers
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// How often both sides drain
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Claim and finalize in Postgres
    #[arg(long, value_name = "BOOL", default_value_t = false, action = clap::ArgAction::Set)]
    postgres: bool,
    /// The broker's process, to tell its share of the processors
    #[arg(long)]
    broker: Option<u32>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let brokers = server::kafka_brokers()?;
    let topic = server::new_name("bench-");
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &brokers).create()?;
    let new = NewTopic::new(&topic, options.partitions, TopicReplication::Fixed(1));
    for answer in admin.create_topics([&new], &AdminOptions::new()).await? {
        if let Err((name, code)) = answer {
            bail!("topic {name} was not made: {code}");
        }
    }
    let done = scene(&options, &brokers, &topic).await;
    admin.delete_topics(&[&topic], &AdminOptions::new()).await?;
    done
}

async fn scene(options: &Options, brokers: &str, topic: &str) -> Result<()> {
    let bytes = write(options, brokers, topic)?;
    eprintln!("{} events written, {bytes} bytes each", options.events);
    let (mut ours, mut theirs, mut broker) = (Vec::new(), Vec::new(), Vec::new());
    let mut threads = BTreeMap::new();
    let busy = || options.broker.map_or(0.0, |pid| processor_seconds(&pid.to_string()));
    for round in 0..options.rounds {
        for side in [round % 2, (round + 1) % 2] {
            if side == 0 {
                let before = busy();
                let (drained, of_threads) = ours_once(options, brokers, topic, round).await?;
                ours.push(drained);
                threads = of_threads;
                broker.push(busy() - before);
            } else {
                theirs.push(consumer(options, brokers, topic)?);
            }
        }
        let (one, other) = (&ours[round], &theirs[round]);
        eprintln!(
            "round {round}: tombstream {:.2} s wall, {:.2} s processor; librdkafka {:.2} s wall, {:.2} s processor",
            one.wall, one.processor, other.wall, other.processor
        );
    }
    let events = options.events as f64;
    let wall = Ratio::of(&walls(&theirs), &walls(&ours));
    let processor = Ratio::of(&processors(&theirs), &processors(&ours));
    let (our_rate, their_rate) = (events / median(&walls(&ours)), events / median(&walls(&theirs)));
    let our_processor = median(&processors(&ours));
    if options.json {
        let line = json!({
            "bench": "drain", "events": options.events, "deletions_one_in": options.one_in, "bytes": bytes,
            "ledger": if options.postgres { "postgres" } else { "memory" },
            "partitions": options.partitions, "workers": options.workers, "rounds": options.rounds,
            "ours_events_per_s": our_rate.round(), "theirs_events_per_s": their_rate.round(),
            "wall": wall, "processor": processor, "ours_processor_s": our_processor,
            "threads_processor_s": threads,
            "broker_processor_s": options.broker.map(|_| median(&broker)),
        });
        println!("{line}");
    } else {
        println!("tombstream {our_rate:.0} events/s, librdkafka {their_rate:.0} events/s");
        println!("librdkafka's time ÷ ours, wall: {wall}; processor: {processor}");
        println!(
            "ours: {our_processor:.2} s processor; the broker meanwhile {:.2} s",
            median(&broker)
        );
    }
    Ok(())
}

/// Writes the events, and says how long they are.
fn write(options: &Options, brokers: &str, topic: &str) -> Result<usize> {
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("linger.ms", "20")
        .set("batch.size", "1000000")
        .set("queue.buffering.max.kbytes", "200000")
        .create()?;
    let mut bytes = 0;
    for n in 0..options.events {
        let event = envelope(n, n % options.one_in == 0, false);
        let (key, value) = (event.key.unwrap_or_default(), event.value.unwrap_or_default());
        bytes = value.len();
        let mut record = BaseRecord::to(topic).key(&*key).payload(&*value);
        while let Err((error, again)) = producer.send(record) {
            if !matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) {
                return Err(error.into());
            }
            std::thread::sleep(Duration::from_millis(5));
            record = again;
        }
    }
    producer.flush(Duration::from_secs(120))?;
    Ok(bytes)
}

async fn ours_once(
    options: &Options,
    brokers: &str,
    topic: &str,
    round: usize,
) -> Result<(Drained, BTreeMap<String, f64>)> {
    let topic = (topic, round);
    if !options.postgres {
        return tombstream(options, brokers, topic, NullLedger::default()).await;
    }
    let relation = relation()?;
    let scene = Scene::new(&relation, "uuid").await?;
    // The ids are those of the events: `envelope`.
    let (one_in, events) = (options.one_in, options.events);
    execute(
        &scene.pool,
        &format!(
            "insert into documents select ('6f1d0000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, \
                 'document ' || n, now() from generate_series(0, {events} - 1, {one_in}) n; \
             analyze documents; checkpoint"
        ),
    )
    .await?;
    let drained = tombstream(options, brokers, topic, scene.ledger(&relation, &["null"])).await?;
    let left: i64 =
        sqlx::query_scalar("select count(*) from documents").fetch_one(&scene.pool).await?;
    scene.remove().await?;
    ensure!(left == 0, "{left} rows are left");
    Ok(drained)
}

/// From the start of the pipeline until every flag is finalized.
async fn tombstream<L: Ledger>(
    options: &Options,
    brokers: &str,
    (topic, round): (&str, usize),
    ledger: L,
) -> Result<(Drained, BTreeMap<String, f64>)> {
    let relations: Arc<[_]> = Arc::from([relation()?]);
    let config = KafkaConfig::new(format!("{topic}-{round}"), brokers);
    let ledger = Arc::new(Counting::new(ledger));
    let threads = Threads::now()?;
    let (begun, before) = (Instant::now(), processor_seconds("self"));
    let source = KafkaSource::new(&config, &[topic.to_owned()], |_| {})?;
    let pipeline = Pipeline {
        config: Config { workers: options.workers, ..Config::default() },
        relations,
        ledger: Arc::clone(&ledger),
        stores: vec![store()],
        sources: vec![Box::new(source)],
    };
    let running = pipeline.start(Handle::current())?;
    tokio::select! {
        () = ledger.until(options.events.div_ceil(options.one_in) as u64) => {}
        broken = running.broken() => return Err(broken.into()),
    }
    let drained = Drained {
        wall: begun.elapsed().as_secs_f64(),
        processor: processor_seconds("self") - before,
    };
    let threads = Threads::now()?.since(&threads);
    running.stop(Duration::from_secs(10)).await?;
    Ok((drained, threads))
}

/// Reads every partition from its beginning, looks at each message's length, and counts.
fn consumer(options: &Options, brokers: &str, topic: &str) -> Result<Drained> {
    let (begun, before) = (Instant::now(), processor_seconds("self"));
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "bench-count")
        .set("enable.auto.commit", "false")
        .create()?;
    let mut all = TopicPartitionList::new();
    for partition in 0..options.partitions {
        all.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&all)?;
    let (mut read, mut bytes) = (0, 0);
    while read < options.events {
        let message = consumer.poll(Duration::from_secs(30)).context("no message for 30 s")??;
        bytes += message.payload_len();
        read += 1;
    }
    std::hint::black_box(bytes);
    Ok(Drained {
        wall: begun.elapsed().as_secs_f64(),
        processor: processor_seconds("self") - before,
    })
}
