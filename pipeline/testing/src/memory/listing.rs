//! Listings and a registry in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tombstream_model::{
    Address, Key, LedgerError, ListedDeletion, ListedRow, Listing, ListingError, ListingPart, Now,
    Registry, RelationId,
};

/// A list in memory, in pages.
#[derive(Debug)]
pub struct MemoryListing<T> {
    items: Vec<T>,
    page: usize,
    breaks_at: Option<usize>,
}

/// A part of it.
#[derive(Debug)]
pub struct MemoryPart<T> {
    items: std::vec::IntoIter<T>,
    page: usize,
    breaks_at: Option<usize>,
}

impl<T> MemoryListing<T> {
    /// Lists `items`, so many a page.
    pub fn new(items: Vec<T>, page: usize) -> Self {
        Self { items, page, breaks_at: None }
    }

    /// Each part ends, after so many items, without the proof that it was whole.
    pub fn breaking_at(self, items: usize) -> Self {
        Self { breaks_at: Some(items), ..self }
    }
}

impl<T: Clone + Send + Sync + 'static> Listing for MemoryListing<T> {
    type Item = T;
    type Part = MemoryPart<T>;

    async fn parts(&self, count: usize, _: &[Address]) -> Result<Vec<MemoryPart<T>>, ListingError> {
        let length = self.items.len().div_ceil(count.max(1)).max(1);
        let part = |items: &[T]| MemoryPart {
            items: Vec::from(items).into_iter(),
            page: self.page,
            breaks_at: self.breaks_at,
        };
        Ok(self.items.chunks(length).map(part).collect())
    }
}

impl<T: Send + 'static> ListingPart for MemoryPart<T> {
    type Item = T;

    async fn next(&mut self) -> Result<Option<Vec<T>>, ListingError> {
        let mut page = self.page;
        if let Some(left) = &mut self.breaks_at {
            if *left == 0 {
                return Err(ListingError::NotWhole("it breaks off".to_owned()));
            }
            page = page.min(*left);
            *left -= page;
        }
        let items: Vec<T> = self.items.by_ref().take(page).collect();
        Ok((!items.is_empty()).then_some(items))
    }
}

/// Rows and deletions as they are now; they may be changed while they are compared.
#[derive(Clone, Debug, Default)]
pub struct MemoryRegistry(Arc<Mutex<Rows>>);

#[derive(Debug, Default)]
struct Rows {
    rows: BTreeMap<(RelationId, Key), ListedRow>,
    deletions: Vec<ListedDeletion>,
}

impl MemoryRegistry {
    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A row, in place of the one with its key.
    pub fn put(&self, row: ListedRow) {
        self.rows().rows.insert((row.relation, row.key.clone()), row);
    }

    /// A row goes.
    pub fn remove(&self, relation: RelationId, key: &Key) {
        self.rows().rows.remove(&(relation, key.clone()));
    }

    /// A deletion.
    pub fn note(&self, deletion: ListedDeletion) {
        self.rows().deletions.push(deletion);
    }
}

impl Registry for MemoryRegistry {
    async fn sample(
        &self,
        relation: RelationId,
        count: usize,
    ) -> Result<Vec<ListedRow>, LedgerError> {
        let rows = self.rows();
        let of = rows.rows.values().filter(|row| row.relation == relation);
        Ok(of.take(count).cloned().collect())
    }

    async fn now(
        &self,
        relation: RelationId,
        keys: &[Key],
        _settle: Duration,
    ) -> Result<Now, LedgerError> {
        let state = self.rows();
        let row = |key: &Key| state.rows.get(&(relation, key.clone())).cloned();
        let is_asked = |it: &&ListedDeletion| it.relation == relation && keys.contains(&it.key);
        Ok(Now {
            rows: keys.iter().filter_map(row).collect(),
            deletions: state.deletions.iter().filter(is_asked).cloned().collect(),
        })
    }
}
