//! The order of the requests: probe, look at the fence, delete, judge.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tombstream_model::{Address, Outcome, Presence, Sink, SinkError, Target, Verdict};

use super::answer::{self, ObjectLock, VERSIONED, Versioning};
use super::config::{Conditional, Erase, Probe, S3Config, S3ConfigError};
use super::delete::{Doomed, Told};
use super::erase::{held, with_uploads};
use super::known::{Conditions, Known};
use super::pace::Pace;
use super::request::{Object, Requests};
use super::uploads::Aborted;
use super::xml;

/// Most keys of one listing, and most bytes of one key: S3's own limits.
pub(super) const PAGE_MAX: usize = 1000;
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
    pub(super) config: S3Config,
    pub(super) requests: Requests,
    /// What each bucket said when it was asked; a marker in an answer overrides it.
    pub(super) known: Mutex<BTreeMap<String, Known>>,
    pub(super) pace: Pace,
    /// Whether the server refused `Content-MD5`.
    pub(super) crc32: AtomicBool,
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
    /// In a versioned bucket versions are erased by their ids.
    pub versioning: Versioning,
    /// Locked objects are refused one by one.
    pub object_lock: ObjectLock,
    /// What the server makes of conditions, where they are required and were tried.
    pub conditions: Option<Conditions>,
}

/// What targets of the same address mean in a bucket: one key, or all that begin alike.
#[derive(Debug)]
pub(super) struct Scope<'a> {
    pub(super) text: &'a str,
    pub(super) is_exact: bool,
    pub(super) places: Vec<usize>,
    /// When the last of its claims ends.
    pub(super) until: Instant,
}

/// Targets of a batch that travel together.
enum Unit<'a> {
    /// Distinct keys of one bucket, each with the places of its targets in the batch.
    Keys { bucket: &'a str, keys: Vec<(&'a str, Vec<usize>)> },
    /// One prefix.
    Prefix { bucket: &'a str, prefix: &'a str, place: usize },
}

pub(super) type Outcomes = Vec<(usize, Outcome)>;

impl S3Sink {
    /// Makes the sink. Sends nothing.
    pub fn new(config: S3Config) -> Result<Self, S3ConfigError> {
        config.check()?;
        let requests = Requests::new(&config)?;
        let pace = Pace::new(config.rate_per_prefix, &config.prefix, config.rate_depth);
        Ok(Self { config, requests, known: Mutex::default(), pace, crc32: AtomicBool::new(false) })
    }

    /// Asks every declared bucket what it is, and whether what its erasing needs is allowed. Changes
    /// nothing, except that `conditional = "required"` is tried on an object of its own.
    pub async fn check(&self) -> Result<S3Facts, SinkError> {
        let mut buckets = Vec::new();
        for bucket in self.config.declared() {
            let reply = self.requests.list(&bucket, &self.config.prefix, 1).await?;
            answer::listing(&bucket, &self.config.prefix, &reply)?;
            let versioning = self.ask_versioning(&bucket).await?;
            let object_lock = self.ask_lock(&bucket).await?;
            let is_versioned = self.is_versioned(&bucket).await?;
            let scope = Scope::prefix(&self.config.prefix);
            if is_versioned {
                self.check_versions(&bucket, &scope).await?;
            }
            if self.config.erase == Erase::AllVersions {
                self.check_uploads(&bucket, &scope).await?;
            }
            let conditions = match self.config.conditional {
                Conditional::Required if !is_versioned => Some(self.try_conditions(&bucket).await?),
                Conditional::Required | Conditional::Auto | Conditional::Never => None,
            };
            buckets.push(BucketFacts { bucket, versioning, object_lock, conditions });
        }
        Ok(S3Facts { buckets })
    }

    /// What is erased of a versioned bucket.
    pub fn erases(&self) -> Erase {
        self.config.erase
    }

    /// Whether deletes are to be conditional.
    pub fn conditional(&self) -> Conditional {
        self.config.conditional
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
        let scopes = match unit {
            Unit::Keys { keys, .. } => keys
                .iter()
                .map(|(key, places)| Scope::new(batch, key, true, places.clone()))
                .collect(),
            Unit::Prefix { prefix, place, .. } => {
                vec![Scope::new(batch, prefix, false, vec![*place])]
            }
        };
        let (scopes, mut outcomes) = held(scopes, |place| batch[place].fence.holds());
        if scopes.is_empty() {
            return Ok(outcomes);
        }
        if self.is_versioned(bucket).await? {
            outcomes.extend(self.erase(bucket, &scopes).await?);
            return Ok(outcomes);
        }
        let aborted = match self.config.erase {
            Erase::AllVersions => self.abort_uploads(bucket, &scopes).await?,
            Erase::Current => vec![Aborted::default(); scopes.len()],
        };
        let of_place: HashMap<usize, &Aborted> = scopes
            .iter()
            .zip(&aborted)
            .flat_map(|(scope, aborted)| scope.places.iter().map(move |place| (*place, aborted)))
            .collect();
        let destroyed = match unit {
            Unit::Keys { .. } => self.destroy_keys(batch, bucket, &scopes).await?,
            Unit::Prefix { prefix, place, .. } => {
                vec![(*place, self.destroy_prefix(&batch[*place], bucket, prefix).await?)]
            }
        };
        outcomes.extend(
            destroyed
                .into_iter()
                .map(|(place, outcome)| (place, with_uploads(outcome, of_place[&place]))),
        );
        Ok(outcomes)
    }

    async fn destroy_keys(
        &self,
        batch: &[Target],
        bucket: &str,
        scopes: &[Scope<'_>],
    ) -> Result<Outcomes, SinkError> {
        let probes: Vec<_> = scopes.iter().map(|scope| self.probe(bucket, scope.text)).collect();
        let probes: Vec<Probed> =
            stream::iter(probes).buffered(self.config.in_flight_max.get()).try_collect().await?;
        let mut outcomes = Outcomes::new();
        let mut sending: Vec<&Scope<'_>> = Vec::new();
        let mut doomed: Vec<Doomed<'_>> = Vec::new();
        for (scope, probed) in scopes.iter().zip(&probes) {
            match probed {
                Probed::Send { presence, etag } => {
                    sending.push(scope);
                    let etag = etag.as_deref();
                    let object = Object { key: scope.text, version: None, etag };
                    doomed.push(Doomed { object, probed: *presence, until: scope.until });
                }
                Probed::Judged(outcome) => {
                    outcomes.extend(scope.places.iter().map(|place| (*place, outcome.clone())));
                }
            }
        }
        let told = self.delete_conditionally(bucket, &mut doomed).await?;
        for (scope, Told { outcome, sent }) in sending.into_iter().zip(told) {
            if outcome.said == VERSIONED {
                self.note_marker(bucket);
            }
            for place in &scope.places {
                // A target whose own fence was over learns nothing from another's request.
                let live = sent.is_none_or(|sent| sent < batch[*place].fence.until);
                outcomes.push((*place, if live { outcome.clone() } else { lease_over() }));
            }
        }
        Ok(outcomes)
    }

    /// What is known of a key before its delete.
    async fn probe(&self, bucket: &str, key: &str) -> Result<Probed, SinkError> {
        if has_empty_segment(key) {
            return Ok(match self.look_exactly(bucket, key).await? {
                Exactly::Listed => {
                    let etag = match self.config.conditional {
                        Conditional::Never => None,
                        _ => self.requests.head(bucket, key).await?.etag,
                    };
                    Probed::Send { presence: Some(Presence::Present), etag }
                }
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
            Probe::None => Ok(Probed::Send { presence: None, etag: None }),
            Probe::Head => {
                let reply = self.requests.head(bucket, key).await?;
                let presence = answer::head(&reply)?;
                if presence == Presence::Unknown {
                    self.note_marker(bucket);
                    return Ok(Probed::Judged(Outcome::new(Verdict::Busy, VERSIONED)));
                }
                Ok(Probed::Send { presence: Some(presence), etag: reply.etag })
            }
        }
    }

    /// Looks for a key that some stores fold into another one: gateways over a file system answer
    /// for `foo//bar` with `foo/bar`, and delete it. Their listings tell.
    ///
    /// Invariant (S8): a key that is not there byte for byte is not sent;
    /// live test: `a_store_that_folds_slashes_does_not_lose_the_neighbour`.
    async fn look_exactly(&self, bucket: &str, key: &str) -> Result<Exactly, SinkError> {
        let keys = answer::listing(bucket, key, &self.requests.list(bucket, key, 1).await?)?;
        if keys.first().is_some_and(|first| first == key) {
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
            let page = answer::listing(bucket, prefix, &reply)?;
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
            let until = target.fence.until;
            let doomed: Vec<Doomed<'_>> = page
                .iter()
                .map(|key| Doomed {
                    object: Object { key, version: None, etag: None },
                    probed: Some(Presence::Present),
                    until,
                })
                .collect();
            let told = self.delete(bucket, &doomed, false).await?;
            let outcomes: Vec<Outcome> = told.into_iter().map(|told| told.outcome).collect();
            if outcomes.iter().any(|outcome| outcome.said == VERSIONED) {
                self.note_marker(bucket);
            }
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
                self.look_at_versions(bucket, &Scope::exact(key)).await
            }
            Address::Prefix { bucket, prefix } if self.is_versioned(bucket).await? => {
                self.look_at_versions(bucket, &Scope::prefix(prefix)).await
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
                Ok(match answer::listing(bucket, prefix, &reply)?.is_empty() {
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

impl<'a> Scope<'a> {
    fn new(batch: &[Target], text: &'a str, is_exact: bool, places: Vec<usize>) -> Self {
        let ends = places.iter().map(|place| batch[*place].fence.until);
        let until = ends.max().unwrap_or_else(Instant::now);
        Self { text, is_exact, places, until }
    }

    /// To look at.
    fn exact(text: &'a str) -> Self {
        Self::new(&[], text, true, vec![])
    }

    fn prefix(text: &'a str) -> Self {
        Self::new(&[], text, false, vec![])
    }

    /// Invariant (S8): a listing knows only prefixes, so each of its keys is compared;
    /// live test: `a_key_that_another_one_begins_with_keeps_its_versions`.
    pub(super) fn has(&self, key: &str) -> bool {
        match self.is_exact {
            true => key == self.text,
            false => key.starts_with(self.text),
        }
    }

    /// Whether a listing that has come to this key may name more of the scope: listings are in order,
    /// so behind the key itself come only longer ones.
    pub(super) fn may_go_on(&self, key: &str) -> bool {
        !self.is_exact || key <= self.text
    }
}

/// What a probe leaves to do.
enum Probed {
    Send { presence: Option<Presence>, etag: Option<String> },
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

pub(super) fn lease_over() -> Outcome {
    Outcome::new(Verdict::Busy, "lease over")
}

/// An error of one request of several, as an outcome of its targets.
pub(super) fn one_of_several(error: &SinkError) -> Outcome {
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
pub(super) fn severity(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Refused => 3,
        Verdict::Unknown => 2,
        Verdict::Busy => 1,
        Verdict::Deleted | Verdict::Absent | Verdict::Superseded | Verdict::Waived => 0,
    }
}
