//! What `tombstream check --live` wants to know of a store before anything is destroyed in it.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tombstream_model::SinkError;

use super::sink::ElasticsearchSink;

/// What the relations' targets ask of the store.
#[derive(Clone, Copy, Debug, Default)]
pub struct Uses<'a> {
    /// The fields that addresses of chunked documents name.
    pub fields: &'a [&'a str],
    /// Whether some address of a document has no routing.
    pub unrouted: bool,
}

/// How long a late indexer may be on its way, at least, until Elasticsearch forgets that a document was
/// deleted: a queue's backlog of an hour is nothing rare.
const GC_DELETES_LEAST: Duration = Duration::from_secs(3_600);

/// What a store says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The server's version, such as `9.2.0`.
    pub version: String,
    /// Every index behind every declared name.
    pub indices: Vec<IndexFacts>,
    /// The declared names that stand for nothing.
    pub missing: Vec<String>,
    /// Each field that was asked about, for each declared name.
    pub fields: Vec<FieldFacts>,
    /// Whether some address of a document has no routing.
    pub unrouted: bool,
}

/// What one index says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexFacts {
    /// The name in the configuration.
    pub declared: String,
    /// The index behind it.
    pub index: String,
    /// Primary shards.
    pub shards: u32,
    /// Whether its mapping demands a routing value.
    pub routing_required: bool,
    /// Whether the declared name is an alias that shows only a part of the index.
    pub filtered: bool,
    /// How long the version of a deleted document is remembered.
    pub gc_deletes: String,
    /// `request`, or `async`: then a crash un-does deletes that were answered.
    pub durability: String,
    /// The blocks that are set on it, such as `write`.
    pub blocks: Vec<String>,
    /// Copies of each shard beside the primary.
    pub replicas: String,
    /// `green`, `yellow` or `red`; none where the role may not ask.
    pub health: Option<String>,
}

/// Whether a field finds exactly the documents with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldFacts {
    /// The name in the configuration.
    pub declared: String,
    /// The field.
    pub field: String,
    /// Why not.
    pub problem: Option<String>,
}

impl Facts {
    /// What keeps deletions from being done, a sentence each.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for facts in &self.indices {
            let index = &facts.index;
            if facts.routing_required && self.unrouted {
                problems.push(format!(
                    "index `{index}` demands a routing value, and a target has none, so that each of its \
                     deletions would be parked: give the target routing = \"{{…}}\""
                ));
            }
            if facts.health.as_deref() == Some("red") {
                problems.push(format!(
                    "index `{index}` has primary shards that are not assigned: nothing there can be looked up \
                     or deleted"
                ));
            }
        }
        problems
    }

    /// What an operator should do something about, a sentence each.
    pub fn concerns(&self) -> Vec<String> {
        let mut concerns = Vec::new();
        for name in &self.missing {
            concerns.push(format!("index `{name}` does not exist: create it, or mend the name"));
        }
        for facts in &self.indices {
            let index = &facts.index;
            if facts.filtered {
                concerns.push(format!(
                    "alias `{}` shows only a part of `{index}`: declare the index itself",
                    facts.declared
                ));
            }
            if facts.durability.eq_ignore_ascii_case("async") {
                concerns.push(format!(
                    "index `{index}` has translog.durability=async: a crash un-does deletes that \
                     were answered; set it to `request`"
                ));
            }
            if duration(&facts.gc_deletes).is_some_and(|kept| kept < GC_DELETES_LEAST) {
                concerns.push(format!(
                    "index `{index}` remembers a deleted document's version for {} (index.gc_deletes): an \
                     indexer that writes external versions and is later than that brings it back; set it to \
                     1h or more",
                    facts.gc_deletes
                ));
            }
            if facts.replicas == "0" {
                concerns.push(format!(
                    "index `{index}` has no replicas: what a lost node had is restored from a snapshot, with \
                     documents that were deleted since"
                ));
            }
            if facts.health.as_deref() == Some("yellow") {
                concerns.push(format!(
                    "index `{index}` has replicas that are not assigned: a delete is on fewer nodes than was \
                     asked for"
                ));
            }
            if !facts.blocks.is_empty() {
                concerns.push(format!(
                    "index `{index}` is blocked ({}): deletes wait until that is lifted",
                    facts.blocks.join(", ")
                ));
            }
        }
        for facts in &self.fields {
            if let Some(problem) = &facts.problem {
                concerns.push(format!("`{}`: {problem}", facts.declared));
            }
        }
        concerns
    }
}

impl ElasticsearchSink {
    /// Asks the server about itself and about every declared index. Changes nothing.
    ///
    /// An error means that the server can't be asked at all.
    pub async fn check(&self, uses: Uses<'_>) -> Result<Facts, SinkError> {
        let mut facts = Facts {
            version: self.server_version().await?,
            indices: Vec::new(),
            missing: Vec::new(),
            fields: Vec::new(),
            unrouted: uses.unrouted,
        };
        for declared in self.config.index.as_slice() {
            let indices = match self.client.resolve(declared).await {
                Ok(indices) => indices,
                Err(SinkError::Missing(_)) => {
                    facts.missing.push(declared.clone());
                    continue;
                }
                Err(error) => return Err(error),
            };
            for index in indices.iter() {
                let settings = self.settings(&index.name).await?;
                facts.indices.push(IndexFacts {
                    declared: declared.clone(),
                    index: index.name.clone(),
                    shards: index.shards,
                    routing_required: index.routing_required,
                    filtered: index.filtered,
                    gc_deletes: settings.get("index.gc_deletes"),
                    durability: settings.get("index.translog.durability").to_lowercase(),
                    blocks: settings.blocks(),
                    replicas: settings.get("index.number_of_replicas"),
                    health: self.health(&index.name).await?,
                });
            }
            for field in uses.fields {
                let problem = self.client.field_problem(&indices, field, 0).await?;
                let (declared, field) = (declared.clone(), (*field).to_owned());
                facts.fields.push(FieldFacts { declared, field, problem });
            }
        }
        Ok(facts)
    }

    async fn server_version(&self) -> Result<String, SinkError> {
        #[derive(Deserialize)]
        struct Answer {
            version: Version,
        }
        #[derive(Deserialize)]
        struct Version {
            number: String,
        }
        let body = self.client.get("", &[]).await?;
        let answer = serde_json::from_slice::<Answer>(&body);
        let answer = answer.map_err(|_| {
            SinkError::Protocol("the server does not say which Elasticsearch it is".to_owned())
        })?;
        Ok(answer.version.number)
    }

    async fn health(&self, index: &str) -> Result<Option<String>, SinkError> {
        #[derive(Deserialize)]
        struct Answer {
            status: String,
        }
        let path = format!("_cluster/health/{}", super::client::encode(index));
        let body = match self.client.get(&path, &[("filter_path", "status")]).await {
            Ok(body) => body,
            // The privilege to ask is the cluster's (`monitor`), and nothing else needs it.
            Err(SinkError::Denied(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let answer = serde_json::from_slice::<Answer>(&body);
        let unread = |_| SinkError::Protocol(format!("the health of `{index}` can't be read"));
        answer.map(|answer| Some(answer.status)).map_err(unread)
    }

    async fn settings(&self, index: &str) -> Result<Settings, SinkError> {
        let path = format!(
            "{}/_settings/index.gc_deletes,index.translog.durability,index.number_of_replicas,index.blocks.*",
            super::client::encode(index)
        );
        let query = [("flat_settings", "true"), ("include_defaults", "true")];
        let body = self.client.get(&path, &query).await?;
        let unread = |_| SinkError::Protocol(format!("the settings of `{index}` can't be read"));
        let mut answer: Value = serde_json::from_slice(&body).map_err(unread)?;
        Ok(Settings(answer[index].take()))
    }
}

/// A length of time as Elasticsearch spells it, such as `60s`.
fn duration(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit);
    let number: u64 = number.parse().ok()?;
    match unit {
        "nanos" => Some(Duration::from_nanos(number)),
        "micros" => Some(Duration::from_micros(number)),
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        "h" => Some(Duration::from_secs(number.checked_mul(3_600)?)),
        "d" => Some(Duration::from_secs(number.checked_mul(86_400)?)),
        _ => None,
    }
}

/// The settings of one index, those that are set beside the defaults.
struct Settings(Value);

impl Settings {
    fn get(&self, name: &str) -> String {
        let set = &self.0["settings"][name];
        let value = if set.is_null() { &self.0["defaults"][name] } else { set };
        value.as_str().unwrap_or("unknown").to_owned()
    }

    fn blocks(&self) -> Vec<String> {
        const BLOCKS: [&str; 5] =
            ["read_only", "read_only_allow_delete", "read", "write", "metadata"];
        let is_set = |block: &&str| self.get(&format!("index.blocks.{block}")) == "true";
        BLOCKS.into_iter().filter(is_set).map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_time_is_read_as_the_server_spells_it() {
        for (text, seconds) in
            [("60s", 60), ("1m", 60), ("2h", 7_200), ("1d", 86_400), ("1500ms", 1)]
        {
            assert_eq!(duration(text).map(|it| it.as_secs()), Some(seconds), "{text}");
        }
        for text in ["", "-1", "unknown", "60", "s", "1.5h"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
