//! Ending a pause: addresses are resolved anew from the rows, since a wrong template is the most likely
//! reason for it.

use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use tombstream_model::{LedgerError, Relation, RelationId};

use super::ledger::{PgLedger, Prepared, TargetEntry, waived_stores};
use super::moved::former_sql;
use super::pool::ledger_error;
use super::statement::{BEGIN, json};
use super::table::{Table, ident, literal};

/// Deletions of one page.
const PAGE: i64 = 1_000;

/// What ending a pause did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// Whether the relation was paused.
    pub was_paused: bool,
    /// Claimed deletions that got other addresses than they had.
    pub corrected: u64,
}

/// Claimed deletions that nobody works on, with their rows' template columns.
fn waiting_sql(relation: &Relation) -> String {
    let table = Table::new(relation);
    format!(
        "select d.id, d.targets, d.waived, {former}{columns} from tombstream.deletion d join {table} t on {matches} \
         where d.relation = {name} and d.state = 'claimed' and d.id > $1 \
             and (d.lease_until is null or d.lease_until < clock_timestamp()) \
             and t.{flag} = {claimed_flag} \
         order by d.id limit $2 for update of d skip locked",
        columns = table.template_columns("t"),
        table = table.name(),
        matches = table.matches_array("t", "d.key"),
        name = literal(&relation.name),
        flag = ident(&relation.flag.column),
        claimed_flag = table.flag_value("d.flag"),
        former = former_sql(relation, "d.key"),
    )
}

impl PgLedger {
    /// Ends a relation's pause, and forgets its absent shares so that it is judged anew. What was claimed
    /// gets the addresses of this configuration's templates; what is confirmed at an address that is
    /// still right stays confirmed. One transaction.
    pub async fn resume_relation(&self, relation: RelationId) -> Result<Resumed, LedgerError> {
        let prepared = self.prepared(relation);
        let name = &*prepared.relation.name;
        let mut transaction = self.statements.begin(BEGIN).await.map_err(ledger_error)?;
        let was_paused = sqlx::query("delete from tombstream.pause where relation = $1")
            .persistent(false)
            .bind(name)
            .execute(&mut *transaction)
            .await
            .map_err(ledger_error)?
            .rows_affected()
            > 0;
        sqlx::query("delete from tombstream.absent_share where relation = $1")
            .persistent(false)
            .bind(name)
            .execute(&mut *transaction)
            .await
            .map_err(ledger_error)?;
        let corrected = self.correct(&mut transaction, prepared).await.map_err(ledger_error)?;
        transaction.commit().await.map_err(ledger_error)?;
        Ok(Resumed { was_paused, corrected })
    }

    async fn correct(
        &self,
        connection: &mut PgConnection,
        prepared: &Prepared,
    ) -> Result<u64, sqlx::Error> {
        let waiting = waiting_sql(&prepared.relation);
        let (mut after, mut corrected) = (0_i64, 0);
        loop {
            let rows = sqlx::query(AssertSqlSafe(waiting.clone()))
                .persistent(false)
                .bind(after)
                .bind(PAGE)
                .fetch_all(&mut *connection)
                .await?;
            let Some(last) = rows.last() else { return Ok(corrected) };
            after = last.try_get(0)?;
            let (mut ids, mut entries) = (Vec::new(), Vec::new());
            for row in &rows {
                let known = row.try_get::<Json<Vec<TargetEntry>>, _>(1)?.0;
                let waived = waived_stores(row, 2)?;
                // A row without a safe address keeps what it had: it is a person's to mend.
                let Ok(mut resolved) = self.addresses(prepared, row, 3, &waived)? else { continue };
                let same = resolved.len() == known.len()
                    && resolved.iter().zip(&known).all(|(a, b)| is_same(a, b));
                if same {
                    continue;
                }
                for target in &mut resolved {
                    target.outcome = known
                        .iter()
                        .find(|it| is_same(it, target))
                        .and_then(|it| it.outcome.clone());
                }
                ids.push(row.try_get::<i64, _>(0)?);
                entries.push(json(&resolved)?);
            }
            corrected += sqlx::query(
                "update tombstream.deletion d set targets = i.targets::jsonb, due_at = null, \
                     reason = 'addresses resolved anew when the relation was resumed' \
                 from unnest($1::bigint[], $2::text[]) as i(id, targets) where d.id = i.id",
            )
            .persistent(false)
            .bind(ids)
            .bind(entries)
            .execute(&mut *connection)
            .await?
            .rows_affected();
        }
    }
}

pub(super) fn is_same(one: &TargetEntry, other: &TargetEntry) -> bool {
    one.store == other.store && one.address == other.address
}
