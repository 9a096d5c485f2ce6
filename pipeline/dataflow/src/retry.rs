//! Waiting longer after each failure, and calling the ledger until it answers.

use std::time::Duration;

use metrics::counter;
use rand::Rng;
use tombstream_model::{Disposition, LedgerError};

use crate::health::Board;
use crate::metric;
use crate::plan::StageConfig;

/// Waits that double, up to a limit, each with jitter so that callers drift apart.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Self { next: min.min(max), max }
    }

    /// The next wait: between half of it and all of it.
    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.next;
        self.next = wait.saturating_mul(2).min(self.max);
        jittered(wait)
    }

    /// The longest wait, for what only a person can mend.
    pub(crate) fn longest(&self) -> Duration {
        jittered(self.max)
    }
}

fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Calls the ledger until it answers, for as long as it takes: while it is away nothing goes on,
/// and nothing is lost. What only a person can mend is tried again too, slowly, and shown.
pub(crate) async fn insist<T, F>(
    stage: &'static str,
    config: &StageConfig,
    board: &Board,
    mut call: impl FnMut() -> F,
) -> T
where
    F: Future<Output = Result<T, LedgerError>>,
{
    let mut backoff = Backoff::new(config.retry_wait_min, config.retry_wait_max);
    let mut failed = false;
    loop {
        let (refused, said) = match tokio::time::timeout(config.timeout, call()).await {
            Ok(Ok(answer)) => {
                if failed {
                    tracing::info!(stage, "the ledger answers again");
                }
                board.ledger_works(stage);
                return answer;
            }
            Ok(Err(error)) => (error.disposition() != Disposition::Retry, chain(&error)),
            Err(_) => (false, format!("no answer within {:?}", config.timeout)),
        };
        failed = true;
        counter!(metric::LEDGER_ERRORS, "stage" => stage).increment(1);
        tracing::warn!(stage, refused, error = said, "ledger call failed, it is tried again");
        board.ledger_failed(stage, refused, said);
        tokio::time::sleep(if refused { backoff.longest() } else { backoff.next() }).await;
    }
}
