//! Events of long ago, given to the claim; or only looked at.
//!
//! Owned here: how an old event is made harmless before the claim, and how the keys that it did not take stand.
//! Left to others: where the events are read (`kafka`, `files`, `parquet`), and whether a row may go (the claim
//! decides it, as for everybody).

use std::collections::HashSet;
use std::sync::Arc;

use sqlx::{AssertSqlSafe, Row as _};
use tracing::warn;

use tombstream_model::{
    Candidate, Claimed, DeadLetter, DeletionId, Ending, Found, Key, Ledger, LedgerError,
    OnHardDelete, Relation, RelationId, Settled,
};

use super::guard::is_guarded;
use super::ledger::PgLedger;
use super::pool::ledger_error;
use super::removed::is_of_key;
use super::table::{BY_KEY, OPEN_STATES, Table, interval, is_held, key_arrays, literal};
use super::tally::{Count, Tally};

/// A look writes nothing, whatever it calls.
const LOOK: &str = "begin isolation level read committed read only";

/// What a replay does with what it brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// It is given to the claim.
    Claimed,
    /// It is only looked at: rows and ledger are read, nothing is written, no store is asked.
    LookedAt,
}

/// Who hears of keys that were finalized long ago: their copies may be there again.
pub trait Bygone: Send + Sync + 'static {
    /// These keys of the relation have no row and are finalized.
    fn finalized(&self, relation: RelationId, keys: Vec<Key>);
}

/// Nobody.
impl Bygone for () {
    fn finalized(&self, _relation: RelationId, _keys: Vec<Key>) {}
}

/// A ledger in front of which events lose their age.
///
/// Invariant (S4): an event of a replay orders nothing and ends nothing: it goes to the claim without its
/// position, and pauses no relation; `a_history_with_living_restored_and_new_rows_in_it_destroys_none_of_them`.
#[derive(Debug)]
pub struct ReplayLedger<B> {
    ledger: PgLedger,
    relations: Vec<(Relation, Arc<str>)>,
    does: Replayed,
    tally: Arc<Tally>,
    bygone: B,
}

/// How one key stands, and what that is called among the counts.
struct Standing {
    key: Key,
    name: String,
}

impl<B: Bygone> ReplayLedger<B> {
    /// Puts itself before `ledger`, whose relations are `relations`.
    pub fn new(
        ledger: PgLedger,
        relations: &[Relation],
        does: Replayed,
        tally: Arc<Tally>,
        bygone: B,
    ) -> Self {
        let relations = relations.iter().map(|it| (it.clone(), standing_sql(it).into())).collect();
        Self { ledger, relations, does, tally, bygone }
    }

    /// Counts how `keys` stand. Never an error while rows are claimed beside them: those must be driven on.
    async fn count(&self, relation: RelationId, keys: &[&Key]) -> Result<(), LedgerError> {
        if keys.is_empty() {
            return Ok(());
        }
        let standings = match (self.look(relation, keys).await, self.does) {
            (Ok(standings), _) => standings,
            (Err(error), Replayed::LookedAt) => return Err(ledger_error(error)),
            (Err(error), Replayed::Claimed) => {
                warn!(error = %error, "why rows were not claimed can't be looked up");
                self.tally.add(Count::Unknown, keys.len() as u64);
                return Ok(());
            }
        };
        let mut done = Vec::new();
        for Standing { key, name } in standings {
            let name = match (self.does, name.as_str()) {
                // It is due and was not claimed: somebody has locked it.
                (Replayed::Claimed, "due" | "hide_due") => "locked",
                (_, "moved") => "gone",
                (_, name) => name,
            };
            self.tally.named(name, 1);
            if name == "done" {
                done.push(key);
            }
        }
        if !done.is_empty() {
            self.bygone.finalized(relation, done);
        }
        Ok(())
    }

    async fn look(
        &self,
        relation: RelationId,
        keys: &[&Key],
    ) -> Result<Vec<Standing>, sqlx::Error> {
        let (known, sql) = &self.relations[usize::from(relation.0)];
        let statements = &self.ledger.statements;
        let mut transaction = statements.begin(LOOK).await?;
        let mut query = statements.query(AssertSqlSafe(Arc::clone(sql)));
        for array in key_arrays(known, keys.iter().copied()) {
            query = query.bind(array);
        }
        let prepared = self.ledger.prepared(relation);
        query = query.bind(self.ledger.key_hashes(prepared, keys.iter().copied()));
        let rows = query.fetch_all(&mut *transaction).await?;
        transaction.rollback().await?;
        let standing = |row: &sqlx::postgres::PgRow| {
            let key = Key::from_postgres(row.try_get::<Vec<String>, _>(0)?);
            Ok(Standing { key, name: row.try_get(1)? })
        };
        rows.iter().map(standing).collect()
    }

    /// Whether `candidate` is asked of the claim: no truncations, which the live stream has seen or a person has,
    /// and no removals where they mean nothing.
    fn is_asked(&self, relation: &Relation, candidate: &Candidate) -> bool {
        match candidate.found {
            Found::Flagged => true,
            Found::Removed => relation.on_hard_delete == OnHardDelete::Destroy,
            Found::Truncated => false,
        }
    }

    /// What is in `batch` beside flagged rows. Counted once it is dealt with, since a claim may be asked again.
    fn count_kinds(&self, relation: &Relation, batch: &[Candidate]) {
        let count = |found| batch.iter().filter(|it| it.found == found).count() as u64;
        self.tally.add(Count::Removals, count(Found::Removed));
        let truncates = count(Found::Truncated);
        self.tally.add(Count::Truncates, truncates);
        if truncates > 0 {
            warn!(
                relation = %relation.name,
                "the history tells that the relation was truncated: copies of the rows of that time are not looked for"
            );
        }
    }

    /// Of a look: removed rows of which nothing is known would be written down as hard deletes.
    async fn count_hard_deletes(
        &self,
        relation: RelationId,
        asked: &[Candidate],
    ) -> Result<(), LedgerError> {
        let removed = asked.iter().filter(|candidate| candidate.found == Found::Removed);
        let removed: HashSet<&Key> = removed.map(|candidate| &candidate.key).collect();
        if self.does == Replayed::LookedAt && !removed.is_empty() {
            let removed: Vec<&Key> = removed.into_iter().collect();
            let standings = self.look(relation, &removed).await.map_err(ledger_error)?;
            let due = standings.iter().filter(|standing| standing.name == "gone").count();
            self.tally.add(Count::Due, due as u64);
        }
        Ok(())
    }
}

/// How keys stand: the key, and a name of the tally's. By the claim's own rules (`decide.rs`).
fn standing_sql(relation: &Relation) -> String {
    let table = Table::new(relation);
    let name = literal(&relation.name);
    let columns: Vec<_> = (0..relation.key.len()).map(|n| format!("k.k{n}")).collect();
    let key = format!("array[{}]", columns.join(", "));
    let hide_due = match relation.hide {
        None => String::new(),
        Some(hide) => format!(
            "when d.hidden_at is null and s.since <= now() - {} then 'hide_due' ",
            interval(hide)
        ),
    };
    format!(
        "with vouched as materialized (select {vouched} as vouched) \
         select {key}, case \
             when d.state = 'claimed' then 'underway' \
             when d.state = 'parked' and not d.outlived then 'parked' \
             when t.flagged is null then case when d.state is not null then 'waiting' \
                 when exists (select from tombstream.receipt r where r.relation = {name} and {of_key}) \
                     or exists (select from tombstream.deletion_all a where a.relation = {name} \
                         and a.key = {key} and a.state = 'finalized') then 'done' \
                 when exists (select from tombstream.moved_key m where m.relation = {name} \
                     and m.key = {key}) then 'moved' \
                 else 'gone' end \
             when not t.flagged then case when exists (select from tombstream.deletion_all a \
                     where a.relation = {name} and a.key = {key} and a.state = 'cancelled') \
                 then 'restored' else 'alive' end \
             when {held} then 'held' \
             when exists (select from tombstream.pause p where p.relation = {name}) then 'paused' \
             when not d.outlived and d.kept_back_at is not null and d.approved_at is null then 'kept_back' \
             when s.since <= now() - {grace} then 'due' \
             {hide_due}else 'waiting' end \
         from {keys} cross join vouched \
         left join lateral ( \
             select coalesce({is_set}, false) as flagged, {at} as at, {flag} as flag from {table} t where {matches} \
         ) t on true \
         left join lateral ( \
             select d.state, d.first_seen, d.kept_back_at, d.approved_at, d.hidden_at, \
                 coalesce(t.flagged, false) and (d.removed is not null or d.state = 'parked' \
                     and {claimed_flag} is distinct from t.flag) as outlived \
             from tombstream.deletion d where d.relation = {name} and d.key = {key} \
                 and d.state in {OPEN_STATES} {BY_KEY} \
         ) d on true \
         left join lateral ( \
             select greatest(t.at, coalesce(case when not d.outlived then d.first_seen end, \
                 case when not vouched.vouched or t.at is null then now() end)) as since \
         ) s on true",
        vouched = is_guarded(relation, "before"),
        of_key = is_of_key(&key, "k.hashed"),
        held = is_held(&name, &key),
        grace = interval(relation.grace),
        keys = table.unnest_keys_with(1, "hashed"),
        is_set = table.is_set("t"),
        at = table.flag_at("t"),
        flag = table.flag("t"),
        table = table.name(),
        matches = table.matches_keys("t"),
        claimed_flag = table.flag_value("d.flag"),
    )
}

impl<B: Bygone> Ledger for ReplayLedger<B> {
    async fn claim(
        &self,
        relation: RelationId,
        batch: &[Candidate],
    ) -> Result<Vec<Claimed>, LedgerError> {
        let (known, _) = &self.relations[usize::from(relation.0)];
        let asked = batch.iter().filter(|candidate| self.is_asked(known, candidate));
        let aged = |candidate: &Candidate| Candidate { position: None, ..candidate.clone() };
        let asked: Vec<Candidate> = asked.map(aged).collect();
        let claimed = match self.does {
            Replayed::Claimed if !asked.is_empty() => self.ledger.claim(relation, &asked).await?,
            Replayed::Claimed | Replayed::LookedAt => Vec::new(),
        };
        let taken: HashSet<&Key> = claimed.iter().map(|claimed| &claimed.key).collect();
        let flagged = asked.iter().filter(|candidate| candidate.found == Found::Flagged);
        let keys: HashSet<&Key> = flagged.map(|candidate| &candidate.key).collect();
        let matched = keys.len();
        let others: Vec<&Key> = keys.into_iter().filter(|key| !taken.contains(key)).collect();
        self.count(relation, &others).await?;
        self.count_hard_deletes(relation, &asked).await?;
        self.count_kinds(known, batch);
        self.tally.add(Count::Matched, matched as u64);
        let number = claimed.iter().filter(|claimed| !claimed.is_hide).count();
        self.tally.add(Count::Claimed, number as u64);
        Ok(claimed)
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
        self.tally.endings(&endings);
        Ok(endings)
    }

    async fn owe(&self, batch: &[Settled]) -> Result<(), LedgerError> {
        self.ledger.owe(batch).await?;
        self.tally.owed(batch);
        Ok(())
    }

    async fn bury(&self, batch: &[DeadLetter]) -> Result<(), LedgerError> {
        if self.does == Replayed::Claimed {
            self.ledger.bury(batch).await?;
        }
        self.tally.add(Count::Undecodable, batch.len() as u64);
        Ok(())
    }
}
