//! What the tantivy sink has to be told.

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

/// A store of kind `tantivy`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TantivyConfig {
    /// The index's folder, absolute. Addresses call the index by it.
    pub path: String,
    /// The field that holds a document's id. Default `"id"`.
    #[serde(default = "default_id_field")]
    pub id_field: String,
    /// Whether segments that hold deleted documents are rewritten before a verdict is given.
    /// Default true: without it "deleted" means that no search finds it, while its bytes stay on the
    /// disk, perhaps for ever.
    #[serde(default = "default_purge")]
    pub purge: bool,
    /// Rest between two rewrites. Default `"1s"`: the application gets its turn at the lock, and the
    /// next rewrite serves all that was deleted meanwhile.
    #[serde(default = "default_purge_wait", with = "humantime_serde")]
    pub purge_wait: Duration,
    /// Longest time of one attempt. Default `"10s"`. What takes longer goes on by itself, and is
    /// answered as busy.
    #[serde(default = "default_timeout", with = "humantime_serde")]
    pub timeout: Duration,
    /// Most targets of one commit. Default 1,000: deleted in a millisecond or two.
    #[serde(default = "default_items_max")]
    pub items_max: NonZeroUsize,
}

/// Why a configuration can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TantivyConfigError {
    /// A path that means another folder elsewhere.
    #[error("path `{0}` is not absolute: write it from the root on, such as /srv/index")]
    Path(String),
    /// No field.
    #[error("id_field is empty: name the field that holds a document's id")]
    IdField,
}

impl TantivyConfig {
    /// The defaults for one index.
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            id_field: default_id_field(),
            purge: default_purge(),
            purge_wait: default_purge_wait(),
            timeout: default_timeout(),
            items_max: default_items_max(),
        }
    }

    /// Checks what can be checked without the index.
    pub fn validate(&self) -> Result<(), TantivyConfigError> {
        if !Path::new(&self.path).is_absolute() {
            return Err(TantivyConfigError::Path(self.path.clone()));
        }
        if self.id_field.is_empty() {
            return Err(TantivyConfigError::IdField);
        }
        Ok(())
    }
}

fn default_id_field() -> String {
    "id".to_owned()
}

fn default_purge() -> bool {
    true
}

fn default_purge_wait() -> Duration {
    Duration::from_secs(1)
}

fn default_timeout() -> Duration {
    Duration::from_secs(10)
}

fn default_items_max() -> NonZeroUsize {
    NonZeroUsize::new(1_000).expect("a thousand is not zero")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_enough() {
        let config: TantivyConfig = serde_json::from_str(r#"{"path": "/srv/index"}"#).unwrap();
        config.validate().unwrap();
        assert_eq!(config.id_field, "id");
        assert!(config.purge);
        assert_eq!(config.purge_wait, Duration::from_secs(1));
        assert_eq!(config.items_max.get(), 1_000);
    }

    #[test]
    fn what_is_no_absolute_path_is_refused() {
        for path in ["", "index", "./index", "../index"] {
            let config = TantivyConfig::new(path);
            assert_eq!(config.validate(), Err(TantivyConfigError::Path(path.to_owned())));
        }
        let mut config = TantivyConfig::new("/srv/index");
        config.id_field.clear();
        assert_eq!(config.validate(), Err(TantivyConfigError::IdField));
    }

    #[test]
    fn unknown_keys_do_not_parse() {
        let value = serde_json::json!({"path": "/srv/index", "purge_wait_max": "1s"});
        let error = serde_json::from_value::<TantivyConfig>(value).unwrap_err();
        assert!(error.to_string().contains("unknown field `purge_wait_max`"), "{error}");
    }
}
