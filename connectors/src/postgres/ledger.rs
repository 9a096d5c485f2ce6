//! The ledger's front: what it knows, and one method for each operation.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sqlx::PgPool;
use tracing::error;

use tombstream_model::{
    Candidate, Claimed, ClaimedTarget, DeadLetter, DeletionId, Ending, Fence, Key, Ledger,
    LedgerError, Lsn, Outcome, Relation, RelationId, Settled, StoreId, Target,
};

use super::claim::ClaimSql;
use super::finalize::FinalizeSql;
use super::removed::RemovedSql;
use super::resume::ResumeSql;
use super::statement::Statements;

/// What the ledger has to know.
#[derive(Clone, Debug)]
pub struct LedgerConfig {
    /// Who owns the leases: one name a process, for people to read.
    pub owner: String,
    /// How long a claim is this process's own. It outlasts the slowest stage's deadline and finalize.
    pub lease: Duration,
    /// The stores; a [`StoreId`] is an index into them.
    pub stores: Vec<LedgerStore>,
    /// How long what is owed rests before the sweep drives it again: doubled with each attempt …
    pub owed_wait_min: Duration,
    /// … up to this.
    pub owed_wait_max: Duration,
    /// Whether statements stay prepared in their session: one round trip and a plan less each. False
    /// behind a pooler in transaction mode, where each is parsed anew, inside a transaction.
    pub prepared_statements: bool,
}

/// A store, as the ledger knows it.
#[derive(Clone, Debug)]
pub struct LedgerStore {
    /// Its name in the ledger. It outlives its place in the configuration.
    pub name: Arc<str>,
    /// The largest share of absent copies among first attempts (S6); 1 switches the guard off.
    pub absent_share_max: f64,
}

/// Tombstream's ledger, in the relations' own database.
#[derive(Debug)]
pub struct PgLedger {
    pub(super) statements: Statements,
    pub(super) config: LedgerConfig,
    relations: Vec<Prepared>,
}

/// A relation with its statements, made once.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) relation: Relation,
    pub(super) claim: ClaimSql,
    pub(super) finalize: FinalizeSql,
    pub(super) resume: ResumeSql,
    pub(super) removed: RemovedSql,
    /// When the relation's rows were last counted for its breaker.
    pub(super) counted: Mutex<Option<Instant>>,
}

/// An entry of `deletion.targets`.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct TargetEntry {
    pub(super) store: String,
    pub(super) address: tombstream_model::Address,
    pub(super) outcome: Option<Outcome>,
}

impl PgLedger {
    /// A ledger over `pool`, for `relations`; a [`RelationId`] is an index into them.
    pub fn new(pool: PgPool, relations: Arc<[Relation]>, config: LedgerConfig) -> Self {
        let relations = relations.iter().map(Prepared::new).collect();
        let statements = Statements::new(pool, config.prepared_statements);
        Self { statements, config, relations }
    }

    pub(super) fn prepared(&self, relation: RelationId) -> &Prepared {
        &self.relations[usize::from(relation.0)]
    }

    pub(super) fn relation_named(&self, name: &str) -> Option<(RelationId, &Prepared)> {
        let place = self.relations.iter().position(|known| &*known.relation.name == name)?;
        Some((RelationId(u16::try_from(place).ok()?), &self.relations[place]))
    }

    pub(super) fn relation_names(&self) -> Vec<&str> {
        self.relations.iter().map(|prepared| &*prepared.relation.name).collect()
    }

    pub(super) fn store_name(&self, store: StoreId) -> &str {
        &self.config.stores[usize::from(store.0)].name
    }

    /// Whether a relation's copies in this store go when a deletion is hidden.
    pub(super) fn is_hidden_first(&self, prepared: &Prepared, store: &str) -> bool {
        prepared
            .relation
            .targets
            .iter()
            .any(|it| it.is_hidden_first && self.store_name(it.store) == store)
    }

    pub(super) fn lease_seconds(&self) -> f64 {
        self.config.lease.as_secs_f64()
    }

    /// The ledger's entry of a claimed deletion, as the dataflow takes it. None where it names a store
    /// that is no longer configured: its copies could not be destroyed, so nobody may finalize it.
    pub(super) fn claimed(
        &self,
        row: ClaimedRow,
        fence: Fence,
        first_attempt: bool,
    ) -> Option<Claimed> {
        let (relation, prepared) = self.relation_named(&row.relation)?;
        let id = DeletionId(row.id);
        let lsn = row.lsn.as_deref().and_then(|text| text.parse::<Lsn>().ok());
        let targets = row.targets.into_iter().map(|entry| {
            let place = self.config.stores.iter().position(|known| *known.name == *entry.store)?;
            let store = StoreId(u16::try_from(place).ok()?);
            let target = Target { deletion: id, store, address: entry.address, fence, lsn };
            let confirmed = entry.outcome.filter(|outcome| outcome.verdict.is_confirmed());
            let was_hidden = row.was_hidden && self.is_hidden_first(prepared, &entry.store);
            Some(ClaimedTarget { target, confirmed, was_hidden })
        });
        let Some(targets) = targets.collect::<Option<Vec<_>>>() else {
            error!(
                relation = row.relation,
                deletion = row.id,
                "a store of this deletion is not configured any more: it stays open until the store is back"
            );
            return None;
        };
        let key = Key::from_postgres(row.key);
        let is_hide = row.is_hide;
        Some(Claimed { id, relation, key, flag: row.flag, fence, first_attempt, is_hide, targets })
    }
}

/// A claimed deletion as the ledger keeps it.
#[derive(Debug)]
pub(super) struct ClaimedRow {
    pub(super) id: i64,
    pub(super) relation: String,
    pub(super) key: Vec<String>,
    pub(super) flag: String,
    pub(super) lsn: Option<String>,
    pub(super) targets: Vec<TargetEntry>,
    /// It is hidden, not claimed.
    pub(super) is_hide: bool,
    /// It was hidden before it was claimed.
    pub(super) was_hidden: bool,
}

impl Prepared {
    fn new(relation: &Relation) -> Self {
        Self {
            relation: relation.clone(),
            claim: ClaimSql::new(relation),
            finalize: FinalizeSql::new(relation),
            resume: ResumeSql::new(relation),
            removed: RemovedSql::new(relation),
            counted: Mutex::new(None),
        }
    }
}

impl Ledger for PgLedger {
    async fn claim(
        &self,
        relation: RelationId,
        batch: &[Candidate],
    ) -> Result<Vec<Claimed>, LedgerError> {
        self.claim_batch(relation, batch).await
    }

    async fn resume(&self, batch: &[DeletionId]) -> Result<Vec<Claimed>, LedgerError> {
        self.resume_batch(batch).await
    }

    async fn finalize(
        &self,
        relation: RelationId,
        batch: &[Settled],
    ) -> Result<Vec<Ending>, LedgerError> {
        self.finalize_batch(relation, batch).await
    }

    async fn owe(&self, batch: &[Settled]) -> Result<(), LedgerError> {
        self.owe_batch(batch).await
    }

    async fn bury(&self, batch: &[DeadLetter]) -> Result<(), LedgerError> {
        self.bury_batch(batch).await
    }
}
