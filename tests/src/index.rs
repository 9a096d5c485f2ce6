//! An index on the real Elasticsearch, over plain HTTP.

use anyhow::{Context, Result, bail};
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fmt::Write;

/// An index of one's own.
pub struct Index {
    client: Client,
    url: String,
    name: String,
}

impl Index {
    /// Makes it: one shard, texts found as a whole.
    pub async fn make(url: &str, name: &str) -> Result<Self> {
        let client = Client::builder().no_proxy().build()?;
        let index = Self { client, url: url.to_owned(), name: name.to_owned() };
        let shape = json!({
            "settings": { "number_of_shards": 1, "number_of_replicas": 0 },
            "mappings": { "dynamic_templates": [
                { "texts": { "match_mapping_type": "string", "mapping": { "type": "keyword" } } },
            ]},
        });
        index.ask(index.request(Method::PUT, &index.name).json(&shape)).await?;
        Ok(index)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Indexes all these documents, id and source.
    pub async fn put(&self, documents: impl Iterator<Item = (String, Value)>) -> Result<()> {
        let mut documents = documents.peekable();
        while documents.peek().is_some() {
            let mut body = String::new();
            for (id, source) in documents.by_ref().take(1_000) {
                writeln!(body, "{}\n{source}", json!({ "index": { "_id": id } }))?;
            }
            let request = self
                .request(Method::POST, &format!("{}/_bulk", self.name))
                .header("content-type", "application/x-ndjson")
                .body(body);
            let answer = self.ask(request).await?;
            if answer["errors"] != json!(false) {
                bail!("a bulk request had errors: {answer}");
            }
        }
        Ok(())
    }

    /// All documents' sources by id, as of one point in time.
    pub async fn list(&self) -> Result<HashMap<String, Value>> {
        self.ask(self.request(Method::POST, &format!("{}/_refresh", self.name))).await?;
        let opened = format!("{}/_pit?keep_alive=1m", self.name);
        let mut pit = self.ask(self.request(Method::POST, &opened)).await?["id"].take();
        let mut found = HashMap::new();
        let mut after: Option<Value> = None;
        loop {
            let mut query = json!({
                "size": 2_000,
                "track_total_hits": false,
                "query": { "match_all": {} },
                "pit": { "id": pit, "keep_alive": "1m" },
                "sort": [{ "_shard_doc": "asc" }],
            });
            if let Some(after) = after.take() {
                query["search_after"] = after;
            }
            let mut page = self.ask(self.request(Method::POST, "_search").json(&query)).await?;
            if page["timed_out"] != json!(false) || page["_shards"]["failed"] != json!(0) {
                bail!("a listing that may be incomplete: {page}");
            }
            pit = page["pit_id"].take();
            let hits = page["hits"]["hits"].as_array_mut().context("a search without hits")?;
            if hits.is_empty() {
                break;
            }
            for hit in hits {
                let id = hit["_id"].as_str().context("a hit without an id")?.to_owned();
                found.insert(id, hit["_source"].take());
                after = Some(hit["sort"].take());
            }
        }
        self.ask(self.request(Method::DELETE, "_pit").json(&json!({ "id": pit }))).await?;
        Ok(found)
    }

    /// Changes its settings, such as `{"index.blocks.write": true}`.
    pub async fn set(&self, settings: &Value) -> Result<()> {
        let path = format!("{}/_settings", self.name);
        self.ask(self.request(Method::PUT, &path).json(settings)).await?;
        Ok(())
    }

    /// Makes it answer to another name too.
    pub async fn alias(&self, name: &str) -> Result<()> {
        self.ask(self.request(Method::PUT, &format!("{}/_alias/{name}", self.name))).await?;
        Ok(())
    }

    pub async fn remove(&self) -> Result<()> {
        self.ask(self.request(Method::DELETE, &self.name)).await?;
        Ok(())
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}/{path}", self.url))
    }

    async fn ask(&self, request: RequestBuilder) -> Result<Value> {
        let response = request.send().await?;
        let status = response.status();
        let answer = response.text().await?;
        if !status.is_success() {
            bail!("elasticsearch: {status} {answer}");
        }
        serde_json::from_str(&answer).context("elasticsearch did not answer in JSON")
    }
}
