//! The port to a store that holds copies.

use std::borrow::Cow;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{Address, DeletionId, Disposition, Fence, Lsn, StoreId, Verdict};

/// One address of one claimed deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Whose copy.
    pub deletion: DeletionId,
    /// In which store.
    pub store: StoreId,
    /// Where in it.
    pub address: Address,
    /// Until when the claim may be acted on.
    pub fence: Fence,
    /// Where the flip is in the log, if an event told it.
    pub lsn: Option<Lsn>,
}

/// What a store said of one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// What the answer proves.
    pub verdict: Verdict,
    /// What the store said, for the receipt and for people. Never a payload.
    pub said: Cow<'static, str>,
    /// How the verdict was checked.
    pub verified: Verification,
    /// When it was settled: by this process's clock, so it is evidence and decides nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<DateTime<Utc>>,
    /// When the store wants to be asked again, if it said so.
    #[serde(skip)]
    pub retry_after: Option<Duration>,
    /// Whether an attempt before it brought no answer: that one may have destroyed the copy which this one did not
    /// find, so such an absence makes no template suspect (S6).
    #[serde(skip)]
    pub is_repeated: bool,
}

/// How a verdict was checked after the store answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verification {
    /// The store's answer was taken at its word.
    Trust,
    /// Others of the same request were looked up afterwards; this one was not.
    Sample,
    /// It was looked up afterwards.
    ReadBack,
}

/// What a look at a target found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// A copy is there.
    Present,
    /// No copy is there.
    Absent,
    /// The answer proves neither.
    Unknown,
}

/// An error that speaks for a whole batch.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The store asks for less.
    #[error("throttled")]
    Throttled {
        /// When to come back, if it said so.
        retry_after: Option<Duration>,
    },
    /// No answer, or one that says "not now".
    #[error("unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Credentials or permissions.
    #[error("denied: {0}")]
    Denied(String),
    /// The bucket or index does not exist.
    #[error("missing: {0}")]
    Missing(String),
    /// An answer that this protocol does not have.
    #[error("protocol: {0}")]
    Protocol(String),
}

impl SinkError {
    /// What can be done about it.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Throttled { .. } | Self::Unavailable(_) | Self::Protocol(_) => Disposition::Retry,
            Self::Denied(_) | Self::Missing(_) => Disposition::Halt,
        }
    }
}

impl Outcome {
    /// An outcome that nobody has looked up yet.
    pub fn new(verdict: Verdict, said: impl Into<Cow<'static, str>>) -> Self {
        let verified = Verification::Trust;
        Self {
            verdict,
            said: said.into(),
            verified,
            at: None,
            retry_after: None,
            is_repeated: false,
        }
    }

    /// The same, settled now.
    #[must_use]
    pub fn settled_now(mut self) -> Self {
        self.at = Some(Utc::now());
        self
    }
}

/// A store that holds copies, seen as a place to destroy them.
pub trait Sink: Send + Sync + 'static {
    /// Destroys the copies of `batch`, and says in the same order what became of each.
    ///
    /// Destroying twice is harmless. An error speaks for the batch as a whole. No request for a
    /// target is sent once its fence is over; such a target is [`Verdict::Busy`].
    fn destroy(
        &self,
        batch: &[Target],
    ) -> impl Future<Output = Result<Vec<Outcome>, SinkError>> + Send;

    /// Looks whether the copies are there, for read-back, sampling and audit. Changes nothing.
    fn look(
        &self,
        batch: &[Target],
    ) -> impl Future<Output = Result<Vec<Presence>, SinkError>> + Send;

    /// Most targets that one request to this store takes.
    fn batch_max(&self) -> usize;
}
