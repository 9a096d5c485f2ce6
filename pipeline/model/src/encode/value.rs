//! One column's value in Debezium's form, by its type.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::json::Json;
use super::number::Decimal;
use super::time;
use crate::address::UNAVAILABLE;
use crate::wal::{Value, WalColumn};

/// The object ids of the types that are not shown as their text; they are part of Postgres's protocol
/// (`src/include/catalog/pg_type.dat`).
mod oid {
    pub(super) const BOOL: u32 = 16;
    pub(super) const BYTEA: u32 = 17;
    pub(super) const INT8: u32 = 20;
    pub(super) const INT2: u32 = 21;
    pub(super) const INT4: u32 = 23;
    pub(super) const OID: u32 = 26;
    pub(super) const FLOAT4: u32 = 700;
    pub(super) const FLOAT8: u32 = 701;
    pub(super) const DATE: u32 = 1082;
    pub(super) const TIME: u32 = 1083;
    pub(super) const TIMESTAMP: u32 = 1114;
    pub(super) const TIMESTAMPTZ: u32 = 1184;
    pub(super) const INTERVAL: u32 = 1186;
    pub(super) const TIMETZ: u32 = 1266;
    pub(super) const NUMERIC: u32 = 1700;

    /// The type of an array's elements.
    pub(super) fn element(array: u32) -> Option<u32> {
        Some(match array {
            1000 => BOOL,
            1001 => BYTEA,
            1005 => INT2,
            1007 => INT4,
            1009 | 1014 | 1015 | 2951 => 25,
            1016 => INT8,
            1021 => FLOAT4,
            1022 => FLOAT8,
            1115 => TIMESTAMP,
            1182 => DATE,
            1183 => TIME,
            1185 => TIMESTAMPTZ,
            1231 => NUMERIC,
            _ => return None,
        })
    }
}

/// Writes the value. What is not as its type says comes as its text: nothing is left out.
pub(super) fn write(column: &WalColumn, value: Value<'_>, json: &mut Json) {
    match value {
        Value::Null => json.null(),
        Value::Unchanged => json.text(UNAVAILABLE),
        Value::Text(bytes) => {
            let text = String::from_utf8_lossy(bytes);
            match oid::element(column.type_oid) {
                Some(element) => {
                    if !list(element, column.type_modifier, &text, json) {
                        json.text(&text);
                    }
                }
                None => scalar(column.type_oid, column.type_modifier, &text, json),
            }
        }
    }
}

fn scalar(type_oid: u32, modifier: i32, text: &str, json: &mut Json) {
    // A precision of at most three digits fits milliseconds.
    let millis = (0..=3).contains(&modifier);
    let number = match type_oid {
        oid::BOOL => match text {
            "t" => return json.number(true),
            "f" => return json.number(false),
            _ => None,
        },
        oid::INT2 | oid::INT4 | oid::INT8 | oid::OID => text.parse::<i64>().ok(),
        oid::FLOAT4 => {
            return float(text.parse::<f32>().ok().filter(|it| it.is_finite()), text, json);
        }
        oid::FLOAT8 => {
            return float(text.parse::<f64>().ok().filter(|it| it.is_finite()), text, json);
        }
        oid::DATE => time::days_since_1970(text),
        oid::TIME => time::since_midnight(text, millis),
        oid::TIMESTAMP => time::since_1970(text, millis),
        oid::INTERVAL => time::interval_micros(text),
        oid::TIMESTAMPTZ => return json.text(time::zoned(text).as_deref().unwrap_or(text)),
        oid::TIMETZ => return json.text(time::zoned_time(text).as_deref().unwrap_or(text)),
        oid::NUMERIC => return decimal(modifier, text, json),
        oid::BYTEA => return bytes(text, json),
        _ => None,
    };
    match number {
        Some(number) => json.number(number),
        None => json.text(text),
    }
}

/// As Java's `Double.toString` spells it where JSON takes that; JSON readers see the same number.
fn float<F: std::fmt::Debug>(number: Option<F>, text: &str, json: &mut Json) {
    match number {
        Some(number) => json.number(format!("{number:?}")),
        None => json.text(text),
    }
}

/// With a scale the bytes of the number; without one they and the scale. What is no finite number is
/// null, as with Debezium.
fn decimal(modifier: i32, text: &str, json: &mut Json) {
    let Some(decimal) = Decimal::read(text) else { return json.null() };
    if modifier >= 4 {
        // Precision and scale in one: see `numeric_typmod_scale`.
        let scale = usize::try_from((modifier - 4) & 0x7ff).unwrap_or(0);
        return json.text(&decimal.scaled(scale).base64());
    }
    json.object(|json| {
        json.name("scale");
        json.number(decimal.scale());
        json.name("value");
        json.text(&decimal.base64());
    });
}

/// `\x0aff` in base 64.
fn bytes(text: &str, json: &mut Json) {
    let pair = |at: usize| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let is_hex = text.starts_with("\\x") && text.len().is_multiple_of(2);
    let read = is_hex.then(|| (2..text.len()).step_by(2).map(pair).collect::<Option<Vec<u8>>>());
    match read.flatten() {
        Some(bytes) => json.text(&STANDARD.encode(bytes)),
        None => json.text(text),
    }
}

/// `{1,NULL,"a b"}` of one dimension; says whether it was one.
fn list(element: u32, modifier: i32, text: &str, json: &mut Json) -> bool {
    let Some(elements) = elements(text) else { return false };
    json.list(|json| {
        for value in elements {
            json.comma();
            match value {
                Some(value) => scalar(element, modifier, &value, json),
                None => json.null(),
            }
        }
    });
    true
}

fn elements(text: &str) -> Option<Vec<Option<String>>> {
    let inner = text.strip_prefix('{')?.strip_suffix('}')?;
    let mut all = Vec::new();
    let mut chars = inner.chars().peekable();
    while chars.peek().is_some() {
        let quoted = chars.next_if_eq(&'"').is_some();
        let mut value = String::new();
        loop {
            match chars.next() {
                Some('\\') => value.push(chars.next()?),
                Some('"') if quoted => break,
                Some('{' | '}' | '"') if !quoted => return None,
                Some(',') if !quoted => break,
                Some(c) => value.push(c),
                None if quoted => return None,
                None => break,
            }
        }
        if quoted && !matches!(chars.next(), None | Some(',')) {
            return None;
        }
        all.push((quoted || value != "NULL").then_some(value));
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(type_oid: u32, type_modifier: i32, text: &str) -> String {
        let column = WalColumn { name: "c".into(), type_oid, type_modifier, is_identity: false };
        let mut json = Json::default();
        write(&column, Value::Text(text.as_bytes()), &mut json);
        String::from_utf8(json.into_bytes().to_vec()).unwrap()
    }

    /// Each as Debezium's documentation and its recorded events have it.
    #[test]
    fn values_have_debeziums_forms() {
        for (type_oid, modifier, text, expected) in [
            (oid::BOOL, -1, "t", "true"),
            (oid::INT8, -1, "-9223372036854775808", "-9223372036854775808"),
            (oid::FLOAT8, -1, "1e+30", "1e30"),
            (oid::FLOAT8, -1, "0.1", "0.1"),
            (oid::FLOAT4, -1, "1", "1.0"),
            (oid::FLOAT8, -1, "NaN", "\"NaN\""),
            (25, -1, "a\"b", r#""a\"b""#),
            (oid::NUMERIC, ((10 << 16) | 2) + 4, "123.45", "\"MDk=\""),
            (oid::NUMERIC, -1, "123.45", r#"{"scale":2,"value":"MDk="}"#),
            (oid::NUMERIC, -1, "NaN", "null"),
            (oid::BYTEA, -1, "\\x0aff", "\"Cv8=\""),
            (oid::TIMESTAMP, 3, "1970-01-01 00:00:01", "1000"),
            (oid::TIMESTAMP, -1, "1970-01-01 00:00:01", "1000000"),
            (oid::DATE, -1, "1970-01-11", "10"),
            (1007, -1, "{1,NULL,3}", "[1,null,3]"),
            (1009, -1, r#"{a,"b c","NULL","q\"\\",""}"#, r#"["a","b c","NULL","q\"\\",""]"#),
            (1007, -1, "{}", "[]"),
            (1007, -1, "{{1,2},{3,4}}", "\"{{1,2},{3,4}}\""),
            (
                2950,
                -1,
                "00000000-0000-4000-8000-000000000001",
                "\"00000000-0000-4000-8000-000000000001\"",
            ),
        ] {
            assert_eq!(shown(type_oid, modifier, text), expected, "{type_oid}: {text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_of_any_type_is_json(
            type_oid in prop_oneof![Just(1007_u32), 0_u32..3000],
            modifier in -1_i32..2_000_000,
            text in any::<String>(),
        ) {
            let shown = shown(type_oid, modifier, &text);
            prop_assert!(serde_json::from_str::<serde_json::Value>(&shown).is_ok(), "{}", shown);
        }
    }
}
