//! A receipt outside of the ledger, and what can be checked of it by reading it alone.
//!
//! Owned here: one receipt as JSON, and what of it can't be true. Left to others: how receipts are chained
//! (`chain.rs`), whether an export is whole (`verify.rs`), reading the ledger, and files.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{Address, DeletionCause, DeletionId, Hash, Outcome, Verdict};

/// The evidence that a deletion is finished, as the ledger keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// The deletion's number.
    pub deletion_id: DeletionId,
    /// The relation's name.
    pub relation: String,
    /// The text of each key column; where keys are hashed, one keyed hash of them all.
    pub key: Vec<String>,
    /// Whether key and addresses are keyed hashes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hashed: bool,
    /// Why there was a deletion. None: a receipt from before it was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<DeletionCause>,
    /// The flag's value that was claimed. None: there was no row any more.
    pub flag: Option<String>,
    /// Where the flip is in the log, if an event told it.
    pub flip_lsn: Option<String>,
    /// When its recoverable copies were hidden, if they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden_at: Option<DateTime<Utc>>,
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
    pub address: ReceiptAddress,
    /// What became of it. A receipt without is none; the check says so.
    pub outcome: Option<Outcome>,
}

/// Where a copy was, in the clear or as a keyed hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ReceiptAddress {
    /// The keyed hash of the address.
    Hashed(HashedAddress),
    /// The address.
    Plain(Address),
}

/// A keyed hash in place of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HashedAddress {
    /// The hash.
    pub hashed: Hash,
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

/// What is wrong with an export.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct ReceiptProblem {
    /// The line's number, from 1; what is wrong with the whole has the last one's.
    pub line: u64,
    /// What is wrong.
    pub what: String,
}

impl ReceiptTally {
    pub(crate) fn add(&mut self, receipt: &Receipt) {
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
    pub(crate) fn check(&self) -> Result<(), String> {
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
        if self.hidden_at.is_some_and(|hidden| hidden > self.claimed_at) {
            return Err(format!("deletion {id}: it was hidden after it was claimed"));
        }
        let is_hash = |target: &ReceiptTarget| matches!(target.address, ReceiptAddress::Hashed(_));
        let is_key_hash = self.key.len() == 1 && self.key[0].parse::<Hash>().is_ok();
        if self.hashed && !(is_key_hash && self.targets.iter().all(is_hash)) {
            return Err(format!("deletion {id} says that it names nobody, and is not hashed"));
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

    fn checked(text: &str) -> Result<Receipt, String> {
        let receipt: Receipt = serde_json::from_str(text).map_err(|error| error.to_string())?;
        receipt.check().map(|()| receipt)
    }

    fn said(change: impl FnOnce(&mut serde_json::Value)) -> String {
        checked(&line(change)).unwrap_err()
    }

    #[test]
    fn a_whole_receipt_passes_and_is_counted_and_spelled_as_it_was() {
        let mut tally = ReceiptTally::default();
        tally.add(&checked(&line(|_| {})).unwrap());
        tally.add(&checked(&line(|it| it["deletion_id"] = 8.into())).unwrap());
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
            assert_eq!(said, format!("deletion 7: store index has not confirmed: {verdict}"));
        }
        let said = said(|it| it["targets"][0]["outcome"] = serde_json::Value::Null);
        assert_eq!(said, "deletion 7: store objects has said nothing");
    }

    #[test]
    fn times_that_run_backwards_are_seen() {
        let said_of = |field: &str, value: &str| said(|it| it[field] = value.into());
        assert!(said_of("claimed_at", "2026-03-01T10:00:03Z").contains("before it was claimed"));
        assert!(said_of("claimed_at", "2026-03-01T10:00:00.1Z").contains("before it was flagged"));
        assert!(said_of("flag", "2026-03-01 12:00:00+00").contains("before it was flagged"));
        // The same moment by other clocks' words; and what tells no moment.
        for flag in ["2026-03-01 15:30:00+05:30", "2026-03-01 12:00:00", "true"] {
            checked(&line(|it| it["flag"] = flag.into())).unwrap();
        }
        // A hard delete has no flag, and its row was gone.
        assert!(said(|it| it["flag"] = serde_json::Value::Null).contains("has no flag"));
        let removed = line(|it| {
            it["flag"] = serde_json::Value::Null;
            it["row_gone"] = true.into();
        });
        checked(&removed).unwrap();
        // Nothing to destroy is possible where a person said so.
        let waived = line(|it| {
            it["targets"] = serde_json::json!([]);
            it["waived"] = serde_json::json!({"s": {"reason": "r", "actor": "a", "at": "t"}});
        });
        checked(&waived).unwrap();
    }

    #[test]
    fn a_receipt_that_says_it_is_hashed_names_nothing() {
        let hash = Hash::leaf(b"").to_string();
        let hashed = |it: &mut serde_json::Value| {
            it["hashed"] = true.into();
            it["key"] = serde_json::json!([hash]);
            for target in it["targets"].as_array_mut().unwrap() {
                target["address"] = serde_json::json!({ "hashed": hash });
            }
        };
        checked(&line(hashed)).unwrap();
        let plain_key = said(|it| {
            hashed(it);
            it["key"] = serde_json::json!(["6f1d"]);
        });
        assert!(plain_key.contains("is not hashed"), "{plain_key}");
        assert!(said(|it| it["hashed"] = true.into()).contains("is not hashed"));
    }

    #[test]
    fn what_is_no_receipt_is_said() {
        let whole = line(|_| {});
        for text in ["", "{}", "null", "[]", &whole[..whole.len() - 1], &format!("{whole}}}")] {
            assert!(checked(text).is_err(), "{text}");
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
