//! The listings' ports as objects, so that sides of different kinds stand side by side.

use std::time::Duration;

use futures::future::BoxFuture;
use tombstream_model::{
    Address, Key, LedgerError, ListedRow, Listing, ListingError, ListingPart, Now, Registry,
    RelationId,
};

/// [`Listing`] as an object. Implemented for every listing.
pub trait ErasedListing<T>: Send + Sync + 'static {
    /// See [`Listing::parts`].
    #[expect(clippy::type_complexity, reason = "a future of a list of objects")]
    fn parts<'a>(
        &'a self,
        count: usize,
        sample: &'a [Address],
    ) -> BoxFuture<'a, Result<Vec<Box<dyn ErasedPart<T>>>, ListingError>>;
}

/// [`ListingPart`] as an object. Implemented for every part.
pub trait ErasedPart<T>: Send + 'static {
    /// See [`ListingPart::next`].
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Vec<T>>, ListingError>>;
}

/// [`Registry`] as an object. Implemented for every registry.
pub trait ErasedRegistry: Send + Sync + 'static {
    /// See [`Registry::sample`].
    fn sample(
        &self,
        relation: RelationId,
        count: usize,
    ) -> BoxFuture<'_, Result<Vec<ListedRow>, LedgerError>>;

    /// See [`Registry::now`].
    fn now<'a>(
        &'a self,
        relation: RelationId,
        keys: &'a [Key],
        settle: Duration,
    ) -> BoxFuture<'a, Result<Now, LedgerError>>;
}

impl<L: Listing> ErasedListing<L::Item> for L {
    fn parts<'a>(
        &'a self,
        count: usize,
        sample: &'a [Address],
    ) -> BoxFuture<'a, Result<Vec<Box<dyn ErasedPart<L::Item>>>, ListingError>> {
        Box::pin(async move {
            let parts = Listing::parts(self, count, sample).await?;
            Ok(parts.into_iter().map(|part| Box::new(part) as _).collect())
        })
    }
}

impl<P: ListingPart> ErasedPart<P::Item> for P {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Vec<P::Item>>, ListingError>> {
        Box::pin(ListingPart::next(self))
    }
}

impl<R: Registry> ErasedRegistry for R {
    fn sample(
        &self,
        relation: RelationId,
        count: usize,
    ) -> BoxFuture<'_, Result<Vec<ListedRow>, LedgerError>> {
        Box::pin(Registry::sample(self, relation, count))
    }

    fn now<'a>(
        &'a self,
        relation: RelationId,
        keys: &'a [Key],
        settle: Duration,
    ) -> BoxFuture<'a, Result<Now, LedgerError>> {
        Box::pin(Registry::now(self, relation, keys, settle))
    }
}
