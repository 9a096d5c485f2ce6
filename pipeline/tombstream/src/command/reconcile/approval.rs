//! An approval of orphans: of those that one report lists, and of no other.
//!
//! Nothing proves whose an orphan is, so that a person has to have seen it. What they approve is a digest of the report's
//! bytes: a report that was changed, cut or made anew is another one.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader, Read as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tombstream_dataflow::reconcile::{Finding, Wrong};
use tombstream_model::{Address, Key};

/// The orphans of an approved report: a hash for each.
#[derive(Debug)]
pub(super) struct Approval {
    orphans: HashSet<[u8; 32]>,
}

/// What of a report's line is read.
#[derive(Deserialize)]
struct Line {
    kind: String,
    #[serde(default)]
    relation: String,
    #[serde(default)]
    key: Option<Key>,
    #[serde(default)]
    store: String,
    #[serde(default)]
    address: Option<Address>,
}

/// The digest of a report: SHA-256 over its bytes.
pub(super) fn digest(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut BufReader::new(File::open(path)?), &mut hash)?;
    Ok(hex::encode(hash.finalize()))
}

impl Approval {
    /// Reads the report at `path`, if `approved` is its digest.
    ///
    /// Invariant (S1): the bytes that are read are those that were hashed;
    /// `an_approval_is_of_one_report_and_of_no_other`.
    pub(super) fn read(path: &Path, approved: &str) -> anyhow::Result<Self> {
        let name = path.display();
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|mut file| file.read_to_end(&mut bytes))
            .with_context(|| format!("the report {name} can't be read"))?;
        let found = hex::encode(Sha256::digest(&bytes));
        if !found.eq_ignore_ascii_case(approved) {
            bail!(
                "the report {name} is not the one that was approved: its digest is {found}, and {approved} was approved; \
                 look at it, and approve what you have seen"
            );
        }
        let mut orphans = HashSet::new();
        let mut is_whole = false;
        for (line, number) in bytes.split(|byte| *byte == b'\n').zip(1..) {
            if line.is_empty() {
                continue;
            }
            let line: Line = serde_json::from_slice(line)
                .with_context(|| format!("the report {name}, line {number}, is no finding"))?;
            is_whole = line.kind == "summary";
            if line.kind != Wrong::Orphan.as_str() {
                continue;
            }
            let (Some(key), Some(address)) = (&line.key, &line.address) else {
                bail!("the report {name}, line {number}, does not say whose copy it is, and where");
            };
            orphans.insert(of(&line.relation, key, &line.store, address)?);
        }
        if !is_whole {
            bail!("the report {name} has no last line: it is not whole");
        }
        Ok(Self { orphans })
    }

    /// How many orphans were approved.
    pub(super) fn len(&self) -> usize {
        self.orphans.len()
    }

    /// Whether this very copy was approved, and is still what it was: an orphan, whose key the ledger never knew.
    pub(super) fn covers(&self, finding: &Finding) -> bool {
        finding.kind == Wrong::Orphan
            && finding.deletion.is_none()
            && !finding.is_elsewhere
            && of(&finding.relation, &finding.key, &finding.store, &finding.address)
                .is_ok_and(|hash| self.orphans.contains(&hash))
    }
}

fn of(relation: &str, key: &Key, store: &str, address: &Address) -> serde_json::Result<[u8; 32]> {
    let whole = serde_json::to_vec(&(relation, key, store, address))?;
    Ok(Sha256::digest(whole).into())
}

#[cfg(test)]
mod tests {
    use tombstream_model::{DeletionId, RelationId};

    use super::*;

    fn finding(key: &str) -> Finding {
        Finding {
            kind: Wrong::Orphan,
            relation: "notes".into(),
            relation_id: RelationId(0),
            key: Key::from_postgres([key.to_owned()]),
            store: "copies".into(),
            address: Address::Object { bucket: "b".into(), key: format!("{key}/original") },
            deletion: None,
            state: None,
            is_elsewhere: false,
        }
    }

    #[test]
    fn an_approval_is_of_one_report_and_of_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.jsonl");
        let line = |finding: &Finding| serde_json::to_string(finding).unwrap();
        let summary = r#"{"kind":"summary","orphans":1}"#;
        let missing = Finding { kind: Wrong::Missing, ..finding("2") };
        let text = format!("{}\n{}\n{summary}\n", line(&finding("1")), line(&missing));
        std::fs::write(&path, &text).unwrap();
        let approved = digest(&path).unwrap();
        let approval = Approval::read(&path, &approved).unwrap();
        assert_eq!(approval.len(), 1);
        assert!(approval.covers(&finding("1")));
        assert!(!approval.covers(&finding("2")) && !approval.covers(&missing));
        // Another place, another key, and what the ledger knows by now.
        let moved = Finding { store: "others".into(), ..finding("1") };
        let known = Finding { deletion: Some(DeletionId(7)), ..finding("1") };
        let elsewhere = Finding { is_elsewhere: true, ..finding("1") };
        assert!([moved, known, elsewhere].iter().all(|it| !approval.covers(it)));
        // One byte more, and it is another report.
        std::fs::write(&path, format!("{text}\n")).unwrap();
        let said = Approval::read(&path, &approved).unwrap_err().to_string();
        assert!(said.contains("not the one that was approved"), "{said}");
        std::fs::write(&path, line(&finding("1"))).unwrap();
        let said = Approval::read(&path, &digest(&path).unwrap()).unwrap_err().to_string();
        assert!(said.contains("not whole"), "{said}");
    }
}
