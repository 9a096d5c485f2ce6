//! Postgres's texts of dates and times (`DateStyle = ISO`, `TimeZone = UTC`) in Debezium's forms.

use chrono::{DateTime, Datelike as _, NaiveDate, NaiveDateTime, NaiveTime, Timelike as _};

/// What Debezium writes for a `timestamp` that is `infinity`: the driver's `DATE_POSITIVE_INFINITY`.
const INFINITY_MILLIS: i64 = 9_223_372_036_825_200;
const NEGATIVE_INFINITY_MILLIS: i64 = -9_223_372_036_832_400;

/// `2026-02-03T12:00:00.123456Z` of a `timestamptz`; `None` if it can't be read.
pub(super) fn zoned(text: &str) -> Option<String> {
    if matches!(text, "infinity" | "-infinity") {
        return Some(text.to_owned());
    }
    let (at, _) = text.rsplit_once('+')?;
    let at = date_time(at, text.ends_with(" BC"))?;
    Some(format!(
        "{}T{:02}:{:02}:{:02}.{:06}Z",
        iso_date(at.date()),
        at.hour(),
        at.minute(),
        at.second(),
        at.nanosecond() / 1_000
    ))
}

/// Milli- or microseconds since 1970 of a `timestamp`.
pub(super) fn since_1970(text: &str, millis: bool) -> Option<i64> {
    let unit = if millis { 1 } else { 1_000 };
    match text {
        "infinity" => return Some(INFINITY_MILLIS * unit),
        "-infinity" => return Some(NEGATIVE_INFINITY_MILLIS * unit),
        _ => {}
    }
    let at = date_time(text.trim_end_matches(" BC"), text.ends_with(" BC"))?.and_utc();
    Some(if millis { at.timestamp_millis() } else { at.timestamp_micros() })
}

/// Days since 1970 of a `date`.
pub(super) fn days_since_1970(text: &str) -> Option<i64> {
    let date = date(text.trim_end_matches(" BC"), text.ends_with(" BC"))?;
    Some((date - DateTime::UNIX_EPOCH.date_naive()).num_days())
}

/// Milli- or microseconds since midnight of a `time`.
pub(super) fn since_midnight(text: &str, millis: bool) -> Option<i64> {
    let micros = match text.strip_prefix("24:00:00") {
        Some(_) => 86_400_000_000,
        None => (time(text)? - NaiveTime::MIN).num_microseconds()?,
    };
    Some(if millis { micros / 1_000 } else { micros })
}

/// `12:34:56.789Z` of a `timetz`, moved to UTC.
pub(super) fn zoned_time(text: &str) -> Option<String> {
    let at = text.rfind(['+', '-'])?;
    let (clock, offset) = text.split_at(at);
    let negative = offset.starts_with('-');
    let mut seconds = 0;
    for (part, unit) in offset[1..].split(':').zip([3_600, 60, 1]) {
        seconds += part.parse::<i64>().ok()? * unit;
    }
    let clock = time(clock)?;
    let shift = chrono::TimeDelta::seconds(if negative { seconds } else { -seconds });
    let (clock, _) = clock.overflowing_add_signed(shift);
    let fraction = format!("{:06}", clock.nanosecond() / 1_000);
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    Some(format!("{:02}:{:02}:{:02}{dot}{fraction}Z", clock.hour(), clock.minute(), clock.second()))
}

/// Microseconds of an `interval`, a month being the 12th part of 365.25 days, as Debezium counts.
pub(super) fn interval_micros(text: &str) -> Option<i64> {
    const DAY: f64 = 86_400e6;
    let mut micros = 0_f64;
    let mut words = text.split_whitespace().peekable();
    while let Some(word) = words.next() {
        if let Some((hours, rest)) = word.split_once(':') {
            let negative = hours.starts_with('-');
            let (minutes, seconds) = rest.split_once(':')?;
            let hours: f64 = hours.trim_start_matches(['-', '+']).parse().ok()?;
            let minutes: f64 = minutes.parse().ok()?;
            let seconds: f64 = seconds.parse().ok()?;
            let clock = (hours * 3_600.0 + minutes * 60.0 + seconds) * 1e6;
            micros += if negative { -clock } else { clock };
            continue;
        }
        let number: f64 = word.parse().ok()?;
        micros += number
            * match words.next()? {
                "year" | "years" => 12.0 * DAY * 365.25 / 12.0,
                "mon" | "mons" => DAY * 365.25 / 12.0,
                "day" | "days" => DAY,
                _ => return None,
            };
    }
    Some(micros.round() as i64)
}

fn date_time(text: &str, is_bc: bool) -> Option<NaiveDateTime> {
    let (date_text, time_text) = text.split_once(' ')?;
    Some(date(date_text, is_bc)?.and_time(time(time_text)?))
}

fn date(text: &str, is_bc: bool) -> Option<NaiveDate> {
    let mut parts = text.split('-');
    let year: i32 = parts.next()?.parse().ok()?;
    let (month, day) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    // The year before 1 is 1 BC.
    NaiveDate::from_ymd_opt(if is_bc { 1 - year } else { year }, month, day)
}

fn time(text: &str) -> Option<NaiveTime> {
    NaiveTime::parse_from_str(text, "%H:%M:%S%.f").ok()
}

/// Years beyond four digits have a sign, as ISO 8601 wants it.
fn iso_date(date: NaiveDate) -> String {
    let sign = if (0..=9_999).contains(&date.year()) {
        ""
    } else if date.year() < 0 {
        "-"
    } else {
        "+"
    };
    format!("{sign}{:04}-{:02}-{:02}", date.year().abs(), date.month(), date.day())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_debeziums_forms() {
        assert_eq!(
            zoned("2026-01-01 10:00:00.123456+00").as_deref(),
            Some("2026-01-01T10:00:00.123456Z")
        );
        assert_eq!(zoned("2026-02-01 12:00:00+00").as_deref(), Some("2026-02-01T12:00:00.000000Z"));
        assert_eq!(
            zoned("1969-12-31 23:59:59.999999+00").as_deref(),
            Some("1969-12-31T23:59:59.999999Z")
        );
        assert_eq!(zoned("infinity").as_deref(), Some("infinity"));
        assert_eq!(
            zoned("0044-03-15 00:00:00+00 BC").as_deref(),
            Some("-0043-03-15T00:00:00.000000Z")
        );
        assert_eq!(
            zoned("12026-01-01 00:00:00+00").as_deref(),
            Some("+12026-01-01T00:00:00.000000Z")
        );
        assert_eq!(since_1970("2026-02-03 12:00:00", false), Some(1_770_120_000_000_000));
        assert_eq!(since_1970("2026-02-03 12:00:00.5", true), Some(1_770_120_000_500));
        assert_eq!(since_1970("infinity", false), Some(9_223_372_036_825_200_000));
        assert_eq!(days_since_1970("1970-01-02"), Some(1));
        assert_eq!(days_since_1970("0001-01-01 BC"), Some(-719_528));
        assert_eq!(since_midnight("00:00:01.5", false), Some(1_500_000));
        assert_eq!(since_midnight("24:00:00", true), Some(86_400_000));
        assert_eq!(zoned_time("01:30:00.25+02").as_deref(), Some("23:30:00.25Z"));
        assert_eq!(zoned_time("01:30:00-00:30").as_deref(), Some("02:00:00Z"));
        assert_eq!(interval_micros("1 day 02:00:00.5"), Some(93_600_500_000));
        assert_eq!(interval_micros("-1 days -00:00:01"), Some(-86_401_000_000));
        assert_eq!(interval_micros("1 year 2 mons"), Some(36_817_200_000_000));
    }

    #[test]
    fn what_can_not_be_read_is_not_guessed_at() {
        for text in ["", "2026", "2026-02-30 00:00:00+00", "noon", "2026-01-01 25:00:00+00"] {
            assert_eq!(zoned(text), None, "{text}");
            assert_eq!(since_1970(text, false), None, "{text}");
            assert_eq!(interval_micros("soon"), None);
        }
    }
}
