//! A field by whose terms exactly the documents with a value are found.

use ::tantivy::schema::{Field, FieldType, IndexRecordOption, NumericOptions, Schema};
use ::tantivy::tokenizer::{MAX_TOKEN_LEN, RAW_TOKENIZER_NAME};
use ::tantivy::{DocAddress, DocSet as _, Searcher, TERMINATED, TantivyDocument, Term};

/// A field of whose values each is one term, and each term one value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exact {
    field: Field,
    kind: Kind,
    counted: Counted,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Text,
    U64,
    I64,
}

/// What tells how many values of the field a document has.
#[derive(Clone, Copy, Debug)]
enum Counted {
    Norms,
    Stored,
}

/// The living documents of one term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Those that have this value alone.
    pub(super) own: u64,
    /// Those that have another value too, and so are somebody else's as well.
    pub(super) shared: u64,
}

impl Exact {
    /// The field `name`, or why its terms don't find exactly the documents with a value.
    ///
    /// Invariant (S8): a term of a tokenized field is a word, and matches other documents; no such
    /// field is ever asked. `tests/tantivy.rs`: `a_field_that_is_not_exact_is_refused`.
    pub(super) fn of(schema: &Schema, name: &str) -> Result<Self, String> {
        let field =
            schema.get_field(name).map_err(|_| "the schema has no such field".to_owned())?;
        let number = |options: &NumericOptions| {
            (options.is_indexed(), options.fieldnorms(), options.is_stored())
        };
        let (kind, (indexed, norms, stored)) = match schema.get_field_entry(field).field_type() {
            FieldType::Str(options) => {
                let indexing = options.get_indexing_options();
                if let Some(tokenizer) =
                    indexing.map(|it| it.tokenizer()).filter(|it| *it != RAW_TOKENIZER_NAME)
                {
                    return Err(format!(
                        "it is tokenized ({tokenizer}), so its terms match other documents too: \
                         index it as it is (STRING, tokenizer raw)"
                    ));
                }
                let norms = indexing.is_some_and(|it| it.fieldnorms());
                (Kind::Text, (indexing.is_some(), norms, options.is_stored()))
            }
            FieldType::U64(options) => (Kind::U64, number(options)),
            FieldType::I64(options) => (Kind::I64, number(options)),
            other => {
                let kind = other.value_type();
                return Err(format!("it is of type {kind:?}: only text, u64 and i64 are exact"));
            }
        };
        if !indexed {
            return Err("it is not indexed, so it has no terms: index it".to_owned());
        }
        let counted = match (norms, stored) {
            (true, _) => Counted::Norms,
            (false, true) => Counted::Stored,
            (false, false) => {
                return Err("it has neither field norms nor stored values, so nothing tells a \
                            document with several values: give it either"
                    .to_owned());
            }
        };
        Ok(Self { field, kind, counted })
    }

    /// The term of `value`, byte for byte, or why there is none.
    pub(super) fn term(&self, value: &str) -> Result<Term, &'static str> {
        let number = "the value is no number as the field's type writes it";
        match self.kind {
            Kind::Text if value.len() > MAX_TOKEN_LEN => {
                Err("the value is longer than any indexed term")
            }
            Kind::Text => Ok(Term::from_field_text(self.field, value)),
            Kind::U64 => match value.parse::<u64>() {
                Ok(read) if read.to_string() == value => Ok(Term::from_field_u64(self.field, read)),
                _ => Err(number),
            },
            Kind::I64 => match value.parse::<i64>() {
                Ok(read) if read.to_string() == value => Ok(Term::from_field_i64(self.field, read)),
                _ => Err(number),
            },
        }
    }

    /// Counts the living documents of `term`.
    pub(super) fn find(&self, searcher: &Searcher, term: &Term) -> ::tantivy::Result<Found> {
        let mut found = Found::default();
        for (segment, reader) in (0..).zip(searcher.segment_readers()) {
            let index = reader.inverted_index(self.field)?;
            let Some(mut postings) = index.read_postings(term, IndexRecordOption::Basic)? else {
                continue;
            };
            while postings.doc() != TERMINATED {
                let doc = postings.doc();
                if !reader.is_deleted(doc) {
                    let values = match self.counted {
                        // Exact for the small numbers that matter here.
                        Counted::Norms => {
                            reader.get_fieldnorms_reader(self.field)?.fieldnorm(doc) as usize
                        }
                        Counted::Stored => {
                            let stored: TantivyDocument =
                                searcher.doc(DocAddress::new(segment, doc))?;
                            stored.get_all(self.field).count()
                        }
                    };
                    match values {
                        1 => found.own += 1,
                        _ => found.shared += 1,
                    }
                }
                postings.advance();
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use ::tantivy::schema::{
        FAST, INDEXED, STORED, STRING, SchemaBuilder, TEXT, TextFieldIndexing, TextOptions,
    };

    use super::*;

    fn exact(build: impl FnOnce(&mut SchemaBuilder) -> Field) -> Result<Exact, String> {
        let mut schema = Schema::builder();
        build(&mut schema);
        Exact::of(&schema.build(), "id")
    }

    #[test]
    fn untokenized_text_and_whole_numbers_are_exact() {
        for field in [
            exact(|it| it.add_text_field("id", STRING)),
            exact(|it| it.add_text_field("id", STRING | STORED | FAST)),
            exact(|it| it.add_u64_field("id", INDEXED)),
            exact(|it| it.add_i64_field("id", INDEXED | STORED)),
        ] {
            field.unwrap();
        }
    }

    #[test]
    fn what_matches_other_documents_too_is_refused_with_its_reason() {
        let bare = TextFieldIndexing::default().set_tokenizer("raw").set_fieldnorms(false);
        let bare = TextOptions::default().set_indexing_options(bare);
        let lower = TextFieldIndexing::default().set_tokenizer("lowercase");
        let lower = TextOptions::default().set_indexing_options(lower);
        for (field, reason) in [
            (exact(|it| it.add_text_field("id", TEXT)), "tokenized (default)"),
            (exact(|it| it.add_text_field("id", lower)), "tokenized (lowercase)"),
            (exact(|it| it.add_text_field("id", STORED)), "not indexed"),
            (exact(|it| it.add_u64_field("id", FAST)), "not indexed"),
            (exact(|it| it.add_f64_field("id", INDEXED)), "type F64"),
            (exact(|it| it.add_json_field("id", STRING)), "type Json"),
            (exact(|it| it.add_text_field("ID", STRING)), "no such field"),
            (exact(|it| it.add_json_field("i", STRING)), "no such field"),
            (exact(|it| it.add_text_field("id", bare)), "neither field norms"),
        ] {
            let problem = field.unwrap_err();
            assert!(problem.contains(reason), "{problem}");
        }
    }

    #[test]
    fn a_value_is_a_term_byte_for_byte_or_none() {
        let text = exact(|it| it.add_text_field("id", STRING)).unwrap();
        let term = |value: &str| text.term(value).unwrap();
        assert_ne!(term("caf\u{e9}"), term("cafe\u{301}"));
        assert_ne!(term("1"), term("01"));
        assert_eq!(term("it's \"it\"\n").value().as_str(), Some("it's \"it\"\n"));
        text.term(&"x".repeat(MAX_TOKEN_LEN)).unwrap();
        assert!(text.term(&"x".repeat(MAX_TOKEN_LEN + 1)).is_err());
        let unsigned = exact(|it| it.add_u64_field("id", INDEXED)).unwrap();
        let signed = exact(|it| it.add_i64_field("id", INDEXED)).unwrap();
        unsigned.term("18446744073709551615").unwrap();
        signed.term("-9223372036854775808").unwrap();
        for odd in ["", "-1", "+1", "01", "1.0", " 1", "18446744073709551616", "x"] {
            assert!(unsigned.term(odd).is_err(), "{odd:?}");
        }
        for odd in ["-0", "+1", "-01", "9223372036854775808"] {
            assert!(signed.term(odd).is_err(), "{odd:?}");
        }
    }
}
