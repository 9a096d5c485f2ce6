//! Flags and restores through the api, as clients send them.

use super::Options;
use super::document::Document;
use super::watch::Progress;
use anyhow::{Result, bail};
use futures::stream::{self, StreamExt};
use reqwest::{Client, Method, StatusCode};
use std::collections::HashMap;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Requests at a time.
const AT_ONCE: usize = 16;

/// What a client was told of a document that it flagged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Flagged, and left so.
    Flagged,
    /// Restored: answered with 200.
    Restored,
    /// Asked for too late: answered with 409.
    Refused,
}

/// All that was flagged.
#[derive(Debug, Default)]
pub(super) struct Flips {
    pub(super) fates: HashMap<Uuid, Fate>,
    pub(super) failed: u64,
    pub(super) took: Duration,
}

impl Flips {
    pub(super) fn count(&self, fate: Fate) -> usize {
        self.fates.values().filter(|is| **is == fate).count()
    }
}

/// Flags the documents of `order`, and restores a share of them right after their flip.
pub(super) async fn flag_all(
    options: &Options,
    api: String,
    documents: &[Document],
    order: Vec<usize>,
    progress: &Progress,
) -> Result<Flips> {
    let client = Client::builder().no_proxy().timeout(Duration::from_secs(30)).build()?;
    let started = Instant::now();
    let mut flips = Flips::default();
    // Every n-th by a running sum: any share comes out right, and evenly spread.
    let restores = |number: usize| {
        let due = |number: usize| (number as f64 * options.restore).floor();
        due(number + 1) > due(number)
    };
    let mut answers = stream::iter(order.into_iter().enumerate())
        .map(|(number, place)| {
            let (client, api) = (&client, &api);
            let id = documents[place].id;
            async move {
                if let Some(rate) = options.rate {
                    let due = Duration::from_secs_f64(number as f64 / f64::from(rate.max(1)));
                    tokio::time::sleep_until((started + due).into()).await;
                }
                (id, flip(client, api, id, restores(number)).await)
            }
        })
        .buffer_unordered(AT_ONCE);
    while let Some((id, answer)) = answers.next().await {
        match answer {
            Ok(fate) => {
                flips.fates.insert(id, fate);
                progress.flagged(fate);
            }
            Err(error) => {
                super::say(format_args!("{id}: {error:#}"));
                flips.failed += 1;
                if flips.failed > 20 {
                    bail!("too many requests to the api failed");
                }
            }
        }
    }
    flips.took = started.elapsed();
    progress.all_flagged();
    Ok(flips)
}

async fn flip(client: &Client, api: &str, id: Uuid, restores: bool) -> Result<Fate> {
    let path = format!("{api}/documents/{id}");
    match send(client, Method::DELETE, &path).await? {
        (StatusCode::ACCEPTED, _) => {}
        (status, text) => bail!("DELETE was answered with {status}: {text}"),
    }
    if !restores {
        return Ok(Fate::Flagged);
    }
    match send(client, Method::POST, &format!("{path}/restore")).await? {
        (StatusCode::OK, _) => Ok(Fate::Restored),
        (StatusCode::CONFLICT, _) => Ok(Fate::Refused),
        // Claimed, finalized and its row removed before the restore came: as late as can be.
        (StatusCode::NOT_FOUND | StatusCode::GONE, _) => Ok(Fate::Refused),
        (status, text) => bail!("restore was answered with {status}: {text}"),
    }
}

async fn send(client: &Client, method: Method, path: &str) -> Result<(StatusCode, String)> {
    let response = client.request(method, path).send().await?;
    let status = response.status();
    Ok((status, response.text().await?))
}
