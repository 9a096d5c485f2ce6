//! A row as JSON, spelled as Postgres spells it.
//!
//! Values stay text from the database to the answer: parsed and printed again, a `numeric` would
//! lose digits. Only a `timestamptz` is spelled anew, in UTC with `Z`, so that it doesn't depend on
//! the session's zone.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::ser::{Error, SerializeMap};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

/// The configured columns of one row.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    columns: &'a [String],
    values: Vec<Option<String>>,
}

impl<'a> Row<'a> {
    /// Reads what [`crate::sql`] selects as `row_values` and `row_types`; none without a row.
    pub(crate) fn read(columns: &'a [String], row: &PgRow) -> Result<Option<Self>, sqlx::Error> {
        let values: Option<Vec<Option<String>>> = row.try_get("row_values")?;
        let types: Option<Vec<String>> = row.try_get("row_types")?;
        let (Some(values), Some(types)) = (values, types) else { return Ok(None) };
        let respell = |(value, kind): (Option<String>, String)| match kind.as_str() {
            "timestamp with time zone" => value.map(|json| match json.strip_prefix('"') {
                Some(text) => format!("\"{}\"", in_utc(text.trim_end_matches('"'))),
                None => json,
            }),
            _ => value,
        };
        Ok(Some(Self { columns, values: values.into_iter().zip(types).map(respell).collect() }))
    }
}

impl Serialize for Row<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.columns.len()))?;
        for (column, value) in self.columns.iter().zip(&self.values) {
            let value = value.as_deref().map(serde_json::from_str::<&RawValue>).transpose();
            map.serialize_entry(column, &value.map_err(S::Error::custom)?)?;
        }
        map.end()
    }
}

/// A timestamp as Postgres spells it, in UTC. `infinity`, and years that RFC 3339 can't spell, stay.
pub(crate) fn in_utc(text: &str) -> String {
    // JSON has the form of RFC 3339; a cast to text has a space, and an offset of hours alone.
    let parsed = DateTime::parse_from_rfc3339(text)
        .or_else(|_| DateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f%#z"));
    match parsed {
        Ok(time) => rfc3339(time.to_utc()),
        Err(_) => text.to_owned(),
    }
}

/// A time of the ledger.
pub(crate) fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_spelled_in_utc_and_oddities_stay() {
        for (from, to) in [
            ("2026-11-23T12:00:00+02:00", "2026-11-23T10:00:00Z"),
            ("2026-11-23T10:00:00.123456+00:00", "2026-11-23T10:00:00.123456Z"),
            ("2026-11-23 10:00:00.123456+00", "2026-11-23T10:00:00.123456Z"),
            ("2026-11-23 10:00:00+00", "2026-11-23T10:00:00Z"),
            ("2026-11-23 12:30:00+02:30", "2026-11-23T10:00:00Z"),
            ("infinity", "infinity"),
            ("294276-12-31T23:59:59+00:00", "294276-12-31T23:59:59+00:00"),
        ] {
            assert_eq!(in_utc(from), to);
        }
    }

    #[test]
    fn values_keep_their_digits_and_columns_their_order() {
        let columns = ["z", "a", "n"].map(String::from);
        let values = vec![Some("12345678901234567890.10".into()), None, Some("\"x\"".into())];
        let row = Row { columns: &columns, values };
        let json = serde_json::to_string(&row).unwrap();
        assert_eq!(json, r#"{"z":12345678901234567890.10,"a":null,"n":"x"}"#);
    }
}
