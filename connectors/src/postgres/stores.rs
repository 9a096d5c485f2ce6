//! Stores that come and go while deletions are open.
//!
//! One that was added gets its part of every deletion that is not finalized: addresses are resolved from the
//! row, which is there until then. One that was taken out of the configuration still holds copies: that is an
//! error until it is back, or waived by a person with a reason.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row as _};
use tracing::info;

use tombstream_model::Relation;

use super::ledger::{ClaimedRow, PgLedger, Prepared};
use super::statement::{BEGIN, json, whole};
use super::table::Table;

/// A store that held copies of a relation's rows and is not configured any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormerStore {
    /// Whose rows.
    pub relation: String,
    /// Its name.
    pub store: String,
    /// Open deletions past the claim with a target in it that is not confirmed.
    pub owed: i64,
}

/// What a waiver of a store did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waived {
    /// Whether the relation was known to have copies there.
    pub was_known: bool,
    /// Open deletions whose target there needs no proof any more.
    pub deletions: u64,
}

/// Notes which stores `relations` have now (`stores` are the names), and says which they had and have no
/// more. A store that is back needs no waiver any more.
pub async fn note_stores(
    pool: &PgPool,
    relations: &[Relation],
    stores: &[Arc<str>],
) -> Result<Vec<FormerStore>, sqlx::Error> {
    let mut transaction = whole(pool, BEGIN).await?;
    let mut former = Vec::new();
    for relation in relations {
        let names: BTreeSet<&str> =
            relation.targets.iter().map(|it| &*stores[usize::from(it.store.0)]).collect();
        let names: Vec<&str> = names.into_iter().collect();
        sqlx::query(
            "insert into tombstream.store as s (relation, store) \
             select $1, n from unnest($2::text[]) n order by n \
             on conflict (relation, store) do update \
             set waived_at = null, waived_by = null, waived_reason = null where s.waived_at is not null",
        )
        .persistent(false)
        .bind(&*relation.name)
        .bind(&names)
        .execute(&mut *transaction)
        .await?;
        let rows = sqlx::query(
            "select s.store, (select count(*) from tombstream.deletion d \
                 where d.relation = s.relation and d.claimed_at is not null \
                     and d.state in ('claimed', 'parked') and exists ( \
                         select from jsonb_array_elements(d.targets) t where t ->> 'store' = s.store \
                             and coalesce(t -> 'outcome' ->> 'verdict', '') \
                                 not in ('deleted', 'absent', 'waived'))) \
             from tombstream.store s \
             where s.relation = $1 and s.waived_at is null and s.store <> all($2) order by s.store",
        )
        .persistent(false)
        .bind(&*relation.name)
        .bind(&names)
        .fetch_all(&mut *transaction)
        .await?;
        for row in rows {
            former.push(FormerStore {
                relation: relation.name.to_string(),
                store: row.try_get(0)?,
                owed: row.try_get(1)?,
            });
        }
    }
    transaction.commit().await?;
    Ok(former)
}

/// Says that the copies of `relation`'s rows in `store` need no proof any more. What is open goes on without
/// them; the receipts say who waived them, and why. One transaction.
pub async fn waive_store(
    pool: &PgPool,
    relation: &str,
    store: &str,
    actor: &str,
    reason: &str,
) -> Result<Waived, sqlx::Error> {
    let mut transaction = whole(pool, BEGIN).await?;
    let known = sqlx::query(
        "update tombstream.store set waived_at = now(), waived_by = $3, waived_reason = $4 \
         where relation = $1 and store = $2",
    )
    .persistent(false)
    .bind(relation)
    .bind(store)
    .bind(actor)
    .bind(reason)
    .execute(&mut *transaction)
    .await?
    .rows_affected();
    // What another transaction works on is left: it is parked when it comes to that store, and says so.
    let deletions = sqlx::query(
        "with open as ( \
             select d.id, jsonb_agg(case when t ->> 'store' = $2 and coalesce( \
                     t -> 'outcome' ->> 'verdict', '') not in ('deleted', 'absent', 'waived') \
                 then jsonb_set(t, '{outcome}', jsonb_build_object('verdict', 'waived', \
                     'said', $3 || ': ' || $4, 'verified', 'trust')) else t end order by n) as targets \
             from (select id, key, targets from tombstream.deletion \
                 where relation = $1 and claimed_at is not null and state in ('claimed', 'parked') \
                     and exists (select from jsonb_array_elements(targets) t where t ->> 'store' = $2 \
                         and coalesce(t -> 'outcome' ->> 'verdict', '') \
                             not in ('deleted', 'absent', 'waived')) \
                 order by key for update skip locked) d \
             cross join jsonb_array_elements(d.targets) with ordinality as e(t, n) group by d.id \
         ) \
         update tombstream.deletion d set targets = open.targets, state = 'claimed', reason = null, \
             lease_until = null, due_at = clock_timestamp(), attempts = 0 \
         from open where d.id = open.id",
    )
    .persistent(false)
    .bind(relation)
    .bind(store)
    .bind(actor)
    .bind(reason)
    .execute(&mut *transaction)
    .await?
    .rows_affected();
    sqlx::query(
        "insert into tombstream.operator_order (actor, action, relation, detail) \
         values ($1, 'waive_store', $2, jsonb_build_object('store', $3::text, 'reason', $4::text, \
             'deletions', $5::bigint))",
    )
    .persistent(false)
    .bind(actor)
    .bind(relation)
    .bind(store)
    .bind(reason)
    .bind(i64::try_from(deletions).unwrap_or(i64::MAX))
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(Waived { was_known: known > 0, deletions })
}

/// The template columns of rows, by the key as the ledger keeps it; no row of it is locked.
fn rows_sql(relation: &Relation) -> String {
    let table = Table::new(relation);
    format!(
        "select d.id{columns} from tombstream.deletion d join {table} t on {matches} \
         where d.id = any($1)",
        columns = table.template_columns("t"),
        table = table.name(),
        matches = table.matches_array("t", "d.key"),
    )
}

/// Writes down what was added. The lease is this transaction's own.
const ADD: &str = "\
    update tombstream.deletion d set targets = i.targets::jsonb \
    from unnest($1::bigint[], $2::text[]) as i(id, targets) where d.id = i.id";

impl PgLedger {
    /// Gives deletions that were taken over their part in stores that were added since. Where the row is
    /// gone, its key tells the address, or nothing does: then the deletion is not driven on, and a person
    /// is told.
    pub(super) async fn add_stores(
        &self,
        connection: &mut PgConnection,
        taken: &mut Vec<(ClaimedRow, i64)>,
    ) -> Result<(), sqlx::Error> {
        let mut lacking: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        for (row, _) in &*taken {
            let Some((_, prepared)) = self.relation_named(&row.relation) else { continue };
            if !self.missing(prepared, row).is_empty() {
                lacking.entry(row.relation.clone()).or_default().push(row.id);
            }
        }
        let (mut ids, mut targets, mut parked) = (Vec::new(), Vec::new(), Vec::new());
        for (name, of_relation) in lacking {
            let Some((_, prepared)) = self.relation_named(&name) else { continue };
            let rows = sqlx::query(AssertSqlSafe(rows_sql(&prepared.relation)))
                .persistent(false)
                .bind(&of_relation)
                .fetch_all(&mut *connection)
                .await?;
            let mut values: BTreeMap<i64, Vec<Option<String>>> = BTreeMap::new();
            for row in rows {
                let texts = (0..prepared.claim.columns.len()).map(|n| row.try_get(n + 1));
                values.insert(row.try_get(0)?, texts.collect::<Result<_, _>>()?);
            }
            for (row, _) in taken.iter_mut().filter(|(row, _)| of_relation.contains(&row.id)) {
                let missing = self.missing(prepared, row);
                let known = values.remove(&row.id).unwrap_or_else(|| self.of_key(prepared, row));
                let waived = self.others(&missing);
                match self.resolve(prepared, &known, &waived) {
                    Ok(added) => {
                        info!(
                            relation = name,
                            deletion = row.id,
                            ?missing,
                            "stores were added since the claim"
                        );
                        row.targets.extend(added);
                        ids.push(row.id);
                        targets.push(json(&row.targets)?);
                    }
                    Err(refusal) => {
                        self.report_parked(prepared, row.id);
                        parked.push((row.id, format!("added since the claim: {}", refusal.reason)));
                    }
                }
            }
        }
        if !ids.is_empty() {
            let query = self.statements.query(ADD).bind(ids).bind(targets);
            query.execute(&mut *connection).await?;
        }
        for (id, reason) in parked {
            taken.retain(|(row, _)| row.id != id);
            sqlx::query(
                "update tombstream.deletion set state = 'parked', lease_until = null, reason = $2 \
                 where id = $1",
            )
            .persistent(false)
            .bind(id)
            .bind(reason)
            .execute(&mut *connection)
            .await?;
        }
        Ok(())
    }

    /// The configured stores of which a deletion's entry knows nothing. Of a hidden one those that go first.
    /// What is destroyed again, without a row, is destroyed where it was found, and nowhere else.
    fn missing(&self, prepared: &Prepared, row: &ClaimedRow) -> BTreeSet<String> {
        if row.cause.is_again() && row.flag.is_empty() {
            return BTreeSet::new();
        }
        let wanted = prepared
            .relation
            .targets
            .iter()
            .filter(|template| !row.is_hide || template.is_hidden_first)
            .map(|template| self.store_name(template.store));
        wanted
            .filter(|store| {
                !row.waived.contains(&**store) && !row.targets.iter().any(|it| *it.store == **store)
            })
            .map(|store| store.to_string())
            .collect()
    }

    /// The configured stores but these.
    fn others(&self, these: &BTreeSet<String>) -> BTreeSet<String> {
        let names = self.config.stores.iter().map(|store| store.name.to_string());
        names.filter(|name| !these.contains(name)).collect()
    }

    /// What the key alone tells of a row that is gone.
    fn of_key(&self, prepared: &Prepared, row: &ClaimedRow) -> Vec<Option<String>> {
        let of_key = |name: &String| {
            let place = prepared.relation.key.iter().position(|column| column.name == *name)?;
            row.key.get(place).cloned()
        };
        prepared.claim.columns.iter().map(of_key).collect()
    }
}
