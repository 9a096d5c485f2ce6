//! Rehydrations: listed for whoever fills the stores, and noted as done.

use std::sync::Arc;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;

use super::Served;
use super::parked::{next_page, number, page};
use crate::auth::Actor;
use crate::db::Attempts;
use crate::error::ApiError;
use crate::orders::rehydrate::{self, Rehydration};

pub(super) fn routes(served: &Served) -> Router<Arc<Served>> {
    let path = &served.path;
    Router::new()
        .route(&format!("/{path}/rehydrations"), get(list))
        .route(&format!("/{path}/rehydrations/{{id}}/done"), post(done))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    #[serde(default)]
    open: bool,
    limit: Option<i64>,
    cursor: Option<String>,
}

#[derive(Serialize)]
struct Listed {
    rehydrations: Vec<Rehydration>,
    next_cursor: Option<String>,
}

async fn list(
    State(served): State<Arc<Served>>,
    query: Result<Query<Page>, QueryRejection>,
) -> Result<Json<Listed>, ApiError> {
    let Query(asked) = query.map_err(|rejection| ApiError::Query(rejection.body_text()))?;
    let open = asked.open;
    let about = if open { "rehydrations.open" } else { "rehydrations.all" };
    let (limit, after) = page(&served, about, asked.limit, asked.cursor.as_deref())?;
    let relation = Some(&*served.relation.name);
    let order = |pool: PgPool| async move {
        rehydrate::list(&pool, relation, open, after, limit + 1).await
    };
    let mut rehydrations = served.ordered(Attempts::repeatable(), order).await?;
    let next_cursor = next_page(&served, about, limit, &mut rehydrations, |one| one.id);
    Ok(Json(Listed { rehydrations, next_cursor }))
}

async fn done(
    State(served): State<Arc<Served>>,
    Extension(actor): Extension<Actor>,
    id: Result<Path<i64>, PathRejection>,
) -> Result<Json<Rehydration>, ApiError> {
    let (id, relation, actor) = (number(id)?, Some(&*served.relation.name), &*actor.0);
    let order = |pool: PgPool| async move { rehydrate::done(&pool, relation, id, actor).await };
    Ok(Json(served.ordered(Attempts::repeatable(), order).await?))
}
