//! The comparison of rows, ledger and stores: what is there and should not be, and what should be there and is
//! not.
//!
//! Owned here: one dataflow in which every side's addresses meet by hash (`side.rs`, `flow.rs`), on disk, so that
//! memory is bounded however large a store is (`spill.rs`); what follows from what was seen (`judge.rs`); the
//! second look at what was suspected (`look.rs`). Left to others: how a side is listed, and proves that it was
//! listed whole (the connectors); reports and repairs (the binary). Nothing here destroys anything.
//!
//! It is a module and no crate of its own: timely stays in one crate, and a feed that wakes its worker exists here
//! already. It shares nothing else with the pipeline.
//! ```text
//!  rows ───┐                         ┌─▶ words ──┐ bucket by
//!  ledger ─┼─▶ addresses ─▶ exchange ┤           ├─▶ bucket ─▶ suspects ─▶ settle ─▶ second look ─▶ findings
//!  stores ─┘                by hash  └─▶ copies ─┘
//! ```

mod entry;
mod flow;
mod judge;
mod look;
mod port;
mod side;
mod spill;
mod suspect;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use timely::worker::Worker;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tombstream_model::{
    Address, Disposition, LedgerError, Listed, ListedDeletion, ListedRow, ListingError, Relation,
    RelationId, StoreId,
};
use tracing::info;

use crate::bridge::{FeedReceiver, FeedSender, Flag, feed};
use crate::port::ErasedSink;
use crate::retry::Backoff;
use flow::{Permitted, Shared};
pub use judge::Wrong;
pub use look::Finding;
use look::{Looked, Second};
pub use port::{ErasedListing, ErasedPart, ErasedRegistry};
use side::{Page, Sides};
use suspect::{Suspect, Suspects};

/// Everything that is compared.
pub struct Reconcile {
    /// The limits.
    pub config: ReconcileConfig,
    /// The relations; a `RelationId` is an index into them.
    pub relations: Arc<[Relation]>,
    /// Their rows.
    pub rows: Arc<dyn ErasedListing<ListedRow>>,
    /// The ledger's deletions.
    pub deletions: Arc<dyn ErasedListing<ListedDeletion>>,
    /// Rows and deletions by key.
    pub registry: Arc<dyn ErasedRegistry>,
    /// The stores that are compared: all, or some.
    pub stores: Vec<ReconcileStore>,
}

/// The limits.
#[derive(Clone, Debug)]
pub struct ReconcileConfig {
    /// Timely workers.
    pub workers: usize,
    /// Parts of each side that are read side by side. 4: servers answer faster so, and a database's pool has
    /// ten.
    pub parts: usize,
    /// How long something must stay wrong. 60 s: an indexer's refresh and a deletion under way take seconds.
    pub settle: Duration,
    /// Where entries are kept that wait to be compared.
    pub folder: PathBuf,
    /// Entries that are listed and not on disk yet: some 200 bytes each.
    pub in_flight_max: usize,
    /// Bytes of rows and deletions that one worker holds at a time; in memory they take three times as much.
    /// 16 MiB: a hundred thousand addresses.
    pub bucket_bytes_max: u64,
}

impl ReconcileConfig {
    /// The defaults, with `folder` for what does not fit in memory.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            workers: 2,
            parts: 4,
            settle: Duration::from_secs(60),
            folder,
            in_flight_max: 65_536,
            bucket_bytes_max: 16 << 20,
        }
    }
}

/// A store that is compared.
pub struct ReconcileStore {
    /// Its place in the configuration.
    pub id: StoreId,
    /// Its name.
    pub name: Arc<str>,
    /// What it shows.
    pub listing: Arc<dyn ErasedListing<Listed>>,
    /// Where single copies are looked for.
    pub sink: Arc<dyn ErasedSink>,
    /// Whether every living row should have its copies there.
    pub expects_all: bool,
    /// Whether it may show nothing at all though living rows should have copies there.
    pub may_be_empty: bool,
}

/// How much was compared, and what came of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// Rows.
    pub rows: u64,
    /// Addresses of living rows that could not be resolved: the pipeline would park them.
    pub unaddressed: u64,
    /// The ledger's deletions.
    pub deletions: u64,
    /// Each store, in the order given.
    pub stores: Vec<StoreTally>,
    /// What the first look suspected.
    pub suspects: u64,
    /// What was wrong at both looks.
    pub found: BTreeMap<Wrong, u64>,
    /// Bytes that were kept on disk.
    pub spilled_bytes: u64,
    /// How long the listings took, and all was compared.
    pub compared_in: Duration,
    /// How long the second look took, without the window before it.
    pub looked_in: Duration,
}

/// How much was compared of a store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoreTally {
    /// Its name.
    pub name: String,
    /// Copies that it showed.
    pub copies: u64,
    /// Of those, copies at places that no template leads to. Nothing is said against them, unless the ledger
    /// knew them.
    pub elsewhere: u64,
    /// Copies that living rows should have there.
    pub expected: u64,
    /// Suspects of which its second answer proved nothing.
    pub unclear: u64,
}

/// Why nothing can be said.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// A store did not answer, or its listing was not whole.
    #[error("store {store}: {source}")]
    Store {
        /// Which one.
        store: Arc<str>,
        /// What was wrong.
        source: ListingError,
    },
    /// A store shows nothing.
    #[error(
        "store {store} shows no copy at all, and {expected} copies of living rows should be there: is it the right \
         bucket, index or prefix? If it may be empty: --allow-empty {store}"
    )]
    Empty {
        /// Which one.
        store: Arc<str>,
        /// How many should be there.
        expected: u64,
    },
    /// The rows, or the ledger.
    #[error("the {what} can't be listed: {source}")]
    Database {
        /// Which of them.
        what: &'static str,
        /// What was wrong.
        source: ListingError,
    },
    /// Single rows.
    #[error("rows can't be looked at again: {0}")]
    Registry(#[from] LedgerError),
    /// Where entries are kept.
    #[error("{0}")]
    Folder(String),
    /// The report.
    #[error("the report can't be written")]
    Report(#[source] io::Error),
    /// A worker ended by itself.
    #[error("the comparison broke: {0}")]
    Broken(String),
}

impl Reconcile {
    /// Compares everything, waits, looks again, and shows `report` what is wrong at both looks. Nothing is shown
    /// unless every side was listed whole.
    pub async fn run(
        self,
        report: &mut (dyn FnMut(&Finding) -> io::Result<()> + Send),
    ) -> Result<Tally, ReconcileError> {
        let begun = Instant::now();
        let (shared, suspects) = self.compare().await?;
        let compared = Instant::now();
        let mut tally = self.tally(&shared);
        tally.suspects = suspects.iter().map(|suspects| suspects.count).sum();
        tally.compared_in = compared - begun;
        info!(
            suspects = tally.suspects,
            settle_s = self.config.settle.as_secs_f64(),
            "all is compared; what is suspected is looked at again after the settle window"
        );
        if tally.suspects > 0 {
            tokio::time::sleep(self.config.settle).await;
        }
        let looking = Instant::now();
        self.look_again(&shared.sides, suspects, &mut tally, report).await?;
        tally.looked_in = looking.elapsed();
        Ok(tally)
    }

    fn tally(&self, shared: &Shared) -> Tally {
        let seen = &shared.sides.seen;
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let store = |store: &ReconcileStore| {
            let counts = &seen.stores[usize::from(store.id.0)];
            StoreTally {
                name: store.name.to_string(),
                copies: get(&counts.copies),
                elsewhere: get(&counts.elsewhere),
                expected: get(&counts.expected),
                unclear: 0,
            }
        };
        Tally {
            rows: get(&seen.rows),
            unaddressed: get(&seen.unaddressed),
            deletions: get(&seen.deletions),
            stores: self.stores.iter().map(store).collect(),
            spilled_bytes: get(&shared.spilled_bytes),
            ..Tally::default()
        }
    }

    /// The first look.
    async fn compare(&self) -> Result<(Arc<Shared>, Vec<Suspects>), ReconcileError> {
        let ids = self.stores.iter().map(|store| usize::from(store.id.0) + 1).max().unwrap_or(0);
        let mut stores = vec![None; ids];
        for store in &self.stores {
            stores[usize::from(store.id.0)] = Some(store.expects_all);
        }
        let (failure, mut failed) = watch::channel(None);
        let shared = Arc::new(Shared {
            sides: Sides::new(Arc::clone(&self.relations), stores),
            permits: Semaphore::new(self.config.in_flight_max.max(1)),
            permits_max: self.config.in_flight_max.max(1),
            is_whole: AtomicBool::new(false),
            folder: self.config.folder.clone(),
            bucket_bytes_max: self.config.bucket_bytes_max,
            spilled_bytes: AtomicU64::new(0),
            suspects: Mutex::default(),
            failure,
        });
        let (end, ended) = Flag::new();
        let (feeds, receivers): (Vec<_>, Vec<_>) =
            (0..self.config.workers.max(1)).map(|_| feed(ended.clone())).unzip();
        let wakers: Vec<_> = feeds.iter().map(FeedSender::waker).collect();
        let threads = work(receivers, &shared, ended)?;

        let read = tokio::select! {
            biased;
            _ = failed.wait_for(Option::is_some) => Ok(None), // Said below.
            read = self.read(&shared, feeds) => read.map(Some),
        };
        if read.is_ok() && shared.failure.borrow().is_none() {
            shared.is_whole.store(true, Ordering::Release);
        } else {
            end.send_replace(true);
        }
        // Dropped with what `read` returned: the workers judge, and run dry.
        let read = read.map(drop);
        wakers.iter().for_each(crate::bridge::Waker::wake);
        let worked = threads.await;
        // Invariant (S6): nothing is reported unless every listing was whole; what a broken one leaves out would
        // be missing. `a_listing_that_breaks_reports_nothing`.
        read?;
        if let Some(said) = shared.failure.borrow().clone() {
            return Err(ReconcileError::Folder(said));
        }
        match worked {
            Ok(Ok(())) => {}
            Ok(Err(said)) => return Err(ReconcileError::Broken(said)),
            Err(_) => return Err(ReconcileError::Broken("the workers' end was not seen".into())),
        }
        for (store, seen) in self.stores.iter().zip(&self.tally(&shared).stores) {
            // Invariant (S6): a store that shows nothing is an error, never "everything is missing";
            // `an_empty_store_is_an_error_unless_it_may_be_empty`.
            if seen.copies == 0 && seen.expected > 0 && !store.may_be_empty {
                let store = Arc::clone(&store.name);
                return Err(ReconcileError::Empty { store, expected: seen.expected });
            }
        }
        let suspects =
            std::mem::take(&mut *shared.suspects.lock().unwrap_or_else(PoisonError::into_inner));
        Ok((shared, suspects))
    }

    /// Reads every part of every side to its proven end.
    async fn read(
        &self,
        shared: &Arc<Shared>,
        feeds: Vec<FeedSender<Permitted>>,
    ) -> Result<Arc<Lines>, ReconcileError> {
        let lines =
            Arc::new(Lines { feeds, next: AtomicUsize::new(0), shared: Arc::clone(shared) });
        let count = self.config.parts.max(1);
        let samples = self.samples(shared).await?;
        let database = |what| move |source| ReconcileError::Database { what, source };
        let mut tasks: JoinSet<Result<(), ReconcileError>> = JoinSet::new();
        let rows = persist(|| self.rows.parts(count, &[]), passes).await;
        for part in rows.map_err(database("rows"))? {
            let lines = Arc::clone(&lines);
            tasks.spawn(async move {
                let weigh = |row: &ListedRow| lines.shared.sides.weigh_row(row);
                lines.read(part, weigh, Page::Rows).await.map_err(database("rows"))
            });
        }
        let deletions = persist(|| self.deletions.parts(count, &[]), passes).await;
        for part in deletions.map_err(database("ledger"))? {
            let lines = Arc::clone(&lines);
            tasks.spawn(async move {
                let weigh = |deletion: &ListedDeletion| deletion.addresses.len();
                lines.read(part, weigh, Page::Deletions).await.map_err(database("ledger"))
            });
        }
        for store in &self.stores {
            let failed = {
                let store = Arc::clone(&store.name);
                move |source| ReconcileError::Store { store: Arc::clone(&store), source }
            };
            let sample = samples.get(&store.id).map(Vec::as_slice).unwrap_or_default();
            let parts = persist(|| store.listing.parts(count, sample), passes).await;
            for part in parts.map_err(&failed)? {
                let (lines, id, failed) = (Arc::clone(&lines), store.id, failed.clone());
                tasks.spawn(async move {
                    let weigh = |listed: &Listed| lines.shared.sides.weigh_copy(listed);
                    lines.read(part, weigh, |page| Page::Copies(id, page)).await.map_err(failed)
                });
            }
        }
        while let Some(done) = tasks.join_next().await {
            done.map_err(|error| ReconcileError::Broken(error.to_string()))??;
        }
        Ok(lines)
    }

    /// Some addresses of each store, from all over the relations.
    async fn samples(
        &self,
        shared: &Shared,
    ) -> Result<BTreeMap<StoreId, Vec<Address>>, ReconcileError> {
        const SAMPLE: usize = 1_000;
        let mut samples: BTreeMap<StoreId, Vec<Address>> = BTreeMap::new();
        for (_, id) in self.relations.iter().zip(0..) {
            let sample = || self.registry.sample(RelationId(id), SAMPLE);
            let rows = persist(sample, |error| error.disposition() == Disposition::Retry).await?;
            for target in rows.iter().flat_map(|row| shared.sides.of_row(row).0) {
                samples.entry(target.store).or_default().push(target.address);
            }
        }
        Ok(samples)
    }

    async fn look_again(
        &self,
        sides: &Sides,
        suspects: Vec<Suspects>,
        tally: &mut Tally,
        report: &mut (dyn FnMut(&Finding) -> io::Result<()> + Send),
    ) -> Result<(), ReconcileError> {
        const BATCH: usize = 500;
        const AT_ONCE: usize = 4;
        let second = Second {
            sides,
            stores: &self.stores,
            registry: &*self.registry,
            settle: self.config.settle,
        };
        let unread = |error: io::Error| {
            ReconcileError::Folder(format!("what was suspected can't be read back: {error}"))
        };
        for suspects in suspects {
            let suspects = suspects.read().map_err(unread)?;
            let batches = stream::iter(suspects).chunks(BATCH).map(|batch| {
                let second = &second;
                let look = async move {
                    let batch: io::Result<Vec<Suspect>> = batch.into_iter().collect();
                    second.look(batch.map_err(unread)?).await
                };
                // Boxed, so that the whole may be sent to another thread: the compiler can't see it else.
                look.boxed()
            });
            let mut batches = std::pin::pin!(batches.buffered(AT_ONCE));
            while let Some(Looked { findings, unclear }) = batches.try_next().await? {
                for finding in findings {
                    *tally.found.entry(finding.kind).or_default() += 1;
                    report(&finding).map_err(ReconcileError::Report)?;
                }
                for (id, count) in unclear {
                    let place = self.stores.iter().position(|store| store.id == id);
                    tally.stores[place.expect("only its stores are asked")].unclear += count;
                }
            }
        }
        Ok(())
    }
}

/// The lines to the workers.
struct Lines {
    feeds: Vec<FeedSender<Permitted>>,
    next: AtomicUsize,
    shared: Arc<Shared>,
}

impl Lines {
    /// Reads one part to its end.
    async fn read<T: 'static>(
        &self,
        mut part: Box<dyn ErasedPart<T>>,
        weigh: impl Fn(&T) -> usize,
        page: impl Fn(Vec<T>) -> Page,
    ) -> Result<(), ListingError> {
        // Small beside the permits, so that several parts fit in.
        const WEIGHT_MAX: usize = 4_096;
        loop {
            let mut backoff = backoff();
            let mut tries = 0;
            let items = loop {
                match part.next().await {
                    Ok(items) => break items,
                    Err(error) if passes(&error) && tries < TRIES => tries += 1,
                    Err(error) => return Err(error),
                }
                tokio::time::sleep(backoff.next()).await;
            };
            let Some(items) = items else { return Ok(()) };
            let (mut chunk, mut weight) = (Vec::new(), 0);
            for item in items {
                weight += weigh(&item);
                chunk.push(item);
                if weight >= WEIGHT_MAX {
                    self.send(page(std::mem::take(&mut chunk)), weight).await?;
                    weight = 0;
                }
            }
            if !chunk.is_empty() {
                self.send(page(chunk), weight).await?;
            }
        }
    }

    async fn send(&self, page: Page, weight: usize) -> Result<(), ListingError> {
        let over = || ListingError::NotWhole("the comparison has ended".to_owned());
        let permits = weight.min(self.shared.permits_max);
        let granted = self.shared.permits.acquire_many(u32::try_from(permits).unwrap_or(u32::MAX));
        granted.await.map_err(|_| over())?.forget();
        let worker = self.next.fetch_add(1, Ordering::Relaxed) % self.feeds.len();
        self.feeds[worker].send(Permitted { page, permits }).await.map_err(|_| over())
    }
}

/// Starts the workers' threads. What comes back says how they ended.
fn work(
    feeds: Vec<FeedReceiver<Permitted>>,
    shared: &Arc<Shared>,
    ended: Flag,
) -> Result<oneshot::Receiver<Result<(), String>>, ReconcileError> {
    let workers = feeds.len();
    let feeds: Vec<_> = feeds.into_iter().map(|feed| Mutex::new(Some(feed))).collect();
    let shared = Arc::clone(shared);
    let run = move |worker: &mut Worker| {
        let feed = feeds[worker.index()].lock().unwrap_or_else(PoisonError::into_inner).take();
        let feed = feed.expect("each worker runs once");
        worker.dataflow(|scope| flow::assemble(scope, feed, &shared));
        while !ended.is_up() && worker.step_or_park(None) {}
        for dataflow in worker.installed_dataflows() {
            worker.drop_dataflow(dataflow);
        }
    };
    let (done, threads) = oneshot::channel();
    // Joining blocks, and so does what the workers keep on disk.
    let join = move || {
        let guards = timely::execute(timely::Config::process(workers), run);
        let result = guards.and_then(|guards| guards.join().into_iter().collect());
        if done.send(result).is_err() {
            tracing::trace!("nobody waits for the workers");
        }
    };
    let joiner = std::thread::Builder::new().name("timely:reconcile".to_owned()).spawn(join);
    joiner.map(drop).map_err(|error| ReconcileError::Broken(error.to_string()))?;
    Ok(threads)
}

/// How often the same is asked for again before a run fails.
const TRIES: u32 = 6;

fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(200), Duration::from_secs(10))
}

fn passes(error: &ListingError) -> bool {
    error.disposition() == Disposition::Retry
}

/// Asks again what may pass.
async fn persist<T, E, F>(mut ask: impl FnMut() -> F, passes: impl Fn(&E) -> bool) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let mut backoff = backoff();
    for _ in 0..TRIES {
        match ask().await {
            Err(error) if passes(&error) => tokio::time::sleep(backoff.next()).await,
            answer => return answer,
        }
    }
    ask().await
}
