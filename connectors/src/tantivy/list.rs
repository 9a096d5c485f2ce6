//! An index, listed whole: the last commit, segment by segment, document by document.
//!
//! A document's values are read from the field's fast column, where it has one as it is, else from what is stored. A
//! field with neither has terms alone, from which a document's values could be had only by holding all of a segment: that
//! is refused, and said.
//!
//! A commit does not change, and a reader keeps the files of its segments, so that a listing is of one moment whatever
//! is written meanwhile.

use std::sync::Arc;

use ::tantivy::columnar::{Column, StrColumn};
use ::tantivy::schema::{Field, FieldType, Schema, Value as _};
use ::tantivy::{DocAddress, Searcher, SegmentReader, TantivyDocument};
use tombstream_model::{Address, Listed, Listing, ListingError, ListingPart, SinkError};

use super::index::Opened;
use super::sink::{TantivySink, blocking};

/// Documents of a page: some hundred kilobytes.
const PAGE: u32 = 2_000;

/// An index, as a listing.
#[derive(Clone, Debug)]
pub struct TantivyListing {
    sink: Arc<TantivySink>,
    /// The fields by which copies are found.
    fields: Vec<Arc<str>>,
}

/// Some segments of an index.
pub struct TantivyPart {
    of: Arc<Commit>,
    /// What is still to be read.
    segments: Vec<usize>,
    /// The next document of the last of them.
    next: u32,
    /// Living documents that were read, and that the segments have.
    came: u64,
    expected: u64,
    has_ended: bool,
}

/// The commit that is listed.
struct Commit {
    searcher: Searcher,
    index: Arc<str>,
    id: Shown,
    fields: Vec<(Arc<str>, Shown)>,
}

/// A field whose values can be read of a document.
#[derive(Clone, Copy, Debug)]
struct Shown {
    field: Field,
    kind: Kind,
}

/// Where a field's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    FastText,
    FastU64,
    FastI64,
    Stored,
}

/// The values of one segment.
enum Values {
    Text(Option<StrColumn>),
    U64(Option<Column<u64>>),
    I64(Option<Column<i64>>),
    Stored,
}

impl TantivyListing {
    /// A listing with the fields that templates compare.
    pub fn new(sink: Arc<TantivySink>, fields: impl IntoIterator<Item = Arc<str>>) -> Self {
        Self { sink, fields: fields.into_iter().collect() }
    }
}

impl Shown {
    /// The field `name`, or why its values can't be read of a document.
    fn of(schema: &Schema, name: &str) -> Result<Self, ListingError> {
        let not = |why: &str| ListingError::NotWhole(format!("field `{name}`: {why}"));
        let field = schema.get_field(name).map_err(|_| not("the index has no such field"))?;
        let entry = schema.get_field_entry(field);
        let kind = match entry.field_type() {
            // One with a tokenizer of its own holds other texts than were indexed.
            FieldType::Str(options) if options.get_fast_field_tokenizer_name() == Some("raw") => {
                Kind::FastText
            }
            FieldType::U64(options) if options.is_fast() => Kind::FastU64,
            FieldType::I64(options) if options.is_fast() => Kind::FastI64,
            FieldType::Str(_) | FieldType::U64(_) | FieldType::I64(_) if entry.is_stored() => {
                Kind::Stored
            }
            _ => {
                return Err(not(
                    "it is neither fast (as it is) nor stored, so no document shows its value: index it FAST or STORED, \
                     or leave this store out",
                ));
            }
        };
        Ok(Self { field, kind })
    }

    fn values(self, schema: &Schema, segment: &SegmentReader) -> ::tantivy::Result<Values> {
        let name = schema.get_field_name(self.field);
        let columns = segment.fast_fields();
        Ok(match self.kind {
            Kind::FastText => Values::Text(columns.str(name)?),
            Kind::FastU64 => Values::U64(columns.column_opt(name)?),
            Kind::FastI64 => Values::I64(columns.column_opt(name)?),
            Kind::Stored => Values::Stored,
        })
    }
}

fn failed(error: ::tantivy::TantivyError) -> ListingError {
    SinkError::Unavailable(Box::new(error)).into()
}

impl Values {
    /// The values of `doc`; `stored` is what is stored of it, where that was read.
    fn of(
        &self,
        doc: u32,
        field: Field,
        stored: Option<&TantivyDocument>,
    ) -> ::tantivy::Result<Vec<String>> {
        Ok(match self {
            Self::Text(None) | Self::U64(None) | Self::I64(None) => Vec::new(),
            Self::Text(Some(column)) => {
                let mut values = Vec::new();
                for ord in column.term_ords(doc) {
                    let mut value = String::new();
                    column.ord_to_str(ord, &mut value)?;
                    values.push(value);
                }
                values
            }
            Self::U64(Some(column)) => {
                column.values_for_doc(doc).map(|value| value.to_string()).collect()
            }
            Self::I64(Some(column)) => {
                column.values_for_doc(doc).map(|value| value.to_string()).collect()
            }
            Self::Stored => {
                let all = stored.into_iter().flat_map(|stored| stored.get_all(field));
                all.filter_map(|value| {
                    let text = value.as_str().map(str::to_owned);
                    let number = || value.as_u64().map(|number| number.to_string());
                    text.or_else(number).or_else(|| value.as_i64().map(|number| number.to_string()))
                })
                .collect()
            }
        })
    }
}

impl Commit {
    fn open(sink: &TantivySink, fields: &[Arc<str>]) -> Result<Self, ListingError> {
        let config = sink.config();
        let opened = Opened::open(config)?;
        let schema = opened.schema();
        let id = Shown::of(&schema, &config.id_field)?;
        let shown = |name: &Arc<str>| Ok((Arc::clone(name), Shown::of(&schema, name)?));
        let fields = fields.iter().map(shown).collect::<Result<_, ListingError>>()?;
        let searcher = opened.reader()?.searcher();
        Ok(Self { searcher, index: config.path.as_str().into(), id, fields })
    }

    /// The documents from `from` on of one segment, so many at most that are looked at; how many of them live, and where
    /// it goes on.
    fn page(
        &self,
        segment: usize,
        from: u32,
    ) -> Result<(Vec<Listed>, u64, Option<u32>), ListingError> {
        let reader = &self.searcher.segment_readers()[segment];
        let schema = self.searcher.schema();
        let ids = self.id.values(schema, reader).map_err(failed)?;
        let fields = self
            .fields
            .iter()
            .map(|(name, shown)| Ok((name, shown, shown.values(schema, reader)?)))
            .collect::<::tantivy::Result<Vec<_>>>()
            .map_err(failed)?;
        let is_stored = std::iter::once(&self.id)
            .chain(self.fields.iter().map(|(_, shown)| shown))
            .any(|shown| shown.kind == Kind::Stored);
        let to = from.saturating_add(PAGE).min(reader.max_doc());
        let (mut listed, mut living) = (Vec::new(), 0);
        let ord = u32::try_from(segment).unwrap_or(u32::MAX);
        for doc in (from..to).filter(|doc| !reader.is_deleted(*doc)) {
            living += 1;
            let stored: Option<TantivyDocument> = match is_stored {
                true => Some(self.searcher.doc(DocAddress::new(ord, doc)).map_err(failed)?),
                false => None,
            };
            let mut compared = Vec::new();
            for (name, shown, values) in &fields {
                let found = values.of(doc, shown.field, stored.as_ref()).map_err(failed)?;
                compared.extend(found.into_iter().map(|value| (Arc::clone(name), value)));
            }
            let of_id = ids.of(doc, self.id.field, stored.as_ref()).map_err(failed)?;
            // Invariant (S6): a copy that can't be named would be left out, and the listing not be whole.
            if of_id.is_empty() && !compared.is_empty() {
                return Err(ListingError::NotWhole(format!(
                    "a document of `{}` has no id, so that its copy can't be named",
                    self.index
                )));
            }
            for id in of_id {
                let address =
                    Address::Document { index: Arc::clone(&self.index), id, routing: None };
                listed.push(Listed { address, fields: compared.clone() });
            }
        }
        Ok((listed, living, (to < reader.max_doc()).then_some(to)))
    }
}

impl Listing for TantivyListing {
    type Item = Listed;
    type Part = TantivyPart;

    async fn parts(&self, count: usize, _: &[Address]) -> Result<Vec<TantivyPart>, ListingError> {
        let (sink, fields) = (Arc::clone(&self.sink), self.fields.clone());
        let commit = Arc::new(blocking(move || Commit::open(&sink, &fields)).await??);
        let segments = commit.searcher.segment_readers().len();
        let count = count.clamp(1, segments.max(1));
        let part = |nth: usize| {
            let segments: Vec<usize> = (nth..segments).step_by(count).collect();
            let of = |segment: &usize| commit.searcher.segment_readers()[*segment].num_docs();
            TantivyPart {
                expected: segments.iter().map(|segment| u64::from(of(segment))).sum(),
                of: Arc::clone(&commit),
                segments,
                next: 0,
                came: 0,
                has_ended: false,
            }
        };
        Ok((0..count).map(part).collect())
    }
}

impl ListingPart for TantivyPart {
    type Item = Listed;

    async fn next(&mut self) -> Result<Option<Vec<Listed>>, ListingError> {
        if self.has_ended {
            return Ok(None);
        }
        let Some(segment) = self.segments.last().copied() else {
            // Invariant (S6): the end is where as many documents came as the commit counts;
            // `every_living_document_is_listed_once`.
            if self.came != self.expected {
                return Err(ListingError::NotWhole(format!(
                    "{} documents came of {} that the commit counts",
                    self.came, self.expected
                )));
            }
            self.has_ended = true;
            return Ok(None);
        };
        let (of, from) = (Arc::clone(&self.of), self.next);
        let (listed, living, next) = blocking(move || of.page(segment, from)).await??;
        self.came += living;
        self.next = next.unwrap_or(0);
        if next.is_none() {
            self.segments.pop();
        }
        Ok(Some(listed))
    }
}
