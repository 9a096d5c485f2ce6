//! The port to what can be listed whole: a store's copies, a relation's rows, the ledger's deletions.
//!
//! Owned here: what one entry of each side says, and the promise of an end. Left to others: what follows from
//! a copy without a row or a row without a copy (the comparison), and where a template leads (the address).

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    Address, DeletionId, Disposition, Key, LedgerError, RelationId, SinkError, State, StoreId,
};

/// A copy as its store shows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Listed {
    /// Where it is: an object or a document, never a group of them.
    pub address: Address,
    /// The values of those of its fields by which copies are found ([`Address::Field`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<(Arc<str>, String)>,
}

/// What a row's flag asks of its copies, by Postgres's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Not flagged: its copies should be there.
    Alive,
    /// Flagged, and its copies may stay for now: a grace, a hold, a pause, the breaker.
    Waiting,
    /// Flagged; those copies should be gone whose stores can be filled again.
    HideDue,
    /// Flagged; all its copies should be gone.
    Due,
}

/// A row as the database shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedRow {
    /// Of which relation.
    pub relation: RelationId,
    /// Which row.
    pub key: Key,
    /// What its flag asks.
    pub standing: Standing,
    /// The columns that the relation's templates name, in the order of
    /// [`crate::Relation::template_columns`].
    pub columns: Vec<Option<String>>,
    /// What they were before, where that was noted: copies may be there still.
    pub former: Vec<Vec<Option<String>>>,
}

/// A deletion as the ledger shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedDeletion {
    /// Its number.
    pub id: DeletionId,
    /// Of which relation.
    pub relation: RelationId,
    /// Of which row.
    pub key: Key,
    /// Where it is in its life.
    pub state: State,
    /// Whether it was claimed or closed longer ago than was asked for.
    pub is_settled: bool,
    /// Where its copies were.
    pub addresses: Vec<(StoreId, Address)>,
}

/// Why a side could not be listed whole.
#[derive(Debug, thiserror::Error)]
pub enum ListingError {
    /// The store's error.
    #[error(transparent)]
    Store(#[from] SinkError),
    /// The database's error.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// It ended without the proof that it was whole.
    #[error("the listing is not whole: {0}")]
    NotWhole(String),
}

impl ListingError {
    /// What can be done about it.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Store(error) => error.disposition(),
            Self::Ledger(error) => error.disposition(),
            Self::NotWhole(_) => Disposition::Halt,
        }
    }
}

/// Something that can be listed whole.
pub trait Listing: Send + Sync + 'static {
    /// What it lists.
    type Item: Send + 'static;
    /// A part of it.
    type Part: ListingPart<Item = Self::Item>;

    /// Cuts it in at most `count` parts that can be read side by side. Together they are the whole, and no
    /// entry is in two. `sample` has some addresses of the rows: what lists in an order is cut evenly by them.
    fn parts(
        &self,
        count: usize,
        sample: &[Address],
    ) -> impl Future<Output = Result<Vec<Self::Part>, ListingError>> + Send;
}

/// A part of a listing, read page by page.
pub trait ListingPart: Send + 'static {
    /// What it lists.
    type Item: Send + 'static;

    /// The next page, which may be empty; none is the end.
    ///
    /// Invariant (S6): the end is said only with the proof that the part was whole: what is left out would be
    /// taken for missing. After an error the same page may be asked for again.
    fn next(
        &mut self,
    ) -> impl Future<Output = Result<Option<Vec<Self::Item>>, ListingError>> + Send;
}

/// Rows and deletions of some keys, as they are now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// The rows that are there.
    pub rows: Vec<ListedRow>,
    /// Every deletion of those keys.
    pub deletions: Vec<ListedDeletion>,
}

/// The relations' database, asked about single keys.
pub trait Registry: Send + Sync + 'static {
    /// About so many rows, from all over a relation.
    fn sample(
        &self,
        relation: RelationId,
        count: usize,
    ) -> impl Future<Output = Result<Vec<ListedRow>, LedgerError>> + Send;

    /// Rows and deletions of `keys` as they are now. A flag younger than `settle` counts as waiting, a
    /// deletion that was claimed or closed since as not settled.
    fn now(
        &self,
        relation: RelationId,
        keys: &[Key],
        settle: Duration,
    ) -> impl Future<Output = Result<Now, LedgerError>> + Send;
}
