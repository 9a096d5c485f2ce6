//! What is left in the table and the stores, and the verdict on it.

use super::document::Document;
use super::flags::{Fate, Flips};
use super::say;
use super::table::{StoredRow, Table};
use anyhow::Result;
use serde_json::Value;
use std::collections::HashMap;
use tombstream_e2e::{Bucket, Index};
use uuid::Uuid;

/// Everything that the stores hold.
pub(super) struct Left {
    pub(super) rows: HashMap<Uuid, StoredRow>,
    pub(super) objects: HashMap<String, Vec<u8>>,
    pub(super) sources: HashMap<String, Value>,
}

/// The two ways to be wrong, with what was found.
#[derive(Default)]
pub(super) struct Judged {
    pub(super) wrongly_destroyed: Vec<String>,
    pub(super) leaked: Vec<String>,
}

pub(super) async fn take(table: &Table, bucket: &Bucket, index: &Index) -> Result<Left> {
    let (rows, objects, sources) = tokio::try_join!(table.list(), bucket.list(), index.list())?;
    Ok(Left { rows, objects, sources })
}

/// Compares what is left with what was seeded and what the api answered.
///
/// A document that was never flagged, or whose restore was answered with 200, must be whole: row,
/// object byte for byte, search document by source. Of one that stayed flagged nothing may be left.
pub(super) fn judge(documents: &[Document], flips: &Flips, left: &Left) -> Judged {
    let mut judged = Judged::default();
    for document in documents {
        let row = left.rows.get(&document.id);
        let object = left.objects.get(&document.object_key());
        let source = left.sources.get(&document.id.to_string());
        match flips.fates.get(&document.id) {
            None | Some(Fate::Restored) => {
                let expected = StoredRow {
                    name: document.name(),
                    uploaded_at: document.uploaded_at(),
                    is_flagged: false,
                };
                let wrong = [
                    (row != Some(&expected)).then_some("row"),
                    (object != Some(&document.object())).then_some("object"),
                    (source != Some(&document.source())).then_some("search document"),
                ];
                note(&mut judged.wrongly_destroyed, document.id, wrong);
            }
            Some(Fate::Flagged | Fate::Refused) => {
                let wrong = [
                    row.map(|_| "row"),
                    object.map(|_| "object"),
                    source.map(|_| "search document"),
                ];
                note(&mut judged.leaked, document.id, wrong);
            }
        }
    }
    judged
}

fn note(list: &mut Vec<String>, id: Uuid, wrong: [Option<&str>; 3]) {
    let wrong: Vec<&str> = wrong.into_iter().flatten().collect();
    if !wrong.is_empty() {
        list.push(format!("{id}: {}", wrong.join(", ")));
    }
}

impl Judged {
    pub(super) fn explain(&self) {
        for (what, list) in
            [("wrongly destroyed", &self.wrongly_destroyed), ("leaked", &self.leaked)]
        {
            for line in list.iter().take(5) {
                say(format_args!("{what}: {line}"));
            }
            if list.len() > 5 {
                say(format_args!("{what}: … {} in all", list.len()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(feature = "live")]
    use crate::e2e::document::{objects, sources};

    fn whole(documents: &[Document]) -> Left {
        let mut left =
            Left { rows: HashMap::new(), objects: HashMap::new(), sources: HashMap::new() };
        for document in documents {
            let row = StoredRow {
                name: document.name(),
                uploaded_at: document.uploaded_at(),
                is_flagged: false,
            };
            left.rows.insert(document.id, row);
            left.objects.insert(document.object_key(), document.object());
            left.sources.insert(document.id.to_string(), document.source());
        }
        left
    }

    #[test]
    fn a_changed_byte_of_a_living_document_is_seen() {
        let documents = Document::some(2);
        let mut left = whole(&documents);
        left.objects.get_mut(&documents[1].object_key()).unwrap()[3] ^= 1;
        let judged = judge(&documents, &Flips::default(), &left);
        assert_eq!(judged.wrongly_destroyed, [format!("{}: object", documents[1].id)]);
        assert!(judged.leaked.is_empty());
    }

    #[test]
    fn a_copy_that_outlived_its_row_is_a_leak_and_a_restored_one_must_be_whole() {
        let documents = Document::some(3);
        let mut left = whole(&documents);
        let mut flips = Flips::default();
        flips.fates.insert(documents[0].id, Fate::Flagged);
        flips.fates.insert(documents[1].id, Fate::Restored);
        flips.fates.insert(documents[2].id, Fate::Refused);
        for document in [documents[0], documents[1]] {
            left.rows.remove(&document.id);
        }
        left.objects.remove(&documents[0].object_key());
        let judged = judge(&documents, &flips, &left);
        assert_eq!(judged.wrongly_destroyed, [format!("{}: row", documents[1].id)]);
        assert_eq!(
            judged.leaked,
            [
                format!("{}: search document", documents[0].id),
                format!("{}: row, object, search document", documents[2].id)
            ]
        );
    }

    /// The harness itself, without the product: what it seeds it must find again, page by page.
    #[cfg(feature = "live")]
    #[tokio::test]
    async fn what_was_seeded_is_listed_whole() {
        let servers = tombstream_e2e::Servers::from_env().unwrap();
        let name = tombstream_e2e::random_name("census");
        let documents = Document::some(2_500);
        let table = Table::make(&servers.postgres, &name).await.unwrap();
        let bucket = Bucket::make(&servers, &name).await.unwrap();
        let index = Index::make(&servers.elasticsearch, &name).await.unwrap();
        tokio::try_join!(
            table.seed(&documents),
            bucket.put(objects(&documents)),
            index.put(sources(&documents))
        )
        .unwrap();
        let left = take(&table, &bucket, &index).await.unwrap();
        table.database.remove().await.unwrap();
        bucket.remove().await.unwrap();
        index.remove().await.unwrap();
        assert_eq!(
            (left.rows.len(), left.objects.len(), left.sources.len()),
            (2_500, 2_500, 2_500)
        );
        let judged = judge(&documents, &Flips::default(), &left);
        assert_eq!(judged.wrongly_destroyed, Vec::<String>::new());
    }
}
