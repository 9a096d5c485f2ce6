//! A part of the product that runs in this process: what `tombstream api` or `tombstream run` does.

use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::task::JoinHandle;

use crate::shutdown::{Signals, Teller};

/// Above `drain_max`, and above what the api grants to requests under way.
const STOP_MAX: Duration = Duration::from_secs(40);

#[derive(Debug)]
pub(super) struct Part {
    name: &'static str,
    teller: Teller,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Part {
    /// Starts what `until` makes of the signals that it is to obey.
    pub(super) fn start<F>(name: &'static str, until: impl FnOnce(Signals) -> F) -> Self
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let (teller, signals) = Signals::told();
        Self { name, teller, task: tokio::spawn(until(signals)) }
    }

    /// An error once it has ended by itself.
    pub(super) async fn check(&mut self) -> anyhow::Result<()> {
        if !self.task.is_finished() {
            return Ok(());
        }
        (&mut self.task).await.with_context(|| format!("{} panicked", self.name))??;
        bail!("{} ended by itself", self.name)
    }

    /// Stops it as SIGTERM would.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.teller.tell("the end of the demo");
        match tokio::time::timeout(STOP_MAX, self.task).await {
            Ok(ended) => ended.with_context(|| format!("{} panicked", self.name))?,
            Err(_) => bail!("{} does not stop", self.name),
        }
    }
}
