//! One signed request, and its whole answer.

use std::time::{Duration, Instant};

use chrono::Utc;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Certificate, Client as Http, Url, redirect, retry};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tombstream_model::{Address, DeletionId, SinkError};

use super::answer;
use super::config::{WebhookConfig, WebhookConfigError};
use super::sign::Signer;

/// What is asked of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Action {
    Destroy,
    Look,
}

/// One deletion, as the service is told of it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Asked<'a> {
    /// What the answer calls it.
    pub(super) id: String,
    /// The deletion's number, as on the receipt.
    pub(super) deletion: DeletionId,
    pub(super) store: &'a str,
    pub(super) address: &'a Address,
}

#[derive(Serialize)]
struct Body<'a> {
    action: Action,
    deletions: &'a [Asked<'a>],
}

/// The service, as the requests that are made of it.
pub(super) struct Client {
    http: Http,
    signer: Signer,
    bytes_max: usize,
    timeout: Duration,
}

impl Client {
    pub(super) fn new(config: &WebhookConfig) -> Result<Self, WebhookConfigError> {
        config.validate()?;
        // Retries belong to the layers above; a redirect would be signed for another place.
        let mut http = Http::builder()
            .http1_only()
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .connect_timeout(config.connect_timeout);
        if let Some(path) = &config.ca_file {
            let failed = |problem: String| WebhookConfigError::CaFile {
                path: path.display().to_string(),
                problem,
            };
            let pem = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
            let authority =
                Certificate::from_pem(&pem).map_err(|error| failed(error.to_string()))?;
            http = http.tls_certs_merge([authority]);
        }
        Ok(Self {
            http: http.build().map_err(WebhookConfigError::Client)?,
            signer: Signer::new(&config.secrets).map_err(WebhookConfigError::Secret)?,
            bytes_max: config.answer_bytes_max.get(),
            timeout: config.request_timeout,
        })
    }

    /// Posts what is asked, and reads the whole answer, waiting no longer than `until`.
    pub(super) async fn post(
        &self,
        url: &Url,
        action: Action,
        asked: &[Asked<'_>],
        until: Option<Instant>,
    ) -> Result<Vec<u8>, SinkError> {
        let body = serde_json::to_vec(&Body { action, deletions: asked }).expect("JSON holds it");
        let id = message_id(action, asked);
        let timestamp = Utc::now().timestamp();
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let request = self
            .http
            .post(url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", &id)
            .header("webhook-timestamp", timestamp.to_string())
            .header("webhook-signature", self.signer.sign(&id, timestamp, &body))
            .timeout(left.map_or(self.timeout, |left| left.min(self.timeout)))
            .body(body);
        let mut response = request.send().await.map_err(unavailable)?;
        let status = response.status().as_u16();
        if status != 200 {
            let wait = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            let wait = wait.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
            return Err(answer::refusal(status, wait));
        }
        let mut whole = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unavailable)? {
            if whole.len() + chunk.len() > self.bytes_max {
                let most = self.bytes_max;
                return Err(SinkError::Protocol(format!("the answer is longer than {most} bytes")));
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole)
    }
}

/// The same for the same question, so that a service knows a request that it was sent before: its
/// items' names hold deletion, claim and address.
fn message_id(action: Action, asked: &[Asked<'_>]) -> String {
    let mut digest = Sha256::new();
    digest.update(format!("{action:?}"));
    for asked in asked {
        digest.update("\n");
        digest.update(&asked.id);
    }
    format!("msg_{}", hex::encode(&digest.finalize()[..16]))
}

/// The error says where the request went, and that may have a token in it.
fn unavailable(error: reqwest::Error) -> SinkError {
    SinkError::Unavailable(Box::new(error.without_url()))
}
