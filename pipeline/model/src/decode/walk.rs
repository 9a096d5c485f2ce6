//! The structure of JSON, walked without reading it: where names stand, how deep, and where their values begin.
//!
//! Nothing is validated on the way. Of text that is JSON the names are the right ones; of other text they
//! are some. What tells the structure (quotes, backslashes, brackets) is found for 64 bytes at a time, as
//! simdjson does (Langdale and Lemire, "Parsing gigabytes of JSON per second", 2019); the rest of the bytes is
//! not touched.

use wide::u8x64;

/// A walk through the value that begins with the first bracket it meets.
pub(super) struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
    block: Block,
}

/// What stands in 64 bytes, a bit for each.
struct Block {
    start: usize,
    /// Quotes and backslashes.
    quotes: u64,
    brackets: u64,
}

impl Block {
    fn load(bytes: &[u8], start: usize) -> Self {
        let rest = &bytes[start.min(bytes.len())..];
        let text = rest.first_chunk::<64>().copied().unwrap_or_else(|| {
            let mut text = [0; 64];
            text[..rest.len()].copy_from_slice(rest);
            text
        });
        let text = u8x64::from(text);
        let is = |byte: u8| text.simd_eq(u8x64::splat(byte));
        // Square brackets differ from curly ones in this bit, and nothing else becomes one of them by it.
        let curly = text | u8x64::splat(0x20);
        let is_curly = |byte: u8| curly.simd_eq(u8x64::splat(byte));
        Self {
            start,
            quotes: (is(b'"') | is(b'\\')).to_bitmask(),
            brackets: (is_curly(b'{') | is_curly(b'}')).to_bitmask(),
        }
    }
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
        Self { bytes, at, depth: 0, block: Block::load(bytes, at) }
    }

    /// The next name, or the end; none where the text ends before.
    pub(super) fn next(&mut self) -> Option<Met<'a>> {
        loop {
            let found = self.find(|block| block.quotes | block.brackets)?;
            self.at = found + 1;
            match self.bytes[found] {
                b'"' => {
                    let start = self.at;
                    let (end, is_escaped) = self.string_end()?;
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
                // A backslash outside of a string: no JSON.
                _ => return None,
            }
        }
    }

    /// Where the string ends whose first byte is the next one, and whether there is a backslash in it.
    fn string_end(&mut self) -> Option<(usize, bool)> {
        let mut is_escaped = false;
        loop {
            let found = self.find(|block| block.quotes)?;
            if self.bytes[found] == b'"' {
                return Some((found, is_escaped));
            }
            is_escaped = true;
            self.at = found + 2;
        }
    }

    /// The next byte from here on that is one of these.
    fn find(&mut self, of: impl Fn(&Block) -> u64) -> Option<usize> {
        loop {
            let offset = self.at - self.block.start;
            if offset < 64 {
                let left = of(&self.block) & (u64::MAX << offset);
                if left != 0 {
                    return Some(self.block.start + left.trailing_zeros() as usize);
                }
                self.at = self.block.start + 64;
            }
            if self.at >= self.bytes.len() {
                return None;
            }
            self.block = Block::load(self.bytes, self.at);
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

/// The string whose first quote is at `at`, as it is spelled; none if it is none or has a backslash. For
/// strings that are short: an op, a table's name.
pub(super) fn plain_string(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let text = bytes.get(at..)?.strip_prefix(b"\"")?;
    let end = text.iter().position(|byte| matches!(byte, b'"' | b'\\'))?;
    (text[end] == b'"').then(|| &text[..end])
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

    /// Beside a walk that looks at each byte.
    #[test]
    fn structure_is_found_wherever_it_stands_in_a_block() {
        for length in 0..140_usize {
            let pad = "x".repeat(length);
            let text = format!("{{\"{pad}\":\"\\\\\",\"b{pad}\\\"\":[{{\"{pad}\":{{}}}}]}}");
            let expected = [(1, pad.clone()), (1, format!("b{pad}\\\"")), (3, pad.clone())];
            assert_eq!(names(&text), expected, "{text}");
            for start in 0..3 {
                let shifted = format!("{}{text} ", " ".repeat(start));
                let mut walk = Walk::new(shifted.as_bytes(), start);
                let mut end = None;
                while let Some(met) = walk.next() {
                    if let Met::End(at) = met {
                        end = Some(at);
                        break;
                    }
                }
                assert_eq!(end, Some(start + text.len()));
            }
        }
        // Every other byte is nothing.
        for byte in (0..=255_u8).filter(|byte| !b"\"\\{}[]".contains(byte)) {
            let block = Block::load(&[byte; 64], 0);
            assert_eq!((block.quotes, block.brackets), (0, 0), "{byte}");
        }
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
