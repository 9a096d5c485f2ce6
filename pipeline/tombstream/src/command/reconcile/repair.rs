//! What was found goes through the claim. Stragglers as the sweep would bring them: their rows are candidates, or
//! their deletions are taken over. For zombies deletions without a row are written down first. Nothing is destroyed
//! that the claim did not grant: what was restored since the report, or whose key is used again, stays.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Lines, Seek as _, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use sqlx::PgPool;
use tokio::runtime::Handle;
use tombstream_connectors::postgres::{self, PgRegistry, Zombie, ZombiesOpened};
use tombstream_dataflow::reconcile::{Finding, Wrong};
use tombstream_model::{
    Address, Candidate, Cause, DeletionId, Found, Key, Mark, Polled, Records, Registry as _,
    RelationId, Source, SourceError, State,
};

use crate::config::Config;
use crate::wiring;

/// A copy that should be gone: what is wrong, its relation and key, the newest deletion and its state, and
/// where it is: store, address, and whether no template leads there.
type Noted = (Wrong, RelationId, Key, Option<(DeletionId, State)>, (String, Address, bool));

/// What is to be mended: a file without a name.
pub(super) struct Repair {
    kinds: BTreeSet<Wrong>,
    noted: BufWriter<File>,
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
    pub(super) fn new(kinds: BTreeSet<Wrong>) -> io::Result<Option<Self>> {
        if kinds.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self { kinds, noted: BufWriter::new(tempfile::tempfile()?) }))
    }

    pub(super) fn note(&mut self, finding: &Finding) -> io::Result<()> {
        if !self.kinds.contains(&finding.kind) {
            return Ok(());
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
        let source = Wrongs { pages: Some(Pages::of(&mut file)?), next: VecDeque::new() };
        let pipeline = wiring::job(config, pool, Box::new(source)).await?;
        let running = pipeline.start(Handle::current())?;
        let finished = running.finished().await;
        running.stop(config.pipeline.drain_max).await?;
        finished?;

        let mut pages = Pages::of(&mut file)?;
        while let Some(page) = pages.next()? {
            count(&registry, page, &mut repaired).await?;
        }
        Ok(repaired)
    }
}

/// Writes deletions down for the zombies of a page that are, or are not, elsewhere.
async fn open(
    config: &Config,
    pool: &PgPool,
    page: Vec<Noted>,
    wanted: bool,
    opened: &mut ZombiesOpened,
) -> anyhow::Result<()> {
    let mut zombies: BTreeMap<RelationId, BTreeMap<Key, Zombie>> = BTreeMap::new();
    for (kind, relation, key, _, (store, address, is_elsewhere)) in page {
        if kind == Wrong::Zombie && is_elsewhere == wanted {
            let of_relation = zombies.entry(relation).or_default();
            let zombie = of_relation.entry(key.clone()).or_insert_with(|| Zombie {
                key,
                targets: Vec::new(),
                is_elsewhere,
            });
            zombie.targets.push((store, address));
        }
    }
    for (relation, zombies) in zombies {
        let zombies: Vec<Zombie> = zombies.into_values().collect();
        let relation = &config.relations[usize::from(relation.0)];
        let more = postgres::open_zombies(pool, relation, &zombies).await?;
        opened.opened += more.opened;
        opened.parked += more.parked;
        opened.reused += more.reused;
        opened.waits += more.waits;
    }
    Ok(())
}

/// Counts what is finalized of a page. A zombie's first deletion was that before.
async fn count(
    registry: &PgRegistry,
    page: Vec<Noted>,
    repaired: &mut Repaired,
) -> anyhow::Result<()> {
    let mut keys: BTreeMap<RelationId, BTreeMap<Key, Option<DeletionId>>> = BTreeMap::new();
    for (kind, relation, key, newest, _) in page {
        let before = newest.map(|(id, _)| id).filter(|_| kind == Wrong::Zombie);
        keys.entry(relation).or_default().insert(key, before);
    }
    for (relation, keys) in keys {
        let asked: Vec<Key> = keys.keys().cloned().collect();
        let now = registry.now(relation, &asked, Duration::ZERO).await?;
        let finalized: HashSet<&Key> = now
            .deletions
            .iter()
            .filter(|deletion| deletion.state == State::Finalized)
            .filter(|deletion| Some(deletion.id) > keys.get(&deletion.key).copied().flatten())
            .map(|deletion| &deletion.key)
            .collect();
        let open: HashSet<&Key> = now
            .deletions
            .iter()
            .filter(|deletion| deletion.state.is_open())
            .map(|deletion| &deletion.key)
            .collect();
        repaired.keys += asked.len() as u64;
        repaired.finalized += finalized.difference(&open).count() as u64;
    }
    Ok(())
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

/// What was noted, as a source that ends. A key whose copies are on several pages comes several times, which the
/// claim does not mind.
struct Wrongs {
    pages: Option<Pages>,
    next: VecDeque<Records>,
}

impl Source for Wrongs {
    async fn next(&mut self) -> Result<Polled, SourceError> {
        if self.next.is_empty()
            && let Some(pages) = &mut self.pages
        {
            match pages.next().map_err(|error| SourceError::Fatal(error.to_string()))? {
                None => self.pages = None,
                Some(page) => self.next.extend(records(page)),
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

/// As the sweep would bring them, each key once.
fn records(page: Vec<Noted>) -> impl Iterator<Item = Records> {
    let mut seen = HashSet::new();
    let (mut open, mut candidates) = (Vec::new(), Vec::new());
    for (kind, relation, key, newest, _) in page {
        if !seen.insert((relation, key.clone())) {
            continue;
        }
        match (kind, newest) {
            (Wrong::Straggler, Some((id, State::Claimed))) => open.push(id),
            _ => candidates.push(Candidate {
                relation,
                key,
                position: None,
                cause: Cause::Sweep,
                found: if kind == Wrong::Zombie { Found::Removed } else { Found::Flagged },
                removed: None,
            }),
        }
    }
    let all = [Records::Open(open), Records::Candidates(candidates)];
    all.into_iter().filter(|records| !records.is_empty())
}
