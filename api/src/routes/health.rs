//! The process itself: alive, ready, counted. None of it needs a token.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use sqlx::Row;

use crate::config::MetricsText;
use crate::db::{Attempts, Db};
use crate::error::ApiError;
use crate::sql;

#[derive(Serialize)]
struct Ok200 {
    status: &'static str,
}

const OK: Json<Ok200> = Json(Ok200 { status: "ok" });

pub(super) fn routes(db: Db, metrics: Option<MetricsText>) -> Router {
    let routes = Router::new()
        .route("/", get(async || OK))
        .route("/healthz", get(async || OK))
        .route("/readyz", get(ready))
        .with_state(db);
    match metrics {
        None => routes,
        Some(text) => routes.route("/metrics", get(async move || exposition(text()))),
    }
}

fn exposition(text: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// Whether flips can be written: the database answers, and the ledger is there and ours to use.
async fn ready(State(db): State<Db>) -> Result<Json<Ok200>, ApiError> {
    let mut attempts = Attempts::repeatable();
    let row = loop {
        match db.one(&attempts, db.fixed(sql::READY)).await.map_err(ApiError::from) {
            Err(error) if attempts.again(&error).await => {}
            result => break result,
        }
    };
    let row = match row {
        Ok(row) => row,
        Err(error) => {
            tracing::warn!(error = %error, fault = ?error.fault(), "not ready");
            return Err(ApiError::NotReady("the database can't be asked"));
        }
    };
    match row.try_get("ready") {
        Ok(true) => Ok(OK),
        _ => Err(ApiError::NotReady(
            "the ledger is not there, or not ours to use: run `tombstream migrate`",
        )),
    }
}
