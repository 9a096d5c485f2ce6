//! Where one copy is, and what is never sent (S8).
//!
//! Owned here: the templates' syntax, what of them is refused when the configuration is read
//! ([`AddressTemplate::check`]), and what is parked when a row is resolved
//! ([`AddressTemplate::resolve`]). What a store makes of an address is its connector's matter.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Key, KeyColumn, Listed};

/// What Debezium writes for a TOASTed value that the event does not carry. It is no value, so it
/// must reach no store.
pub(crate) const UNAVAILABLE: &str = "__debezium_unavailable_value";

/// S3's bound on a key, in bytes of UTF-8. Longer keys can't have been written.
const OBJECT_KEY_BYTES_MAX: usize = 1_024;
/// Elasticsearch's bound on an `_id`, in bytes of UTF-8.
const DOCUMENT_ID_BYTES_MAX: usize = 512;
/// Lucene's bound on a term, in bytes: a longer value is in no index, so a search proves nothing.
const TERM_BYTES_MAX: usize = 32_766;
/// An item's id, in bytes: a thousand of them stay a request of a megabyte. Nobody's ids are longer.
const ITEM_ID_BYTES_MAX: usize = 1_024;

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
    /// What a service of somebody else's calls one thing of its own.
    Item {
        /// Which of its things: `contacts`. No URL: those hold secrets, and change.
        collection: Arc<str>,
        /// What the service calls the thing.
        id: String,
    },
    /// Every row of another database's table whose columns have these values.
    Row {
        /// The table, `public.copies`.
        table: Arc<str>,
        /// Each column's value, as text.
        columns: BTreeMap<String, String>,
    },
}

impl Address {
    /// The parts that come from the row: what may name somebody.
    pub fn values(&self) -> Vec<&str> {
        match self {
            Self::Object { key: value, .. }
            | Self::Prefix { prefix: value, .. }
            | Self::Item { id: value, .. } => vec![value],
            Self::Document { id: value, routing, .. } | Self::Field { value, routing, .. } => {
                std::iter::once(value.as_str()).chain(routing.as_deref()).collect()
            }
            Self::Row { columns, .. } => columns.values().map(String::as_str).collect(),
        }
    }

    /// What it lies in: the bucket, the index, the collection or the table.
    pub fn container(&self) -> &Arc<str> {
        match self {
            Self::Object { bucket, .. } | Self::Prefix { bucket, .. } => bucket,
            Self::Document { index, .. } | Self::Field { index, .. } => index,
            Self::Item { collection, .. } => collection,
            Self::Row { table, .. } => table,
        }
    }
}

/// A text with columns of the row in braces: `{tenant_id}/{id}/original`. `{{` and `}}` are braces.
///
/// Its `Display` gives back the text it was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

/// Two literals never follow each other, and none is empty.
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
    /// For [`Address::Item`].
    Item {
        /// Which of the service's things.
        collection: Arc<str>,
        /// The thing's id.
        id: Template,
    },
    /// For [`Address::Row`]. The columns together hold the key; one of them may be a mere text, such as
    /// the kind of thing that the table keeps copies of.
    Row {
        /// The table.
        table: Arc<str>,
        /// What each column's value is made of.
        columns: BTreeMap<String, Template>,
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
    #[error(
        "unbalanced or empty braces in `{0}`: write a column as {{id}}, and a brace itself twice"
    )]
    Braces(String),
    /// A key column does not occur, so that several rows would share the address.
    #[error(
        "`{template}` lacks the key column `{column}`, so several rows would share one address: \
         add {{{column}}}"
    )]
    KeyColumn {
        /// The template.
        template: String,
        /// The column that is not in it.
        column: String,
    },
    /// The template names no column.
    #[error("`{0}` names no column, so every row would have this one address: add the key's")]
    Literal(String),
    /// Two columns follow each other directly.
    #[error(
        "`{template}` joins `{left}` and `{right}` with nothing between them, so `1`, `23` and \
         `12`, `3` would share one address: put a delimiter such as / between them"
    )]
    Joined {
        /// The template.
        template: String,
        /// The first of the two columns.
        left: String,
        /// The second.
        right: String,
    },
    /// A prefix that does not end in the delimiter.
    #[error(
        "the prefix `{0}` does not end in /, so `docs/1` would take `docs/10/x` along: end it in /"
    )]
    PrefixEnd(String),
    /// A `.` or `..` between slashes, which some clients resolve.
    #[error("`{0}` has a segment `.` or `..`, which some clients resolve: take it out")]
    DotSegment(String),
    /// Literal text that the store's protocol can't carry.
    #[error("`{0}` holds a control character that the store's protocol can't carry: take it out")]
    Unsendable(String),
    /// A bucket, index, field, collection, table or column without a name.
    #[error("the {0} has no name")]
    Unnamed(&'static str),
    /// An index (or field) name that may stand for several.
    #[error(
        "`{0}` may stand for several indices or fields (`*`, `?`, `,`, `<`, a leading `-`, \
         `_all`): name one index or alias"
    )]
    Wildcard(String),
}

/// Why a row gives no address: what is parked, never sent. No message holds a value of the row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The column is null or empty.
    #[error("column `{0}` is empty")]
    Empty(String),
    /// The row was read without this column.
    #[error("column `{0}` was not read with the row")]
    Unread(String),
    /// The value holds a character that stands between columns.
    #[error(
        "column `{column}` holds the delimiter {delimiter:?}, so the address could be another row's"
    )]
    Delimiter {
        /// The column.
        column: String,
        /// The character.
        delimiter: char,
    },
    /// The value is, or holds, Debezium's placeholder for a value that it has not read.
    #[error("column `{0}` holds the placeholder `__debezium_unavailable_value`, which is no value")]
    Placeholder(String),
    /// A `.` or `..` between slashes, which some clients resolve.
    #[error("the address has a segment `.` or `..`, which some clients resolve")]
    DotSegment,
    /// A character that the store's protocol can't carry.
    #[error("the address holds the character U+{0:04X}, which the store's protocol can't carry")]
    Unsendable(u32),
    /// Longer than the store can hold.
    #[error("{what} of {bytes} bytes; the store holds at most {bytes_max}")]
    Long {
        /// What is too long.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
}

impl Template {
    /// Reads a template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let braces = || TemplateError::Braces(text.to_owned());
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text.chars().peekable();
        while let Some(next) = rest.next() {
            match next {
                '{' | '}' if rest.next_if_eq(&next).is_some() => literal.push(next),
                '{' => {
                    let mut name = String::new();
                    loop {
                        match rest.next() {
                            None | Some('{') => return Err(braces()),
                            Some('}') => break,
                            Some(other) => name.push(other),
                        }
                    }
                    if name.is_empty() {
                        return Err(braces());
                    }
                    if !literal.is_empty() {
                        parts.push(Part::Literal(std::mem::take(&mut literal)));
                    }
                    parts.push(Part::Column(name));
                }
                '}' => return Err(braces()),
                other => literal.push(other),
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(Self { parts })
    }

    /// The columns it names, in their order.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Column(name) => Some(name.as_str()),
            Part::Literal(_) => None,
        })
    }

    /// Whether what it gives can be taken apart again: no column follows another directly.
    fn check_apart(&self) -> Result<(), TemplateError> {
        for pair in self.parts.windows(2) {
            if let [Part::Column(left), Part::Column(right)] = pair {
                return Err(TemplateError::Joined {
                    template: self.to_string(),
                    left: left.clone(),
                    right: right.clone(),
                });
            }
        }
        Ok(())
    }

    /// The rules for what becomes an object key: segments and characters of the literal text.
    fn check_path(&self) -> Result<(), TemplateError> {
        // A column gives at least one character, and which one is known only with the row.
        let shape: String = self
            .parts
            .iter()
            .map(|part| match part {
                Part::Literal(text) => text.as_str(),
                Part::Column(_) => "column",
            })
            .collect();
        if has_dot_segment(&shape) {
            return Err(TemplateError::DotSegment(self.to_string()));
        }
        if shape.chars().any(|c| !is_xml(c)) {
            return Err(TemplateError::Unsendable(self.to_string().escape_debug().to_string()));
        }
        Ok(())
    }

    /// The literal text next to the part at `index`, where another column stands behind it.
    fn delimiters(&self, index: usize) -> impl Iterator<Item = char> {
        let literal = |between: Option<&Part>, beyond: Option<&Part>| match (between, beyond) {
            (Some(Part::Literal(text)), Some(Part::Column(_))) => text.clone(),
            _ => String::new(),
        };
        let part = |at: Option<usize>| at.and_then(|at| self.parts.get(at));
        let left = literal(part(index.checked_sub(1)), part(index.checked_sub(2)));
        let right = literal(part(index.checked_add(1)), part(index.checked_add(2)));
        (left + &right).chars().collect::<Vec<_>>().into_iter()
    }

    /// Whether a row of this key could have this text, whatever its other columns are.
    fn could_give(&self, text: &str, key: Row<'_>) -> bool {
        self.could_end(0, text, key)
    }

    /// The same of the parts from `index` on and the rest of a text.
    fn could_end(&self, index: usize, rest: &str, key: Row<'_>) -> bool {
        let Some(part) = self.parts.get(index) else { return rest.is_empty() };
        let known = match part {
            Part::Literal(literal) => Some(literal.as_str()),
            Part::Column(name) if key.columns.contains(&name.as_str()) => {
                let Ok(value) = key.value(name) else { return false };
                Some(value)
            }
            Part::Column(_) => None,
        };
        if let Some(known) = known {
            return rest
                .strip_prefix(known)
                .is_some_and(|rest| self.could_end(index + 1, rest, key));
        }
        // At least one character, and none that would have parked it.
        let refused: Vec<char> = self.delimiters(index).collect();
        let mut ends = rest.char_indices().take_while(|(_, c)| !refused.contains(c));
        ends.any(|(at, c)| self.could_end(index + 1, &rest[at + c.len_utf8()..], key))
    }

    /// The text for `row`, or why `rule` parks it.
    fn resolve(&self, row: Row<'_>, rule: Rule) -> Result<String, AddressError> {
        let mut text = String::new();
        for (index, part) in self.parts.iter().enumerate() {
            let name = match part {
                Part::Literal(literal) => {
                    text.push_str(literal);
                    continue;
                }
                Part::Column(name) => name,
            };
            let value = row.value(name)?;
            if value.contains(UNAVAILABLE) {
                return Err(AddressError::Placeholder(name.clone()));
            }
            let slash = (rule == Rule::Prefix).then_some('/');
            let delimiters = (rule != Rule::Routing).then(|| self.delimiters(index));
            let mut refused = delimiters.into_iter().flatten().chain(slash);
            if let Some(delimiter) = refused.find(|refused| value.contains(*refused)) {
                return Err(AddressError::Delimiter { column: name.clone(), delimiter });
            }
            text.push_str(value);
        }
        Ok(text)
    }
}

impl Template {
    /// The columns' values in `text`, if it was made of this template: the first of each name.
    ///
    /// No value holds a character of the literal text between two columns, so the first occurrence of that
    /// text is where the value ends.
    fn take_apart<'t>(&self, text: &'t str) -> Option<Vec<(&str, &'t str)>> {
        let mut columns = Vec::new();
        let mut rest = text;
        let mut parts = self.parts.iter().peekable();
        while let Some(part) = parts.next() {
            let name = match part {
                Part::Literal(literal) => {
                    rest = rest.strip_prefix(literal.as_str())?;
                    continue;
                }
                Part::Column(name) => name.as_str(),
            };
            let value = match parts.next_if(|next| matches!(next, Part::Literal(_))) {
                None => std::mem::take(&mut rest),
                Some(Part::Literal(literal)) if parts.peek().is_some() => {
                    let (value, behind) = rest.split_once(literal.as_str())?;
                    rest = behind;
                    value
                }
                Some(Part::Literal(literal)) => {
                    std::mem::take(&mut rest).strip_suffix(literal.as_str())?
                }
                Some(Part::Column(_)) => unreachable!("a literal was asked for"),
            };
            if columns.iter().all(|(known, _)| *known != name) {
                columns.push((name, value));
            }
        }
        rest.is_empty().then_some(columns)
    }
}

/// What a text of a template is for, and so which values are parked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// It identifies one copy, or all that have this very value.
    Whole,
    /// It identifies all that begin with it.
    Prefix,
    /// It only says where to look; the rest of the address identifies.
    Routing,
}

impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.parts {
            match part {
                Part::Literal(text) => {
                    f.write_str(&text.replace('{', "{{").replace('}', "}}"))?;
                }
                Part::Column(name) => write!(f, "{{{name}}}")?,
            }
        }
        Ok(())
    }
}

impl<'a> Row<'a> {
    /// The value of `column`, unless it is null or empty.
    fn value(&self, column: &str) -> Result<&'a str, AddressError> {
        let index = self.columns.iter().position(|name| *name == column);
        match index.and_then(|index| self.values.get(index)) {
            None => Err(AddressError::Unread(column.to_owned())),
            Some(None | Some("")) => Err(AddressError::Empty(column.to_owned())),
            Some(Some(value)) => Ok(value),
        }
    }
}

impl AddressTemplate {
    /// The templates that identify the copy, which is one but for a row: the key, prefix, id or value;
    /// never the routing.
    fn identifying(&self) -> Vec<&Template> {
        match self {
            Self::Object { key: one, .. }
            | Self::Prefix { prefix: one, .. }
            | Self::Document { id: one, .. }
            | Self::Field { value: one, .. }
            | Self::Item { id: one, .. } => vec![one],
            Self::Row { columns, .. } => columns.values().collect(),
        }
    }

    fn routing(&self) -> Option<&Template> {
        match self {
            Self::Object { .. } | Self::Prefix { .. } | Self::Item { .. } | Self::Row { .. } => {
                None
            }
            Self::Document { routing, .. } | Self::Field { routing, .. } => routing.as_ref(),
        }
    }

    /// The rules that the templates of every address keep together, whatever its store.
    ///
    /// Invariant (S8): each value can be taken apart into its columns, and all of them together hold
    /// the whole key; `a_row_is_named_by_the_whole_key` in tests/address.rs.
    fn check_injective(&self, key_columns: &[&str]) -> Result<(), TemplateError> {
        let templates = self.identifying();
        let shown =
            || templates.iter().map(ToString::to_string).collect::<Vec<_>>().join("` and `");
        let named: Vec<&str> = templates.iter().flat_map(|template| template.columns()).collect();
        if named.is_empty() {
            return Err(TemplateError::Literal(shown()));
        }
        if let Some(column) = key_columns.iter().find(|key| !named.contains(key)) {
            let column = (*column).to_owned();
            return Err(TemplateError::KeyColumn { template: shown(), column });
        }
        templates.iter().try_for_each(|template| template.check_apart())
    }

    /// Every column it names, each once, in the order of first use.
    pub fn columns(&self) -> Vec<&str> {
        let mut columns = Vec::new();
        let identifying = self.identifying();
        let named = identifying.iter().flat_map(|template| template.columns());
        for column in named.chain(self.routing().into_iter().flat_map(Template::columns)) {
            if !columns.contains(&column) {
                columns.push(column);
            }
        }
        columns
    }

    /// Refuses a template that does not hold the whole key injectively, or that can't be an address.
    ///
    /// Not seen from here: a *living* row whose own value holds `/` and which therefore lies under
    /// another row's prefix (`docs/1/` and the row `1/2`). A prefix over a column of free text needs
    /// a constraint in the table.
    pub fn check(&self, key_columns: &[&str]) -> Result<(), TemplateError> {
        let named = |what, name: &str| {
            if name.is_empty() { Err(TemplateError::Unnamed(what)) } else { Ok(()) }
        };
        self.check_injective(key_columns)?;
        match self {
            Self::Object { bucket, key } => {
                named("bucket", bucket)?;
                key.check_path()
            }
            Self::Prefix { bucket, prefix } => {
                named("bucket", bucket)?;
                match prefix.parts.last() {
                    Some(Part::Literal(end)) if end.ends_with('/') => prefix.check_path(),
                    _ => Err(TemplateError::PrefixEnd(prefix.to_string())),
                }
            }
            Self::Document { index, .. } => {
                named("index", index)?;
                check_name(index)
            }
            Self::Field { index, field, .. } => {
                named("index", index)?;
                named("field", field)?;
                check_name(index)?;
                check_name(field)
            }
            Self::Item { collection, .. } => named("collection", collection),
            Self::Row { table, columns } => {
                named("table", table)?;
                columns.keys().try_for_each(|column| named("column", column))
            }
        }
    }

    /// Whether a row of this key could have a copy at this address, whatever its other columns are: `key` has the
    /// key's columns alone. Since a template holds the whole key injectively, no other key's row then has.
    pub fn could_give(&self, address: &Address, key: Row<'_>) -> bool {
        let (template, text) = match (self, address) {
            (Self::Object { bucket, key }, Address::Object { bucket: of, key: text })
                if bucket == of =>
            {
                (key, text)
            }
            (Self::Prefix { bucket, prefix }, Address::Prefix { bucket: of, prefix: text })
                if bucket == of =>
            {
                (prefix, text)
            }
            (Self::Document { index, id, .. }, Address::Document { index: of, id: text, .. })
                if index == of =>
            {
                (id, text)
            }
            (
                Self::Field { index, field, value, .. },
                Address::Field { index: of, field: named, value: text, .. },
            ) if index == of && field == named => (value, text),
            (Self::Item { collection, id }, Address::Item { collection: of, id: text })
                if collection == of =>
            {
                (id, text)
            }
            (Self::Row { table, columns }, Address::Row { table: of, columns: texts })
                if table == of && columns.len() == texts.len() =>
            {
                let could = |(name, template): (&String, &Template)| {
                    texts.get(name).is_some_and(|text| template.could_give(text, key))
                };
                return columns.iter().all(could);
            }
            _ => return false,
        };
        template.could_give(text, key)
    }

    /// The address of `row`'s copy, or why it must not be sent.
    ///
    /// Invariant (S8): where a template joins columns, a value with any character of the literal
    /// text that stands between it and another column is parked. What is left can be taken apart in
    /// one way only, even against rows that are parked themselves: reading from the left, no
    /// delimiter can begin before its place, and from the right none can end behind it. In a prefix
    /// no value may hold `/`, so all prefixes of a template have as many slashes and none begins
    /// another; tests/address.rs.
    pub fn resolve(&self, row: Row<'_>) -> Result<Address, AddressError> {
        let routing = |template: &Option<Template>| {
            let text =
                template.as_ref().map(|text| text.resolve(row, Rule::Routing)).transpose()?;
            text.map(|text| short("a routing value", text, TERM_BYTES_MAX)).transpose()
        };
        match self {
            Self::Object { bucket, key } => Ok(Address::Object {
                bucket: Arc::clone(bucket),
                key: sendable(key.resolve(row, Rule::Whole)?)?,
            }),
            Self::Prefix { bucket, prefix } => Ok(Address::Prefix {
                bucket: Arc::clone(bucket),
                prefix: sendable(prefix.resolve(row, Rule::Prefix)?)?,
            }),
            Self::Document { index, id, routing: template } => Ok(Address::Document {
                index: Arc::clone(index),
                id: short("a document id", id.resolve(row, Rule::Whole)?, DOCUMENT_ID_BYTES_MAX)?,
                routing: routing(template)?,
            }),
            Self::Field { index, field, value, routing: template } => Ok(Address::Field {
                index: Arc::clone(index),
                field: Arc::clone(field),
                value: short("a field value", value.resolve(row, Rule::Whole)?, TERM_BYTES_MAX)?,
                routing: routing(template)?,
            }),
            Self::Item { collection, id } => Ok(Address::Item {
                collection: Arc::clone(collection),
                id: short("an item's id", id.resolve(row, Rule::Whole)?, ITEM_ID_BYTES_MAX)?,
            }),
            Self::Row { table, columns } => {
                let value = |(name, template): (&String, &Template)| {
                    Ok((name.clone(), template.resolve(row, Rule::Whole)?))
                };
                let columns = columns.iter().map(value).collect::<Result<_, _>>()?;
                Ok(Address::Row { table: Arc::clone(table), columns })
            }
        }
    }
}

impl AddressTemplate {
    /// The addresses of this template that `listed` would be found by, each with the key of its row. One at
    /// most; of a document with several values in a field, one for each.
    ///
    /// Only what the template itself would resolve to that place is given: a text that has its shape by chance,
    /// or a key that is not spelled as Postgres spells it, is no row's.
    pub fn trace(&self, listed: &Listed, key: &[KeyColumn]) -> Vec<(Address, Key)> {
        let one = |text: &str, listed_routing: Option<&str>| {
            self.trace_text(text, listed_routing, key).into_iter().collect::<Vec<_>>()
        };
        match (self, &listed.address) {
            (Self::Object { bucket, .. }, Address::Object { bucket: found, key })
                if bucket == found =>
            {
                one(key, None)
            }
            (Self::Prefix { bucket, prefix }, Address::Object { bucket: found, key })
                if bucket == found =>
            {
                // All prefixes of a template have as many slashes.
                let slashes = prefix.parts.iter().map(|part| match part {
                    Part::Literal(text) => text.matches('/').count(),
                    Part::Column(_) => 0,
                });
                let last = key.match_indices('/').nth(slashes.sum::<usize>().saturating_sub(1));
                last.map(|(end, _)| one(&key[..=end], None)).unwrap_or_default()
            }
            (
                Self::Document { index, .. },
                Address::Document { index: found, id, routing: found_routing },
            ) if index == found => one(id, found_routing.as_deref()),
            (
                Self::Field { index, field, .. },
                Address::Document { index: found, routing: found_routing, .. },
            ) if index == found => listed
                .fields
                .iter()
                .filter(|(name, _)| name == field)
                .flat_map(|(_, value)| one(value, found_routing.as_deref()))
                .collect(),
            (Self::Row { table, columns }, Address::Row { table: found, columns: texts })
                if table == found =>
            {
                self.trace_row(columns, texts, key).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// One text, taken apart and put together again.
    fn trace_text(
        &self,
        text: &str,
        routing: Option<&str>,
        key: &[KeyColumn],
    ) -> Option<(Address, Key)> {
        let template = match self {
            Self::Object { key: it, .. }
            | Self::Prefix { prefix: it, .. }
            | Self::Document { id: it, .. }
            | Self::Field { value: it, .. } => it,
            // Nobody lists the first, and a row has several texts.
            Self::Item { .. } | Self::Row { .. } => return None,
        };
        let told = template.take_apart(text)?;
        let value = |name: &str| told.iter().find(|(known, _)| *known == name).map(|(_, it)| *it);
        let mut columns: Vec<(&str, &str)> = told.clone();
        // The routing is the listed copy's own: a copy on another shard is not where the row's would be.
        let named = self.routing();
        if let Some(template) = named {
            for (name, value) in template.take_apart(routing?)? {
                if columns.iter().all(|(known, _)| *known != name) {
                    columns.push((name, value));
                }
            }
        }
        let (names, values): (Vec<_>, Vec<_>) =
            columns.into_iter().map(|(name, value)| (name, Some(value))).unzip();
        let address = self.resolve(Row { columns: &names, values: &values }).ok()?;
        let is_there = match &address {
            Address::Object { key, .. } => key == text,
            Address::Prefix { prefix, .. } => prefix == text,
            Address::Document { id, routing: own, .. } => {
                id == text && (named.is_none() || own.as_deref() == routing)
            }
            Address::Field { value, routing: own, .. } => {
                value == text && (named.is_none() || own.as_deref() == routing)
            }
            Address::Item { .. } | Address::Row { .. } => false,
        };
        if !is_there {
            return None;
        }
        told_key(key, value).map(|key| (address, key))
    }

    /// A row's columns, each taken apart, and all put together again.
    fn trace_row(
        &self,
        templates: &BTreeMap<String, Template>,
        texts: &BTreeMap<String, String>,
        key: &[KeyColumn],
    ) -> Option<(Address, Key)> {
        if !templates.keys().eq(texts.keys()) {
            return None;
        }
        let mut told: Vec<(&str, &str)> = Vec::new();
        for (template, text) in templates.values().zip(texts.values()) {
            for (name, value) in template.take_apart(text)? {
                match told.iter().find(|(known, _)| *known == name) {
                    Some((_, known)) if *known != value => return None,
                    Some(_) => {}
                    None => told.push((name, value)),
                }
            }
        }
        let (names, values): (Vec<_>, Vec<_>) =
            told.iter().map(|(name, value)| (*name, Some(*value))).unzip();
        let address = self.resolve(Row { columns: &names, values: &values }).ok()?;
        if !matches!(&address, Address::Row { columns, .. } if columns == texts) {
            return None;
        }
        let value = |name: &str| told.iter().find(|(known, _)| *known == name).map(|(_, it)| *it);
        told_key(key, value).map(|key| (address, key))
    }
}

/// The key that the columns of a copy tell, if they tell all of it, spelled as Postgres spells it.
fn told_key<'t>(columns: &[KeyColumn], value: impl Fn(&str) -> Option<&'t str>) -> Option<Key> {
    let texts: Option<Vec<&str>> = columns.iter().map(|column| value(&column.name)).collect();
    let texts = texts?;
    let key = Key::new(columns.iter().map(|column| column.kind), texts.iter().copied()).ok()?;
    key.columns().eq(texts.iter().copied()).then_some(key)
}

/// Refuses the names that Elasticsearch expands: wildcards, lists, exclusions, date math, `_all`.
fn check_name(name: &str) -> Result<(), TemplateError> {
    if name.contains(['*', '?', ',', '<']) || name.starts_with('-') || name == "_all" {
        return Err(TemplateError::Wildcard(name.to_owned()));
    }
    Ok(())
}

/// An object key or prefix, if S3's protocol carries it as it is.
///
/// A leading `/` and empty segments (`foo//bar`) are legal and stay. Tab, newline and carriage
/// return pass: the request's writer escapes what an XML parser would normalise.
fn sendable(key: String) -> Result<String, AddressError> {
    if has_dot_segment(&key) {
        return Err(AddressError::DotSegment);
    }
    if let Some(refused) = key.chars().find(|c| !is_xml(*c)) {
        return Err(AddressError::Unsendable(u32::from(refused)));
    }
    short("an object key", key, OBJECT_KEY_BYTES_MAX)
}

fn short(what: &'static str, text: String, bytes_max: usize) -> Result<String, AddressError> {
    if text.len() > bytes_max {
        return Err(AddressError::Long { what, bytes: text.len(), bytes_max });
    }
    Ok(text)
}

fn has_dot_segment(key: &str) -> bool {
    key.split('/').any(|segment| matches!(segment, "." | ".."))
}

/// Whether XML 1.0 has this character (production 2, `Char`).
fn is_xml(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}
