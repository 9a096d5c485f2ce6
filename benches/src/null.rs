//! A ledger and sinks that say yes to everything and keep nothing: what is left is the pipeline's own cost.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::sync::Notify;
use tombstream_model::{
    Address, Candidate, Claimed, ClaimedTarget, DeadLetter, DeletionId, Ending, Fence, Key, Ledger,
    LedgerError, Outcome, Presence, RelationId, Settled, Sink, SinkError, StoreId, Target, Verdict,
};

/// Claims everything and finalizes everything.
pub(crate) struct NullLedger {
    copy: Box<dyn Fn(&Key) -> Address + Send + Sync>,
    next: AtomicI64,
}

impl Default for NullLedger {
    fn default() -> Self {
        Self::of(|key| Address::Object { bucket: "null".into(), key: key.to_string() })
    }
}

impl NullLedger {
    /// One whose deletions have their only copy at the address that `copy` tells.
    pub(crate) fn of(copy: impl Fn(&Key) -> Address + Send + Sync + 'static) -> Self {
        Self { copy: Box::new(copy), next: AtomicI64::default() }
    }
}

/// A ledger, and how many it has finalized.
#[derive(Default)]
pub(crate) struct Counting<L> {
    ledger: L,
    finalized: AtomicU64,
    owed: AtomicU64,
    news: Notify,
}

impl<L> Counting<L> {
    pub(crate) fn new(ledger: L) -> Self {
        Self { ledger, finalized: AtomicU64::new(0), owed: AtomicU64::new(0), news: Notify::new() }
    }

    /// An error unless exactly so many are finalized, and nothing is owed.
    pub(crate) fn expect(&self, count: u64) -> Result<()> {
        let finalized = self.finalized.load(Ordering::Acquire);
        let owed = self.owed.load(Ordering::Acquire);
        ensure!(
            finalized == count && owed == 0,
            "{finalized} of {count} deletions were finalized, {owed} were owed"
        );
        Ok(())
    }

    /// Waits until so many deletions are finalized.
    pub(crate) async fn until(&self, count: u64) {
        while self.finalized.load(Ordering::Acquire) < count {
            let news = self.news.notified();
            if self.finalized.load(Ordering::Acquire) < count {
                news.await;
            }
        }
    }
}

impl<L: Ledger> Ledger for Counting<L> {
    async fn claim(
        &self,
        relation: RelationId,
        batch: &[Candidate],
    ) -> Result<Vec<Claimed>, LedgerError> {
        self.ledger.claim(relation, batch).await
    }

    async fn resume(&self, batch: &[DeletionId]) -> Result<Vec<Claimed>, LedgerError> {
        self.ledger.resume(batch).await
    }

    async fn finalize(
        &self,
        relation: RelationId,
        batch: &[Settled],
    ) -> Result<Vec<Ending>, LedgerError> {
        let endings = self.ledger.finalize(relation, batch).await?;
        let finalized = endings.iter().filter(|it| **it == Ending::Finalized).count();
        self.finalized.fetch_add(finalized as u64, Ordering::Release);
        self.news.notify_one();
        Ok(endings)
    }

    async fn owe(&self, batch: &[Settled]) -> Result<(), LedgerError> {
        self.owed.fetch_add(batch.len() as u64, Ordering::Release);
        self.ledger.owe(batch).await
    }

    async fn bury(&self, batch: &[DeadLetter]) -> Result<(), LedgerError> {
        self.ledger.bury(batch).await
    }
}

impl Ledger for NullLedger {
    async fn claim(
        &self,
        relation: RelationId,
        batch: &[Candidate],
    ) -> Result<Vec<Claimed>, LedgerError> {
        let until = Instant::now() + Duration::from_secs(60);
        let claimed = batch.iter().map(|candidate| {
            let id = DeletionId(self.next.fetch_add(1, Ordering::Relaxed));
            let fence = Fence { token: id.0, until };
            let address = (self.copy)(&candidate.key);
            let target = Target { deletion: id, store: StoreId(0), address, fence, lsn: None };
            Claimed {
                id,
                relation,
                key: candidate.key.clone(),
                flag: String::new(),
                fence,
                first_attempt: true,
                is_hide: false,
                targets: vec![ClaimedTarget { target, confirmed: None, was_hidden: false }],
            }
        });
        Ok(claimed.collect())
    }

    async fn resume(&self, _batch: &[DeletionId]) -> Result<Vec<Claimed>, LedgerError> {
        Ok(Vec::new())
    }

    async fn finalize(
        &self,
        _relation: RelationId,
        batch: &[Settled],
    ) -> Result<Vec<Ending>, LedgerError> {
        Ok(vec![Ending::Finalized; batch.len()])
    }

    async fn owe(&self, _batch: &[Settled]) -> Result<(), LedgerError> {
        Ok(())
    }

    async fn bury(&self, _batch: &[DeadLetter]) -> Result<(), LedgerError> {
        Ok(())
    }
}

/// Has destroyed everything at once.
pub(crate) struct NullSink;

impl Sink for NullSink {
    async fn destroy(&self, batch: &[Target]) -> Result<Vec<Outcome>, SinkError> {
        Ok(batch.iter().map(|_| Outcome::new(Verdict::Deleted, "null")).collect())
    }

    async fn look(&self, batch: &[Target]) -> Result<Vec<Presence>, SinkError> {
        Ok(vec![Presence::Absent; batch.len()])
    }

    fn batch_max(&self) -> usize {
        1_000
    }
}

/// The store of that sink.
pub(crate) fn store() -> tombstream_dataflow::Store {
    tombstream_dataflow::Store {
        id: StoreId(0),
        name: "null".into(),
        sink: Arc::new(NullSink),
        config: tombstream_dataflow::StoreConfig {
            verify: tombstream_dataflow::Verify::Trust,
            ..tombstream_dataflow::StoreConfig::default()
        },
    }
}
