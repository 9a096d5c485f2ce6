//! Opening a folder or a bucket with the crate `object_store`, for the connectors that are made of it.
//! Which URLs each of them takes is its own to say.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr as _;
use std::sync::Arc;

#[cfg(feature = "files")]
use ::object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use ::object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use ::object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use ::object_store::local::LocalFileSystem;
use ::object_store::{ClientOptions, ObjectStore, RetryConfig};

/// Options by name. Their values can't be printed.
#[derive(Clone, Default)]
pub struct ObjectStoreOptions(BTreeMap<String, String>);

impl ObjectStoreOptions {
    /// The first name, in their order.
    fn first(&self) -> Option<&String> {
        self.0.keys().next()
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for ObjectStoreOptions {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(options: I) -> Self {
        Self(options.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl fmt::Debug for ObjectStoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.keys().map(|name| (name, "***"))).finish()
    }
}

/// Why a store can't be opened.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// An option that the store does not know.
    Option(String),
    /// The store can't be made: a folder that is missing, credentials that can't be read.
    Store(::object_store::Error),
}

impl From<::object_store::Error> for OpenError {
    fn from(error: ::object_store::Error) -> Self {
        Self::Store(error)
    }
}

/// A folder. It takes no options.
pub(crate) fn folder(
    folder: &Path,
    options: &ObjectStoreOptions,
) -> Result<Arc<dyn ObjectStore>, OpenError> {
    match options.first() {
        Some(name) => Err(OpenError::Option(name.clone())),
        None => Ok(Arc::new(LocalFileSystem::new_with_prefix(folder)?)),
    }
}

/// The crate's own retries are off: the dataflow has them.
fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

/// A bucket of S3's or of what speaks its protocol: `s3://bucket`.
#[cfg(feature = "files")]
pub(crate) fn s3(
    url: &str,
    options: &ObjectStoreOptions,
    client: ClientOptions,
) -> Result<Arc<dyn ObjectStore>, OpenError> {
    let mut builder = AmazonS3Builder::from_env();
    for (name, value) in &options.0 {
        let key = AmazonS3ConfigKey::from_str(name).map_err(|_| OpenError::Option(name.clone()))?;
        builder = builder.with_config(key, value);
    }
    let builder = builder.with_url(url).with_retry(no_retries());
    Ok(Arc::new(builder.with_client_options(client).build()?))
}

/// A bucket of Google's: `gs://bucket`.
pub(crate) fn google(
    url: &str,
    options: &ObjectStoreOptions,
    client: ClientOptions,
) -> Result<Arc<dyn ObjectStore>, OpenError> {
    let mut builder = GoogleCloudStorageBuilder::from_env();
    for (name, value) in &options.0 {
        let key = GoogleConfigKey::from_str(name).map_err(|_| OpenError::Option(name.clone()))?;
        builder = builder.with_config(key, value);
    }
    let builder = builder.with_url(url).with_retry(no_retries());
    Ok(Arc::new(builder.with_client_options(client).build()?))
}

/// A container of Azure's: `az://container`, or `abfss://` with the account's host.
pub(crate) fn azure(
    url: &str,
    options: &ObjectStoreOptions,
    client: ClientOptions,
) -> Result<Arc<dyn ObjectStore>, OpenError> {
    let mut builder = MicrosoftAzureBuilder::from_env();
    for (name, value) in &options.0 {
        let key = AzureConfigKey::from_str(name).map_err(|_| OpenError::Option(name.clone()))?;
        builder = builder.with_config(key, value);
    }
    let builder = builder.with_url(url).with_retry(no_retries());
    Ok(Arc::new(builder.with_client_options(client).build()?))
}
