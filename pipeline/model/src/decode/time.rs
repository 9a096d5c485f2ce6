//! Debezium's encodings of a timestamp.
//!
//! Which one an event has depends on `time.precision.mode`, the column's type and its precision, so
//! all of them are read. What comes out says that the flag is set and is good for logs; the claim
//! reads the value itself from the row. Hence what lies outside 64 bits of microseconds (years
//! beyond 294,247) is clamped instead of refused.
//!
//! In the mode `nanoseconds` Debezium writes null for a `timestamp` outside 1677 to 2262: such a flag
//! looks unset here, and only the sweep finds it.

use crate::FlagValue;

/// What a number counts since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Millis,
    Micros,
    Nanos,
}

/// What Debezium writes for a `timestamp` that is `infinity`: the driver's `DATE_POSITIVE_INFINITY`
/// as milliseconds, and what becomes of it in the other units (seen in events of Debezium 3.6.3; a
/// `timestamptz` is the word itself). As ISO text it is the same moment in the year 294,247.
const INFINITIES: [(Unit, i64, i64); 3] = [
    (Unit::Millis, 9_223_372_036_825_200, -9_223_372_036_832_400),
    (Unit::Micros, INFINITY_MICROS, NEGATIVE_INFINITY_MICROS),
    (Unit::Nanos, i64::MAX, i64::MIN),
];
const INFINITY_MICROS: i64 = 9_223_372_036_825_200_000;
const NEGATIVE_INFINITY_MICROS: i64 = -9_223_372_036_832_400_000;

impl Unit {
    /// The unit that the inline schema names.
    pub(super) fn of_schema(name: &str) -> Option<Self> {
        match name {
            "io.debezium.time.Timestamp" | "org.apache.kafka.connect.data.Timestamp" => {
                Some(Self::Millis)
            }
            "io.debezium.time.MicroTimestamp" => Some(Self::Micros),
            "io.debezium.time.NanoTimestamp" => Some(Self::Nanos),
            _ => None,
        }
    }

    /// The unit by magnitude, where there is no schema: each fits the years 1973 to 5138. A time
    /// near 1970 is taken for one of a smaller unit; it is set all the same, which is all that counts.
    fn of_magnitude(number: i64) -> Self {
        match number.unsigned_abs() {
            0..100_000_000_000_000 => Self::Millis,
            100_000_000_000_000..100_000_000_000_000_000 => Self::Micros,
            _ => Self::Nanos,
        }
    }
}

/// A number since 1970, in `unit` if the schema tells it.
pub(super) fn from_number(number: i64, unit: Option<Unit>) -> FlagValue {
    for (of, infinity, negative_infinity) in INFINITIES {
        if unit.is_none_or(|unit| unit == of) {
            if number == infinity {
                return FlagValue::Infinity;
            }
            if number == negative_infinity {
                return FlagValue::NegativeInfinity;
            }
        }
    }
    FlagValue::Micros(match unit.unwrap_or_else(|| Unit::of_magnitude(number)) {
        Unit::Millis => number.saturating_mul(1_000),
        Unit::Micros => number,
        Unit::Nanos => number.div_euclid(1_000),
    })
}

/// An ISO 8601 text such as `2026-02-03T12:00:00.123456Z`, with an offset, or without one (then the
/// clock on the wall, or UTC), or `infinity` and `-infinity`; `None` if it is neither. Years may
/// have a sign and up to six digits, as Java writes them; digits beyond microseconds are cut.
pub(super) fn from_text(text: &str) -> Option<FlagValue> {
    match text {
        "infinity" => return Some(FlagValue::Infinity),
        "-infinity" => return Some(FlagValue::NegativeInfinity),
        _ => {}
    }
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (year, rest) = rest.split_once('-')?;
    if !(4..=6).contains(&year.len()) {
        return None;
    }
    let year = digits(year)?;
    let year = if negative { -year } else { year };
    let mut rest = Cursor(rest);
    let month = rest.two()?;
    rest.skip('-')?;
    let day = rest.two()?;
    if !(1..=12).contains(&month) || !(1..=days_of_month(year, month)).contains(&day) {
        return None;
    }
    rest.skip('T').or_else(|| rest.skip(' '))?;
    let hour = rest.two()?;
    rest.skip(':')?;
    let minute = rest.two()?;
    let second = if rest.skip(':').is_some() { rest.two()? } else { 0 };
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let micros = if rest.skip('.').is_some() { rest.fraction()? } else { 0 };
    let offset = rest.offset()?;
    if !rest.0.is_empty() {
        return None;
    }
    let seconds =
        days_since_1970(year, month, day) * 86_400 + (hour * 3_600 + minute * 60 + second) - offset;
    Some(match seconds.saturating_mul(1_000_000).saturating_add(micros) {
        INFINITY_MICROS => FlagValue::Infinity,
        NEGATIVE_INFINITY_MICROS => FlagValue::NegativeInfinity,
        micros => FlagValue::Micros(micros),
    })
}

/// What of a text is not read yet.
struct Cursor<'a>(&'a str);

impl Cursor<'_> {
    fn skip(&mut self, expected: char) -> Option<()> {
        self.0 = self.0.strip_prefix(expected)?;
        Some(())
    }

    fn two(&mut self) -> Option<i64> {
        let number = digits(self.0.get(..2)?)?;
        self.0 = &self.0[2..];
        Some(number)
    }

    fn fraction(&mut self) -> Option<i64> {
        let end = self.0.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=9).contains(&end) {
            return None;
        }
        let nanos = digits(&self.0[..end])? * 10_i64.pow(9 - u32::try_from(end).ok()?);
        self.0 = &self.0[end..];
        Some(nanos / 1_000)
    }

    /// Seconds east of Greenwich: `Z`, `+02`, `+02:00`, `+0200`, `-02:30:15`, or nothing.
    fn offset(&mut self) -> Option<i64> {
        if self.0.is_empty() || self.skip('Z').is_some() {
            return Some(0);
        }
        let sign = if self.skip('-').is_some() { -1 } else { self.skip('+').map(|()| 1)? };
        let mut seconds = self.two()? * 3_600;
        for unit in [60, 1] {
            if self.skip(':').is_some() || !self.0.is_empty() {
                let part = self.two()?;
                if part > 59 {
                    return None;
                }
                seconds += part * unit;
            }
        }
        (seconds <= 18 * 3_600).then_some(sign * seconds)
    }
}

fn digits(text: &str) -> Option<i64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

fn days_of_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days of the proleptic Gregorian calendar, counted in eras of 400 years that begin in March.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checked with `date -u -d TEXT +%s`.
    const NOON: i64 = 1_770_120_000_000_000; // 2026-02-03T12:00:00Z

    #[test]
    fn every_spelling_of_a_moment_is_the_same_moment() {
        for text in [
            "2026-02-03T12:00:00Z",
            "2026-02-03T12:00Z",
            "2026-02-03T12:00:00",
            "2026-02-03 12:00:00",
            "2026-02-03T12:00:00.000000Z",
            "2026-02-03T12:00:00.000000999Z",
            "2026-02-03T14:00:00+02:00",
            "2026-02-03T14:00:00+02",
            "2026-02-03T14:00:00+0200",
            "2026-02-03T09:30:00-02:30",
            "+2026-02-03T12:00:00Z",
        ] {
            assert_eq!(from_text(text), Some(FlagValue::Micros(NOON)), "{text}");
        }
        for (number, unit) in [
            (NOON, None),
            (NOON, Some(Unit::Micros)),
            (NOON / 1_000, None),
            (NOON / 1_000, Some(Unit::Millis)),
            (NOON * 1_000, None),
            (NOON * 1_000, Some(Unit::Nanos)),
        ] {
            assert_eq!(from_number(number, unit), FlagValue::Micros(NOON), "{number} {unit:?}");
        }
    }

    #[test]
    fn the_schema_beats_the_magnitude() {
        assert_eq!(from_number(5_000, Some(Unit::Micros)), FlagValue::Micros(5_000));
        assert_eq!(from_number(5_000, None), FlagValue::Micros(5_000_000));
    }

    #[test]
    fn far_times_are_exact_or_clamped() {
        for (text, micros) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1969-12-31T23:59:59.999999Z", -1),
            ("2000-02-29T00:00:00Z", 951_782_400_000_000),
            ("0001-01-01T00:00:00Z", -62_135_596_800_000_000),
            ("9999-12-31T23:59:59.999999Z", 253_402_300_799_999_999),
            ("+20000-01-01T00:00:00.000000Z", 568_971_820_800_000_000), // As a real MicroTimestamp.
            ("-0043-03-15T00:00:00.000000Z", -63_517_824_000_000_000),  // 44 BC, likewise.
            ("+294276-12-31T23:59:59.999999Z", i64::MAX),
        ] {
            assert_eq!(from_text(text), Some(FlagValue::Micros(micros)), "{text}");
        }
    }

    #[test]
    fn infinity_is_read_in_text_and_number() {
        assert_eq!(from_text("infinity"), Some(FlagValue::Infinity));
        assert_eq!(from_text("-infinity"), Some(FlagValue::NegativeInfinity));
        assert_eq!(from_text("+294247-01-10T04:00:25.2Z"), Some(FlagValue::Infinity));
        assert_eq!(from_text("-290308-12-21T19:59:27.6Z"), Some(FlagValue::NegativeInfinity));
        for (unit, infinity, negative_infinity) in [
            (Unit::Millis, 9_223_372_036_825_200, -9_223_372_036_832_400),
            (Unit::Micros, 9_223_372_036_825_200_000, -9_223_372_036_832_400_000),
            (Unit::Nanos, i64::MAX, i64::MIN),
        ] {
            for unit in [Some(unit), None] {
                assert_eq!(from_number(infinity, unit), FlagValue::Infinity);
                assert_eq!(from_number(negative_infinity, unit), FlagValue::NegativeInfinity);
            }
        }
        let finite = FlagValue::Micros(9_223_372_036_825_200);
        assert_eq!(from_number(9_223_372_036_825_200, Some(Unit::Micros)), finite);
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "-",
            "yes",
            "2026",
            "2026-02-03",
            "2026-02-30T00:00:00Z",
            "2025-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-02-03T24:00:00Z",
            "2026-02-03T12:60:00Z",
            "2026-02-03T12:00:00.Z",
            "2026-02-03T12:00:00Zz",
            "2026-02-03T12:00:00+99",
            "2026-02-03T12:00:00+01:60",
            "26-02-03T12:00:00Z",
            "2026-0２-03T12:00:00Z",
            "Infinity",
        ] {
            assert_eq!(from_text(text), None, "{text}");
        }
    }
}
