//! The order of one transaction: prepare, count, ask the fence, delete, count again, commit.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::{Duration, Instant};

use sqlx::postgres::{PgArguments, PgPool};
use sqlx::{Arguments as _, AssertSqlSafe, PgConnection, Postgres, Transaction};
use tombstream_model::{Address, Outcome, Presence, Sink, SinkError, Target, Verdict};

use super::answer::Fault;
use super::catalogue;
use super::config::{PostgresTableConfig, PostgresTableConfigError};
use super::statement::Statements;

/// A table of another database, as a place to delete rows from.
pub struct PostgresTableSink {
    pub(super) pool: PgPool,
    pub(super) config: PostgresTableConfig,
}

/// One address; whoever is twice in a batch is deleted once.
struct Question<'a> {
    columns: &'a BTreeMap<String, String>,
    places: Vec<usize>,
    until: Instant,
}

/// What a count found of one address.
#[derive(Clone, Copy)]
struct Found {
    /// Whether each value is spelled as Postgres spells it.
    exact: bool,
    /// 2 for any more.
    rows: i64,
}

const NOT_EXACT: &str = "not sent: a value is not spelled as its column's type spells it, so another \
                         spelling could mean the same row";

impl PostgresTableSink {
    /// Makes the sink. Nothing is sent yet.
    pub fn new(config: PostgresTableConfig) -> Result<Self, PostgresTableConfigError> {
        Ok(Self { pool: config.open()?, config })
    }

    /// The columns of an address, or why it is never sent (S8).
    fn vet<'a>(&self, address: &'a Address) -> Result<&'a BTreeMap<String, String>, &'static str> {
        match address {
            Address::Row { table, .. } if **table != *self.config.table => {
                Err("not sent: its table is not this store's")
            }
            Address::Row { columns, .. } if columns.is_empty() => {
                Err("not sent: without a column it would mean every row")
            }
            Address::Row { columns, .. } => Ok(columns),
            Address::Object { .. }
            | Address::Prefix { .. }
            | Address::Document { .. }
            | Address::Field { .. }
            | Address::Item { .. } => Err("not sent: not an address of a table"),
        }
    }

    /// What is sound of a batch, sorted by the columns that it is found by, each address once. `refused` is
    /// told of the rest.
    fn sort<'a>(
        &self,
        batch: &'a [Target],
        mut refused: impl FnMut(usize, &'static str),
    ) -> Vec<Vec<Question<'a>>> {
        let mut groups: BTreeMap<Vec<&str>, Vec<Question<'a>>> = BTreeMap::new();
        let mut known: HashMap<&BTreeMap<String, String>, usize> = HashMap::new();
        for (place, target) in batch.iter().enumerate() {
            let columns = match self.vet(&target.address) {
                Ok(columns) => columns,
                Err(said) => {
                    refused(place, said);
                    continue;
                }
            };
            let group = groups.entry(columns.keys().map(String::as_str).collect()).or_default();
            let until = target.fence.until;
            match known.get(columns) {
                Some(&at) => {
                    group[at].places.push(place);
                    group[at].until = group[at].until.min(until);
                }
                None => {
                    known.insert(columns, group.len());
                    group.push(Question { columns, places: vec![place], until });
                }
            }
        }
        let most = self.config.items_max.get();
        let parts = groups.into_values().flat_map(|mut group| {
            let mut parts = Vec::new();
            while group.len() > most {
                let rest = group.split_off(most);
                parts.push(std::mem::replace(&mut group, rest));
            }
            parts.push(group);
            parts
        });
        parts.collect()
    }

    /// A transaction in which `part` can be asked for.
    async fn begin(
        &self,
        part: &[&Question<'_>],
        timeout: Duration,
    ) -> Result<(Transaction<'_, Postgres>, Statements), Fault> {
        let mut transaction = self.pool.begin_with("begin isolation level read committed").await?;
        let config = &self.config;
        catalogue::prepare(&mut transaction, config, timeout).await?;
        let table = catalogue::table(&mut transaction, config).await?;
        let names: Vec<&str> = part[0].columns.keys().map(String::as_str).collect();
        let columns = catalogue::columns(&mut transaction, config, table, &names).await?;
        // Invariant (S3): living rows elsewhere are not taken along;
        // `a_row_whose_children_would_go_along_stays`.
        let children = catalogue::children(&mut transaction, table).await?;
        if let Some(said) = catalogue::forbidden(config, &children) {
            return Err(Fault::Whole(SinkError::Denied(said)));
        }
        let statements = Statements::new(&config.schema, &config.name, config.many, &columns);
        Ok((transaction, statements))
    }

    /// One transaction; its outcomes are in the order of `part`.
    async fn transact(&self, part: &[&Question<'_>]) -> Result<Vec<Outcome>, Fault> {
        let busy = || Outcome::new(Verdict::Busy, "lease over");
        let now = Instant::now();
        let until = part.iter().map(|it| it.until).filter(|until| *until > now).min();
        let Some(until) = until else { return Ok(vec![busy(); part.len()]) };
        let timeout = self.config.statement_timeout.min(until.saturating_duration_since(now));
        let (mut transaction, statements) = self.begin(part, timeout).await?;
        let before = count(&mut transaction, &statements, part).await?;
        // Invariant (S1): what is read after the lease's end is thrown away, and nothing is deleted;
        // conformance: `a_target_whose_fence_is_over_is_not_touched`.
        let now = Instant::now();
        let open: Vec<usize> =
            (0..part.len()).filter(|&at| part[at].until > now && before[at].exact).collect();
        let asked: Vec<&Question<'_>> = open.iter().map(|&at| part[at]).collect();
        let gone = delete(&mut transaction, &statements, &asked).await?;
        let after = count(&mut transaction, &statements, &asked).await?;
        transaction.commit().await?;
        let mut outcomes: Vec<Outcome> = part
            .iter()
            .zip(&before)
            .map(|(_, found)| match found.exact {
                true => busy(),
                false => Outcome::new(Verdict::Refused, NOT_EXACT),
            })
            .collect();
        for (which, at) in open.into_iter().enumerate() {
            outcomes[at] = self.judge(before[at].rows, gone[which], after[which].rows);
        }
        Ok(outcomes)
    }

    /// What became of one address, of which there were so many rows before, so many went, and so many are
    /// there in the end.
    ///
    /// Invariant (S6): a delete that the database swallows confirms nothing;
    /// `a_row_that_a_trigger_keeps_is_refused`.
    fn judge(&self, before: i64, gone: i64, after: i64) -> Outcome {
        match (before, gone, after) {
            (0, 0, 0) => Outcome::new(Verdict::Absent, "no such row"),
            (_, 0, 0) => Outcome::new(Verdict::Deleted, "gone meanwhile"),
            (_, 1, 0) => Outcome::new(Verdict::Deleted, "1 row deleted"),
            (_, gone, 0) => Outcome::new(Verdict::Deleted, format!("{gone} rows deleted")),
            (_, 0, 2) if !self.config.many => {
                let said =
                    "several rows have these values, and `many` is not set: nothing was deleted";
                Outcome::new(Verdict::Refused, said)
            }
            (0, 0, _) => Outcome::new(Verdict::Busy, "a row came while it was looked for"),
            (_, 0, _) => {
                let said = "the row is still there: a trigger or a rule of the table keeps it";
                Outcome::new(Verdict::Refused, said)
            }
            (_, _, _) => Outcome::new(Verdict::Busy, "a row was there again after the delete"),
        }
    }

    /// Destroys a part; what the database refuses of it, or another transaction holds, is found by halving,
    /// so that it delays only itself (L2).
    async fn halve(
        &self,
        part: &[Question<'_>],
        answered: &mut bool,
        mut told: impl FnMut(&Question<'_>, Outcome),
    ) -> Result<(), SinkError> {
        let mut open: Vec<Vec<&Question<'_>>> = vec![part.iter().collect()];
        while let Some(mut part) = open.pop() {
            match self.transact(&part).await {
                Ok(outcomes) => {
                    *answered = true;
                    part.into_iter().zip(outcomes).for_each(|(it, outcome)| told(it, outcome));
                }
                Err(Fault::Row(verdict, said)) if part.len() == 1 => {
                    *answered = true;
                    told(part[0], Outcome::new(verdict, said));
                }
                Err(Fault::Row(..)) => {
                    let half = part.split_off(part.len() / 2);
                    open.extend([half, part]);
                }
                Err(Fault::Whole(error)) if !*answered => return Err(error),
                // What was committed must not be lost with the rest.
                Err(Fault::Whole(error)) => {
                    open.push(part);
                    let rest = open.drain(..).flatten();
                    rest.for_each(|it| told(it, Outcome::new(Verdict::Unknown, soften(&error))));
                }
            }
        }
        Ok(())
    }
}

impl Sink for PostgresTableSink {
    async fn destroy(&self, batch: &[Target]) -> Result<Vec<Outcome>, SinkError> {
        let nothing = || Outcome::new(Verdict::Unknown, "nothing was said of it");
        let mut outcomes = vec![nothing(); batch.len()];
        let refused = |place: usize, said| outcomes[place] = Outcome::new(Verdict::Refused, said);
        let parts = self.sort(batch, refused);
        let mut answered = false;
        for part in &parts {
            let told = |question: &Question<'_>, outcome: Outcome| {
                question.places.iter().for_each(|&place| outcomes[place] = outcome.clone());
            };
            self.halve(part, &mut answered, told).await?;
        }
        Ok(outcomes)
    }

    async fn look(&self, batch: &[Target]) -> Result<Vec<Presence>, SinkError> {
        let mut found = vec![Presence::Unknown; batch.len()];
        for part in self.sort(batch, |_, _| ()) {
            let part: Vec<&Question<'_>> = part.iter().collect();
            let looked = async {
                let (mut transaction, statements) =
                    self.begin(&part, self.config.statement_timeout).await?;
                let looked = count(&mut transaction, &statements, &part).await?;
                transaction.rollback().await?;
                Ok(looked)
            };
            let looked = match looked.await {
                Ok(looked) => looked,
                Err(Fault::Whole(error)) => return Err(error),
                // A value that its column's type does not know: no row has it, and none was meant.
                Err(Fault::Row(..)) => continue,
            };
            for (question, looked) in part.iter().zip(looked) {
                let presence = match looked {
                    Found { exact: false, .. } => Presence::Unknown,
                    Found { rows: 0, .. } => Presence::Absent,
                    Found { .. } => Presence::Present,
                };
                question.places.iter().for_each(|&place| found[place] = presence);
            }
        }
        Ok(found)
    }

    fn batch_max(&self) -> usize {
        self.config.items_max.get()
    }
}

impl fmt::Debug for PostgresTableSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresTableSink").field("config", &self.config).finish_non_exhaustive()
    }
}

/// The values turned on their side: one array for each column.
fn arrays(part: &[&Question<'_>]) -> Result<PgArguments, Fault> {
    let mut arguments = PgArguments::default();
    for name in part.iter().take(1).flat_map(|it| it.columns.keys()) {
        let values: Vec<&str> = part.iter().map(|it| &*it.columns[name]).collect();
        let full = arguments.add(values).map_err(sqlx::Error::Encode);
        full?;
    }
    Ok(arguments)
}

async fn count(
    connection: &mut PgConnection,
    statements: &Statements,
    part: &[&Question<'_>],
) -> Result<Vec<Found>, Fault> {
    if part.is_empty() {
        return Ok(Vec::new());
    }
    let counted: Vec<(i64, bool, i64)> =
        sqlx::query_as_with(AssertSqlSafe(statements.count.as_str()), arrays(part)?)
            .persistent(false)
            .fetch_all(connection)
            .await?;
    if counted.iter().map(|(n, ..)| *n).ne((1..).take(part.len())) {
        let said = "the database's count is not of what was asked".to_owned();
        return Err(Fault::Whole(SinkError::Protocol(said)));
    }
    Ok(counted.into_iter().map(|(_, exact, rows)| Found { exact, rows }).collect())
}

/// How many rows of each went.
async fn delete(
    connection: &mut PgConnection,
    statements: &Statements,
    part: &[&Question<'_>],
) -> Result<Vec<i64>, Fault> {
    let mut gone = vec![0; part.len()];
    if part.is_empty() {
        return Ok(gone);
    }
    let deleted: Vec<(i64, i64)> =
        sqlx::query_as_with(AssertSqlSafe(statements.delete.as_str()), arrays(part)?)
            .persistent(false)
            .fetch_all(connection)
            .await?;
    for (n, rows) in deleted {
        let at = usize::try_from(n - 1).ok().and_then(|at| gone.get_mut(at));
        *at.ok_or_else(|| {
            Fault::Whole(SinkError::Protocol("the database deleted what was not asked".to_owned()))
        })? = rows;
    }
    Ok(gone)
}

fn soften(error: &SinkError) -> String {
    match error {
        SinkError::Throttled { .. } | SinkError::Unavailable(_) => "no answer".to_owned(),
        SinkError::Denied(said) | SinkError::Missing(said) | SinkError::Protocol(said) => {
            said.clone()
        }
    }
}
