//! The little XML that S3 speaks: a tree read whole or not at all, and texts escaped.

use std::fmt::Write as _;

use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::Event;

/// An element, its own text and the elements in it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) name: String,
    pub(super) text: String,
    pub(super) children: Vec<Element>,
}

/// S3's answers are four levels deep.
const DEPTH_MAX: usize = 16;

impl Element {
    /// Reads a document from its first byte to its root's closing tag, or says why it is none.
    ///
    /// Invariant (S6): a document that was cut is no document, however much of it arrived;
    /// `answer.rs`: `an_answer_cut_anywhere_proves_nothing`.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
        let mut reader = Reader::from_str(text);
        let mut open: Vec<Self> = Vec::new();
        let mut root: Option<Self> = None;
        loop {
            let event = reader.read_event().map_err(|error| error.to_string())?;
            let (started, ended) = match event {
                Event::Start(tag) => (Some(tag.local_name().as_ref().to_owned()), false),
                Event::Empty(tag) => (Some(tag.local_name().as_ref().to_owned()), true),
                Event::End(_) => (None, true),
                Event::Text(text) => {
                    // Taken as it stands: no line-end is normalised, since keys may hold them.
                    append(&mut open, &text)?;
                    continue;
                }
                Event::CData(text) => {
                    append(&mut open, &text)?;
                    continue;
                }
                Event::GeneralRef(reference) => {
                    let char = reference.resolve_char_ref().map_err(|error| error.to_string())?;
                    match (char, resolve_predefined_entity(&reference)) {
                        (Some(char), _) => append(&mut open, char.encode_utf8(&mut [0; 4]))?,
                        (None, Some(text)) => append(&mut open, text)?,
                        (None, None) => return Err("an entity that S3 does not use".into()),
                    }
                    continue;
                }
                Event::DocType(_) => return Err("a document type".into()),
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) => continue,
                Event::Eof => break,
            };
            if let Some(name) = started {
                if root.is_some() || open.len() == DEPTH_MAX {
                    return Err("more than one root, or too deep".into());
                }
                open.push(Self { name, ..Self::default() });
            }
            if ended {
                let element = open.pop().ok_or("an end without a start")?;
                match open.last_mut() {
                    Some(parent) => parent.children.push(element),
                    None => root = Some(element),
                }
            }
        }
        if !open.is_empty() {
            return Err("cut before its end".into());
        }
        root.ok_or_else(|| "no element".into())
    }

    /// The text of the first child of that name.
    pub(super) fn child(&self, name: &str) -> Option<&str> {
        self.children.iter().find(|child| child.name == name).map(|child| child.text.as_str())
    }
}

fn append(open: &mut [Element], text: &str) -> Result<(), String> {
    match open.last_mut() {
        Some(element) => element.text.push_str(text),
        None if text.trim().is_empty() => {}
        None => return Err("text outside of the root".into()),
    }
    Ok(())
}

/// Whether XML 1.0 can carry this text at all, escaped or not.
pub(super) fn is_writable(text: &str) -> bool {
    text.chars().all(|char| match char {
        '\t' | '\n' | '\r' => true,
        '\u{fffe}' | '\u{ffff}' => false,
        other => other >= ' ',
    })
}

/// Writes `text` so that any reader reads it back as it is.
pub(super) fn escape(text: &str, out: &mut String) {
    for char in text.chars() {
        match char {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            // A raw one would be normalised: `\r` to `\n`, and space at the ends perhaps trimmed.
            '\t' | '\n' | '\r' | ' ' | '\u{7f}'..='\u{9f}' | '\u{2028}' => {
                write!(out, "&#{};", u32::from(char)).expect("a string takes all");
            }
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_escaped_reads_back_byte_for_byte() {
        let key = " a&b<c>\"d'\r\n\te\u{85}\u{2028}f😀e\u{301}é ]]> ";
        let mut document = String::from("<K>");
        escape(key, &mut document);
        document.push_str("</K>");
        assert!(!document.contains('\r') && !document.contains('\n'));
        assert_eq!(Element::parse(document.as_bytes()).unwrap().text, key);
    }

    #[test]
    fn what_is_no_whole_document_is_refused() {
        for wrong in [
            "",
            "   ",
            "<a>",
            "<a><b></a></b>",
            "<a></a><a></a>",
            "<a></a>x",
            "</a>",
            "<a>&unheard;</a>",
            "<!DOCTYPE a [<!ENTITY x 'y'>]><a>&x;</a>",
            "<html><body><p>Bad gateway</body></html>",
        ] {
            assert!(Element::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
        assert!(Element::parse(b"<a>\xff</a>").is_err());
        let deep = "<a>".repeat(50) + &"</a>".repeat(50);
        assert!(Element::parse(deep.as_bytes()).is_err());
    }

    #[test]
    fn a_control_character_can_not_be_written() {
        assert!(is_writable("a\r\n\t😀"));
        for wrong in ["\u{0}", "a\u{1}", "\u{1f}", "\u{ffff}"] {
            assert!(!is_writable(wrong));
        }
    }
}
