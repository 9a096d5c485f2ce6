//! A real Debezium connector: `deploy/debezium-documents.json` with names of one's own.

use crate::{Database, Servers};
use anyhow::{Context, Result, bail};
use reqwest::Client;
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

const WAIT_MAX: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A connector in the real Kafka Connect.
pub struct Connector {
    client: Client,
    url: String,
    name: String,
    config: Map<String, Value>,
}

impl Connector {
    /// Of `public.documents` in the database of that name, which is also the topics' prefix and
    /// the name of connector, slot and publication.
    pub fn new(servers: &Servers, name: &str) -> Result<Self> {
        let text = include_str!("../../deploy/debezium-documents.json");
        let mut config: Map<String, Value> =
            serde_json::from_str(text).context("deploy/debezium-documents.json")?;
        let (host, port) = &servers.postgres_from_connect;
        let ours = [
            ("database.hostname", json!(host)),
            ("database.port", json!(port.to_string())),
            ("database.user", json!("postgres")),
            ("database.password", json!("postgres")),
            ("database.dbname", json!(name)),
            ("topic.prefix", json!(name)),
            ("slot.name", json!(name)),
            ("publication.name", json!(name)),
        ];
        config.extend(ours.map(|(key, value)| (key.to_owned(), value)));
        let client = Client::builder().no_proxy().timeout(WAIT_MAX).build()?;
        Ok(Self { client, url: servers.connect.clone(), name: name.to_owned(), config })
    }

    /// Sets one of its settings before it is registered.
    pub fn set(&mut self, name: &str, value: &str) {
        self.config.insert(name.to_owned(), json!(value));
    }

    /// Registers it; its task starts in a moment.
    pub async fn register(&self) -> Result<()> {
        let url = format!("{}/connectors/{}/config", self.url, self.name);
        let response = self.client.put(url).json(&self.config).send().await?;
        if !response.status().is_success() {
            bail!(
                "Connect refused the connector: {} {}",
                response.status(),
                response.text().await?
            );
        }
        Ok(())
    }

    /// Pauses or resumes it, by Connect's own switch: it is said at once and done in a moment.
    pub async fn pause(&self, paused: bool) -> Result<()> {
        let verb = if paused { "pause" } else { "resume" };
        let url = format!("{}/connectors/{}/{verb}", self.url, self.name);
        self.client.put(url).send().await?.error_for_status()?;
        Ok(())
    }

    /// Until its task runs and reads the slot, which it does once the snapshot is done.
    pub async fn wait_until_streaming(&self, database: &Database) -> Result<()> {
        let url = format!("{}/connectors/{}/status", self.url, self.name);
        let started = Instant::now();
        loop {
            let status: Value = self.client.get(&url).send().await?.json().await?;
            let states: Vec<&str> = status["tasks"]
                .as_array()
                .into_iter()
                .flatten()
                .chain([&status["connector"]])
                .filter_map(|part| part["state"].as_str())
                .collect();
            if states.contains(&"FAILED") {
                bail!("the connector failed: {status}");
            }
            let runs = states.len() > 1 && states.iter().all(|state| *state == "RUNNING");
            if runs && database.slot_is_read(&self.name).await? {
                return Ok(());
            }
            if started.elapsed() > WAIT_MAX {
                bail!("the connector does not stream after {WAIT_MAX:?}: {status}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Ends the connector and drops its slot: no later flip is ever told.
    pub async fn remove(&self, database: &Database) -> Result<()> {
        let url = format!("{}/connectors/{}", self.url, self.name);
        let started = Instant::now();
        loop {
            // 404: it is gone already. 409: the worker is rebalancing.
            let status = self.client.delete(&url).send().await?.status();
            if status.is_success() || status.as_u16() == 404 {
                break;
            }
            if started.elapsed() > WAIT_MAX {
                bail!("the connector can't be deleted: {status}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        while !database.drop_slot(&self.name).await? {
            if started.elapsed() > WAIT_MAX {
                bail!("the slot {} is still in use", self.name);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}
