//! Rows that a restored backup brought back, erased again: flagged, with a deletion that says why.
//!
//! Owned here: which of them are the erased ones (`judge.rs`), and how far the job is. Left to others: whether the export
//! can be believed (the caller has checked its chain), and everything after the flag, which is the pipeline's as for any
//! flagged row.
//!
//! A page is one transaction: the rows locked, looked at, flagged, what was found written down, and the job's position.
//! Killed at any instruction, a page was done whole or is done again.

mod judge;
mod lineage;
mod sql;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres, Row as _};
use tokio::time::sleep;

use tombstream_model::{Hash, Key, KeyedHash, Receipt, Relation, RelationId};

use super::claim::keys_json;
use super::job::{Job, JobError, Moved};
use super::statement::whole;
use super::table::key_arrays;
use judge::{Back, Lineage, judge};
pub use judge::{Ending, Erased};
pub(super) use lineage::standing;
use sql::{BEGIN, READ, Sql};

/// The job's kind in the ledger.
const KIND: &str = "re-erase";
/// How often a page whose rows others hold is tried.
const TRIES: u32 = 20;
const WAIT: Duration = Duration::from_millis(500);

/// What is asked: the job's spec in the ledger. The same name goes on only with the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReEraseSpec {
    /// Of receipts of this time or later.
    pub since: DateTime<Utc>,
    /// The head of the export's chain.
    pub head: Hash,
    /// Tables were put back out of a backup without the ledger, too.
    #[serde(default)]
    pub tables_alone: bool,
}

/// What else has to be known.
#[derive(Clone, Debug)]
pub struct ReEraseConfig {
    /// By relation: the column that tells when a row came to be.
    pub created: Vec<Option<String>>,
    /// What the receipts' keys are hashed with, if they are.
    pub keyed: Option<KeyedHash>,
    /// Who orders it.
    pub actor: String,
    /// Nothing is written.
    pub is_dry: bool,
}

/// Why it can't be done.
#[derive(Debug, thiserror::Error)]
pub enum ReEraseError {
    /// What is asked for makes no sense here.
    #[error("{0}")]
    Refused(String),
    /// The job's name.
    #[error(transparent)]
    Job(#[from] JobError),
    /// The database.
    #[error("the ledger can't be asked")]
    Database(#[from] sqlx::Error),
}

/// A row that is there although a receipt says that it was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, sqlx::FromRow)]
pub struct RowBack {
    /// What follows.
    pub ending: String,
    /// The relation's name.
    pub relation: String,
    /// The text of each key column.
    pub key: Vec<String>,
    /// The deletion's number in the export.
    pub receipt: i64,
    /// Why.
    pub reason: String,
}

/// How the export and this ledger stand to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainStanding {
    /// The last block that both have.
    pub common: i64,
    /// The last block of this ledger.
    pub own: i64,
    /// The number of the last entry that both have.
    pub last_entry: i64,
}

/// A job that erases again.
#[derive(Debug)]
pub struct ReErase {
    pool: PgPool,
    relations: Arc<[Relation]>,
    sql: Vec<Sql>,
    config: ReEraseConfig,
    lineage: Lineage,
    standing: ChainStanding,
    /// None: a dry run.
    job: Option<Job>,
    /// How far each range is, and how many receipts or rows of it were looked at.
    ranges: BTreeMap<i32, (Option<serde_json::Value>, i64)>,
}

impl ReErase {
    /// Takes the job's name, and looks how the export stands to this ledger: its blocks' hashes, and how many receipts of it
    /// there are to look at.
    pub async fn begin(
        pool: PgPool,
        relations: Arc<[Relation]>,
        (name, spec): (&str, &ReEraseSpec),
        (blocks, receipts): (&[Hash], i64),
        owner: &str,
        config: ReEraseConfig,
    ) -> Result<Self, ReEraseError> {
        lineage::check_columns(&pool, &relations, &config.created).await?;
        let (mut lineage, standing) = lineage::read(&pool, blocks).await?;
        lineage.had_tables_alone = spec.tables_alone;
        let created = config.created.iter().map(Option::as_deref);
        let sql = relations.iter().zip(created).map(|(it, column)| Sql::new(it, column)).collect();
        let mut job = None;
        // The export's receipts, and the rows of each relation, where receipts are hashed.
        let count = relations.len() + 1;
        let mut ranges = (0..).take(count).map(|n| (n, (None, 0))).collect();
        if !config.is_dry {
            let json = serde_json::to_value(spec).expect("a spec is json");
            let mut taken = Job::take(&pool, name, KIND, &json, owner).await?;
            if taken.total().is_none() {
                order(&pool, name, spec, &relations, &config.actor).await?;
                let null = serde_json::Value::Null;
                taken.plan(receipts, &vec![(null.clone(), null); count]).await?;
            }
            let undone = taken.ranges().await?.into_iter();
            ranges = undone.map(|(n, at, _, looked_at)| (n, (at, looked_at))).collect();
            job = Some(taken);
        }
        Ok(Self { pool, relations, sql, config, lineage, standing, job, ranges })
    }

    /// How the export and this ledger stand to each other.
    pub fn standing(&self) -> ChainStanding {
        self.standing
    }

    /// The number of the last of the export's entries that is done; none where all are.
    pub fn after_entry(&self) -> Option<i64> {
        let (at, _) = self.ranges.get(&0)?;
        Some(at.as_ref().and_then(serde_json::Value::as_i64).unwrap_or(0))
    }

    /// The last row of a relation that is done; none where all are.
    pub fn after_row(&self, relation: RelationId) -> Option<Option<Key>> {
        let (at, _) = self.ranges.get(&range_of(relation))?;
        let key = at.clone().and_then(|at| serde_json::from_value::<Vec<String>>(at).ok());
        Some(key.map(Key::from_postgres))
    }

    /// Looks at the rows of some receipts, in the export's order, up to the entry `through`. The last page of them
    /// says so.
    pub async fn receipts(
        &mut self,
        batch: &[(RelationId, Key, Erased)],
        through: i64,
        is_last: bool,
    ) -> Result<Vec<RowBack>, ReEraseError> {
        let looked_at = self.ranges.get(&0).map_or(0, |(_, looked_at)| *looked_at);
        let looked_at = looked_at + i64::try_from(batch.len()).unwrap_or_default();
        let moved = Moved { range: 0, at: Some(through.into()), looked_at, is_done: is_last };
        self.page(batch, moved).await
    }

    /// Looks at the next `limit` rows of a relation, of those that have a receipt in `hashed`. None: there are no more.
    pub async fn rows(
        &mut self,
        relation: RelationId,
        hashed: &HashMap<(RelationId, Hash), Vec<Erased>>,
        limit: u32,
    ) -> Result<Option<Vec<RowBack>>, ReEraseError> {
        let range = range_of(relation);
        let Some(after) = self.after_row(relation) else { return Ok(None) };
        let sql = &self.sql[usize::from(relation.0)];
        let text = if after.is_some() { &sql.next } else { &sql.first };
        let mut query = sqlx::query_scalar::<_, Vec<String>>(AssertSqlSafe(text.clone()))
            .persistent(false)
            .bind(i64::from(limit));
        for column in after.iter().flat_map(Key::columns) {
            query = query.bind(column.to_owned());
        }
        let mut transaction = whole(&self.pool, READ).await?;
        let keys: Vec<Vec<String>> = query.fetch_all(&mut *transaction).await?;
        transaction.rollback().await?;
        let is_last = keys.len() < usize::try_from(limit).unwrap_or(usize::MAX);
        let at = keys.last().map(|key| serde_json::to_value(key).expect("texts"));
        let looked_at = self.ranges.get(&range).map_or(0, |(_, looked_at)| *looked_at);
        let looked_at = looked_at + i64::try_from(keys.len()).unwrap_or_default();
        let mut batch = Vec::new();
        if let Some(keyed) = &self.config.keyed {
            let name = &self.relations[usize::from(relation.0)].name;
            for key in keys.into_iter().map(Key::from_postgres) {
                let found = hashed.get(&(relation, keyed.key(name, &key))).into_iter().flatten();
                batch.extend(found.map(|erased| (relation, key.clone(), erased.clone())));
            }
        }
        let moved = Moved { range, at, looked_at, is_done: is_last };
        self.page(&batch, moved).await.map(Some)
    }

    async fn page(
        &mut self,
        batch: &[(RelationId, Key, Erased)],
        moved: Moved,
    ) -> Result<Vec<RowBack>, ReEraseError> {
        let mut tries = 0;
        let found = loop {
            match self.try_page(batch, &moved).await {
                Err(ReEraseError::Database(error)) if passes(&error) && tries < TRIES => {
                    tries += 1;
                    tracing::warn!(error = %error, "a page can't be done yet");
                    sleep(WAIT).await;
                }
                Err(ReEraseError::Database(error)) => return Err(explain(error)),
                other => break other?,
            }
        };
        if moved.is_done {
            self.ranges.remove(&moved.range);
        } else {
            let (at, looked_at) = self.ranges.entry(moved.range).or_default();
            *looked_at = moved.looked_at;
            if moved.at.is_some() {
                *at = moved.at;
            }
        }
        Ok(found)
    }

    async fn try_page(
        &self,
        batch: &[(RelationId, Key, Erased)],
        moved: &Moved,
    ) -> Result<Vec<RowBack>, ReEraseError> {
        let mut by_relation: BTreeMap<RelationId, Vec<(&Key, &Erased)>> = BTreeMap::new();
        for (relation, key, erased) in batch {
            by_relation.entry(*relation).or_default().push((key, erased));
        }
        let mut transaction =
            whole(&self.pool, if self.config.is_dry { READ } else { BEGIN }).await?;
        let mut all = Vec::new();
        for (relation, batch) in by_relation {
            all.extend(self.of_relation(&mut transaction, relation, &batch).await?);
        }
        let Some(job) = &self.job else {
            transaction.rollback().await?;
            return Ok(all);
        };
        note(&mut transaction, job.name(), &all).await?;
        job.moved_within(&mut transaction, std::slice::from_ref(moved), &BTreeMap::new()).await?;
        transaction.commit().await?;
        Ok(all)
    }

    /// Locks the rows that are there, looks at them on a fresh snapshot, and flags what is the erased life.
    async fn of_relation(
        &self,
        connection: &mut PgConnection,
        id: RelationId,
        batch: &[(&Key, &Erased)],
    ) -> Result<Vec<RowBack>, ReEraseError> {
        let relation = &self.relations[usize::from(id.0)];
        let sql = &self.sql[usize::from(id.0)];
        let keys = || batch.iter().map(|(key, _)| *key);
        if !self.config.is_dry {
            let lock = keyed(&sql.lock, relation, keys());
            lock.execute(&mut *connection).await?;
        }
        let of =
            |show: fn(&Erased) -> i64| batch.iter().map(|(_, it)| show(it)).collect::<Vec<_>>();
        let hash =
            |key: &Key| Some(self.config.keyed.as_ref()?.key(&relation.name, key).to_string());
        let rows = keyed(&sql.look, relation, keys())
            .bind(of(|it| it.deletion))
            .bind(of(|it| it.entry))
            .bind(batch.iter().map(|(_, it)| it.transaction_id.as_str()).collect::<Vec<_>>())
            .bind(batch.iter().map(|(_, it)| it.flag.as_deref()).collect::<Vec<_>>())
            .bind(batch.iter().map(|(_, it)| it.finalized_at).collect::<Vec<_>>())
            .bind(keys().map(hash).collect::<Vec<_>>())
            .fetch_all(&mut *connection)
            .await?;
        // By key: one that was erased twice may stand in a batch twice, and what erases it speaks.
        let mut judged: BTreeMap<&Key, (Ending, &'static str, bool, &Erased)> = BTreeMap::new();
        for row in &rows {
            let place = usize::try_from(row.try_get::<i64, _>("n")? - 1).unwrap_or(usize::MAX);
            let Some((key, erased)) = batch.get(place) else { continue };
            let back = back(row)?;
            let (ending, reason) = judge(erased, &back, self.lineage);
            let is_its_own = back.has_its_flag && !back.is_under_way;
            if judged.get(key).is_none_or(|(known, ..)| *known != Ending::ReErased) {
                judged.insert(key, (ending, reason, is_its_own, erased));
            }
        }
        if !self.config.is_dry {
            self.flag(connection, relation, sql, &mut judged).await?;
        }
        let told = judged.into_iter().map(|(key, (ending, reason, _, erased))| RowBack {
            ending: ending.as_str().to_owned(),
            relation: relation.name.to_string(),
            key: key.columns().map(str::to_owned).collect(),
            receipt: erased.deletion,
            reason: reason.to_owned(),
        });
        Ok(told.collect())
    }

    async fn flag(
        &self,
        connection: &mut PgConnection,
        relation: &Relation,
        sql: &Sql,
        judged: &mut BTreeMap<&Key, (Ending, &'static str, bool, &Erased)>,
    ) -> Result<(), ReEraseError> {
        let proven: Vec<(&Key, &Erased)> = judged
            .iter()
            .filter(|(_, (ending, ..))| *ending == Ending::ReErased)
            .map(|(key, (.., erased))| (*key, *erased))
            .collect();
        if !proven.is_empty() {
            let flagged: Vec<Vec<String>> =
                keyed(&sql.flag, relation, proven.iter().map(|it| it.0))
                    .bind(proven.iter().map(|(_, it)| it.flag.as_deref()).collect::<Vec<_>>())
                    .bind(proven.iter().map(|(_, it)| it.claimed_at).collect::<Vec<_>>())
                    .fetch_all(&mut *connection)
                    .await?
                    .iter()
                    .map(|row| row.try_get(0))
                    .collect::<Result<_, _>>()?;
            let flagged: Vec<Key> = flagged.into_iter().map(Key::from_postgres).collect();
            for (key, _) in proven.iter().filter(|(key, _)| !flagged.contains(key)) {
                if let Some(told) = judged.get_mut(*key) {
                    (told.0, told.1) = (
                        Ending::Ambiguous,
                        "the database does not let the flag be set: a trigger, a rule or a policy",
                    );
                }
            }
            let told: Vec<Vec<String>> =
                flagged.iter().map(|key| key.columns().map(str::to_owned).collect()).collect();
            let told = told.iter().map(super::statement::json).collect::<Result<Vec<_>, _>>()?;
            sqlx::query(
                "insert into tombstream.flip (relation, key, action, actor) \
                 select $1, array(select jsonb_array_elements_text(i.key::jsonb)), 'flag', $3 \
                 from unnest($2::text[]) as i(key)",
            )
            .persistent(false)
            .bind(&*relation.name)
            .bind(told)
            .bind(&self.config.actor)
            .execute(&mut *connection)
            .await?;
        }
        let opened: Vec<(&Key, &Erased)> = judged
            .iter()
            .filter(|(_, (ending, _, is_its_own, _))| {
                *ending == Ending::ReErased || *ending == Ending::AlreadyFlagged && *is_its_own
            })
            .map(|(key, (.., erased))| (*key, *erased))
            .collect();
        if opened.is_empty() {
            return Ok(());
        }
        let reason = |erased: &Erased| {
            format!("erased again: receipt {} of entry {}", erased.deletion, erased.entry)
        };
        sqlx::query(AssertSqlSafe(sql.open.clone()))
            .persistent(false)
            .bind(keys_json(opened.iter().map(|it| it.0))?)
            .bind(opened.iter().map(|(_, it)| it.claimed_at).collect::<Vec<_>>())
            .bind(opened.iter().map(|(_, it)| reason(it)).collect::<Vec<_>>())
            .execute(connection)
            .await?;
        Ok(())
    }

    /// What was found, of all processes that ran the job: rows by their ending. Of a dry run nothing.
    pub async fn counts(&self) -> Result<BTreeMap<String, u64>, ReEraseError> {
        let Some(job) = &self.job else { return Ok(BTreeMap::new()) };
        let mut transaction = whole(&self.pool, READ).await?;
        let counts: Vec<(String, i64)> = sqlx::query_as(
            "select ending, count(*) from tombstream.re_erasure where job = $1 group by ending",
        )
        .persistent(false)
        .bind(job.name())
        .fetch_all(&mut *transaction)
        .await?;
        transaction.rollback().await?;
        Ok(counts.into_iter().map(|(ending, count)| (ending, count.unsigned_abs())).collect())
    }

    /// Gives the name back: done, or stopped for a reason.
    pub async fn end(&self, stopped: Option<&str>) -> Result<(), ReEraseError> {
        if let Some(job) = &self.job {
            // The findings are of all processes, and the job adds to what earlier ones counted.
            let counts = self.counts().await?.into_iter().map(|(ending, count)| {
                let before = job.before().get(&ending).copied().unwrap_or(0);
                (ending, count.saturating_sub(before))
            });
            job.end(&counts.collect(), stopped).await?;
        }
        Ok(())
    }
}

/// What a job of the kind `re-erase` found, the next page behind `after`.
pub async fn rows_back(
    pool: &PgPool,
    job: &str,
    after: Option<&RowBack>,
) -> Result<Vec<RowBack>, sqlx::Error> {
    let mut transaction = whole(pool, READ).await?;
    let page = sqlx::query_as(
        "select ending, relation, key, receipt, reason from tombstream.re_erasure \
         where job = $1 and ($2::text is null or (relation, key) > ($2, $3::text[])) \
         order by relation, key limit 1000",
    )
    .persistent(false)
    .bind(job)
    .bind(after.map(|row| row.relation.as_str()))
    .bind(after.map(|row| row.key.as_slice()))
    .fetch_all(&mut *transaction)
    .await?;
    transaction.rollback().await?;
    Ok(page)
}

impl Erased {
    /// What of a receipt is compared.
    pub fn of(entry: i64, receipt: &Receipt) -> Self {
        Self {
            deletion: receipt.deletion_id.0,
            entry,
            transaction_id: receipt.transaction_id.clone(),
            flag: receipt.flag.clone(),
            claimed_at: receipt.claimed_at,
            finalized_at: receipt.finalized_at,
        }
    }
}

fn range_of(relation: RelationId) -> i32 {
    i32::from(relation.0) + 1
}

/// A statement whose first parameters are keys.
fn keyed<'q, 'k>(
    sql: &str,
    relation: &Relation,
    keys: impl Iterator<Item = &'k Key>,
) -> Query<'q, Postgres, PgArguments> {
    let query = sqlx::query(AssertSqlSafe(sql.to_owned())).persistent(false); // Identifiers and literals quoted.
    key_arrays(relation, keys).into_iter().fold(query, |query, array| query.bind(array))
}

fn back(row: &sqlx::postgres::PgRow) -> Result<Back, sqlx::Error> {
    Ok(Back {
        is_flagged: row.try_get("is_flagged")?,
        has_its_flag: row.try_get("has_its_flag")?,
        is_under_way: row.try_get("is_under_way")?,
        created: row.try_get("created")?,
        written_by: row.try_get("written_by")?,
        is_known: row.try_get("is_known")?,
        was_removed_since: row.try_get("was_removed_since")?,
        was_taken_back: row.try_get("was_taken_back")?,
    })
}

/// That somebody ordered it, for each relation.
async fn order(
    pool: &PgPool,
    name: &str,
    spec: &ReEraseSpec,
    relations: &[Relation],
    actor: &str,
) -> Result<(), sqlx::Error> {
    let names: Vec<&str> = relations.iter().map(|relation| &*relation.name).collect();
    let mut transaction = whole(pool, BEGIN).await?;
    sqlx::query(
        "insert into tombstream.operator_order (actor, action, relation, detail) \
         select $1, 're-erase', r, \
             jsonb_build_object('job', $3, 'since', $4, 'head', $5, 'tables_alone', $6) \
         from unnest($2::text[]) as r",
    )
    .persistent(false)
    .bind(actor)
    .bind(names)
    .bind(name)
    .bind(spec.since.to_rfc3339())
    .bind(spec.head.to_string())
    .bind(spec.tables_alone)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await
}

/// Keeps what was found. What was erased again stays that, whatever an older receipt of the key says.
async fn note(
    connection: &mut PgConnection,
    job: &str,
    found: &[RowBack],
) -> Result<(), sqlx::Error> {
    if found.is_empty() {
        return Ok(());
    }
    let json = found.iter().map(|row| super::statement::json(&row.key));
    sqlx::query(
        "insert into tombstream.re_erasure as r (job, relation, key, receipt, ending, reason) \
         select $1, i.relation, array(select jsonb_array_elements_text(i.key::jsonb)), i.receipt, i.ending, i.reason \
         from unnest($2::text[], $3::text[], $4::bigint[], $5::text[], $6::text[]) \
             as i(relation, key, receipt, ending, reason) \
         on conflict (job, relation, key) do update set receipt = excluded.receipt, \
             ending = excluded.ending, reason = excluded.reason, at = now() \
             where r.ending <> 're_erased'",
    )
    .persistent(false)
    .bind(job)
    .bind(found.iter().map(|row| row.relation.as_str()).collect::<Vec<_>>())
    .bind(json.collect::<Result<Vec<_>, _>>()?)
    .bind(found.iter().map(|row| row.receipt).collect::<Vec<_>>())
    .bind(found.iter().map(|row| row.ending.as_str()).collect::<Vec<_>>())
    .bind(found.iter().map(|row| row.reason.as_str()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Whether the same may succeed later: a lock, a deadlock, a server that starts again.
fn passes(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(database) => database
            .code()
            .is_some_and(|code| ["40", "53", "55", "57"].iter().any(|it| code.starts_with(it))),
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed => true,
        _ => false,
    }
}

/// The last guard lets no login of the pipeline's set a flag.
fn explain(error: sqlx::Error) -> ReEraseError {
    let code = match &error {
        sqlx::Error::Database(database) => database.code().map(|code| code.into_owned()),
        _ => None,
    };
    match code.as_deref() {
        Some(super::roles::UNCLAIMED_SQLSTATE | "42501") => ReEraseError::Refused(format!(
            "this login may not set the flag, or not write that down ({error}): run this as the tables' owner, as \
             `tombstream migrate` is, with its url in [database]"
        )),
        _ => ReEraseError::Database(error),
    }
}
