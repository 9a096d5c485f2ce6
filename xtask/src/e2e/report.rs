//! What a run found, as one line of JSON or a few for people.

use super::census::{Judged, Left};
use super::flags::Fate;
use super::table::Times;
use super::{Options, Source, Told, Used};
use serde::Serialize;
use std::fmt;

#[derive(Serialize)]
pub(super) struct Report {
    source: &'static str,
    documents: u32,
    /// Answers of 202 to the flag.
    flagged: usize,
    /// Answers of 200 to the restore.
    restored: usize,
    /// Answers of 409 to the restore.
    refused: usize,
    /// What the table, the bucket and the index hold at the end.
    rows_left: usize,
    objects_left: usize,
    docs_left: usize,
    /// Never flagged or restored with 200, and yet not whole.
    wrongly_destroyed: usize,
    /// Flagged to the end, and yet something is left.
    leaked: usize,
    receipts: usize,
    /// From the first flag to the last finalizing transaction.
    deletions_per_s: f64,
    /// From the flag's value to the finalizing transaction's start, both by Postgres's clock.
    p50_ms: f64,
    p99_ms: f64,
    flags_per_s: f64,
    /// Processor seconds of the pipeline for 1,000 deletions, from its start; and of what is between
    /// the database and it.
    pipeline_cpu_s_per_1000: f64,
    feed_cpu_s_per_1000: f64,
    kills: u32,
    /// How many kills were asked for: a run that ends before the last one has not shown it.
    kills_wanted: u32,
    slot_dropped: bool,
    /// False when the wait for the rows was given up.
    settled: bool,
}

impl Report {
    pub(super) fn new(
        options: &Options,
        told: &Told,
        left: &Left,
        judged: &Judged,
        times: &Times,
        used: &Used,
    ) -> Self {
        let receipts = times.flip_to_gone_ms.len();
        let rate = |count: usize, seconds: f64| {
            if seconds > 0.0 { tenth(count as f64 / seconds) } else { 0.0 }
        };
        let flips = &told.flips;
        let per_1000 = |seconds: f64| (seconds * 1e6 / receipts.max(1) as f64).round() / 1e3;
        Self {
            source: match options.source {
                Source::Kafka => "kafka",
                Source::Postgres => "postgres",
                Source::Capture => "capture",
            },
            documents: options.documents,
            flagged: flips.fates.len(),
            restored: flips.count(Fate::Restored),
            refused: flips.count(Fate::Refused),
            rows_left: left.rows.len(),
            objects_left: left.objects.len(),
            docs_left: left.sources.len(),
            wrongly_destroyed: judged.wrongly_destroyed.len(),
            leaked: judged.leaked.len(),
            receipts,
            deletions_per_s: rate(receipts, times.whole_s),
            p50_ms: percentile(&times.flip_to_gone_ms, 0.50),
            p99_ms: percentile(&times.flip_to_gone_ms, 0.99),
            flags_per_s: rate(flips.fates.len(), flips.took.as_secs_f64()),
            pipeline_cpu_s_per_1000: per_1000(used.pipeline_s),
            feed_cpu_s_per_1000: per_1000(used.feed_s),
            kills: told.kills,
            kills_wanted: options.kill,
            slot_dropped: options.drop_slot,
            settled: told.all_gone,
        }
    }

    /// Nothing was wrongly destroyed, nothing leaked, every row that went has its receipt, and
    /// the disturbances took place.
    pub(super) fn is_clean(&self) -> bool {
        self.wrongly_destroyed == 0
            && self.leaked == 0
            && self.settled
            && self.receipts == self.flagged - self.restored
            && self.kills == self.kills_wanted
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "{} documents: {} flagged, {} restored in time, {} restores refused",
            self.documents, self.flagged, self.restored, self.refused
        )?;
        writeln!(
            out,
            "left: {} rows, {} objects, {} search documents; {} receipts",
            self.rows_left, self.objects_left, self.docs_left, self.receipts
        )?;
        writeln!(out, "wrongly destroyed: {}, leaked: {}", self.wrongly_destroyed, self.leaked)?;
        writeln!(
            out,
            "{} s of processor time for 1,000 deletions in the pipeline, {} s between the database \
             and it ({})",
            self.pipeline_cpu_s_per_1000, self.feed_cpu_s_per_1000, self.source
        )?;
        write!(
            out,
            "{} deletions/s; from the flip to the row's end {} ms (half), {} ms (99 of 100)",
            self.deletions_per_s, self.p50_ms, self.p99_ms
        )
    }
}

/// Of a sorted list; 0 when it is empty.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let place = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(place.max(1) - 1).copied().map_or(0.0, tenth)
}

fn tenth(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_value_that_so_many_do_not_exceed() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 0.50), 50.0);
        assert_eq!(percentile(&hundred, 0.99), 99.0);
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }
}
