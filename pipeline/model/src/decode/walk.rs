//! The structure of JSON, walked without reading it: where names stand, how deep, and where their values begin.
//!
//! Nothing is validated on the way. Of text that is JSON the names are the right ones; of other text they
//! are some.

/// A walk through the value that begins with the first bracket it meets.
pub(super) struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
}

/// What a walk meets next.
pub(super) enum Met<'a> {
    Name(Name<'a>),
    /// The value is over, and what follows it begins here.
    End(usize),
}

/// The name of an object's field.
pub(super) struct Name<'a> {
    /// 1 for the fields of the outermost object.
    pub(super) depth: usize,
    /// As it is spelled.
    pub(super) text: &'a [u8],
    /// Whether the spelling has a backslash, so that it may be any name's.
    pub(super) is_escaped: bool,
    /// Where the value begins.
    pub(super) value: usize,
}

impl<'a> Walk<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at, depth: 0 }
    }

    /// The next name, or the end; none where the text ends before.
    pub(super) fn next(&mut self) -> Option<Met<'a>> {
        loop {
            let byte = *self.bytes.get(self.at)?;
            self.at += 1;
            match byte {
                b'"' => {
                    let start = self.at;
                    let (end, is_escaped) = string_end(self.bytes, start)?;
                    self.at = skip_space(self.bytes, end + 1);
                    if self.bytes.get(self.at) == Some(&b':') {
                        self.at = skip_space(self.bytes, self.at + 1);
                        return Some(Met::Name(Name {
                            depth: self.depth,
                            text: &self.bytes[start..end],
                            is_escaped,
                            value: self.at,
                        }));
                    }
                }
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.checked_sub(1)?;
                    if self.depth == 0 {
                        return Some(Met::End(self.at));
                    }
                }
                _ => {}
            }
        }
    }
}

/// Where the white space from `at` on ends.
pub(super) fn skip_space(bytes: &[u8], mut at: usize) -> usize {
    while matches!(bytes.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
        at += 1;
    }
    at
}

/// The string whose first quote is at `at`, as it is spelled; none if it is none or has a backslash.
pub(super) fn plain_string(bytes: &[u8], at: usize) -> Option<&[u8]> {
    if bytes.get(at) != Some(&b'"') {
        return None;
    }
    match string_end(bytes, at + 1)? {
        (end, false) => Some(&bytes[at + 1..end]),
        (_, true) => None,
    }
}

/// Where the string that begins at `at` has its last quote, and whether there is a backslash in it.
fn string_end(bytes: &[u8], mut at: usize) -> Option<(usize, bool)> {
    let mut is_escaped = false;
    loop {
        let found = quote_or_backslash(bytes, at)?;
        if bytes[found] == b'"' {
            return Some((found, is_escaped));
        }
        is_escaped = true;
        at = found + 2;
    }
}

/// The first quote or backslash from `at` on, eight bytes at a time: strings of change events are short, so
/// that a call for each costs more than it saves. The test for a zero byte is that of Mycroft: its lowest
/// hit is always true.
fn quote_or_backslash(bytes: &[u8], at: usize) -> Option<usize> {
    const LOW: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let zero = |word: u64| word.wrapping_sub(LOW) & !word & HIGH;
    let mut place = at;
    let (words, rest) = bytes.get(at..)?.as_chunks::<8>();
    for word in words {
        let word = u64::from_le_bytes(*word);
        let hits = zero(word ^ (LOW * b'"' as u64)) | zero(word ^ (LOW * b'\\' as u64));
        if hits != 0 {
            return Some(place + hits.trailing_zeros() as usize / 8);
        }
        place += 8;
    }
    rest.iter().position(|byte| matches!(byte, b'"' | b'\\')).map(|found| place + found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<(usize, String)> {
        let mut walk = Walk::new(text.as_bytes(), 0);
        let mut names = Vec::new();
        while let Some(Met::Name(name)) = walk.next() {
            names.push((name.depth, String::from_utf8(name.text.to_vec()).unwrap()));
        }
        names
    }

    #[test]
    fn names_are_told_from_strings_at_every_depth() {
        let text =
            r#"{"a" : "b:","c\"{":{"d":["e",{"f":1}, "g\\"]}, "h":"}\"{", "long name of it":null}"#;
        let expected =
            [(1, "a"), (1, "c\\\"{"), (2, "d"), (4, "f"), (1, "h"), (1, "long name of it")];
        assert_eq!(names(text), expected.map(|(depth, name)| (depth, name.to_owned())));
    }

    #[test]
    fn the_first_quote_or_backslash_is_found_wherever_it_is() {
        for length in 0..40_usize {
            for found in 0..=length {
                for (byte, other) in [(b'"', b'\\'), (b'\\', b'"')] {
                    // Bytes beside the sought ones, which a careless test for zero takes for them.
                    let mut bytes = vec![b'"' + 1; length];
                    bytes.extend([other; 3]);
                    if found < length {
                        bytes[found] = byte;
                    }
                    assert_eq!(quote_or_backslash(&bytes, 0), Some(found), "{length} {found}");
                }
            }
        }
        assert_eq!(quote_or_backslash(b"0123456789", 0), None);
        assert_eq!(quote_or_backslash(b"", 1), None);
    }

    #[test]
    fn text_that_ends_too_early_has_no_end() {
        for text in ["", "{", "{\"a", "{\"a\\", "{\"a\":", "}", "{\"a\":[}"] {
            let mut walk = Walk::new(text.as_bytes(), 0);
            while let Some(met) = walk.next() {
                assert!(!matches!(met, Met::End(_)), "{text}");
            }
        }
    }
}
