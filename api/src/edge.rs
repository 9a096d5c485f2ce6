//! What every request passes: a span, the time limit, the metrics, and the writing of problems.
//!
//! Spans and metrics name the route, never the path: a key may be personal.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::Instrument;

use crate::error::{ApiError, PROBLEM_JSON, Problem};

/// Requests answered, by `route`, `method` and `status`.
pub const REQUESTS_TOTAL: &str = "tombstream_api_requests_total";
/// How long answers took, by `route` and `method`.
pub const REQUEST_DURATION_SECONDS: &str = "tombstream_api_request_duration_seconds";
/// Flags that were changed, by `relation` and `action` (`create`, `flag`, `restore`).
pub const FLIPS_TOTAL: &str = "tombstream_api_flips_total";

/// Passes a request on and its answer back.
pub(crate) async fn edge(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let method = method_label(request.method());
    // Anything else is one label: what strangers ask for must not make time series.
    let route = match request.extensions().get::<MatchedPath>() {
        Some(route) => route.as_str().to_owned(),
        None => "none".to_owned(),
    };
    let path = request.uri().path().to_owned();
    let span = tracing::info_span!("request", method, route, status = tracing::field::Empty);
    // Invariant (S2, S7): a handler is carried through, whoever still waits for it; its statements have a limit of
    // the server's. Dropped in the middle of a `begin`, it would give its connection back inside a transaction
    // (sqlx 0.9), and the next request's flag would be answered and never committed;
    // `restore::a_caller_who_goes_away_takes_no_later_flag_along`.
    let answer = async {
        let carried = tokio::spawn(next.run(request).in_current_span());
        match tokio::time::timeout(limit, carried).await {
            Ok(Ok(response)) => response,
            Ok(Err(failed)) => match failed.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The process ends.
                Err(_) => ApiError::Timeout.into_response(),
            },
            Err(_) => ApiError::Timeout.into_response(),
        }
    };
    let mut response = answer.instrument(span.clone()).await;
    write_problem(&mut response, path);
    // A cache would show a row after its deletion.
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));

    let status = response.status().as_u16();
    let took = begun.elapsed();
    span.record("status", status);
    span.in_scope(|| tracing::debug!(took_ms = took.as_millis(), "answered"));
    metrics::counter!(
        REQUESTS_TOTAL, "route" => route.clone(), "method" => method, "status" => status.to_string()
    )
    .increment(1);
    metrics::histogram!(REQUEST_DURATION_SECONDS, "route" => route, "method" => method)
        .record(took.as_secs_f64());
    response
}

/// Gives every answer that is an error a problem document, also those that axum makes itself.
fn write_problem(response: &mut Response, path: String) {
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return;
    }
    let written = response.extensions_mut().remove::<Problem>();
    let mut problem = written.unwrap_or_else(|| Problem::of_status(status));
    problem.instance = Some(path);
    let (status, body) = match serde_json::to_vec(&problem) {
        Ok(body) => (status, body),
        Err(error) => {
            tracing::error!(error = %error, "problem not written");
            (StatusCode::INTERNAL_SERVER_ERROR, Vec::new())
        }
    };
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, PROBLEM_JSON);
    response.headers_mut().remove(header::CONTENT_LENGTH);
    *response.body_mut() = Body::from(body);
}

fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
