//! What the demo says at its end: a table for people, one line of JSON for programs.

use std::fmt;

use serde::Serialize;
use tombstream_model::Receipt;

use super::drive::{Fate, Fates};
use super::judge::{Judged, Left};
use super::settings::GRACE_MS;

/// How much is said of each list of what is wrong.
const SAID_MAX: usize = 5;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Whether all is as it must be.
    pub(super) ok: bool,
    pub(super) documents: usize,
    pub(super) flagged: usize,
    pub(super) restored: usize,
    /// Restores that came after the claim.
    pub(super) refused: usize,
    /// What is not there any more, by listing.
    pub(super) gone: Counts,
    pub(super) left: Counts,
    /// Receipts.
    pub(super) finalized: usize,
    /// From the flag's value to the transaction that removed the row, both on Postgres's clock. The
    /// grace is part of it.
    pub(super) flip_to_gone_ms: Latency,
    pub(super) grace_ms: u64,
    pub(super) postgres: String,
    pub(super) seconds: Seconds,
    pub(super) receipts: String,
    pub(super) wrong: Vec<String>,
    /// How this program was called.
    #[serde(skip)]
    pub(super) program: String,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Counts {
    pub(super) rows: usize,
    pub(super) objects: usize,
    pub(super) index: usize,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Latency {
    pub(super) p50: Option<f64>,
    pub(super) p99: Option<f64>,
}

/// How long each part took.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Seconds {
    /// Until Postgres took connections, and the stores were filled meanwhile.
    pub(super) start: f64,
    /// The flags and restores.
    pub(super) flags: f64,
    /// From the first flag until all was gone.
    pub(super) gone: f64,
    pub(super) total: f64,
}

impl Report {
    pub(super) fn new(
        documents: usize,
        fates: &Fates,
        left: &Left,
        judged: &Judged,
        postgres: String,
        seconds: Seconds,
        receipts: String,
    ) -> Self {
        let count = |fate| fates.values().filter(|is| **is == fate).count();
        let counts =
            Counts { rows: left.rows.len(), objects: left.objects.len(), index: left.texts.len() };
        let gone = |left: usize| documents.saturating_sub(left);
        Self {
            ok: judged.is_clean(),
            documents,
            flagged: fates.len(),
            restored: count(Fate::Restored),
            refused: count(Fate::Refused),
            gone: Counts {
                rows: gone(counts.rows),
                objects: gone(counts.objects),
                index: gone(counts.index),
            },
            left: counts,
            finalized: left.receipts.len(),
            flip_to_gone_ms: latency(&left.receipts),
            grace_ms: GRACE_MS,
            postgres,
            seconds,
            receipts,
            wrong: wrong(judged),
            program: std::env::args().next().unwrap_or_else(|| "tombstream".into()),
        }
    }
}

fn wrong(judged: &Judged) -> Vec<String> {
    let mut wrong = Vec::new();
    for (what, list) in judged.lists() {
        wrong.extend(list.iter().take(SAID_MAX).map(|line| format!("{what}: {line}")));
        if list.len() > SAID_MAX {
            wrong.push(format!("{what}: … {} in all", list.len()));
        }
    }
    wrong
}

fn latency(receipts: &[Receipt]) -> Latency {
    let took = |receipt: &Receipt| {
        let took = receipt.finalized_at - receipt.flagged_at()?;
        Some(took.num_microseconds()? as f64 / 1_000.0)
    };
    let mut all: Vec<f64> = receipts.iter().filter_map(took).collect();
    all.sort_by(f64::total_cmp);
    Latency { p50: percentile(&all, 0.5), p99: percentile(&all, 0.99) }
}

/// The smallest value that so large a share is not above.
fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { documents, gone, left, .. } = self;
        let (documents, flagged) = (grouped(*documents), grouped(self.flagged));
        writeln!(f, "{:<22}{:>9}{:>9}{:>9}", "", "rows", "objects", "index")?;
        writeln!(f, "{:<22}{documents:>9}{documents:>9}{documents:>9}", "seeded")?;
        writeln!(f, "{:<22}{flagged:>9}", "flagged by the api")?;
        writeln!(f, "{:<22}{:>9}", "  restored in time", grouped(self.restored))?;
        if self.refused > 0 {
            writeln!(f, "{:<22}{:>9}", "  restored too late", grouped(self.refused))?;
        }
        let line = |f: &mut fmt::Formatter<'_>, name: &str, counts: &Counts| {
            let Counts { rows, objects, index } = *counts;
            let (rows, objects, index) = (grouped(rows), grouped(objects), grouped(index));
            writeln!(f, "{name:<22}{rows:>9}{objects:>9}{index:>9}")
        };
        line(f, "gone, by listing", gone)?;
        line(f, "left", left)?;
        writeln!(f, "{:<22}{:>9}", "receipts", grouped(self.finalized))?;
        writeln!(f)?;
        let seconds =
            |ms: Option<f64>| ms.map_or("-".to_owned(), |ms| format!("{:.2} s", ms / 1_000.0));
        let Latency { p50, p99 } = self.flip_to_gone_ms;
        writeln!(
            f,
            "flip to row gone      p50 {}, p99 {}; {} of it is the grace, in which a restore is free",
            seconds(p50),
            seconds(p99),
            seconds(Some(self.grace_ms as f64)),
        )?;
        let Seconds { start, flags, gone, total } = self.seconds;
        writeln!(
            f,
            "took                  {total:.1} s: start {start:.1}, flags {flags:.1}, from the first to \
             all gone {gone:.1}"
        )?;
        writeln!(f, "receipts              {}", self.receipts)?;
        writeln!(f, "check them with       {} receipts verify {}", self.program, self.receipts)?;
        writeln!(f)?;
        for wrong in &self.wrong {
            writeln!(f, "WRONG  {wrong}")?;
        }
        write!(
            f,
            "{}",
            match self.ok {
                true =>
                    "Right: what was flagged is gone everywhere, with a receipt each; all else is as it \
                     was, byte for byte.",
                false => "Wrong: see above.",
            }
        )
    }
}

/// `12,345`
pub(super) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let all = [0, 12, 123, 1_234, 1_234_567].map(grouped);
        assert_eq!(all, ["0", "12", "123", "1,234", "1,234,567"]);
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 0.5), Some(50.0));
        assert_eq!(percentile(&hundred, 0.99), Some(99.0));
        assert_eq!(percentile(&[7.0], 0.99), Some(7.0));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
