//! Holds: set, listed, released.

use std::sync::Arc;

use axum::extract::{RawPathParams, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use axum::{Extension, Json, Router};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tombstream_model::Key;

use super::Served;
use super::rows::{Segments, key_of};
use crate::auth::Actor;
use crate::db::Attempts;
use crate::error::ApiError;
use crate::key;
use crate::orders::hold::{self, Hold, NewHold};

pub(super) fn routes(row_path: &str) -> Router<Arc<Served>> {
    Router::new()
        .route(&format!("{row_path}/holds"), get(list).post(set))
        .route(&format!("{row_path}/holds/{{hold_number}}"), delete(release))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    case: String,
    until: Option<DateTime<Utc>>,
}

#[derive(Serialize)]
struct Listed {
    holds: Vec<Hold>,
}

async fn set(
    State(served): State<Arc<Served>>,
    Extension(actor): Extension<Actor>,
    segments: Segments,
    request: Request,
) -> Result<Response, ApiError> {
    let key = Key::from_postgres(key_of(&served, segments)?);
    let expected = "{\"case\": text, \"until\": an RFC 3339 time or null}";
    let wanted: Wanted = served.json(request, expected).await?;
    let new = NewHold { case: &wanted.case, until: wanted.until, actor: &actor.0 };
    let mut attempts = Attempts::once();
    let set = loop {
        let pool = served.db.pool(&attempts).await?;
        match hold::set(pool, &served.relation, &key, new).await.map_err(ApiError::from) {
            Err(error) if attempts.again(&error).await => {}
            result => break result?,
        }
    };
    Ok((StatusCode::CREATED, Json(set)).into_response())
}

async fn list(
    State(served): State<Arc<Served>>,
    segments: Segments,
) -> Result<Json<Listed>, ApiError> {
    let key = Key::from_postgres(key_of(&served, segments)?);
    let mut attempts = Attempts::repeatable();
    loop {
        let pool = served.db.pool(&attempts).await?;
        match hold::list(pool, &served.relation, &key).await.map_err(ApiError::from) {
            Err(error) if attempts.again(&error).await => {}
            result => return Ok(Json(Listed { holds: result? })),
        }
    }
}

async fn release(
    State(served): State<Arc<Served>>,
    Extension(actor): Extension<Actor>,
    segments: Segments,
) -> Result<Json<Hold>, ApiError> {
    let (key, id) = key_and_number(&served, segments)?;
    let mut attempts = Attempts::once();
    loop {
        let pool = served.db.pool(&attempts).await?;
        let released = hold::release(pool, &served.relation, &key, id, &actor.0).await;
        match released.map_err(ApiError::from) {
            Err(error) if attempts.again(&error).await => {}
            result => return Ok(Json(result?)),
        }
    }
}

/// The key, and the number that is the last segment.
fn key_and_number(served: &Served, segments: Segments) -> Result<(Key, i64), ApiError> {
    let segments: RawPathParams =
        segments.map_err(|_| ApiError::Key("not utf-8 once percent-decoded".into()))?;
    let mut texts: Vec<&str> = segments.iter().map(|(_, text)| text).collect();
    let number = texts.pop().unwrap_or_default();
    let key = key::parse_texts(&served.relation, texts)?;
    let number = number.parse().map_err(|_| ApiError::NotFound)?;
    Ok((Key::from_postgres(key), number))
}
