//! Tombstream's Elasticsearch leg as a process of its own: events from Kafka, the pipeline with a ledger that claims all
//! and keeps nothing, the sink. `bento` starts it where it starts Bento, and watches both from outside.

use std::sync::Arc;

use anyhow::Result;
use clap::Args;
use tokio::runtime::Handle;
use tombstream_connectors::elasticsearch::{ElasticsearchConfig, ElasticsearchSink};
use tombstream_connectors::kafka::{KafkaConfig, KafkaSource};
use tombstream_dataflow::{Config, Pipeline, Store, StoreConfig, Verify};
use tombstream_model::{Address, StoreId};

use crate::null::{Counting, NullLedger};
use crate::slot::relation;

#[derive(Args)]
pub(crate) struct Options {
    #[arg(long)]
    brokers: String,
    /// Also the consumer group's name
    #[arg(long)]
    topic: String,
    #[arg(long)]
    elasticsearch: String,
    #[arg(long)]
    index: String,
    /// Look nothing up after its delete
    #[arg(long)]
    trust: bool,
    /// Timely workers
    #[arg(long)]
    workers: usize,
    /// A line is printed when so many deletions are finalized, all that were begun; ascending
    #[arg(long, value_delimiter = ',')]
    tell: Vec<u64>,
}

/// Runs until it is killed.
pub(crate) async fn run(options: Options) -> Result<()> {
    let index: Arc<str> = options.index.as_str().into();
    let copy = {
        let index = Arc::clone(&index);
        move |id: &tombstream_model::Key| Address::Document {
            index: Arc::clone(&index),
            id: id.to_string(),
            routing: None,
        }
    };
    let ledger = Arc::new(Counting::new(NullLedger::of(copy)));
    let sink = ElasticsearchSink::new(ElasticsearchConfig::new(options.elasticsearch, &*index))?;
    let verify = if options.trust { Verify::Trust } else { Verify::ReadBack };
    let store = Store {
        id: StoreId(0),
        name: "search".into(),
        sink: Arc::new(sink),
        config: StoreConfig { verify, ..StoreConfig::default() },
    };
    let config = KafkaConfig::new(options.topic.clone(), &options.brokers);
    let source = KafkaSource::new(&config, &[options.topic], |_| {})?;
    let pipeline = Pipeline {
        config: Config { workers: options.workers, ..Config::default() },
        relations: Arc::from([relation()?]),
        ledger: Arc::clone(&ledger),
        stores: vec![store],
        sources: vec![Box::new(source)],
    };
    let running = pipeline.start(Handle::current())?;
    let tell = async {
        for count in options.tell {
            ledger.until(count).await;
            ledger.expect(count)?;
            println!("{count}");
        }
        std::future::pending::<Result<()>>().await
    };
    tokio::select! {
        failed = tell => failed,
        broken = running.broken() => Err(broken.into()),
    }
}
