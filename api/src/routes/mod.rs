//! The routes: which there are, and what each handler is given.

mod breaker;
mod bulk;
mod deletions;
mod health;
mod holds;
mod parked;
mod rehydrations;
mod rows;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::{Router, middleware};
use sqlx::PgPool;
use tombstream_model::Relation;

use crate::auth::authenticate;
use crate::config::{ApiConfig, ApiRelation, ConfigError};
use crate::db::{Attempts, Db};
use crate::edge::edge;
use crate::error::ApiError;
use crate::group::Group;
use crate::key;
use crate::openapi;
use crate::orders::OrderError;
use crate::sql::Sql;

/// A relation with what its handlers need.
pub(crate) struct Served {
    relation: Arc<Relation>,
    path: String,
    columns: Vec<String>,
    create: Option<Vec<String>>,
    sql: Sql,
    db: Db,
    /// Flags that go together.
    group: Option<Group>,
    body_max: usize,
    /// Longest time for a body to arrive: half of the request's, so that the rest can still be done.
    body_time_max: Duration,
}

/// Makes every route of `config` on `pool`. Asks nothing of the database yet.
///
/// [`crate::pool_options`] and [`crate::connect_options`] say how the pool should be made.
pub fn router(pool: PgPool, config: ApiConfig) -> Result<Router, ConfigError> {
    config.check()?;
    let document = openapi::document(&config);
    let db = Db::new(pool, config.prepared_statements, config.timeout);
    let mut rows = Router::new().merge(openapi::routes(&document));
    for relation in &config.relations {
        rows = rows.merge(relation_routes(Served::new(relation, &config, db.clone())));
    }
    let rows = rows.route_layer(middleware::from_fn_with_state(config.tokens, authenticate));
    Ok(Router::new()
        .merge(rows)
        .merge(health::routes(db, config.metrics))
        .fallback(async || ApiError::NoRoute)
        .method_not_allowed_fallback(async || ApiError::Method)
        .layer(DefaultBodyLimit::max(config.body_max))
        .layer(middleware::from_fn_with_state(config.timeout, edge)))
}

/// The path of one row's routes: `/documents/{id}`.
pub(crate) fn row_path(api: &ApiRelation) -> String {
    let names = key::segment_names(&api.relation);
    names.iter().fold(format!("/{}", api.path), |path, name| format!("{path}/{{{name}}}"))
}

fn relation_routes((served, row_path): (Arc<Served>, String)) -> Router {
    rows::routes(&served, &row_path)
        .merge(deletions::routes(&row_path, &served))
        .merge(holds::routes(&row_path))
        .merge(parked::routes(&served))
        .merge(breaker::routes(&served))
        .merge(bulk::routes(&served))
        .merge(rehydrations::routes(&served))
        .with_state(served)
}

impl Served {
    fn new(api: &ApiRelation, config: &ApiConfig, db: Db) -> (Arc<Self>, String) {
        let served = Self {
            relation: Arc::clone(&api.relation),
            path: api.path.clone(),
            columns: api.columns.clone(),
            create: api.create.clone(),
            sql: Sql::new(&api.relation, &api.columns),
            db,
            group: config.group_flags.then(Group::new),
            body_max: config.body_max,
            body_time_max: config.timeout / 2,
        };
        (Arc::new(served), row_path(api))
    }

    /// Carries out an order, again where that may help.
    async fn ordered<T, F: Future<Output = Result<T, OrderError>>>(
        &self,
        mut attempts: Attempts,
        order: impl Fn(PgPool) -> F,
    ) -> Result<T, ApiError> {
        loop {
            let pool = self.db.pool(&attempts).await?.clone();
            match order(pool).await.map_err(ApiError::from) {
                Err(error) if attempts.again(&error).await => {}
                result => return result,
            }
        }
    }
}
