//! A pipeline that reads what is in memory already, once.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use tokio::runtime::Handle;
use tombstream_dataflow::{Config, Pipeline, Store};
use tombstream_model::{Mark, Polled, Records, Relation, Source, SourceError};

use crate::cpu::{Drained, own_processor_seconds};
use crate::null::{Counting, NullLedger};

/// Hands on what is there, poll by poll, and has ended.
struct Prepared<I>(I);

impl<I: ExactSizeIterator<Item = Records> + Send + 'static> Source for Prepared<I> {
    async fn next(&mut self) -> Result<Polled, SourceError> {
        match self.0.next() {
            Some(records) => Ok(Polled { records, marks: Vec::new() }),
            None => std::future::pending().await,
        }
    }

    async fn commit(&mut self, _marks: Vec<Mark>) -> Result<(), SourceError> {
        Ok(())
    }

    fn has_ended(&self) -> bool {
        self.0.len() == 0
    }

    fn pause(&mut self, _topic: &str) -> Result<(), SourceError> {
        Err(SourceError::Fatal("events that can't be decoded".to_owned()))
    }
}

/// Drives all of `polls` through a pipeline: from its start until everything is durable. An error unless
/// `deletions` were finalized.
pub(crate) async fn drive(
    config: Config,
    relation: Relation,
    ledger: NullLedger,
    store: Store,
    polls: impl ExactSizeIterator<Item = Records> + Send + 'static,
    deletions: u64,
) -> Result<Drained> {
    let ledger = Arc::new(Counting::new(ledger));
    let pipeline = Pipeline {
        config,
        relations: Arc::from([relation]),
        ledger: Arc::clone(&ledger),
        stores: vec![store],
        sources: vec![Box::new(Prepared(polls))],
    };
    let (begun, before) = (Instant::now(), own_processor_seconds());
    let running = pipeline.start(Handle::current())?;
    running.finished().await?;
    let drained = Drained {
        wall: begun.elapsed().as_secs_f64(),
        processor: own_processor_seconds() - before,
    };
    running.stop(std::time::Duration::from_secs(10)).await?;
    ledger.expect(deletions)?;
    Ok(drained)
}
