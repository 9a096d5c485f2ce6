//! Where one copy is, and what is never sent (S8).

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Where one copy (or one delimited group of copies) is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Address {
    /// One object. Keys go to the store byte for byte.
    Object {
        /// The bucket (or container).
        bucket: Arc<str>,
        /// The key.
        key: String,
    },
    /// Every object whose key begins with this text, which ends in the delimiter `/`.
    Prefix {
        /// The bucket (or container).
        bucket: Arc<str>,
        /// The prefix.
        prefix: String,
    },
    /// One document.
    Document {
        /// The index, or an alias.
        index: Arc<str>,
        /// The document's `_id`.
        id: String,
        /// The custom routing value, if documents of this index are routed.
        routing: Option<String>,
    },
    /// Every document whose field equals the value: the chunks of one row.
    Field {
        /// The index, or an alias.
        index: Arc<str>,
        /// A keyword field.
        field: Arc<str>,
        /// The value it must equal.
        value: String,
        /// The custom routing value, if documents of this index are routed.
        routing: Option<String>,
    },
}

/// A text with columns of the row in braces: `{tenant_id}/{id}/original`. `{{` and `}}` are braces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Column(String),
}

/// A template for an [`Address`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressTemplate {
    /// For [`Address::Object`].
    Object {
        /// The bucket.
        bucket: Arc<str>,
        /// The key.
        key: Template,
    },
    /// For [`Address::Prefix`].
    Prefix {
        /// The bucket.
        bucket: Arc<str>,
        /// The prefix.
        prefix: Template,
    },
    /// For [`Address::Document`].
    Document {
        /// The index.
        index: Arc<str>,
        /// The document's id.
        id: Template,
        /// The routing value.
        routing: Option<Template>,
    },
    /// For [`Address::Field`].
    Field {
        /// The index.
        index: Arc<str>,
        /// The field.
        field: Arc<str>,
        /// The value.
        value: Template,
        /// The routing value.
        routing: Option<Template>,
    },
}

/// The columns of a row that templates name, as text.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// The columns' names.
    pub columns: &'a [&'a str],
    /// Their values in the same order, as Postgres writes them.
    pub values: &'a [Option<&'a str>],
}

/// Why a text is no template, or one that could reach beyond its row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A brace without its partner, or an empty name.
    #[error("unbalanced or empty braces in `{0}`")]
    Braces(String),
}

/// Why a row gives no address: what is parked, never sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The column is null or empty.
    #[error("column `{0}` is empty")]
    Empty(String),
}

impl Template {
    /// Reads a template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let _ = text;
        unimplemented!("template")
    }

    /// The columns it names, in their order.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Column(name) => Some(name.as_str()),
            Part::Literal(_) => None,
        })
    }
}

impl AddressTemplate {
    /// Every column it names.
    pub fn columns(&self) -> Vec<&str> {
        unimplemented!("columns")
    }

    /// Refuses a template that does not hold the whole key injectively, or that can't be an address.
    pub fn check(&self, key_columns: &[&str]) -> Result<(), TemplateError> {
        let _ = key_columns;
        unimplemented!("check")
    }

    /// The address of `row`'s copy, or why it must not be sent.
    pub fn resolve(&self, row: Row<'_>) -> Result<Address, AddressError> {
        let _ = row;
        unimplemented!("resolve")
    }
}
