//! Many rows in one request.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::routing::post;
use axum::{Extension, Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgPool;
use tombstream_model::Key;

use super::Served;
use crate::auth::Actor;
use crate::db::Attempts;
use crate::edge::FLIPS_TOTAL;
use crate::error::ApiError;
use crate::key;
use crate::orders::bulk::{self, Became};

pub(super) fn routes(served: &Served) -> Router<Arc<Served>> {
    Router::new()
        .route(&format!("/{}/bulk/delete", served.path), post(flag))
        .route(&format!("/{}/bulk/restore", served.path), post(restore))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    keys: Vec<Value>,
}

#[derive(Serialize)]
struct Answered {
    /// In the order of the request.
    keys: Vec<KeyBecame>,
}

#[derive(Serialize)]
struct KeyBecame {
    key: Value,
    became: String,
}

const EXPECTED: &str = "{\"keys\": [key, …]}, a key of several columns being an array";

async fn flag(
    State(served): State<Arc<Served>>,
    Extension(actor): Extension<Actor>,
    request: Request,
) -> Result<Json<Answered>, ApiError> {
    let keys = wanted(&served, request).await?;
    let (relation, keys, actor) = (&served.relation, &*keys, &*actor.0);
    let order = |pool: PgPool| async move { bulk::flag(&pool, relation, keys, actor).await };
    let became = served.ordered(Attempts::repeatable(), order).await?;
    Ok(served.answered(became, ("flagged", "flag")))
}

async fn restore(
    State(served): State<Arc<Served>>,
    Extension(actor): Extension<Actor>,
    request: Request,
) -> Result<Json<Answered>, ApiError> {
    let keys = wanted(&served, request).await?;
    let (relation, keys, actor) = (&served.relation, &*keys, &*actor.0);
    let order = |pool: PgPool| async move { bulk::restore(&pool, relation, keys, actor).await };
    let became = served.ordered(Attempts::repeatable(), order).await?;
    Ok(served.answered(became, ("restored", "restore")))
}

/// The keys of a request.
async fn wanted(served: &Served, request: Request) -> Result<Vec<Key>, ApiError> {
    let wanted: Wanted = served.json(request, EXPECTED).await?;
    Ok(bulk::keys(&served.relation, &wanted.keys)?)
}

impl Served {
    fn answered(
        &self,
        became: Vec<Became>,
        (flipped, action): (&str, &'static str),
    ) -> Json<Answered> {
        // A key that was given twice was flipped once.
        let mut keys: Vec<&[String]> =
            became.iter().filter(|one| one.became == flipped).map(|one| &*one.key).collect();
        keys.sort_unstable();
        keys.dedup();
        if !keys.is_empty() {
            let relation = self.relation.name.to_string();
            metrics::counter!(FLIPS_TOTAL, "relation" => relation, "action" => action)
                .increment(keys.len() as u64);
        }
        let shown = |one: Became| KeyBecame {
            key: key::json(&self.relation, &one.key),
            became: one.became,
        };
        Json(Answered { keys: became.into_iter().map(shown).collect() })
    }
}
