//! One line to what it brings: a record of Kafka, a bare envelope, or bytes that nobody can read. No I/O.
//!
//! A *record* has `topic` (a text), `partition` and `offset` (numbers) and `value`; `key` may be left out,
//! other fields are not looked at. Its key and value are the texts that stood in Kafka, or null; an
//! object, or anything else that is not a text, stands for its own JSON. Anything that is no record goes
//! on whole, without a key: a bare envelope, or what the decoder makes a dead letter of.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

/// What a line brings.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// The topic that it names.
    pub(super) topic: Option<Cow<'a, str>>,
    pub(super) key: Option<Bytes>,
    pub(super) value: Option<Bytes>,
}

/// Those of the fields that are needed, or that tell a record from a row with a column of that name.
#[derive(Deserialize)]
struct Record<'a> {
    #[serde(borrow)]
    topic: Cow<'a, str>,
    #[serde(rename = "partition")]
    _partition: i32,
    #[serde(rename = "offset")]
    _offset: i64,
    #[serde(borrow)]
    key: Option<&'a RawValue>,
    #[serde(borrow)]
    value: &'a RawValue,
}

/// What stands at the beginning of some files of UTF-8.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads a line without its line feed. None: it is empty. `first` is the first one of its file.
pub(super) fn read(line: &[u8], first: bool) -> Option<Line<'_>> {
    let line = if first { line.strip_prefix(MARK).unwrap_or(line) } else { line };
    let line = line.trim_ascii();
    if line.is_empty() {
        return None;
    }
    // Nothing is searched twice: most bare envelopes are known by what is not in them.
    let may_be_record = memchr::memmem::find(line, b"\"offset\"").is_some();
    let record = if may_be_record { record(line) } else { None };
    Some(record.unwrap_or_else(|| Line {
        topic: None,
        key: None,
        value: Some(Bytes::copy_from_slice(line)),
    }))
}

fn record(line: &[u8]) -> Option<Line<'_>> {
    let record: Record<'_> = serde_json::from_slice(line).ok()?;
    let key = record.key.map_or(Some(None), part)?;
    Some(Line { topic: Some(record.topic), key, value: part(record.value)? })
}

/// The bytes that stood in Kafka. The outer none: a text that can't be one.
fn part(raw: &RawValue) -> Option<Option<Bytes>> {
    let json = raw.get();
    match json.as_bytes() {
        b"null" => Some(None),
        [b'"', ..] => {
            let text: String = serde_json::from_str(json).ok()?;
            Some(Some(Bytes::from(text)))
        }
        other => Some(Some(Bytes::copy_from_slice(other))),
    }
}

/// The value of a line that is longer than a line may be: how it begins, and a word about the rest. It is
/// no JSON whatever stood there, so that the decoder makes it a dead letter.
pub(super) fn cut(head: &[u8], length: u64, length_max: usize) -> Bytes {
    let word = format!(
        "\n[cut by tombstream: the line has {length} bytes, and line_bytes_max is {length_max}]"
    );
    [head, word.as_bytes()].concat().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(bytes: Option<&Bytes>) -> Option<&str> {
        bytes.map(|bytes| std::str::from_utf8(bytes).unwrap())
    }

    /// Topic, key and value.
    fn parts(line: &str) -> (Option<String>, Option<String>, Option<String>) {
        let line = read(line.as_bytes(), false).expect("a line");
        let owned = |text: Option<&str>| text.map(str::to_owned);
        (
            line.topic.map(Cow::into_owned),
            owned(text(line.key.as_ref())),
            owned(text(line.value.as_ref())),
        )
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn a_record_brings_what_stood_in_kafka() {
        let line = r#"{"topic":"t","partition":0,"offset":7,"timestamp":1,"key":"{\"id\":1}",
            "value":"{\"a\":\"\\u00e9\\n\"}","headers":{"a":"b"},"more":[1]}"#;
        assert_eq!(parts(line), (some("t"), some(r#"{"id":1}"#), some(r#"{"a":"\u00e9\n"}"#)));
    }

    #[test]
    fn a_null_value_is_a_tombstone_and_a_null_key_is_none() {
        let line = r#"{"topic":"t","partition":0,"offset":7,"key":null,"value":null}"#;
        assert_eq!(parts(line), (some("t"), None, None));
        let line = r#"{"value":"","offset":-1,"partition":3,"topic":"a\"b"}"#;
        assert_eq!(parts(line), (some("a\"b"), None, some("")));
    }

    #[test]
    fn a_key_and_a_value_may_be_objects() {
        let line = r#"{"topic":"t","partition":0,"offset":7,"key":{"id": 1},"value":{"op": "u", "x":[1]}}"#;
        assert_eq!(parts(line), (some("t"), some(r#"{"id": 1}"#), some(r#"{"op": "u", "x":[1]}"#)));
        let line = r#"{"topic":"t","partition":0,"offset":7,"key":1,"value":[true]}"#;
        assert_eq!(parts(line), (some("t"), some("1"), some("[true]")));
    }

    #[test]
    fn what_is_no_record_goes_on_whole() {
        for line in [
            r#"{"op":"u","source":{"table":"t"},"after":{"id":1}}"#,
            // Rows with columns of such names.
            r#"{"id":1,"topic":"t","value":"v"}"#,
            r#"{"id":1,"topic":"t","partition":"p","offset":1,"value":"v"}"#,
            r#"{"topic":"t","partition":0,"offset":7,"key":"k"}"#,
            r#"{"topic":1,"partition":0,"offset":7,"value":"v"}"#,
            // Nobody can say which of the two was meant.
            r#"{"topic":"t","partition":0,"offset":7,"value":"v","value":"w"}"#,
            // Half a surrogate is no text.
            r#"{"topic":"t","partition":0,"offset":7,"value":"\ud800"}"#,
            r#"{"topic":"t","partition":0,"offset":7,"value":"v"} {}"#,
            r#"{"topic":"t","partition":0,"offset":7,"value":"v""#,
            r#"["offset"]"#,
            "null",
            "\"offset\"",
            "words",
        ] {
            assert_eq!(parts(line), (None, None, some(line)));
        }
        assert_eq!(read(b"\xff\"offset\"", false).unwrap().value.unwrap(), b"\xff\"offset\""[..]);
    }

    #[test]
    fn space_around_a_line_is_no_part_of_it() {
        assert_eq!(parts(" {\"a\":1}\t\r").2, some("{\"a\":1}"));
        for empty in ["", "\r", " \t "] {
            assert_eq!(read(empty.as_bytes(), false), None);
        }
    }

    #[test]
    fn a_byte_order_mark_is_taken_off_the_first_line_alone() {
        let line = "\u{feff}{\"a\":1}".as_bytes();
        assert_eq!(text(read(line, true).unwrap().value.as_ref()), Some("{\"a\":1}"));
        assert_eq!(read(line, false).unwrap().value.unwrap(), line);
        assert_eq!(read(MARK, true), None);
    }

    #[test]
    fn a_line_that_was_cut_is_never_json() {
        let is_json = |value: &[u8]| serde_json::from_slice::<serde_json::Value>(value).is_ok();
        for head in [r#"{"op":"u"}"#, r#"{"op":"u"}   "#, r#"{"a":"b"#, "", "1", "\"a\""] {
            let value = cut(head.as_bytes(), 20, 10);
            assert!(value.starts_with(head.as_bytes()) && !is_json(&value), "{head}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            match read(&line, true) {
                None => {
                    let line = line.strip_prefix(MARK).unwrap_or(&line);
                    prop_assert!(line.trim_ascii().is_empty());
                }
                Some(read) => prop_assert!(read.value.is_some()),
            }
        }

        #[test]
        fn any_json_gives_an_answer(
            line in "(\\{|\"(topic|partition|offset|key|value)\"|[:,\"0-9a-z\\[\\]]|null|\\}){0,40}",
        ) {
            if let Some(Line { topic: None, key, value }) = read(line.as_bytes(), false) {
                prop_assert_eq!(key, None);
                prop_assert_eq!(value.unwrap(), line.trim_ascii());
            }
        }

        #[test]
        fn any_texts_come_back_as_they_were(
            topic in ".*",
            key in proptest::option::of(".*"),
            value in proptest::option::of(".*"),
        ) {
            let record = serde_json::json!({
                "topic": topic, "partition": 1, "offset": 2, "key": key, "value": value,
            });
            prop_assert_eq!(parts(&record.to_string()), (Some(topic), key, value));
        }

        #[test]
        fn any_head_that_is_cut_is_no_json(head in ".*") {
            let value = cut(head.as_bytes(), 100, 10);
            prop_assert!(serde_json::from_slice::<serde_json::Value>(&value).is_err());
        }
    }
}
