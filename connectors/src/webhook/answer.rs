//! What an answer proves. Pure: a status or bytes in, findings out.
//!
//! Invariant (S6): nothing here confirms but an answer that names each item that was asked for once,
//! and no other; `what_is_left_out_told_twice_or_not_asked_for_proves_nothing`.
//!
//! Of a service's own words a code at most is kept: its sentences may hold what is to be forgotten.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;
use tombstream_model::{Outcome, Presence, SinkError, Verdict};

/// The longest wait that a service may ask for: an hour is far beyond a stage's deadline, so that what
/// waits is owed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);
/// The longest reason that is kept.
const REASON_MAX: usize = 64;

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    results: Vec<Item<'a>>,
}

#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    verdict: Option<Cow<'a, str>>,
    #[serde(borrow)]
    presence: Option<Cow<'a, str>>,
    #[serde(borrow)]
    reason: Option<Cow<'a, str>>,
    /// Seconds.
    retry_after: Option<u64>,
}

/// What a service says became of each of `asked`, in their order.
pub(super) fn outcomes(body: &[u8], asked: &[&str]) -> Result<Vec<Outcome>, SinkError> {
    Ok(match matched(&parse(body)?, asked) {
        Ok(items) => items.into_iter().map(|item| item.map_or_else(unknown, outcome)).collect(),
        Err(said) => vec![unknown(said); asked.len()],
    })
}

/// What a service says is there of `asked`, in their order.
pub(super) fn presences(body: &[u8], asked: &[&str]) -> Result<Vec<Presence>, SinkError> {
    let presence = |item: Result<&Item<'_>, _>| match item.map(|item| item.presence.as_deref()) {
        Ok(Some("present")) => Presence::Present,
        Ok(Some("absent")) => Presence::Absent,
        Ok(Some(_) | None) | Err(_) => Presence::Unknown,
    };
    Ok(match matched(&parse(body)?, asked) {
        Ok(items) => items.into_iter().map(presence).collect(),
        Err(_) => vec![Presence::Unknown; asked.len()],
    })
}

fn parse(body: &[u8]) -> Result<Answer<'_>, SinkError> {
    serde_json::from_slice(body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        // The error itself may quote the answer.
        let said = format!("the answer is no {{\"results\": […]}} (line {line}, column {column})");
        SinkError::Protocol(said)
    })
}

type Matched<'a, 'b> = Vec<Result<&'b Item<'a>, &'static str>>;

/// The item for each of `asked`, or why there is none. An answer to another question proves nothing
/// at all.
fn matched<'a, 'b>(
    answer: &'b Answer<'a>,
    asked: &[&str],
) -> Result<Matched<'a, 'b>, &'static str> {
    let mut items: HashMap<&str, Vec<&Item<'_>>> = HashMap::with_capacity(asked.len());
    items.extend(asked.iter().map(|id| (*id, Vec::new())));
    for item in &answer.results {
        let named = items.get_mut(&*item.id);
        named.ok_or("the answer names an item that was not asked for")?.push(item);
    }
    let one = |id: &&str| match items[id].as_slice() {
        [one] => Ok(*one),
        [] => Err("the answer leaves it out"),
        [_, _, ..] => Err("the answer names it twice"),
    };
    Ok(asked.iter().map(one).collect())
}

fn unknown(said: &'static str) -> Outcome {
    Outcome::new(Verdict::Unknown, said)
}

fn outcome(item: &Item<'_>) -> Outcome {
    let (verdict, said) = match item.verdict.as_deref() {
        Some("deleted") => (Verdict::Deleted, "the service deleted it"),
        Some("absent") => (Verdict::Absent, "the service had none"),
        Some("superseded") => (Verdict::Superseded, "the service has a newer one, which stays"),
        Some("busy") => (Verdict::Busy, "the service is busy with it"),
        Some("refused") => (Verdict::Refused, "the service refuses"),
        Some(_) => return unknown("the answer has no such verdict"),
        None => return unknown("the answer has no verdict"),
    };
    let said = match item.reason.as_deref() {
        Some(reason) if is_code(reason) => format!("{said}: {reason}").into(),
        Some(_) => format!("{said} (its reason is no code, and not kept)").into(),
        None => Cow::Borrowed(said),
    };
    let mut outcome = Outcome::new(verdict, said);
    if verdict == Verdict::Busy {
        outcome.retry_after =
            item.retry_after.map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
    }
    outcome
}

/// A word such as `legal_hold`, and not a sentence.
fn is_code(reason: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (1..=REASON_MAX).contains(&reason.len()) && reason.chars().all(word)
}

/// What a status other than 200 says of the whole request.
pub(super) fn refusal(status: u16, retry_after: Option<Duration>) -> SinkError {
    let retry_after = retry_after.map(|wait| wait.min(RETRY_AFTER_MAX));
    match status {
        429 => SinkError::Throttled { retry_after },
        503 if retry_after.is_some() => SinkError::Throttled { retry_after },
        401 | 403 => {
            let said = "is the secret the one that the service knows, and is its clock right?";
            SinkError::Denied(format!("status {status}; {said}"))
        }
        404 | 410 => SinkError::Missing(format!("the service's address (status {status})")),
        408 | 500..=599 => SinkError::Unavailable(format!("status {status}").into()),
        300..=399 => {
            let said = "redirects are not followed: write the address that it leads to";
            SinkError::Protocol(format!("status {status}; {said}"))
        }
        413 => SinkError::Protocol("the request is too large: lower batch_max".to_owned()),
        // 202 and 204 say that a request came, and nothing of what became of it.
        _ => SinkError::Protocol(format!("status {status}; only 200 has verdicts")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(body: &str) -> Vec<(Verdict, String)> {
        let outcomes = outcomes(body.as_bytes(), &["a", "b"]).unwrap();
        outcomes.into_iter().map(|it| (it.verdict, it.said.into_owned())).collect()
    }

    #[test]
    fn each_verdict_is_its_items_in_the_order_of_the_question() {
        let body = r#"{"results": [{"id": "b", "verdict": "absent", "more": 1},
                                   {"id": "a", "verdict": "deleted", "reason": "v2.1"}]}"#;
        let said = verdicts(body);
        assert_eq!(said[0], (Verdict::Deleted, "the service deleted it: v2.1".to_owned()));
        assert_eq!(said[1], (Verdict::Absent, "the service had none".to_owned()));
        let words = [
            ("superseded", Verdict::Superseded),
            ("busy", Verdict::Busy),
            ("refused", Verdict::Refused),
            ("Deleted", Verdict::Unknown),
            ("ok", Verdict::Unknown),
            ("", Verdict::Unknown),
        ];
        for (word, verdict) in words {
            let body = format!(r#"{{"results": [{{"id": "a", "verdict": "{word}"}}]}}"#);
            assert_eq!(outcomes(body.as_bytes(), &["a"]).unwrap()[0].verdict, verdict, "{word}");
        }
    }

    #[test]
    fn what_is_left_out_told_twice_or_not_asked_for_proves_nothing() {
        let one = |id: &str| format!(r#"{{"id": "{id}", "verdict": "deleted"}}"#);
        let answer = |ids: &[&str]| {
            let items: Vec<String> = ids.iter().map(|id| one(id)).collect();
            let said = verdicts(&format!(r#"{{"results": [{}]}}"#, items.join(",")));
            [said[0].0, said[1].0]
        };
        let (yes, no) = (Verdict::Deleted, Verdict::Unknown);
        assert_eq!(answer(&["a", "b"]), [yes, yes]);
        assert_eq!(answer(&["a"]), [yes, no]);
        assert_eq!(answer(&[]), [no, no]);
        assert_eq!(answer(&["a", "b", "a"]), [no, yes]);
        assert_eq!(answer(&["a", "a", "a", "b"]), [no, yes]);
        assert_eq!(answer(&["a", "b", "c"]), [no, no], "the answer to another question");
        assert_eq!(answer(&["A", "b"]), [no, no]);
        let no_verdict =
            verdicts(r#"{"results": [{"id": "a"}, {"id": "b", "presence": "absent"}]}"#);
        assert_eq!([no_verdict[0].0, no_verdict[1].0], [no, no]);

        let look = |body: &str| presences(body.as_bytes(), &["a", "b"]).unwrap();
        let both = r#"{"results": [{"id": "b", "presence": "absent"},
                                   {"id": "a", "presence": "present"}]}"#;
        assert_eq!(look(both), [Presence::Present, Presence::Absent]);
        let half = r#"{"results": [{"id": "b", "presence": "absent"}]}"#;
        assert_eq!(look(half), [Presence::Unknown, Presence::Absent]);
        let other = r#"{"results": [{"id": "b", "presence": "absent"}, {"id": "c"}]}"#;
        assert_eq!(look(other), [Presence::Unknown; 2]);
        let verdict = r#"{"results": [{"id": "a", "verdict": "absent"}]}"#;
        assert_eq!(
            look(verdict),
            [Presence::Unknown; 2],
            "the answer to the other kind of question"
        );
    }

    #[test]
    fn what_is_no_answer_is_an_error_that_quotes_nothing() {
        for body in
            ["", "{}", "[]", "null", "{\"results\": {}}", "<html>hunter2", "{\"results\": [{}]}"]
        {
            let error = outcomes(body.as_bytes(), &["a"]).unwrap_err();
            let said = error.to_string();
            assert!(matches!(error, SinkError::Protocol(_)) && !said.contains("hunter2"), "{said}");
        }
    }

    #[test]
    fn of_a_reason_a_code_is_kept_and_no_sentence() {
        let said = |reason: &str| {
            let item = serde_json::json!({"id": "a", "verdict": "refused", "reason": reason});
            let body = serde_json::json!({ "results": [item] }).to_string();
            outcomes(body.as_bytes(), &["a"]).unwrap()[0].said.clone().into_owned()
        };
        assert_eq!(said("legal_hold"), "the service refuses: legal_hold");
        for sentence in ["Ms Miller is under a hold", "", "a\nb", "é", &"x".repeat(65)] {
            assert_eq!(said(sentence), "the service refuses (its reason is no code, and not kept)");
        }
    }

    #[test]
    fn a_wait_is_taken_from_who_is_busy_and_is_bounded() {
        let wait = |verdict: &str, seconds: u64| {
            let body = format!(
                r#"{{"results": [{{"id": "a", "verdict": "{verdict}", "retry_after": {seconds}}}]}}"#
            );
            outcomes(body.as_bytes(), &["a"]).unwrap()[0].retry_after
        };
        assert_eq!(wait("busy", 7), Some(Duration::from_secs(7)));
        assert_eq!(wait("busy", u64::MAX), Some(RETRY_AFTER_MAX));
        assert_eq!(wait("deleted", 7), None);
    }

    #[test]
    fn each_status_has_its_error() {
        let after = Some(Duration::from_secs(3));
        for status in [201, 202, 204, 206, 301, 302, 307, 308, 400, 409, 413, 418, 422] {
            assert!(matches!(refusal(status, after), SinkError::Protocol(_)), "{status}");
        }
        for status in [408, 500, 502, 503, 504] {
            assert!(matches!(refusal(status, None), SinkError::Unavailable(_)), "{status}");
        }
        for status in [429, 503] {
            let error = refusal(status, after);
            assert!(matches!(error, SinkError::Throttled { retry_after } if retry_after == after));
        }
        assert!(matches!(refusal(401, None), SinkError::Denied(_)));
        assert!(matches!(refusal(403, None), SinkError::Denied(_)));
        assert!(matches!(refusal(404, None), SinkError::Missing(_)));
        assert!(matches!(refusal(410, None), SinkError::Missing(_)));
    }
}
