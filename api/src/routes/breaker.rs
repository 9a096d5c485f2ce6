//! The relation's breaker: shown, approved, rejected.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;

use super::Served;
use crate::auth::Actor;
use crate::db::Attempts;
use crate::error::ApiError;
use crate::orders::breaker::{self, Breaker, Chosen, Decided};

pub(super) fn routes(served: &Served) -> Router<Arc<Served>> {
    let path = &served.path;
    Router::new()
        .route(&format!("/{path}/breaker"), get(show))
        .route(&format!("/{path}/breaker/approve"), post(approve))
        .route(&format!("/{path}/breaker/reject"), post(reject))
}

/// `all` must be said: a body in which the rest was forgotten must not decide on everything.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    #[serde(default)]
    up_to: Option<i64>,
    #[serde(default)]
    from: Option<DateTime<Utc>>,
    #[serde(default)]
    to: Option<DateTime<Utc>>,
    #[serde(default)]
    all: bool,
}

#[derive(Serialize)]
struct Answered {
    #[serde(flatten)]
    decided: Decided,
    /// Whether all that were chosen were gone through. If not, the time of one request was over: ask again.
    complete: bool,
}

impl Wanted {
    async fn read(served: &Served, request: Request) -> Result<Chosen, ApiError> {
        let expected = "{\"up_to\": the id that was shown, \"from\", \"to\": RFC 3339 times} or {\"all\": true}";
        let Self { up_to, from, to, all } = served.json(request, expected).await?;
        let chosen = Chosen { up_to, from, to };
        if all == (chosen == Chosen::default()) {
            return Ok(chosen);
        }
        Err(ApiError::Values(format!("which of those that wait? expected {expected}")))
    }
}

async fn show(State(served): State<Arc<Served>>) -> Result<Json<Breaker>, ApiError> {
    let relation = &served.relation;
    let order = |pool: PgPool| async move { breaker::show(&pool, relation).await };
    Ok(Json(served.ordered(Attempts::repeatable(), order).await?))
}

async fn approve(
    State(served): State<Arc<Served>>,
    Extension(actor): Extension<Actor>,
    request: Request,
) -> Result<Json<Answered>, ApiError> {
    decide(&served, &actor, request, Decision::Approve).await
}

async fn reject(
    State(served): State<Arc<Served>>,
    Extension(actor): Extension<Actor>,
    request: Request,
) -> Result<Json<Answered>, ApiError> {
    decide(&served, &actor, request, Decision::Reject).await
}

#[derive(Clone, Copy)]
enum Decision {
    Approve,
    Reject,
}

async fn decide(
    served: &Served,
    actor: &Actor,
    request: Request,
    decision: Decision,
) -> Result<Json<Answered>, ApiError> {
    let chosen = Wanted::read(served, request).await?;
    let end = Instant::now() + served.body_time_max / 2;
    let (relation, actor) = (&served.relation, &*actor.0);
    let order = |pool: PgPool| async move {
        let mut complete = true;
        let in_time = |_: &Decided| in_time(end, &mut complete);
        let decided = match decision {
            Decision::Approve => breaker::approve(&pool, relation, chosen, actor, in_time).await?,
            Decision::Reject => breaker::reject(&pool, relation, chosen, actor, in_time).await?,
        };
        Ok(Answered { decided, complete })
    };
    Ok(Json(served.ordered(Attempts::repeatable(), order).await?))
}

/// Ends a decision in time for its answer.
fn in_time(end: Instant, complete: &mut bool) -> ControlFlow<()> {
    if Instant::now() < end {
        return ControlFlow::Continue(());
    }
    *complete = false;
    ControlFlow::Break(())
}
