//! What becomes of the rows that a job brings: counted between the dataflow and the ledger.
//!
//! The claim decides as it does for everybody. What it does not take is looked up afterwards, for the count alone.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sqlx::AssertSqlSafe;
use tracing::warn;

use tombstream_model::{
    Candidate, Claimed, DeadLetter, DeletionId, Ending, Key, Ledger, LedgerError, Relation,
    RelationId, Settled,
};

use super::ledger::PgLedger;
use super::table::{BY_KEY, OPEN_STATES, Table, interval, is_held, key_arrays, literal};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Flagged rows that the filter let through: what was given to the claim.
    Matched,
    /// Claimed.
    Claimed,
    /// Taken over from a process of the same job that died.
    TakenOver,
    /// The row is gone, the receipt written.
    Finalized,
    /// Recoverable copies are gone; the rest waits for its grace.
    Hidden,
    /// A store has not confirmed in time: `run` drives it again.
    Owed,
    /// In grace.
    Waiting,
    /// Kept by a hold.
    Held,
    /// Kept back by the breaker.
    KeptBack,
    /// Needs a person.
    Parked,
    /// Locked by another transaction: left to the sweep.
    Locked,
    /// Claimed already, by another process.
    Underway,
    /// Restored in time.
    Cancelled,
    /// The row is gone.
    Gone,
    /// Claimed, and not finalized: another life, restored late, fenced off, paused.
    Unfinished,
    /// Not claimed, and why could not be looked up.
    Unknown,
    /// Of a replay: finalized before.
    Done,
    /// Of a replay: there, and not flagged.
    Alive,
    /// Of a replay: there, not flagged, and a deletion of it was cancelled.
    Restored,
    /// Of a replay that only looks: would be claimed.
    Due,
    /// Of a replay that only looks: its recoverable copies would be destroyed.
    HideDue,
    /// Its relation is paused.
    Paused,
    /// Of a replay: events that tell of a removed row.
    Removals,
    /// Of a replay: events that tell of a truncated relation.
    Truncates,
    /// Of a replay: events that can't be decoded.
    Undecodable,
    /// Of a replay: files that went away before all of them was read.
    Unread,
    /// Of a replay: events of relations that are not configured.
    OtherRelation,
    /// Of a replay that asks the stores: places of copies that were looked at.
    Looked,
    /// Of those: copies that are there again.
    Resurrected,
    /// Of those: copies under keys that have a row again.
    Reused,
    /// Of those: places of which nothing could be told.
    Unclear,
}

const COUNTS: [(Count, &str); 31] = [
    (Count::Matched, "matched"),
    (Count::Claimed, "claimed"),
    (Count::TakenOver, "taken_over"),
    (Count::Finalized, "finalized"),
    (Count::Hidden, "hidden"),
    (Count::Owed, "owed"),
    (Count::Waiting, "waiting"),
    (Count::Held, "held"),
    (Count::KeptBack, "kept_back"),
    (Count::Parked, "parked"),
    (Count::Locked, "locked"),
    (Count::Underway, "underway"),
    (Count::Cancelled, "cancelled"),
    (Count::Gone, "gone"),
    (Count::Unfinished, "unfinished"),
    (Count::Unknown, "unknown"),
    (Count::Done, "done"),
    (Count::Alive, "alive"),
    (Count::Restored, "restored"),
    (Count::Due, "due"),
    (Count::HideDue, "hide_due"),
    (Count::Paused, "paused"),
    (Count::Removals, "removals"),
    (Count::Truncates, "truncates"),
    (Count::Undecodable, "undecodable"),
    (Count::Unread, "unread"),
    (Count::OtherRelation, "other_relation"),
    (Count::Looked, "looked"),
    (Count::Resurrected, "resurrected"),
    (Count::Reused, "reused"),
    (Count::Unclear, "unclear"),
];

/// The counts of one process's run of a job.
#[derive(Debug, Default)]
pub struct Tally([AtomicU64; COUNTS.len()]);

impl Tally {
    /// Adds to a count.
    pub fn add(&self, count: Count, number: u64) {
        self.0[count as usize].fetch_add(number, Ordering::Relaxed);
    }

    /// One count.
    pub fn get(&self, count: Count) -> u64 {
        self.0[count as usize].load(Ordering::Relaxed)
    }

    /// Those that are not zero, by name.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let all = COUNTS.iter().map(|(count, name)| ((*name).to_owned(), self.get(*count)));
        all.filter(|(_, number)| *number > 0).collect()
    }

    pub(super) fn named(&self, name: &str, number: u64) {
        let known = COUNTS.iter().find(|(_, known)| *known == name);
        self.add(known.map_or(Count::Unknown, |(count, _)| *count), number);
    }

    /// What became of deletions that were to be finalized.
    pub(super) fn endings(&self, endings: &[Ending]) {
        for ending in endings {
            let count = match ending {
                Ending::Finalized | Ending::FinalizedRowGone => Count::Finalized,
                Ending::Later => Count::Owed,
                Ending::Parked => Count::Parked,
                Ending::Superseded | Ending::LateRestore | Ending::Fenced | Ending::Paused => {
                    Count::Unfinished
                }
            };
            self.add(count, 1);
        }
    }

    /// What was not confirmed, or is hidden and no more.
    pub(super) fn owed(&self, batch: &[Settled]) {
        let hidden = batch.iter().filter(|it| it.claimed.is_hide && it.has_all_confirmed());
        let hidden = hidden.count();
        self.add(Count::Hidden, hidden as u64);
        self.add(Count::Owed, (batch.len() - hidden) as u64);
    }
}

/// A ledger that counts.
#[derive(Debug)]
pub struct TalliedLedger {
    ledger: PgLedger,
    standing: Vec<(Relation, Arc<str>)>,
    tally: Arc<Tally>,
}

impl TalliedLedger {
    /// Counts what `ledger` does for `relations`, those of the ledger.
    pub fn new(ledger: PgLedger, relations: &[Relation], tally: Arc<Tally>) -> Self {
        let standing = relations.iter().map(|it| (it.clone(), standing_sql(it).into())).collect();
        Self { ledger, standing, tally }
    }

    /// Counts why `keys` were not claimed. Never an error: what was claimed beside them must be driven on.
    async fn count_others<'k>(&self, relation: RelationId, keys: impl Iterator<Item = &'k Key>) {
        let (relation, sql) = &self.standing[usize::from(relation.0)];
        let arrays = key_arrays(relation, keys);
        let number = arrays.first().map_or(0, Vec::len) as u64;
        if number == 0 {
            return;
        }
        match self.look(sql, arrays).await {
            Ok(found) => {
                for (name, number) in found {
                    self.tally.named(&name, number.unsigned_abs());
                }
            }
            Err(error) => {
                warn!(error = %error, "why rows were not claimed can't be looked up");
                self.tally.add(Count::Unknown, number);
            }
        }
    }

    async fn look(
        &self,
        sql: &Arc<str>,
        arrays: Vec<Vec<String>>,
    ) -> Result<Vec<(String, i64)>, sqlx::Error> {
        let statements = &self.ledger.statements;
        let mut session = statements.session().await?;
        let mut query = statements.query(AssertSqlSafe(Arc::clone(sql)));
        for array in arrays {
            query = query.bind(array);
        }
        let rows = query.fetch_all(&mut *session).await?;
        session.end().await?;
        rows.iter()
            .map(|row| Ok((sqlx::Row::try_get(row, 0)?, sqlx::Row::try_get(row, 1)?)))
            .collect()
    }
}

/// How keys that were not claimed stand, by the names of [`COUNTS`].
fn standing_sql(relation: &Relation) -> String {
    let table = Table::new(relation);
    let name = literal(&relation.name);
    let key: Vec<_> = (0..relation.key.len()).map(|n| format!("k.k{n}")).collect();
    let key = format!("array[{}]", key.join(", "));
    format!(
        "select case when t.flagged is null then 'gone' when not t.flagged then 'cancelled' \
             when d.state = 'claimed' then 'underway' when d.state = 'parked' then 'parked' \
             when {held} then 'held' \
             when d.kept_back_at is not null and d.approved_at is null then 'kept_back' \
             when greatest(t.at, d.first_seen) > now() - {grace} then 'waiting' else 'locked' end, count(*) \
         from {keys} left join lateral ( \
             select coalesce({is_set}, false) as flagged, {at} as at from {table} t where {matches} \
         ) t on true \
         left join lateral (select d.* from tombstream.deletion d where d.relation = {name} \
             and d.key = {key} and d.state in {OPEN_STATES} {BY_KEY}) d on true \
         group by 1",
        held = is_held(&name, &key),
        grace = interval(relation.grace),
        keys = table.unnest_keys(1),
        is_set = table.is_set("t"),
        at = table.flag_at("t"),
        table = table.name(),
        matches = table.matches_keys("t"),
    )
}

impl Ledger for TalliedLedger {
    async fn claim(
        &self,
        relation: RelationId,
        batch: &[Candidate],
    ) -> Result<Vec<Claimed>, LedgerError> {
        let claimed = self.ledger.claim(relation, batch).await?;
        let number = claimed.iter().filter(|claimed| !claimed.is_hide).count();
        self.tally.add(Count::Claimed, number as u64);
        if claimed.len() < batch.len() {
            let taken: HashSet<&Key> = claimed.iter().map(|claimed| &claimed.key).collect();
            let others = batch.iter().map(|candidate| &candidate.key);
            self.count_others(relation, others.filter(|key| !taken.contains(key))).await;
        }
        Ok(claimed)
    }

    async fn resume(&self, batch: &[DeletionId]) -> Result<Vec<Claimed>, LedgerError> {
        let claimed = self.ledger.resume(batch).await?;
        self.tally.add(Count::TakenOver, claimed.len() as u64);
        Ok(claimed)
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
        self.ledger.bury(batch).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_count_has_its_own_place_and_name() {
        let tally = Tally::default();
        for (place, (count, name)) in COUNTS.iter().enumerate() {
            assert_eq!(*count as usize, place, "{name}");
            tally.named(name, place as u64 + 1);
        }
        tally.named("no such name", 100);
        let counts = tally.counts();
        assert_eq!(counts.len(), COUNTS.len());
        assert_eq!(counts["matched"], 1);
        assert_eq!(counts["unknown"], 116);
    }
}
