//! What the configuration says of the brokers that are published to.

use std::collections::BTreeMap;
use std::fmt;

use rdkafka::ClientConfig;
use serde::Deserialize;

use super::super::config::{KafkaConfigError, Setting, client};

/// The brokers that changes are published to: librdkafka's settings, and nothing else.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KafkaPublisherConfig {
    /// Handed to librdkafka as it is: brokers, TLS, SASL, compression and the rest.
    pub settings: BTreeMap<String, Setting>,
}

/// Defaults that differ from librdkafka's. Each can be overridden in `settings`.
const DEFAULTS: [(&str, &str); 7] = [
    ("client.id", "tombstream"),
    // The pipeline hands whole batches over, so there is little to wait for: this gathers what one
    // batch has for a partition. librdkafka's is 5.
    ("linger.ms", "2"),
    // Change events repeat their field names over and over; all brokers since 2.1 know it.
    ("compression.type", "zstd"),
    // How long a batch is tried before the pipeline hears of it and tries the same batch anew, which
    // may repeat some of it; librdkafka's is 5 minutes. A broker's restart is over sooner.
    ("message.timeout.ms", "60000"),
    // Made by a producer, a topic has whatever partitions and replicas the broker defaults to.
    ("allow.auto.create.topics", "false"),
    // How soon a topic made later is noticed, and one that is gone.
    ("topic.metadata.refresh.interval.ms", "10000"),
    // A broker that vanished without a word is noticed.
    ("socket.keepalive.enable", "true"),
];

const SAME: &str = "a change counts as published once all in-sync replicas have it, in order";

/// Settings that Tombstream sets itself: the contract rests on them.
const OWNED: [(&str, &str, &str); 11] = [
    (
        "enable.idempotence",
        "true",
        "without it a retry could repeat a change or put it behind a newer one",
    ),
    ("acks", "all", SAME),
    ("request.required.acks", "", SAME),
    (
        "max.in.flight.requests.per.connection",
        "5",
        "with more requests in flight the order of changes is not kept",
    ),
    (
        "max.in.flight",
        "",
        "with more than 5 requests in flight the order of changes is not kept; it is 5",
    ),
    (
        "partitioner",
        "murmur2_random",
        "a key's changes go to the partition where Java's producers, Debezium among them, put them",
    ),
    ("queuing.strategy", "", "changes are sent in their order"),
    ("transactional.id", "", "changes are published at least once, in no transaction"),
    ("delivery.report.only.error", "false", "each delivery is waited for"),
    ("retries", "", "a change is tried until `message.timeout.ms` is over"),
    ("message.send.max.retries", "", "a change is tried until `message.timeout.ms` is over"),
];

impl KafkaPublisherConfig {
    /// A configuration with all defaults.
    pub fn new(brokers: impl Into<String>) -> Self {
        let brokers = Setting::Text(brokers.into());
        Self { settings: BTreeMap::from([("bootstrap.servers".into(), brokers)]) }
    }

    /// What librdkafka is told.
    pub(in super::super) fn client(&self) -> Result<ClientConfig, KafkaConfigError> {
        client(&DEFAULTS, &self.settings, &OWNED)
    }

    /// Whether librdkafka would take the settings. Connects to nothing.
    pub fn validate(&self) -> Result<(), KafkaConfigError> {
        self.client()?
            .create_native_config()
            .map_err(|error| KafkaConfigError::Refused(error.to_string()))?;
        Ok(())
    }
}

/// Values can be secrets, so only names are shown.
impl fmt::Debug for KafkaPublisherConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaPublisherConfig").field("settings", &self.settings.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_decide_durability_order_and_partition_are_refused_with_the_reason() {
        for (name, _, reason) in OWNED {
            let mut config = KafkaPublisherConfig::new("127.0.0.1:1");
            config.settings.insert(name.into(), Setting::Text("1".into()));
            let message = config.client().unwrap_err().to_string();
            assert!(message.contains(name) && message.contains(reason), "{message}");
        }
    }

    #[test]
    fn all_in_sync_replicas_answer_and_nothing_is_reordered_or_repeated() {
        let client = KafkaPublisherConfig::new("127.0.0.1:1").client().unwrap();
        assert_eq!(client.get("enable.idempotence"), Some("true"));
        assert_eq!(client.get("acks"), Some("all"));
        assert_eq!(client.get("max.in.flight.requests.per.connection"), Some("5"));
        assert_eq!(client.get("partitioner"), Some("murmur2_random"));
    }

    #[test]
    fn defaults_are_taken_by_librdkafka_and_can_be_overridden() {
        let mut config = KafkaPublisherConfig::new("127.0.0.1:1");
        config.validate().unwrap();
        config.settings.insert("compression.type".into(), Setting::Text("gzip".into()));
        config.validate().unwrap();
        assert_eq!(config.client().unwrap().get("compression.type"), Some("gzip"));
        config.settings.insert("compresion.type".into(), Setting::Text("gzip".into()));
        assert!(config.validate().unwrap_err().to_string().contains("compresion.type"));
    }

    #[test]
    fn missing_brokers_are_said_and_values_are_not_printed() {
        let mut config = KafkaPublisherConfig::new(" ");
        assert!(config.client().unwrap_err().to_string().contains("bootstrap.servers"));
        config.settings.insert("sasl.username".into(), Setting::Text("visible".into()));
        assert!(!format!("{config:?}").contains("visible"));
    }
}
