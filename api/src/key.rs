//! Keys in paths: segments to canonical keys, and back.

use axum::extract::RawPathParams;
use serde_json::Value;
use tombstream_model::{Key, KeyKind, Relation};

use crate::error::ApiError;

/// Second segments that are routes of a relation itself, and what clients take away. A row whose key begins with
/// one of them is reached by encoding a letter: `/documents/%64eletions`.
const OURS: [&str; 7] = ["deletions", "parked", "breaker", "bulk", "rehydrations", ".", ".."];

/// The segment names of `relation`'s key in a route: the columns', where a route can spell them.
pub(crate) fn segment_names(relation: &Relation) -> Vec<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let name = |(index, column): (usize, &str)| {
        if column.bytes().all(plain) { column.to_owned() } else { format!("key_{}", index + 1) }
    };
    let names: Vec<_> =
        relation.key.iter().map(|column| &*column.name).enumerate().map(name).collect();
    let mut unique = names.clone();
    unique.sort();
    unique.dedup();
    if unique.len() == names.len() {
        return names;
    }
    (1..=names.len()).map(|number| format!("key_{number}")).collect()
}

/// The canonical key of the segments, which are percent-decoded already.
pub(crate) fn parse(
    relation: &Relation,
    segments: &RawPathParams,
) -> Result<Vec<String>, ApiError> {
    parse_texts(relation, segments.iter().map(|(_, text)| text).collect())
}

/// The canonical key of texts, or which column is wrong.
pub(crate) fn parse_texts(relation: &Relation, texts: Vec<&str>) -> Result<Vec<String>, ApiError> {
    match Key::new(relation.key_kinds(), texts.iter().copied()) {
        Ok(key) => Ok(key.columns().map(String::from).collect()),
        Err(error) => {
            let wrong = relation
                .key
                .iter()
                .zip(texts)
                .find_map(|(column, text)| Some((column, column.kind.canonical(text).err()?)));
            Err(ApiError::Key(match wrong {
                Some((column, error)) => format!("key column `{}`: {error}", column.name),
                None => error.to_string(),
            }))
        }
    }
}

/// The path of a row, from the root.
pub(crate) fn path(api_path: &str, key: &[String]) -> String {
    let mut path = format!("/{api_path}");
    for column in key {
        path.push('/');
        push_segment(&mut path, column);
    }
    path
}

/// A key as JSON: of one column its value, of several an array.
pub(crate) fn json(relation: &Relation, key: &[String]) -> Value {
    let value = |(kind, text): (KeyKind, &String)| match kind {
        KeyKind::Bigint => text.parse::<i64>().map_or_else(|_| text.as_str().into(), Value::from),
        KeyKind::Uuid | KeyKind::Text => text.as_str().into(),
    };
    let mut values: Vec<_> = relation.key_kinds().zip(key).map(value).collect();
    if values.len() == 1 { values.remove(0) } else { Value::Array(values) }
}

/// Encodes everything that is not unreserved. A text that is a segment of ours, or that clients
/// take away (`.`), is encoded where it needs not be, so that it reaches the row.
fn push_segment(path: &mut String, text: &str) {
    let ours = OURS.contains(&text);
    for (index, byte) in text.bytes().enumerate() {
        let unreserved = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if unreserved && !(ours && index == 0) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tombstream_model::KeyColumn;

    use super::*;
    use crate::config::tests::documents;

    fn relation(key: &[(&str, KeyKind)]) -> Relation {
        let mut relation = Arc::unwrap_or_clone(documents().relation);
        relation.key = key
            .iter()
            .map(|(name, kind)| KeyColumn { name: (*name).into(), kind: *kind })
            .collect();
        relation
    }

    #[test]
    fn a_segment_is_encoded_whole() {
        for (text, segment) in [
            ("a/b", "a%2Fb"),
            ("a b?#%", "a%20b%3F%23%25"),
            ("it's \"x\"", "it%27s%20%22x%22"),
            ("😀", "%F0%9F%98%80"),
            ("A-z_0.~", "A-z_0.~"),
            ("deletions", "%64eletions"),
            ("..", "%2E."),
        ] {
            assert_eq!(path("docs", &[text.into()]), format!("/docs/{segment}"), "{text}");
        }
        assert_eq!(path("docs", &["a".into(), "b/c".into()]), "/docs/a/b%2Fc");
    }

    #[test]
    fn a_bad_key_is_named_by_its_column() {
        let relation = relation(&[("tenant", KeyKind::Bigint), ("id", KeyKind::Uuid)]);
        let key = parse_texts(&relation, vec!["007", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"]);
        assert_eq!(key.unwrap(), ["7", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]);
        let error = parse_texts(&relation, vec!["7", "x"]).unwrap_err().to_string();
        assert_eq!(error, "bad key: key column `id`: not a uuid");
        let error = parse_texts(&relation, vec!["7"]).unwrap_err().to_string();
        assert_eq!(error, "bad key: 1 key columns, expected 2");
    }

    #[test]
    fn a_key_is_shown_as_its_type() {
        let one = relation(&[("id", KeyKind::Bigint)]);
        assert_eq!(json(&one, &["7".into()]), serde_json::json!(7));
        let two = relation(&[("tenant", KeyKind::Text), ("id", KeyKind::Bigint)]);
        assert_eq!(json(&two, &["a/b".into(), "7".into()]), serde_json::json!(["a/b", 7]));
    }

    #[test]
    fn segments_have_names_of_their_own() {
        let odd = relation(&[("a b", KeyKind::Text), ("key_1", KeyKind::Text)]);
        assert_eq!(segment_names(&odd), ["key_1", "key_2"]);
        let plain = relation(&[("tenant", KeyKind::Text), ("id", KeyKind::Text)]);
        assert_eq!(segment_names(&plain), ["tenant", "id"]);
    }
}
