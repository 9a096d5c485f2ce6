//! What the configuration says of Fluvio.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

use fluvio::FluvioClusterConfig;
use fluvio::config::{TlsConfig, TlsPaths, TlsPolicy};
use serde::Deserialize;

/// `[source.fluvio]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FluvioConfig {
    /// The cluster's controller (SC), as `host:port`.
    pub endpoint: String,
    /// The name under which the cluster keeps how far this pipeline is.
    pub consumer: String,
    /// Most events that one poll brings. 1,000 is what one claim takes.
    #[serde(default = "items_max_default")]
    pub items_max: NonZeroUsize,
    /// Bytes that were read and that the pipeline has not asked for yet. 8 MiB is several times the
    /// 1,000 events of a poll at 1 KiB each; one answer for each partition comes on top.
    #[serde(default = "buffer_bytes_max_default")]
    pub buffer_bytes_max: NonZeroUsize,
    /// Whether SPUs are reached at the addresses that the cluster has for its own network, as from
    /// inside Kubernetes; an SPU that has none is reached at its public one.
    #[serde(default)]
    pub local_addresses: bool,
    /// TLS, with a certificate of our own: Fluvio knows no TLS without one that checks the server.
    #[serde(default)]
    pub tls: Option<FluvioTls>,
}

/// The cluster that changes are published to.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FluvioPublisherConfig {
    /// The cluster's controller (SC), as `host:port`.
    pub endpoint: String,
    /// How topics that do not exist are made. None: they are waited for, since partitions and replicas
    /// can't be taken back.
    #[serde(default)]
    pub create: Option<FluvioTopic>,
    /// How batches are compressed, where the topic does not say it itself.
    #[serde(default)]
    pub compression: FluvioCompression,
    /// Whether SPUs are reached at the addresses that the cluster has for its own network.
    #[serde(default)]
    pub local_addresses: bool,
    /// TLS, with a certificate of our own.
    #[serde(default)]
    pub tls: Option<FluvioTls>,
}

/// What a topic is made with.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FluvioTopic {
    /// How many partitions.
    pub partitions: NonZeroU32,
    /// How many replicas each has; that many SPUs must be there.
    pub replicas: NonZeroU32,
}

/// How batches are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FluvioCompression {
    /// Not at all: consumers that were built without codecs read it too.
    #[default]
    None,
    /// gzip.
    Gzip,
    /// Snappy.
    Snappy,
    /// LZ4.
    Lz4,
    /// Zstandard.
    Zstd,
}

/// The files of a TLS connection.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FluvioTls {
    /// The name in the controller's certificate; an SPU's is its own name before it.
    pub domain: String,
    /// The authority that signed the cluster's certificates, PEM.
    pub ca_file: PathBuf,
    /// Our certificate, PEM.
    pub cert_file: PathBuf,
    /// Its key, PEM.
    pub key_file: PathBuf,
}

/// Why the configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FluvioConfigError {
    /// Nothing to connect to.
    #[error("`endpoint` {0:?} is no address: write the controller's (SC) as in \"host:9003\"")]
    Endpoint(String),
    /// The consumer has no name.
    #[error("`consumer` is empty: name what this pipeline's offsets are kept under")]
    Consumer,
    /// No relation names a topic.
    #[error("no relation lists a topic to read: set `topics` of a relation")]
    Topics,
    /// A name that no topic can have.
    #[error(
        "no topic can be named {0:?}: Fluvio's names have lower-case letters, digits and inner \
         dashes, 63 at most"
    )]
    Topic(String),
    /// The files of TLS can't be used.
    #[error("the files of `tls` can't be used")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The system refused.
    #[error("no thread to read in")]
    Thread(#[source] std::io::Error),
}

fn items_max_default() -> NonZeroUsize {
    const { NonZeroUsize::new(1_000).expect("not zero") }
}

fn buffer_bytes_max_default() -> NonZeroUsize {
    const { NonZeroUsize::new(8 << 20).expect("not zero") }
}

impl FluvioConfig {
    /// A configuration with all defaults.
    pub fn new(endpoint: impl Into<String>, consumer: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            consumer: consumer.into(),
            items_max: items_max_default(),
            buffer_bytes_max: buffer_bytes_max_default(),
            local_addresses: false,
            tls: None,
        }
    }

    /// Whether it can be used for `topics`. Connects to nothing.
    pub fn validate(&self, topics: &[String]) -> Result<(), FluvioConfigError> {
        if self.consumer.trim().is_empty() {
            return Err(FluvioConfigError::Consumer);
        }
        if let Some(topic) = topics.iter().find(|topic| !is_name(topic)) {
            return Err(FluvioConfigError::Topic(topic.clone()));
        }
        self.cluster().map(drop)
    }

    /// What Fluvio's client is told.
    pub(super) fn cluster(&self) -> Result<FluvioClusterConfig, FluvioConfigError> {
        cluster(&self.endpoint, self.local_addresses, self.tls.as_ref())
    }
}

impl FluvioPublisherConfig {
    /// A configuration with all defaults.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            create: None,
            compression: FluvioCompression::default(),
            local_addresses: false,
            tls: None,
        }
    }

    /// Whether it can be used for `topics`. Connects to nothing.
    pub fn validate(&self, topics: &[String]) -> Result<(), FluvioConfigError> {
        if let Some(topic) = topics.iter().find(|topic| !is_name(topic)) {
            return Err(FluvioConfigError::Topic(topic.clone()));
        }
        self.cluster().map(drop)
    }

    /// What Fluvio's client is told.
    pub(super) fn cluster(&self) -> Result<FluvioClusterConfig, FluvioConfigError> {
        cluster(&self.endpoint, self.local_addresses, self.tls.as_ref())
    }
}

/// Whether a topic can have this name.
pub(super) fn is_name(name: &str) -> bool {
    fluvio::metadata::topic::validate::valid_topic_name(name) && !name.is_empty()
}

fn cluster(
    endpoint: &str,
    local_addresses: bool,
    tls: Option<&FluvioTls>,
) -> Result<FluvioClusterConfig, FluvioConfigError> {
    let port = endpoint.rsplit_once(':').filter(|(host, _)| !host.trim().is_empty());
    if port.is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
        return Err(FluvioConfigError::Endpoint(endpoint.to_owned()));
    }
    let tls = match tls {
        None => TlsPolicy::Disabled,
        Some(tls) => {
            for file in [&tls.ca_file, &tls.cert_file, &tls.key_file] {
                std::fs::read(file).map_err(|error| {
                    FluvioConfigError::Tls(format!("{}: {error}", file.display()).into())
                })?;
            }
            TlsPolicy::Verified(TlsConfig::Files(TlsPaths {
                domain: tls.domain.clone(),
                key: tls.key_file.clone(),
                cert: tls.cert_file.clone(),
                ca_cert: tls.ca_file.clone(),
            }))
        }
    };
    let mut config = FluvioClusterConfig::new(endpoint).with_tls(tls);
    config.client_id = Some("tombstream".into());
    config.use_spu_local_address = local_addresses;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(endpoint: &str, consumer: &str, topic: &str) -> String {
        let config = FluvioConfig::new(endpoint, consumer);
        config.validate(&[topic.to_owned()]).unwrap_err().to_string()
    }

    #[test]
    fn what_can_not_work_is_said_before_anything_is_connected() {
        FluvioConfig::new("sc:9003", "tombstream").validate(&["app-documents".into()]).unwrap();
        for endpoint in ["", "sc", ":9003", "sc:port", "sc:99999"] {
            assert!(wrong(endpoint, "tombstream", "t").contains("host:9003"), "{endpoint}");
        }
        assert!(wrong("sc:9003", " ", "t").contains("consumer"));
        for topic in ["app.public.documents", "App", "-a", "a-", "", "ü", &"a".repeat(64)] {
            assert!(wrong("sc:9003", "tombstream", topic).contains("lower-case"), "{topic}");
        }
    }

    #[test]
    fn a_file_that_is_missing_is_named() {
        let mut config = FluvioConfig::new("sc:9003", "tombstream");
        config.tls = Some(FluvioTls {
            domain: "fluvio.local".into(),
            ca_file: "/no/such/ca.pem".into(),
            cert_file: "/no/such/cert.pem".into(),
            key_file: "/no/such/key.pem".into(),
        });
        let error = config.validate(&[]).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("/no/such/ca.pem"), "{source}");
    }

    #[test]
    fn unknown_keys_are_refused_and_defaults_hold() {
        let unknown = r#"{"endpoint": "sc:9003", "consumer": "c", "topic": "t"}"#;
        assert!(serde_json::from_str::<FluvioConfig>(unknown).is_err());
        let written = r#"{"endpoint": "sc:9003", "consumer": "c"}"#;
        let config: FluvioConfig = serde_json::from_str(written).unwrap();
        assert_eq!((config.items_max.get(), config.buffer_bytes_max.get()), (1_000, 8 << 20));
        let written = r#"{"endpoint": "sc:9003", "compression": "zstd",
            "create": {"partitions": 3, "replicas": 2}}"#;
        let config: FluvioPublisherConfig = serde_json::from_str(written).unwrap();
        assert_eq!(config.compression, FluvioCompression::Zstd);
    }
}
