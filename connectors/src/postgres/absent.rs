//! The guard against a wrong template (S6): it makes every copy "absent", and the row, the only
//! pointer to the real one, would go.
//!
//! Counted before anything of a batch is removed, in one transaction with what it may lead to: the
//! relation's pause, and the batch put off with what was absent to be looked for again. First attempts
//! alone count, in the store as in the ledger; a batch that the database made the caller repeat counts twice.

use sqlx::PgConnection;
use sqlx::types::Json;
use tracing::error;

use tombstream_model::{
    ClaimedTarget, LedgerError, Outcome, RelationId, Settled, StoreId, Verdict,
};

use super::ledger::{PgLedger, Prepared};
use super::pool::ledger_error;
use super::statement::BEGIN;

/// First attempts that the share is taken over, and from how many on it counts.
const WINDOW: usize = 1_000;
const FROM: usize = 100;

/// A store in which too many copies were absent.
struct Crossed {
    store: StoreId,
    absent: usize,
    of: usize,
}

impl PgLedger {
    /// Adds the batch's first attempts to each store's last 1,000. Where more of them were absent than
    /// the store's limit allows, the relation is paused and the batch put off; says whether it was.
    pub(super) async fn absent_too_often(
        &self,
        relation: RelationId,
        batch: &[Settled],
    ) -> Result<bool, LedgerError> {
        let limits = |store: usize| self.config.stores[store].absent_share_max;
        let seen: Vec<(usize, String)> = (0..self.config.stores.len())
            .filter(|store| limits(*store) < 1.0)
            .map(|store| (store, first_attempts(batch, store)))
            .filter(|(_, seen)| !seen.is_empty())
            .collect();
        if seen.is_empty() {
            return Ok(false);
        }
        let prepared = self.prepared(relation);
        let mut transaction = self.statements.begin(BEGIN).await.map_err(ledger_error)?;
        let crossed = self.count(&mut transaction, prepared, seen).await.map_err(ledger_error)?;
        if !crossed.is_empty() {
            self.pause(&mut transaction, prepared, batch, &crossed).await.map_err(ledger_error)?;
            let mut again = batch.to_vec();
            for settled in &mut again {
                looked_for_again(settled, &crossed);
            }
            self.write_owed(&mut transaction, &again).await.map_err(ledger_error)?;
        }
        transaction.commit().await.map_err(ledger_error)?;
        Ok(!crossed.is_empty())
    }

    async fn count(
        &self,
        connection: &mut PgConnection,
        prepared: &Prepared,
        seen: Vec<(usize, String)>,
    ) -> Result<Vec<Crossed>, sqlx::Error> {
        let mut crossed = Vec::new();
        for (place, seen) in seen {
            let store = &self.config.stores[place];
            let query = self.statements.scalar(
                "insert into tombstream.absent_share as s (relation, store, recent) \
                 values ($1, $2, right($3, $4)) on conflict (relation, store) \
                 do update set recent = right(s.recent || $3, $4) returning recent",
            );
            let recent: String = query
                .bind(&*prepared.relation.name)
                .bind(&*store.name)
                .bind(seen)
                .bind(i32::try_from(WINDOW).unwrap_or(i32::MAX))
                .fetch_one(&mut *connection)
                .await?;
            let (absent, of) = (recent.matches('1').count(), recent.len());
            // Shares of at most 1,000 are exact in a double.
            if of >= FROM && absent as f64 > store.absent_share_max * of as f64 {
                let store = StoreId(u16::try_from(place).unwrap_or(u16::MAX));
                crossed.push(Crossed { store, absent, of });
            }
        }
        Ok(crossed)
    }

    /// Pauses the relation, showing some of what was looked for.
    async fn pause(
        &self,
        connection: &mut PgConnection,
        prepared: &Prepared,
        batch: &[Settled],
        stores: &[Crossed],
    ) -> Result<(), sqlx::Error> {
        for crossed in stores {
            let addresses: Vec<_> = batch
                .iter()
                .flat_map(|settled| settled.claimed.targets.iter().zip(&settled.outcomes))
                .filter(|(claimed, outcome)| is_absent_in(crossed.store, claimed, outcome))
                .map(|(claimed, _)| &claimed.target.address)
                .take(10)
                .collect();
            let name = self.store_name(crossed.store);
            let reason = format!(
                "{} of the last {} copies in store {name} were not there: is the template right?",
                crossed.absent, crossed.of,
            );
            error!(relation = %prepared.relation.name, reason, "relation paused");
            sqlx::query(
                "insert into tombstream.pause (relation, reason, detail) \
                 values ($1, $2, jsonb_build_object('store', $3::text, 'absent', $4::jsonb)) \
                 on conflict (relation) do nothing",
            )
            .persistent(false)
            .bind(&*prepared.relation.name)
            .bind(reason)
            .bind(name)
            .bind(Json(addresses))
            .execute(&mut *connection)
            .await?;
        }
        Ok(())
    }
}

/// What was absent where too many were proves nothing: a person says what the address is, and it is
/// looked for again.
fn looked_for_again(settled: &mut Settled, stores: &[Crossed]) {
    for (claimed, outcome) in settled.claimed.targets.iter().zip(&mut settled.outcomes) {
        if stores.iter().any(|crossed| is_absent_in(crossed.store, claimed, outcome)) {
            *outcome = Outcome::new(Verdict::Unknown, "absent, as too many were");
        }
    }
}

fn is_absent_in(store: StoreId, claimed: &ClaimedTarget, outcome: &Outcome) -> bool {
    claimed.target.store == store && outcome.verdict == Verdict::Absent
}

/// `'1'` for each first attempt in the store that found nothing, `'0'` for each that found its copy.
/// One that proved neither says nothing, and neither does one that came after an attempt without an answer: a slow
/// store's time-outs would pause the relation.
fn first_attempts(batch: &[Settled], store: usize) -> String {
    let outcome = |(claimed, outcome): (&ClaimedTarget, &Outcome)| {
        if usize::from(claimed.target.store.0) != store
            || claimed.confirmed.is_some()
            || claimed.was_hidden
        {
            return None;
        }
        match outcome.verdict {
            Verdict::Absent if outcome.is_repeated => None,
            Verdict::Absent => Some('1'),
            Verdict::Deleted | Verdict::Superseded | Verdict::Refused => Some('0'),
            Verdict::Busy | Verdict::Unknown | Verdict::Waived => None,
        }
    };
    batch
        .iter()
        .filter(|settled| settled.claimed.first_attempt)
        .flat_map(|settled| settled.claimed.targets.iter().zip(&settled.outcomes))
        .filter_map(outcome)
        .collect()
}
