//! The order of the requests: head, look at the fence, delete.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::object_store::path::Path;
use ::object_store::{Error, ObjectStore, ObjectStoreExt as _};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tombstream_model::{Address, Outcome, Presence, Sink, SinkError, Target, Verdict};

use super::config::{ObjectStoreConfig, ObjectStoreConfigError};

/// Each key is a request of its own, so a batch is only what is worth settling together.
const BATCH_MAX: usize = 1000;
/// Most keys of a prefix that are held in memory.
const PAGE_MAX: usize = 1000;

/// A store behind the crate `object_store`, as a place to destroy objects in.
///
/// An error of a single request becomes an error of the batch only if no other was answered; else
/// it becomes an outcome of its target, so that what was confirmed is not lost.
pub struct ObjectStoreSink {
    pub(super) config: ObjectStoreConfig,
    pub(super) store: Arc<dyn ObjectStore>,
    /// The directory of a local store. The crate lists one that is gone as empty.
    root: Option<PathBuf>,
}

/// What is sent, in the crate's own spelling.
enum Place {
    Object(Path),
    Prefix(Path),
}

impl ObjectStoreSink {
    /// Opens the store. Sends nothing.
    pub fn new(config: ObjectStoreConfig) -> Result<Self, ObjectStoreConfigError> {
        let store = config.open()?;
        let root = config.url.strip_prefix("file://").map(PathBuf::from);
        Ok(Self { config, store, root })
    }

    /// Takes a store that is open; `config.url` and its options are not read.
    pub fn with_store(config: ObjectStoreConfig, store: Arc<dyn ObjectStore>) -> Self {
        Self { config, store, root: None }
    }

    /// Asks whether the store is there and may be listed. Changes nothing.
    pub async fn check(&self) -> Result<(), SinkError> {
        let missing = || SinkError::Missing(self.config.url.clone());
        if let Some(root) = &self.root {
            match self.within(None, tokio::fs::metadata(root)).await? {
                Ok(root) if root.is_dir() => {}
                Ok(_) => return Err(missing()),
                Err(error) if error.kind() == ErrorKind::NotFound => return Err(missing()),
                Err(error) => return Err(SinkError::Unavailable(Box::new(error))),
            }
        }
        let first = async { self.store.list(None).next().await.transpose() };
        match self.within(None, first).await? {
            Ok(_) => Ok(()),
            Err(Error::NotFound { .. }) => Err(missing()),
            Err(error) => Err(failure(error)),
        }
    }

    /// Where a target is, or why it is never sent (S8).
    ///
    /// Invariant (S8): a key that the crate would normalise is not sent, since what it would send
    /// is another key; `tests/object_store.rs`: `a_key_that_would_be_normalised_is_refused`.
    fn vet(&self, address: &Address) -> Result<Place, &'static str> {
        let (bucket, text) = match address {
            Address::Object { bucket, key } => (bucket, key.as_str()),
            Address::Prefix { bucket, prefix } => (bucket, prefix.as_str()),
            Address::Document { .. }
            | Address::Field { .. }
            | Address::Item { .. }
            | Address::Row { .. } => {
                return Err("not sent: not an address in an object store");
            }
        };
        if **bucket != *self.config.bucket {
            return Err("not sent: its bucket is not this store's");
        }
        if text.is_empty() {
            return Err("not sent: an empty key");
        }
        if !text.starts_with(&self.config.prefix) {
            return Err("not sent: it lies outside of this store's prefix");
        }
        let is_prefix = matches!(address, Address::Prefix { .. });
        let text = match text.strip_suffix('/') {
            Some(text) if is_prefix => text,
            None if is_prefix => {
                return Err("not sent: a prefix that does not end in its delimiter");
            }
            Some(_) | None => text,
        };
        let normalised = "not sent: object_store would normalise the key, and so send another one";
        let path = Path::parse(text).map_err(|_| normalised)?;
        if path.as_ref() != text || text.is_empty() {
            return Err(normalised);
        }
        Ok(if is_prefix { Place::Prefix(path) } else { Place::Object(path) })
    }

    /// Waits for an answer no longer than the configuration says, nor beyond `until`.
    async fn within<T>(
        &self,
        until: Option<Instant>,
        asked: impl Future<Output = T> + Send,
    ) -> Result<T, SinkError> {
        let left =
            until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
        tokio::time::timeout(left.min(self.config.request_timeout), asked)
            .await
            .map_err(|elapsed| SinkError::Unavailable(Box::new(elapsed)))
    }

    async fn destroy_one(&self, target: &Target) -> Result<Outcome, SinkError> {
        let place = match self.vet(&target.address) {
            Ok(place) => place,
            Err(why) => return Ok(Outcome::new(Verdict::Refused, why)),
        };
        if !target.fence.holds() {
            return Ok(lease_over());
        }
        match place {
            Place::Object(path) => {
                if self.head(&path).await? == Presence::Absent {
                    return Ok(Outcome::new(Verdict::Absent, "head: not found"));
                }
                self.delete(target, &path).await
            }
            Place::Prefix(path) => self.destroy_prefix(target, &path).await,
        }
    }

    /// Invariant (S1): nothing is deleted after the end of its lease, so the fence is asked after
    /// all else; conformance: `a_target_whose_fence_is_over_is_not_touched`.
    async fn delete(&self, target: &Target, path: &Path) -> Result<Outcome, SinkError> {
        if !target.fence.holds() {
            return Ok(lease_over());
        }
        match self.within(Some(target.fence.until), self.store.delete(path)).await? {
            Ok(()) => Ok(Outcome::new(Verdict::Deleted, "deleted, was there")),
            // Somebody was faster: seen a moment ago, and not there now.
            Err(Error::NotFound { .. }) => Ok(Outcome::new(Verdict::Deleted, "gone meanwhile")),
            Err(Error::Precondition { .. }) => {
                Ok(Outcome::new(Verdict::Refused, "precondition failed: held or retained"))
            }
            Err(error) => Err(failure(error)),
        }
    }

    async fn head(&self, path: &Path) -> Result<Presence, SinkError> {
        match self.within(None, self.store.head(path)).await? {
            Ok(_) => Ok(Presence::Present),
            Err(Error::NotFound { .. }) => Ok(Presence::Absent),
            Err(error) => Err(failure(error)),
        }
    }

    /// At most `count` keys under `prefix`.
    async fn page(&self, prefix: &Path, count: usize) -> Result<Vec<Path>, SinkError> {
        let listed = self.store.list(Some(prefix)).take(count).map_ok(|object| object.location);
        let page: Vec<Path> = match self.within(None, listed.try_collect()).await? {
            Ok(page) => page,
            Err(Error::NotFound { .. }) => Vec::new(),
            Err(error) => return Err(failure(error)),
        };
        let below = format!("{prefix}/");
        match page.iter().all(|path| path.as_ref().starts_with(&below)) {
            true => Ok(page),
            false => Err(SinkError::Protocol("a listing with a key outside of its prefix".into())),
        }
    }

    /// Empties a prefix page by page; the last page, which is empty, proves that nothing is left.
    async fn destroy_prefix(&self, target: &Target, prefix: &Path) -> Result<Outcome, SinkError> {
        let mut gone = 0_usize;
        let mut last: HashSet<Path> = HashSet::new();
        loop {
            let page = self.page(prefix, PAGE_MAX).await?;
            if page.is_empty() {
                return Ok(match gone {
                    0 => Outcome::new(Verdict::Absent, "no object under the prefix"),
                    _ => Outcome::new(Verdict::Deleted, format!("{gone} objects deleted")),
                });
            }
            if page.iter().any(|path| last.contains(path)) {
                let said = "objects are listed still, or again, that were answered as deleted";
                return Ok(Outcome::new(Verdict::Unknown, said));
            }
            let deletes: Vec<_> = page.iter().map(|path| self.delete(target, path)).collect();
            let outcomes: Vec<Outcome> = stream::iter(deletes)
                .buffered(self.config.in_flight_max.get())
                .try_collect()
                .await?;
            if let Some(open) = outcomes.into_iter().find(|outcome| !outcome.verdict.is_confirmed())
            {
                return Ok(open);
            }
            gone += page.len();
            last = page.into_iter().collect();
        }
    }

    async fn look_at(&self, target: &Target) -> Result<Presence, SinkError> {
        match self.vet(&target.address) {
            Err(_) => Ok(Presence::Unknown),
            Ok(Place::Object(path)) => self.head(&path).await,
            Ok(Place::Prefix(path)) => Ok(match self.page(&path, 1).await?.is_empty() {
                true => Presence::Absent,
                false => Presence::Present,
            }),
        }
    }
}

impl Sink for ObjectStoreSink {
    async fn destroy(&self, batch: &[Target]) -> Result<Vec<Outcome>, SinkError> {
        // Two targets with one address are one request: side by side they would race.
        let mut firsts: HashMap<(&Address, bool), usize> = HashMap::new();
        let mut distinct: Vec<&Target> = Vec::new();
        let mut places = Vec::with_capacity(batch.len());
        for target in batch {
            let first =
                firsts.entry((&target.address, target.fence.holds())).or_insert_with(|| {
                    distinct.push(target);
                    distinct.len() - 1
                });
            places.push(*first);
        }
        let asked: Vec<_> = distinct.iter().map(|target| self.destroy_one(target)).collect();
        let answers: Vec<Result<Outcome, SinkError>> =
            stream::iter(asked).buffered(self.config.in_flight_max.get()).collect().await;
        let proven = |answer: &Result<Outcome, SinkError>| {
            answer.as_ref().is_ok_and(|outcome| outcome.verdict.is_confirmed())
        };
        // A missing bucket answers as a missing object does.
        if answers.iter().any(|answer| matches!(answer, Ok(it) if it.verdict == Verdict::Absent)) {
            self.check().await?;
        }
        let answered = answers.iter().any(proven);
        let mut outcomes = Vec::with_capacity(answers.len());
        for answer in answers {
            outcomes.push(match answer {
                Ok(outcome) => outcome,
                Err(error) if !answered => return Err(error),
                Err(error) => one_of_several(&error),
            });
        }
        Ok(places.into_iter().map(|place| outcomes[place].clone()).collect())
    }

    async fn look(&self, batch: &[Target]) -> Result<Vec<Presence>, SinkError> {
        let looks: Vec<_> = batch.iter().map(|target| self.look_at(target)).collect();
        let found: Vec<Presence> =
            stream::iter(looks).buffered(self.config.in_flight_max.get()).try_collect().await?;
        if found.contains(&Presence::Absent) {
            self.check().await?;
        }
        Ok(found)
    }

    fn batch_max(&self) -> usize {
        BATCH_MAX
    }
}

impl fmt::Debug for ObjectStoreSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectStoreSink").field("config", &self.config).finish_non_exhaustive()
    }
}

fn lease_over() -> Outcome {
    Outcome::new(Verdict::Busy, "lease over")
}

/// What an error of the crate says of its request. Its text may name the key: it is a source only.
pub(super) fn failure(error: Error) -> SinkError {
    match error {
        Error::PermissionDenied { .. } => SinkError::Denied("permission denied".into()),
        Error::Unauthenticated { .. } => SinkError::Denied("not authenticated".into()),
        Error::NotFound { .. } => SinkError::Missing("the bucket or container".into()),
        Error::NotSupported { .. } | Error::NotImplemented { .. } => {
            SinkError::Protocol("the store does not support the request".into())
        }
        Error::InvalidPath { .. } => {
            SinkError::Protocol("a listing with a key that object_store can't carry".into())
        }
        other => SinkError::Unavailable(Box::new(other)),
    }
}

/// An error of one request of several, as an outcome of its target.
fn one_of_several(error: &SinkError) -> Outcome {
    match error {
        SinkError::Throttled { retry_after } => {
            let mut outcome = Outcome::new(Verdict::Busy, "throttled");
            outcome.retry_after = *retry_after;
            outcome
        }
        SinkError::Unavailable(_) => Outcome::new(Verdict::Unknown, "no answer"),
        SinkError::Protocol(said) => Outcome::new(Verdict::Unknown, said.clone()),
        SinkError::Denied(said) | SinkError::Missing(said) => {
            Outcome::new(Verdict::Refused, said.clone())
        }
    }
}
