//! An index, listed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tantivy::schema::{FAST, INDEXED, STRING, Schema};
use tantivy::{Index, TantivyDocument, Term};
use tombstream_connectors::tantivy::{TantivyConfig, TantivyListing, TantivySink};
use tombstream_model::{Address, Listed, Listing as _, ListingError, ListingPart as _};

use crate::fixture::{Fixture, document, schema, writer};

async fn all(
    path: &std::path::Path,
    fields: &[&str],
    parts: usize,
) -> Result<Vec<Listed>, ListingError> {
    let sink = TantivySink::new(TantivyConfig::new(path.to_str().unwrap())).unwrap();
    let fields = fields.iter().map(|name| Arc::from(*name));
    let mut listed = Vec::new();
    for mut part in TantivyListing::new(Arc::new(sink), fields).parts(parts, &[]).await? {
        while let Some(page) = part.next().await? {
            listed.extend(page);
        }
    }
    Ok(listed)
}

fn id(listed: &Listed) -> &str {
    match &listed.address {
        Address::Document { id, routing: None, .. } => id,
        other => panic!("not a document: {other:?}"),
    }
}

/// Over several segments and pages, what is deleted and what is not committed left out; the values that are stored and those
/// of fast columns alike.
#[tokio::test]
async fn every_living_document_is_listed_once() {
    let fixture = Fixture::new(false);
    let (_, fields) = schema();
    let mut writer = writer(&fixture.index());
    writer.set_merge_policy(Box::new(tantivy::indexer::NoMergePolicy));
    let mut expected = BTreeSet::new();
    for segment in 0..3 {
        for n in 0..2_500 {
            let name = format!("{segment}/{n}");
            writer.add_document(document(&name, &format!("row {n}"), "body")).unwrap();
            expected.insert(name);
        }
        writer.commit().unwrap();
    }
    for gone in ["0/0", "1/1999", "1/2000", "2/2499"] {
        writer.delete_term(Term::from_field_text(fields.id, gone));
        expected.remove(gone);
    }
    writer.commit().unwrap();
    writer.add_document(document("not yet", "row", "body")).unwrap();
    for parts in [1, 2, 8] {
        let listed = all(fixture.path(), &["document", "label"], parts).await.unwrap();
        assert_eq!(listed.len(), expected.len(), "{parts}");
        let ids: BTreeSet<String> = listed.iter().map(|it| id(it).to_owned()).collect();
        assert_eq!(ids, expected, "{parts}");
        for it in &listed {
            let shown: BTreeMap<&str, &str> =
                it.fields.iter().map(|(name, value)| (&**name, value.as_str())).collect();
            let row = format!("row {}", id(it).split_once('/').unwrap().1);
            assert_eq!(shown, BTreeMap::from([("document", row.as_str()), ("label", "body")]));
        }
    }
}

#[tokio::test]
async fn whole_numbers_are_listed_as_they_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut schema = Schema::builder();
    let (unsigned, signed) =
        (schema.add_u64_field("id", INDEXED | FAST), schema.add_i64_field("row", INDEXED | FAST));
    let index = Index::builder().schema(schema.build()).create_in_dir(folder.path()).unwrap();
    let mut writer = writer(&index);
    let mut one = TantivyDocument::default();
    one.add_u64(unsigned, u64::MAX);
    one.add_i64(signed, -7);
    one.add_i64(signed, 8);
    writer.add_document(one).unwrap();
    writer.commit().unwrap();
    let listed = all(folder.path(), &["row"], 4).await.unwrap();
    let [one] = &listed[..] else { panic!("{listed:?}") };
    assert_eq!(id(one), "18446744073709551615");
    let shown: Vec<&str> = one.fields.iter().map(|(_, value)| value.as_str()).collect();
    assert_eq!(shown, ["-7", "8"]);
}

/// What could not be shown whole is no listing (S6).
#[tokio::test]
async fn an_index_that_does_not_show_its_values_is_no_listing() {
    let folder = tempfile::tempdir().unwrap();
    let mut schema = Schema::builder();
    schema.add_text_field("id", STRING | FAST);
    let terms_alone = schema.add_text_field("row", STRING);
    let other = schema.add_text_field("label", STRING | FAST);
    let index = Index::builder().schema(schema.build()).create_in_dir(folder.path()).unwrap();
    let said = all(folder.path(), &["row"], 1).await.unwrap_err().to_string();
    assert!(said.contains("field `row`") && said.contains("neither fast"), "{said}");
    let said = all(folder.path(), &["none"], 1).await.unwrap_err().to_string();
    assert!(said.contains("no such field"), "{said}");
    // A document that nothing can name, and that may be somebody's copy.
    let mut writer = writer(&index);
    let mut nameless = TantivyDocument::default();
    nameless.add_text(terms_alone, "1");
    nameless.add_text(other, "1");
    writer.add_document(nameless).unwrap();
    writer.commit().unwrap();
    assert!(all(folder.path(), &[], 1).await.unwrap().is_empty());
    let said = all(folder.path(), &["label"], 1).await.unwrap_err().to_string();
    assert!(said.contains("has no id"), "{said}");
    std::fs::remove_file(folder.path().join("meta.json")).unwrap();
    assert!(all(folder.path(), &[], 1).await.is_err());
}
