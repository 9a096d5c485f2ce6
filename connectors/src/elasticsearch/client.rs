//! The requests, one function each. No decision is made here but how a request is cut in parts.

use std::sync::Arc;
use std::time::Duration;

use elasticsearch::Elasticsearch;
use elasticsearch::auth::Credentials;
use elasticsearch::cert::{Certificate, CertificateValidation};
use elasticsearch::http::headers::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use elasticsearch::http::transport::{MultiNodeConnectionPool, TransportBuilder};
use elasticsearch::http::{Method, Url};
use serde::Serialize;
use serde_json::{Value, json};
use tombstream_model::SinkError;

use super::answer::{self, Deleted, Doc, Index, Page, Read, Seen};
use super::config::{Auth, ConfigError, ElasticsearchConfig};

/// How long an abandoned point in time is kept by the server, at most.
const KEEP_ALIVE: &str = "1m";

/// Why what is asked can always be written: texts and numbers, into memory.
const WRITABLE: &str = "JSON is text";

/// What makes one delete conditional.
#[derive(Clone, Copy, Debug)]
pub(super) enum Condition {
    /// Only the state that was read.
    Seen(Seen),
    /// Only what is older than this external version.
    Version(u64),
}

/// The server, as the requests that are made of it.
#[derive(Clone)]
pub(super) struct Client {
    server: Elasticsearch,
    items_max: usize,
    bytes_max: usize,
}

impl Client {
    pub(super) fn new(config: &ElasticsearchConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        let urls = config.url.as_slice().iter().map(|url| {
            let problem = |error: &dyn ToString| ConfigError::Url {
                url: url.clone(),
                problem: error.to_string(),
            };
            Url::parse(url).map_err(|error| problem(&error))
        });
        let nodes = MultiNodeConnectionPool::round_robin(urls.collect::<Result<_, _>>()?, None);
        let mut transport = TransportBuilder::new(nodes).timeout(config.timeout);
        if let Some(path) = &config.ca_file {
            let failed =
                |problem: String| ConfigError::CaFile { path: path.display().to_string(), problem };
            let pem = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
            let authority =
                Certificate::from_pem(&pem).map_err(|error| failed(error.to_string()))?;
            transport = transport.cert_validation(CertificateValidation::Full(authority));
        }
        transport = match &config.auth {
            Auth::None => transport,
            Auth::Basic { user, password } => {
                transport.auth(Credentials::Basic(user.clone(), password.reveal().to_owned()))
            }
            Auth::ApiKey { key } => {
                transport.auth(Credentials::EncodedApiKey(key.reveal().to_owned()))
            }
            Auth::Bearer { token } => {
                transport.auth(Credentials::Bearer(token.reveal().to_owned()))
            }
        };
        let transport = transport.build().map_err(|e| ConfigError::Client(e.to_string()))?;
        Ok(Self {
            server: Elasticsearch::new(transport),
            items_max: config.items_max.get(),
            bytes_max: config.bytes_max.get(),
        })
    }

    /// What a declared name stands for now.
    pub(super) async fn resolve(&self, declared: &str) -> Result<Arc<[Index]>, SinkError> {
        let only = "*.aliases,*.settings.index.number_of_shards,*.settings.index.blocks,\
                    *.mappings._routing";
        let body = self.get(&encode(declared), &[("filter_path", only)]).await?;
        answer::indices(&body, declared).map(Arc::from)
    }

    /// Reads each document in real time: `_mget` sees what no search sees yet.
    pub(super) async fn read(&self, docs: &[&Doc]) -> Result<Vec<Read>, SinkError> {
        let mut reads = Vec::with_capacity(docs.len());
        for part in self.parts(docs, |doc| weight(doc)) {
            let docs = part.iter().map(|doc| Item { source: Some(false), ..Item::of(doc) });
            let body = serde_json::to_string(&Docs { docs: docs.collect() }).expect(WRITABLE);
            let body = self.post("_mget", &[], body).await?;
            reads.append(&mut answer::mget(&body, part)?);
        }
        Ok(reads)
    }

    /// Cuts `items` in parts that fit in one request each; `size` is in bytes.
    pub(super) fn parts<'a, T>(&self, items: &'a [T], size: impl Fn(&T) -> usize) -> Vec<&'a [T]> {
        let mut parts = Vec::new();
        let (mut from, mut bytes) = (0, 0);
        for (place, item) in items.iter().enumerate() {
            let full = place - from == self.items_max || bytes + size(item) > self.bytes_max;
            if full && place > from {
                parts.push(&items[from..place]);
                (from, bytes) = (place, 0);
            }
            bytes += size(item);
        }
        if from < items.len() {
            parts.push(&items[from..]);
        }
        parts
    }

    /// Sends conditional deletes as one request.
    pub(super) async fn delete(
        &self,
        deletes: &[(&Doc, Condition)],
    ) -> Result<Vec<Deleted>, SinkError> {
        let mut body = Vec::with_capacity(200 * deletes.len());
        for (doc, condition) in deletes {
            let action = Action { delete: condition.on(Item::of(doc)) };
            serde_json::to_writer(&mut body, &action).expect(WRITABLE);
            body.push(b'\n');
        }
        let body = String::from_utf8(body).expect(WRITABLE);
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        let body = self.call(Method::Post, "_bulk", &[], headers, Some(body)).await?;
        let docs: Vec<&Doc> = deletes.iter().map(|(doc, _)| *doc).collect();
        Ok(answer::bulk(&body, &docs))
    }

    /// Searches every shard of an index for ids. It lags behind until the next refresh.
    pub(super) async fn search_ids(&self, index: &str, ids: &[&str]) -> Result<Page, SinkError> {
        let body = json!({
            "size": 2 * ids.len() + 100,
            "_source": false,
            "track_total_hits": true,
            "query": { "ids": { "values": ids } },
        });
        let path = format!("{}/_search", encode(index));
        let whole = [("allow_partial_search_results", "false")];
        let body = self.post(&path, &whole, body.to_string()).await?;
        answer::page(&body)
    }

    /// Makes what was written visible to searches.
    pub(super) async fn refresh(&self, indices: &[Index]) -> Result<(), SinkError> {
        let path = format!("{}/_refresh", list(indices));
        answer::refreshed(&self.post(&path, &[], String::new()).await?)
    }

    /// Why a field can't find exactly the documents with a value, if it can't.
    pub(super) async fn field_problem(
        &self,
        indices: &[Index],
        field: &str,
        chars_max: usize,
    ) -> Result<Option<String>, SinkError> {
        // Of a mapping of thousands of fields, only the branch that leads to this one.
        let mut only = "*.mappings.runtime".to_owned();
        let mut branch = "*.mappings".to_owned();
        let names: Vec<&str> = field.split('.').collect();
        for (depth, name) in names.iter().enumerate() {
            let last = depth + 1 == names.len();
            let leaf = if last { "" } else { ".type" };
            if last && depth > 0 {
                only.push_str(&format!(",{branch}.fields.{name}"));
            }
            branch.push_str(&format!(".properties.{name}"));
            only.push_str(&format!(",{branch}{leaf}"));
        }
        let path = format!("{}/_mapping", list(indices));
        let body = self.get(&path, &[("filter_path", &only)]).await?;
        answer::field_problem(&body, indices, field, chars_max)
    }

    /// How many documents have each of `values` in `field`.
    pub(super) async fn count(
        &self,
        indices: &[Index],
        field: &str,
        values: &[&str],
    ) -> Result<Vec<u64>, SinkError> {
        let term = |value: &&str| json!({ "term": { field: { "value": value } } });
        let filters: serde_json::Map<String, Value> =
            values.iter().enumerate().map(|(at, value)| (at.to_string(), term(value))).collect();
        let body = json!({
            "size": 0,
            "track_total_hits": false,
            "aggs": { "values": { "filters": { "filters": filters } } },
        });
        let path = format!("{}/_search", list(indices));
        let whole = [("allow_partial_search_results", "false")];
        let body = self.post(&path, &whole, body.to_string()).await?;
        answer::counts(&body, values.len())
    }

    /// Opens a point in time over every shard.
    pub(super) async fn open(&self, indices: &[Index]) -> Result<String, SinkError> {
        self.open_for(indices, KEEP_ALIVE).await
    }

    /// The same, kept for so long between two of its searches.
    pub(super) async fn open_for(
        &self,
        indices: &[Index],
        keep_alive: &str,
    ) -> Result<String, SinkError> {
        let path = format!("{}/_pit", list(indices));
        answer::pit(&self.post(&path, &[("keep_alive", keep_alive)], String::new()).await?)
    }

    /// The next page of the documents that have one of `values` in `field`.
    pub(super) async fn page(
        &self,
        pit: &str,
        field: &str,
        values: &[&str],
        after: Option<&Value>,
    ) -> Result<Page, SinkError> {
        let mut body = json!({
            "size": self.items_max.min(10_000),
            "_source": false,
            "seq_no_primary_term": true,
            "track_total_hits": false,
            "docvalue_fields": [field],
            "query": { "terms": { field: values } },
            "pit": { "id": pit, "keep_alive": KEEP_ALIVE },
            "sort": [{ "_shard_doc": "asc" }],
        });
        if let Some(after) = after {
            body["search_after"] = after.clone();
        }
        let whole = [("allow_partial_search_results", "false")];
        let body = self.post("_search", &whole, body.to_string()).await?;
        answer::page(&body)
    }

    /// Closes a point in time. One that can't be closed ends by itself.
    pub(super) async fn close(&self, pit: &str) {
        let body = Some(json!({ "id": pit }).to_string());
        let closed = self.call(Method::Delete, "_pit", &[], HeaderMap::new(), body).await;
        if let Err(error) = closed {
            tracing::debug!(%error, "point in time not closed");
        }
    }

    pub(super) async fn get(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<bytes::Bytes, SinkError> {
        self.call(Method::Get, path, query, HeaderMap::new(), None).await
    }

    pub(super) async fn post(
        &self,
        path: &str,
        query: &[(&str, &str)],
        body: String,
    ) -> Result<bytes::Bytes, SinkError> {
        self.call(Method::Post, path, query, HeaderMap::new(), Some(body)).await
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        headers: HeaderMap,
        body: Option<String>,
    ) -> Result<bytes::Bytes, SinkError> {
        let unavailable = |error: elasticsearch::Error| SinkError::Unavailable(error.into());
        let answer = self.server.send(method, path, headers, Some(query), body, None);
        let answer = answer.await.map_err(unavailable)?;
        let status = answer.status_code();
        let retry_after = answer.headers().get(RETRY_AFTER).and_then(|it| it.to_str().ok());
        let retry_after = retry_after.and_then(|it| it.parse().ok()).map(Duration::from_secs);
        let body = answer.bytes().await.map_err(unavailable)?;
        if status.is_success() {
            return Ok(body);
        }
        Err(answer::refusal(status.as_u16(), retry_after, &body))
    }
}

/// What is asked of a document in a request.
#[derive(Default, Serialize)]
struct Item<'a> {
    _index: &'a str,
    _id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    routing: Option<&'a str>,
    #[serde(rename = "_source", skip_serializing_if = "Option::is_none")]
    source: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    if_seq_no: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    if_primary_term: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version_type: Option<&'static str>,
}

/// The body of `_mget`.
#[derive(Serialize)]
struct Docs<'a> {
    docs: Vec<Item<'a>>,
}

/// A line of `_bulk`.
#[derive(Serialize)]
struct Action<'a> {
    delete: Item<'a>,
}

impl<'a> Item<'a> {
    fn of(doc: &'a Doc) -> Self {
        let routing = doc.routing.as_deref();
        Self { _index: &doc.index, _id: &doc.id, routing, ..Self::default() }
    }
}

impl Condition {
    fn on(self, item: Item<'_>) -> Item<'_> {
        match self {
            Self::Seen(Seen { seq_no, primary_term }) => {
                Item { if_seq_no: Some(seq_no), if_primary_term: Some(primary_term), ..item }
            }
            Self::Version(version) => {
                Item { version: Some(version), version_type: Some("external"), ..item }
            }
        }
    }
}

/// How many bytes a document takes in a request, about: 200 stand around what names it, and few of
/// its characters need an escape.
pub(super) fn weight(doc: &Doc) -> usize {
    200 + 2 * (doc.index.len() + doc.id.len() + doc.routing.as_ref().map_or(0, String::len))
}

fn list(indices: &[Index]) -> String {
    indices.iter().map(|index| encode(&index.name)).collect::<Vec<_>>().join(",")
}

/// A name as one segment of a path.
pub(super) fn encode(name: &str) -> String {
    let mut path = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                path.push(char::from(byte));
            }
            _ => path.push_str(&format!("%{byte:02X}")),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    fn doc(id: &str) -> Doc {
        Doc { index: "documents".to_owned(), id: id.to_owned(), routing: None }
    }

    #[test]
    fn a_request_is_cut_by_items_and_by_bytes() {
        let mut config = ElasticsearchConfig::new("http://127.0.0.1:1", "documents");
        config.items_max = NonZeroUsize::new(3).unwrap();
        config.bytes_max = NonZeroUsize::new(1_500).unwrap();
        let client = Client::new(&config).unwrap();
        let sizes = |docs: &[Doc]| -> Vec<usize> {
            client.parts(docs, weight).into_iter().map(<[Doc]>::len).collect()
        };
        let short: Vec<Doc> = (0..7).map(|id| doc(&id.to_string())).collect();
        assert_eq!(sizes(&short), [3, 3, 1]);
        let long: Vec<Doc> = (0..3).map(|_| doc(&"x".repeat(512))).collect();
        assert_eq!(sizes(&long), [1, 1, 1], "an item above the bound still goes, alone");
        assert_eq!(sizes(&[]), [0; 0]);
    }

    #[test]
    fn a_request_names_its_document_and_its_condition_and_nothing_else() {
        let spelled = |condition: Condition, doc: &Doc| {
            serde_json::to_value(Action { delete: condition.on(Item::of(doc)) }).unwrap()
        };
        let seen = Condition::Seen(Seen { seq_no: 7, primary_term: 2 });
        assert_eq!(
            spelled(seen, &doc("a\"\n")),
            json!({"delete": {"_index": "documents", "_id": "a\"\n", "if_seq_no": 7, "if_primary_term": 2}})
        );
        let routed = Doc { routing: Some("r".to_owned()), ..doc("b") };
        assert_eq!(
            spelled(Condition::Version(9), &routed),
            json!({"delete": {
                "_index": "documents", "_id": "b", "routing": "r", "version": 9, "version_type": "external"
            }})
        );
        let read = Item { source: Some(false), ..Item::of(&routed) };
        assert_eq!(
            serde_json::to_value(Docs { docs: vec![read] }).unwrap(),
            json!({"docs": [{"_index": "documents", "_id": "b", "routing": "r", "_source": false}]})
        );
    }

    #[test]
    fn a_name_stays_one_segment_of_the_path() {
        assert_eq!(encode("documents-2026.01"), "documents-2026.01");
        assert_eq!(encode("a/b%c,ü"), "a%2Fb%25c%2C%C3%BC");
    }
}
