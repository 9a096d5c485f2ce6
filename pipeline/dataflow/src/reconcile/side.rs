//! From what each side lists to entries: a row's addresses forward through its relation's templates, a copy's
//! back through all that could lead to it.
//!
//! Rows are never compared by what a copy's name tells: the address that the pipeline would destroy is compared
//! with the one where a copy is. Only where a copy *could* be a row's is asked the other way.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tombstream_model::{
    Address, Key, Listed, ListedDeletion, ListedRow, Relation, RelationId, Row, Standing, StoreId,
    TargetTemplate,
};

use super::entry::{Entry, Place, Seen, place};
use super::suspect::Note;

/// What a listing task hands to a worker.
#[derive(Debug)]
pub(crate) enum Page {
    Rows(Vec<ListedRow>),
    Deletions(Vec<ListedDeletion>),
    Copies(StoreId, Vec<Listed>),
}

/// What a template says of a copy: which address it is found by, and whose it would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trace {
    pub(crate) place: Place,
    pub(crate) relation: RelationId,
    pub(crate) key: Key,
}

/// One address of a row, and what its flag asks of the copy there.
#[derive(Clone, Debug)]
pub(crate) struct RowTarget {
    pub(crate) target: usize,
    pub(crate) store: StoreId,
    pub(crate) address: Address,
    pub(crate) seen: Seen,
}

/// What is compared, and how much of it was seen.
#[derive(Debug)]
pub(crate) struct Sides {
    relations: Arc<[Relation]>,
    columns: Vec<Vec<String>>,
    /// By store: whether it is compared, and whether a missing copy is worth a word.
    stores: Vec<Option<bool>>,
    pub(crate) seen: Counts,
}

/// How much was seen so far.
#[derive(Debug)]
pub(crate) struct Counts {
    pub(crate) rows: AtomicU64,
    pub(crate) unaddressed: AtomicU64,
    pub(crate) deletions: AtomicU64,
    pub(crate) stores: Vec<StoreCounts>,
}

/// How much was seen of one store.
#[derive(Debug, Default)]
pub(crate) struct StoreCounts {
    pub(crate) copies: AtomicU64,
    pub(crate) elsewhere: AtomicU64,
    /// Copies that living rows should have there.
    pub(crate) expected: AtomicU64,
}

fn add(count: &AtomicU64, more: usize) {
    count.fetch_add(more as u64, Ordering::Relaxed);
}

impl Sides {
    /// `stores` says by [`StoreId`] which are compared, and in which of those a copy may be missing without a
    /// word.
    pub(crate) fn new(relations: Arc<[Relation]>, stores: Vec<Option<bool>>) -> Self {
        let owned = |relation: &Relation| {
            relation.template_columns().into_iter().map(str::to_owned).collect()
        };
        let columns = relations.iter().map(owned).collect();
        let seen = Counts {
            rows: AtomicU64::new(0),
            unaddressed: AtomicU64::new(0),
            deletions: AtomicU64::new(0),
            stores: stores.iter().map(|_| StoreCounts::default()).collect(),
        };
        Self { relations, columns, stores, seen }
    }

    pub(crate) fn relation(&self, id: RelationId) -> &Relation {
        &self.relations[usize::from(id.0)]
    }

    fn compares(&self, store: StoreId) -> Option<bool> {
        self.stores.get(usize::from(store.0)).copied().flatten()
    }

    /// Most entries that an item of a page can become, so that permits can be taken before.
    pub(crate) fn weigh_row(&self, row: &ListedRow) -> usize {
        self.relation(row.relation).targets.len() * (1 + row.former.len())
    }

    /// See [`Self::weigh_row`].
    pub(crate) fn weigh_copy(&self, listed: &Listed) -> usize {
        let templates: usize = self.relations.iter().map(|relation| relation.targets.len()).sum();
        (templates * listed.fields.len().max(1)).max(2)
    }

    /// The addresses of a row, in the stores that are compared; those of former columns too. What can't be
    /// resolved is counted in the second place: the pipeline would park it.
    pub(crate) fn of_row(&self, row: &ListedRow) -> (Vec<RowTarget>, usize) {
        let relation = self.relation(row.relation);
        let names: Vec<&str> =
            self.columns[usize::from(row.relation.0)].iter().map(String::as_str).collect();
        let mut found = Vec::with_capacity(relation.targets.len());
        let mut unaddressed = 0;
        let sets = std::iter::once((&row.columns, true))
            .chain(row.former.iter().map(|columns| (columns, false)));
        for (columns, is_now) in sets {
            let values: Vec<Option<&str>> = columns.iter().map(Option::as_deref).collect();
            for (target, template) in relation.targets.iter().enumerate() {
                let Some(is_expected) = self.compares(template.store) else { continue };
                match template.address.resolve(Row { columns: &names, values: &values }) {
                    Ok(address) => {
                        let is_expected = is_expected && is_now;
                        let seen = standing(row.standing, template, is_expected);
                        found.push(RowTarget { target, store: template.store, address, seen });
                    }
                    // What was no safe address formerly never held a copy.
                    Err(_) if is_now => unaddressed += 1,
                    Err(_) => {}
                }
            }
        }
        (found, unaddressed)
    }

    /// Whose copy `listed` would be, by every template that could lead to it; each place once.
    pub(crate) fn trace(&self, store: StoreId, listed: &Listed) -> Vec<Trace> {
        let mut traces: Vec<Trace> = Vec::new();
        let mut places = HashSet::new();
        for (relation, id) in self.relations.iter().zip(0..) {
            for target in relation.targets.iter().filter(|target| target.store == store) {
                for (address, key) in target.address.trace(listed, &relation.key) {
                    let place = place(store, &address);
                    if places.insert((place, id)) {
                        traces.push(Trace { place, relation: RelationId(id), key });
                    }
                }
            }
        }
        traces
    }

    /// The entries of a page.
    pub(crate) fn entries(&self, page: Page, entries: &mut Vec<Entry>) {
        match page {
            Page::Rows(rows) => {
                add(&self.seen.rows, rows.len());
                rows.iter().for_each(|row| self.row_entries(row, entries));
            }
            Page::Deletions(deletions) => {
                add(&self.seen.deletions, deletions.len());
                for deletion in deletions {
                    let note = note(&Note::Deletion(deletion.relation, deletion.key));
                    for (store, address) in &deletion.addresses {
                        if self.compares(*store).is_some() {
                            let place = place(*store, address);
                            let seen = Seen::Known(deletion.state);
                            entries.push(Entry { place, seen, note: note.clone() });
                        }
                    }
                }
            }
            Page::Copies(store, listed) => {
                add(&self.seen.stores[usize::from(store.0)].copies, listed.len());
                listed.into_iter().for_each(|listed| self.copy_entries(store, listed, entries));
            }
        }
    }

    fn row_entries(&self, row: &ListedRow, entries: &mut Vec<Entry>) {
        let (targets, unaddressed) = self.of_row(row);
        if row.standing == Standing::Alive {
            add(&self.seen.unaddressed, unaddressed);
        }
        for RowTarget { target, store, address, seen } in targets {
            // Only a missing copy leads back to its row; others say all by being there.
            let note = match seen {
                Seen::Alive { is_expected: true } => {
                    note(&Note::Row(row.relation, target, row.key.clone()))
                }
                _ => Box::default(),
            };
            if !note.is_empty() {
                add(&self.seen.stores[usize::from(store.0)].expected, 1);
            }
            entries.push(Entry { place: place(store, &address), seen, note });
        }
    }

    fn copy_entries(&self, store: StoreId, listed: Listed, entries: &mut Vec<Entry>) {
        let traces = self.trace(store, &listed);
        let mut places: Vec<Place> = traces.iter().map(|trace| trace.place).collect();
        places.dedup();
        let is_elsewhere = places.is_empty();
        if is_elsewhere {
            // The ledger may know it by a template of former days.
            add(&self.seen.stores[usize::from(store.0)].elsewhere, 1);
            places.push(place(store, &listed.address));
            if let Address::Document { index, id, routing: Some(_) } = &listed.address {
                let unrouted =
                    Address::Document { index: Arc::clone(index), id: id.clone(), routing: None };
                places.push(place(store, &unrouted));
            }
        }
        let note = note(&Note::Copy(store, listed));
        let seen = Seen::Copy { is_elsewhere };
        entries.extend(places.into_iter().map(|place| Entry { place, seen, note: note.clone() }));
    }
}

/// What a row's flag asks of one of its copies.
fn standing(standing: Standing, target: &TargetTemplate, is_expected: bool) -> Seen {
    match standing {
        Standing::Alive => Seen::Alive { is_expected },
        Standing::HideDue if target.is_hidden_first => Seen::Due,
        Standing::Waiting | Standing::HideDue => Seen::Waiting,
        Standing::Due => Seen::Due,
    }
}

fn note(note: &Note) -> Box<[u8]> {
    serde_json::to_vec(note).expect("a note has only texts and numbers").into()
}
