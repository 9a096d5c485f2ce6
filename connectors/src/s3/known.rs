//! What a bucket and its server have shown of themselves, asked or learned once.

use tombstream_model::SinkError;
use tracing::warn;

use super::answer::{self, ObjectLock, Versioning};
use super::sink::S3Sink;

/// Whether a server heeds the condition of a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conditions {
    /// In a `DeleteObjects`.
    Bulk,
    /// In a `DeleteObject` alone.
    OneByOne,
    /// Not at all: it deletes whatever is there.
    Ignored,
}

/// What is known of one bucket. Nothing of it outlives the process.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    pub(super) versioning: Option<Versioning>,
    pub(super) lock: Option<ObjectLock>,
    pub(super) conditions: Option<Conditions>,
    /// The server takes no `DeleteObjects`.
    pub(super) takes_one: bool,
    /// The server knows no uploads in parts, so none can be left.
    pub(super) has_no_uploads: bool,
}

impl S3Sink {
    pub(super) fn known(&self, bucket: &str) -> Known {
        let known = self.known.lock().expect("nothing panics while it is held");
        known.get(bucket).cloned().unwrap_or_default()
    }

    pub(super) fn learn(&self, bucket: &str, change: impl FnOnce(&mut Known)) {
        let mut known = self.known.lock().expect("nothing panics while it is held");
        change(known.entry(bucket.to_owned()).or_default());
    }

    pub(super) async fn ask_versioning(&self, bucket: &str) -> Result<Versioning, SinkError> {
        let found = answer::versioning(&self.requests.versioning(bucket).await?)?;
        if let Versioning::Unknown(why) = &found {
            warn!(bucket, why, "the bucket does not say whether it is versioned");
        }
        self.learn(bucket, |known| known.versioning = Some(found.clone()));
        Ok(found)
    }

    /// Whether a delete in this bucket leaves a marker, asked once in the sink's life: a bucket
    /// never goes back to unversioned, and one that becomes versioned says so with each marker.
    pub(super) async fn is_versioned(&self, bucket: &str) -> Result<bool, SinkError> {
        let versioning = match self.known(bucket).versioning {
            Some(versioning) => versioning,
            None => self.ask_versioning(bucket).await?,
        };
        Ok(matches!(versioning, Versioning::Enabled | Versioning::Suspended))
    }

    /// A marker was seen where none should be.
    pub(super) fn note_marker(&self, bucket: &str) {
        warn!(bucket, "a delete marker: the bucket is versioned");
        self.learn(bucket, |known| known.versioning = Some(Versioning::Enabled));
    }
}
