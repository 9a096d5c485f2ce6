//! Stragglers are mended as the sweep would: their rows are candidates for the claim, or their deletions are taken
//! over. Nothing is destroyed that the claim did not grant: what was restored since the report stays.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Lines, Seek as _, Write as _};

use anyhow::Context as _;
use sqlx::PgPool;
use tokio::runtime::Handle;
use tombstream_connectors::postgres::PgRegistry;
use tombstream_dataflow::reconcile::{Finding, Wrong};
use tombstream_model::{
    Candidate, Cause, DeletionId, Found, Key, Mark, Polled, Records, Registry as _, RelationId,
    Source, SourceError, State,
};

use crate::config::Config;
use crate::wiring;

/// A row with a copy that should be gone: relation, key, and its open deletion that is claimed already.
type Row = (RelationId, Key, Option<DeletionId>);

/// The rows whose copies are to go: a file without a name.
pub(super) struct Repair {
    rows: BufWriter<File>,
}

/// What came of a repair.
pub(super) struct Repaired {
    pub(super) rows: u64,
    pub(super) finalized: u64,
}

impl Repair {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { rows: BufWriter::new(tempfile::tempfile()?) })
    }

    pub(super) fn note(&mut self, finding: &Finding) -> io::Result<()> {
        if finding.kind != Wrong::Straggler {
            return Ok(());
        }
        let claimed = finding.deletion.filter(|_| finding.state == Some(State::Claimed));
        serde_json::to_writer(&mut self.rows, &(finding.relation_id, &finding.key, claimed))?;
        self.rows.write_all(b"\n")
    }

    /// Drives them through the pipeline, and looks what became of them.
    pub(super) async fn run(
        self,
        config: &Config,
        pool: PgPool,
        registry: PgRegistry,
    ) -> anyhow::Result<Repaired> {
        let mut file = self.rows.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        let again = file.try_clone()?;
        let source =
            Stragglers { lines: Some(BufReader::new(file).lines()), next: VecDeque::new() };
        let pipeline = wiring::job(config, pool, Box::new(source)).await?;
        let running = pipeline.start(Handle::current())?;
        let finished = running.finished().await;
        running.stop(config.pipeline.drain_max).await?;
        finished?;

        let mut file = again;
        file.rewind()?;
        let mut repaired = Repaired { rows: 0, finalized: 0 };
        let mut lines = BufReader::new(file).lines();
        loop {
            let page = page(&mut lines)?;
            if page.is_empty() {
                return Ok(repaired);
            }
            let mut keys: BTreeMap<RelationId, Vec<Key>> = BTreeMap::new();
            for (relation, key, _) in page {
                keys.entry(relation).or_default().push(key);
            }
            for (relation, keys) in keys {
                let now = registry.now(relation, &keys, std::time::Duration::ZERO).await?;
                let mut newest: BTreeMap<Key, (DeletionId, State)> = BTreeMap::new();
                for deletion in now.deletions {
                    let known = newest.entry(deletion.key).or_insert((deletion.id, deletion.state));
                    if known.0 <= deletion.id {
                        *known = (deletion.id, deletion.state);
                    }
                }
                let finalized = newest.values().filter(|(_, state)| *state == State::Finalized);
                repaired.finalized += finalized.count() as u64;
                repaired.rows += keys.len() as u64;
            }
        }
    }
}

/// The next rows, each once.
fn page(lines: &mut Lines<BufReader<File>>) -> anyhow::Result<Vec<Row>> {
    const PAGE: usize = 500;
    let mut rows: Vec<Row> = Vec::new();
    let mut seen = HashSet::new();
    for line in lines.by_ref().take(PAGE) {
        let line = line.context("a noted row can't be read back")?;
        let row: Row = serde_json::from_str(&line).context("a noted row can't be read back")?;
        if seen.insert((row.0, row.1.clone())) {
            rows.push(row);
        }
    }
    Ok(rows)
}

/// Those rows as a source that ends.
struct Stragglers {
    lines: Option<Lines<BufReader<File>>>,
    next: VecDeque<Records>,
}

impl Source for Stragglers {
    async fn next(&mut self) -> Result<Polled, SourceError> {
        if self.next.is_empty()
            && let Some(lines) = &mut self.lines
        {
            let rows = page(lines).map_err(|error| SourceError::Fatal(error.to_string()))?;
            if rows.is_empty() {
                self.lines = None;
            }
            let (claimed, others): (Vec<Row>, Vec<Row>) =
                rows.into_iter().partition(|(_, _, claimed)| claimed.is_some());
            let open: Vec<DeletionId> = claimed.into_iter().filter_map(|row| row.2).collect();
            let candidates: Vec<Candidate> = others.into_iter().map(candidate).collect();
            let records = [Records::Open(open), Records::Candidates(candidates)];
            self.next.extend(records.into_iter().filter(|records| !records.is_empty()));
        }
        let records = self.next.pop_front().unwrap_or(Records::Candidates(Vec::new()));
        Ok(Polled { records, marks: Vec::new() })
    }

    async fn commit(&mut self, _marks: Vec<Mark>) -> Result<(), SourceError> {
        Ok(())
    }

    fn has_ended(&self) -> bool {
        self.lines.is_none() && self.next.is_empty()
    }

    fn pause(&mut self, _topic: &str) -> Result<(), SourceError> {
        Ok(())
    }
}

/// As the sweep would bring it.
fn candidate((relation, key, _): Row) -> Candidate {
    Candidate {
        relation,
        key,
        position: None,
        cause: Cause::Sweep,
        found: Found::Flagged,
        removed: None,
    }
}
