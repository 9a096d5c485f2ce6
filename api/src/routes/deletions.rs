//! Deletions: what became of a flag.

use std::sync::Arc;

use axum::extract::rejection::{QueryRejection, RawPathParamsRejection};
use axum::extract::{Query, RawPathParams, State};
use axum::routing::get;
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use sqlx::Row;
use sqlx::postgres::PgRow;
use tombstream_model::{FlagKind, Key, State as LedgerState};

use super::Served;
use super::rows::key_of;
use crate::db::Attempts;
use crate::error::ApiError;
use crate::key;
use crate::orders::explain::Told;
use crate::row::{in_utc, rfc3339};
use crate::sql;

/// How many deletions a page has, unless asked for otherwise.
pub(super) const LIMIT_DEFAULT: i64 = 50;
/// Most deletions of one page.
pub(super) const LIMIT_MAX: i64 = 500;

pub(super) fn routes(row_path: &str, served: &Served) -> Router<Arc<Served>> {
    Router::new()
        .route(&format!("{row_path}/deletion"), get(status))
        .route(&format!("/{}/deletions", served.path), get(list))
}

/// What a deletion's status says of its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    /// The flag is set, and the ledger has nothing of it yet.
    Flagged,
    /// As the ledger says.
    #[serde(untagged)]
    Ledger(LedgerState),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum RowIs {
    Alive,
    Flagged,
    Gone,
}

/// A deletion as the ledger has it.
#[derive(Serialize)]
struct Entry {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<i64>,
    key: Value,
    state: Status,
    /// A text in UTC, or true.
    flag: Option<Value>,
    first_seen: Option<String>,
    claimed_at: Option<String>,
    closed_at: Option<String>,
    due_at: Option<String>,
    attempts: i32,
    reason: Option<String>,
}

#[derive(Serialize)]
struct Detail {
    relation: String,
    row: RowIs,
    #[serde(flatten)]
    entry: Entry,
    flip_lsn: Option<String>,
    /// Every address, with what its store said of it.
    targets: Option<Box<RawValue>>,
    receipt: Option<Receipt>,
    #[serde(flatten)]
    told: Told,
}

#[derive(Serialize)]
struct Receipt {
    finalized_at: String,
    transaction_id: String,
    row_gone: bool,
    targets: Box<RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    state: Option<LedgerState>,
    limit: Option<i64>,
    cursor: Option<String>,
}

#[derive(Serialize)]
struct Listed {
    deletions: Vec<Entry>,
    next_cursor: Option<String>,
}

async fn status(
    State(served): State<Arc<Served>>,
    segments: Result<RawPathParams, RawPathParamsRejection>,
) -> Result<Json<Detail>, ApiError> {
    let key = key_of(&served, segments)?;
    let mut attempts = Attempts::repeatable();
    let row = loop {
        let query = served.db.query(&served.sql.status).bind(&key).bind(&*served.relation.name);
        match served.db.one(&attempts, query).await.map_err(ApiError::from) {
            Err(error) if attempts.again(&error).await => {}
            result => break result?,
        }
    };
    let is = match row.try_get::<Option<bool>, _>("flagged")? {
        None => RowIs::Gone,
        Some(false) => RowIs::Alive,
        Some(true) => RowIs::Flagged,
    };
    let state: Option<String> = row.try_get("state")?;
    let shown = judge(is, state.as_deref().map(parse_state).transpose()?)?;
    let (entry, flip_lsn, targets, receipt) = match shown {
        Status::Flagged => {
            let flag: Option<String> = row.try_get("row_flag")?;
            (served.flagged(&key, flag), None, None, None)
        }
        Status::Ledger(_) => (
            served.entry(&row)?,
            row.try_get("flip_lsn")?,
            raw(row.try_get("targets")?)?,
            receipt(&row)?,
        ),
    };
    let relation = served.relation.name.to_string();
    let told = Told::read(&row, &served.relation, &Key::from_postgres(key))?;
    Ok(Json(Detail { relation, row: is, entry, flip_lsn, targets, receipt, told }))
}

async fn list(
    State(served): State<Arc<Served>>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Listed>, ApiError> {
    let Query(page) = page.map_err(|rejection| ApiError::Query(rejection.body_text()))?;
    let limit = page.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(ApiError::Query(format!("limit must be from 1 to {LIMIT_MAX}")));
    }
    let state = page.state.map(LedgerState::as_str);
    let before = match &page.cursor {
        None => None,
        Some(cursor) => Some(
            read_cursor(cursor, &served.relation.name, state)
                .ok_or_else(|| ApiError::Query("cursor is not one of this list".into()))?,
        ),
    };
    let mut attempts = Attempts::repeatable();
    let mut rows = loop {
        let query = served.db.fixed(sql::LIST).bind(&*served.relation.name);
        // One more than asked for says whether there is a next page.
        let query = query.bind(state).bind(before).bind(limit + 1);
        match served.db.all(&attempts, query).await.map_err(ApiError::from) {
            Err(error) if attempts.again(&error).await => {}
            result => break result?,
        }
    };
    let asked_for = usize::try_from(limit).expect("checked above");
    let more = rows.len() > asked_for;
    rows.truncate(asked_for);
    let deletions: Vec<_> =
        rows.iter().map(|row| served.entry(row)).collect::<Result<_, ApiError>>()?;
    let last = deletions.last().and_then(|entry| entry.id).filter(|_| more);
    let next_cursor = last.map(|id| write_cursor(id, &served.relation.name, state));
    Ok(Json(Listed { deletions, next_cursor }))
}

/// What is shown of a row and the newest deletion of its key: a set flag is newer than any deletion
/// that is closed.
fn judge(row: RowIs, newest: Option<LedgerState>) -> Result<Status, ApiError> {
    match (row, newest) {
        (RowIs::Gone, None) => Err(ApiError::NotFound),
        (RowIs::Alive, None) => Err(ApiError::NotDeleted),
        (RowIs::Flagged, None) => Ok(Status::Flagged),
        (RowIs::Flagged, Some(state)) if !state.is_open() => Ok(Status::Flagged),
        (_, Some(state)) => Ok(Status::Ledger(state)),
    }
}

fn parse_state(text: &str) -> Result<LedgerState, ApiError> {
    let state = LedgerState::ALL.into_iter().find(|state| state.as_str() == text);
    state.ok_or_else(|| sqlx::Error::Decode(format!("a state `{text}`").into()).into())
}

fn raw(json: Option<String>) -> Result<Option<Box<RawValue>>, sqlx::Error> {
    json.map(RawValue::from_string).transpose().map_err(|error| sqlx::Error::Decode(error.into()))
}

fn receipt(row: &PgRow) -> Result<Option<Receipt>, sqlx::Error> {
    let finalized_at: Option<DateTime<Utc>> = row.try_get("finalized_at")?;
    let (Some(at), Some(targets)) = (finalized_at, raw(row.try_get("evidence")?)?) else {
        return Ok(None);
    };
    Ok(Some(Receipt {
        finalized_at: rfc3339(at),
        transaction_id: row.try_get("transaction_id")?,
        row_gone: row.try_get("row_gone")?,
        targets,
    }))
}

impl Served {
    fn entry(&self, row: &PgRow) -> Result<Entry, ApiError> {
        let time = |column| -> Result<Option<String>, sqlx::Error> {
            Ok(row.try_get::<Option<DateTime<Utc>>, _>(column)?.map(rfc3339))
        };
        let key: Vec<String> = row.try_get("key")?;
        let state: String = row.try_get("state")?;
        Ok(Entry {
            id: row.try_get("id")?,
            key: key::json(&self.relation, &key),
            state: Status::Ledger(parse_state(&state)?),
            flag: row.try_get::<Option<String>, _>("flag")?.map(|flag| self.flag(flag)),
            first_seen: time("first_seen")?,
            claimed_at: time("claimed_at")?,
            closed_at: time("closed_at")?,
            due_at: time("due_at")?,
            attempts: row.try_get("attempts")?,
            reason: row.try_get("reason")?,
        })
    }

    /// A deletion of which the row alone tells.
    fn flagged(&self, key: &[String], flag: Option<String>) -> Entry {
        Entry {
            id: None,
            key: key::json(&self.relation, key),
            state: Status::Flagged,
            flag: flag.map(|flag| self.flag(flag)),
            first_seen: None,
            claimed_at: None,
            closed_at: None,
            due_at: None,
            attempts: 0,
            reason: None,
        }
    }

    fn flag(&self, text: String) -> Value {
        match self.relation.flag.kind {
            FlagKind::Boolean => Value::Bool(text == "true"),
            FlagKind::TimestampTz | FlagKind::Timestamp { .. } => in_utc(&text).into(),
        }
    }
}

/// Opaque to callers. It names its list, so that it can't be used with another one.
pub(super) fn write_cursor(id: i64, relation: &str, state: Option<&str>) -> String {
    URL_SAFE_NO_PAD.encode(format!("{id} {} {relation}", state.unwrap_or("*")))
}

pub(super) fn read_cursor(cursor: &str, relation: &str, state: Option<&str>) -> Option<i64> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?;
    let (id, list) = text.split_once(' ')?;
    let (of_state, of_relation) = list.split_once(' ')?;
    let same = of_relation == relation && of_state == state.unwrap_or("*");
    id.parse().ok().filter(|_| same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_flag_is_newer_than_a_closed_deletion() {
        for state in LedgerState::ALL {
            let shown = judge(RowIs::Flagged, Some(state)).unwrap();
            let expected = if state.is_open() { Status::Ledger(state) } else { Status::Flagged };
            assert_eq!(shown, expected, "{state:?}");
            assert_eq!(judge(RowIs::Gone, Some(state)).unwrap(), Status::Ledger(state));
            assert_eq!(judge(RowIs::Alive, Some(state)).unwrap(), Status::Ledger(state));
        }
        assert_eq!(judge(RowIs::Flagged, None).unwrap(), Status::Flagged);
        assert!(matches!(judge(RowIs::Alive, None), Err(ApiError::NotDeleted)));
        assert!(matches!(judge(RowIs::Gone, None), Err(ApiError::NotFound)));
    }

    #[test]
    fn a_state_is_spelled_as_the_ledger_spells_it() {
        for state in LedgerState::ALL {
            assert_eq!(parse_state(state.as_str()).unwrap(), state);
            assert_eq!(serde_json::to_value(Status::Ledger(state)).unwrap(), state.as_str());
        }
        assert_eq!(serde_json::to_value(Status::Flagged).unwrap(), "flagged");
        assert!(parse_state("flagged").is_err());
    }

    #[test]
    fn a_cursor_is_good_for_its_own_list_alone() {
        let cursor = write_cursor(42, "doc s", Some("parked"));
        assert_eq!(read_cursor(&cursor, "doc s", Some("parked")), Some(42));
        assert_eq!(read_cursor(&cursor, "doc s", None), None);
        assert_eq!(read_cursor(&cursor, "docs", Some("parked")), None);
        for bad in ["", "42", "!", "YQ"] {
            assert_eq!(read_cursor(bad, "doc s", Some("parked")), None, "{bad}");
        }
    }
}
