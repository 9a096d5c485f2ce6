//! The order of the requests: probe, look at the fence, delete, judge.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Mutex;
use std::time::Instant;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tombstream_model::{Address, Outcome, Presence, Sink, SinkError, Target, Verdict};
use tracing::warn;

use super::answer::{self, Asked, ObjectLock, VERSIONED, Versioning};
use super::config::{Probe, S3Config, S3ConfigError};
use super::request::Requests;
use super::xml;

/// Most keys of one listing, and most bytes of one key: S3's own limits.
const PAGE_MAX: usize = 1000;
const KEY_BYTES_MAX: usize = 1024;
/// Prefixes and buckets of one batch that are worked on at a time; each prefix has pages of its own.
const UNITS_IN_FLIGHT: usize = 4;

/// Buckets of S3, or of what speaks its protocol, as places to destroy objects in.
///
/// Answers that speak for a whole request become an error of the batch only if no other request of
/// the batch was answered; else they become outcomes of the targets concerned, so that what was
/// confirmed is not lost.
#[derive(Debug)]
pub struct S3Sink {
    config: S3Config,
    requests: Requests,
    /// What each declared bucket said when it was asked; a marker in an answer overrides it.
    versioning: Mutex<BTreeMap<String, Option<Versioning>>>,
}

/// What `check` found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Facts {
    /// One for each declared bucket.
    pub buckets: Vec<BucketFacts>,
}

/// What a bucket says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketFacts {
    /// Its name.
    pub bucket: String,
    /// Objects of a versioned bucket are refused: its deletes erase nothing.
    pub versioning: Versioning,
    /// Locked objects are refused one by one.
    pub object_lock: ObjectLock,
}

/// Targets of a batch that travel together.
enum Unit<'a> {
    /// Distinct keys of one bucket, each with the places of its targets in the batch.
    Keys { bucket: &'a str, keys: Vec<(&'a str, Vec<usize>)> },
    /// One prefix.
    Prefix { bucket: &'a str, prefix: &'a str, place: usize },
}

type Outcomes = Vec<(usize, Outcome)>;

impl S3Sink {
    /// Makes the sink. Sends nothing.
    pub fn new(config: S3Config) -> Result<Self, S3ConfigError> {
        config.check()?;
        let requests = Requests::new(&config)?;
        let versioning = config.declared().into_iter().map(|bucket| (bucket, None)).collect();
        Ok(Self { config, requests, versioning: Mutex::new(versioning) })
    }

    /// Asks every declared bucket what it is. Changes nothing.
    pub async fn check(&self) -> Result<S3Facts, SinkError> {
        let mut buckets = Vec::new();
        for bucket in self.config.declared() {
            let reply = self.requests.list(&bucket, &self.config.prefix, 1).await?;
            answer::listing(&bucket, &self.config.prefix, &reply)?;
            let versioning = self.ask_versioning(&bucket).await?;
            let reply = self.requests.object_lock(&bucket).await?;
            let object_lock = answer::object_lock(&reply)?;
            buckets.push(BucketFacts { bucket, versioning, object_lock });
        }
        Ok(S3Facts { buckets })
    }

    async fn ask_versioning(&self, bucket: &str) -> Result<Versioning, SinkError> {
        let found = answer::versioning(&self.requests.versioning(bucket).await?)?;
        if let Versioning::Unknown(why) = &found {
            warn!(bucket, why, "the bucket does not say whether it is versioned");
        }
        self.remember(bucket, found.clone());
        Ok(found)
    }

    fn remember(&self, bucket: &str, found: Versioning) {
        let mut known = self.versioning.lock().expect("nothing panics while it is held");
        known.insert(bucket.to_owned(), Some(found));
    }

    /// Whether a delete in this bucket leaves a marker, asked once in the sink's life: a bucket
    /// never goes back to unversioned, and one that becomes versioned says so with each marker.
    async fn is_versioned(&self, bucket: &str) -> Result<bool, SinkError> {
        let known = {
            let known = self.versioning.lock().expect("nothing panics while it is held");
            known.get(bucket).cloned().flatten()
        };
        let versioning = match known {
            Some(versioning) => versioning,
            None => self.ask_versioning(bucket).await?,
        };
        Ok(matches!(versioning, Versioning::Enabled | Versioning::Suspended))
    }

    /// Why a target is never sent, if so (S8).
    fn vet(&self, address: &Address) -> Option<&'static str> {
        let (bucket, text) = match address {
            Address::Object { bucket, key } => (bucket, key),
            Address::Prefix { bucket, prefix } => (bucket, prefix),
            Address::Document { .. }
            | Address::Field { .. }
            | Address::Item { .. }
            | Address::Row { .. } => {
                return Some("not sent: not an address in an object store");
            }
        };
        let declared = self.config.bucket == **bucket
            || self.config.buckets.iter().any(|declared| **declared == **bucket);
        let is_prefix = matches!(address, Address::Prefix { .. });
        if !declared {
            Some("not sent: its bucket is not one of this store's")
        } else if text.is_empty() {
            Some("not sent: an empty key")
        } else if !text.starts_with(&self.config.prefix) {
            Some("not sent: it lies outside of this store's prefix")
        } else if text.len() > KEY_BYTES_MAX {
            Some("not sent: longer than 1,024 bytes")
        } else if text.split('/').any(|segment| matches!(segment, "." | "..")) {
            Some("not sent: a segment `.` or `..`, which is normalised on the way")
        } else if !xml::is_writable(text) {
            Some("not sent: a control character that XML can't carry")
        } else if is_prefix && (!text.ends_with('/') || text == "/") {
            Some("not sent: a prefix that does not end in its delimiter, or is nothing else")
        } else {
            None
        }
    }

    /// Groups what may be sent, and says what may not.
    fn units<'a>(&self, batch: &'a [Target]) -> (Vec<Unit<'a>>, Outcomes) {
        let mut outcomes = Vec::new();
        let mut units = Vec::new();
        let mut buckets: BTreeMap<&str, Vec<(&str, Vec<usize>)>> = BTreeMap::new();
        let mut seen: HashMap<(&str, &str), usize> = HashMap::new();
        for (place, target) in batch.iter().enumerate() {
            if let Some(why) = self.vet(&target.address) {
                outcomes.push((place, Outcome::new(Verdict::Refused, why)));
                continue;
            }
            match &target.address {
                Address::Object { bucket, key } => {
                    let keys = buckets.entry(bucket).or_default();
                    let at = *seen.entry((bucket, key)).or_insert(keys.len());
                    match keys.get_mut(at) {
                        Some((_, places)) => places.push(place),
                        None => keys.push((key, vec![place])),
                    }
                }
                Address::Prefix { bucket, prefix } => {
                    units.push(Unit::Prefix { bucket, prefix, place });
                }
                Address::Document { .. }
                | Address::Field { .. }
                | Address::Item { .. }
                | Address::Row { .. } => unreachable!("vetted"),
            }
        }
        for (bucket, keys) in buckets {
            let mut keys = keys.into_iter().peekable();
            while keys.peek().is_some() {
                let keys = keys.by_ref().take(self.config.keys_max.get()).collect();
                units.push(Unit::Keys { bucket, keys });
            }
        }
        (units, outcomes)
    }

    async fn destroy_unit(&self, batch: &[Target], unit: &Unit<'_>) -> Result<Outcomes, SinkError> {
        let (bucket, places) = match unit {
            Unit::Keys { bucket, keys } => {
                (*bucket, keys.iter().flat_map(|(_, places)| places).copied().collect())
            }
            Unit::Prefix { bucket, place, .. } => (*bucket, vec![*place]),
        };
        // Work whose lease is over costs no request at all.
        if places.iter().all(|place: &usize| !batch[*place].fence.holds()) {
            return Ok(places.into_iter().map(|place| (place, lease_over())).collect());
        }
        if self.is_versioned(bucket).await? {
            let refused = || Outcome::new(Verdict::Refused, VERSIONED);
            return Ok(places.into_iter().map(|place| (place, refused())).collect());
        }
        match unit {
            Unit::Keys { keys, .. } => self.destroy_keys(batch, bucket, keys).await,
            Unit::Prefix { prefix, place, .. } => {
                let outcome = self.destroy_prefix(&batch[*place], bucket, prefix).await?;
                Ok(vec![(*place, outcome)])
            }
        }
    }

    async fn destroy_keys(
        &self,
        batch: &[Target],
        bucket: &str,
        keys: &[(&str, Vec<usize>)],
    ) -> Result<Outcomes, SinkError> {
        let probes: Vec<_> = keys.iter().map(|(key, _)| self.probe(bucket, key)).collect();
        let probes: Vec<Probed> =
            stream::iter(probes).buffered(self.config.in_flight_max.get()).try_collect().await?;
        let mut outcomes = Outcomes::new();
        let mut sending: Vec<(Asked<'_>, &[usize])> = Vec::new();
        for ((key, places), probed) in keys.iter().zip(probes) {
            match probed {
                Probed::Send(probed) => sending.push((Asked { key, probed }, places)),
                Probed::Judged(outcome) => {
                    outcomes.extend(places.iter().map(|place| (*place, outcome.clone())));
                }
            }
        }
        // Invariant (S1): no key leaves after the end of its lease, so the fence is asked once
        // everything that takes time (probes, credentials, the signature) is done;
        // live tests: `objects_conform`, `a_lease_that_ends_while_keys_are_probed_stops_the_delete`.
        loop {
            let holds = |places: &[usize]| places.iter().any(|place| batch[*place].fence.holds());
            let (held, over): (Vec<_>, Vec<_>) =
                sending.into_iter().partition(|(_, places)| holds(places));
            let places = over.iter().flat_map(|(_, places)| *places);
            outcomes.extend(places.map(|place| (*place, lease_over())));
            if held.is_empty() {
                return Ok(outcomes);
            }
            let asked: Vec<Asked<'_>> = held.iter().map(|(asked, _)| *asked).collect();
            let raw: Vec<&str> = asked.iter().map(|asked| asked.key).collect();
            let signed = self.requests.delete_objects(bucket, &raw).await?;
            if held.iter().any(|(_, places)| !holds(places)) {
                sending = held;
                continue;
            }
            let ends = held.iter().filter_map(|(_, places)| fence_end(batch, places)).min();
            // A target whose own fence is over learns nothing from another's request.
            let live: Vec<Vec<bool>> = held
                .iter()
                .map(|(_, places)| places.iter().map(|at| batch[*at].fence.holds()).collect())
                .collect();
            let reply = self.requests.send(signed, ends).await?;
            let answers = answer::deleted(&asked, &reply)?;
            self.note_markers(bucket, &answers);
            for (((_, places), live), outcome) in held.iter().zip(live).zip(answers) {
                for (place, live) in places.iter().zip(live) {
                    outcomes.push((*place, if live { outcome.clone() } else { lease_over() }));
                }
            }
            return Ok(outcomes);
        }
    }

    fn note_markers(&self, bucket: &str, outcomes: &[Outcome]) {
        if outcomes.iter().any(|outcome| outcome.said == VERSIONED) {
            warn!(bucket, "a delete left a marker: the bucket is versioned");
            self.remember(bucket, Versioning::Enabled);
        }
    }

    /// What is known of a key before its delete.
    async fn probe(&self, bucket: &str, key: &str) -> Result<Probed, SinkError> {
        if has_empty_segment(key) {
            return Ok(match self.look_exactly(bucket, key).await? {
                Exactly::Listed => Probed::Send(Some(Presence::Present)),
                Exactly::Absent => Probed::Judged(Outcome::new(Verdict::Absent, "404, not listed")),
                Exactly::Unclear => Probed::Judged(Outcome::new(Verdict::Unknown, "not listed")),
                Exactly::Another => Probed::Judged(Outcome::new(
                    Verdict::Refused,
                    "not sent: the store lists no such key and yet answers for it, so it takes \
                     `//` for `/` and would delete another one",
                )),
            });
        }
        match self.config.probe {
            Probe::None => Ok(Probed::Send(None)),
            Probe::Head => {
                let presence = answer::head(&self.requests.head(bucket, key).await?)?;
                Ok(Probed::Send(Some(presence)))
            }
        }
    }

    /// Looks for a key that some stores fold into another one: gateways over a file system answer
    /// for `foo//bar` with `foo/bar`, and delete it. Their listings tell.
    ///
    /// Invariant (S8): a key that is not there byte for byte is not sent;
    /// live test: `a_store_that_folds_slashes_does_not_lose_the_neighbour`.
    async fn look_exactly(&self, bucket: &str, key: &str) -> Result<Exactly, SinkError> {
        let listing = answer::listing(bucket, key, &self.requests.list(bucket, key, 1).await?)?;
        if listing.keys.first().is_some_and(|first| first == key) {
            return Ok(Exactly::Listed);
        }
        Ok(match answer::head(&self.requests.head(bucket, key).await?)? {
            Presence::Absent => Exactly::Absent,
            Presence::Present => Exactly::Another,
            Presence::Unknown => Exactly::Unclear,
        })
    }

    /// Empties a prefix page by page. Each page is listed from the start, so the last one, which
    /// is empty, proves that nothing is left.
    async fn destroy_prefix(
        &self,
        target: &Target,
        bucket: &str,
        prefix: &str,
    ) -> Result<Outcome, SinkError> {
        let mut gone = 0_usize;
        let mut last: HashSet<String> = HashSet::new();
        loop {
            let reply = self.requests.list(bucket, prefix, self.config.keys_max.get()).await?;
            let page = answer::listing(bucket, prefix, &reply)?.keys;
            if page.is_empty() {
                return Ok(match gone {
                    0 => Outcome::new(Verdict::Absent, "no object under the prefix"),
                    _ => Outcome::new(Verdict::Deleted, format!("{gone} objects deleted")),
                });
            }
            if page.iter().any(|key| last.contains(key)) {
                let said = "objects are listed still, or again, that were answered as deleted";
                return Ok(Outcome::new(Verdict::Unknown, said));
            }
            if page.iter().any(|key| !xml::is_writable(key)) {
                let said = "an object's key has a control character that XML can't carry";
                return Ok(Outcome::new(Verdict::Refused, said));
            }
            let raw: Vec<&str> = page.iter().map(String::as_str).collect();
            let signed = self.requests.delete_objects(bucket, &raw).await?;
            if !target.fence.holds() {
                return Ok(lease_over());
            }
            let reply = self.requests.send(signed, Some(target.fence.until)).await?;
            let asked: Vec<Asked<'_>> =
                raw.iter().map(|key| Asked { key, probed: Some(Presence::Present) }).collect();
            let outcomes = answer::deleted(&asked, &reply)?;
            self.note_markers(bucket, &outcomes);
            let open = outcomes.iter().filter(|outcome| !outcome.verdict.is_confirmed());
            if let Some(worst) = open.clone().max_by_key(|outcome| severity(outcome.verdict)) {
                let said = format!("{} of a page of {}: {}", open.count(), page.len(), worst.said);
                return Ok(Outcome::new(worst.verdict, said));
            }
            gone += page.len();
            last = page.into_iter().collect();
        }
    }

    async fn look_at(&self, target: &Target) -> Result<Presence, SinkError> {
        if self.vet(&target.address).is_some() {
            return Ok(Presence::Unknown);
        }
        match &target.address {
            Address::Object { bucket, key } if self.is_versioned(bucket).await? => {
                self.look_at_versions(bucket, key, |found| found == key).await
            }
            Address::Prefix { bucket, prefix } if self.is_versioned(bucket).await? => {
                self.look_at_versions(bucket, prefix, |_| true).await
            }
            Address::Object { bucket, key } if has_empty_segment(key) => {
                Ok(match self.look_exactly(bucket, key).await? {
                    Exactly::Listed => Presence::Present,
                    Exactly::Absent => Presence::Absent,
                    Exactly::Unclear | Exactly::Another => Presence::Unknown,
                })
            }
            Address::Object { bucket, key } => {
                answer::head(&self.requests.head(bucket, key).await?)
            }
            Address::Prefix { bucket, prefix } => {
                let reply = self.requests.list(bucket, prefix, 1).await?;
                Ok(match answer::listing(bucket, prefix, &reply)?.keys.is_empty() {
                    true => Presence::Absent,
                    false => Presence::Present,
                })
            }
            Address::Document { .. }
            | Address::Field { .. }
            | Address::Item { .. }
            | Address::Row { .. } => Ok(Presence::Unknown),
        }
    }

    /// In a versioned bucket a key may be hidden by a marker while its data is there.
    async fn look_at_versions(
        &self,
        bucket: &str,
        prefix: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Presence, SinkError> {
        let reply = self.requests.list_versions(bucket, prefix).await?;
        let listing = answer::listing(bucket, prefix, &reply)?;
        Ok(if listing.keys.iter().any(|key| wanted(key)) {
            Presence::Present
        } else if listing.truncated {
            Presence::Unknown
        } else {
            Presence::Absent
        })
    }
}

impl Sink for S3Sink {
    async fn destroy(&self, batch: &[Target]) -> Result<Vec<Outcome>, SinkError> {
        let (units, mut outcomes) = self.units(batch);
        let asked: Vec<_> = units.iter().map(|unit| self.destroy_unit(batch, unit)).collect();
        let answers: Vec<_> =
            stream::iter(asked).buffered(UNITS_IN_FLIGHT).collect::<Vec<_>>().await;
        let answered = answers.iter().any(Result::is_ok);
        for (unit, answer) in units.iter().zip(answers) {
            match answer {
                Ok(answers) => outcomes.extend(answers),
                Err(error) if !answered => return Err(error),
                Err(error) => {
                    let outcome = one_of_several(&error);
                    outcomes.extend(unit.places().map(|place| (place, outcome.clone())));
                }
            }
        }
        outcomes.sort_by_key(|(place, _)| *place);
        assert!(
            outcomes.iter().map(|(place, _)| *place).eq(0..batch.len()),
            "each target has one outcome"
        );
        Ok(outcomes.into_iter().map(|(_, outcome)| outcome).collect())
    }

    async fn look(&self, batch: &[Target]) -> Result<Vec<Presence>, SinkError> {
        let looks: Vec<_> = batch.iter().map(|target| self.look_at(target)).collect();
        let found: Vec<Presence> =
            stream::iter(looks).buffered(self.config.in_flight_max.get()).try_collect().await?;
        // A HEAD has no body, so 404 may mean that the bucket is gone, or come from a proxy.
        let mut asked: HashSet<&str> = HashSet::new();
        for (target, presence) in batch.iter().zip(&found) {
            if let Address::Object { bucket, .. } = &target.address
                && *presence == Presence::Absent
                && asked.insert(bucket)
            {
                let reply = self.requests.list(bucket, &self.config.prefix, 1).await?;
                answer::listing(bucket, &self.config.prefix, &reply)?;
            }
        }
        Ok(found)
    }

    fn batch_max(&self) -> usize {
        self.config.keys_max.get().min(PAGE_MAX)
    }
}

impl Unit<'_> {
    fn places(&self) -> impl Iterator<Item = usize> + '_ {
        let (keys, prefix) = match self {
            Self::Keys { keys, .. } => (keys.as_slice(), None),
            Self::Prefix { place, .. } => (&[][..], Some(*place)),
        };
        keys.iter().flat_map(|(_, places)| places.iter().copied()).chain(prefix)
    }
}

/// What a probe leaves to do.
enum Probed {
    Send(Option<Presence>),
    Judged(Outcome),
}

/// What is there under a key, byte for byte.
enum Exactly {
    Listed,
    Absent,
    /// A HEAD found something that the listing does not show.
    Another,
    Unclear,
}

fn has_empty_segment(key: &str) -> bool {
    key.split('/').any(str::is_empty)
}

fn lease_over() -> Outcome {
    Outcome::new(Verdict::Busy, "lease over")
}

fn fence_end(batch: &[Target], places: &[usize]) -> Option<Instant> {
    places.iter().map(|place| batch[*place].fence.until).max()
}

/// An error of one request of several, as an outcome of its targets.
fn one_of_several(error: &SinkError) -> Outcome {
    match error {
        SinkError::Throttled { retry_after } => {
            let mut outcome = Outcome::new(Verdict::Busy, "throttled");
            outcome.retry_after = *retry_after;
            outcome
        }
        SinkError::Unavailable(source) => {
            Outcome::new(Verdict::Unknown, format!("no answer: {source}"))
        }
        SinkError::Protocol(said) => Outcome::new(Verdict::Unknown, said.clone()),
        SinkError::Denied(said) | SinkError::Missing(said) => {
            Outcome::new(Verdict::Refused, said.clone())
        }
    }
}

/// Which of a page's verdicts speaks for its prefix.
fn severity(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Refused => 3,
        Verdict::Unknown => 2,
        Verdict::Busy => 1,
        Verdict::Deleted | Verdict::Absent | Verdict::Superseded | Verdict::Waived => 0,
    }
}
