//! What goes wrong between us and a cluster.

use std::time::Duration;

use fluvio::dataplane::link::ErrorCode;

/// How long one answer is waited for.
pub(super) const WAIT: Duration = Duration::from_secs(10);

/// Why something was not answered, or not as it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// There is no connection, or it broke.
    #[error("{what}: the connection failed")]
    Connection {
        what: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is a connection, and nothing comes.
    #[error("{what}: no answer within {WAIT:?}")]
    Silent { what: String },
    /// The cluster answers that it can't, or will not.
    #[error("{what}: {code}")]
    Refused { what: String, code: ErrorCode },
    /// The answer makes no sense.
    #[error("{what}: {why}")]
    Broken { what: String, why: String },
}

impl Fault {
    pub(super) fn connection(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Connection { what: what.into(), source: source.into() }
    }

    pub(super) fn broken(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Broken { what: what.into(), why: why.into() }
    }

    /// An error unless the code says that all is well.
    pub(super) fn check(code: ErrorCode, what: impl FnOnce() -> String) -> Result<(), Self> {
        if code.is_ok() { Ok(()) } else { Err(Self::Refused { what: what(), code }) }
    }

    /// The error with its causes, on one line.
    pub(super) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            let said = error.to_string();
            if !text.contains(&said) {
                text.push_str(": ");
                text.push_str(&said);
            }
            source = error.source();
        }
        text
    }
}

/// Waits for an answer, but not for ever.
pub(super) async fn within<T>(
    what: impl Fn() -> String,
    answer: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    match tokio::time::timeout(WAIT, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(Fault::Silent { what: what() }),
    }
}
