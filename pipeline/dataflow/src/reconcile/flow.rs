//! The dataflow: pages in, entries exchanged by place, buckets judged when every listing has ended.

use std::collections::HashMap;
use std::collections::hash_map;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::{Capability, Operator as _, Probe as _, probe};
use timely::dataflow::{Scope, StreamVec};
use tokio::sync::{Semaphore, watch};

use super::entry::{Entry, Place, Seen};
use super::judge::Word;
use super::side::{Page, Sides};
use super::spill::{BUCKETS, Spill};
use super::suspect::{Note, Suspect, Suspects};
use crate::bridge::{Epoch, Fed, FeedReceiver};

/// Pages that are given before other operators get their turn.
const FUEL: usize = 4;

/// A page with the permits that were taken for it.
pub(crate) struct Permitted {
    pub(crate) page: Page,
    pub(crate) permits: usize,
}

/// What the workers share with the task that drives them.
pub(crate) struct Shared {
    pub(crate) sides: Sides,
    /// Entries that are listed and not yet on disk: so many at a time.
    pub(crate) permits: Semaphore,
    pub(crate) permits_max: usize,
    /// Every listing has ended with its proof.
    pub(crate) is_whole: AtomicBool,
    pub(crate) folder: PathBuf,
    pub(crate) bucket_bytes_max: u64,
    pub(crate) spilled_bytes: AtomicU64,
    pub(crate) suspects: Mutex<Vec<Suspects>>,
    /// Why a worker could not go on.
    pub(crate) failure: watch::Sender<Option<String>>,
}

impl Shared {
    fn fail(&self, error: &io::Error) {
        let said = format!("the folder {} can't be used: {error}", self.folder.display());
        self.failure.send_replace(Some(said));
    }
}

/// One worker's flow.
pub(crate) fn assemble(
    scope: Scope<'_, Epoch>,
    feed: FeedReceiver<Permitted>,
    shared: &Arc<Shared>,
) -> probe::Handle<Epoch> {
    let entries = listed(scope, feed, Arc::clone(shared));
    let shared = Arc::clone(shared);
    entries
        .unary_frontier::<CapacityContainerBuilder<Vec<()>>, _, _, _>(
            Exchange::new(|entry: &Entry| entry.worker()),
            "reconcile",
            |capability, _| {
                let mut held = Some(capability);
                let mut heap = Heap::new(&shared);
                move |(input, frontier), _output| {
                    let mut taken = 0;
                    input.for_each_stamp(|_, batches| {
                        for entry in batches.flat_map(|batch| batch.drain(..)) {
                            taken += 1;
                            if let Ok(open) = &mut heap
                                && let Err(error) = open.push(&entry)
                            {
                                heap = Err(error);
                            }
                        }
                    });
                    shared.permits.add_permits(taken);
                    if let Err(error) = &heap {
                        shared.fail(error);
                    }
                    if frontier.is_empty() && held.take().is_some() {
                        // What broke is not even judged; that it is not reported does not rest on this.
                        if shared.is_whole.load(Ordering::Acquire)
                            && let Ok(heap) = &mut heap
                            && let Err(error) = heap.judge(&shared)
                        {
                            shared.fail(&error);
                        }
                    }
                }
            },
        )
        .probe()
        .0
}

/// Gives what the listings bring, as entries.
fn listed<'scope>(
    scope: Scope<'scope, Epoch>,
    mut feed: FeedReceiver<Permitted>,
    shared: Arc<Shared>,
) -> StreamVec<'scope, Epoch, Entry> {
    let worker = scope.worker();
    let mut builder = OperatorBuilder::new("listed".to_owned(), scope);
    let info = builder.operator_info();
    let (output, stream) = builder.new_output::<Vec<Entry>>();
    let mut output = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(output);
    builder.build(move |capabilities| {
        let activator = worker.activator_for(Rc::clone(&info.address));
        feed.wakes(worker.sync_activator_for(info.address.to_vec()));
        activator.activate();
        let mut held: Vec<Capability<Epoch>> = capabilities;
        let mut entries = Vec::new();
        move |_| {
            let mut output = output.activate();
            for turn in 0.. {
                if held.is_empty() {
                    break;
                }
                if turn == FUEL {
                    activator.activate();
                    break;
                }
                match feed.receive() {
                    Fed::Nothing => break,
                    Fed::Closed => held.clear(),
                    Fed::Something(Permitted { page, permits }) => {
                        shared.sides.entries(page, &mut entries);
                        // The page was weighed with the most that it could become.
                        shared.permits.add_permits(permits.saturating_sub(entries.len()));
                        output.session(&held[0]).give_iterator(entries.drain(..));
                    }
                }
            }
        }
    });
    stream
}

/// One worker's entries, on disk.
struct Heap {
    /// Rows and deletions.
    words: Spill,
    copies: Spill,
    suspects: Option<Suspects>,
}

/// The bytes of a place before this one tell the worker.
const FIRST_BYTE: usize = 8;
/// Beyond this a bucket is one place, and not told apart any more.
const LAST_BYTE: usize = 15;

impl Heap {
    fn new(shared: &Shared) -> io::Result<Self> {
        Ok(Self {
            words: Spill::new(&shared.folder, FIRST_BYTE)?,
            copies: Spill::new(&shared.folder, FIRST_BYTE)?,
            suspects: Some(Suspects::new(&shared.folder)?),
        })
    }

    fn push(&mut self, entry: &Entry) -> io::Result<()> {
        match entry.seen.is_copy() {
            true => self.copies.push(entry),
            false => self.words.push(entry),
        }
    }

    fn judge(&mut self, shared: &Shared) -> io::Result<()> {
        let Some(mut suspects) = self.suspects.take() else { return Ok(()) };
        let spilled = self.words.total() + self.copies.total();
        shared.spilled_bytes.fetch_add(spilled, Ordering::Relaxed);
        for bucket in 0..BUCKETS {
            judge(&self.words, &self.copies, bucket, FIRST_BYTE, shared, &mut suspects)?;
        }
        shared.suspects.lock().unwrap_or_else(PoisonError::into_inner).push(suspects);
        Ok(())
    }
}

/// What is held of a place while its bucket is judged.
struct Known {
    word: Word,
    was_seen: bool,
    /// The row whose copy is expected, or whose deletion the ledger knows.
    notes: [Box<[u8]>; 2],
}

/// Judges one bucket: what is known of rows and deletions in memory, the copies read past it. One that is
/// larger than it may be is told apart by the next byte first.
fn judge(
    words: &Spill,
    copies: &Spill,
    bucket: usize,
    byte: usize,
    shared: &Shared,
    suspects: &mut Suspects,
) -> io::Result<()> {
    if words.bytes(bucket) > shared.bucket_bytes_max && byte < LAST_BYTE {
        let mut finer_words = Spill::new(&shared.folder, byte + 1)?;
        let mut finer_copies = Spill::new(&shared.folder, byte + 1)?;
        words.each(bucket, |entry| finer_words.push(&entry))?;
        copies.each(bucket, |entry| finer_copies.push(&entry))?;
        for bucket in 0..BUCKETS {
            judge(&finer_words, &finer_copies, bucket, byte + 1, shared, suspects)?;
        }
        return Ok(());
    }
    let mut places: HashMap<Place, Known> = HashMap::new();
    words.each(bucket, |entry| {
        let known = match places.entry(entry.place) {
            hash_map::Entry::Occupied(known) => known.into_mut(),
            hash_map::Entry::Vacant(free) => {
                let notes = [Box::default(), Box::default()];
                free.insert(Known { word: Word::default(), was_seen: false, notes })
            }
        };
        known.word.add(entry.seen);
        let nth = usize::from(matches!(entry.seen, Seen::Known(_)));
        if !entry.note.is_empty() {
            known.notes[nth] = entry.note;
        }
        Ok(())
    })?;
    copies.each(bucket, |entry| {
        let is_elsewhere = matches!(entry.seen, Seen::Copy { is_elsewhere: true });
        let known = places.get_mut(&entry.place);
        let word = match &known {
            Some(known) => known.word,
            None => Word::default(),
        };
        if word.of_copy(is_elsewhere).is_some() {
            let known = match &known {
                Some(known) if !known.notes[1].is_empty() => {
                    match serde_json::from_slice(&known.notes[1])? {
                        Note::Deletion(relation, key) => Some((relation, key)),
                        Note::Row(..) | Note::Copy(..) => None,
                    }
                }
                _ => None,
            };
            let note = serde_json::from_slice(&entry.note)?;
            suspects.push(&Suspect { place: entry.place, note, known })?;
        }
        if let Some(known) = known {
            known.was_seen = true;
        }
        Ok(())
    })?;
    for (place, known) in places {
        if known.word.is_alive() && known.word.is_expected && !known.was_seen {
            let note = serde_json::from_slice(&known.notes[0])?;
            suspects.push(&Suspect { place, note, known: None })?;
        }
    }
    Ok(())
}
