//! What all workers share, and each stage with what it asks.

use std::sync::Arc;

use tombstream_model::decode::Decoder;
use tombstream_model::{Candidate, Claimed, DeadLetter, DeletionId, Ledger, Relation, Settled};

use crate::bridge::{Call, Runtime};
use crate::decode::Decode;
use crate::health::Board;
use crate::layers::Keeper;
use crate::plan::{Config, StageConfig, Store};
use crate::sink::{Due, Said};
use crate::stage::{Coming, Lost, Stage};
use crate::topic::Topics;
use crate::{claim, decode, finalize, sink};

/// What all workers share.
pub(crate) struct Flow<L: Ledger> {
    pub(crate) config: Config,
    pub(crate) runtime: Runtime,
    pub(crate) relations: Arc<[Relation]>,
    pub(crate) decoder: Decoder,
    pub(crate) ledger: Arc<L>,
    pub(crate) stores: Vec<Store>,
    pub(crate) keepers: Vec<Arc<Keeper>>,
    pub(crate) topics: Arc<Topics>,
    pub(crate) board: Arc<Board>,
}

impl<L: Ledger> Flow<L> {
    pub(crate) fn decode(&self) -> Decode {
        Decode {
            decoder: self.decoder.clone(),
            server: self.config.server.clone(),
            relations: Arc::clone(&self.relations),
            topics: Arc::clone(&self.topics),
            board: Arc::clone(&self.board),
            letters: self.config.letters,
        }
    }

    pub(crate) fn bury(&self) -> Stage<DeadLetter, ()> {
        let config = &self.config.bury;
        self.ledger_stage("bury", config, decode::bury(self.parts(), config.clone()))
    }

    /// The claims. What is on its way through them is told to the stores' stages of the same worker.
    pub(crate) fn claim(&self, coming: &Coming) -> Stage<Candidate, Arc<Claimed>> {
        let config = &self.config.claim;
        let stage = self.ledger_stage("claim", config, claim::claim(self.parts(), config.clone()));
        Stage { tells: Some(coming.clone()), ..stage }
    }

    pub(crate) fn resume(&self) -> Stage<DeletionId, Arc<Claimed>> {
        let config = &self.config.resume;
        self.ledger_stage("resume", config, claim::resume(self.parts(), config.clone()))
    }

    pub(crate) fn finalize(&self) -> Stage<Settled, ()> {
        let config = &self.config.finalize;
        self.ledger_stage("finalize", config, finalize::finalize(self.parts(), config.clone()))
    }

    pub(crate) fn owe(&self) -> Stage<Settled, ()> {
        let config = &self.config.owe;
        self.ledger_stage("owe", config, finalize::owe(self.parts(), config.clone()))
    }

    /// The stage of one store. What gets no answer is unknown, and so owed.
    pub(crate) fn destroy(
        &self,
        store: &Store,
        keeper: &Arc<Keeper>,
        coming: &Coming,
    ) -> Stage<Due, Said> {
        let mut config = store.config.stage.clone();
        config.items_max = config.items_max.min(store.sink.batch_max());
        Stage {
            name: format!("sink {}", store.name),
            config,
            call: sink::destroy(Arc::clone(keeper)),
            lost: Lost::Answer(sink::unanswered),
            runtime: self.runtime.clone(),
            tells: None,
            awaits: Some(coming.clone()),
        }
    }

    /// A stage that asks the ledger. What gets no answer is asked again: the ledger's calls can be
    /// repeated, and what they write down must not be given up.
    fn ledger_stage<I, O>(
        &self,
        name: &str,
        config: &StageConfig,
        call: Call<I, O>,
    ) -> Stage<I, O> {
        Stage {
            name: name.to_owned(),
            config: config.clone(),
            call,
            lost: Lost::Resend,
            runtime: self.runtime.clone(),
            tells: None,
            awaits: None,
        }
    }

    fn parts(&self) -> LedgerParts<L> {
        LedgerParts {
            ledger: Arc::clone(&self.ledger),
            relations: Arc::clone(&self.relations),
            board: Arc::clone(&self.board),
        }
    }
}

/// What a call of the ledger needs.
pub(crate) struct LedgerParts<L> {
    pub(crate) ledger: Arc<L>,
    pub(crate) relations: Arc<[Relation]>,
    pub(crate) board: Arc<Board>,
}

impl<L> Clone for LedgerParts<L> {
    fn clone(&self) -> Self {
        Self {
            ledger: Arc::clone(&self.ledger),
            relations: Arc::clone(&self.relations),
            board: Arc::clone(&self.board),
        }
    }
}
