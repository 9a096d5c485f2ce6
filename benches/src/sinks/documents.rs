//! Documents in Elasticsearch: bodies of `_bulk` that were built beforehand, and the sink.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use reqwest::Client;
use serde_json::json;
use tombstream_connectors::elasticsearch::{ElasticsearchConfig, ElasticsearchSink};
use tombstream_dataflow::{Store, Verify};
use tombstream_e2e::Index;
use tombstream_model::{Address, Key};

use super::{BATCH, Scene, send_all, store_of};
use crate::cpu::Drained;
use crate::server;

pub(super) struct Documents {
    url: String,
    index: Index,
    client: Client,
}

impl Documents {
    pub(super) async fn make() -> Result<Self> {
        let url = server::elasticsearch_url()?;
        let index = Index::make(&url, &server::new_name("bench_")).await?;
        let client = Client::builder().timeout(Duration::from_secs(30)).build()?;
        Ok(Self { url, index, client })
    }

    fn body(&self, ids: &[String]) -> Bytes {
        let delete = |id: &String| {
            json!({ "delete": { "_index": self.index.name(), "_id": id } }).to_string() + "\n"
        };
        ids.iter().map(delete).collect::<String>().into()
    }

    async fn send(&self, body: Bytes) -> Result<()> {
        let request = self.client.post(format!("{}/_bulk", self.url));
        let request = request.header("content-type", "application/x-ndjson").body(body);
        let answer = request.send().await?;
        let (status, body) = (answer.status(), answer.bytes().await?);
        // It stands before the items.
        let head = &body[..body.len().min(100)];
        let is_clean = String::from_utf8_lossy(head).contains("\"errors\":false");
        ensure!(status.is_success() && is_clean, "_bulk: {status}, without errors: {is_clean}");
        Ok(())
    }
}

impl Scene for Documents {
    fn ways(&self) -> &'static [&'static str] {
        &["default", "trust"]
    }

    async fn fill(&self, ids: &[String]) -> Result<()> {
        self.index.put(ids.iter().map(|id| (id.clone(), json!({ "name": id })))).await?;
        // A listing refreshes: both sides meet documents that searches see.
        let made = self.index.list().await?.len();
        ensure!(made == ids.len(), "{made} of {} documents were made", ids.len());
        Ok(())
    }

    async fn must_be_empty(&self) -> Result<()> {
        let left = self.index.list().await?.len();
        ensure!(left == 0, "{left} documents are left");
        Ok(())
    }

    async fn tight_loop(&self, ids: &[String], in_flight: usize) -> Result<Drained> {
        let bodies: Vec<Bytes> = ids.chunks(BATCH).map(|some| self.body(some)).collect();
        send_all(bodies, in_flight, |body| self.send(body)).await
    }

    fn copy(&self) -> Box<dyn Fn(&Key) -> Address + Send + Sync> {
        let index: Arc<str> = self.index.name().into();
        Box::new(move |id| Address::Document {
            index: Arc::clone(&index),
            id: id.to_string(),
            routing: None,
        })
    }

    fn store(&self, way: &str) -> Result<Store> {
        let config = ElasticsearchConfig::new(self.url.clone(), self.index.name());
        let verify = if way == "default" { Verify::ReadBack } else { Verify::Trust };
        Ok(store_of("search", ElasticsearchSink::new(config)?, verify))
    }

    async fn remove(self) -> Result<()> {
        self.index.remove().await
    }
}
