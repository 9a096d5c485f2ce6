//! The names of the dataflow's metrics: one constant each; and how a batch is counted.

use std::collections::BTreeMap;

/// Records read, by `topic`.
pub const EVENTS: &str = "tombstream_events_total";
/// Messages that are understood and irrelevant, by `kind`.
pub const SKIPPED: &str = "tombstream_skipped_total";
/// Messages that could not be decoded, by `topic`.
pub const DEAD_LETTERS: &str = "tombstream_dead_letters_total";
/// Dead letters that were decoded again, by topic and result.
pub const REDRIVEN: &str = "tombstream_redriven_total";
/// Truncated relations, by `relation`.
pub const TRUNCATES: &str = "tombstream_truncates_total";
/// Candidates that reached dedupe.
pub const CANDIDATES: &str = "tombstream_candidates_total";
/// Candidates that dedupe kept back.
pub const DUPLICATES: &str = "tombstream_duplicates_total";
/// Deletions claimed, by `relation`.
pub const CLAIMS: &str = "tombstream_claims_total";
/// Deletions taken over, by `relation`.
pub const RESUMES: &str = "tombstream_resumes_total";
/// Final outcomes of targets, by `store` and `verdict`.
pub const OUTCOMES: &str = "tombstream_outcomes_total";
/// Attempts at a store that brought no answer, by `store`.
pub const STORE_ERRORS: &str = "tombstream_store_errors_total";
/// What became of deletions that were to be finalized, by `relation` and `ending`.
pub const FINALIZED: &str = "tombstream_finalized_total";
/// Deletions recorded as owed, by `relation`.
pub const OWED: &str = "tombstream_owed_total";
/// Deletions hidden: their recoverable copies are gone, by `relation`.
pub const HIDDEN: &str = "tombstream_hidden_total";
/// Ledger calls that failed, by `stage`.
pub const LEDGER_ERRORS: &str = "tombstream_ledger_errors_total";
/// Requests whose task ended without an answer, by `stage`.
pub const LOST: &str = "tombstream_lost_requests_total";
/// The age of the oldest epoch that is not durable.
pub const EPOCH_AGE: &str = "tombstream_epoch_age_seconds";
/// How long closed epochs took to become durable.
pub const EPOCH_SECONDS: &str = "tombstream_epoch_seconds";
/// Whether a `store` is taken to be up: 1 or 0.
pub const STORE_UP: &str = "tombstream_store_up";
/// Events read and not yet durable.
pub const IN_FLIGHT: &str = "tombstream_in_flight_events";
/// Whether a `topic` is paused: 1.
pub const TOPIC_PAUSED: &str = "tombstream_topic_paused";
/// Failures of a `source`.
pub const SOURCE_ERRORS: &str = "tombstream_source_errors_total";
/// Commits of a `source`.
pub const COMMITS: &str = "tombstream_commits_total";
/// How long a batch of a `stage` was in flight.
pub const STAGE_SECONDS: &str = "tombstream_stage_seconds";

/// How often each is there, so that a batch looks up each of its counters once.
pub(crate) fn tally<T: Ord>(all: impl IntoIterator<Item = T>) -> BTreeMap<T, u64> {
    let mut counts = BTreeMap::new();
    for one in all {
        *counts.entry(one).or_default() += 1;
    }
    counts
}
