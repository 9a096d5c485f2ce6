//! The model's ports as objects, so that sinks and sources of different kinds stand side by side.

use futures::future::BoxFuture;
use tombstream_model::{
    Mark, Outcome, Polled, Presence, Sink, SinkError, Source, SourceError, Target,
};

/// [`Sink`] as an object. Implemented for every sink.
pub trait ErasedSink: Send + Sync + 'static {
    /// See [`Sink::destroy`].
    fn destroy<'a>(&'a self, batch: &'a [Target])
    -> BoxFuture<'a, Result<Vec<Outcome>, SinkError>>;

    /// See [`Sink::look`].
    fn look<'a>(&'a self, batch: &'a [Target]) -> BoxFuture<'a, Result<Vec<Presence>, SinkError>>;

    /// See [`Sink::batch_max`].
    fn batch_max(&self) -> usize;
}

/// [`Source`] as an object. Implemented for every source.
pub trait ErasedSource: Send + 'static {
    /// See [`Source::next`].
    fn next(&mut self) -> BoxFuture<'_, Result<Polled, SourceError>>;

    /// See [`Source::commit`].
    fn commit(&mut self, marks: Vec<Mark>) -> BoxFuture<'_, Result<(), SourceError>>;

    /// See [`Source::has_ended`].
    fn has_ended(&self) -> bool;

    /// See [`Source::pause`].
    fn pause(&mut self, topic: &str) -> Result<(), SourceError>;

    /// See [`Source::close`].
    fn close(&mut self) -> BoxFuture<'_, ()>;
}

impl<S: Sink> ErasedSink for S {
    fn destroy<'a>(
        &'a self,
        batch: &'a [Target],
    ) -> BoxFuture<'a, Result<Vec<Outcome>, SinkError>> {
        Box::pin(Sink::destroy(self, batch))
    }

    fn look<'a>(&'a self, batch: &'a [Target]) -> BoxFuture<'a, Result<Vec<Presence>, SinkError>> {
        Box::pin(Sink::look(self, batch))
    }

    fn batch_max(&self) -> usize {
        Sink::batch_max(self)
    }
}

impl<S: Source> ErasedSource for S {
    fn next(&mut self) -> BoxFuture<'_, Result<Polled, SourceError>> {
        Box::pin(Source::next(self))
    }

    fn commit(&mut self, marks: Vec<Mark>) -> BoxFuture<'_, Result<(), SourceError>> {
        Box::pin(Source::commit(self, marks))
    }

    fn has_ended(&self) -> bool {
        Source::has_ended(self)
    }

    fn pause(&mut self, topic: &str) -> Result<(), SourceError> {
        Source::pause(self, topic)
    }

    fn close(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(Source::close(self))
    }
}
