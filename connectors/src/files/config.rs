//! What the source has to be told.

use std::num::NonZeroUsize;
use std::time::Duration;

use serde::Deserialize;

use super::place::Address;
use crate::bucket::{ObjectStoreOptions, OpenError};

/// Files of change events, and how to read them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilesConfig {
    /// A folder, a file, or the beginning of the objects' names: `"file:///srv/archive"`,
    /// `"s3://bucket/archive"`, `"gs://bucket"`, `"az://container/archive"` or
    /// `"abfss://container@account.dfs.core.windows.net/archive"`.
    pub path: String,
    /// The topic of lines that name none. Default `"files"`.
    #[serde(default = "default_topic")]
    pub topic: String,
    /// Whether new files and new lines are waited for. Default false: everything is read once.
    #[serde(default)]
    pub follow: bool,
    /// How often they are looked for. Default `"1s"`: each look lists all names.
    #[serde(default = "default_poll", with = "humantime_serde")]
    pub poll: Duration,
    /// Most events that one poll brings. Default 1,000: two claims.
    #[serde(default = "default_items")]
    pub items_max: NonZeroUsize,
    /// The longest line. Default 16 MiB: several times what a broker takes as it is set up. A longer one
    /// becomes a dead letter that holds how it begins.
    #[serde(default = "default_line")]
    pub line_bytes_max: NonZeroUsize,
    /// What the crate `object_store` takes for this kind of store, credentials among it, resolved by
    /// whoever reads the configuration: `aws_endpoint`, `aws_access_key_id`, `google_service_account`,
    /// `azure_storage_account_name`, … Without them the usual environment.
    #[serde(skip)]
    pub options: ObjectStoreOptions,
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FilesConfigError {
    /// The path.
    #[error(
        "path `{0}` is none of file:///folder, s3://bucket/folder, gs://bucket/folder, \
         az://container/folder and abfss://container@account.dfs.core.windows.net/folder"
    )]
    Path(String),
    /// Nothing is there.
    #[error("there is no folder and no file at `{path}`")]
    Missing {
        /// The path.
        path: String,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// A file that is none of ours.
    #[error(
        "the name of the file `{0}` does not end in .jsonl, .ndjson or .json, plain, .gz or .zst (of Parquet in .parquet)"
    )]
    Name(String),
    /// An option that the store does not know.
    #[error("option `{0}` is not one of this kind of store")]
    Option(String),
    /// The store can't be made: credentials that can't be read.
    #[error("no such store")]
    Store(#[source] ::object_store::Error),
    /// The place can't be listed.
    #[error("the files can't be listed")]
    List(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl FilesConfig {
    /// The defaults for one path.
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            topic: default_topic(),
            follow: false,
            poll: default_poll(),
            items_max: default_items(),
            line_bytes_max: default_line(),
            options: ObjectStoreOptions::default(),
        }
    }

    /// Whether the path is one and its store has such options. Looks at nothing outside.
    pub fn validate(&self) -> Result<(), FilesConfigError> {
        let wrong = || FilesConfigError::Path(self.path.clone());
        let address = Address::read(&self.path).ok_or_else(wrong)?;
        Ok(address.kind.vet(&self.options)?)
    }
}

impl From<OpenError> for FilesConfigError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Option(name) => Self::Option(name),
            OpenError::Store(error) => Self::Store(error),
        }
    }
}

fn default_topic() -> String {
    "files".to_owned()
}

fn default_poll() -> Duration {
    Duration::from_secs(1)
}

fn default_items() -> NonZeroUsize {
    NonZeroUsize::new(1_000).expect("1,000 is not zero")
}

fn default_line() -> NonZeroUsize {
    NonZeroUsize::new(16 << 20).expect("16 MiB is not zero")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_has_its_default_and_unknown_keys_do_not_parse() {
        let value = serde_json::json!({"path": "file:///srv/archive"});
        let config: FilesConfig = serde_json::from_value(value).unwrap();
        let default = FilesConfig::new("file:///srv/archive");
        assert_eq!(format!("{config:?}"), format!("{default:?}"));
        let value = serde_json::json!({"path": "file:///srv/archive", "folow": true});
        let error = serde_json::from_value::<FilesConfig>(value).unwrap_err();
        assert!(error.to_string().contains("unknown field `folow`"), "{error}");
    }

    #[test]
    fn the_value_of_an_option_is_not_printed() {
        let mut config = FilesConfig::new("s3://bucket");
        config.options = [("aws_secret_access_key", "what-signs")].into_iter().collect();
        let text = format!("{config:?}");
        assert!(text.contains("aws_secret_access_key") && !text.contains("what-signs"), "{text}");
    }
}
