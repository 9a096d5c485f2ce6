//! What an answer proves. Pure: bytes in, findings out.
//!
//! Invariant (S6): nothing here confirms unless the answer names the index and the id that was asked
//! for, at the place where it was asked for; `an_item_of_another_document_proves_nothing`.
//!
//! What is said of a document names the kind of error and never its reason, since the server's
//! reasons quote ids; a block's reason speaks of the index alone, and is what an operator needs.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tombstream_model::{SinkError, Verdict};

use super::blocks;

/// Longest text kept of what a server said.
const SAID_MAX: usize = 300;

/// One document in one index.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Doc {
    pub(super) index: String,
    pub(super) id: String,
    pub(super) routing: Option<String>,
}

/// An index behind a declared name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) name: String,
    /// Primary shards. With one, a read can't go to a wrong shard.
    pub(super) shards: u32,
    /// Whether its mapping demands a routing value.
    pub(super) routing_required: bool,
    /// The routing that the alias gives to what is written through it.
    pub(super) alias_routing: Option<String>,
    /// Whether the alias shows only a part of the index.
    pub(super) filtered: bool,
    /// The blocks that are set on it, such as `write`.
    pub(super) blocks: Vec<String>,
}

impl Index {
    /// Why it takes no deletes, and what to do.
    pub(super) fn blocked(&self) -> Option<String> {
        let stops = |block: &&String| {
            matches!(block.as_str(), "write" | "read_only" | "read_only_allow_delete")
        };
        let block = self.blocks.iter().find(stops)?;
        let (name, advice) = (
            &self.name,
            match block.as_str() {
                "read_only_allow_delete" => {
                    "make room on its disks (flood stage), or lift it, and this goes on"
                }
                _ => "lift it, and this goes on",
            },
        );
        Some(format!("index `{name}` takes no deletes (index.blocks.{block} is set): {advice}"))
    }
}

/// Why an item is neither there nor gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) verdict: Verdict,
    pub(super) said: Cow<'static, str>,
    /// When it is worth while to ask again, if that is known.
    pub(super) retry_after: Option<Duration>,
}

/// What a read in real time found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Read {
    Found(Seen),
    NotFound,
    Fault(Fault),
}

/// Which state of a document was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) seq_no: i64,
    pub(super) primary_term: i64,
}

/// What became of one delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Deleted {
    Done,
    NotFound,
    Conflict,
    Fault(Fault),
}

/// One page of a search over a point in time.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) hits: Vec<Hit>,
    pub(super) pit: Option<String>,
    pub(super) total: Option<u64>,
}

/// One document of a page.
#[derive(Debug)]
pub(super) struct Hit {
    pub(super) doc: Doc,
    pub(super) seen: Option<Seen>,
    /// Every value of the field that was asked for, as indexed.
    pub(super) values: Vec<String>,
    pub(super) sort: Value,
}

#[derive(Deserialize)]
struct ErrorBody<'a> {
    #[serde(rename = "type", borrow, default)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    reason: Option<Cow<'a, str>>,
}

impl Fault {
    pub(super) fn new(verdict: Verdict, said: impl Into<Cow<'static, str>>) -> Self {
        Self { verdict, said: said.into(), retry_after: None }
    }

    /// The index takes no deletes until somebody acts.
    pub(super) fn blocked(said: impl Into<Cow<'static, str>>) -> Self {
        Self { retry_after: Some(blocks::REST), ..Self::new(Verdict::Busy, said) }
    }

    pub(super) fn is_block(&self) -> bool {
        self.retry_after == Some(blocks::REST)
    }

    pub(super) fn unknown(said: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Verdict::Unknown, said)
    }
}

/// What an error of one item means. Items of `_mget` have no status.
fn fault(status: Option<u16>, error: &ErrorBody<'_>) -> Fault {
    let kind = word(&error.kind);
    match (kind.as_str(), status) {
        // The flood-stage block (429 TOO_MANY_REQUESTS/12) does not permit deletes either.
        ("cluster_block_exception", _) => {
            let reason = error.reason.as_deref().unwrap_or("no reason given");
            Fault::blocked(cut(reason))
        }
        ("index_closed_exception", _) => {
            Fault::blocked("the index is closed: open it, and this goes on")
        }
        ("index_not_found_exception", _) => {
            Fault::unknown("the index went away between two requests")
        }
        ("routing_missing_exception", _) => Fault::new(
            Verdict::Refused,
            "the index demands a routing value, and the address has none",
        ),
        (
            "es_rejected_execution_exception"
            | "circuit_breaking_exception"
            | "unavailable_shards_exception"
            | "no_shard_available_action_exception"
            | "shard_not_found_exception"
            | "process_cluster_event_timeout_exception",
            _,
        )
        | (_, Some(429 | 500..=599)) => Fault::new(Verdict::Busy, told(&kind, status)),
        (_, Some(400..=499)) => Fault::new(Verdict::Refused, told(&kind, status)),
        (_, _) => Fault::unknown(told(&kind, status)),
    }
}

/// Reads an answer of `_mget`: one finding for each of `asked`, in their order.
pub(super) fn mget(body: &[u8], asked: &[&Doc]) -> Result<Vec<Read>, SinkError> {
    #[derive(Deserialize)]
    struct Answer<'a> {
        #[serde(borrow)]
        docs: Vec<Item<'a>>,
    }
    #[derive(Deserialize)]
    struct Item<'a> {
        #[serde(rename = "_index", borrow)]
        index: Cow<'a, str>,
        #[serde(rename = "_id", borrow)]
        id: Cow<'a, str>,
        found: Option<bool>,
        #[serde(rename = "_seq_no")]
        seq_no: Option<i64>,
        #[serde(rename = "_primary_term")]
        primary_term: Option<i64>,
        #[serde(borrow)]
        error: Option<ErrorBody<'a>>,
    }
    let answer: Answer<'_> = parse(body, "_mget")?;
    let read = |(place, asked): (usize, &&Doc)| {
        let Some(item) = answer.docs.get(place) else {
            return Read::Fault(Fault::unknown("the answer to _mget leaves it out"));
        };
        if item.index != asked.index || item.id != asked.id {
            return Read::Fault(Fault::unknown("the answer to _mget is of another document"));
        }
        match (&item.error, item.found, seen(item.seq_no, item.primary_term)) {
            (Some(error), _, _) => Read::Fault(fault(None, error)),
            (None, Some(true), Some(seen)) => Read::Found(seen),
            (None, Some(false), _) => Read::NotFound,
            (None, Some(true) | None, _) => {
                Read::Fault(Fault::unknown("the answer to _mget says neither found nor not found"))
            }
        }
    };
    Ok(asked.iter().enumerate().map(read).collect())
}

/// Reads an answer of `_bulk`: one finding for each of `sent`, in their order.
///
/// By then the deletes may have been done, so an answer that can't be read is no error: it proves
/// nothing of each.
pub(super) fn bulk(body: &[u8], sent: &[&Doc]) -> Vec<Deleted> {
    #[derive(Deserialize)]
    struct Answer<'a> {
        #[serde(borrow)]
        items: Vec<Item<'a>>,
    }
    #[derive(Deserialize)]
    struct Item<'a> {
        #[serde(borrow)]
        delete: Option<Delete<'a>>,
    }
    #[derive(Deserialize)]
    struct Delete<'a> {
        #[serde(rename = "_index", borrow)]
        index: Cow<'a, str>,
        #[serde(rename = "_id", borrow)]
        id: Cow<'a, str>,
        status: u16,
        #[serde(borrow)]
        result: Option<Cow<'a, str>>,
        #[serde(rename = "_shards")]
        shards: Option<Shards>,
        #[serde(borrow)]
        error: Option<ErrorBody<'a>>,
    }
    let Ok(answer) = serde_json::from_slice::<Answer<'_>>(body) else {
        let lost = Deleted::Fault(Fault::unknown("the answer to _bulk can't be read"));
        return vec![lost; sent.len()];
    };
    let unknown = |said: &'static str| Deleted::Fault(Fault::unknown(said));
    let read = |(place, sent): (usize, &&Doc)| {
        let Some(Item { delete: Some(item) }) = answer.items.get(place) else {
            return unknown("the answer to _bulk leaves it out");
        };
        if item.index != sent.index || item.id != sent.id {
            return unknown("the answer to _bulk is of another document");
        }
        match (item.status, item.result.as_deref(), &item.error) {
            (409, _, Some(error)) if error.kind == "version_conflict_engine_exception" => {
                Deleted::Conflict
            }
            (status, _, Some(error)) => Deleted::Fault(fault(Some(status), error)),
            (200, Some("deleted"), None) => match item.shards {
                Some(Shards { successful: 0, .. }) => unknown("no shard says that it was deleted"),
                Some(_) | None => Deleted::Done,
            },
            (404, Some("not_found"), None) => Deleted::NotFound,
            (429 | 500..=599, _, None) => {
                Deleted::Fault(Fault::new(Verdict::Busy, told("", Some(item.status))))
            }
            (_, _, None) => unknown("the answer to _bulk has no such status and result"),
        }
    };
    sent.iter().enumerate().map(read).collect()
}

/// Reads a page of hits. A search that some shard did not answer proves nothing, so it is an error.
pub(super) fn page(body: &[u8]) -> Result<Page, SinkError> {
    #[derive(Deserialize)]
    struct Answer<'a> {
        timed_out: bool,
        #[serde(rename = "_shards")]
        shards: Shards,
        pit_id: Option<String>,
        #[serde(borrow)]
        hits: Hits<'a>,
    }
    #[derive(Deserialize)]
    struct Hits<'a> {
        total: Option<Total>,
        #[serde(borrow)]
        hits: Vec<Item<'a>>,
    }
    #[derive(Deserialize)]
    struct Total {
        value: u64,
    }
    #[derive(Deserialize)]
    struct Item<'a> {
        #[serde(rename = "_index", borrow)]
        index: Cow<'a, str>,
        #[serde(rename = "_id", borrow)]
        id: Cow<'a, str>,
        #[serde(rename = "_routing")]
        routing: Option<String>,
        #[serde(rename = "_seq_no")]
        seq_no: Option<i64>,
        #[serde(rename = "_primary_term")]
        primary_term: Option<i64>,
        #[serde(default)]
        fields: BTreeMap<String, Vec<Value>>,
        #[serde(default)]
        sort: Value,
    }
    let answer: Answer<'_> = parse(body, "_search")?;
    complete(answer.timed_out, answer.shards)?;
    let hits = answer.hits.hits.into_iter().map(|item| Hit {
        doc: Doc {
            index: item.index.into_owned(),
            id: item.id.into_owned(),
            routing: item.routing,
        },
        seen: seen(item.seq_no, item.primary_term),
        values: item.fields.into_values().flatten().map(text).collect(),
        sort: item.sort,
    });
    Ok(Page {
        hits: hits.collect(),
        pit: answer.pit_id,
        total: answer.hits.total.map(|total| total.value),
    })
}

/// Reads how many documents each of `asked` filters counted, which are named `0`, `1`, ….
pub(super) fn counts(body: &[u8], asked: usize) -> Result<Vec<u64>, SinkError> {
    #[derive(Deserialize)]
    struct Answer {
        timed_out: bool,
        #[serde(rename = "_shards")]
        shards: Shards,
        aggregations: Aggregations,
    }
    #[derive(Deserialize)]
    struct Aggregations {
        values: Buckets,
    }
    #[derive(Deserialize)]
    struct Buckets {
        buckets: BTreeMap<String, Bucket>,
    }
    #[derive(Deserialize)]
    struct Bucket {
        doc_count: u64,
    }
    let answer: Answer = parse(body, "_search")?;
    complete(answer.timed_out, answer.shards)?;
    let buckets = answer.aggregations.values.buckets;
    let count = |place: usize| buckets.get(&place.to_string()).map(|bucket| bucket.doc_count);
    (0..asked)
        .map(|place| count(place).ok_or_else(|| protocol("_search", "a count is left out")))
        .collect()
}

/// Reads what a declared name stands for: the index itself, or every index behind the alias.
pub(super) fn indices(body: &[u8], declared: &str) -> Result<Vec<Index>, SinkError> {
    #[derive(Deserialize)]
    struct Item {
        #[serde(default)]
        aliases: BTreeMap<String, Alias>,
        settings: Settings,
        #[serde(default)]
        mappings: Mappings,
    }
    #[derive(Deserialize)]
    struct Alias {
        filter: Option<Value>,
        index_routing: Option<String>,
    }
    #[derive(Deserialize)]
    struct Settings {
        index: IndexSettings,
    }
    #[derive(Deserialize)]
    struct IndexSettings {
        number_of_shards: String,
        #[serde(default)]
        blocks: BTreeMap<String, Value>,
    }
    #[derive(Default, Deserialize)]
    struct Mappings {
        #[serde(rename = "_routing", default)]
        routing: Routing,
    }
    #[derive(Default, Deserialize)]
    struct Routing {
        #[serde(default)]
        required: bool,
    }
    let answer: BTreeMap<String, Item> = parse(body, "get index")?;
    if answer.is_empty() {
        return Err(SinkError::Missing(format!("index `{declared}`")));
    }
    let read = |(name, mut item): (String, Item)| {
        let alias = if name == declared { None } else { item.aliases.remove(declared) };
        let IndexSettings { number_of_shards, blocks } = item.settings.index;
        let shards = number_of_shards.parse();
        let is_set = |value: &Value| value.as_str() == Some("true") || *value == Value::Bool(true);
        let blocks = blocks.into_iter().filter(|(_, value)| is_set(value)).map(|(block, _)| block);
        Ok(Index {
            shards: shards.map_err(|_| protocol("get index", "number_of_shards is no number"))?,
            routing_required: item.mappings.routing.required,
            filtered: alias.as_ref().is_some_and(|alias| alias.filter.is_some()),
            alias_routing: alias.and_then(|alias| alias.index_routing),
            blocks: blocks.collect(),
            name,
        })
    };
    answer.into_iter().map(read).collect()
}

/// Whether a refresh reached every shard that is there.
pub(super) fn refreshed(body: &[u8]) -> Result<(), SinkError> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(rename = "_shards")]
        shards: Shards,
    }
    let answer: Answer = parse(body, "_refresh")?;
    complete(false, answer.shards)
}

/// The id of the point in time that was opened over every shard.
pub(super) fn pit(body: &[u8]) -> Result<String, SinkError> {
    #[derive(Deserialize)]
    struct Answer {
        id: String,
        #[serde(rename = "_shards")]
        shards: Option<Shards>,
    }
    let answer: Answer = parse(body, "_pit")?;
    if let Some(shards) = answer.shards {
        complete(false, shards)?;
    }
    Ok(answer.id)
}

/// What an answer other than 2xx says of the whole request.
pub(super) fn refusal(status: u16, retry_after: Option<Duration>, body: &[u8]) -> SinkError {
    #[derive(Deserialize)]
    struct Answer<'a> {
        #[serde(borrow)]
        error: Option<ErrorBody<'a>>,
    }
    let answer = serde_json::from_slice::<Answer<'_>>(body).ok();
    let error = answer.and_then(|answer| answer.error);
    let kind = error.as_ref().map(|error| word(&error.kind)).unwrap_or_default();
    let reason = error.and_then(|error| error.reason).map(|reason| cut(&reason));
    match (status, kind.as_str()) {
        (_, "index_not_found_exception") => {
            SinkError::Missing(reason.unwrap_or_else(|| "an index".to_owned()))
        }
        (_, "cluster_block_exception" | "index_closed_exception") => {
            SinkError::Unavailable(reason.unwrap_or(kind).into())
        }
        (429, _) => SinkError::Throttled { retry_after },
        // Its reason names the user and the privilege that is missing, and no document.
        (401 | 403, _) => {
            let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
            SinkError::Denied(told(&kind, Some(status)) + &reason)
        }
        (408 | 500..=599, _) => SinkError::Unavailable(told(&kind, Some(status)).into()),
        (413, _) => SinkError::Protocol("the request is too large: lower bytes_max".to_owned()),
        (_, _) => SinkError::Protocol(told(&kind, Some(status))),
    }
}

/// Why a field does not find exactly the documents with a value, in one of `indices`.
///
/// Invariant (S8): only a field that is indexed as it is may lead to a delete; a text field would
/// match every document that has the key as a word; `only_an_exact_field_leads_to_a_delete`.
pub(super) fn field_problem(
    body: &[u8],
    indices: &[Index],
    field: &str,
    chars_max: usize,
) -> Result<Option<String>, SinkError> {
    #[derive(Deserialize)]
    struct Item {
        #[serde(default)]
        mappings: Value,
    }
    let answer: BTreeMap<String, Item> = parse(body, "_mapping")?;
    let problem = |index: &Index| {
        let mapping = answer.get(&index.name).map_or(&Value::Null, |item| &item.mappings);
        let problem = mapping_problem(mapping, field, chars_max)?;
        Some(format!("field `{field}` of index `{}` {problem}", index.name))
    };
    Ok(indices.iter().find_map(problem))
}

fn mapping_problem(mappings: &Value, field: &str, chars_max: usize) -> Option<String> {
    const EXACT: [&str; 6] = ["keyword", "long", "integer", "short", "byte", "unsigned_long"];
    if mappings["runtime"].get(field).is_some() {
        return Some("is a runtime field".to_owned());
    }
    let mut at = mappings;
    for name in field.split('.') {
        if at["type"] == "nested" {
            return Some("is inside a nested object, which no term finds".to_owned());
        }
        let below = &at["properties"][name];
        at = if below.is_null() { &at["fields"][name] } else { below };
    }
    let Some(kind) = at["type"].as_str() else {
        return Some("is not in the mapping: map it as a keyword".to_owned());
    };
    if !EXACT.contains(&kind) {
        return Some(format!("is of type `{kind}`, which is not exact: name a keyword field"));
    }
    if let Some(normalizer) = at["normalizer"].as_str() {
        return Some(format!("has the normalizer `{normalizer}`, which joins several values"));
    }
    if at["index"] == false || at["doc_values"] == false {
        return Some("is not indexed, or without doc values".to_owned());
    }
    match at["ignore_above"].as_u64() {
        Some(most) if (most as usize) < chars_max => {
            Some(format!("ignores values above {most} characters, and this one is longer"))
        }
        Some(_) | None => None,
    }
}

/// How many shards took part.
#[derive(Clone, Copy, Deserialize)]
pub(super) struct Shards {
    #[serde(default)]
    successful: u32,
    #[serde(default)]
    failed: u32,
}

pub(super) fn complete(timed_out: bool, shards: Shards) -> Result<(), SinkError> {
    if timed_out || shards.failed > 0 {
        let said = format!("{} shards failed, timed out: {timed_out}", shards.failed);
        return Err(SinkError::Unavailable(said.into()));
    }
    Ok(())
}

fn seen(seq_no: Option<i64>, primary_term: Option<i64>) -> Option<Seen> {
    match (seq_no, primary_term) {
        (Some(seq_no @ 0..), Some(primary_term @ 1..)) => Some(Seen { seq_no, primary_term }),
        _ => None,
    }
}

pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8], of: &str) -> Result<T, SinkError> {
    // The category and the place, not the text: it could quote the body.
    serde_json::from_slice(body).map_err(|error| {
        protocol(
            of,
            &format!("{:?} at line {}, {}", error.classify(), error.line(), error.column()),
        )
    })
}

fn protocol(of: &str, problem: &str) -> SinkError {
    SinkError::Protocol(format!("the answer to {of} can't be read: {problem}"))
}

/// An indexed value as a template would write it.
pub(super) fn text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

fn told(kind: &str, status: Option<u16>) -> String {
    let kind = if kind.is_empty() { "no reason given" } else { kind };
    match status {
        Some(status) => format!("{status} {kind}"),
        None => kind.to_owned(),
    }
}

/// An error's kind is a word. What is none came from something else, and may hold anything.
fn word(kind: &str) -> String {
    let is_word = kind.len() <= 80 && kind.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    if is_word { kind.to_owned() } else { String::new() }
}

fn cut(text: &str) -> String {
    text.chars().take(SAID_MAX).collect()
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
