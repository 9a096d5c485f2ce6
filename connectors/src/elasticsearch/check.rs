//! What `tombstream check --live` wants to know of a store before anything is destroyed in it.

use serde::Deserialize;
use serde_json::Value;
use tombstream_model::SinkError;

use super::sink::ElasticsearchSink;

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
    /// `fields` are those that addresses of chunked documents name. An error means that the server
    /// can't be asked at all.
    pub async fn check(&self, fields: &[&str]) -> Result<Facts, SinkError> {
        let mut facts = Facts {
            version: self.server_version().await?,
            indices: Vec::new(),
            missing: Vec::new(),
            fields: Vec::new(),
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
                });
            }
            for field in fields {
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

    async fn settings(&self, index: &str) -> Result<Settings, SinkError> {
        let path = format!(
            "{}/_settings/index.gc_deletes,index.translog.durability,index.blocks.*",
            super::client::encode(index)
        );
        let query = [("flat_settings", "true"), ("include_defaults", "true")];
        let body = self.client.get(&path, &query).await?;
        let unread = |_| SinkError::Protocol(format!("the settings of `{index}` can't be read"));
        let mut answer: Value = serde_json::from_slice(&body).map_err(unread)?;
        Ok(Settings(answer[index].take()))
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
