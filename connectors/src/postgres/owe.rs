//! What is owed: targets that no store has confirmed in time, left to the sweep so that the frontier
//! can move (L3).

use std::collections::BTreeMap;

use sqlx::PgConnection;
use tracing::warn;

use tombstream_model::{LedgerError, RelationId, Settled, Verdict};

use super::ledger::PgLedger;
use super::pool::ledger_error;

/// Writes what was confirmed, ends the lease, and says when to try again: the wait doubles with each
/// attempt. A hide that is done waits for nothing but its claim. Skips what others hold: their lease runs out.
/// The state is spelled so that no index of states seems to fit: each id has its own.
const OWE: &str = "\
    with i as ( \
        select * from unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $7::boolean[]) \
            as i(id, token, targets, reason, done) \
    ), \
    mine as ( \
        select d.id, i.targets::jsonb as targets, i.reason, i.done from i cross join lateral ( \
            select d.id from tombstream.deletion d where d.id = i.id and d.lease_token = i.token \
                and d.state || '' in ('claimed', 'hidden') for update skip locked) d \
    ) \
    update tombstream.deletion d set targets = mine.targets, lease_until = null, \
        state = case when mine.reason is null then d.state else 'parked' end, \
        reason = mine.reason, \
        due_at = case when not mine.done then clock_timestamp() \
            + make_interval(secs => least($6, $5 * 2 ^ least(d.attempts - 1, 30))) end \
    from mine where d.id = mine.id";

/// A deletion that was restored while its hide was under way: nothing more of it will be destroyed, so
/// whoever fills its stores may begin. Takes no other lock.
const HIDE_ENDED: &str = "\
    update tombstream.rehydrate r set ready_at = clock_timestamp() \
    from unnest($1::bigint[], $2::bigint[]) as i(id, token) \
    where r.deletion_id = i.id and r.lease_token = i.token and r.ready_at > clock_timestamp()";

impl PgLedger {
    /// What one store owes says nothing against what another did not find: first attempts count here
    /// as they do in finalize.
    pub(super) async fn owe_batch(&self, batch: &[Settled]) -> Result<(), LedgerError> {
        let mut of_relation: BTreeMap<RelationId, Vec<Settled>> = BTreeMap::new();
        for settled in batch {
            of_relation.entry(settled.claimed.relation).or_default().push(settled.clone());
        }
        for (relation, part) in of_relation {
            if !self.absent_too_often(relation, &part).await? {
                self.record_owed(&part).await?;
            }
        }
        Ok(())
    }

    /// Writes down what is owed.
    pub(super) async fn record_owed(&self, batch: &[Settled]) -> Result<(), LedgerError> {
        let mut session = self.statements.session().await.map_err(ledger_error)?;
        let parked = self.write_owed(&mut session, batch).await.map_err(ledger_error)?;
        session.end().await.map_err(ledger_error)?;
        self.end_hides(batch).await.map_err(ledger_error)?;
        for (relation, reason) in parked {
            let relation = self.prepared(relation).relation.name.to_string();
            warn!(relation, reason, "deletion parked: a store refuses");
            metrics::counter!("tombstream_parked_total", "relation" => relation).increment(1);
        }
        Ok(())
    }

    /// The statement, in the caller's transaction or session. Says what it parked, and why.
    pub(super) async fn write_owed(
        &self,
        connection: &mut PgConnection,
        batch: &[Settled],
    ) -> Result<Vec<(RelationId, String)>, sqlx::Error> {
        let ids: Vec<i64> = batch.iter().map(|settled| settled.claimed.id.0).collect();
        let tokens: Vec<i64> = batch.iter().map(|settled| settled.claimed.fence.token).collect();
        let targets =
            batch.iter().map(|settled| self.entries(settled)).collect::<Result<Vec<_>, _>>()?;
        let done: Vec<bool> = batch
            .iter()
            .map(|settled| settled.claimed.is_hide && settled.has_all_confirmed())
            .collect();
        let reasons: Vec<Option<String>> =
            batch.iter().map(|settled| self.needs_a_person(settled)).collect();
        self.statements
            .query(OWE)
            .bind(ids)
            .bind(tokens)
            .bind(targets)
            .bind(&reasons)
            .bind(self.config.owed_wait_min.as_secs_f64())
            .bind(self.config.owed_wait_max.as_secs_f64())
            .bind(done)
            .execute(connection)
            .await?;
        let relations = batch.iter().map(|settled| settled.claimed.relation);
        Ok(relations.zip(reasons).filter_map(|(id, reason)| Some((id, reason?))).collect())
    }

    /// Whoever restored during the hide is waiting for its end.
    async fn end_hides(&self, batch: &[Settled]) -> Result<(), sqlx::Error> {
        let hides = || batch.iter().filter(|settled| settled.claimed.is_hide);
        let ids: Vec<i64> = hides().map(|settled| settled.claimed.id.0).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let tokens: Vec<i64> = hides().map(|settled| settled.claimed.fence.token).collect();
        let mut session = self.statements.session().await?;
        let query = self.statements.query(HIDE_ENDED).bind(ids).bind(tokens);
        query.execute(&mut *session).await?;
        session.end().await
    }

    /// Why asking again is no use, if so.
    fn needs_a_person(&self, settled: &Settled) -> Option<String> {
        let reason =
            settled.claimed.targets.iter().zip(&settled.outcomes).find_map(|(claimed, outcome)| {
                let store = self.store_name(claimed.target.store);
                if !self.is_configured(claimed.target.store) && !outcome.verdict.is_confirmed() {
                    return Some(format!(
                        "store {store} is not configured any more: put it back and retry, or waive it"
                    ));
                }
                match outcome.verdict {
                    Verdict::Refused => Some(format!("store {store} refuses: {}", outcome.said)),
                    Verdict::Superseded => {
                        Some(format!("store {store} holds a newer life: {}", outcome.said))
                    }
                    Verdict::Deleted
                    | Verdict::Absent
                    | Verdict::Busy
                    | Verdict::Unknown
                    | Verdict::Waived => None,
                }
            });
        reason.map(|reason| reason.replace('\0', "\u{fffd}"))
    }
}
