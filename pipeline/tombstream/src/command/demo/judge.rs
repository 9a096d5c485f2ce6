//! What is left in the table and the stores, and the verdict on it. The pipeline is not asked.

use std::collections::{HashMap, HashSet};

use tombstream_model::Receipt;
use uuid::Uuid;

use super::document::Document;
use super::drive::{Fate, Fates};
use super::objects::Objects;
use super::table::StoredRow;

/// Everything that the table, the stores and the ledger hold.
#[derive(Debug, Default)]
pub(super) struct Left {
    pub(super) rows: HashMap<Uuid, StoredRow>,
    pub(super) objects: HashMap<String, Vec<u8>>,
    pub(super) texts: HashMap<String, String>,
    pub(super) receipts: Vec<Receipt>,
}

/// The ways to be wrong, each with what was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Judged {
    /// Alive, and not whole.
    pub(super) destroyed: Vec<String>,
    /// Flagged, and not gone.
    pub(super) leaked: Vec<String>,
    /// Gone without exactly one receipt, or alive with one.
    pub(super) unproven: Vec<String>,
    /// In a store, and never seeded.
    pub(super) strange: Vec<String>,
}

impl Judged {
    pub(super) fn is_clean(&self) -> bool {
        *self == Self::default()
    }

    /// The lists, each under what it is a list of.
    pub(super) fn lists(&self) -> [(&'static str, &[String]); 4] {
        [
            ("alive and not whole", &self.destroyed),
            ("flagged and not gone", &self.leaked),
            ("without its one receipt, or with one too many", &self.unproven),
            ("never seeded", &self.strange),
        ]
    }
}

/// Compares what is left with what was seeded and what the api answered.
///
/// A document that was never flagged, or whose restore was answered with 200, must be whole: row, object
/// and text, byte for byte, and no receipt. Of one that stayed flagged nothing may be left but one
/// receipt.
pub(super) fn judge(documents: &[Document], fates: &Fates, left: &Left) -> Judged {
    let mut judged = Judged::default();
    let mut receipts: HashMap<String, usize> = HashMap::new();
    for receipt in &left.receipts {
        *receipts.entry(receipt.key.join("/")).or_default() += 1;
    }
    for document in documents {
        let id = document.id.to_string();
        let row = left.rows.get(&document.id);
        let object = left.objects.get(&Objects::key(document));
        let text = left.texts.get(&id);
        let proofs = receipts.remove(&id).unwrap_or_default();
        let wanted = match fates.get(&document.id) {
            None | Some(Fate::Restored) => {
                let wrong = [
                    (row != Some(&StoredRow::of(document))).then_some("row"),
                    (object != Some(&document.object())).then_some("object"),
                    (text != Some(&document.text())).then_some("text"),
                ];
                note(&mut judged.destroyed, &id, wrong);
                0
            }
            Some(Fate::Flagged | Fate::Refused) => {
                let wrong = [row.map(|_| "row"), object.map(|_| "object"), text.map(|_| "text")];
                note(&mut judged.leaked, &id, wrong);
                1
            }
        };
        if proofs != wanted {
            judged.unproven.push(format!("{id}: {proofs} receipts"));
        }
    }
    judged.unproven.extend(receipts.keys().map(|key| format!("{key}: of no document")));
    let ids: HashSet<Uuid> = documents.iter().map(|document| document.id).collect();
    let known = |text: &str| text.parse().is_ok_and(|id: Uuid| ids.contains(&id));
    let rows = left.rows.keys().filter(|id| !ids.contains(id)).map(|id| format!("row {id}"));
    let objects = left.objects.keys();
    let objects = objects.filter(|key| !key.strip_suffix("/original").is_some_and(known));
    let texts = left.texts.keys().filter(|id| !known(id));
    judged.strange.extend(rows);
    judged.strange.extend(objects.map(|key| format!("object {key}")));
    judged.strange.extend(texts.map(|id| format!("text {id}")));
    judged
}

fn note(list: &mut Vec<String>, id: &str, wrong: [Option<&str>; 3]) {
    let wrong: Vec<&str> = wrong.into_iter().flatten().collect();
    if !wrong.is_empty() {
        list.push(format!("{id}: {}", wrong.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt(number: i64, document: &Document) -> Receipt {
        serde_json::from_value(serde_json::json!({
            "deletion_id": number, "relation": "documents", "key": [document.id.to_string()],
            "flag": "2026-03-01 10:00:00+00", "flip_lsn": null,
            "claimed_at": "2026-03-01T10:00:01Z", "finalized_at": "2026-03-01T10:00:02Z",
            "transaction_id": "1", "row_gone": false, "targets": [],
        }))
        .unwrap()
    }

    /// All documents whole, but for those that are gone with a receipt.
    fn left(documents: &[Document], gone: &[usize]) -> Left {
        let mut left = Left::default();
        for (place, document) in documents.iter().enumerate() {
            if gone.contains(&place) {
                left.receipts.push(receipt(place as i64 + 1, document));
                continue;
            }
            left.rows.insert(document.id, StoredRow::of(document));
            left.objects.insert(Objects::key(document), document.object());
            left.texts.insert(document.id.to_string(), document.text());
        }
        left
    }

    fn fates(documents: &[Document], fates: &[Fate]) -> Fates {
        documents.iter().map(|document| document.id).zip(fates.iter().copied()).collect()
    }

    #[test]
    fn a_run_that_did_all_it_should_is_clean() {
        let documents = Document::some(4);
        let fates = fates(&documents, &[Fate::Flagged, Fate::Restored, Fate::Refused]);
        assert!(judge(&documents, &fates, &left(&documents, &[0, 2])).is_clean());
    }

    #[test]
    fn a_changed_byte_of_what_is_alive_is_seen() {
        let documents = Document::some(3);
        let mut left = left(&documents, &[]);
        left.objects.get_mut(&Objects::key(&documents[0])).unwrap()[3] ^= 1;
        left.texts.get_mut(&documents[1].id.to_string()).unwrap().push(' ');
        left.rows.get_mut(&documents[2].id).unwrap().is_flagged = true;
        let judged = judge(&documents, &Fates::new(), &left);
        let expected = [(0, "object"), (1, "text"), (2, "row")];
        let expected = expected.map(|(n, what)| format!("{}: {what}", documents[n].id));
        assert_eq!(judged.destroyed, expected);
    }

    #[test]
    fn what_was_restored_must_be_whole() {
        let documents = Document::some(1);
        let fates = fates(&documents, &[Fate::Restored]);
        let judged = judge(&documents, &fates, &left(&documents, &[0]));
        assert_eq!(judged.destroyed, [format!("{}: row, object, text", documents[0].id)]);
        assert_eq!(judged.unproven, [format!("{}: 1 receipts", documents[0].id)]);
    }

    #[test]
    fn a_copy_that_outlived_its_row_is_a_leak_whichever_store_holds_it() {
        let documents = Document::some(3);
        let fates = fates(&documents, &[Fate::Flagged, Fate::Flagged, Fate::Refused]);
        let mut left = left(&documents, &[0, 1, 2]);
        left.objects.insert(Objects::key(&documents[0]), Vec::new());
        left.texts.insert(documents[1].id.to_string(), String::new());
        left.rows.insert(documents[2].id, StoredRow::of(&documents[2]));
        let judged = judge(&documents, &fates, &left);
        let expected = [(0, "object"), (1, "text"), (2, "row")];
        let expected = expected.map(|(n, what)| format!("{}: {what}", documents[n].id));
        assert_eq!(judged.leaked, expected);
        assert!(judged.destroyed.is_empty() && judged.unproven.is_empty());
    }

    #[test]
    fn each_deletion_has_one_receipt_and_nothing_else_has_any() {
        let documents = Document::some(4);
        let fates = fates(&documents[..2], &[Fate::Flagged, Fate::Flagged]);
        let mut left = left(&documents, &[0, 1]);
        left.receipts.remove(0);
        left.receipts.push(receipt(8, &documents[1]));
        left.receipts.push(receipt(9, &documents[3]));
        left.receipts.push(receipt(10, &Document::some(1)[0]));
        let unproven = judge(&documents, &fates, &left).unproven;
        assert_eq!(
            unproven[..3],
            [
                format!("{}: 0 receipts", documents[0].id),
                format!("{}: 2 receipts", documents[1].id),
                format!("{}: 1 receipts", documents[3].id),
            ]
        );
        assert!(unproven[3].ends_with("of no document") && unproven.len() == 4);
    }

    #[test]
    fn what_was_never_seeded_is_strange() {
        let documents = Document::some(1);
        let mut left = left(&documents, &[]);
        let stranger = Document::some(1)[0];
        left.rows.insert(stranger.id, StoredRow::of(&stranger));
        left.objects.insert("some/thing".into(), Vec::new());
        left.texts.insert("word".into(), String::new());
        let strange = judge(&documents, &Fates::new(), &left).strange;
        assert_eq!(strange, [&format!("row {}", stranger.id), "object some/thing", "text word"]);
    }
}
