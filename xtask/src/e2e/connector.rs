//! The Debezium connector of this run: `deploy/debezium-documents.json` with our own names.

use super::say;
use super::table::Table;
use crate::services::Addresses;
use crate::shell;
use anyhow::{Context, Result, bail};
use reqwest::Client;
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

const WAIT_MAX: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(super) struct Connector {
    client: Client,
    url: String,
    name: String,
    config: Map<String, Value>,
}

impl Connector {
    pub(super) fn new(addresses: &Addresses, name: &str) -> Result<Self> {
        let path = shell::root().join("deploy/debezium-documents.json");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("can't read {}", path.display()))?;
        let mut config: Map<String, Value> =
            serde_json::from_str(&text).with_context(|| format!("{}", path.display()))?;
        let (host, port) = &addresses.postgres_from_connect;
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
        Ok(Self { client, url: addresses.connect.clone(), name: name.to_owned(), config })
    }

    pub(super) async fn register(&self) -> Result<()> {
        let url = format!("{}/connectors/{}/config", self.url, self.name);
        let response = self.client.put(url).json(&self.config).send().await?;
        if !response.status().is_success() {
            bail!("{} {}", response.status(), response.text().await?);
        }
        Ok(())
    }

    /// Until its task runs and reads the slot, which it does once the snapshot is done.
    pub(super) async fn wait_until_streaming(&self, table: &Table) -> Result<()> {
        let url = format!("{}/connectors/{}/status", self.url, self.name);
        let started = Instant::now();
        loop {
            shell::check_interrupt()?;
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
            if runs && table.slot_is_read(&self.name).await? {
                say(format_args!("Debezium streams"));
                return Ok(());
            }
            if started.elapsed() > WAIT_MAX {
                bail!("the connector does not stream after {WAIT_MAX:?}: {status}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Ends the connector and drops its slot: no later flip is ever told.
    pub(super) async fn remove(&self, table: &Table) -> Result<()> {
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
        while !table.drop_slot(&self.name).await? {
            if started.elapsed() > WAIT_MAX {
                bail!("the slot {} is still in use", self.name);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}
