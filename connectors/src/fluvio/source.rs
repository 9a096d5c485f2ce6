//! The port: what the pipeline asks of Fluvio.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use tombstream_model::{Mark, Polled, Source, SourceError};
use tracing::{info, warn};

use super::config::{FluvioConfig, FluvioConfigError};
use super::reader::{self, Reader};
use super::shared::Shared;
use crate::log::{Buffer, Gap};

/// How long the answer to a commit is waited for. It is sent again in any case.
const COMMIT_WAIT: Duration = Duration::from_secs(5);
/// How long dropping the source waits for the last commits.
const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// How many polls the buffer holds.
const POLLS_BUFFERED: usize = 4;

/// Events of several topics, all of their partitions.
///
/// Dropping it commits what was handed in and waits for that, 5 s at most.
#[derive(Debug)]
pub struct FluvioSource {
    shared: Arc<Shared>,
    items_max: usize,
    done: Receiver<()>,
}

impl FluvioSource {
    /// Reads `topics`. It returns before the cluster has answered.
    ///
    /// `on_gap` hears of every offset to go on from that is not in the log. It is called on the
    /// reader's thread, and must not block.
    pub fn new(
        config: &FluvioConfig,
        topics: &[String],
        on_gap: impl Fn(&Gap) + Send + Sync + 'static,
    ) -> Result<Self, FluvioConfigError> {
        let mut names: Vec<Arc<str>> = topics.iter().map(|topic| topic.as_str().into()).collect();
        names.sort_unstable();
        names.dedup();
        if names.is_empty() {
            return Err(FluvioConfigError::Topics);
        }
        config.validate(topics)?;
        let cluster = Arc::new(config.cluster()?);
        let items_max = config.items_max.get();
        let buffer =
            Buffer::new(items_max.saturating_mul(POLLS_BUFFERED), config.buffer_bytes_max.get());
        let shared = Arc::new(Shared::new(buffer, Box::new(on_gap)));
        info!(consumer = config.consumer, topics = ?names, "reading from fluvio");
        let reader = Reader {
            shared: Arc::clone(&shared),
            cluster,
            consumer: config.consumer.clone(),
            topics: names,
        };
        let (done_in, done) = channel();
        std::thread::Builder::new()
            .name("fluvio".into())
            .spawn(move || reader::run(reader, done_in))
            .map_err(FluvioConfigError::Thread)?;
        Ok(Self { shared, items_max, done })
    }

    /// Waits until the cluster has `marks`.
    async fn settle(&mut self, marks: &[Mark]) -> Result<(), SourceError> {
        loop {
            let answered = self.shared.answered.notified();
            {
                let state = self.shared.lock();
                if state.assignments.has(marks) {
                    return Ok(());
                }
                if let Some(reason) = &state.fatal {
                    return Err(SourceError::Fatal(reason.clone()));
                }
            }
            answered.await;
        }
    }
}

impl Source for FluvioSource {
    async fn next(&mut self) -> Result<Polled, SourceError> {
        loop {
            {
                let mut state = self.shared.lock();
                if let Some(polled) = state.buffer.take(self.items_max) {
                    let room = !state.buffer.is_full();
                    drop(state);
                    if room {
                        self.shared.room.notify_waiters();
                    }
                    return Ok(polled);
                }
                if let Some(reason) = &state.fatal {
                    return Err(SourceError::Fatal(reason.clone()));
                }
                if let Some(error) = state.unavailable.take() {
                    return Err(error);
                }
            }
            // A permit is kept if something came since the look above. Nothing is held across this.
            self.shared.readable.notified().await;
        }
    }

    async fn commit(&mut self, marks: Vec<Mark>) -> Result<(), SourceError> {
        self.shared.lock().assignments.want(&marks);
        self.shared.due.notify_waiters();
        match tokio::time::timeout(COMMIT_WAIT, self.settle(&marks)).await {
            Ok(result) => result,
            Err(_) => Err(SourceError::Unavailable(
                format!("no answer to a commit within {COMMIT_WAIT:?}; it is sent again").into(),
            )),
        }
    }

    fn pause(&mut self, topic: &str) -> Result<(), SourceError> {
        let mut state = self.shared.lock();
        if !state.paused.insert(topic.to_owned()) {
            return Ok(());
        }
        // No mark will pass them in this process, so they are read again by the next one.
        state.buffer.retain(|event, _| &*event.origin.topic != topic);
        drop(state);
        self.shared.room.notify_waiters();
        warn!(topic, "reading of this topic is paused until the process is started again");
        Ok(())
    }
}

impl Drop for FluvioSource {
    fn drop(&mut self) {
        self.shared.stop.send_replace(true);
        if self.done.recv_timeout(CLOSE_WAIT).is_err() {
            warn!(
                "fluvio did not let go within {CLOSE_WAIT:?}: what is not committed is read again"
            );
        }
    }
}
