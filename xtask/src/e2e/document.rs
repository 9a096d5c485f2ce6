//! A seeded document: everything about it follows from its number and id, so nothing is kept.

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use serde_json::{Value, json};
use uuid::Uuid;

/// One row, its object and its search document.
#[derive(Debug, Clone, Copy)]
pub(super) struct Document {
    pub(super) id: Uuid,
    number: u32,
}

impl Document {
    pub(super) fn some(count: u32) -> Vec<Self> {
        (0..count).map(|number| Self { id: Uuid::new_v4(), number }).collect()
    }

    pub(super) fn name(&self) -> String {
        format!("document {}.pdf", self.number)
    }

    /// Seconds since 1970.
    pub(super) fn uploaded_at(&self) -> i64 {
        1_700_000_000 + i64::from(self.number)
    }

    pub(super) fn object_key(&self) -> String {
        format!("{}/original", self.id)
    }

    /// Some tens to hundreds of bytes.
    pub(super) fn object(&self) -> Vec<u8> {
        let mut rng = StdRng::seed_from_u64(self.id.as_u64_pair().0);
        let mut bytes = vec![0; 64 + (self.number % 500) as usize];
        rng.fill_bytes(&mut bytes);
        bytes
    }

    pub(super) fn source(&self) -> Value {
        let id = self.id.to_string();
        json!({ "id": id, "name": self.name(), "text": format!("the text of {}", self.id) })
    }
}

/// Key and bytes of every object.
pub(super) fn objects(documents: &[Document]) -> impl Iterator<Item = (String, Vec<u8>)> {
    documents.iter().map(|document| (document.object_key(), document.object()))
}

/// Id and source of every search document.
pub(super) fn sources(documents: &[Document]) -> impl Iterator<Item = (String, Value)> {
    documents.iter().map(|document| (document.id.to_string(), document.source()))
}
