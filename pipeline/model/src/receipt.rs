//! A receipt outside of the ledger, and what can be checked of it by reading alone.
//!
//! Owned here: one receipt as a line of JSON, and [`ReceiptCheck`], which reads lines and says what is
//! wrong. Left to others: reading the ledger, and files. What the lines can't show is in
//! [`ReceiptCheck::NOT_SHOWN`]: they are not chained yet.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{Address, DeletionCause, DeletionId, Outcome, Verdict};

/// The evidence that a deletion is finished, as the ledger keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// The deletion's number.
    pub deletion_id: DeletionId,
    /// The relation's name.
    pub relation: String,
    /// The text of each key column.
    pub key: Vec<String>,
    /// Why there was a deletion. None: a receipt from before it was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<DeletionCause>,
    /// The flag's value that was claimed. None: there was no row any more.
    pub flag: Option<String>,
    /// Where the flip is in the log, if an event told it.
    pub flip_lsn: Option<String>,
    /// When the row was claimed.
    pub claimed_at: DateTime<Utc>,
    /// When the row was removed.
    pub finalized_at: DateTime<Utc>,
    /// The transaction that removed it. A text: JSON's numbers end before Postgres's do.
    pub transaction_id: String,
    /// Whether another hand had removed the row before.
    pub row_gone: bool,
    /// Every address, and what its store said.
    pub targets: Vec<ReceiptTarget>,
    /// Stores of which no address was known, and who said that they need no proof.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub waived: BTreeMap<String, Waiver>,
}

/// A person's word in place of a store's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waiver {
    /// Why no proof is needed.
    pub reason: String,
    /// Whose word it is.
    pub actor: String,
    /// When it was given.
    pub at: String,
}

/// One address of a receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiptTarget {
    /// The store's name.
    pub store: String,
    /// Where the copy was.
    pub address: Address,
    /// What became of it. A receipt without is none; the check says so.
    pub outcome: Option<Outcome>,
}

/// Reads receipts, one line each and in the order of their deletions, and keeps count.
#[derive(Clone, Debug, Default)]
pub struct ReceiptCheck {
    lines: u64,
    last: Option<DeletionId>,
    tally: ReceiptTally,
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReceiptTally {
    /// Receipts by relation.
    pub receipts: BTreeMap<String, u64>,
    /// Targets by store and verdict.
    pub targets: BTreeMap<String, BTreeMap<String, u64>>,
    /// Receipts of rows that another hand had removed.
    pub rows_gone: u64,
    /// When the first and the last row was removed.
    pub span: Option<(DateTime<Utc>, DateTime<Utc>)>,
}

/// Why a line is no receipt, or none that can be believed.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct ReceiptProblem {
    /// The line's number, from 1.
    pub line: u64,
    /// What is wrong.
    pub what: String,
}

impl ReceiptCheck {
    /// What reading receipts can't show yet.
    pub const NOT_SHOWN: &'static str = "not shown: that no receipt was taken out, added or rewritten \
        as a whole (receipts are not chained yet), and that nobody has made a copy since";

    /// Takes the next line.
    pub fn line(&mut self, line: &str) -> Result<(), ReceiptProblem> {
        self.lines += 1;
        let number = self.lines;
        let wrong = |what: String| ReceiptProblem { line: number, what };
        let receipt: Receipt =
            serde_json::from_str(line).map_err(|error| wrong(format!("not a receipt: {error}")))?;
        let last = self.last.replace(receipt.deletion_id);
        receipt.check().map_err(&wrong)?;
        match last {
            Some(last) if last == receipt.deletion_id => {
                return Err(wrong(format!("a second receipt of deletion {last}")));
            }
            Some(last) if last > receipt.deletion_id => {
                let id = receipt.deletion_id;
                return Err(wrong(format!(
                    "deletion {id} comes after deletion {last}: an export has each once, in order"
                )));
            }
            Some(_) | None => {}
        }
        self.tally.add(&receipt);
        Ok(())
    }

    /// What the good lines add up to.
    pub fn tally(&self) -> &ReceiptTally {
        &self.tally
    }
}

impl ReceiptTally {
    fn add(&mut self, receipt: &Receipt) {
        *self.receipts.entry(receipt.relation.clone()).or_default() += 1;
        self.rows_gone += u64::from(receipt.row_gone);
        let at = receipt.finalized_at;
        let (first, last) = self.span.unwrap_or((at, at));
        self.span = Some((first.min(at), last.max(at)));
        for target in &receipt.targets {
            let verdict =
                target.outcome.as_ref().map_or(Verdict::Unknown, |outcome| outcome.verdict);
            let store = self.targets.entry(target.store.clone()).or_default();
            *store.entry(verdict.as_str().to_owned()).or_default() += 1;
        }
    }
}

impl Receipt {
    /// Says what of it can't be true.
    ///
    /// Invariant (S9): a receipt is evidence of a *finished* deletion, so one unconfirmed target makes
    /// it none; `tests::a_receipt_with_an_unconfirmed_target_is_none`.
    fn check(&self) -> Result<(), String> {
        let id = self.deletion_id;
        if id.0 < 1 {
            return Err(format!("deletion {id} can't be: they count from 1"));
        }
        if self.relation.is_empty() || self.key.is_empty() {
            return Err(format!("deletion {id} does not say of what it is: relation and key"));
        }
        if self.flag.as_deref() == Some("") || self.flag.is_none() && !self.row_gone {
            return Err(format!("deletion {id} has no flag, and its row was not gone"));
        }
        if !self.transaction_id.parse::<u64>().is_ok_and(|number| number > 0) {
            return Err(format!("deletion {id}: {:?} is no transaction", self.transaction_id));
        }
        if self.claimed_at > self.finalized_at {
            return Err(format!("deletion {id}: the row was removed before it was claimed"));
        }
        if self.flagged_at().is_some_and(|flagged| flagged > self.claimed_at) {
            return Err(format!("deletion {id}: the row was claimed before it was flagged"));
        }
        if self.targets.is_empty() && self.waived.is_empty() {
            return Err(format!("deletion {id} has no target, so there was nothing to destroy"));
        }
        for (place, target) in self.targets.iter().enumerate() {
            let store = &target.store;
            let Some(outcome) = &target.outcome else {
                return Err(format!("deletion {id}: store {store} has said nothing"));
            };
            if !outcome.verdict.is_confirmed() {
                let verdict = outcome.verdict.as_str();
                return Err(format!("deletion {id}: store {store} has not confirmed: {verdict}"));
            }
            let again = |other: &ReceiptTarget| {
                other.store == target.store && other.address == target.address
            };
            if self.targets[..place].iter().any(again) {
                return Err(format!("deletion {id}: store {store} has one address twice"));
            }
        }
        Ok(())
    }

    /// The flag's value as a point in time, where its text tells one: with an offset. A timestamp
    /// without zone tells none here, and a boolean neither.
    pub fn flagged_at(&self) -> Option<DateTime<Utc>> {
        let flagged =
            DateTime::parse_from_str(self.flag.as_deref()?, "%Y-%m-%d %H:%M:%S%.f%#z").ok()?;
        Some(flagged.to_utc())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(change: impl FnOnce(&mut serde_json::Value)) -> String {
        let mut receipt = serde_json::json!({
            "deletion_id": 7,
            "relation": "documents",
            "key": ["6f1d"],
            "flag": "2026-03-01 10:00:00.25+00",
            "flip_lsn": "16/B374D848",
            "claimed_at": "2026-03-01T10:00:01Z",
            "finalized_at": "2026-03-01T10:00:02Z",
            "transaction_id": "4711",
            "row_gone": false,
            "targets": [
                {"store": "objects", "address": {"kind": "object", "bucket": "b", "key": "6f1d"},
                 "outcome": {"verdict": "deleted", "said": "deleted", "verified": "read_back"}},
                {"store": "index",
                 "address": {"kind": "document", "index": "i", "id": "6f1d", "routing": null},
                 "outcome": {"verdict": "absent", "said": "not found", "verified": "read_back"}},
            ],
        });
        change(&mut receipt);
        receipt.to_string()
    }

    fn said(change: impl FnOnce(&mut serde_json::Value)) -> String {
        ReceiptCheck::default().line(&line(change)).unwrap_err().to_string()
    }

    #[test]
    fn a_whole_receipt_passes_and_is_counted_and_spelled_as_it_was() {
        let mut check = ReceiptCheck::default();
        check.line(&line(|_| {})).unwrap();
        check.line(&line(|it| it["deletion_id"] = 8.into())).unwrap();
        let tally = check.tally();
        assert_eq!(tally.receipts["documents"], 2);
        assert_eq!(tally.targets["objects"]["deleted"], 2);
        assert_eq!(tally.targets["index"]["absent"], 2);
        let receipt: Receipt = serde_json::from_str(&line(|_| {})).unwrap();
        let again = serde_json::to_value(&receipt).unwrap();
        assert_eq!(again, serde_json::from_str::<serde_json::Value>(&line(|_| {})).unwrap());
    }

    #[test]
    fn a_receipt_with_an_unconfirmed_target_is_none() {
        for verdict in ["superseded", "busy", "refused", "unknown"] {
            let said = said(|it| it["targets"][1]["outcome"]["verdict"] = verdict.into());
            assert_eq!(
                said,
                format!("line 1: deletion 7: store index has not confirmed: {verdict}")
            );
        }
        let said = said(|it| it["targets"][0]["outcome"] = serde_json::Value::Null);
        assert_eq!(said, "line 1: deletion 7: store objects has said nothing");
    }

    #[test]
    fn times_that_run_backwards_are_seen() {
        let said_of = |field: &str, value: &str| said(|it| it[field] = value.into());
        assert!(said_of("claimed_at", "2026-03-01T10:00:03Z").contains("before it was claimed"));
        assert!(said_of("claimed_at", "2026-03-01T10:00:00.1Z").contains("before it was flagged"));
        assert!(said_of("flag", "2026-03-01 12:00:00+00").contains("before it was flagged"));
        // The same moment by other clocks' words; and what tells no moment.
        for flag in ["2026-03-01 15:30:00+05:30", "2026-03-01 12:00:00", "true"] {
            ReceiptCheck::default().line(&line(|it| it["flag"] = flag.into())).unwrap();
        }
        // A hard delete has no flag, and its row was gone.
        assert!(said(|it| it["flag"] = serde_json::Value::Null).contains("has no flag"));
        let removed = line(|it| {
            it["flag"] = serde_json::Value::Null;
            it["row_gone"] = true.into();
        });
        ReceiptCheck::default().line(&removed).unwrap();
        // Nothing to destroy is possible where a person said so.
        let waived = line(|it| {
            it["targets"] = serde_json::json!([]);
            it["waived"] = serde_json::json!({"s": {"reason": "r", "actor": "a", "at": "t"}});
        });
        ReceiptCheck::default().line(&waived).unwrap();
    }

    #[test]
    fn one_deletion_has_one_receipt_and_they_come_in_order() {
        let mut check = ReceiptCheck::default();
        check.line(&line(|_| {})).unwrap();
        let twice = check.line(&line(|_| {})).unwrap_err().to_string();
        assert_eq!(twice, "line 2: a second receipt of deletion 7");
        let back = check.line(&line(|it| it["deletion_id"] = 3.into())).unwrap_err().to_string();
        assert!(back.starts_with("line 3: deletion 3 comes after deletion 7"), "{back}");
        assert_eq!(check.tally().receipts["documents"], 1, "only good lines count");
    }

    #[test]
    fn what_is_no_receipt_is_said() {
        let mut check = ReceiptCheck::default();
        let whole = line(|_| {});
        for text in ["", "{}", "null", "[]", &whole[..whole.len() - 1], &format!("{whole}}}")] {
            let said = check.line(text).unwrap_err().to_string();
            assert!(said.contains("not a receipt"), "{text}: {said}");
        }
        assert!(said(|it| it["extra"] = 1.into()).contains("unknown field `extra`"));
        assert!(said(|it| it["targets"] = serde_json::json!([])).contains("no target"));
        assert!(said(|it| it["deletion_id"] = 0.into()).contains("count from 1"));
        assert!(said(|it| it["key"] = serde_json::json!([])).contains("of what it is"));
        for text in ["", "x", "0", "-1"] {
            assert!(said(|it| it["transaction_id"] = text.into()).contains("is no transaction"));
        }
        assert!(said(|it| it["targets"][1] = it["targets"][0].clone()).contains("twice"));
    }
}
