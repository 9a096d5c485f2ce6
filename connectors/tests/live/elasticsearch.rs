//! The Elasticsearch sink against a real server, and against answers that one gives too rarely.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

#[path = "elasticsearch/proxy.rs"]
mod proxy;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use elasticsearch::Elasticsearch;
use elasticsearch::http::Method;
use elasticsearch::http::headers::HeaderMap;
use elasticsearch::http::transport::Transport;
use proxy::{Proxy, Reply, Request};
use serde_json::{Value, json};
use tombstream_connectors::elasticsearch::{
    ElasticsearchConfig, ElasticsearchListing, ElasticsearchSink, OneOrMany, Uses, Versioning,
};
use tombstream_model::{
    Address, DeletionId, Fence, Listed, Listing as _, ListingError, ListingPart as _, Lsn, Outcome,
    Presence, Sink, SinkError, StoreId, Target, Verdict,
};
use tombstream_testing::conformance::sink::{self as conformance, SinkFixture};

/// The real server, as a test speaks to it: past the sink.
#[derive(Clone)]
struct Server {
    url: String,
    client: Elasticsearch,
}

impl Server {
    fn new() -> Self {
        let name = "TOMBSTREAM_TEST_ELASTICSEARCH_URL";
        let url = std::env::var(name).unwrap_or_else(|_| {
            panic!("{name} is not set: start the servers with `cargo xtask services up`")
        });
        let transport = Transport::single_node(&url).unwrap();
        Self { url, client: Elasticsearch::new(transport) }
    }

    async fn send(&self, method: Method, path: &str, body: impl Into<String>) -> (u16, String) {
        let body = body.into();
        let body = (!body.is_empty()).then_some(body);
        let query = None::<&()>;
        let answer = self.client.send(method, path, HeaderMap::new(), query, body, None);
        let answer = answer.await.expect("the server answers");
        let status = answer.status_code().as_u16();
        (status, answer.text().await.expect("the server answers wholly"))
    }

    async fn json(&self, method: Method, path: &str, body: Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, answer) = self.send(method, path, body).await;
        assert!((200..300).contains(&status), "{path}: {status} {answer}");
        serde_json::from_str(&answer).unwrap()
    }

    /// Makes an index under a name of its own.
    async fn index(&self, shards: u32, mappings: Value) -> String {
        let name = format!("sink-{}", uuid::Uuid::new_v4().simple());
        let settings = json!({"number_of_shards": shards, "number_of_replicas": 0});
        self.json(Method::Put, &name, json!({"settings": settings, "mappings": mappings})).await;
        name
    }

    async fn drop(&self, indices: &[&str]) {
        self.json(Method::Delete, &indices.join(","), Value::Null).await;
    }

    async fn exists(&self, index: &str) -> bool {
        let (status, _) = self.send(Method::Get, &format!("{index}/_settings"), "").await;
        status == 200
    }

    async fn set(&self, index: &str, settings: Value) {
        self.json(Method::Put, &format!("{index}/_settings"), settings).await;
    }

    /// Indexes documents: id, routing, source.
    async fn fill(&self, index: &str, docs: &[(String, Option<String>, Value)]) {
        for part in docs.chunks(1_000) {
            let mut body = String::new();
            for (id, routing, source) in part {
                let mut line = json!({"_index": index, "_id": id});
                if let Some(routing) = routing {
                    line["routing"] = json!(routing);
                }
                body.push_str(&format!("{}\n{source}\n", json!({"index": line})));
            }
            let answer = self.send(Method::Post, "_bulk", body).await.1;
            let answer: Value = serde_json::from_str(&answer).unwrap();
            assert_eq!(answer["errors"], false, "{answer}");
        }
    }

    async fn put(&self, index: &str, id: &str, routing: Option<&str>, source: Value) {
        self.fill(index, &[(id.to_owned(), routing.map(str::to_owned), source)]).await;
    }

    /// Every document of an index: id and routing, with its source.
    async fn all(&self, index: &str) -> BTreeMap<(String, String), Value> {
        self.json(Method::Post, &format!("{index}/_refresh"), Value::Null).await;
        let query = json!({"size": 10_000, "query": {"match_all": {}}});
        let answer = self.json(Method::Post, &format!("{index}/_search"), query).await;
        let hits = answer["hits"]["hits"].as_array().unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let doc =
            |hit: &Value| ((text(&hit["_id"]), text(&hit["_routing"])), hit["_source"].clone());
        hits.iter().map(doc).collect()
    }

    fn config(&self, index: &str) -> ElasticsearchConfig {
        ElasticsearchConfig::new(self.url.clone(), index)
    }

    fn sink(&self, index: &str) -> ElasticsearchSink {
        ElasticsearchSink::new(self.config(index)).unwrap()
    }

    async fn pass(&self, request: Request) -> Reply {
        let method = match request.method.as_str() {
            "GET" => Method::Get,
            "POST" => Method::Post,
            "DELETE" => Method::Delete,
            other => panic!("the sink sends no {other}"),
        };
        let (status, body) = self.send(method, &request.path, request.body).await;
        Reply::new(status, body)
    }
}

fn target(address: Address) -> Target {
    Target {
        deletion: DeletionId(1),
        store: StoreId(0),
        address,
        fence: Fence { token: 1, until: Instant::now() + Duration::from_secs(120) },
        lsn: None,
    }
}

fn document(index: &str, id: &str) -> Target {
    target(Address::Document { index: Arc::from(index), id: id.to_owned(), routing: None })
}

fn routed(index: &str, id: &str, routing: &str) -> Target {
    let routing = Some(routing.to_owned());
    target(Address::Document { index: Arc::from(index), id: id.to_owned(), routing })
}

fn field(index: &str, field: &str, value: &str) -> Target {
    let (index, field) = (Arc::from(index), Arc::from(field));
    target(Address::Field { index, field, value: value.to_owned(), routing: None })
}

fn over(mut target: Target) -> Target {
    target.fence.until = Instant::now();
    target
}

fn doc(id: impl ToString) -> (String, Option<String>, Value) {
    let id = id.to_string();
    let source = json!({"name": format!("document {id}"), "n": id.len()});
    (id, None, source)
}

fn of_a_tenant(n: u32) -> (String, Option<String>, Value) {
    let (id, _, source) = doc(n);
    (id, Some(format!("tenant-{n}")), source)
}

async fn one(sink: &ElasticsearchSink, target: Target) -> Outcome {
    sink.destroy(&[target]).await.unwrap().remove(0)
}

fn verdicts(outcomes: &[Outcome]) -> Vec<Verdict> {
    outcomes.iter().map(|outcome| outcome.verdict).collect()
}

struct Documents {
    server: Server,
    index: String,
    sink: ElasticsearchSink,
}

impl SinkFixture for Documents {
    type Sink = ElasticsearchSink;

    fn sink(&self) -> &Self::Sink {
        &self.sink
    }

    async fn put(&self, name: &str) -> Target {
        self.server.put(&self.index, name, None, json!({"name": name})).await;
        document(&self.index, name)
    }

    async fn never(&self, name: &str) -> Target {
        document(&self.index, name)
    }

    async fn exists(&self, target: &Target) -> bool {
        let Address::Document { id, .. } = &target.address else { panic!("{target:?}") };
        self.server.send(Method::Get, &format!("{}/_doc/{id}", self.index), "").await.0 == 200
    }
}

struct Chunks(Documents);

impl SinkFixture for Chunks {
    type Sink = ElasticsearchSink;

    fn sink(&self) -> &Self::Sink {
        &self.0.sink
    }

    async fn put(&self, name: &str) -> Target {
        let chunk = |n: u32| (format!("{name}-{n}"), None, json!({"key": name}));
        let chunks: Vec<_> = (0..3).map(chunk).collect();
        self.0.server.fill(&self.0.index, &chunks).await;
        field(&self.0.index, "key", name)
    }

    async fn never(&self, name: &str) -> Target {
        field(&self.0.index, "key", name)
    }

    async fn exists(&self, target: &Target) -> bool {
        let Address::Field { value, .. } = &target.address else { panic!("{target:?}") };
        let all = self.0.server.all(&self.0.index).await;
        all.values().any(|source| source["key"] == value.as_str())
    }
}

#[tokio::test]
async fn documents_conform() {
    let server = Server::new();
    for shards in [1, 3] {
        let index = server.index(shards, json!({})).await;
        let sink = server.sink(&index);
        let fixture = Documents { server: server.clone(), index: index.clone(), sink };
        conformance::all(&fixture).await;
        server.drop(&[&index]).await;
    }
}

#[tokio::test]
async fn chunks_conform() {
    let server = Server::new();
    let index = server.index(2, json!({"properties": {"key": {"type": "keyword"}}})).await;
    let sink = server.sink(&index);
    let fixture = Chunks(Documents { server: server.clone(), index: index.clone(), sink });
    conformance::all(&fixture).await;
    server.drop(&[&index]).await;
}

/// A thousand at once, every third not there; I8: the others are as they were.
#[tokio::test]
async fn a_thousand_go_and_the_others_stay_as_they_were() {
    let server = Server::new();
    let index = server.index(1, json!({})).await;
    let sink = server.sink(&index);
    let mine = |n: usize| format!("mine-{n}");
    let docs: Vec<_> = (0..1_000).filter(|n| n % 3 != 0).map(|n| doc(mine(n))).collect();
    server.fill(&index, &docs).await;
    let others: Vec<_> = (0..1_000).map(|n| doc(format!("other-{n}"))).collect();
    server.fill(&index, &others).await;
    let before = server.all(&index).await;

    let batch: Vec<_> = (0..1_000).map(|n| document(&index, &mine(n))).collect();
    let started = Instant::now();
    let outcomes = sink.destroy(&batch).await.unwrap();
    println!("destroyed 1,000 targets in {:?}", started.elapsed());
    for (n, outcome) in outcomes.iter().enumerate() {
        let expected = if n % 3 == 0 { Verdict::Absent } else { Verdict::Deleted };
        assert_eq!(outcome.verdict, expected, "{n}: {}", outcome.said);
    }
    let mut expected = before;
    expected.retain(|(id, _), _| id.starts_with("other-"));
    assert_eq!(expected.len(), 1_000);
    assert_eq!(server.all(&index).await, expected);
    assert_eq!(sink.look(&batch).await.unwrap(), vec![Presence::Absent; 1_000]);
    server.drop(&[&index]).await;
}

#[tokio::test]
async fn odd_ids_go_byte_for_byte() {
    let server = Server::new();
    let index = server.index(1, json!({})).await;
    let sink = server.sink(&index);
    let longest = "x".repeat(512);
    let odd = [
        "100%",
        "%2F",
        "\"quoted\"",
        "it's",
        "a\nb",
        "a\r\nb",
        "a\tb",
        "🪦",
        "a/b",
        "a b",
        " a",
        "a\\b",
        "..",
        "{\"delete\":{}}",
        "*",
        "a,b",
        "NFC\u{e9}",
        "\u{0}",
        "?x=1#y",
        &longest,
    ];
    // Neighbours that a wrong decoding, trimming, normal form or wildcard would hit.
    let near = [
        "100",
        "/",
        "quoted",
        "its",
        "ab",
        "a",
        "b",
        "a\nb\n",
        "NFCe\u{301}",
        "%252F",
        "a%2Fb",
        "_all",
        "anything",
    ];
    let docs: Vec<_> = odd.iter().chain(&near).map(doc).collect();
    server.fill(&index, &docs).await;
    let before = server.all(&index).await;
    assert_eq!(before.len(), odd.len() + near.len());

    let batch: Vec<_> = odd.iter().map(|id| document(&index, id)).collect();
    let outcomes = sink.destroy(&batch).await.unwrap();
    assert_eq!(verdicts(&outcomes), vec![Verdict::Deleted; odd.len()], "{outcomes:?}");
    let mut expected = before;
    expected.retain(|(id, _), _| near.contains(&id.as_str()));
    assert_eq!(server.all(&index).await, expected);

    let refused =
        [document(&index, ""), document(&index, &"x".repeat(513)), routed(&index, "a", "")];
    let outcomes = sink.destroy(&refused).await.unwrap();
    assert_eq!(verdicts(&outcomes), [Verdict::Refused; 3], "{outcomes:?}");
    server.drop(&[&index]).await;
}

#[tokio::test]
async fn an_address_outside_the_declared_index_is_refused() {
    let server = Server::new();
    let declared = server.index(1, json!({})).await;
    let other = server.index(1, json!({"properties": {"key": {"type": "keyword"}}})).await;
    server.put(&other, "1", None, json!({"key": "1"})).await;
    server.put(&declared, "1", None, json!({})).await;
    let sink = server.sink(&declared);
    let bucket = Arc::from("documents");
    let batch = [
        document(&other, "1"),
        field(&other, "key", "1"),
        document(&format!("{other},{declared}"), "1"),
        document(&format!("{}*", &other[..20]), "1"),
        target(Address::Object { bucket, key: "1".to_owned() }),
        document(&declared, "1"),
    ];
    let outcomes = sink.destroy(&batch).await.unwrap();
    let mut expected = vec![Verdict::Refused; 5];
    expected.push(Verdict::Deleted);
    assert_eq!(verdicts(&outcomes), expected, "{outcomes:?}");
    assert_eq!(server.all(&other).await.len(), 1);
    assert_eq!(sink.look(&batch[..1]).await.unwrap(), [Presence::Unknown]);
    server.drop(&[&declared, &other]).await;
}

#[tokio::test]
async fn a_target_whose_lease_is_over_is_busy_and_stays() {
    let server = Server::new();
    let index = server.index(1, json!({"properties": {"key": {"type": "keyword"}}})).await;
    server.put(&index, "1", None, json!({"key": "k"})).await;
    let shared = server.clone();
    let until = Arc::new(Mutex::new(Instant::now()));
    let end = Arc::clone(&until);
    let requests = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&requests);
    // The lease ends while the read is on its way: what it brings is thrown away.
    let proxy = Proxy::start(move |request| {
        let server = shared.clone();
        let until = *end.lock().unwrap();
        count.fetch_add(1, Ordering::Relaxed);
        async move {
            let slow = request.is_mget() || request.body.contains("\"pit\"");
            assert!(!request.is_bulk(), "a delete was sent after the lease's end");
            let reply = server.pass(request).await;
            if slow {
                tokio::time::sleep_until(until.into()).await;
            }
            reply
        }
    })
    .await;
    let sink = ElasticsearchSink::new(ElasticsearchConfig::new(&proxy.url, &index)).unwrap();
    let batches = [
        [document(&index, "1"), document(&index, "2")],
        [field(&index, "key", "k"), field(&index, "key", "none")],
    ];
    for mut batch in batches {
        let end = Instant::now() + Duration::from_secs(1);
        *until.lock().unwrap() = end;
        batch.iter_mut().for_each(|target| target.fence.until = end);
        let outcomes = sink.destroy(&batch).await.unwrap();
        assert_eq!(verdicts(&outcomes), [Verdict::Busy, Verdict::Busy], "{outcomes:?}");
        assert!(outcomes.iter().all(|outcome| outcome.said == "lease over"), "{outcomes:?}");
        // And nothing is asked at all for a lease that was over before.
        let asked = requests.load(Ordering::Relaxed);
        assert_eq!(one(&sink, over(batch[0].clone())).await.verdict, Verdict::Busy);
        assert_eq!(requests.load(Ordering::Relaxed), asked);
    }
    assert_eq!(server.all(&index).await.len(), 1);
    server.drop(&[&index]).await;
}

#[tokio::test]
async fn a_required_routing_is_demanded_and_used() {
    let server = Server::new();
    let index = server.index(3, json!({"_routing": {"required": true}})).await;
    server.fill(&index, &(0..20).map(of_a_tenant).collect::<Vec<_>>()).await;
    let sink = server.sink(&index);
    let outcome = one(&sink, document(&index, "1")).await;
    assert_eq!(outcome.verdict, Verdict::Refused, "{outcome:?}");
    assert!(outcome.said.contains("routing"), "{outcome:?}");
    assert_eq!(sink.look(&[document(&index, "1")]).await.unwrap(), [Presence::Unknown]);
    assert_eq!(server.all(&index).await.len(), 20);

    let batch: Vec<_> =
        (0..10).map(|n| routed(&index, &n.to_string(), &format!("tenant-{n}"))).collect();
    let outcomes = sink.destroy(&batch).await.unwrap();
    assert_eq!(verdicts(&outcomes), [Verdict::Deleted; 10], "{outcomes:?}");
    assert_eq!(server.all(&index).await.len(), 10);
    server.drop(&[&index]).await;
}

/// S6: without a routing value a read goes to the shard of the id, and finds nothing there.
#[tokio::test]
async fn what_is_routed_is_found_though_the_address_does_not_say_so() {
    let server = Server::new();
    let index = server.index(3, json!({})).await;
    server.fill(&index, &(0..30).map(of_a_tenant).collect::<Vec<_>>()).await;
    // The same id once more, perhaps on another shard, is the same document to the application.
    server.put(&index, "0", Some("tenant-1"), json!({})).await;
    assert!(server.all(&index).await.len() >= 30);
    let sink = server.sink(&index);
    let batch: Vec<_> = (0..20).map(|n| document(&index, &n.to_string())).collect();
    assert_eq!(sink.look(&batch).await.unwrap(), [Presence::Present; 20]);
    let outcomes = sink.destroy(&batch).await.unwrap();
    assert_eq!(verdicts(&outcomes), [Verdict::Deleted; 20], "{outcomes:?}");
    // The second copy of 0 may have been left; then the read-back finds it, and it goes next.
    server.all(&index).await;
    for outcome in sink.destroy(&batch).await.unwrap() {
        assert!(outcome.verdict.is_confirmed(), "{outcome:?}");
    }
    assert_eq!(sink.look(&batch).await.unwrap(), [Presence::Absent; 20]);
    let left = server.all(&index).await;
    assert_eq!(left.len(), 10);
    assert!(left.keys().all(|(id, _)| id.parse::<u32>().unwrap() >= 20), "{left:?}");
    server.drop(&[&index]).await;
}

/// S6: what the second look can't show wholly, it doesn't call absent.
#[tokio::test]
async fn a_second_look_that_shows_only_a_part_proves_nothing() {
    for (total, expected) in [(0, Verdict::Absent), (1, Verdict::Unknown)] {
        let proxy = Proxy::start(move |request| async move {
            let body = if request.is_mget() {
                json!({"docs": [{"_index": "documents", "_id": "1", "found": false}]})
            } else if request.path.starts_with("/documents/_search") {
                json!({"timed_out": false, "_shards": {"total": 3, "successful": 3, "failed": 0},
                       "hits": {"total": {"value": total, "relation": "eq"}, "hits": []}})
            } else {
                json!({"documents": {
                    "aliases": {}, "settings": {"index": {"number_of_shards": "3"}}}})
            };
            Reply::new(200, body.to_string())
        })
        .await;
        let config = ElasticsearchConfig::new(&proxy.url, "documents");
        let sink = ElasticsearchSink::new(config).unwrap();
        let outcome = one(&sink, document("documents", "1")).await;
        assert_eq!(outcome.verdict, expected, "{outcome:?}");
    }
}

#[tokio::test]
async fn a_document_behind_an_alias_goes_from_every_index() {
    let server = Server::new();
    let (old, new) = (server.index(1, json!({})).await, server.index(2, json!({})).await);
    let alias = format!("{old}-alias");
    let add = |index: &str| json!({"add": {"index": index, "alias": alias}});
    server.json(Method::Post, "_aliases", json!({"actions": [add(&old), add(&new)]})).await;
    server.fill(&old, &[doc("both"), doc("old"), doc("stays")]).await;
    server.fill(&new, &[doc("both"), doc("new"), doc("stays")]).await;
    let sink = server.sink(&alias);
    let batch = ["both", "old", "new", "none"].map(|id| document(&alias, id));
    let outcomes = sink.destroy(&batch).await.unwrap();
    let expected = [Verdict::Deleted, Verdict::Deleted, Verdict::Deleted, Verdict::Absent];
    assert_eq!(verdicts(&outcomes), expected, "{outcomes:?}");
    assert_eq!(server.all(&old).await.len(), 1);
    assert_eq!(server.all(&new).await.len(), 1);

    // The alias moves: the next call asks where it is.
    let remove = json!({"remove": {"index": old, "alias": alias}});
    server.json(Method::Post, "_aliases", json!({"actions": [remove]})).await;
    let outcome = one(&sink, document(&alias, "stays")).await;
    assert_eq!(outcome.verdict, Verdict::Deleted);
    assert_eq!((server.all(&old).await.len(), server.all(&new).await.len()), (1, 0));

    // An alias that shows a part of an index is refused: what it hides would be reached as well.
    let part = json!({"add": {"index": old, "alias": alias, "filter": {"term": {"n": 1}}}});
    server.json(Method::Post, "_aliases", json!({"actions": [part]})).await;
    assert_eq!(one(&sink, document(&alias, "stays")).await.verdict, Verdict::Refused);
    assert_eq!(server.all(&old).await.len(), 1);
    server.drop(&[&old, &new]).await;
}

#[tokio::test]
async fn a_missing_index_is_an_error_and_is_not_made() {
    let server = Server::new();
    let name = format!("sink-{}", uuid::Uuid::new_v4().simple());
    for version in [Versioning::SeqNo, Versioning::Lsn] {
        let mut config = server.config(&name);
        config.version = version;
        let sink = ElasticsearchSink::new(config).unwrap();
        for mut target in [document(&name, "1"), field(&name, "key", "1")] {
            target.lsn = Some(Lsn(7));
            let batch = [target];
            let error = sink.destroy(&batch).await.unwrap_err();
            assert!(matches!(&error, SinkError::Missing(said) if said.contains(&name)), "{error}");
            assert!(matches!(sink.look(&batch).await, Err(SinkError::Missing(_))));
        }
    }
    assert!(!server.exists(&name).await);
    let facts = server.sink(&name).check(Uses::default()).await.unwrap();
    assert_eq!(facts.missing, [name]);
    assert!(facts.concerns()[0].contains("does not exist"));
}

/// F36: it is visible, it is no failure, and it goes on by itself.
#[tokio::test]
async fn a_blocked_index_is_busy_until_the_block_is_lifted() {
    let server = Server::new();
    let index = server.index(1, json!({"properties": {"key": {"type": "keyword"}}})).await;
    let sink = server.sink(&index);
    for block in ["write", "read_only_allow_delete", "read_only"] {
        server.fill(&index, &[doc("1")]).await;
        server.put(&index, "chunk", None, json!({"key": "k"})).await;
        let name = format!("index.blocks.{block}");
        server.set(&index, json!({name.as_str(): true})).await;
        for target in [document(&index, "1"), field(&index, "key", "k")] {
            let outcome = one(&sink, target).await;
            assert_eq!(outcome.verdict, Verdict::Busy, "{block}: {outcome:?}");
            let why = format!("takes no deletes (index.blocks.{block} is set)");
            assert!(outcome.said.contains(&why), "{block}: {outcome:?}");
            // It is owed at once: nobody lifts a block within a batch's deadline.
            assert_eq!(outcome.retry_after, Some(Duration::from_secs(600)));
        }
        // What is not there is absent all the same.
        assert_eq!(one(&sink, document(&index, "none")).await.verdict, Verdict::Absent);
        let facts = sink.check(Uses { fields: &["key"], unrouted: true }).await.unwrap();
        assert_eq!(facts.indices[0].blocks, [block]);
        server.set(&index, json!({name.as_str(): null})).await;
        for target in [document(&index, "1"), field(&index, "key", "k")] {
            assert_eq!(one(&sink, target).await.verdict, Verdict::Deleted, "{block}");
        }
        assert!(server.all(&index).await.is_empty());
    }
    server.drop(&[&index]).await;
}

/// A block of the whole cluster is in no index's settings: the answer to the delete tells it.
#[tokio::test]
async fn a_block_that_no_index_has_is_told_by_the_answer() {
    let blocked = "blocked by: [FORBIDDEN/6/cluster read-only (api)];";
    let answer = move |id: &str| {
        let error = json!({"type": "cluster_block_exception", "reason": blocked});
        let item = json!({"_index": "documents", "_id": id, "status": 403, "error": error});
        json!({ "delete": item })
    };
    let proxy = scripted(move |ids| {
        let items: Vec<Value> = ids.iter().map(|id| answer(id)).collect();
        Reply::new(200, json!({"errors": true, "items": items}).to_string())
    })
    .await;
    let sink = ElasticsearchSink::new(ElasticsearchConfig::new(&*proxy.url, "documents")).unwrap();
    let outcome = one(&sink, document("documents", "1")).await;
    assert_eq!((outcome.verdict, &*outcome.said), (Verdict::Busy, blocked));
    assert_eq!(outcome.retry_after, Some(Duration::from_secs(600)));
}

/// S6: what the address says of the routing is the template's word; the document has what its indexer gave it.
#[tokio::test]
async fn a_document_under_another_routing_than_the_address_says_is_not_absent() {
    let server = Server::new();
    let index = server.index(5, json!({})).await;
    server.fill(&index, &(0..40).map(of_a_tenant).collect::<Vec<_>>()).await;
    server.fill(&index, &(40..50).map(doc).collect::<Vec<_>>()).await;
    assert_eq!(server.all(&index).await.len(), 50);
    let sink = server.sink(&index);
    let wrong = |n: u32| routed(&index, &n.to_string(), "another tenant");
    let batch: Vec<_> = (0..50).filter(|n| n % 2 == 0).map(wrong).collect();
    assert_eq!(sink.look(&batch).await.unwrap(), [Presence::Present; 25]);
    let outcomes = sink.destroy(&batch).await.unwrap();
    assert_eq!(verdicts(&outcomes), [Verdict::Deleted; 25], "{outcomes:?}");
    let strayed = outcomes.iter().filter(|it| it.said.contains("another routing value")).count();
    assert!(strayed > 10, "four of five shards are others: {strayed}");
    assert_eq!(sink.look(&batch).await.unwrap(), [Presence::Absent; 25]);
    assert_eq!(one(&sink, wrong(99)).await.verdict, Verdict::Absent);
    let left = server.all(&index).await;
    assert_eq!(left.len(), 25);
    assert!(left.keys().all(|(id, _)| id.parse::<u32>().unwrap() % 2 == 1), "{left:?}");
    server.drop(&[&index]).await;
}

/// A proxy that runs something before it passes on the first `_bulk`.
async fn before_the_first_bulk<F>(
    server: &Server,
    act: impl Fn(Server) -> F + Send + Sync + 'static,
) -> Proxy
where
    F: Future<Output = ()> + Send + 'static,
{
    let server = server.clone();
    let act = Arc::new(act);
    let seen = Arc::new(AtomicUsize::new(0));
    Proxy::start(move |request| {
        let (server, act, seen) = (server.clone(), Arc::clone(&act), Arc::clone(&seen));
        async move {
            if request.is_bulk() && seen.fetch_add(1, Ordering::Relaxed) == 0 {
                act(server.clone()).await;
            }
            server.pass(request).await
        }
    })
    .await
}

/// S5: the delete is of the state that was read, and of no other.
#[tokio::test]
async fn what_changed_between_read_and_delete_is_busy_and_stays() {
    let server = Server::new();
    let index = server.index(1, json!({})).await;
    server.fill(&index, &[doc("late"), doc("gone"), doc("calm")]).await;
    let name = index.clone();
    let proxy = before_the_first_bulk(&server, move |server| {
        let name = name.clone();
        async move {
            server.put(&name, "late", None, json!({"name": "a newer life"})).await;
            server.json(Method::Delete, &format!("{name}/_doc/gone"), Value::Null).await;
        }
    })
    .await;
    let sink = ElasticsearchSink::new(ElasticsearchConfig::new(&proxy.url, &index)).unwrap();
    let batch = ["late", "gone", "calm"].map(|id| document(&index, id));
    let outcomes = sink.destroy(&batch).await.unwrap();
    let expected = [Verdict::Busy, Verdict::Absent, Verdict::Deleted];
    assert_eq!(verdicts(&outcomes), expected, "{outcomes:?}");
    let left = server.all(&index).await;
    assert_eq!(left[&("late".to_owned(), String::new())], json!({"name": "a newer life"}));
    // Read again under a lease that still holds, the late indexer's work goes too.
    assert_eq!(one(&sink, batch[0].clone()).await.verdict, Verdict::Deleted);
    assert!(server.all(&index).await.is_empty());
    server.drop(&[&index]).await;
}

#[tokio::test]
async fn a_chunk_that_changed_between_search_and_delete_is_busy_and_stays() {
    let server = Server::new();
    let index = server.index(1, json!({"properties": {"key": {"type": "keyword"}}})).await;
    for id in ["a1", "a2"] {
        server.put(&index, id, None, json!({"key": "a"})).await;
    }
    server.put(&index, "b1", None, json!({"key": "b"})).await;
    server.put(&index, "c1", None, json!({"key": "c"})).await;
    let name = index.clone();
    let proxy = before_the_first_bulk(&server, move |server| {
        let name = name.clone();
        async move {
            server.put(&name, "a2", None, json!({"key": "a", "new": true})).await;
            server.json(Method::Delete, &format!("{name}/_doc/b1"), Value::Null).await;
        }
    })
    .await;
    let sink = ElasticsearchSink::new(ElasticsearchConfig::new(&proxy.url, &index)).unwrap();
    let batch = ["a", "b", "c"].map(|key| field(&index, "key", key));
    let outcomes = sink.destroy(&batch).await.unwrap();
    let expected = [Verdict::Busy, Verdict::Absent, Verdict::Deleted];
    assert_eq!(verdicts(&outcomes), expected, "{outcomes:?}");
    assert_eq!(server.all(&index).await.len(), 1);
    assert_eq!(one(&sink, batch[0].clone()).await.verdict, Verdict::Deleted);
    server.drop(&[&index]).await;
}

#[tokio::test]
async fn every_chunk_of_a_key_goes_and_no_other() {
    let server = Server::new();
    let mappings = json!({"properties": {
        "key": {"type": "keyword"},
        "body": {"type": "text"},
        "number": {"type": "long"},
    }});
    let index = server.index(3, mappings).await;
    let chunk = |key: &str, n: u32| {
        let routing = n.is_multiple_of(2).then(|| format!("r{n}"));
        (format!("{key}/{n}"), routing, json!({"key": key, "body": "doc 1", "number": n}))
    };
    let chunks = |key: &str, count: u32| (0..count).map(|n| chunk(key, n)).collect::<Vec<_>>();
    server.fill(&index, &chunks("doc-1", 2_500)).await;
    let keys = ["doc-2", "doc-10", "DOC-1", "doc", "1"];
    for key in keys {
        server.fill(&index, &chunks(key, 20)).await;
    }
    let mut expected = server.all(&index).await;
    assert_eq!(expected.len(), 2_600);
    expected.retain(|_, source| source["key"] != "doc-1");

    let sink = server.sink(&index);
    let batch = [field(&index, "key", "doc-1"), field(&index, "key", "never")];
    assert_eq!(sink.look(&batch).await.unwrap(), [Presence::Present, Presence::Absent]);
    let started = Instant::now();
    let outcomes = sink.destroy(&batch).await.unwrap();
    println!("destroyed 2,500 chunks in {:?}", started.elapsed());
    assert_eq!(verdicts(&outcomes), [Verdict::Deleted, Verdict::Absent], "{outcomes:?}");
    assert_eq!(outcomes[0].said, "2500 documents");
    assert_eq!(server.all(&index).await, expected);
    assert_eq!(sink.look(&batch).await.unwrap(), [Presence::Absent; 2]);

    // A text field matches by word, and `_id` is no field of the documents.
    for name in ["body", "absent", "_id", "k*", ""] {
        let outcome = one(&sink, field(&index, name, "doc")).await;
        assert_eq!(outcome.verdict, Verdict::Refused, "{name}: {outcome:?}");
    }
    assert_eq!(one(&sink, field(&index, "key", "")).await.verdict, Verdict::Refused);
    assert_eq!(server.all(&index).await, expected);
    server.drop(&[&index]).await;
}

#[tokio::test]
async fn a_document_that_holds_another_key_too_stays() {
    let server = Server::new();
    let index = server.index(1, json!({"properties": {"key": {"type": "keyword"}}})).await;
    server.put(&index, "own", None, json!({"key": "a"})).await;
    server.put(&index, "shared", None, json!({"key": ["a", "b"]})).await;
    let sink = server.sink(&index);
    let outcome = one(&sink, field(&index, "key", "a")).await;
    assert_eq!(outcome.verdict, Verdict::Refused, "{outcome:?}");
    let left: Vec<_> = server.all(&index).await.into_keys().map(|(id, _)| id).collect();
    assert_eq!(left, ["shared"]);
    server.drop(&[&index]).await;
}

#[tokio::test]
async fn an_lsn_outranks_an_indexer_that_writes_lsns() {
    let server = Server::new();
    let index = server.index(1, json!({})).await;
    let mut config = server.config(&index);
    config.version = Versioning::Lsn;
    let sink = ElasticsearchSink::new(config).unwrap();
    let at = |id: &str, lsn: Option<u64>| Target { lsn: lsn.map(Lsn), ..document(&index, id) };
    let put = |id: &'static str, lsn: u64| {
        let path = format!("{index}/_doc/{id}?version={lsn}&version_type=external");
        let server = server.clone();
        async move { server.send(Method::Put, &path, "{}").await.0 }
    };
    for (id, lsn) in [("older", 10), ("newer", 30), ("swept", 30)] {
        assert_eq!(put(id, lsn).await, 201);
    }
    let batch =
        [at("older", Some(20)), at("newer", Some(20)), at("swept", None), at("early", Some(20))];
    let outcomes = sink.destroy(&batch).await.unwrap();
    let expected = [Verdict::Deleted, Verdict::Superseded, Verdict::Deleted, Verdict::Absent];
    assert_eq!(verdicts(&outcomes), expected, "{outcomes:?}");
    // What such an indexer brings late is refused by the server itself, also if it was never there.
    for id in ["older", "early"] {
        assert_eq!(put(id, 15).await, 409, "{id}");
    }
    // The same delete once more meets its own version, and finds nothing.
    assert_eq!(one(&sink, at("older", Some(20))).await.verdict, Verdict::Absent);
    server.drop(&[&index]).await;
}

#[tokio::test]
async fn a_server_that_is_down_is_unavailable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let sink = ElasticsearchSink::new(ElasticsearchConfig::new(url, "documents")).unwrap();
    let batch = [document("documents", "1")];
    assert!(matches!(sink.destroy(&batch).await, Err(SinkError::Unavailable(_))));
    assert!(matches!(sink.look(&batch).await, Err(SinkError::Unavailable(_))));
    assert!(matches!(sink.check(Uses::default()).await, Err(SinkError::Unavailable(_))));
}

#[tokio::test]
async fn a_server_that_hangs_is_unavailable() {
    let proxy = Proxy::start(|_| std::future::pending::<Reply>()).await;
    let mut config = ElasticsearchConfig::new(&proxy.url, "documents");
    config.timeout = Duration::from_millis(200);
    let sink = ElasticsearchSink::new(config).unwrap();
    let outcome = sink.destroy(&[document("documents", "1")]).await;
    assert!(matches!(outcome, Err(SinkError::Unavailable(_))), "{outcome:?}");
}

/// A server without documents of its own: every one that is asked for is there, and `_bulk` gets
/// the reply that `bulk` makes of the ids.
async fn scripted(bulk: impl Fn(&[String]) -> Reply + Send + Sync + 'static) -> Proxy {
    let bulk = Arc::new(bulk);
    Proxy::start(move |request| {
        let bulk = Arc::clone(&bulk);
        async move {
            if request.is_mget() {
                let asked: Value = serde_json::from_str(&request.body).unwrap();
                let found = |doc: &Value| {
                    json!({"_index": doc["_index"], "_id": doc["_id"], "_version": 1, "_seq_no": 3,
                           "_primary_term": 1, "found": true})
                };
                let docs: Vec<_> = asked["docs"].as_array().unwrap().iter().map(found).collect();
                return Reply::new(200, json!({ "docs": docs }).to_string());
            }
            if request.is_bulk() {
                let lines = request.body.lines().map(|line| {
                    let line: Value = serde_json::from_str(line).unwrap();
                    assert_eq!(line["delete"]["if_seq_no"], 3, "a delete without its condition");
                    line["delete"]["_id"].as_str().unwrap().to_owned()
                });
                return bulk(&lines.collect::<Vec<_>>());
            }
            let index = json!({"documents": {
                "aliases": {}, "settings": {"index": {"number_of_shards": "1"}}}});
            Reply::new(200, index.to_string())
        }
    })
    .await
}

fn item(id: &str, status: u16) -> Value {
    let mut item = json!({"_index": "documents", "_id": id, "status": status});
    let error = match status {
        200 => {
            item["result"] = json!("deleted");
            return json!({ "delete": item });
        }
        404 => {
            item["result"] = json!("not_found");
            return json!({ "delete": item });
        }
        409 => "version_conflict_engine_exception",
        429 => "es_rejected_execution_exception",
        503 => "unavailable_shards_exception",
        400 => "illegal_argument_exception",
        _ => "something_exception",
    };
    item["error"] = json!({"type": error, "reason": id});
    json!({ "delete": item })
}

/// F35: each item by its own status, though the whole is a 200.
#[tokio::test]
async fn a_mixed_answer_is_taken_item_by_item() {
    let proxy = scripted(|ids| {
        let status = |id: &String| item(id, id.parse().unwrap());
        let items: Vec<_> = ids.iter().map(status).collect();
        Reply::new(200, json!({"took": 1, "errors": true, "items": items}).to_string())
    })
    .await;
    let sink = ElasticsearchSink::new(ElasticsearchConfig::new(&proxy.url, "documents")).unwrap();
    let table = [
        (200, Verdict::Deleted),
        // Read again, it is still there.
        (404, Verdict::Busy),
        (409, Verdict::Busy),
        (429, Verdict::Busy),
        (500, Verdict::Busy),
        (503, Verdict::Busy),
        (400, Verdict::Refused),
    ];
    let batch: Vec<_> =
        table.iter().map(|(status, _)| document("documents", &status.to_string())).collect();
    let outcomes = sink.destroy(&batch).await.unwrap();
    assert_eq!(verdicts(&outcomes), table.map(|(_, verdict)| verdict), "{outcomes:?}");
}

/// F28, F29: what is cut, malformed, short or in another order is never taken for done.
#[tokio::test]
async fn an_answer_that_is_not_whole_confirms_nothing() {
    let whole = |ids: &[String]| {
        let items: Vec<_> = ids.iter().map(|id| item(id, 200)).collect();
        json!({"took": 1, "errors": false, "items": items})
    };
    type Spoil = fn(Value) -> Reply;
    let spoils: [Spoil; 6] = [
        |answer| {
            let text = answer.to_string();
            Reply::new(200, &text[..text.len() - 20])
        },
        |_| Reply::new(200, ""),
        |_| Reply::new(200, "<html>busy</html>"),
        |_| Reply::new(200, r#"{"errors":false}"#),
        |mut answer| {
            answer["items"].as_array_mut().unwrap().reverse();
            Reply::new(200, answer.to_string())
        },
        |mut answer| {
            answer["items"].as_array_mut().unwrap().remove(0);
            Reply::new(200, answer.to_string())
        },
    ];
    for (n, spoil) in spoils.into_iter().enumerate() {
        let proxy = scripted(move |ids| spoil(whole(ids))).await;
        let config = ElasticsearchConfig::new(&proxy.url, "documents");
        let sink = ElasticsearchSink::new(config).unwrap();
        let batch = ["a", "b"].map(|id| document("documents", id));
        let outcomes = sink.destroy(&batch).await.unwrap();
        assert_eq!(verdicts(&outcomes), [Verdict::Unknown; 2], "{n}: {outcomes:?}");
    }
    // The connection breaks in mid-answer.
    let proxy = scripted(move |ids| {
        let reply = Reply::new(200, whole(ids).to_string());
        Reply { cut_at: Some(40), ..reply }
    })
    .await;
    let sink = ElasticsearchSink::new(ElasticsearchConfig::new(&proxy.url, "documents")).unwrap();
    let outcome = sink.destroy(&[document("documents", "a")]).await;
    assert!(matches!(outcome, Err(SinkError::Unavailable(_))), "{outcome:?}");
}

#[tokio::test]
async fn a_reply_lost_after_the_work_is_absent_when_asked_again() {
    let server = Server::new();
    let index = server.index(1, json!({})).await;
    server.fill(&index, &[doc("1")]).await;
    let shared = server.clone();
    let lost = Arc::new(AtomicUsize::new(0));
    let proxy = Proxy::start(move |request| {
        let (server, lost) = (shared.clone(), Arc::clone(&lost));
        async move {
            let is_first = request.is_bulk() && lost.fetch_add(1, Ordering::Relaxed) == 0;
            let reply = server.pass(request).await;
            Reply { cut_at: is_first.then_some(0), ..reply }
        }
    })
    .await;
    let sink = ElasticsearchSink::new(ElasticsearchConfig::new(&proxy.url, &index)).unwrap();
    let batch = [document(&index, "1")];
    assert!(matches!(sink.destroy(&batch).await, Err(SinkError::Unavailable(_))));
    assert_eq!(sink.destroy(&batch).await.unwrap()[0].verdict, Verdict::Absent);
    server.drop(&[&index]).await;
}

#[tokio::test]
async fn a_whole_refusal_is_an_error_of_its_kind() {
    let throttled = scripted(|_| Reply {
        headers: "retry-after: 7\r\n".to_owned(),
        ..Reply::new(429, r#"{"error":{"type":"es_rejected_execution_exception"},"status":429}"#)
    })
    .await;
    let batch = [document("documents", "1")];
    let sink =
        |url: &str| ElasticsearchSink::new(ElasticsearchConfig::new(url, "documents")).unwrap();
    let error = sink(&throttled.url).destroy(&batch).await.unwrap_err();
    let wait = Some(Duration::from_secs(7));
    assert!(matches!(error, SinkError::Throttled { retry_after } if retry_after == wait));
    for (status, kind) in [(401, "security_exception"), (403, "security_exception")] {
        let body = json!({"error": {"type": kind}, "status": status}).to_string();
        let proxy = Proxy::start(move |_| {
            let body = body.clone();
            async move { Reply::new(status, body) }
        })
        .await;
        let error = sink(&proxy.url).destroy(&batch).await.unwrap_err();
        assert!(matches!(error, SinkError::Denied(_)), "{error:?}");
    }
    let broken = scripted(|_| Reply::new(503, "<html>")).await;
    let error = sink(&broken.url).destroy(&batch).await.unwrap_err();
    assert!(matches!(error, SinkError::Unavailable(_)), "{error:?}");
}

/// What was answered in one request is not lost with the next one.
#[tokio::test]
async fn a_later_request_that_fails_keeps_the_verdicts_of_the_first() {
    let calls = AtomicUsize::new(0);
    let proxy = scripted(move |ids| {
        if calls.fetch_add(1, Ordering::Relaxed) > 0 {
            return Reply::new(503, "{}");
        }
        let items: Vec<_> = ids.iter().map(|id| item(id, 200)).collect();
        Reply::new(200, json!({"took": 1, "errors": false, "items": items}).to_string())
    })
    .await;
    let mut config = ElasticsearchConfig::new(&proxy.url, "documents");
    config.items_max = 2.try_into().unwrap();
    let sink = ElasticsearchSink::new(config).unwrap();
    let batch = ["a", "b", "c"].map(|id| document("documents", id));
    let outcomes = sink.destroy(&batch).await.unwrap();
    let expected = [Verdict::Deleted, Verdict::Deleted, Verdict::Unknown];
    assert_eq!(verdicts(&outcomes), expected, "{outcomes:?}");
}

#[tokio::test]
async fn a_check_tells_what_an_operator_should_mend() {
    let server = Server::new();
    let mappings = json!({"_routing": {"required": true}, "properties": {
        "key": {"type": "keyword"}, "body": {"type": "text"}}});
    let index = server.index(2, mappings).await;
    let missing = format!("{index}-missing");
    server.set(&index, json!({"index.translog.durability": "async"})).await;
    let mut config = server.config(&index);
    config.index = OneOrMany::Many(vec![index.clone(), missing.clone()]);
    let sink = ElasticsearchSink::new(config).unwrap();
    let facts = sink.check(Uses { fields: &["key", "body"], unrouted: true }).await.unwrap();
    assert!(facts.version.split('.').count() == 3, "{}", facts.version);
    let one = &facts.indices[0];
    assert_eq!((one.shards, one.routing_required, one.filtered), (2, true, false));
    assert_eq!((one.gc_deletes.as_str(), one.durability.as_str()), ("60s", "async"));
    assert!(one.blocks.is_empty());
    let concerns = facts.concerns().join("\n");
    for expected in
        [missing.as_str(), "translog.durability", "`body`", "index.gc_deletes", "replicas"]
    {
        assert!(concerns.contains(expected), "{concerns}");
    }
    assert_eq!(facts.concerns().len(), 5, "{concerns}");
    assert_eq!(facts.problems().len(), 1, "{:?}", facts.problems());
    assert!(facts.problems()[0].contains("demands a routing value"), "{:?}", facts.problems());

    // A routed target, deletes that are remembered, and a replica that no second node takes.
    let settings = json!({"index.gc_deletes": "2h", "index.number_of_replicas": 1,
        "index.translog.durability": "request", "index.blocks.write": true});
    server.set(&index, settings).await;
    let facts =
        server.sink(&index).check(Uses { fields: &["key"], unrouted: false }).await.unwrap();
    assert_eq!(facts.indices[0].health.as_deref(), Some("yellow"));
    assert!(facts.problems().is_empty(), "{:?}", facts.problems());
    let concerns = facts.concerns();
    assert_eq!(concerns.len(), 2, "{concerns:?}");
    assert!(concerns[0].contains("not assigned") && concerns[1].contains("blocked (write)"));
    server.drop(&[&index]).await;
}

/// Every document of a listing, by slices.
async fn listed(
    sink: ElasticsearchSink,
    index: &str,
    fields: &[&str],
    parts: usize,
) -> Result<Vec<Listed>, ListingError> {
    let fields = fields.iter().map(|field| (*field).into()).collect();
    let listing = ElasticsearchListing::new(Arc::new(sink), [(index.into(), fields)]);
    let mut all = Vec::new();
    for mut part in listing.parts(parts, &[]).await? {
        while let Some(page) = part.next().await? {
            all.extend(page);
        }
    }
    Ok(all)
}

#[tokio::test]
async fn an_index_is_listed_whole_in_slices() {
    let server = Server::new();
    let mappings = json!({"properties": {"key": {"type": "keyword"}}});
    let index = server.index(3, mappings).await;
    let docs: Vec<(String, Option<String>, Value)> = (0..6_000)
        .map(|n| {
            let routing = (n % 3 == 0).then(|| format!("r{}", n % 5));
            (format!("d{n}"), routing, json!({"key": [format!("k{}", n / 2), "both"]}))
        })
        .collect();
    server.fill(&index, &docs).await;
    for parts in [1, 4] {
        let found = listed(server.sink(&index), &index, &["key"], parts).await.unwrap();
        assert_eq!(found.len(), docs.len());
        let by_id: HashMap<_, _> = found.into_iter().map(|it| (it.address, it.fields)).collect();
        for (id, routing, source) in &docs {
            let (index, id, routing) = (index.as_str().into(), id.clone(), routing.clone());
            let mut fields = by_id[&Address::Document { index, id, routing }].clone();
            fields.sort();
            let own = source["key"][0].as_str().unwrap().to_owned();
            assert_eq!(fields, [("key".into(), "both".to_owned()), ("key".into(), own)]);
        }
    }
    server.drop(&[&index]).await;
    let gone = listed(server.sink(&index), &index, &[], 2).await;
    assert!(gone.is_err(), "an index that is gone is no empty one");
}

/// S6: a page that lost a document ends in an error, not in a missing document.
#[tokio::test]
async fn a_listing_that_lost_a_document_is_an_error() {
    let server = Server::new();
    let index = server.index(1, json!({})).await;
    let docs: Vec<_> = (0..30).map(|n| doc(format!("d{n}"))).collect();
    server.fill(&index, &docs).await;
    let shared = server.clone();
    let proxy = Proxy::start(move |request| {
        let server = shared.clone();
        async move {
            let is_page = request.body.contains("\"pit\"") && request.path.starts_with("/_search");
            let mut reply = server.pass(request).await;
            if is_page {
                let mut body: Value = serde_json::from_str(&reply.body).unwrap();
                body["hits"]["hits"].as_array_mut().unwrap().pop();
                reply = Reply::new(200, body.to_string());
            }
            reply
        }
    })
    .await;
    let sink = ElasticsearchSink::new(ElasticsearchConfig::new(&proxy.url, &index)).unwrap();
    let error = listed(sink, &index, &[], 1).await.unwrap_err();
    assert!(error.to_string().contains("not whole"), "{error}");
    server.drop(&[&index]).await;
}
