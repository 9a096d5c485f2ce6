//! The sink, and its first mode: one document an address.
//!
//! A destroy is four steps: resolve the declared names, read every document in real time behind
//! each of them, check the lease, delete on condition of what was read. What the answers leave open
//! is read once more and judged; nothing is deleted a second time in one call, since the layers
//! above retry.
//!
//! A conditional delete that meets a newer state is `Busy`, never `Superseded`. Under a valid lease
//! the claimed row is still there, locked against a second life by its own key, so what is newer is
//! the late work of an indexer and has to go as well: the next attempt reads it, checks the lease
//! again, and deletes that state. A process whose lease is over does not get so far.

use std::collections::HashMap;
use std::sync::Arc;

use tombstream_model::{Address, Outcome, Presence, Sink, SinkError, Target, Verdict};

use super::answer::{Deleted, Doc, Fault, Index, Read};
use super::blocks::Blocks;
use super::client::{Client, Condition, weight};
use super::config::{ConfigError, ElasticsearchConfig, Versioning};
use super::field::{self, Group};

/// The longest id that Elasticsearch stores.
const ID_BYTES_MAX: usize = 512;

/// What the declared names stand for, for the length of one call.
type Names = HashMap<Arc<str>, Arc<[Index]>>;

/// Elasticsearch, as a place to destroy documents.
pub struct ElasticsearchSink {
    pub(super) client: Client,
    pub(super) config: ElasticsearchConfig,
    blocks: Blocks,
}

/// One document to be looked at for a target, in one index.
struct Spot {
    target: usize,
    doc: Doc,
    /// Whether the document may be on another shard than the one that is read: its own routing value is
    /// what the indexer gave it, whatever the address says.
    may_stray: bool,
    /// It was found by a search, under another routing value than the address has.
    has_strayed: bool,
    /// Why its index takes no deletes.
    blocked: Option<Arc<str>>,
    read: Read,
}

/// What a batch is sorted for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Intent {
    Destroy,
    Look,
}

/// A batch, sorted by what has to be done.
#[derive(Default)]
struct Sorted<'a> {
    ended: Vec<(usize, Fault)>,
    spots: Vec<Spot>,
    groups: Vec<Group<'a>>,
}

impl ElasticsearchSink {
    /// Makes the sink. Nothing is sent yet.
    ///
    /// The `elasticsearch` crate brings a rustls that needs a process-wide default provider: the
    /// program installs one before this is called with an `https` node.
    pub fn new(config: ElasticsearchConfig) -> Result<Self, ConfigError> {
        Ok(Self { client: Client::new(&config)?, config, blocks: Blocks::default() })
    }

    /// Resolves every declared name that `batch` uses, and sorts the batch.
    ///
    /// A name that stands for nothing is an error, never "absent": nothing was looked at.
    async fn sort<'a>(&self, batch: &'a [Target], intent: Intent) -> Result<Sorted<'a>, SinkError> {
        let mut names = Names::new();
        let mut sorted = Sorted::default();
        for (place, target) in batch.iter().enumerate() {
            if intent == Intent::Destroy && !target.fence.holds() {
                sorted.ended.push((place, lease_over()));
                continue;
            }
            let name = match self.admit(&target.address) {
                Ok(name) => name,
                Err(fault) => {
                    sorted.ended.push((place, fault));
                    continue;
                }
            };
            let indices = match names.get(name) {
                Some(indices) => Arc::clone(indices),
                None => {
                    let indices = self.client.resolve(name).await?;
                    indices.iter().for_each(|index| self.blocks.seen(index));
                    names.insert(Arc::clone(name), Arc::clone(&indices));
                    indices
                }
            };
            if let Some(index) = indices.iter().find(|index| index.filtered) {
                let said = format!(
                    "alias `{name}` shows only a part of index `{}`: declare the index itself",
                    index.name
                );
                sorted.ended.push((place, Fault::new(Verdict::Refused, said)));
                continue;
            }
            match &target.address {
                Address::Document { id, routing, .. } => {
                    let spots = indices.iter().map(|index| Spot::new(place, index, id, routing));
                    sorted.spots.extend(spots);
                }
                Address::Field { field, value, .. } => {
                    let bytes_max = self.config.bytes_max.get();
                    let groups = &mut sorted.groups;
                    Group::add(groups, bytes_max, &indices, field, value, place, target);
                }
                Address::Object { .. }
                | Address::Prefix { .. }
                | Address::Item { .. }
                | Address::Row { .. } => {
                    unreachable!("admit refuses what is no document")
                }
            }
        }
        Ok(sorted)
    }

    /// The declared name that an address is in, or why it is never sent.
    ///
    /// Invariant (S8): nothing outside the declared indices is touched, and no name that could mean
    /// more than one of them; `an_address_outside_the_declared_index_is_refused`.
    fn admit<'a>(&self, address: &'a Address) -> Result<&'a Arc<str>, Fault> {
        let refused = |said: &'static str| Err(Fault::new(Verdict::Refused, said));
        let (index, routing) = match address {
            Address::Document { index, id, routing } => {
                if id.is_empty() {
                    return refused("the id is empty");
                }
                if id.len() > ID_BYTES_MAX {
                    return refused("the id is longer than 512 bytes: no document can have it");
                }
                (index, routing)
            }
            Address::Field { index, field, value, routing } => {
                if let Some(problem) = field::problem(field, value) {
                    return refused(problem);
                }
                (index, routing)
            }
            Address::Object { .. }
            | Address::Prefix { .. }
            | Address::Item { .. }
            | Address::Row { .. } => {
                return refused("not an address of a search index");
            }
        };
        if routing.as_deref() == Some("") {
            return refused("the routing value is empty");
        }
        if !self.config.index.as_slice().iter().any(|declared| **declared == **index) {
            return refused("the index is not declared for this store");
        }
        Ok(index)
    }

    /// Reads every spot in real time. What is not where its id and the address's routing lead to is searched
    /// for on every shard: a hit of that search tells a routing value, and is then read in real time like
    /// every other.
    async fn read(&self, spots: &mut Vec<Spot>) -> Result<(), SinkError> {
        self.read_from(spots, 0).await?;
        let mut strays: HashMap<String, Vec<usize>> = HashMap::new();
        for (place, spot) in spots.iter().enumerate() {
            if spot.may_stray && spot.read == Read::NotFound {
                strays.entry(spot.doc.index.clone()).or_default().push(place);
            }
        }
        let first_found = spots.len();
        for (index, places) in strays {
            for part in places.chunks(self.config.items_max.get().min(4_000)) {
                self.search(spots, &index, part).await?;
            }
        }
        self.read_from(spots, first_found).await
    }

    async fn read_from(&self, spots: &mut [Spot], first: usize) -> Result<(), SinkError> {
        let docs: Vec<&Doc> = spots[first..].iter().map(|spot| &spot.doc).collect();
        let reads = self.client.read(&docs).await?;
        for (spot, read) in spots[first..].iter_mut().zip(reads) {
            spot.read = read;
        }
        Ok(())
    }

    /// The second look: a "not found" may come from the wrong shard. Search lags behind until the next
    /// refresh, so this only ever adds a document. What was found is not looked for elsewhere: a second copy
    /// under another routing value is met by the read-back.
    ///
    /// Invariant (S6): a document under another routing value than the address's is not absent;
    /// `a_document_under_another_routing_than_the_address_says_is_not_absent`.
    async fn search(
        &self,
        spots: &mut Vec<Spot>,
        index: &str,
        places: &[usize],
    ) -> Result<(), SinkError> {
        let ids: Vec<&str> = places.iter().map(|&place| spots[place].doc.id.as_str()).collect();
        let page = self.client.search_ids(index, &ids).await?;
        if page.total != Some(page.hits.len() as u64) {
            let fault = Fault::unknown("more documents have these ids than one search shows");
            for &place in places {
                spots[place].read = Read::Fault(fault.clone());
            }
            return Ok(());
        }
        for hit in page.hits {
            // Where it was read already it is not: the search shows what was there before.
            let elsewhere = |doc: &Doc| doc.id == hit.doc.id && doc.routing != hit.doc.routing;
            let theirs = places.iter().filter(|&&place| elsewhere(&spots[place].doc));
            let strays: Vec<Spot> = theirs.map(|&place| spots[place].astray(&hit.doc)).collect();
            spots.extend(strays);
        }
        Ok(())
    }

    /// Deletes what was read of `spots`, and says of each what became of it.
    async fn delete(
        &self,
        batch: &[Target],
        spots: &[Spot],
    ) -> Result<Vec<(usize, Fault)>, SinkError> {
        let mut ends: Vec<Option<Fault>> = Vec::with_capacity(spots.len());
        let mut deletes = Vec::new();
        for (place, spot) in spots.iter().enumerate() {
            let version = self.version(&batch[spot.target]);
            let blocked = spot.blocked.as_ref().map(|why| Fault::blocked(String::from(&**why)));
            let (end, condition) = match (&spot.read, version) {
                (Read::Fault(fault), _) => (Some(fault.clone()), None),
                // Nothing is sent that is known to be refused: it is owed until the block is lifted.
                (Read::Found(_), _) | (Read::NotFound, Some(_)) if blocked.is_some() => {
                    (blocked, None)
                }
                // Also for what is not there: the delete then outranks an indexer that is late.
                (Read::Found(_) | Read::NotFound, Some(version)) => {
                    (None, Some(Condition::Version(version)))
                }
                (Read::Found(seen), None) => (None, Some(Condition::Seen(*seen))),
                // What was read after the lease's end is thrown away, an absence as well.
                (Read::NotFound, None) if batch[spot.target].fence.holds() => {
                    (Some(absent("not found")), None)
                }
                (Read::NotFound, None) => (Some(lease_over()), None),
            };
            ends.push(end);
            deletes.extend(condition.map(|condition| (place, condition)));
        }
        let mut open = Vec::new();
        let mut answered = false;
        for part in self.client.parts(&deletes, |(place, _)| weight(&spots[*place].doc)) {
            // Invariant (S5): what was read before the lease's end is not acted on after it;
            // `a_target_whose_lease_is_over_is_busy_and_stays`.
            let (part, late): (Vec<_>, Vec<_>) =
                part.iter().partition(|(place, _)| batch[spots[*place].target].fence.holds());
            for (place, _) in late {
                ends[place] = Some(lease_over());
            }
            if part.is_empty() {
                continue;
            }
            let docs: Vec<_> =
                part.iter().map(|(place, condition)| (&spots[*place].doc, *condition)).collect();
            let answers = match self.client.delete(&docs).await {
                Ok(answers) => answers,
                // Once a part has been answered its verdicts must not be lost with the rest.
                Err(error) if !answered => return Err(error),
                Err(error) => vec![Deleted::Fault(soften(&error)); part.len()],
            };
            answered = true;
            for ((place, _), deleted) in part.into_iter().zip(answers) {
                match deleted {
                    Deleted::Done => {
                        self.blocks.deleted(&spots[place].doc.index);
                        let said = match spots[place].has_strayed {
                            true => "deleted; it had another routing value than the address",
                            false => "deleted",
                        };
                        ends[place] = Some(Fault::new(Verdict::Deleted, said));
                    }
                    Deleted::NotFound if spots[place].read == Read::NotFound => {
                        ends[place] = Some(absent("not found"));
                    }
                    Deleted::NotFound | Deleted::Conflict => open.push((place, deleted)),
                    Deleted::Fault(fault) => {
                        if fault.is_block() {
                            self.blocks.told(&spots[place].doc.index, &fault.said);
                        }
                        ends[place] = Some(fault);
                    }
                }
            }
        }
        self.read_again(spots, open, &mut ends).await;
        let ends = spots.iter().zip(ends).map(|(spot, end)| {
            (spot.target, end.unwrap_or_else(|| Fault::unknown("nothing was said of it")))
        });
        Ok(ends.collect())
    }

    /// Invariant (S5): a conflict is read again before it is judged;
    /// `what_changed_between_read_and_delete_is_busy_and_stays`.
    async fn read_again(
        &self,
        spots: &[Spot],
        open: Vec<(usize, Deleted)>,
        ends: &mut [Option<Fault>],
    ) {
        if open.is_empty() {
            return;
        }
        let docs: Vec<&Doc> = open.iter().map(|(place, _)| &spots[*place].doc).collect();
        let reads = match self.client.read(&docs).await {
            Ok(reads) => reads,
            Err(error) => vec![Read::Fault(soften(&error)); open.len()],
        };
        for ((place, deleted), read) in open.into_iter().zip(reads) {
            let by_version = self.config.version == Versioning::Lsn;
            ends[place] = Some(match (read, deleted) {
                (Read::NotFound, _) => absent("gone when it was read again"),
                (Read::Fault(fault), _) => fault,
                (Read::Found(now), Deleted::Conflict)
                    if by_version && Read::Found(now) == spots[place].read =>
                {
                    let said = "what is there has no older version than the flip's LSN";
                    Fault::new(Verdict::Superseded, said)
                }
                (Read::Found(_), _) => {
                    Fault::new(Verdict::Busy, "changed between the read and the delete")
                }
            });
        }
    }

    /// The external version of a delete, where the indexer is declared to write LSNs. A deletion
    /// that the sweep found has no LSN; its delete is on condition of what was read.
    fn version(&self, target: &Target) -> Option<u64> {
        let lsn = match self.config.version {
            Versioning::SeqNo => return None,
            Versioning::Lsn => target.lsn?.0,
        };
        (1..=i64::MAX as u64).contains(&lsn).then_some(lsn)
    }
}

impl Sink for ElasticsearchSink {
    async fn destroy(&self, batch: &[Target]) -> Result<Vec<Outcome>, SinkError> {
        let Sorted { ended, mut spots, groups } = self.sort(batch, Intent::Destroy).await?;
        self.read(&mut spots).await?;
        let mut ends = self.delete(batch, &spots).await?;
        ends.extend(ended);
        let mut outcomes = Outcomes::new(batch.len());
        outcomes.extend(ends);
        for group in groups {
            match group.destroy(&self.client).await {
                Ok(ends) => outcomes.extend(ends),
                Err(error) if outcomes.is_empty() => return Err(error),
                Err(error) => outcomes.extend(group.all(&soften(&error))),
            }
        }
        Ok(outcomes.finish())
    }

    async fn look(&self, batch: &[Target]) -> Result<Vec<Presence>, SinkError> {
        let Sorted { ended, mut spots, groups } = self.sort(batch, Intent::Look).await?;
        self.read(&mut spots).await?;
        let mut found: Vec<Vec<Presence>> = vec![Vec::new(); batch.len()];
        for (target, _) in ended {
            found[target].push(Presence::Unknown);
        }
        for spot in &spots {
            found[spot.target].push(match spot.read {
                Read::Found(_) => Presence::Present,
                Read::NotFound => Presence::Absent,
                Read::Fault(_) => Presence::Unknown,
            });
        }
        for group in groups {
            for (target, presence) in group.look(&self.client).await? {
                found[target].push(presence);
            }
        }
        Ok(found.iter().map(|found| together(found)).collect())
    }

    fn batch_max(&self) -> usize {
        self.config.items_max.get()
    }
}

impl Spot {
    fn new(target: usize, index: &Index, id: &str, routing: &Option<String>) -> Self {
        // Where the mapping demands a routing value and there is none, the read says so.
        let own = routing.as_ref().or(index.alias_routing.as_ref());
        Self {
            target,
            doc: Doc { index: index.name.clone(), id: id.to_owned(), routing: own.cloned() },
            may_stray: index.shards > 1,
            has_strayed: false,
            blocked: index.blocked().map(Arc::from),
            read: Read::NotFound,
        }
    }

    /// The same document, where a search showed it.
    fn astray(&self, doc: &Doc) -> Self {
        Self {
            target: self.target,
            doc: Doc { index: self.doc.index.clone(), ..doc.clone() },
            may_stray: false,
            has_strayed: true,
            blocked: self.blocked.clone(),
            read: Read::NotFound,
        }
    }
}

/// What is there in any index is there; what is unknown in one is unknown.
fn together(found: &[Presence]) -> Presence {
    if found.contains(&Presence::Present) {
        Presence::Present
    } else if found.is_empty() || found.contains(&Presence::Unknown) {
        Presence::Unknown
    } else {
        Presence::Absent
    }
}

/// The outcome of each target of a batch: of its ends in several indices, the worst.
struct Outcomes(Vec<Option<Fault>>);

impl Outcomes {
    fn new(targets: usize) -> Self {
        Self(vec![None; targets])
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    fn extend(&mut self, ends: impl IntoIterator<Item = (usize, Fault)>) {
        for (target, end) in ends {
            let known = &mut self.0[target];
            if known.as_ref().is_none_or(|known| rank(end.verdict) > rank(known.verdict)) {
                *known = Some(end);
            }
        }
    }

    fn finish(self) -> Vec<Outcome> {
        let nothing = || Fault::unknown("nothing was said of it");
        let ends = self.0.into_iter().map(|end| end.unwrap_or_else(nothing));
        let outcome = |end: Fault| Outcome {
            retry_after: end.retry_after,
            ..Outcome::new(end.verdict, end.said)
        };
        ends.map(outcome).collect()
    }
}

/// Which verdict speaks for a target that has several.
fn rank(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Waived => 0, // Never a store's word.
        Verdict::Absent => 1,
        Verdict::Deleted => 2,
        Verdict::Superseded => 3,
        Verdict::Busy => 4,
        Verdict::Unknown => 5,
        Verdict::Refused => 6,
    }
}

/// What an error means for the rest of a batch of which a part has been answered: ask again, and
/// meet the error at the front.
pub(super) fn soften(error: &SinkError) -> Fault {
    match error {
        SinkError::Throttled { .. } => Fault::new(Verdict::Busy, "throttled"),
        SinkError::Unavailable(_) => Fault::unknown("no answer"),
        SinkError::Denied(_) => Fault::unknown("denied"),
        SinkError::Missing(_) => Fault::unknown("the index went away between two requests"),
        SinkError::Protocol(_) => Fault::unknown("the answer can't be read"),
    }
}

pub(super) fn absent(said: &'static str) -> Fault {
    Fault::new(Verdict::Absent, said)
}

pub(super) fn lease_over() -> Fault {
    Fault::new(Verdict::Busy, "lease over")
}
