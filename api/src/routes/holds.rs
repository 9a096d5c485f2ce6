//! Holds: set, listed, released.

use std::sync::Arc;

use axum::extract::{RawPathParams, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use axum::{Extension, Json, Router};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
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
    let (relation, key) = (&served.relation, &key);
    let order = |pool: PgPool| async move { hold::set(&pool, relation, key, new).await };
    let set = served.ordered(Attempts::once(), order).await?;
    Ok((StatusCode::CREATED, Json(set)).into_response())
}

async fn list(
    State(served): State<Arc<Served>>,
    segments: Segments,
) -> Result<Json<Listed>, ApiError> {
    let key = Key::from_postgres(key_of(&served, segments)?);
    let (relation, key) = (&served.relation, &key);
    let order = |pool: PgPool| async move { hold::list(&pool, relation, key).await };
    Ok(Json(Listed { holds: served.ordered(Attempts::repeatable(), order).await? }))
}

async fn release(
    State(served): State<Arc<Served>>,
    Extension(actor): Extension<Actor>,
    segments: Segments,
) -> Result<Json<Hold>, ApiError> {
    let (key, id) = key_and_number(&served, segments)?;
    let (relation, key, actor) = (&served.relation, &key, &*actor.0);
    let order = |pool: PgPool| async move { hold::release(&pool, relation, key, id, actor).await };
    Ok(Json(served.ordered(Attempts::once(), order).await?))
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
