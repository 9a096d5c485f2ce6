//! What was found goes through the claim. Stragglers as the sweep would bring them: their rows are candidates, or
//! their deletions are taken over. For zombies, and for orphans of which a person approved, deletions without a row are written down first. Nothing is destroyed
//! that the claim did not grant: what was restored since the report, or whose key is used again, stays.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Lines, Seek as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use sqlx::PgPool;
use tokio::runtime::Handle;
use tombstream_connectors::postgres::{self, PgRegistry, Zombie, ZombiesOpened};
use tombstream_dataflow::reconcile::{Finding, Wrong};
use tombstream_model::{
    Address, Candidate, Cause, DeletionCause, DeletionId, Found, Key, Mark, Now, Polled, Records,
    Registry as _, RelationId, Source, SourceError, Standing, State,
};

use super::approval::Approval;
use crate::config::Config;
use crate::wiring;

/// A copy that should be gone: what is wrong, its relation and key, the newest deletion and its state, and
/// where it is: store, address, and whether no template leads there.
type Noted = (Wrong, RelationId, Key, Option<(DeletionId, State)>, (String, Address, bool));

/// What is to be mended: a file without a name.
pub(super) struct Repair {
    kinds: BTreeSet<Wrong>,
    /// Orphans are mended by it alone.
    approval: Option<Approval>,
    noted: BufWriter<File>,
    /// Orphans that were approved, and are orphans still.
    pub(super) orphans: u64,
}

/// What came of a repair.
#[derive(Debug, Default)]
pub(super) struct Repaired {
    pub(super) keys: u64,
    /// Keys whose deletion is finalized now.
    pub(super) finalized: u64,
    pub(super) zombies: ZombiesOpened,
}

impl Repair {
    /// None where nothing is to be mended.
    pub(super) fn new(
        kinds: BTreeSet<Wrong>,
        approval: Option<Approval>,
    ) -> io::Result<Option<Self>> {
        if kinds.is_empty() {
            return Ok(None);
        }
        let noted = BufWriter::new(tempfile::tempfile()?);
        Ok(Some(Self { kinds, approval, noted, orphans: 0 }))
    }

    pub(super) fn note(&mut self, finding: &Finding) -> io::Result<()> {
        if !self.kinds.contains(&finding.kind) {
            return Ok(());
        }
        if finding.kind == Wrong::Orphan {
            // Invariant (S1): an orphan that was not approved, or is none any more, is never written down;
            // `orphans_go_by_approval_of_their_report_alone`.
            if !self.approval.as_ref().is_some_and(|approval| approval.covers(finding)) {
                return Ok(());
            }
            self.orphans += 1;
        }
        let newest = finding.deletion.zip(finding.state);
        let place = (&*finding.store, &finding.address, finding.is_elsewhere);
        let noted = (finding.kind, finding.relation_id, &finding.key, newest, place);
        serde_json::to_writer(&mut self.noted, &noted)?;
        self.noted.write_all(b"\n")
    }

    /// Drives it through the pipeline, and looks what became of it.
    pub(super) async fn run(
        self,
        config: &Config,
        pool: PgPool,
        registry: PgRegistry,
    ) -> anyhow::Result<Repaired> {
        let mut file = self.noted.into_inner().map_err(io::IntoInnerError::into_error)?;
        let mut repaired = Repaired::default();
        // What a person must see first: copies of the same key that come later are added to what is parked.
        for is_elsewhere in [true, false] {
            let mut pages = Pages::of(&mut file)?;
            while let Some(page) = pages.next()? {
                open(config, &pool, page, is_elsewhere, &mut repaired.zombies).await?;
            }
        }
        // What was skipped (a lock of another claim) is brought again, as the sweep would, while that helps.
        let mut finalized = None;
        loop {
            let brought = Arc::new(AtomicU64::new(0));
            let source = Wrongs {
                pages: Some(Pages::of(&mut file)?),
                registry: registry.clone(),
                seen: HashSet::new(),
                next: VecDeque::new(),
                brought: Arc::clone(&brought),
            };
            let pipeline = wiring::job(config, pool.clone(), Box::new(source)).await?;
            let running = pipeline.start(Handle::current())?;
            let finished = running.finished().await;
            running.stop(config.pipeline.drain_max).await?;
            finished?;
            let (keys, now) = count(&registry, Pages::of(&mut file)?).await?;
            (repaired.keys, repaired.finalized) = (keys, now);
            if brought.load(Ordering::Relaxed) == 0 || finalized >= Some(now) {
                return Ok(repaired);
            }
            finalized = Some(now);
        }
    }
}

/// Writes deletions down for the zombies and orphans of a page that are, or are not, elsewhere.
async fn open(
    config: &Config,
    pool: &PgPool,
    page: Vec<Noted>,
    wanted: bool,
    opened: &mut ZombiesOpened,
) -> anyhow::Result<()> {
    let cause = |kind: Wrong| match kind {
        Wrong::Zombie => Some(DeletionCause::Resurrected),
        Wrong::Orphan => Some(DeletionCause::Orphan),
        Wrong::Straggler | Wrong::Missing => None,
    };
    type Copies = BTreeMap<Key, Zombie>;
    let mut copies: BTreeMap<(RelationId, &str), (DeletionCause, Copies)> = BTreeMap::new();
    for (kind, relation, key, _, (store, address, is_elsewhere)) in page {
        if let Some(cause) = cause(kind)
            && is_elsewhere == wanted
        {
            let of_relation = copies.entry((relation, cause.as_str()));
            let (_, of_relation) = of_relation.or_insert_with(|| (cause, Copies::new()));
            let zombie = of_relation.entry(key.clone()).or_insert_with(|| Zombie {
                key,
                targets: Vec::new(),
                is_elsewhere,
            });
            zombie.targets.push((store, address));
        }
    }
    for ((relation, _), (cause, copies)) in copies {
        let copies: Vec<Zombie> = copies.into_values().collect();
        let relation = &config.relations[usize::from(relation.0)];
        let more = postgres::open_zombies(pool, relation, &copies, cause).await?;
        opened.opened += more.opened;
        opened.parked += more.parked;
        opened.reused += more.reused;
        opened.waits += more.waits;
    }
    Ok(())
}

/// How many keys were noted, and of how many the newest deletion is finalized now. A zombie's first one was that
/// before.
async fn count(registry: &PgRegistry, mut pages: Pages) -> anyhow::Result<(u64, u64)> {
    let mut seen = HashSet::new();
    let (mut count, mut finalized) = (0, 0);
    while let Some(page) = pages.next()? {
        let mut keys: BTreeMap<RelationId, BTreeMap<Key, Option<DeletionId>>> = BTreeMap::new();
        for (kind, relation, key, newest, _) in page {
            if seen.insert(hash(relation, &key)) {
                let before = newest.map(|(id, _)| id).filter(|_| kind == Wrong::Zombie);
                keys.entry(relation).or_default().insert(key, before);
            }
        }
        for (relation, keys) in keys {
            let asked: Vec<Key> = keys.keys().cloned().collect();
            let now = registry.now(relation, &asked, Duration::ZERO).await?;
            let mut newest: BTreeMap<Key, (DeletionId, State)> = BTreeMap::new();
            for deletion in now.deletions {
                let known = newest.entry(deletion.key).or_insert((deletion.id, deletion.state));
                if known.0 <= deletion.id {
                    *known = (deletion.id, deletion.state);
                }
            }
            let is_done = |(key, (id, state)): &(&Key, &(DeletionId, State))| {
                *state == State::Finalized && Some(*id) > keys.get(*key).copied().flatten()
            };
            finalized += newest.iter().filter(is_done).count() as u64;
            count += asked.len() as u64;
        }
    }
    Ok((count, finalized))
}

/// Sixteen bytes for each key are remembered; two that meet leave one to the sweep.
fn hash(relation: RelationId, key: &Key) -> u64 {
    key.stable_hash() ^ u64::from(relation.0).rotate_left(48)
}

/// What was noted, page by page, in the order of its noting.
struct Pages(Lines<BufReader<File>>);

impl Pages {
    fn of(file: &mut File) -> io::Result<Self> {
        // One place in the file for all its handles: each reads it to its end before the next begins.
        file.rewind()?;
        Ok(Self(BufReader::new(file.try_clone()?).lines()))
    }

    fn next(&mut self) -> anyhow::Result<Option<Vec<Noted>>> {
        const PAGE: usize = 500;
        let read = |line: io::Result<String>| -> anyhow::Result<Noted> {
            serde_json::from_str(&line?).context("what was noted can't be read back")
        };
        let page = self.0.by_ref().take(PAGE).map(read).collect::<anyhow::Result<Vec<_>>>()?;
        Ok((!page.is_empty()).then_some(page))
    }
}

/// What was noted, as a source that ends: each key once, and only what is due still.
struct Wrongs {
    pages: Option<Pages>,
    registry: PgRegistry,
    seen: HashSet<u64>,
    next: VecDeque<Records>,
    brought: Arc<AtomicU64>,
}

impl Wrongs {
    async fn page(&mut self, page: Vec<Noted>) -> anyhow::Result<()> {
        let mut keys: BTreeMap<RelationId, Vec<Key>> = BTreeMap::new();
        for (_, relation, key, ..) in page {
            if self.seen.insert(hash(relation, &key)) {
                keys.entry(relation).or_default().push(key);
            }
        }
        for (relation, keys) in keys {
            let now = self.registry.now(relation, &keys, Duration::ZERO).await?;
            for records in records(relation, now) {
                self.brought.fetch_add(records.len() as u64, Ordering::Relaxed);
                self.next.push_back(records);
            }
        }
        Ok(())
    }
}

impl Source for Wrongs {
    async fn next(&mut self) -> Result<Polled, SourceError> {
        let fatal = |error: anyhow::Error| SourceError::Fatal(super::super::chain(error.as_ref()));
        if self.next.is_empty()
            && let Some(pages) = &mut self.pages
        {
            match pages.next().map_err(fatal)? {
                None => self.pages = None,
                Some(page) => self.page(page).await.map_err(fatal)?,
            }
        }
        let records = self.next.pop_front().unwrap_or(Records::Candidates(Vec::new()));
        Ok(Polled { records, marks: Vec::new() })
    }

    async fn commit(&mut self, _marks: Vec<Mark>) -> Result<(), SourceError> {
        Ok(())
    }

    fn has_ended(&self) -> bool {
        self.pages.is_none() && self.next.is_empty()
    }

    fn pause(&mut self, _topic: &str) -> Result<(), SourceError> {
        Ok(())
    }
}

/// As the sweep would bring them: due rows, deletions without a row that wait for their claim, and claimed ones
/// to be taken over. What is parked waits for a person; what is closed by now is done.
fn records(relation: RelationId, now: Now) -> impl Iterator<Item = Records> {
    let open = now.deletions.into_iter().filter(|deletion| deletion.state.is_open());
    let open: BTreeMap<Key, (DeletionId, State)> =
        open.map(|deletion| (deletion.key, (deletion.id, deletion.state))).collect();
    let candidate = |key: &Key, found| Candidate {
        relation,
        key: key.clone(),
        position: None,
        cause: Cause::Sweep,
        found,
        removed: None,
    };
    let waits = |key: &Key| match open.get(key) {
        None => true,
        Some((_, state)) => matches!(state, State::Pending | State::Hidden),
    };
    let rows: BTreeMap<Key, Standing> =
        now.rows.into_iter().map(|row| (row.key, row.standing)).collect();
    let due = rows.iter().filter(|(key, standing)| **standing >= Standing::HideDue && waits(key));
    let mut candidates: Vec<Candidate> =
        due.map(|(key, _)| candidate(key, Found::Flagged)).collect();
    let removed = open.keys().filter(|key| !rows.contains_key(*key) && waits(key));
    candidates.extend(removed.map(|key| candidate(key, Found::Removed)));
    let claimed = open.values().filter(|(_, state)| *state == State::Claimed);
    let claimed = claimed.map(|(id, _)| *id).collect();
    let all = [Records::Open(claimed), Records::Candidates(candidates)];
    all.into_iter().filter(|records| !records.is_empty())
}
