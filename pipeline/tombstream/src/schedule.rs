//! What is begun by the clock beside a pipeline that runs: `[jobs]`. A task for each; which process is at which is the
//! ledger's to say.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use chrono::Utc;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::task::JoinSet;
use tombstream_connectors::postgres::{
    self, AuditSpan, AuditTally, ScheduleRow, ScheduledResult, take_turn,
};
use tombstream_dataflow::ErasedSink;
use tombstream_dataflow::reconcile::{Reconcile, ReconcileConfig};
use tombstream_model::{ChainCheck, ReceiptProblem, StoreId};
use tracing::{error, info, warn};

use crate::audit::Looking;
use crate::command;
use crate::command::reconcile::{Report, counts};
use crate::config::{Config, ReauditJob, ReconcileJob};
use crate::wiring;

/// How often it is looked whether something is due.
const LOOK: Duration = Duration::from_secs(5);
/// What was closed within these seconds is another transaction's still, or just done.
const LAG: Duration = Duration::from_secs(10);
/// Problems of the chain that are kept as they were said.
const SAID_MAX: usize = 5;

/// One of `[jobs]`.
#[derive(Clone, Debug)]
enum Job {
    Reconcile(ReconcileJob),
    Reaudit(ReauditJob),
    Receipts(Duration),
}

impl Job {
    /// Its name in the ledger, in metrics, in the configuration.
    fn name(&self) -> &'static str {
        match self {
            Self::Reconcile(_) => "reconcile",
            Self::Reaudit(_) => "reaudit",
            Self::Receipts(_) => "receipts",
        }
    }

    fn every(&self) -> Duration {
        match self {
            Self::Reconcile(job) => job.every,
            Self::Reaudit(job) => job.every,
            Self::Receipts(every) => *every,
        }
    }
}

/// What the jobs need.
struct Needed {
    config: Config,
    pool: PgPool,
    sinks: Vec<Arc<dyn ErasedSink>>,
    owner: String,
}

/// Begins a task for each job that is configured.
pub(crate) fn spawn(
    tasks: &mut JoinSet<()>,
    config: &Config,
    pool: &PgPool,
    sinks: &[Arc<dyn ErasedSink>],
) {
    let jobs = &config.jobs;
    let all = [
        jobs.reconcile.clone().map(Job::Reconcile),
        jobs.reaudit.clone().map(Job::Reaudit),
        jobs.receipts.map(Job::Receipts),
    ];
    let needed = Arc::new(Needed {
        config: config.clone(),
        pool: pool.clone(),
        sinks: sinks.to_vec(),
        owner: wiring::ledger_config(config).owner,
    });
    for job in all.into_iter().flatten() {
        tasks.spawn(watch(Arc::clone(&needed), job));
    }
}

async fn watch(needed: Arc<Needed>, job: Job) {
    let (name, every) = (job.name(), job.every());
    let look = (every / 4).min(LOOK);
    loop {
        match take_turn(&needed.pool, name, every, &needed.owner).await {
            Ok(Some(turn)) => {
                info!(job = name, "begun by the clock");
                let ended = tokio::select! {
                    ended = needed.run(&job) => ended,
                    () = turn.lost() => {
                        warn!(job = name, "its turn went to another process: this one was taken for dead");
                        continue;
                    }
                };
                let (result, detail) = ended.unwrap_or_else(|failed| {
                    let said = command::chain(failed.as_ref());
                    (ScheduledResult::Failed, json!({ "error": said }))
                });
                match result {
                    ScheduledResult::Ok => info!(job = name, %detail, "nothing is wrong"),
                    ScheduledResult::Found => warn!(job = name, %detail, "something is wrong"),
                    ScheduledResult::Failed => error!(job = name, %detail, "it could not be done"),
                }
                if let Err(failed) = turn.end(result, detail).await {
                    warn!(job = name, error = %failed, "how it ended is not written down: it is due again");
                }
            }
            Ok(None) => {}
            // The stages say so, too.
            Err(failed) => info!(job = name, error = %failed, "it can't be asked whose turn it is"),
        }
        match postgres::schedules(&needed.pool).await {
            Ok(rows) => rows.iter().filter(|row| row.name == name).for_each(gauge),
            Err(failed) => info!(job = name, error = %failed, "how it went can't be read"),
        }
        tokio::time::sleep(look).await;
    }
}

/// Every process shows the same.
fn gauge(row: &ScheduleRow) {
    let labels = || [metrics::Label::new("job", row.name.clone())].to_vec();
    if let Some(ended) = row.ended_at {
        metrics::gauge!("tombstream_job_ended_timestamp_seconds", labels())
            .set(ended.timestamp_millis() as f64 / 1e3);
    }
    if let Some(took) = row.took_seconds {
        metrics::gauge!("tombstream_job_duration_seconds", labels()).set(took);
    }
    for result in [ScheduledResult::Ok, ScheduledResult::Found, ScheduledResult::Failed] {
        let is = row.result.as_deref() == Some(result.as_str());
        let mut labels = labels();
        labels.push(metrics::Label::new("result", result.as_str()));
        metrics::gauge!("tombstream_job_result", labels).set(f64::from(u8::from(is)));
    }
    let overdue = (-row.due_in_seconds).max(0.0);
    metrics::gauge!("tombstream_job_overdue_seconds", labels()).set(match row.run_by {
        Some(_) => 0.0,
        None => overdue,
    });
}

type Ended = anyhow::Result<(ScheduledResult, Value)>;

/// Whether something is wrong.
fn found(is_found: bool, detail: Value) -> Ended {
    Ok((if is_found { ScheduledResult::Found } else { ScheduledResult::Ok }, detail))
}

impl Needed {
    /// Boxed: the compiler can't see through the whole that it may be sent.
    fn run<'a>(&'a self, job: &'a Job) -> Pin<Box<dyn Future<Output = Ended> + Send + 'a>> {
        match job {
            Job::Reconcile(job) => Box::pin(self.reconcile(job)),
            Job::Reaudit(job) => Box::pin(self.reaudit(job)),
            Job::Receipts(_) => Box::pin(self.receipts()),
        }
    }

    /// One worker, and two parts of each side at a time: it stands beside live traffic. Nothing is mended: what destroys
    /// is a person's order.
    async fn reconcile(&self, job: &ReconcileJob) -> Ended {
        let folder = job.scratch.clone().unwrap_or_else(std::env::temp_dir);
        let mut limits = ReconcileConfig::new(folder);
        (limits.workers, limits.parts, limits.settle) = (1, 2, job.settle);
        let mut stores = Vec::new();
        let mut left_out = Vec::new();
        for (place, store) in self.config.stores.iter().enumerate() {
            match store.kind.can_list() {
                true => stores.push(wiring::reconcile_store(&self.config, place, false)?),
                false => left_out.push(store.name.clone()),
            }
        }
        let path = job.report.as_ref().map(|path| path.display().to_string());
        let mut report = path.as_deref().map(Report::open).transpose()?;
        let (rows, deletions, registry) = wiring::listings(&self.config, self.pool.clone());
        let comparison = Reconcile {
            config: limits,
            relations: Arc::clone(&self.config.relations),
            rows: Arc::new(rows),
            deletions: Arc::new(deletions),
            registry: Arc::new(registry),
            stores,
        };
        let tally = comparison
            .run(&mut |finding| match &mut report {
                Some(report) => report.finding(finding),
                None => Ok(()),
            })
            .await?;
        if let Some(report) = report {
            report.end(&tally)?;
        }
        let mut detail = counts(&tally);
        let unclear: u64 = tally.stores.iter().map(|store| store.unclear).sum();
        detail.insert("unclear".into(), unclear.into());
        detail.insert("rows".into(), tally.rows.into());
        if !left_out.is_empty() {
            detail.insert("not_listed".into(), left_out.into());
        }
        let is_found = unclear + tally.found.values().sum::<u64>() > 0;
        found(is_found, Value::Object(detail))
    }

    /// At the rate of `[audit]`, beside its passes, which stay where they are. What came back is destroyed again as what
    /// they find.
    async fn reaudit(&self, job: &ReauditJob) -> Ended {
        let audit = wiring::audit(&self.config, self.pool.clone());
        let within = job.closed_within.and_then(|it| chrono::TimeDelta::from_std(it).ok());
        // A bound of work, and no decision: this process's clock will do.
        let since = within.and_then(|within| Utc::now().checked_sub_signed(within));
        let span = AuditSpan { since, lag: LAG };
        let mut all = AuditTally::default();
        for ((store, sink), id) in self.config.stores.iter().zip(&self.sinks).zip(0..) {
            if !store.audit || !store.kind.can_look() {
                continue;
            }
            for relation in self.config.relations.iter() {
                let sink = Looking(Arc::clone(sink));
                let tally = audit
                    .once(&relation.name, StoreId(id), &sink, (store.timeout, span), |_| {})
                    .await
                    .with_context(|| format!("relation {}, store {}", relation.name, store.name))?;
                all.add(tally);
            }
        }
        let is_found = all.resurrected + all.known + all.unclear > 0;
        found(is_found, serde_json::to_value(all)?)
    }

    /// The chain as the ledger has it: what was changed there since it was sealed does not give its roots.
    async fn receipts(&self) -> Ended {
        let mut checked = Checked::default();
        let end = command::receipts::export(&self.pool, &mut checked, |_| {}).await?;
        checked.finish();
        let Checked { check, said, .. } = checked;
        let problems = check.counts().problems;
        let detail = json!({
            "blocks": end.blocks, "entries": end.entries, "head": end.head, "problems": problems, "said": said,
        });
        found(problems > 0, detail)
    }
}

/// Lines of an export, checked as they are written.
#[derive(Default)]
struct Checked {
    check: ChainCheck,
    line: Vec<u8>,
    said: Vec<String>,
}

impl Checked {
    fn finish(&mut self) {
        let said = &mut self.said;
        self.check.finish(&mut |problem| keep(said, &problem));
    }
}

fn keep(said: &mut Vec<String>, problem: &ReceiptProblem) {
    if said.len() < SAID_MAX {
        said.push(problem.to_string());
    }
}

impl io::Write for Checked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if self.line.pop_if(|end| *end == b'\n').is_some() {
                let said = &mut self.said;
                let text = String::from_utf8_lossy(&self.line);
                self.check.line(&text, &mut |problem| keep(said, &problem));
                self.line.clear();
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
