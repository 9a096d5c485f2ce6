//! Rows: made, read, flagged, restored.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{FromRequest, RawPathParams, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::error::Category;
use serde_json::value::RawValue;
use sqlx::postgres::{PgDatabaseError, PgRow};
use sqlx::{Connection, Row as _};

use super::Served;
use crate::auth::Actor;
use crate::db::Attempts;
use crate::edge::FLIPS_TOTAL;
use crate::error::{ApiError, Fault};
use crate::key;
use crate::row::Row;
use crate::sql;

/// The body of a 202, as the proof of concept had it.
#[derive(Serialize)]
struct SoftDeleted {
    status: &'static str,
    id: Value,
}

pub(super) type Segments = Result<RawPathParams, RawPathParamsRejection>;

pub(super) fn routes(served: &Served, row_path: &str) -> Router<Arc<Served>> {
    let mut routes = Router::new()
        .route(row_path, get(read).delete(flag))
        .route(&format!("{row_path}/restore"), post(restore));
    if served.create.is_some() {
        routes = routes
            .route(&format!("/{}", served.path), post(create))
            .route(&format!("/{}/", served.path), post(create));
    }
    routes
}

/// The canonical key of a request's path.
pub(super) fn key_of(served: &Served, segments: Segments) -> Result<Vec<String>, ApiError> {
    match segments {
        Ok(segments) => key::parse(&served.relation, &segments),
        Err(_) => Err(ApiError::Key("not utf-8 once percent-decoded".into())),
    }
}

async fn read(State(served): State<Arc<Served>>, segments: Segments) -> Result<Response, ApiError> {
    let key = key_of(&served, segments)?;
    let mut attempts = Attempts::repeatable();
    let row = loop {
        let query = served.db.query(&served.sql.read).bind(&key);
        match served.db.optional(&attempts, query).await.map_err(ApiError::from) {
            Err(error) if attempts.again(&error).await => {}
            result => break result?,
        }
    };
    let row = row.ok_or(ApiError::NotFound)?;
    Ok(Json(served.row(&row)?.ok_or(ApiError::NotFound)?).into_response())
}

/// Sets the flag. One statement, which is a transaction of its own: a 202 is sent after its commit. Where flags go
/// together it is one of all that came at the same time, and whatever that leaves undecided is asked alone.
async fn flag(
    State(served): State<Arc<Served>>,
    Extension(actor): Extension<Actor>,
    segments: Segments,
) -> Result<Response, ApiError> {
    let key = key_of(&served, segments)?;
    let mut attempts = Attempts::repeatable();
    let mut together = served.together(&key, &actor).await;
    loop {
        let became = match together.take() {
            Some(became) => became,
            None => match served.flag_alone(&attempts, &key, &actor).await {
                Err(error) if attempts.again(&error).await => continue,
                result => result?,
            },
        };
        match became.as_str() {
            "flagged" => served.count("flag"),
            "was_flagged" | "gone" => {}
            "missing" => return Err(ApiError::NotFound),
            _contended if attempts.wait().await => continue,
            _contended => return Err(ApiError::Conflict("the database kept the row as it was")),
        }
        let location = format!("{}/deletion", key::path(&served.path, &key));
        let id = key::json(&served.relation, &key);
        let body = Json(SoftDeleted { status: "file soft-deleted", id });
        return Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], body).into_response());
    }
}

/// Unsets the flag, unless the deletion is claimed.
async fn restore(
    State(served): State<Arc<Served>>,
    Extension(actor): Extension<Actor>,
    segments: Segments,
) -> Result<Response, ApiError> {
    let key = key_of(&served, segments)?;
    let mut attempts = Attempts::repeatable();
    loop {
        match served.restore(&attempts, &key, &actor).await {
            Err(error) if attempts.again(&error).await => {}
            result => return result,
        }
    }
}

async fn create(
    State(served): State<Arc<Served>>,
    Extension(actor): Extension<Actor>,
    request: Request,
) -> Result<Response, ApiError> {
    let body = served.body(request).await?;
    let values = served.values(&body)?;
    // In the order of the configuration: few orders, few statements.
    let create = served.create.iter().flatten().map(String::as_str);
    let sql = served.sql.create(create.filter(|column| values.contains_key(*column))).into();
    let object =
        serde_json::to_string(&values).map_err(|error| ApiError::Json(error.to_string()))?;
    let mut attempts = Attempts::once();
    let row = loop {
        let query =
            served.db.query(&sql).bind(&object).bind(&*served.relation.name).bind(&*actor.0);
        match served.db.optional(&attempts, query).await {
            Ok(row) => break row,
            Err(error) => {
                let error = served.explain(error);
                if !attempts.again(&error).await {
                    return Err(error);
                }
            }
        }
    };
    let row = row.ok_or(ApiError::Conflict("the database did not take the row"))?;
    served.count("create");
    let key: Vec<String> = row.try_get("key")?;
    let location = key::path(&served.path, &key);
    let row = Json(served.row(&row)?);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], row).into_response())
}

impl Served {
    /// What became of a flag that went with others.
    async fn together(&self, key: &[String], actor: &Actor) -> Option<String> {
        let with = (&self.db, &self.sql, &*self.relation.name);
        self.group.as_ref()?.flag(with, key, &actor.0).await
    }

    async fn flag_alone(
        &self,
        attempts: &Attempts,
        key: &[String],
        actor: &Actor,
    ) -> Result<String, ApiError> {
        let query = self.db.query(&self.sql.flag);
        let query = query.bind(key).bind(&*self.relation.name).bind(&*actor.0);
        Ok(self.db.one(attempts, query).await?.try_get("became")?)
    }

    fn row(&self, row: &PgRow) -> Result<Option<Row<'_>>, sqlx::Error> {
        Row::read(&self.columns, row)
    }

    fn count(&self, action: &'static str) {
        let relation = self.relation.name.to_string();
        metrics::counter!(FLIPS_TOTAL, "relation" => relation, "action" => action).increment(1);
    }

    /// Invariant (S1, S2): the row is locked first, and what is decided is decided by the next
    /// statement, whose snapshot is newer than the lock: a claim that held the row until then is
    /// seen. In one statement it would not be; a_restore_that_waited_for_a_claim_is_refused.
    async fn restore(
        &self,
        attempts: &Attempts,
        key: &Vec<String>,
        actor: &Actor,
    ) -> Result<Response, ApiError> {
        let relation = &*self.relation.name;
        let mut connection = self.db.acquire(attempts).await?;
        let mut transaction = connection.begin_with("begin isolation level read committed").await?;

        let query = self.db.query(&self.sql.lock).bind(key);
        let Some(locked) = query.fetch_optional(&mut *transaction).await? else {
            let query = self.db.fixed(sql::GONE).bind(key).bind(relation);
            let gone = query.fetch_optional(&mut *transaction).await?;
            let claimed = gone.map(|row| row.try_get("claimed")).transpose()?.unwrap_or(false);
            transaction.rollback().await?;
            return Err(if claimed { ApiError::Claimed } else { ApiError::NotFound });
        };
        let flagged: bool = locked.try_get("flagged")?;

        let query = self.db.query(&self.sql.restore).bind(key).bind(relation).bind(&*actor.0);
        let decided = query.fetch_one(&mut *transaction).await?;
        if decided.try_get("claimed")? {
            transaction.rollback().await?;
            return Err(ApiError::Claimed);
        }
        let revived = self.row(&decided)?;
        let alive: Option<bool> = decided.try_get("alive")?;
        if flagged && alive != Some(true) {
            transaction.rollback().await?;
            return Err(ApiError::Conflict("the database kept the row as it was"));
        }

        let query = self.db.fixed(sql::CANCEL).bind(key).bind(relation);
        let hidden = query.fetch_all(&mut *transaction).await?;
        let hidden = hidden.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i64>, _>>()?;
        if !hidden.is_empty() {
            let query = self.db.fixed(sql::REHYDRATE).bind(hidden);
            query.execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        if flagged {
            self.count("restore");
        }
        let alive = match revived {
            Some(row) => Some(row),
            None => self.row(&locked)?,
        };
        Ok(Json(alive.ok_or(ApiError::NotFound)?).into_response())
    }

    /// What the body says, which is to be `expected`.
    pub(super) async fn json<T: DeserializeOwned>(
        &self,
        request: Request,
        expected: &str,
    ) -> Result<T, ApiError> {
        let body = self.body(request).await?;
        serde_json::from_slice(&body).map_err(|error| match error.classify() {
            Category::Data => ApiError::Values(format!("{error}: expected {expected}")),
            Category::Syntax | Category::Eof | Category::Io => {
                ApiError::Json(format!("line {}, column {}", error.line(), error.column()))
            }
        })
    }

    /// The body, if it is JSON by its type, small enough, and there in time.
    async fn body(&self, request: Request) -> Result<Bytes, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::MediaType);
        }
        match tokio::time::timeout(self.body_time_max, Bytes::from_request(request, &())).await {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Err(ApiError::TooLarge { max: self.body_max })
            }
            Ok(Err(_)) => Err(ApiError::Body),
            Err(_) => Err(ApiError::SlowBody),
        }
    }

    /// The values of a new row. They stay text, so that no digit is lost on the way.
    fn values<'b>(&self, body: &'b [u8]) -> Result<BTreeMap<String, &'b RawValue>, ApiError> {
        let allowed = self.create.as_deref().unwrap_or_default();
        let takes = || match allowed {
            [] => "an empty object".to_owned(),
            allowed => format!("an object of {}", allowed.join(", ")),
        };
        let values: BTreeMap<String, &RawValue> =
            serde_json::from_slice(body).map_err(|error| match error.classify() {
                Category::Data => ApiError::Values(format!("expected {}", takes())),
                Category::Syntax | Category::Eof | Category::Io => {
                    ApiError::Json(format!("line {}, column {}", error.line(), error.column()))
                }
            })?;
        match values.keys().find(|name| !allowed.contains(name)) {
            Some(unknown) => {
                Err(ApiError::Values(format!("`{unknown}` can't be set: expected {}", takes())))
            }
            None => Ok(values),
        }
    }

    /// An error of an insert, with the column's name where Postgres gives it and it may be told.
    fn explain(&self, error: sqlx::Error) -> ApiError {
        let column = error
            .as_database_error()
            .and_then(|error| error.try_downcast_ref::<PgDatabaseError>()?.column())
            .filter(|column| self.create.iter().flatten().any(|name| name == column));
        match (Fault::of(&error), column) {
            (Fault::Value, Some(column)) => {
                ApiError::Values(format!("`{column}` is missing, or its value does not fit"))
            }
            _ => error.into(),
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(Ok(value)) = headers.get(header::CONTENT_TYPE).map(|value| value.to_str()) else {
        return false;
    };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_known_by_its_media_type() {
        for (value, json) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/merge-patch+json", true),
            ("text/json", false),
            ("application/x-www-form-urlencoded", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, value.parse().unwrap())]);
            assert_eq!(is_json(&headers), json, "{value}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }
}
