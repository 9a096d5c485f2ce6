//! `[jobs]`: what `run` begins by the clock.

use std::path::PathBuf;
use std::time::Duration;

use super::document::Section;

/// The least interval: nothing here is for less, but a trial.
const EVERY_MIN: Duration = Duration::from_secs(1);

/// What is begun how often. What is not named is not begun.
#[derive(Clone, Debug, Default)]
pub(crate) struct JobsSection {
    /// Rows, ledger and stores compared.
    pub(crate) reconcile: Option<ReconcileJob>,
    /// Finalized keys looked up, all of them: the passes of `[audit]` look at each at set times, and never again.
    pub(crate) reaudit: Option<ReauditJob>,
    /// The chain of receipts in the ledger, read from the first block and hashed anew.
    pub(crate) receipts: Option<Duration>,
}

/// A comparison by the clock. It reports, and mends nothing.
#[derive(Clone, Debug)]
pub(crate) struct ReconcileJob {
    pub(crate) every: Duration,
    /// How long something must stay wrong. 60 s, as by hand.
    pub(crate) settle: Duration,
    /// Where the last report is. None: its counts are in the ledger alone.
    pub(crate) report: Option<PathBuf>,
    /// A folder for what does not fit in memory. None: the system's for temporary files.
    pub(crate) scratch: Option<PathBuf>,
}

/// Finalized keys looked up by the clock.
#[derive(Clone, Debug)]
pub(crate) struct ReauditJob {
    pub(crate) every: Duration,
    /// Not what was closed longer ago than this. None: all that the archive has.
    pub(crate) closed_within: Option<Duration>,
}

impl JobsSection {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        let reconcile = section.table("reconcile", |job| {
            let every = every(job);
            let settle = job.or("settle", Duration::from_secs(60));
            let place = job.place("report");
            let report = job.get::<String>("report").map(PathBuf::from);
            if report.as_ref().is_some_and(|it| it.extension().is_none_or(|end| end != "jsonl")) {
                job.problem(
                    place,
                    "a report is lines of JSON",
                    "name a file that ends in .jsonl, such as /var/lib/tombstream/reconcile.jsonl",
                );
            }
            let scratch = job.get::<String>("scratch").map(PathBuf::from);
            Some(ReconcileJob { every: every?, settle, report, scratch })
        });
        let reaudit = section.table("reaudit", |job| {
            let every = every(job);
            let closed_within = job.get("closed_within");
            Some(ReauditJob { every: every?, closed_within })
        });
        let receipts = section.table("receipts", every);
        Self {
            reconcile: reconcile.flatten(),
            reaudit: reaudit.flatten(),
            receipts: receipts.flatten(),
        }
    }
}

fn every(job: &mut Section<'_, '_>) -> Option<Duration> {
    let place = job.place("every");
    let every: Duration = job.need("every", "write every = \"7d\"")?;
    if every < EVERY_MIN {
        job.problem(place, "more often than every second", "write every = \"7d\"");
        return None;
    }
    Some(every)
}
