//! The ledger's front: what it knows, and one method for each operation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::de::IgnoredAny;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{ColumnIndex, PgPool, Row as _};

use tombstream_model::{
    Candidate, Claimed, ClaimedTarget, DeadLetter, DeletionCause, DeletionId, Ending, Fence, Key,
    KeyedHash, Ledger, LedgerError, Lsn, Outcome, Relation, RelationId, Settled, StoreId, Target,
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
    /// Keys and addresses on receipts are hashes, if there is a secret.
    pub(super) keyed: Option<KeyedHash>,
    /// Whether change events are kept for the archive.
    pub(super) archives: bool,
    relations: Vec<Prepared>,
    /// Stores that the ledger names and the configuration does not.
    former: Mutex<Vec<Arc<str>>>,
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
        let former = Mutex::default();
        Self { statements, config, keyed: None, archives: false, relations, former }
    }

    /// The same, whose receipts name nobody: keys and addresses are keyed hashes there.
    #[must_use]
    pub fn with_hashed_receipts(mut self, keyed: KeyedHash) -> Self {
        self.keyed = Some(keyed);
        self
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

    /// A store's name in the ledger. Ids behind the configured ones are of stores that were.
    pub(super) fn store_name(&self, store: StoreId) -> Arc<str> {
        let place = usize::from(store.0);
        match self.config.stores.get(place) {
            Some(store) => Arc::clone(&store.name),
            None => {
                let former = self.former.lock().unwrap_or_else(PoisonError::into_inner);
                former
                    .get(place - self.config.stores.len())
                    .cloned()
                    .unwrap_or_else(|| "unknown".into())
            }
        }
    }

    /// The store of a name in the ledger. One that is not configured any more gets an id behind the others:
    /// what it has confirmed stays confirmed, and nothing is sent there.
    fn store_id(&self, name: &str) -> Option<StoreId> {
        let configured = self.config.stores.iter().position(|known| *known.name == *name);
        let place = configured.unwrap_or_else(|| {
            let mut former = self.former.lock().unwrap_or_else(PoisonError::into_inner);
            let known = former.iter().position(|known| **known == *name).unwrap_or_else(|| {
                former.push(name.into());
                former.len() - 1
            });
            self.config.stores.len() + known
        });
        u16::try_from(place).ok().map(StoreId)
    }

    /// Whether a store is configured.
    pub(super) fn is_configured(&self, store: StoreId) -> bool {
        usize::from(store.0) < self.config.stores.len()
    }

    /// Whether a relation's copies in this store go when a deletion is hidden.
    pub(super) fn is_hidden_first(&self, prepared: &Prepared, store: &str) -> bool {
        prepared
            .relation
            .targets
            .iter()
            .any(|it| it.is_hidden_first && *self.store_name(it.store) == *store)
    }

    pub(super) fn lease_seconds(&self) -> f64 {
        self.config.lease.as_secs_f64()
    }

    /// The ledger's entry of a claimed deletion, as the dataflow takes it. None where it is of a relation that
    /// is not configured here.
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
            let store = self.store_id(&entry.store)?;
            let target = Target { deletion: id, store, address: entry.address, fence, lsn };
            let confirmed = entry.outcome.filter(|outcome| outcome.verdict.is_confirmed());
            let was_hidden = row.was_hidden && self.is_hidden_first(prepared, &entry.store);
            Some(ClaimedTarget { target, confirmed, was_hidden })
        });
        let targets = targets.collect::<Option<Vec<_>>>()?;
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
    /// Stores that an operator waived.
    pub(super) waived: BTreeSet<String>,
    /// Why there is a deletion.
    pub(super) cause: DeletionCause,
}

impl ClaimedRow {
    /// What a statement over `tombstream.deletion d` returns for [`Self::read`].
    pub(super) const RETURNED: &str = "d.id, d.relation, d.key, d.state, \
        coalesce(d.flag, '') as flag, d.flip_lsn::text as lsn, d.targets, d.lease_token, \
        d.hidden_at is not null as hidden, d.waived, d.cause";

    /// The row, and the token of its lease.
    pub(super) fn read(row: &PgRow) -> Result<(Self, i64), sqlx::Error> {
        let is_hide = row.try_get::<&str, _>("state")? == "hidden";
        let claimed = Self {
            id: row.try_get("id")?,
            relation: row.try_get("relation")?,
            key: row.try_get("key")?,
            flag: row.try_get("flag")?,
            lsn: row.try_get("lsn")?,
            targets: row.try_get::<Json<_>, _>("targets")?.0,
            is_hide,
            was_hidden: !is_hide && row.try_get("hidden")?,
            waived: waived_stores(row, "waived")?,
            cause: cause(row.try_get("cause")?)?,
        };
        Ok((claimed, row.try_get("lease_token")?))
    }
}

/// A cause as the ledger spells it.
pub(super) fn cause(text: &str) -> Result<DeletionCause, sqlx::Error> {
    let known = DeletionCause::ALL.into_iter().find(|cause| cause.as_str() == text);
    known.ok_or_else(|| sqlx::Error::Decode(format!("no deletion has the cause {text:?}").into()))
}

/// The stores of `deletion.waived`; none where it is null.
pub(super) fn waived_stores<I: ColumnIndex<PgRow>>(
    row: &PgRow,
    place: I,
) -> Result<BTreeSet<String>, sqlx::Error> {
    let waived: Option<Json<BTreeMap<String, IgnoredAny>>> = row.try_get(place)?;
    Ok(waived.map(|Json(stores)| stores.into_keys().collect()).unwrap_or_default())
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
