//! Parked work: listed, let go on, waived.

use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;

use super::Served;
use super::deletions::{LIMIT_DEFAULT, LIMIT_MAX, read_cursor, write_cursor};
use crate::auth::Actor;
use crate::db::Attempts;
use crate::error::ApiError;
use crate::orders::parked::{self, Filter, GoesOn, Parked};

/// What the cursors of this list are about.
const LIST: &str = "parked.list";

pub(super) fn routes(served: &Served) -> Router<Arc<Served>> {
    let path = &served.path;
    Router::new()
        .route(&format!("/{path}/parked"), get(list))
        .route(&format!("/{path}/parked/{{id}}/retry"), post(retry))
        .route(&format!("/{path}/parked/{{id}}/waive"), post(waive))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    limit: Option<i64>,
    cursor: Option<String>,
}

#[derive(Serialize)]
struct Listed {
    parked: Vec<Parked>,
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Waiver {
    store: String,
    reason: String,
}

/// The limit and the place of a page that is asked for.
pub(super) fn page(
    served: &Served,
    list: &str,
    limit: Option<i64>,
    cursor: Option<&str>,
) -> Result<(i64, i64), ApiError> {
    let limit = limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(ApiError::Query(format!("limit must be from 1 to {LIMIT_MAX}")));
    }
    let Some(cursor) = cursor else { return Ok((limit, 0)) };
    let after = read_cursor(cursor, &served.relation.name, Some(list));
    let after = after.ok_or_else(|| ApiError::Query("cursor is not one of this list".into()))?;
    Ok((limit, after))
}

/// The cursor behind a page of `limit`, of which one more was asked for; cuts that one off.
pub(super) fn next_page<T>(
    served: &Served,
    list: &str,
    limit: i64,
    items: &mut Vec<T>,
    id: impl Fn(&T) -> i64,
) -> Option<String> {
    let asked_for = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = items.len() > asked_for;
    items.truncate(asked_for);
    let last = items.last().filter(|_| more)?;
    Some(write_cursor(id(last), &served.relation.name, Some(list)))
}

/// A number in a path. What is none is the number of nothing.
pub(super) fn number(id: Result<Path<i64>, PathRejection>) -> Result<i64, ApiError> {
    id.map(|Path(id)| id).map_err(|_| ApiError::NotFound)
}

async fn list(
    State(served): State<Arc<Served>>,
    query: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Listed>, ApiError> {
    let Query(asked) = query.map_err(|rejection| ApiError::Query(rejection.body_text()))?;
    let (limit, after) = page(&served, LIST, asked.limit, asked.cursor.as_deref())?;
    let filter = &Filter { relation: Some(&served.relation.name), reason: None };
    let order = |pool: PgPool| async move { parked::list(&pool, filter, after, limit + 1).await };
    let mut parked = served.ordered(Attempts::repeatable(), order).await?;
    let next_cursor = next_page(&served, LIST, limit, &mut parked, |one| one.id);
    Ok(Json(Listed { parked, next_cursor }))
}

async fn retry(
    State(served): State<Arc<Served>>,
    Extension(actor): Extension<Actor>,
    id: Result<Path<i64>, PathRejection>,
) -> Result<Json<GoesOn>, ApiError> {
    let (id, relation, actor) = (number(id)?, Some(&*served.relation.name), &*actor.0);
    let order = |pool: PgPool| async move { parked::retry(&pool, relation, id, actor).await };
    Ok(Json(served.ordered(Attempts::once(), order).await?))
}

async fn waive(
    State(served): State<Arc<Served>>,
    Extension(actor): Extension<Actor>,
    id: Result<Path<i64>, PathRejection>,
    request: Request,
) -> Result<Json<GoesOn>, ApiError> {
    let id = number(id)?;
    let waiver: Waiver =
        served.json(request, "{\"store\": its name, \"reason\": why no proof is needed}").await?;
    let (relation, actor) = (Some(&*served.relation.name), &*actor.0);
    let what = (&*waiver.store, &*waiver.reason);
    let order = |pool: PgPool| async move { parked::waive(&pool, relation, id, what, actor).await };
    Ok(Json(served.ordered(Attempts::once(), order).await?))
}
