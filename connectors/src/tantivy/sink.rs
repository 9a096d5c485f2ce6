//! The order of the work: the lock, a look, the fence, the delete, the commit, a look again; then the
//! rewrite of what was touched, and only then a verdict that confirms.
//!
//! A batch is one commit. Batches that wait while segments are rewritten commit first, and share the
//! next rewrite. What is not rewritten in time is `Busy`; it is remembered, so that the next attempt,
//! which finds nothing, calls it deleted and not absent, and waits for no rewrite but its own.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::tantivy::{IndexWriter, Searcher, Term};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, sleep_until, timeout_at};
use tombstream_model::{Address, Fence, Outcome, Presence, Sink, SinkError, Target, Verdict};

use super::config::{TantivyConfig, TantivyConfigError};
use super::field::{Exact, Found};
use super::index::{Opened, locked};
use super::purge::purge;

/// Most keys that are remembered until they are confirmed; beyond it all are forgotten, which makes
/// an "absent" of some that were "deleted".
const REMEMBERED_MAX: usize = 100_000;
/// How often the lock is tried while another writer holds it.
const LOCK_WAIT: Duration = Duration::from_millis(25);

/// Longer than anybody waits; a clock can't be asked for much more.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// An index in a folder, as a place to destroy documents in.
pub struct TantivySink {
    shared: Arc<Shared>,
    /// Held by whoever writes: tantivy allows one, and here each waits in turn.
    turn: Arc<tokio::sync::Mutex<()>>,
}

struct Shared {
    config: TantivyConfig,
    /// Never held while the index is read or written.
    state: Mutex<State>,
}

/// What one turn leaves to the next.
#[derive(Debug, Default)]
struct State {
    /// Counts the batches.
    batch: u64,
    /// The last batch of which nothing is left on the disk, nor of any before it.
    purged: u64,
    /// When segments may be rewritten again.
    purge_at: Option<Instant>,
    /// What is not confirmed yet.
    remembered: HashMap<Key, Gone>,
}

/// A field and a value. Without a name it is the id's field.
type Key = (Option<Arc<str>>, String);

/// A key that no search finds any more.
#[derive(Clone, Copy, Debug)]
struct Gone {
    /// In which batch that was seen first.
    batch: u64,
    /// How many documents this process deleted of it; none if it was absent.
    deleted: u64,
}

/// One term, and the targets that ask for it.
struct Wanted {
    key: Key,
    targets: Vec<(usize, Fence)>,
}

/// What is in the index of one key.
struct Seen {
    field: Exact,
    term: Term,
    found: Found,
}

/// How a piece of work ended.
enum Turn<T> {
    Done(T),
    /// Another writer held the lock.
    Locked,
    /// The work itself, or what was before it, took too long.
    Late,
}

/// What became of a target in the index, before the disk is looked at.
#[derive(Clone, Debug)]
enum End {
    Gone(Gone),
    Open(Verdict, String),
}

impl TantivySink {
    /// Makes the sink. The folder is not looked at yet.
    pub fn new(config: TantivyConfig) -> Result<Self, TantivyConfigError> {
        config.validate()?;
        let shared = Shared { config, state: Mutex::default() };
        Ok(Self { shared: Arc::new(shared), turn: Arc::default() })
    }

    pub(super) fn config(&self) -> &TantivyConfig {
        &self.shared.config
    }

    /// The field and the value that find a target's documents, or why it is never asked for (S8).
    fn admit(&self, address: &Address) -> Result<Key, &'static str> {
        let (index, routing, key) = match address {
            Address::Document { index, id, routing } => (index, routing, (None, id.clone())),
            Address::Field { index, field, value, routing } => {
                (index, routing, (Some(Arc::clone(field)), value.clone()))
            }
            Address::Object { .. }
            | Address::Prefix { .. }
            | Address::Item { .. }
            | Address::Row { .. } => {
                return Err("not sent: not an address of a search index");
            }
        };
        if **index != *self.config().path {
            return Err("not sent: its index is not this store's");
        }
        if routing.is_some() {
            return Err("not sent: tantivy has no routing");
        }
        if key.1.is_empty() {
            return Err("not sent: the value is empty");
        }
        Ok(key)
    }

    /// What a batch asks for, each term once: side by side two of them would contradict each other.
    fn sort(&self, batch: &[Target]) -> (Vec<(usize, End)>, Vec<Wanted>) {
        let mut ended = Vec::new();
        let mut places: HashMap<Key, usize> = HashMap::new();
        let mut wanted: Vec<Wanted> = Vec::new();
        for (place, target) in batch.iter().enumerate() {
            match self.admit(&target.address) {
                Err(why) => ended.push((place, End::Open(Verdict::Refused, why.to_owned()))),
                Ok(key) => {
                    let at = *places.entry(key.clone()).or_insert_with(|| {
                        wanted.push(Wanted { key, targets: Vec::new() });
                        wanted.len() - 1
                    });
                    wanted[at].targets.push((place, target.fence));
                }
            }
        }
        (ended, wanted)
    }

    /// Runs `work` in its turn, on a thread that may block, and again while it finds the lock held
    /// by another writer (none). What is not done by `until` is carried through all the same, and
    /// keeps the turn until then.
    async fn turn<T: Send + 'static>(
        &self,
        until: Instant,
        work: impl Fn(&Shared) -> Result<Option<T>, SinkError> + Send + Sync + 'static,
    ) -> Result<Turn<T>, SinkError> {
        let work = Arc::new(work);
        let mut late = Turn::Late;
        loop {
            let turn = Arc::clone(&self.turn).lock_owned();
            let Ok(turn) = timeout_at(until.into(), turn).await else { return Ok(late) };
            let (work, shared) = (Arc::clone(&work), Arc::clone(&self.shared));
            let work = blocking(move || {
                let done = work(&shared);
                drop(turn);
                done
            });
            match timeout_at(until.into(), work).await {
                Err(_) => return Ok(late),
                Ok(done) => match done?? {
                    Some(done) => return Ok(Turn::Done(done)),
                    None if Instant::now() + LOCK_WAIT >= until => return Ok(Turn::Locked),
                    None => {
                        late = Turn::Locked;
                        sleep(LOCK_WAIT).await;
                    }
                },
            }
        }
    }

    /// Waits until nothing of `batch`, and of those before it, is left on the disk, or for `until`.
    async fn purge(&self, batch: u64, until: Instant) -> Result<(), SinkError> {
        let purge_at = {
            let state = self.shared.state();
            match state.purged >= batch {
                true => return Ok(()),
                false => state.purge_at,
            }
        };
        match purge_at {
            Some(at) if at >= until => return Ok(()),
            Some(at) => sleep_until(at.into()).await,
            None => {}
        }
        let work = move |shared: &Shared| {
            let served = {
                let state = shared.state();
                match state.purged >= batch {
                    // Another batch's rewrite served this one too.
                    true => return Ok(Some(())),
                    false => state.batch,
                }
            };
            let done = purge(&shared.config)?;
            if done {
                let mut state = shared.state();
                state.purged = served;
                state.purge_at = Some(Instant::now() + shared.config.purge_wait.min(LONGEST));
            }
            Ok(done.then_some(()))
        };
        match self.turn(until, work).await? {
            Turn::Done(()) | Turn::Locked | Turn::Late => Ok(()),
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for TantivySink {
    async fn destroy(&self, batch: &[Target]) -> Result<Vec<Outcome>, SinkError> {
        let config = self.config();
        let (mut ends, wanted) = self.sort(batch);
        // The stage stops waiting at `timeout`, and an answer beats a time-out.
        let until = Instant::now() + (config.timeout / 4 * 3).min(LONGEST);
        let wanted = Arc::new(wanted);
        if !wanted.is_empty() {
            let asked = Arc::clone(&wanted);
            match self.turn(until, move |shared| delete(shared, &asked)).await? {
                Turn::Done(done) => ends.extend(done),
                Turn::Locked => return Err(locked(&config.path)),
                Turn::Late => {
                    let places = wanted.iter().flat_map(|it| &it.targets).map(|(place, _)| *place);
                    let said = "waits for a rewrite of the index";
                    ends.extend(places.map(|at| (at, End::Open(Verdict::Busy, said.into()))));
                }
            }
        }
        let last = ends.iter().filter_map(|(_, end)| match end {
            End::Gone(gone) => Some(gone.batch),
            End::Open(..) => None,
        });
        if config.purge
            && let Some(last) = last.max()
        {
            self.purge(last, until).await?;
        }
        let mut state = self.shared.state();
        for wanted in wanted.iter() {
            let confirmed = |gone: &Gone| !config.purge || gone.batch <= state.purged;
            if state.remembered.get(&wanted.key).is_some_and(confirmed) {
                state.remembered.remove(&wanted.key);
            }
        }
        let nothing = || Outcome::new(Verdict::Unknown, "nothing was said of it");
        let mut outcomes: Vec<Outcome> = batch.iter().map(|_| nothing()).collect();
        for (place, end) in ends {
            outcomes[place] = end.judge(config.purge.then_some(state.purged));
        }
        Ok(outcomes)
    }

    async fn look(&self, batch: &[Target]) -> Result<Vec<Presence>, SinkError> {
        let keys: Vec<Option<Key>> =
            batch.iter().map(|target| self.admit(&target.address).ok()).collect();
        if keys.iter().all(Option::is_none) {
            return Ok(vec![Presence::Unknown; batch.len()]);
        }
        let shared = Arc::clone(&self.shared);
        blocking(move || look(&shared.config, &keys)).await?
    }

    fn batch_max(&self) -> usize {
        self.config().items_max.get()
    }
}

impl fmt::Debug for TantivySink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TantivySink").field("config", self.config()).finish_non_exhaustive()
    }
}

impl End {
    /// The outcome, where nothing of the batches up to `purged` is left on the disk; without one
    /// the disk is nobody's concern.
    ///
    /// Invariant (S6): while the disk may still hold the bytes, nothing is confirmed, an absence
    /// neither: an earlier attempt may have died between its commit and its rewrite;
    /// `tests/tantivy.rs`: `what_an_earlier_attempt_left_on_the_disk_is_no_absence`.
    fn judge(self, purged: Option<u64>) -> Outcome {
        let Gone { batch, deleted } = match self {
            Self::Open(verdict, said) => return Outcome::new(verdict, said),
            Self::Gone(gone) => gone,
        };
        let counted = match deleted {
            1 => "1 document deleted".to_owned(),
            deleted => format!("{deleted} documents deleted"),
        };
        match (deleted, purged) {
            (0, Some(purged)) if batch > purged => {
                let said = "not found, but deleted documents wait for the rewrite";
                Outcome::new(Verdict::Busy, said)
            }
            (0, _) => Outcome::new(Verdict::Absent, "not found"),
            (_, Some(purged)) if batch > purged => {
                Outcome::new(Verdict::Busy, format!("{counted}, and on the disk until the rewrite"))
            }
            (_, Some(_)) => {
                Outcome::new(Verdict::Deleted, format!("{counted}, segments rewritten"))
            }
            (_, None) => {
                Outcome::new(Verdict::Deleted, format!("{counted}; the bytes wait for a merge"))
            }
        }
    }
}

/// Runs what blocks where that is allowed. It is carried through, also when nobody waits any more.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SinkError> {
    let done = spawn_blocking(work).await;
    done.map_err(|error| SinkError::Protocol(format!("tantivy did not come to an end: {error}")))
}

/// Deletes the documents of `wanted` in one commit. None if another writer holds the lock.
///
/// The lock comes first: what is seen under it nobody changes before the commit, and an absence is
/// not that of a document which another writer has yet to commit.
fn delete(shared: &Shared, wanted: &[Wanted]) -> Result<Option<Vec<(usize, End)>>, SinkError> {
    let config = &shared.config;
    let opened = Opened::open(config)?;
    let id_field = opened.id_field(config)?;
    let Some(mut writer) = opened.writer()? else { return Ok(None) };
    let reader = opened.reader()?;
    let searcher = reader.searcher();
    let see = |wanted: &Wanted| see(&opened, id_field, &searcher, &wanted.key);
    let seen: Vec<Result<Seen, String>> = wanted.iter().map(see).collect::<Result<_, _>>()?;
    let mut ends = Vec::new();
    let mut deleted: Vec<(Gone, Vec<usize>, Seen)> = Vec::new();
    let batch = {
        let mut state = shared.state();
        state.batch += 1;
        let batch = state.batch;
        if state.remembered.len() + wanted.len() > REMEMBERED_MAX {
            state.remembered.clear();
        }
        // Invariant (S1): the fences are asked after all else, and nothing slow comes before the
        // commit; conformance: `a_target_whose_fence_is_over_is_not_touched`.
        for (wanted, seen) in wanted.iter().zip(seen) {
            let mut live = Vec::new();
            for (place, fence) in &wanted.targets {
                match fence.holds() {
                    true => live.push(*place),
                    false => ends.push((*place, End::Open(Verdict::Busy, "lease over".into()))),
                }
            }
            if live.is_empty() {
                continue;
            }
            let end = match seen {
                Err(why) => End::Open(Verdict::Refused, why),
                // Invariant (S8): a document that has another value too stays, and with it all of
                // the term, since tantivy deletes by term;
                // `a_document_that_holds_another_key_too_stays`.
                Ok(Seen { found: Found { shared, .. }, .. }) if shared > 0 => {
                    let said =
                        format!("{shared} documents have another value too, so nothing goes");
                    End::Open(Verdict::Refused, said)
                }
                Ok(seen) if seen.found.own > 0 => {
                    // As with a request: once it is sent, its answer may be lost.
                    let gone = Gone { batch, deleted: seen.found.own };
                    state.remembered.insert(wanted.key.clone(), gone);
                    deleted.push((gone, live, seen));
                    continue;
                }
                Ok(_) => {
                    let absent = Gone { batch, deleted: 0 };
                    End::Gone(*state.remembered.entry(wanted.key.clone()).or_insert(absent))
                }
            };
            ends.extend(live.into_iter().map(|place| (place, end.clone())));
        }
        batch
    };
    if !deleted.is_empty() {
        commit(&opened, &mut writer, deleted.iter().map(|(.., seen)| &seen.term))?;
        reader.reload().map_err(|error| opened.failure(error))?;
        let searcher = reader.searcher();
        for (gone, live, Seen { field, term, .. }) in deleted {
            let left = field.find(&searcher, &term).map_err(|error| opened.failure(error))?;
            let end = match left {
                Found { own: 0, shared: 0 } => End::Gone(gone),
                Found { .. } => End::Open(Verdict::Unknown, "committed, but it is there".into()),
            };
            ends.extend(live.into_iter().map(|place| (place, end.clone())));
        }
    }
    if config.purge && opened.leftovers()?.is_empty() {
        shared.state().purged = batch;
    }
    Ok(Some(ends))
}

fn commit<'a>(
    opened: &Opened,
    writer: &mut IndexWriter,
    terms: impl Iterator<Item = &'a Term>,
) -> Result<(), SinkError> {
    // The payload is where an application keeps how far it has come, and a commit replaces it.
    let payload = opened.payload()?;
    for term in terms {
        writer.delete_term(term.clone());
    }
    let mut prepared = writer.prepare_commit().map_err(|error| opened.failure(error))?;
    if let Some(payload) = payload {
        prepared.set_payload(&payload);
    }
    prepared.commit().map_err(|error| opened.failure(error))?;
    Ok(())
}

/// What is there of one key, or why it is not asked for.
fn see(
    opened: &Opened,
    id_field: Exact,
    searcher: &Searcher,
    (name, value): &Key,
) -> Result<Result<Seen, String>, SinkError> {
    let field = match name {
        None => Ok(id_field),
        Some(name) => Exact::of(&opened.schema(), name)
            .map_err(|problem| format!("not sent: field `{name}`: {problem}")),
    };
    let asked = field.and_then(|field| match field.term(value) {
        Ok(term) => Ok((field, term)),
        Err(why) => Err(format!("not sent: {why}")),
    });
    let (field, term) = match asked {
        Ok(asked) => asked,
        Err(why) => return Ok(Err(why)),
    };
    let found = field.find(searcher, &term).map_err(|error| opened.failure(error))?;
    Ok(Ok(Seen { field, term, found }))
}

/// Looks at the last commit. Takes no lock of a writer, and changes nothing.
fn look(config: &TantivyConfig, keys: &[Option<Key>]) -> Result<Vec<Presence>, SinkError> {
    let opened = Opened::open(config)?;
    let id_field = opened.id_field(config)?;
    let searcher = opened.reader()?.searcher();
    let presence = |key: &Option<Key>| {
        let Some(key) = key else { return Ok(Presence::Unknown) };
        Ok(match see(&opened, id_field, &searcher, key)? {
            Err(_) => Presence::Unknown,
            Ok(Seen { found: Found { own: 0, shared: 0 }, .. }) => Presence::Absent,
            Ok(_) => Presence::Present,
        })
    };
    keys.iter().map(presence).collect()
}
