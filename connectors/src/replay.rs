//! A source that is read once more, to the end that it had: how fast, how far, and when it is given up.
//!
//! Around every source of a replay, whatever it reads. Nothing is committed: a replay that is killed begins anew, which
//! costs looks and destroys nothing more.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tombstream_model::{Mark, Polled, Source, SourceError};

/// Failures in a row after which a person is asked: with the pipeline's waits between them half a minute. What
/// is followed may come back at any time; what is read once is waited for by somebody.
const FAILURES_MAX: u32 = 8;
/// How often room is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// How a replay goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReplayConfig {
    /// Most events a second. None: as fast as it goes.
    pub rate_max: Option<u32>,
}

/// How far a replay is, for whoever shows it.
#[derive(Debug, Default)]
pub struct ReplayProgress {
    looked_at: AtomicI64,
    behind: AtomicU64,
}

impl ReplayProgress {
    /// How many events were read.
    pub fn looked_at(&self) -> i64 {
        self.looked_at.load(Ordering::Relaxed)
    }

    /// How much is to be done beside the pipeline still.
    pub fn behind(&self) -> u64 {
        self.behind.load(Ordering::Acquire)
    }

    /// Says that so much is to be done beside the pipeline before more is read.
    pub fn add_behind(&self, count: u64) {
        self.behind.fetch_add(count, Ordering::AcqRel);
    }

    /// Says that so much of it is done.
    pub fn sub_behind(&self, count: u64) {
        self.behind.fetch_sub(count, Ordering::AcqRel);
    }
}

/// A source of a replay.
#[derive(Debug)]
pub struct Replay<S> {
    source: S,
    config: ReplayConfig,
    progress: Arc<ReplayProgress>,
    not_before: Instant,
    failures: u32,
    /// Why nothing more is read.
    refused: Option<String>,
}

impl<S: Source> Replay<S> {
    /// Most keys that may wait beside the pipeline.
    const BEHIND_MAX: u64 = 20_000;

    /// Reads `source` once.
    pub fn new(source: S, config: ReplayConfig) -> Self {
        Self {
            source,
            config,
            progress: Arc::default(),
            not_before: Instant::now(),
            failures: 0,
            refused: None,
        }
    }

    /// How far it is.
    pub fn progress(&self) -> Arc<ReplayProgress> {
        Arc::clone(&self.progress)
    }

    fn read(&mut self, polled: &Polled) {
        self.failures = 0;
        let events = polled.records.len();
        self.progress.looked_at.fetch_add(events as i64, Ordering::Relaxed);
        if let Some(rate) = self.config.rate_max {
            let cost = Duration::from_secs_f64(events as f64 / f64::from(rate.max(1)));
            self.not_before = self.not_before.max(Instant::now()) + cost;
        }
    }

    fn failed(&mut self, error: SourceError) -> SourceError {
        let SourceError::Unavailable(said) = error else { return error };
        self.failures += 1;
        if self.failures < FAILURES_MAX {
            return SourceError::Unavailable(said);
        }
        SourceError::Fatal(format!(
            "what is replayed can't be read, {} times in a row: {said}; mend it, and start the replay again",
            self.failures
        ))
    }
}

impl<S: Source> Source for Replay<S> {
    async fn next(&mut self) -> Result<Polled, SourceError> {
        if let Some(reason) = &self.refused {
            return Err(SourceError::Fatal(reason.clone()));
        }
        sleep_until(self.not_before).await;
        while self.progress.behind() > Self::BEHIND_MAX {
            sleep(LOOK).await;
        }
        match self.source.next().await {
            Ok(polled) => {
                self.read(&polled);
                Ok(polled)
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    async fn commit(&mut self, marks: Vec<Mark>) -> Result<(), SourceError> {
        self.source.commit(marks).await
    }

    fn has_ended(&self) -> bool {
        self.refused.is_none() && self.source.has_ended()
    }

    /// Too much of a topic can't be decoded: a replay of something else than change events. It ends.
    fn pause(&mut self, topic: &str) -> Result<(), SourceError> {
        self.refused.get_or_insert_with(|| {
            format!(
                "more than a tenth of the last events of topic {topic} can't be decoded: are these its change events, \
                 and is the topic one of its relation's `topics`?"
            )
        });
        Ok(())
    }

    async fn close(&mut self) {
        self.source.close().await;
    }
}

#[cfg(test)]
mod tests {
    use tombstream_model::{Candidate, Records};

    use super::*;

    /// Brings nothing as often as it is asked, or fails.
    struct Empty {
        fails: bool,
    }

    impl Source for Empty {
        async fn next(&mut self) -> Result<Polled, SourceError> {
            match self.fails {
                true => Err(SourceError::Unavailable("torn".into())),
                false => {
                    let none: Vec<Candidate> = Vec::new();
                    Ok(Polled { records: Records::Candidates(none), marks: Vec::new() })
                }
            }
        }

        async fn commit(&mut self, _marks: Vec<Mark>) -> Result<(), SourceError> {
            Ok(())
        }

        fn has_ended(&self) -> bool {
            true
        }

        fn pause(&mut self, _topic: &str) -> Result<(), SourceError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_can_not_be_read_for_long_ends_a_replay_and_one_failure_does_not() {
        let mut replay = Replay::new(Empty { fails: true }, ReplayConfig::default());
        for _ in 1..FAILURES_MAX {
            let error = replay.next().await.unwrap_err();
            assert!(matches!(error, SourceError::Unavailable(_)), "{error}");
        }
        replay.source.fails = false;
        replay.next().await.unwrap();
        replay.source.fails = true;
        for _ in 1..FAILURES_MAX {
            replay.next().await.unwrap_err();
        }
        let SourceError::Fatal(said) = replay.next().await.unwrap_err() else { panic!("goes on") };
        assert!(said.contains("8 times in a row: torn"), "{said}");
    }

    #[tokio::test]
    async fn a_topic_of_something_else_ends_a_replay_with_the_reason() {
        let mut replay = Replay::new(Empty { fails: false }, ReplayConfig::default());
        assert!(replay.has_ended());
        replay.pause("invoices").unwrap();
        assert!(!replay.has_ended(), "its end would look like success");
        let error = replay.next().await.unwrap_err();
        assert!(error.to_string().contains("topic invoices can't be decoded"), "{error}");
    }
}
