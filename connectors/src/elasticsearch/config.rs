//! How an Elasticsearch store is declared.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::Secret;

/// A store in Elasticsearch. Secrets are handed in resolved.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ElasticsearchConfig {
    /// The nodes (`"http://127.0.0.1:9200"`), asked in turn.
    pub url: OneOrMany,
    /// The declared indices and aliases: an address outside them is refused (S8).
    pub index: OneOrMany,
    /// Who is asking.
    #[serde(default)]
    pub auth: Auth,
    /// PEM of the authority that signed the nodes' certificates, for one that is not on Mozilla's
    /// list, such as the one that Elasticsearch makes for itself.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// What makes a delete conditional.
    #[serde(default)]
    pub version: Versioning,
    /// Longest wait for one answer. Thirty seconds are half of the lease's default, so that a
    /// request which hangs is over before its lease is.
    #[serde(default = "timeout", with = "humantime_serde")]
    pub timeout: Duration,
    /// Most documents in one request; 1,000 keeps a write thread for some ten milliseconds.
    #[serde(default = "items_max")]
    pub items_max: NonZeroUsize,
    /// Most bytes in one request; 4 MiB holds 1,000 of the longest ids, and is far below the
    /// servers' limit (`http.max_content_length`, 100 MB).
    #[serde(default = "bytes_max")]
    pub bytes_max: NonZeroUsize,
}

/// One text, or a list of them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// Who is asking.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Auth {
    /// Nobody: the server has no security.
    #[default]
    None,
    /// A user with a password.
    Basic {
        /// The user's name.
        user: String,
        /// The user's password.
        password: Secret,
    },
    /// An API key, encoded as Kibana shows it (`base64(id:key)`).
    ApiKey {
        /// The key.
        key: Secret,
    },
    /// A token of the token service or of an identity provider.
    Bearer {
        /// The token.
        token: Secret,
    },
}

/// What makes a delete conditional (S5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Versioning {
    /// The sequence number that was read under the claim. Right for every indexer.
    #[default]
    SeqNo,
    /// The flip's LSN as external version. Only for an indexer that writes LSNs as external
    /// versions: for it the delete also outranks what it indexes late. Against internal versions it
    /// is no fence at all, and against versions from a clock it never succeeds.
    Lsn,
}

/// What is wrong with a declaration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No node, or no index.
    #[error("`{0}` is empty: name at least one")]
    Empty(&'static str),
    /// A URL that can't be a node's.
    #[error("url `{url}`: {problem}")]
    Url {
        /// The URL, without credentials.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// A name that could stand for more than one index, or for none.
    #[error("index `{name}`: {problem}")]
    Index {
        /// The name.
        name: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// The authority's certificates can't be read.
    #[error("ca_file `{path}`: {problem}")]
    CaFile {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// No client can be made of it.
    #[error("no client: {0}")]
    Client(String),
}

impl ElasticsearchConfig {
    /// A store without credentials, and with every default.
    pub fn new(url: impl Into<String>, index: impl Into<String>) -> Self {
        Self {
            url: OneOrMany::One(url.into()),
            index: OneOrMany::One(index.into()),
            auth: Auth::None,
            ca_file: None,
            version: Versioning::SeqNo,
            timeout: timeout(),
            items_max: items_max(),
            bytes_max: bytes_max(),
        }
    }

    /// Checks what can be checked without a server.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.url.as_slice().is_empty() {
            return Err(ConfigError::Empty("url"));
        }
        if self.index.as_slice().is_empty() {
            return Err(ConfigError::Empty("index"));
        }
        for url in self.url.as_slice() {
            check_url(url)?;
        }
        for name in self.index.as_slice() {
            if let Some(problem) = index_problem(name) {
                return Err(ConfigError::Index { name: name.clone(), problem });
            }
        }
        Ok(())
    }
}

impl OneOrMany {
    /// The texts.
    pub fn as_slice(&self) -> &[String] {
        match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::Many(texts) => texts,
        }
    }
}

fn timeout() -> Duration {
    Duration::from_secs(30)
}

fn items_max() -> NonZeroUsize {
    NonZeroUsize::new(1_000).expect("a thousand is not zero")
}

fn bytes_max() -> NonZeroUsize {
    NonZeroUsize::new(4 << 20).expect("four mebibytes are not zero")
}

/// A node is `http(s)://host[:port][/path]`; credentials in it would end up in every log line.
fn check_url(url: &str) -> Result<(), ConfigError> {
    let parsed = elasticsearch::http::Url::parse(url);
    let problem = match &parsed {
        Err(error) => error.to_string(),
        Ok(it) if !it.username().is_empty() || it.password().is_some() => {
            let host = it.host_str().unwrap_or_default().to_owned();
            return Err(ConfigError::Url {
                url: host,
                problem: "has credentials in it: write them under `auth`".to_owned(),
            });
        }
        Ok(it) if !matches!(it.scheme(), "http" | "https") => {
            "is neither http nor https".to_owned()
        }
        Ok(it) if it.query().is_some() || it.fragment().is_some() => {
            "has a query or a fragment".to_owned()
        }
        Ok(_) => return Ok(()),
    };
    Err(ConfigError::Url { url: url.to_owned(), problem })
}

/// Why a text is not the name of one index or alias.
///
/// Invariant (S8): a name never stands for more than was declared: no wildcard, no list, no date
/// math, no other cluster; `a_name_that_could_mean_more_is_refused`.
pub(super) fn index_problem(name: &str) -> Option<&'static str> {
    if name.is_empty() || name == "." || name == ".." {
        return Some("is not a name");
    }
    if name.len() > 255 {
        return Some("is longer than 255 bytes");
    }
    if name.starts_with(['_', '-', '+']) {
        return Some("begins with `_`, `-` or `+`");
    }
    if name.contains(['*', '?', ',']) {
        return Some("could stand for several: name each one");
    }
    if name.contains(':') {
        return Some("names another cluster");
    }
    if name.contains(['<', '>', '|', '\\', '/', '"', '#', ' ']) || name.contains(char::is_control) {
        return Some("holds a character that no index name has");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<ElasticsearchConfig, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn a_url_and_an_index_are_enough() {
        let config = parse(r#"{"url": "http://127.0.0.1:9200", "index": "documents"}"#).unwrap();
        config.validate().unwrap();
        assert_eq!(config.version, Versioning::SeqNo);
        assert_eq!(config.items_max.get(), 1_000);
        assert_eq!(config.timeout, Duration::from_secs(30));
    }

    #[test]
    fn several_nodes_and_indices_are_a_list() {
        let config = parse(r#"{"url": ["http://a:9200", "http://b:9200"], "index": ["x", "y"]}"#);
        let config = config.unwrap();
        config.validate().unwrap();
        assert_eq!(config.index.as_slice(), ["x", "y"]);
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let error = parse(r#"{"url": "http://a", "index": "x", "indx": 1}"#).unwrap_err();
        assert!(error.to_string().contains("unknown field `indx`"), "{error}");
        let error = parse(r#"{"url": "http://a", "index": "x", "items_max": 0}"#).unwrap_err();
        assert!(error.to_string().contains("nonzero"), "{error}");
    }

    #[test]
    fn a_secret_is_never_printed() {
        let config = parse(
            r#"{"url": "http://a", "index": "x",
                "auth": {"kind": "basic", "user": "u", "password": "hunter2"}}"#,
        );
        let printed = format!("{:?}", config.unwrap());
        assert!(printed.contains("***") && !printed.contains("hunter2"), "{printed}");
    }

    #[test]
    fn a_name_that_could_mean_more_is_refused() {
        let named = ["", ".", "..", "_all", "-x", "+x", "a*", "a,b", "a?", "<a-{now/d}>", "far:a"];
        for name in named.into_iter().chain(["a/b", "a b", "a\nb", "\"a\"", "a#b"]) {
            let config = ElasticsearchConfig::new("http://a:9200", name);
            assert!(matches!(config.validate(), Err(ConfigError::Index { .. })), "{name:?}");
        }
        ElasticsearchConfig::new("http://a:9200", ".ds-logs-2026.01.01-000001").validate().unwrap();
    }

    #[test]
    fn a_url_with_credentials_is_refused_without_printing_them() {
        let config = ElasticsearchConfig::new("http://elastic:hunter2@a:9200", "x");
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains("auth") && !error.contains("hunter2"), "{error}");
        for url in ["a:9200", "ftp://a", "http://a:9200/?x=1", ""] {
            let config = ElasticsearchConfig::new(url, "x");
            assert!(matches!(config.validate(), Err(ConfigError::Url { .. })), "{url}");
        }
    }
}
