//! What went wrong, as problem documents of RFC 9457.
//!
//! An [`ApiError`] becomes a response with a [`Problem`] among its extensions; `edge` writes it out,
//! since only there the request's path is known. What the database said goes to the log only.

use std::borrow::Cow;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::orders::OrderError;

/// The media type of a problem document.
pub(crate) const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// The guard trigger's SQLSTATE: a restore after the claim.
const CLAIMED: &str = "TS001";

/// Why a request is not answered as it wished.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("no such route")]
    NoRoute,
    #[error("method not allowed")]
    Method,
    #[error("no such row")]
    NotFound,
    #[error("not deleted")]
    NotDeleted,
    #[error("bad key: {0}")]
    Key(String),
    #[error("bad query: {0}")]
    Query(String),
    #[error("no token, or a wrong one")]
    Unauthorized { wrong: bool },
    #[error("not json by its content type")]
    MediaType,
    #[error("bad json: {0}")]
    Json(String),
    #[error("body too large")]
    TooLarge { max: usize },
    #[error("body not received in time")]
    SlowBody,
    #[error("body not received")]
    Body,
    #[error("bad values: {0}")]
    Values(String),
    #[error("claimed")]
    Claimed,
    #[error("refused by the database: {0}")]
    Conflict(&'static str),
    #[error(transparent)]
    Order(OrderError),
    #[error("no answer in time")]
    Timeout,
    #[error("not ready: {0}")]
    NotReady(&'static str),
    #[error("database")]
    Database(#[source] sqlx::Error),
}

/// What can be done about an error of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The guard trigger: the claim was first.
    Claimed,
    /// Two transactions met; the same again may succeed.
    Contention,
    /// The connection broke. Whether the statement was done is not known.
    Lost,
    /// The database can't serve now.
    Unavailable,
    /// It took longer than the statement may.
    Timeout,
    /// A value does not fit its column or a constraint.
    Value,
    /// A row with this key or unique value exists.
    Duplicate,
    /// A trigger of the application refused.
    Refused,
    /// A mistake in the configuration or here.
    Internal,
}

/// A problem document, still without `instance`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Problem {
    #[serde(rename = "type")]
    pub(crate) kind: Cow<'static, str>,
    pub(crate) title: Cow<'static, str>,
    pub(crate) status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) detail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) instance: Option<String>,
}

impl Fault {
    pub(crate) fn of(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(error) => match error.code().as_deref() {
                Some(code) => Self::of_code(code),
                None => Self::Internal,
            },
            sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => {
                Self::Lost
            }
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Tls(_) => {
                Self::Unavailable
            }
            _ => Self::Internal,
        }
    }

    fn of_code(code: &str) -> Self {
        match code {
            CLAIMED => Self::Claimed,
            "40001" | "40P01" => Self::Contention,
            // A server that is stopping ends sessions with these.
            "57P01" | "57P02" | "57P05" => Self::Lost,
            // Starting up; read-only, as after a failover to a standby.
            "57P03" | "25006" => Self::Unavailable,
            "57014" | "55P03" => Self::Timeout,
            "23505" | "23P01" => Self::Duplicate,
            "P0001" => Self::Refused,
            _ => match code.get(..2) {
                Some("08") => Self::Lost,
                // No disk, no memory, no connection; an I/O error.
                Some("53" | "58") => Self::Unavailable,
                Some("22" | "23") => Self::Value,
                _ => Self::Internal,
            },
        }
    }
}

impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        match Fault::of(&error) {
            Fault::Claimed => Self::Claimed,
            _ => Self::Database(error),
        }
    }
}

impl From<OrderError> for ApiError {
    fn from(error: OrderError) -> Self {
        match error {
            OrderError::Database(error) => error.into(),
            error => Self::Order(error),
        }
    }
}

impl ApiError {
    /// Whether the same again may succeed.
    pub(crate) fn fault(&self) -> Option<Fault> {
        match self {
            Self::Database(error) => Some(Fault::of(error)),
            Self::Claimed => Some(Fault::Claimed),
            _ => None,
        }
    }

    fn problem(&self) -> Problem {
        let (status, slug, title, detail): (_, _, _, Option<Cow<'_, str>>) = match self {
            Self::NoRoute => (
                404,
                "no-such-route",
                "No such route",
                Some("/openapi.json lists every route".into()),
            ),
            Self::Method => (
                405,
                "method-not-allowed",
                "Method not allowed",
                Some("the Allow header lists what this route takes".into()),
            ),
            Self::NotFound => (404, "not-found", "No such row", None),
            Self::NotDeleted => (
                404,
                "not-deleted",
                "Not deleted",
                Some("the row is not flagged, and no deletion of it is known".into()),
            ),
            Self::Key(detail) => (400, "bad-key", "Bad key", Some(detail.into())),
            Self::Query(detail) => (400, "bad-query", "Bad query", Some(detail.into())),
            Self::Unauthorized { wrong } => (
                401,
                "unauthorized",
                "Unauthorized",
                Some(if *wrong { "this token is not known" } else { "send a bearer token" }.into()),
            ),
            Self::MediaType => {
                (415, "media-type", "Unsupported media type", Some("send application/json".into()))
            }
            Self::Json(detail) => (400, "bad-json", "Bad JSON", Some(detail.into())),
            Self::TooLarge { max } => (
                413,
                "body-too-large",
                "Body too large",
                Some(format!("a body has at most {max} bytes").into()),
            ),
            Self::SlowBody => (408, "slow-body", "Body not received in time", None),
            Self::Body => (400, "bad-body", "Body not received", None),
            Self::Values(detail) => (422, "bad-values", "Bad values", Some(detail.into())),
            Self::Claimed => (
                409,
                "claimed",
                "Past the point of no return",
                Some("the deletion is claimed: copies are being destroyed, or are already".into()),
            ),
            Self::Conflict(detail) => (409, "conflict", "Conflict", Some((*detail).into())),
            Self::Order(error) => {
                let (status, slug, title) = match error {
                    OrderError::Missing(_) => (404, "not-found", "Not found"),
                    OrderError::Refused(_) => (409, "conflict", "Conflict"),
                    OrderError::Wrong(_) => (422, "bad-values", "Bad values"),
                    OrderError::Breaker(_) => (409, "breaker", "The relation's breaker stops this"),
                    OrderError::Database(error) => return Self::database(Fault::of(error)),
                };
                (status, slug, title, Some(error.to_string().into()))
            }
            Self::Timeout => (
                504,
                "timeout",
                "No answer in time",
                Some(
                    "whether it was done is not known; deleting and restoring may be repeated"
                        .into(),
                ),
            ),
            Self::NotReady(detail) => (503, "not-ready", "Not ready", Some((*detail).into())),
            Self::Database(error) => return Self::database(Fault::of(error)),
        };
        Problem {
            kind: format!("urn:tombstream:problem:{slug}").into(),
            title: title.into(),
            status,
            detail: detail.map(Cow::into_owned),
            instance: None,
        }
    }

    fn database(fault: Fault) -> Problem {
        let stands_for = match fault {
            Fault::Claimed => Self::Claimed,
            Fault::Timeout => Self::Timeout,
            Fault::Duplicate => Self::Conflict("a row with these values exists already"),
            Fault::Refused => Self::Conflict("a rule of the database refuses this"),
            Fault::Value => Self::Values("a value does not fit the table".into()),
            Fault::Contention => Self::NotReady("others change this row; try again"),
            Fault::Lost | Fault::Unavailable => {
                return Problem {
                    kind: "urn:tombstream:problem:unavailable".into(),
                    title: "Database unavailable".into(),
                    status: 503,
                    detail: None,
                    instance: None,
                };
            }
            Fault::Internal => return Problem::of_status(StatusCode::INTERNAL_SERVER_ERROR),
        };
        stands_for.problem()
    }
}

impl Problem {
    /// What stands for a response that says nothing but its status.
    pub(crate) fn of_status(status: StatusCode) -> Self {
        Self {
            kind: "about:blank".into(),
            title: status.canonical_reason().unwrap_or("Error").into(),
            status: status.as_u16(),
            detail: None,
            instance: None,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if let Self::Database(error) = &self {
            // A person looks for this when a caller got a bare 500 or 503.
            tracing::error!(error = %error, fault = ?Fault::of(error), "database refused");
        }
        let problem = self.problem();
        let status = StatusCode::from_u16(problem.status).expect("written above as a status");
        let mut response = status.into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Self::Unauthorized { wrong } = self {
            let challenge = if wrong {
                "Bearer realm=\"tombstream\", error=\"invalid_token\""
            } else {
                "Bearer realm=\"tombstream\""
            };
            let challenge = HeaderValue::from_static(challenge);
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response.extensions_mut().insert(problem);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sqlstate_is_judged() {
        for (code, fault) in [
            ("TS001", Fault::Claimed),
            ("40001", Fault::Contention),
            ("40P01", Fault::Contention),
            ("57P01", Fault::Lost),
            ("08006", Fault::Lost),
            ("57P03", Fault::Unavailable),
            ("25006", Fault::Unavailable),
            ("53100", Fault::Unavailable),
            ("53300", Fault::Unavailable),
            ("57014", Fault::Timeout),
            ("55P03", Fault::Timeout),
            ("22P02", Fault::Value),
            ("23502", Fault::Value),
            ("23505", Fault::Duplicate),
            ("P0001", Fault::Refused),
            ("42P01", Fault::Internal),
            ("42501", Fault::Internal),
            ("é", Fault::Internal),
        ] {
            assert_eq!(Fault::of_code(code), fault, "{code}");
        }
    }

    #[test]
    fn a_lost_database_is_503_and_comes_back_later() {
        let io = std::io::Error::other("secret host name");
        let response = ApiError::from(sqlx::Error::Io(io)).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        let problem = response.extensions().get::<Problem>().unwrap();
        assert!(!serde_json::to_string(problem).unwrap().contains("secret"));
    }

    #[test]
    fn a_mistake_of_ours_says_nothing_of_the_database() {
        let response = ApiError::from(sqlx::Error::ColumnNotFound("x".into())).into_response();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let problem = response.extensions().get::<Problem>().unwrap();
        assert_eq!(
            serde_json::to_value(problem).unwrap(),
            serde_json::json!({
                "type": "about:blank", "title": "Internal Server Error", "status": 500
            })
        );
    }
}
