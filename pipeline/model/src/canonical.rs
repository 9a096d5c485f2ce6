//! JSON with one spelling: what is hashed, byte for byte.
//!
//! RFC 8785, for the part of JSON that receipts are made of: objects whose names are ASCII, arrays, texts,
//! whole numbers, booleans, null. There Python's `json.dumps(…, sort_keys=True, separators=(",", ":"),
//! ensure_ascii=False)` writes the same bytes. What receipts say is in `receipt.rs`.

use serde_json::Value;

/// Why a value has no canonical spelling here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotCanonical {
    /// Fractions are spelled differently by different programs.
    #[error("the number {0} is not whole")]
    Fraction(String),
    /// Sorting such names differs between programs.
    #[error("the name {0:?} is not ASCII")]
    Name(String),
}

/// Appends the canonical spelling of `value`.
pub(crate) fn canonical(value: &Value, out: &mut Vec<u8>) -> Result<(), NotCanonical> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) if number.is_i64() || number.is_u64() => {
            out.extend_from_slice(number.to_string().as_bytes());
        }
        Value::Number(number) => return Err(NotCanonical::Fraction(number.to_string())),
        Value::String(string) => text(string, out),
        Value::Array(items) => {
            out.push(b'[');
            for (n, item) in items.iter().enumerate() {
                if n > 0 {
                    out.push(b',');
                }
                canonical(item, out)?;
            }
            out.push(b']');
        }
        Value::Object(members) => {
            // Sorted already, unless some crate of the build asks serde_json to keep the order.
            if members.keys().is_sorted() {
                return object(members.iter(), out);
            }
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(name, _)| name.as_bytes());
            return object(members.into_iter(), out);
        }
    }
    Ok(())
}

/// An object of these members, in this order.
fn object<'v>(
    members: impl Iterator<Item = (&'v String, &'v Value)>,
    out: &mut Vec<u8>,
) -> Result<(), NotCanonical> {
    out.push(b'{');
    for (n, (name, member)) in members.enumerate() {
        if !name.is_ascii() {
            return Err(NotCanonical::Name(name.clone()));
        }
        if n > 0 {
            out.push(b',');
        }
        text(name, out);
        out.push(b':');
        canonical(member, out)?;
    }
    out.push(b'}');
    Ok(())
}

/// A text: what must be escaped, in the shortest form, and all else as it is.
fn text(string: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let mut from = 0;
    for (at, byte) in string.bytes().enumerate() {
        let short = match byte {
            b'"' => b'"',
            b'\\' => b'\\',
            0x08 => b'b',
            0x09 => b't',
            0x0a => b'n',
            0x0c => b'f',
            0x0d => b'r',
            0x00..=0x1f => b'u',
            _ => continue,
        };
        out.extend_from_slice(&string.as_bytes()[from..at]);
        out.extend_from_slice(&[b'\\', short]);
        if short == b'u' {
            out.extend_from_slice(format!("{byte:04x}").as_bytes());
        }
        from = at + 1;
    }
    out.extend_from_slice(&string.as_bytes()[from..]);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(json: &str) -> String {
        let mut out = Vec::new();
        canonical(&serde_json::from_str(json).unwrap(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn one_value_has_one_spelling() {
        assert_eq!(
            spelled("{ \"b\" : [1, -2, true,null ], \"a\":{}, \"B\":\"\\u00e9\\/\" }"),
            "{\"B\":\"é/\",\"a\":{},\"b\":[1,-2,true,null]}"
        );
    }

    #[test]
    fn texts_are_escaped_as_rfc_8785_says() {
        assert_eq!(
            spelled(r#""\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"\/\u0008\u007f""#),
            "\"€$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\\b\u{7f}\""
        );
    }

    #[test]
    fn what_programs_spell_differently_is_refused() {
        let refused = |json: &str| {
            canonical(&serde_json::from_str(json).unwrap(), &mut Vec::new()).unwrap_err()
        };
        assert_eq!(refused("[1.5]"), NotCanonical::Fraction("1.5".into()));
        assert_eq!(refused("{\"é\":1}"), NotCanonical::Name("é".into()));
    }
}
