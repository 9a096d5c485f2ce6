//! `[audit]`: finalized keys are looked up in their stores again.

use std::num::NonZeroU32;
use std::time::Duration;

use super::document::{Place, Section};
use super::ledger::LedgerSection;
use super::value::{Leaf, Wrong};

/// The least lag. A pass rests a quarter of it between its rounds, and a server's clock that is set back by less
/// than it hides nothing.
const LAG_MIN: Duration = Duration::from_secs(4);

/// When what was finalized is looked up again.
#[derive(Clone, Debug)]
pub(crate) struct AuditSection {
    /// How long after its closing, a pass for each. 15 m: Elasticsearch refreshes within a second and forgets a
    /// delete after a minute (`gc_deletes`), an indexer behind a queue is seconds or minutes late, and S3
    /// replicates within fifteen minutes; 30 d: what a restored snapshot, a repaired replica or a
    /// re-index brought back since. None: nothing is audited.
    pub(crate) after: Vec<Duration>,
    /// Most targets a second in each store. 200: a few hundredths of what S3 and Elasticsearch answer, and 17
    /// million a day.
    pub(crate) rate: NonZeroU32,
    /// How long what was found rests before it may be claimed. 1 m: an application that writes a copy before
    /// its row has committed the row by then.
    pub(crate) wait: Duration,
}

impl AuditSection {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        let after_place = section.place("after");
        let usual = vec![Duration::from_secs(900), Duration::from_secs(30 * 86_400)];
        let Lags(mut after) = section.or("after", Lags(usual));
        if after.iter().any(|lag| *lag < LAG_MIN) {
            section.problem(
                after_place,
                format!("a pass is at least {} behind", humantime::format_duration(LAG_MIN)),
                "write after = [\"15m\", \"30d\"]; [] audits nothing",
            );
        }
        after.sort_unstable();
        after.dedup();
        let rate = section.or("rate", NonZeroU32::new(200).expect("not zero"));
        let wait = section.or("wait", Duration::from_secs(60));
        Self { after, rate, wait }
    }

    /// A deletion that is gone from the archive is audited no more.
    pub(super) fn lasts(&self, root: &Section<'_, '_>, ledger: &LedgerSection) {
        let Some(archive_keep) = ledger.retention.archive_keep else { return };
        let Some(longest) = self.after.last().filter(|lag| **lag >= archive_keep) else { return };
        let text = |length: Duration| humantime::format_duration(length).to_string();
        root.problem(
            Place { key: "audit.after".to_owned(), ..root.place("audit") },
            format!(
                "a pass after {} finds nothing: ledger.archive_keep drops what was closed {} ago",
                text(*longest),
                text(archive_keep)
            ),
            "make archive_keep the longer one, or leave that pass out",
        );
    }
}

/// A list of lengths of time.
struct Lags(Vec<Duration>);

impl Leaf for Lags {
    fn read(value: &toml::de::DeValue<'_>) -> Result<Self, Wrong> {
        let toml::de::DeValue::Array(items) = value else {
            let what = format!("must be an array, found {}", super::value::describe(value));
            return Err(Wrong::new(what, "write after = [\"15m\", \"30d\"]; [] audits nothing"));
        };
        items.iter().map(|item| Duration::read(item.get_ref())).collect::<Result<_, _>>().map(Lags)
    }
}
