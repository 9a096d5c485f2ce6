//! Opening a folder or a bucket with the crate `object_store`, for the connectors that are made of it.
//! Which URLs each of them takes is its own to say.

use std::collections::BTreeMap;
use std::fmt;
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

/// What is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A folder: `file:///folder`. It takes no options.
    Folder,
    /// A bucket of S3's or of what speaks its protocol: `s3://bucket`.
    #[cfg(feature = "files")]
    S3,
    /// A bucket of Google's: `gs://bucket`.
    Google,
    /// A container of Azure's: `az://container`, or `abfss://` with the account's host.
    Azure,
}

impl Kind {
    /// The kind that a URL of this scheme is of.
    pub(crate) fn of(scheme: &str) -> Option<Self> {
        match scheme {
            "file" => Some(Self::Folder),
            #[cfg(feature = "files")]
            "s3" => Some(Self::S3),
            "gs" => Some(Self::Google),
            "az" | "azure" | "abfs" | "abfss" => Some(Self::Azure),
            _ => None,
        }
    }

    /// Whether there are such options.
    pub(crate) fn vet(self, options: &ObjectStoreOptions) -> Result<(), OpenError> {
        let known = |name: &String| match self {
            Self::Folder => false,
            #[cfg(feature = "files")]
            Self::S3 => AmazonS3ConfigKey::from_str(name).is_ok(),
            Self::Google => GoogleConfigKey::from_str(name).is_ok(),
            Self::Azure => AzureConfigKey::from_str(name).is_ok(),
        };
        match options.0.keys().find(|name| !known(name)) {
            Some(name) => Err(OpenError::Option(name.clone())),
            None => Ok(()),
        }
    }

    /// Opens the folder or the bucket at `url`, which names nothing behind it. Sends nothing.
    pub(crate) fn open(
        self,
        url: &str,
        options: &ObjectStoreOptions,
        client: ClientOptions,
    ) -> Result<Arc<dyn ObjectStore>, OpenError> {
        self.vet(options)?;
        // The crate's own retries are off: the dataflow has them.
        let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        /// The three builders have the same methods, and no trait for them.
        macro_rules! build {
            ($builder:ty, $key:ty) => {{
                // First the client's settings: an option may change one of them.
                let mut builder = <$builder>::from_env().with_client_options(client);
                for (name, value) in &options.0 {
                    builder = builder.with_config(<$key>::from_str(name)?, value);
                }
                Ok(Arc::new(builder.with_url(url).with_retry(retry).build()?))
            }};
        }
        match self {
            Self::Folder => {
                let folder = url.strip_prefix("file://").unwrap_or(url);
                Ok(Arc::new(LocalFileSystem::new_with_prefix(folder)?))
            }
            #[cfg(feature = "files")]
            Self::S3 => build!(AmazonS3Builder, AmazonS3ConfigKey),
            Self::Google => build!(GoogleCloudStorageBuilder, GoogleConfigKey),
            Self::Azure => build!(MicrosoftAzureBuilder, AzureConfigKey),
        }
    }
}
