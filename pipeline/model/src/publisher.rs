//! The port to which captured changes are published.

use std::sync::Arc;

use bytes::Bytes;

use crate::Disposition;

/// A message to be published: what a broker's record is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where to.
    pub topic: Arc<str>,
    /// Its key, as bytes: messages of one key stand in one partition, in the order of publishing.
    pub key: Option<Bytes>,
    /// Its value, as bytes; none is a Kafka tombstone.
    pub value: Option<Bytes>,
}

/// Why a batch was not published. Any part of it may be there all the same.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// It comes back by itself, or with what a person does at the broker.
    #[error("unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The same batch will never be taken as it is; it needs a person.
    #[error("{0}")]
    Fatal(String),
}

impl PublishError {
    /// What can be done about it.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Unavailable(_) => Disposition::Retry,
            Self::Fatal(_) => Disposition::Halt,
        }
    }
}

/// Where captured changes are published.
pub trait Publisher: Send + Sync + 'static {
    /// Publishes `batch` in its order, and returns when the broker has all of it durably (all
    /// in-sync replicas).
    ///
    /// Messages of one partition keep their order. After an error, and after the future was dropped,
    /// the same batch is published again, before anything that follows it: a message may then be
    /// there twice, none is left out, and the last ones of every key are again in order.
    fn publish(&self, batch: Vec<Message>)
    -> impl Future<Output = Result<(), PublishError>> + Send;
}
