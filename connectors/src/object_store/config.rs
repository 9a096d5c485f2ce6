//! What the object store sink has to be told.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use ::object_store::{ClientOptions, ObjectStore};
use serde::Deserialize;

use crate::bucket::{Kind, ObjectStoreOptions, OpenError};

/// A store of kind `object_store`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectStoreConfig {
    /// `"file:///var/copies"`, `"gs://bucket"`, `"az://container"` or
    /// `"abfss://container@account.dfs.core.windows.net"`.
    pub url: String,
    /// What addresses call it: the `bucket` of each of this store's targets. An address in any
    /// other is refused (S8).
    pub bucket: String,
    /// What every key must begin with. Default empty: the whole store is Tombstream's to judge.
    #[serde(default)]
    pub prefix: String,
    /// Most requests in flight for one batch; each key is one or two. Default 32: these stores
    /// answer in tens of milliseconds and throttle in the thousands.
    #[serde(default = "default_in_flight")]
    pub in_flight_max: NonZeroUsize,
    /// Longest wait for a connection. Default `"5s"`.
    #[serde(default = "default_connect", with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Longest wait for an answer. Default `"30s"`: half of the default lease. A destroy never
    /// waits beyond its lease.
    #[serde(default = "default_request", with = "humantime_serde")]
    pub request_timeout: Duration,
    /// What the crate's builders take, credentials among it, resolved by whoever reads the
    /// configuration: `azure_storage_account_name`, `google_service_account`, … Without them the
    /// usual environment.
    #[serde(skip)]
    pub options: ObjectStoreOptions,
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ObjectStoreConfigError {
    /// The URL.
    #[error(
        "url `{0}` is none of file:///directory, gs://bucket, az://container and \
         abfss://container@account.dfs.core.windows.net; for S3 there is kind = \"s3\""
    )]
    Url(String),
    /// An option that the store does not know.
    #[error("option `{0}` is not one of this kind of store")]
    Option(String),
    /// The store can't be made: a directory that is missing, credentials that can't be read.
    #[error("no such store")]
    Store(#[source] ::object_store::Error),
}

impl ObjectStoreConfig {
    /// The defaults for one store.
    pub fn new(url: impl Into<String>, bucket: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            bucket: bucket.into(),
            prefix: String::new(),
            in_flight_max: default_in_flight(),
            connect_timeout: default_connect(),
            request_timeout: default_request(),
            options: ObjectStoreOptions::default(),
        }
    }

    /// The store, its own retries off.
    pub(super) fn open(&self) -> Result<Arc<dyn ObjectStore>, ObjectStoreConfigError> {
        let wrong = || ObjectStoreConfigError::Url(self.url.clone());
        let (scheme, rest) = self.url.split_once("://").ok_or_else(wrong)?;
        let client = ClientOptions::new()
            .with_connect_timeout(self.connect_timeout)
            .with_timeout(self.request_timeout);
        // A path behind the bucket would be dropped without a word by the crate.
        let only_bucket = !rest.is_empty() && !rest.trim_end_matches('/').contains(['/', '?', '#']);
        let kind = match Kind::of(scheme) {
            Some(Kind::Folder) if rest.starts_with('/') && rest.len() > 1 => Kind::Folder,
            Some(kind @ (Kind::Google | Kind::Azure)) if only_bucket => kind,
            // S3 has a sink of its own.
            Some(_) | None => return Err(wrong()),
        };
        let opened = kind.open(&self.url, &self.options, client);
        opened.map_err(|error| match error {
            OpenError::Option(name) => ObjectStoreConfigError::Option(name),
            OpenError::Store(error) => ObjectStoreConfigError::Store(error),
        })
    }
}

fn default_in_flight() -> NonZeroUsize {
    NonZeroUsize::new(32).expect("32 is not zero")
}

fn default_connect() -> Duration {
    Duration::from_secs(5)
}

fn default_request() -> Duration {
    Duration::from_secs(30)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(url: &str, options: &[(&str, &str)]) -> Result<(), ObjectStoreConfigError> {
        let mut config = ObjectStoreConfig::new(url, "documents");
        config.options = options.iter().copied().collect();
        config.open().map(|_| ())
    }

    #[test]
    fn each_kind_of_store_opens_without_a_request() {
        let root = tempfile::tempdir().unwrap();
        open(&format!("file://{}", root.path().display()), &[]).unwrap();
        let account = [("azure_storage_account_name", "a"), ("azure_storage_account_key", "a2V5")];
        open("az://documents", &account).unwrap();
        open("abfss://documents@a.dfs.core.windows.net", &account[1..]).unwrap();
        open("gs://documents/", &[("google_skip_signature", "true")]).unwrap();
    }

    #[test]
    fn what_is_no_store_is_refused() {
        for url in [
            "",
            "/var/copies",
            "file://",
            "file:///",
            "file://relative",
            "gs://",
            "gs://bucket/path",
            "az://container/path",
            "s3://bucket",
            "memory:///",
            "https://host/path",
        ] {
            let error = open(url, &[]).unwrap_err();
            assert!(matches!(error, ObjectStoreConfigError::Url(_)), "{url}: {error}");
        }
        let error = open("file:///no/such/directory", &[]).unwrap_err();
        assert!(matches!(error, ObjectStoreConfigError::Store(_)), "{error}");
        let error = open("gs://bucket", &[("unheard_of", "x")]).unwrap_err();
        assert!(matches!(error, ObjectStoreConfigError::Option(_)), "{error}");
    }

    #[test]
    fn the_value_of_an_option_is_not_printed() {
        let mut config = ObjectStoreConfig::new("az://documents", "documents");
        config.options = [("azure_storage_account_key", "what-signs")].into_iter().collect();
        let text = format!("{config:?}");
        assert!(
            text.contains("azure_storage_account_key") && !text.contains("what-signs"),
            "{text}"
        );
    }

    #[test]
    fn unknown_keys_do_not_parse() {
        let value = serde_json::json!({"url": "gs://b", "bucket": "b", "option": {}});
        let error = serde_json::from_value::<ObjectStoreConfig>(value).unwrap_err();
        assert!(error.to_string().contains("unknown field `option`"), "{error}");
    }
}
