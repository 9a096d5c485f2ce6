//! How the flags reach the pipeline: what has to be set up, what it costs, and what can go.

use super::programs::Programs;
use super::{Source, say};
use crate::services::{Service, State};
use anyhow::{Context, Result, bail};
use std::time::{Duration, Instant};
use tombstream_e2e::{Connector, Database, Servers};

const WAIT_MAX: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long the pipeline is down after its slot was dropped: flags go on meanwhile.
const DOWN: Duration = Duration::from_secs(3);

/// What brings the flags to the pipeline.
pub(super) enum Feed {
    /// Debezium writes them to Kafka.
    Debezium(Box<Connector>),
    /// The pipeline reads the slot of this name itself.
    Slot(String),
    /// `tombstream capture` reads the slot of this name, and writes them to Kafka.
    Capture(String),
}

impl Feed {
    pub(super) fn new(source: Source, servers: &Servers, name: &str) -> Result<Self> {
        Ok(match source {
            Source::Kafka => Self::Debezium(Box::new(Connector::new(servers, name)?)),
            Source::Postgres => Self::Slot(name.to_owned()),
            Source::Capture => Self::Capture(name.to_owned()),
        })
    }

    pub(super) async fn begin(&self, programs: &mut Programs, database: &Database) -> Result<()> {
        match self {
            Self::Debezium(connector) => {
                connector.register().await.context("Debezium")?;
                connector.wait_until_streaming(database).await
            }
            Self::Slot(_) => programs.fix().await,
            Self::Capture(slot) => {
                programs.fix().await?;
                programs.start_capture().await?;
                wait("the slot is read", async || database.slot_is_read(slot).await).await
            }
        }
    }

    /// Drops the slot half-way. Debezium's is gone for good; the pipeline's own goes while the pipeline
    /// is down, and it makes another.
    pub(super) async fn drop_slot(
        &self,
        programs: &mut Programs,
        database: &Database,
    ) -> Result<()> {
        match self {
            Self::Debezium(connector) => connector.remove(database).await,
            Self::Slot(slot) => {
                programs.kill_pipeline().await?;
                wait("the slot is dropped", async || database.drop_slot(slot).await).await?;
                say(format_args!("the slot is gone, and flags go on"));
                tokio::time::sleep(DOWN).await;
                programs.start_pipeline().await
            }
            Self::Capture(slot) => {
                programs.kill_capture().await?;
                wait("the slot is dropped", async || database.drop_slot(slot).await).await
            }
        }
    }

    /// Processor time of what is between the database and the pipeline, in seconds.
    pub(super) fn processor_seconds(&self, state: &State, programs: &Programs) -> f64 {
        let of = |service: Service| {
            let process = state.servers.get(&service).and_then(|server| server.process);
            process.and_then(|process| process.processor_seconds()).unwrap_or_default()
        };
        match self {
            Self::Debezium(_) => of(Service::Connect) + of(Service::Kafka),
            Self::Slot(_) => 0.0,
            Self::Capture(_) => of(Service::Kafka) + programs.capture_seconds(),
        }
    }

    /// Nothing of it is left in the servers: a slot that nobody reads would keep the log for ever.
    pub(super) async fn remove(&self, database: &Database) -> Result<()> {
        match self {
            Self::Debezium(connector) => connector.remove(database).await,
            Self::Slot(slot) | Self::Capture(slot) => {
                wait("the slot is dropped", async || database.drop_slot(slot).await).await
            }
        }
    }
}

async fn wait(what: &str, mut done: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !done().await? {
        if started.elapsed() > WAIT_MAX {
            bail!("waited {WAIT_MAX:?} in vain until {what}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}
