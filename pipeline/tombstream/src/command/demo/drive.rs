//! Flags and restores, as the clients of an application send them: over HTTP.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::bail;
use futures::stream::{self, StreamExt as _};
use reqwest::{Client, Method, StatusCode};
use uuid::Uuid;

use super::document::Document;

/// Requests at a time.
const AT_ONCE: usize = 16;
/// How long a client asks again that was told "not now". Asking twice does no harm.
const BUSY_MAX: Duration = Duration::from_secs(15);
const BUSY_WAIT: Duration = Duration::from_millis(100);
/// Every so manieth flag is taken back.
pub(super) const RESTORE_ONE_IN: usize = 10;

/// What a client was told of a document that it flagged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Flagged, and left so.
    Flagged,
    /// Restored: answered with 200.
    Restored,
    /// Asked for too late: answered with 409, or with 404 where all was over.
    Refused,
}

/// What became of each document that was flagged.
pub(super) type Fates = HashMap<Uuid, Fate>;

pub(super) fn client() -> anyhow::Result<Client> {
    Ok(Client::builder().no_proxy().timeout(Duration::from_secs(30)).build()?)
}

/// Flags `documents`, and takes a tenth of the flags back at once; `told` hears of each.
pub(super) async fn flag(
    api: &str,
    documents: &[Document],
    told: impl Fn(Fate),
) -> anyhow::Result<Fates> {
    let client = client()?;
    let mut answers = stream::iter(documents.iter().enumerate())
        .map(|(number, document)| {
            let (client, id) = (&client, document.id);
            async move { (id, flip(client, api, id, number % RESTORE_ONE_IN == 0).await) }
        })
        .buffer_unordered(AT_ONCE);
    let mut fates = HashMap::new();
    while let Some((id, answer)) = answers.next().await {
        let fate = answer?;
        fates.insert(id, fate);
        told(fate);
    }
    Ok(fates)
}

async fn flip(client: &Client, api: &str, id: Uuid, restores: bool) -> anyhow::Result<Fate> {
    let path = format!("{api}/documents/{id}");
    match insist(client, Method::DELETE, &path).await? {
        (StatusCode::ACCEPTED, _) => {}
        (status, text) => bail!("DELETE {path} was answered with {status}: {text}"),
    }
    if !restores {
        return Ok(Fate::Flagged);
    }
    match insist(client, Method::POST, &format!("{path}/restore")).await? {
        (StatusCode::OK, _) => Ok(Fate::Restored),
        (StatusCode::CONFLICT | StatusCode::NOT_FOUND | StatusCode::GONE, _) => Ok(Fate::Refused),
        (status, text) => bail!("POST {path}/restore was answered with {status}: {text}"),
    }
}

/// Asks again while the api has no connection left: a machine under load takes its time.
async fn insist(
    client: &Client,
    method: Method,
    url: &str,
) -> anyhow::Result<(StatusCode, String)> {
    let begun = Instant::now();
    loop {
        let (status, text) = send(client, method.clone(), url).await?;
        if status != StatusCode::SERVICE_UNAVAILABLE || begun.elapsed() > BUSY_MAX {
            return Ok((status, text));
        }
        tokio::time::sleep(BUSY_WAIT).await;
    }
}

async fn send(client: &Client, method: Method, url: &str) -> anyhow::Result<(StatusCode, String)> {
    let response = client.request(method, url).send().await?;
    let status = response.status();
    Ok((status, response.text().await?))
}

/// Waits until `/readyz` is answered well.
pub(super) async fn until_ready(url: &str) -> anyhow::Result<()> {
    let client = client()?;
    let begun = Instant::now();
    let mut said = "it was not answered".to_owned();
    loop {
        if let Ok((status, text)) = send(&client, Method::GET, url).await {
            if status.is_success() {
                return Ok(());
            }
            said = format!("{status}: {text}");
        }
        if begun.elapsed() > Duration::from_secs(30) {
            bail!("{url} is not ready: {said}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
