//! JSON, written from front to back into one buffer.

use std::fmt::{Display, Write as _};

use bytes::Bytes;

/// A text of JSON that grows.
#[derive(Debug, Default)]
pub(super) struct Json {
    text: String,
    /// Whether something stands before in this object or list.
    follows: bool,
}

impl Json {
    pub(super) fn object(&mut self, fill: impl FnOnce(&mut Self)) {
        self.enclosed('{', '}', fill);
    }

    pub(super) fn list(&mut self, fill: impl FnOnce(&mut Self)) {
        self.enclosed('[', ']', fill);
    }

    fn enclosed(&mut self, open: char, close: char, fill: impl FnOnce(&mut Self)) {
        self.text.push(open);
        self.follows = false;
        fill(self);
        self.text.push(close);
        self.follows = true;
    }

    /// A comma, if something stands before. An element of a list begins with it.
    pub(super) fn comma(&mut self) {
        if self.follows {
            self.text.push(',');
        }
        self.follows = true;
    }

    /// The name of a field; its value must follow.
    pub(super) fn name(&mut self, name: &str) {
        self.comma();
        self.text(name);
        self.text.push(':');
    }

    pub(super) fn text(&mut self, text: &str) {
        self.text.push('"');
        let mut rest = text;
        // What needs no escape goes in whole pieces.
        while let Some(at) = rest.find(|c: char| c < ' ' || c == '"' || c == '\\') {
            self.text.push_str(&rest[..at]);
            let escaped = rest.as_bytes()[at];
            match escaped {
                b'"' => self.text.push_str("\\\""),
                b'\\' => self.text.push_str("\\\\"),
                b'\n' => self.text.push_str("\\n"),
                b'\r' => self.text.push_str("\\r"),
                b'\t' => self.text.push_str("\\t"),
                control => {
                    write!(self.text, "\\u{control:04x}").expect("a string takes everything");
                }
            }
            rest = &rest[at + 1..];
        }
        self.text.push_str(rest);
        self.text.push('"');
    }

    /// A number, or another token that needs no escape.
    pub(super) fn number(&mut self, number: impl Display) {
        write!(self.text, "{number}").expect("a string takes everything");
    }

    pub(super) fn null(&mut self) {
        self.text.push_str("null");
    }

    pub(super) fn into_bytes(self) -> Bytes {
        self.text.into_bytes().into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_text_is_read_back_as_it_was(text in any::<String>()) {
            let mut json = Json::default();
            json.text(&text);
            let read: String = serde_json::from_slice(&json.into_bytes()).unwrap();
            prop_assert_eq!(read, text);
        }
    }

    #[test]
    fn commas_stand_between_and_nowhere_else() {
        let mut json = Json::default();
        json.object(|json| {
            json.name("empty");
            json.object(|_| {});
            json.name("list");
            json.list(|json| {
                for number in [1, 2] {
                    json.comma();
                    json.number(number);
                }
                json.comma();
                json.list(|_| {});
            });
            json.name("last");
            json.null();
        });
        let text = String::from_utf8(json.into_bytes().to_vec()).unwrap();
        assert_eq!(text, r#"{"empty":{},"list":[1,2,[]],"last":null}"#);
    }
}
