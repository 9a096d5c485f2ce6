//! A seeded document: all about it follows from its number and id, so that nothing need be kept.

use uuid::Uuid;

/// One row and its two copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

    /// The object: a hundred bytes to a kilobyte.
    pub(super) fn object(&self) -> Vec<u8> {
        let line = format!("document {} of {}\n", self.number, self.id);
        line.repeat(2 + self.number as usize % 14).into_bytes()
    }

    /// What the index holds of it.
    pub(super) fn text(&self) -> String {
        format!("the text of document {}, known as {}", self.number, self.id)
    }
}
