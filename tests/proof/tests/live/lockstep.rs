//! The real ledger and the model, side by side: each step of every history on both, then a look whether they
//! agree. The stores are the model's: they are asked only what the real claims returned.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use sqlx::Row as _;

use tombstream_model::{
    Candidate, Cause, Claimed, DeletionId, Ending, Found, Generation, Key, Ledger, Lsn, Outcome,
    Position, RelationId, Settled, State, Verdict,
};
use tombstream_proof::reference::{self, Age, Budget, Step, Value};

use crate::database::Database;

const DOCUMENTS: RelationId = RelationId(0);
/// As the pipeline's batches.
const BATCH: usize = 1_000;

/// Where the two differ.
#[derive(Debug)]
pub(crate) struct Disagreement {
    pub(crate) steps: Vec<Step>,
    what: String,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, after:", self.what)?;
        self.steps.iter().try_for_each(|step| writeln!(f, "  {step:?}"))
    }
}

/// One history, and how far both have come.
struct Run {
    key: String,
    steps: Vec<Step>,
    model: reference::Key,
    /// What the real ledger gave the workers, as the model's jobs are.
    jobs: Vec<Arc<Claimed>>,
    /// Where in the log each removal of the row was.
    removals: Vec<Lsn>,
}

/// Histories side by side, each with a key of its own.
pub(crate) struct Lockstep<'a> {
    database: &'a Database,
    runs: Vec<Run>,
    places: HashMap<String, usize>,
}

/// What a key looks like in the database.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    row: Option<bool>,
    /// Where each is, whether it was claimed, and whether the breaker keeps it back.
    deletions: Vec<(String, bool, bool)>,
    receipts: i64,
    closed: i64,
    rehydrates: i64,
}

type Checked<T> = Result<T, (usize, String)>;

impl<'a> Lockstep<'a> {
    pub(crate) async fn new(database: &'a Database, histories: &[Vec<Step>]) -> Self {
        let run = |steps: &Vec<Step>| Run {
            key: uuid::Uuid::new_v4().to_string(),
            steps: steps.clone(),
            model: reference::Key::default(),
            jobs: Vec::new(),
            removals: Vec::new(),
        };
        let runs: Vec<Run> = histories.iter().map(run).collect();
        let places = runs.iter().enumerate().map(|(place, run)| (run.key.clone(), place));
        Self { places: places.collect(), database, runs }
    }

    pub(crate) async fn run(mut self) -> Result<(), Disagreement> {
        let longest = self.runs.iter().map(|run| run.steps.len()).max().unwrap_or(0);
        for at in 0..longest {
            if let Err((history, what)) = self.step(at).await {
                let steps = self.runs[history].steps[..=at].to_vec();
                return Err(Disagreement { steps, what });
            }
        }
        Ok(())
    }

    /// The next step of every history, one kind after the other.
    async fn step(&mut self, at: usize) -> Checked<()> {
        let mut kinds: Vec<(Step, Vec<usize>)> = Vec::new();
        for (place, run) in self.runs.iter().enumerate() {
            let Some(step) = run.steps.get(at).map(|step| kind(*step)) else { continue };
            match kinds.iter_mut().find(|(known, _)| *known == step) {
                Some((_, places)) => places.push(place),
                None => kinds.push((step, vec![place])),
            }
        }
        for (step, places) in kinds {
            self.take(at, step, &places).await?;
        }
        self.compare(at).await
    }

    async fn take(&mut self, at: usize, step: Step, places: &[usize]) -> Checked<()> {
        match step {
            Step::Insert(value) => {
                let flag = match value {
                    None => "null",
                    Some(Value::Now) => "clock_timestamp()",
                    Some(Value::Old) => "clock_timestamp() - interval '1 year'",
                };
                let places = self.where_(places, |run| run.model.row.is_none());
                let sql = format!("insert into documents values ($1, {flag})");
                self.apply(at, &places, Some(&sql)).await
            }
            Step::Flag(value) => {
                let flag = match value {
                    Value::Now => "clock_timestamp()",
                    Value::Old => "clock_timestamp() - interval '1 year'",
                };
                let places = self.where_(places, |run| run.model.row.is_some());
                let sql = format!("update documents set deleted_at = {flag} where id = $1");
                self.apply(at, &places, Some(&sql)).await
            }
            Step::Restore => {
                let sql = "update documents set deleted_at = null \
                           where id = $1 and deleted_at is not null";
                self.apply(at, places, Some(sql)).await
            }
            Step::Delete => {
                let places = self.where_(places, |run| run.model.row.is_some());
                let now = self.lsn().await;
                for place in &places {
                    self.runs[*place].removals.push(now);
                }
                self.apply(at, &places, Some("delete from documents where id = $1")).await
            }
            Step::Hold => {
                let places = self.where_(places, |run| run.model.row.is_some() && !run.model.held);
                let sql = "with row as (select id from documents where id = $1 for no key update) \
                     insert into tombstream.hold (relation, key, case_name, actor) \
                     select 'documents', array[id::text], 'case 7', 'legal' from row";
                self.apply(at, &places, Some(sql)).await
            }
            Step::Release => {
                let sql = "update tombstream.hold set released_at = now() \
                     where key = array[$1::text] and released_at is null";
                self.apply(at, places, Some(sql)).await
            }
            Step::Approve => {
                let sql = "update tombstream.deletion set approved_at = clock_timestamp() \
                     where relation = 'documents' and key = array[$1::text] and kept_back_at is not null \
                         and approved_at is null and state in ('pending', 'hidden')";
                self.apply(at, places, Some(sql)).await
            }
            Step::LeaseOver => {
                let sql = "update tombstream.deletion set lease_until = clock_timestamp() - interval '1 s' \
                     where relation = 'documents' and key = array[$1::text] \
                         and lease_until is not null and closed_at is null";
                self.apply(at, places, Some(sql)).await
            }
            Step::Destroy(..) => self.apply(at, places, None).await,
            Step::Crash(worker) => {
                for place in places {
                    let run = &mut self.runs[*place];
                    let mut workers = run.model.jobs.iter().map(|job| job.worker);
                    run.jobs.retain(|_| workers.next() != Some(worker));
                }
                self.apply(at, places, None).await
            }
            Step::Flagged(_, age, budget) => {
                let candidates: Vec<Candidate> =
                    places.iter().map(|place| candidate(&self.runs[*place].key, None)).collect();
                let claimed = self.claim(age, budget, &candidates).await;
                self.claimed(at, places, claimed)
            }
            Step::Removed(_, age, back, budget) => {
                let told = |place: &usize| {
                    let run = &self.runs[*place];
                    let at = run.removals.len().checked_sub(usize::from(back) + 1)?;
                    Some(candidate(&run.key, Some(run.removals[at])))
                };
                let candidates: Vec<Candidate> = places.iter().filter_map(told).collect();
                let claimed = self.claim(age, budget, &candidates).await;
                self.claimed(at, places, claimed)
            }
            Step::Resume(_) => {
                let claimed = self.resume(places).await;
                self.claimed(at, places, claimed)
            }
            Step::Settle(_) => self.settle(at, places).await,
        }
    }

    fn where_(&self, places: &[usize], holds: impl Fn(&Run) -> bool) -> Vec<usize> {
        places.iter().copied().filter(|place| holds(&self.runs[*place])).collect()
    }

    async fn lsn(&self) -> Lsn {
        let sql = "select pg_current_wal_insert_lsn()::text";
        let text: String = sqlx::query_scalar(sql).fetch_one(&self.database.pool).await.unwrap();
        text.parse().unwrap()
    }

    /// A statement for each key, and the model's step beside it.
    async fn apply(&mut self, at: usize, places: &[usize], sql: Option<&str>) -> Checked<()> {
        let mut refused = vec![false; places.len()];
        if let Some(sql) = sql
            && !places.is_empty()
        {
            let keys: Vec<&str> = places.iter().map(|place| &*self.runs[*place].key).collect();
            let said: Vec<String> = sqlx::query_scalar(
                "select attempt($1, k.key::uuid) from unnest($2::text[]) with ordinality k(key, n) order by n",
            )
            .bind(sql)
            .bind(keys)
            .fetch_all(&self.database.pool)
            .await
            .unwrap();
            refused = said.iter().map(|said| said == "refused").collect();
        }
        for (place, refused) in places.iter().zip(refused) {
            let run = &mut self.runs[*place];
            let effect = run.model.take(run.steps[at]);
            if effect.refused != refused {
                let is = if refused { "refuses" } else { "does not refuse" };
                return Err((*place, format!("the database {is} the step, the model differs")));
            }
        }
        Ok(())
    }

    async fn claim(&self, age: Age, budget: Budget, candidates: &[Candidate]) -> Vec<Claimed> {
        let mut claimed = Vec::new();
        for batch in candidates.chunks(BATCH) {
            claimed
                .extend(self.database.ledger(age, budget).claim(DOCUMENTS, batch).await.unwrap());
        }
        claimed
    }

    /// What is owed is due when somebody asks for it.
    async fn resume(&self, places: &[usize]) -> Vec<Claimed> {
        let keys: Vec<&str> = places.iter().map(|place| &*self.runs[*place].key).collect();
        let ids: Vec<i64> = sqlx::query_scalar(
            "update tombstream.deletion set due_at = case when due_at is not null \
                 then clock_timestamp() - interval '1 s' end \
             where relation = 'documents' and closed_at is null and key in \
                 (select array[k.key] from unnest($1::text[]) k(key)) returning id",
        )
        .bind(keys)
        .fetch_all(&self.database.pool)
        .await
        .unwrap();
        let ids: Vec<DeletionId> = ids.into_iter().map(DeletionId).collect();
        let mut claimed = Vec::new();
        for batch in ids.chunks(BATCH) {
            claimed.extend(
                self.database.ledger(Age::GraceOver, Budget::Left).resume(batch).await.unwrap(),
            );
        }
        claimed
    }

    /// The model must have claimed the same, with the same to be done.
    fn claimed(&mut self, at: usize, places: &[usize], claimed: Vec<Claimed>) -> Checked<()> {
        let mut real: HashMap<usize, Arc<Claimed>> = HashMap::new();
        for claimed in claimed {
            let place = self.places[claimed.key.columns().next().unwrap()];
            if real.insert(place, Arc::new(claimed)).is_some() {
                return Err((place, "the key was claimed twice at once".to_owned()));
            }
        }
        for place in places {
            let run = &mut self.runs[*place];
            let effect = run.model.take(run.steps[at]);
            let claimed = real.remove(place);
            if effect.claimed != claimed.is_some() {
                let is = if claimed.is_some() { "claims" } else { "does not claim" };
                return Err((*place, format!("the ledger {is} it, the model differs")));
            }
            let Some(claimed) = claimed else { continue };
            let job = run.model.jobs.last().unwrap();
            let mut to_do = [None; reference::STORES];
            for target in &claimed.targets {
                to_do[usize::from(target.target.store.0)] = Some(target.confirmed.is_some());
            }
            let wanted = job.verdicts.map(|verdict| verdict.map(Verdict::is_confirmed));
            if (claimed.is_hide, to_do) != (job.is_hide, wanted) {
                return Err((
                    *place,
                    format!(
                        "the ledger gives hide {}, confirmed {to_do:?}; the model {}, {wanted:?}",
                        claimed.is_hide, job.is_hide
                    ),
                ));
            }
            run.jobs.push(claimed);
        }
        match real.keys().next() {
            Some(place) => Err((*place, "the ledger claims what nobody asked for".to_owned())),
            None => Ok(()),
        }
    }

    async fn settle(&mut self, at: usize, places: &[usize]) -> Checked<()> {
        let (mut done, mut owed) = (Vec::new(), Vec::new());
        for place in places {
            let run = &mut self.runs[*place];
            let Step::Settle(worker) = run.steps[at] else { unreachable!("a kind is of one step") };
            let oldest = run.model.jobs.iter().position(|job| job.worker == worker);
            let Some(job) = run.model.take(run.steps[at]).settled else { continue };
            let claimed = run.jobs.remove(oldest.unwrap());
            let outcome = |verdict: Option<Verdict>| verdict.map(|it| Outcome::new(it, "said"));
            let outcomes: Vec<Outcome> = claimed
                .targets
                .iter()
                .filter_map(|target| outcome(job.verdicts[usize::from(target.target.store.0)]))
                .collect();
            let settled = Settled { claimed, outcomes };
            match settled.is_confirmed() {
                true => done.push((*place, settled)),
                false => owed.push(settled),
            }
        }
        let ledger = self.database.ledger(Age::GraceOver, Budget::Left);
        for batch in owed.chunks(BATCH) {
            ledger.owe(batch).await.unwrap();
        }
        for batch in done.chunks(BATCH) {
            let settled: Vec<Settled> = batch.iter().map(|(_, settled)| settled.clone()).collect();
            let endings = ledger.finalize(DOCUMENTS, &settled).await.unwrap();
            let now = self.lsn().await;
            for ((place, _), ending) in batch.iter().zip(endings) {
                if ending == Ending::Finalized {
                    self.runs[*place].removals.push(now);
                }
            }
        }
        self.echoes(places).await;
        Ok(())
    }

    /// Our own removals come back with their place in the log, which is not beyond the receipt's.
    async fn echoes(&mut self, places: &[usize]) {
        let keys: Vec<&str> = places.iter().map(|place| &*self.runs[*place].key).collect();
        let rows = sqlx::query(
            "select r.key[1], max(r.removed_lsn)::text from tombstream.receipt r \
             where r.relation = 'documents' and not r.row_gone and r.key in \
                 (select array[k.key] from unnest($1::text[]) k(key)) group by 1",
        )
        .bind(keys)
        .fetch_all(&self.database.pool)
        .await
        .unwrap();
        for row in rows {
            let run = &mut self.runs[self.places[row.get::<&str, _>(0)]];
            if run.model.removals.last() == Some(&true)
                && let Some(last) = run.removals.last_mut()
            {
                *last = row.get::<String, _>(1).parse().unwrap();
            }
        }
    }

    async fn compare(&self, at: usize) -> Checked<()> {
        let seen = self.look().await;
        for (place, run) in self.runs.iter().enumerate().filter(|(_, run)| run.steps.len() > at) {
            if let Some(broken) = run.model.broken {
                return Err((place, format!("the contract is broken, in the model too: {broken}")));
            }
            let model = Seen {
                row: run.model.row.map(|flag| flag.is_some()),
                deletions: run
                    .model
                    .deletions
                    .iter()
                    .map(|it| (State::as_str(it.state).to_owned(), it.claimed, it.is_kept_back()))
                    .collect(),
                receipts: run.model.receipts as i64,
                closed: run.model.closed.len() as i64,
                rehydrates: run.model.rehydrates as i64,
            };
            let none = Seen::default();
            let real = seen.get(&run.key).unwrap_or(&none);
            if *real != model {
                return Err((place, format!("the database has {real:?}, the model {model:?}")));
            }
        }
        Ok(())
    }

    async fn look(&self) -> HashMap<String, Seen> {
        let mut seen: HashMap<String, Seen> = HashMap::new();
        let pool = &self.database.pool;
        for row in sqlx::query("select id::text, deleted_at is not null from documents")
            .fetch_all(pool)
            .await
            .unwrap()
        {
            seen.entry(row.get(0)).or_default().row = Some(row.get(1));
        }
        for row in sqlx::query(
            "select key[1], state, claimed_at is not null, kept_back_at is not null and approved_at is null \
             from tombstream.deletion order by id",
        )
        .fetch_all(pool)
        .await
        .unwrap()
        {
            seen.entry(row.get(0)).or_default().deletions.push((row.get(1), row.get(2), row.get(3)));
        }
        for row in sqlx::query("select key[1], count(*) from tombstream.receipt group by 1")
            .fetch_all(pool)
            .await
            .unwrap()
        {
            seen.entry(row.get(0)).or_default().receipts = row.get(1);
        }
        for row in sqlx::query(
            "select r.key[1], count(*) from tombstream.receipt_closed c \
             join tombstream.receipt r using (deletion_id) group by 1",
        )
        .fetch_all(pool)
        .await
        .unwrap()
        {
            seen.entry(row.get(0)).or_default().closed = row.get(1);
        }
        for row in sqlx::query("select key[1], count(*) from tombstream.rehydrate group by 1")
            .fetch_all(pool)
            .await
            .unwrap()
        {
            seen.entry(row.get(0)).or_default().rehydrates = row.get(1);
        }
        seen
    }
}

/// Steps that go in one batch.
fn kind(step: Step) -> Step {
    match step {
        Step::Destroy(..) => Step::Destroy(0, [reference::Fate::Done; reference::STORES]),
        Step::Settle(_) => Step::Settle(0),
        Step::Resume(_) => Step::Resume(0),
        Step::Flagged(_, age, budget) => Step::Flagged(0, age, budget),
        Step::Removed(_, age, back, budget) => Step::Removed(0, age, back, budget),
        other => other,
    }
}

/// What an event tells: of a flag, or of the removal at this place in the log.
fn candidate(key: &str, removal: Option<Lsn>) -> Candidate {
    Candidate {
        relation: DOCUMENTS,
        key: Key::from_postgres([key.to_owned()]),
        position: removal.map(|lsn| Position { generation: Generation(0), lsn, order: 0 }),
        cause: Cause::Event,
        found: if removal.is_some() { Found::Removed } else { Found::Flagged },
        removed: removal.map(|_| [Some(key.into())].into()),
    }
}
