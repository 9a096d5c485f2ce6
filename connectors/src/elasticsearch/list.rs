//! Indices, listed whole: slices of a point in time, page by page, ids and routing values and no source.
//!
//! A point in time does not move, so a slice is whole exactly when as many documents came as its first page
//! counted. What was not refreshed before it was opened is not in it; a refresh is asked for first.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use tombstream_model::{Address, Listed, Listing, ListingError, ListingPart, SinkError};

use super::answer::{Shards, complete, parse, text};
use super::client::Client;
use super::sink::ElasticsearchSink;

/// How long a slice may rest between two pages: longer than any page waits to be compared.
const KEEP_ALIVE: &str = "10m";
/// Documents of a page: a few hundred kilobytes, and half of what a server gives by default.
const PAGE: usize = 5_000;

/// The indices of a store, as a listing.
#[derive(Clone)]
pub struct ElasticsearchListing {
    sink: Arc<ElasticsearchSink>,
    /// Each declared name, with the fields by which copies are found.
    names: BTreeMap<Arc<str>, Vec<Arc<str>>>,
}

/// A slice of a point in time.
pub struct ElasticsearchPart {
    client: Client,
    name: Arc<str>,
    fields: Vec<Arc<str>>,
    /// All slices share it; the last one that ends closes it. One that breaks leaves it to its end.
    pit: Arc<str>,
    slice: Option<(usize, usize)>,
    after: Option<Value>,
    expected: Option<u64>,
    came: u64,
    has_ended: bool,
}

/// A page of a slice.
struct Page {
    listed: Vec<Listed>,
    total: Option<u64>,
    last: Option<Value>,
}

impl ElasticsearchListing {
    /// A listing of the names that templates lead to, with the fields that they compare.
    pub fn new(
        sink: Arc<ElasticsearchSink>,
        names: impl IntoIterator<Item = (Arc<str>, Vec<Arc<str>>)>,
    ) -> Self {
        Self { sink, names: names.into_iter().collect() }
    }
}

impl Listing for ElasticsearchListing {
    type Item = Listed;
    type Part = ElasticsearchPart;

    async fn parts(
        &self,
        count: usize,
        _: &[Address],
    ) -> Result<Vec<ElasticsearchPart>, ListingError> {
        let mut parts = Vec::new();
        let client = &self.sink.client;
        for (name, fields) in &self.names {
            let indices = client.resolve(name).await?;
            if let Some(index) = indices.iter().find(|index| index.filtered) {
                let said = format!(
                    "alias `{name}` shows only a part of index `{}`: declare the index itself",
                    index.name
                );
                return Err(ListingError::NotWhole(said));
            }
            client.refresh(&indices).await?;
            let pit: Arc<str> = client.open_for(&indices, KEEP_ALIVE).await?.into();
            parts.extend((0..count.max(1)).map(|slice| ElasticsearchPart {
                client: client.clone(),
                name: Arc::clone(name),
                fields: fields.clone(),
                pit: Arc::clone(&pit),
                slice: (count > 1).then_some((slice, count)),
                after: None,
                expected: None,
                came: 0,
                has_ended: false,
            }));
        }
        Ok(parts)
    }
}

impl ListingPart for ElasticsearchPart {
    type Item = Listed;

    async fn next(&mut self) -> Result<Option<Vec<Listed>>, ListingError> {
        if self.has_ended {
            return Ok(None);
        }
        let mut body = json!({
            "size": PAGE,
            "_source": false,
            "track_total_hits": self.expected.is_none(),
            "query": { "match_all": {} },
            "pit": { "id": &*self.pit, "keep_alive": KEEP_ALIVE },
            "sort": [{ "_shard_doc": "asc" }],
        });
        if !self.fields.is_empty() {
            body["docvalue_fields"] = json!(self.fields);
        }
        if let Some((id, max)) = self.slice {
            body["slice"] = json!({ "id": id, "max": max });
        }
        if let Some(after) = &self.after {
            body["search_after"] = after.clone();
        }
        let whole = [("allow_partial_search_results", "false")];
        let answer = self.client.post("_search", &whole, body.to_string()).await?;
        let page = page(&answer, &self.name)?;
        let expected = match (self.expected, page.total) {
            (Some(expected), _) | (None, Some(expected)) => expected,
            (None, None) => return Err(not_whole("the server does not say how many there are")),
        };
        self.expected = Some(expected);
        self.came += page.listed.len() as u64;
        self.after = page.last;
        if page.listed.is_empty() {
            // Invariant (S6): the end is where nothing more comes, and as many came as were counted;
            // `a_slice_that_lost_documents_is_no_listing`.
            counted(self.came, expected)?;
            self.has_ended = true;
            if Arc::strong_count(&self.pit) == 1 {
                self.client.close(&self.pit).await;
            }
            // Others see that this one holds it no more.
            self.pit = "".into();
        }
        Ok(Some(page.listed))
    }
}

fn counted(came: u64, expected: u64) -> Result<(), ListingError> {
    match came == expected {
        true => Ok(()),
        false => Err(not_whole(&format!("{came} documents came of {expected} that were counted"))),
    }
}

fn not_whole(why: &str) -> ListingError {
    ListingError::NotWhole(why.to_owned())
}

fn page(body: &[u8], name: &Arc<str>) -> Result<Page, SinkError> {
    #[derive(Deserialize)]
    struct Answer {
        timed_out: bool,
        #[serde(rename = "_shards")]
        shards: Shards,
        hits: Hits,
    }
    #[derive(Deserialize)]
    struct Hits {
        total: Option<Total>,
        hits: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Total {
        value: u64,
        relation: String,
    }
    #[derive(Deserialize)]
    struct Item {
        #[serde(rename = "_id")]
        id: String,
        #[serde(rename = "_routing")]
        routing: Option<String>,
        #[serde(default)]
        fields: BTreeMap<String, Vec<Value>>,
        #[serde(default)]
        sort: Value,
    }
    let mut answer: Answer = parse(body, "_search")?;
    complete(answer.timed_out, answer.shards)?;
    let last = answer.hits.hits.last_mut().map(|item| item.sort.take());
    let listed = answer.hits.hits.into_iter().map(|item| {
        let fields = item.fields.into_iter().flat_map(|(field, values)| {
            let field: Arc<str> = field.into();
            values.into_iter().map(move |value| (Arc::clone(&field), text(value)))
        });
        Listed {
            fields: fields.collect(),
            address: Address::Document {
                index: Arc::clone(name),
                id: item.id,
                routing: item.routing,
            },
        }
    });
    let total = answer.hits.total.filter(|total| total.relation == "eq");
    Ok(Page { listed: listed.collect(), total: total.map(|total| total.value), last })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(timed_out: bool, failed: u32, total: &str) -> String {
        format!(
            r#"{{"timed_out": {timed_out}, "_shards": {{"total": 2, "successful": 1, "failed": {failed}}},
                "hits": {{{total} "hits": [
                    {{"_id": "1", "_routing": "t", "fields": {{"doc": ["a", "b"]}}, "sort": [4]}}]}}}}"#
        )
    }

    #[test]
    fn a_page_shows_ids_routing_and_fields() {
        let total = r#""total": {"value": 1, "relation": "eq"},"#;
        let page = page(answer(false, 0, total).as_bytes(), &"docs".into()).unwrap();
        assert_eq!((page.total, page.last), (Some(1), Some(json!([4]))));
        let routing = Some("t".to_owned());
        let address = Address::Document { index: "docs".into(), id: "1".to_owned(), routing };
        assert_eq!(page.listed[0].address, address);
        let fields = [("doc".into(), "a".to_owned()), ("doc".into(), "b".to_owned())];
        assert_eq!(page.listed[0].fields, fields);
    }

    #[test]
    fn a_slice_that_lost_documents_is_no_listing() {
        let name = "docs".into();
        assert!(page(answer(true, 0, "").as_bytes(), &name).is_err());
        assert!(page(answer(false, 1, "").as_bytes(), &name).is_err());
        // A lower bound is no count.
        let total = r#""total": {"value": 10000, "relation": "gte"},"#;
        assert_eq!(page(answer(false, 0, total).as_bytes(), &name).unwrap().total, None);
        assert!(counted(999, 1_000).is_err() && counted(1_000, 1_000).is_ok());
    }
}
