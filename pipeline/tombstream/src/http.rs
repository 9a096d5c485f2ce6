//! The pipeline's own port: `/metrics`, `/healthz`, `/readyz`.
//!
//! `/healthz` fails when the process should be started again: an epoch stays open beyond
//! `epoch_age_max` (L4), or a part of the pipeline ended. `/readyz` fails when something outside
//! needs care: a store is down, a topic is paused. It says what, and so does `/healthz`.

use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tombstream_dataflow::Health;

use crate::telemetry::Metrics;

/// How long whoever runs the pipeline may take to say how it is.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// A question how the pipeline is.
pub(crate) type Ask = oneshot::Sender<Health>;

#[derive(Clone)]
struct Port {
    metrics: Metrics,
    asks: mpsc::Sender<Ask>,
    epoch_age_max: Duration,
}

/// What the pipeline answers.
enum Answer {
    Is(Box<Health>),
    /// It was told to stop, and asks no more.
    Stopping,
    /// Nobody answers.
    Stuck,
}

/// Serves the port until the process ends; questions go to `asks`.
pub(crate) async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    asks: mpsc::Sender<Ask>,
    epoch_age_max: Duration,
) -> std::io::Result<()> {
    let port = Port { metrics, asks, epoch_age_max };
    let router = Router::new()
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(port);
    axum::serve(listener, router).await
}

async fn metrics_text(State(port): State<Port>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (kind, port.metrics.render()).into_response()
}

async fn healthz(State(port): State<Port>) -> Response {
    match port.ask().await {
        Answer::Is(health) => {
            let problems = fatal(&health, port.epoch_age_max);
            respond(problems.is_empty(), if problems.is_empty() { "ok" } else { "failing" }, {
                let mut body = details(&health);
                body.insert("problems".into(), json!(problems));
                body
            })
        }
        // The supervisor that sent the signal decides how long it waits.
        Answer::Stopping => respond(true, "stopping", Map::new()),
        Answer::Stuck => respond(false, "stuck", Map::new()),
    }
}

async fn readyz(State(port): State<Port>) -> Response {
    match port.ask().await {
        Answer::Is(health) => {
            let ready = health.is_well() && fatal(&health, port.epoch_age_max).is_empty();
            respond(ready, if ready { "ready" } else { "not ready" }, details(&health))
        }
        Answer::Stopping => respond(false, "stopping", Map::new()),
        Answer::Stuck => respond(false, "stuck", Map::new()),
    }
}

impl Port {
    async fn ask(&self) -> Answer {
        let (ask, answer) = oneshot::channel();
        let asked = async {
            match self.asks.send(ask).await {
                Ok(()) => answer.await.ok(),
                Err(_) => None,
            }
        };
        match tokio::time::timeout(ANSWER_WAIT, asked).await {
            Ok(Some(health)) => Answer::Is(Box::new(health)),
            Ok(None) => Answer::Stopping,
            Err(_) => Answer::Stuck,
        }
    }
}

/// What only a restart may help against.
///
/// Invariant (L4): an epoch older than `epoch_age_max` fails liveness and is named;
/// `an_epoch_that_stays_open_fails_liveness_and_is_named`.
fn fatal(health: &Health, epoch_age_max: Duration) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some((epoch, age)) = health.oldest_epoch
        && age > epoch_age_max
    {
        problems.push(format!(
            "epoch {epoch} has been open for {} s; epoch_age_max is {} s",
            age.as_secs(),
            epoch_age_max.as_secs()
        ));
    }
    if let Some(broken) = &health.broken {
        problems.push(broken.clone());
    }
    problems
}

fn details(health: &Health) -> Map<String, Value> {
    let stores = health.stores.iter().map(|(name, store)| {
        let store = json!({
            "failing_s": store.failing_for.as_secs(),
            "down": store.down,
            "needs_a_person": store.halted,
            "said": store.said,
        });
        (name.to_string(), store)
    });
    let sources = health.sources.iter().map(|(place, source)| {
        let source = json!({
            "failing_s": source.failing_for.as_secs(),
            "needs_a_person": source.halted,
            "said": source.said,
        });
        (place.to_string(), source)
    });
    let ledger = health.ledger.iter().map(|(stage, ledger)| {
        let ledger = json!({
            "failing_s": ledger.failing_for.as_secs(),
            "needs_a_person": ledger.refused,
            "said": ledger.said,
        });
        ((*stage).to_owned(), ledger)
    });
    let mut body = Map::new();
    body.insert("in_flight".into(), json!(health.in_flight));
    if let Some((epoch, age)) = health.oldest_epoch {
        body.insert("oldest_epoch".into(), json!({ "epoch": epoch, "age_s": age.as_secs_f64() }));
    }
    let mut add = |name: &str, map: Map<String, Value>| {
        if !map.is_empty() {
            body.insert(name.into(), Value::Object(map));
        }
    };
    add("stores", stores.collect());
    add("sources", sources.collect());
    add("ledger", ledger.collect());
    add(
        "topics_paused",
        health.topics_paused.iter().map(|(topic, why)| (topic.to_string(), json!(why))).collect(),
    );
    add(
        "truncated",
        health.truncated.iter().map(|(name, times)| (name.to_string(), json!(times))).collect(),
    );
    body
}

fn respond(good: bool, status: &str, mut body: Map<String, Value>) -> Response {
    body.insert("status".into(), json!(status));
    let code = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(Value::Object(body))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_that_stays_open_fails_liveness_and_is_named() {
        let limit = Duration::from_secs(120);
        let aged = |age| Health { oldest_epoch: Some((17, age)), ..Health::default() };
        assert!(fatal(&aged(limit), limit).is_empty());
        let problems = fatal(&aged(Duration::from_secs(121)), limit);
        assert_eq!(problems, ["epoch 17 has been open for 121 s; epoch_age_max is 120 s"]);
    }

    #[test]
    fn a_part_that_ended_fails_liveness() {
        let health = Health { broken: Some("worker 1 ended".into()), ..Health::default() };
        assert_eq!(fatal(&health, Duration::MAX), ["worker 1 ended"]);
    }
}
