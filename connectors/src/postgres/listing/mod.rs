//! Rows and deletions, listed whole, and looked at by key.
//!
//! Owned here: how a table is cut in ranges of its key, and what a row's flag asks of its copies now, by the
//! claim's own rules (`row.rs`); the ledger's deletions (`deletion.rs`). Left to others: what is compared with
//! them. Nothing is written, and no snapshot is held: each page is a statement of its own, so that a listing of
//! hours keeps no dead row alive. What moves between two pages is looked at again.

mod deletion;
mod row;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::{AssertSqlSafe, PgPool};

use tombstream_model::{
    Address, Key, LedgerError, ListedDeletion, ListedRow, Listing, ListingError, Now, Registry,
    Relation, RelationId, StoreId,
};

use super::pool::ledger_error;
use super::statement::Statements;
use super::table::key_arrays;
pub use deletion::DeletionPart;
pub use row::RowPart;

/// Rows of a page: some hundred kilobytes.
const PAGE: i64 = 2_000;

/// What all of these need.
#[derive(Debug)]
struct Shared {
    statements: Statements,
    relations: Arc<[Relation]>,
    by_name: HashMap<String, RelationId>,
    stores: HashMap<String, StoreId>,
}

/// The relations' rows, as a listing.
#[derive(Clone, Debug)]
pub struct RowListing(Arc<Shared>);

/// The ledger's deletions, as a listing.
#[derive(Clone, Debug)]
pub struct DeletionListing(Arc<Shared>);

/// Rows and deletions by key.
#[derive(Clone, Debug)]
pub struct PgRegistry(Arc<Shared>);

/// The database's two sides, and the way to ask it about single keys. A [`RelationId`] is an index into
/// `relations`, a [`StoreId`] one into `stores`.
pub fn listings(
    pool: PgPool,
    relations: Arc<[Relation]>,
    stores: &[Arc<str>],
    prepared_statements: bool,
) -> (RowListing, DeletionListing, PgRegistry) {
    let by_name = relations.iter().zip(0..);
    let by_name = by_name.map(|(relation, id)| (relation.name.to_string(), RelationId(id)));
    let stores = stores.iter().zip(0..).map(|(name, id)| (name.to_string(), StoreId(id)));
    let shared = Arc::new(Shared {
        statements: Statements::new(pool, prepared_statements),
        by_name: by_name.collect(),
        stores: stores.collect(),
        relations,
    });
    (RowListing(Arc::clone(&shared)), DeletionListing(Arc::clone(&shared)), PgRegistry(shared))
}

impl Shared {
    fn relation(&self, id: RelationId) -> &Relation {
        &self.relations[usize::from(id.0)]
    }
}

impl Listing for RowListing {
    type Item = ListedRow;
    type Part = RowPart;

    async fn parts(&self, count: usize, _: &[Address]) -> Result<Vec<RowPart>, ListingError> {
        let mut parts = Vec::new();
        for (_, id) in self.0.relations.iter().zip(0..) {
            parts.extend(row::parts(&self.0, RelationId(id), count).await.map_err(ledger_error)?);
        }
        Ok(parts)
    }
}

impl Listing for DeletionListing {
    type Item = ListedDeletion;
    type Part = DeletionPart;

    async fn parts(&self, count: usize, _: &[Address]) -> Result<Vec<DeletionPart>, ListingError> {
        Ok(deletion::parts(&self.0, count).await.map_err(ledger_error)?)
    }
}

impl Registry for PgRegistry {
    async fn sample(
        &self,
        relation: RelationId,
        count: usize,
    ) -> Result<Vec<ListedRow>, LedgerError> {
        row::sample(&self.0, relation, count).await.map_err(ledger_error)
    }

    async fn now(
        &self,
        relation: RelationId,
        keys: &[Key],
        settle: Duration,
    ) -> Result<Now, LedgerError> {
        let shared = &self.0;
        let found = async {
            let mut session = shared.statements.session().await?;
            let arrays = key_arrays(shared.relation(relation), keys.iter());
            let bind = |sql: String| {
                let query = shared.statements.query(AssertSqlSafe(sql)).bind(settle.as_secs_f64());
                arrays.iter().fold(query, |query, array| query.bind(array.clone()))
            };
            // The deletions first: a row that goes meanwhile is neither there nor finalized then, and a
            // deletion that is not seen here has its row seen below, or is seen by the next look.
            let sql = deletion::by_key_sql(shared.relation(relation));
            let rows = bind(sql).fetch_all(&mut *session).await?;
            let deletions = rows
                .iter()
                .map(|row| deletion::read(shared, row))
                .collect::<Result<Vec<_>, sqlx::Error>>()?;
            let sql = row::by_key_sql(shared.relation(relation));
            let rows = bind(sql).fetch_all(&mut *session).await?;
            let rows = rows
                .iter()
                .map(|it| row::read(shared, relation, it))
                .collect::<Result<Vec<_>, sqlx::Error>>()?;
            session.end().await?;
            let deletions = deletions.into_iter().flatten().collect();
            Ok(Now { rows, deletions })
        };
        found.await.map_err(ledger_error)
    }
}
