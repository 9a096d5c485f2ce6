//! What the configuration says of Kafka, and what it becomes for librdkafka.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use serde::Deserialize;

/// `[source.kafka]`.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KafkaConfig {
    /// The consumer group. Processes of one group share the partitions.
    pub group: String,
    /// Most events that one poll brings. 1,000 is what one claim takes.
    #[serde(default = "items_max_default")]
    pub items_max: NonZeroUsize,
    /// Bytes that were read and that the pipeline has not asked for yet. 8 MiB is several times the
    /// 1,000 events of a poll at 1 KiB each; librdkafka's own queue comes on top.
    #[serde(default = "buffer_bytes_max_default")]
    pub buffer_bytes_max: NonZeroUsize,
    /// Handed to librdkafka as it is: brokers, TLS, SASL and the rest.
    pub settings: BTreeMap<String, Setting>,
}

/// The value of a librdkafka setting, or where it is.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
pub enum Setting {
    /// `"text"`.
    Text(String),
    /// `10000`.
    Integer(i64),
    /// `true`.
    Boolean(bool),
    /// `{ env = "NAME" }`.
    Env(EnvSetting),
    /// `{ file = "/path" }`; one line end at its end is not part of the value.
    File(FileSetting),
}

/// A value in the environment.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvSetting {
    /// The variable's name.
    pub env: String,
}

/// A value in a file.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSetting {
    /// The file's path.
    pub file: PathBuf,
}

/// Why the configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KafkaConfigError {
    /// The group has no name.
    #[error("`group` is empty: name the consumer group that this pipeline commits its offsets for")]
    Group,
    /// Nothing to connect to.
    #[error("settings: `bootstrap.servers` is missing: list the brokers, as in \"host:9092\"")]
    Brokers,
    /// No relation names a topic.
    #[error("no relation lists a topic to read: set `topics` of a relation")]
    Topics,
    /// A setting that the contract depends on.
    #[error("settings: `{name}` can't be set: {reason}")]
    Owned {
        /// The setting.
        name: String,
        /// Why it is not the user's.
        reason: &'static str,
    },
    /// The environment does not have the value.
    #[error("settings: `{name}`: the environment has no variable `{env}`")]
    Env {
        /// The setting.
        name: String,
        /// The variable.
        env: String,
    },
    /// The file with the value can't be read.
    #[error("settings: `{name}`: can't read `{}`", file.display())]
    File {
        /// The setting.
        name: String,
        /// The file.
        file: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// librdkafka refused a name, a value or their combination.
    #[error("settings: librdkafka refuses them: {0}")]
    Refused(String),
}

/// Defaults that differ from librdkafka's. Each can be overridden in `settings`.
const DEFAULTS: [(&str, &str); 11] = [
    ("client.id", "tombstream"),
    // Debezium makes a topic with its first event; a consumer that made it would fix its partitions.
    ("allow.auto.create.topics", "false"),
    // How soon a topic made later and partitions added later are noticed; librdkafka's is 5 minutes.
    ("topic.metadata.refresh.interval.ms", "10000"),
    // After a `kill -9` the partitions stand still this long; librdkafka's is 45 s. Brokers allow 6 s
    // at least, and a heartbeat every 3 s may then be lost twice.
    ("session.timeout.ms", "10000"),
    ("heartbeat.interval.ms", "3000"),
    // Bounds the memory: librdkafka's 64 MiB are more than the rest of the process uses.
    ("queued.max.messages.kbytes", "16384"),
    ("fetch.max.bytes", "16777216"),
    // How long fetching rests once that queue is full; librdkafka's 1 s would starve a fast pipeline.
    ("fetch.queue.backoff.ms", "100"),
    // Lag in the metrics comes with these statistics.
    ("statistics.interval.ms", "5000"),
    // A broker that vanished without a word is noticed.
    ("socket.keepalive.enable", "true"),
    ("partition.assignment.strategy", "cooperative-sticky"),
];

/// Settings that Tombstream sets itself: the contract rests on them.
const OWNED: [(&str, &str, &str); 8] = [
    ("group.id", "", "it is `group` of [source.kafka]"),
    (
        "enable.auto.commit",
        "false",
        "offsets are committed only behind the pipeline's frontier, otherwise events could be lost",
    ),
    ("auto.commit.enable", "", "offsets are committed only behind the pipeline's frontier"),
    ("auto.commit.interval.ms", "", "offsets are committed only behind the pipeline's frontier"),
    (
        "enable.auto.offset.store",
        "false",
        "librdkafka would store the offsets of events that are not processed yet",
    ),
    (
        "auto.offset.reset",
        "error",
        "a reset would skip or repeat events in silence; where reading starts is decided at each \
         assignment, and an offset out of range is reported",
    ),
    ("offset.store.method", "", "offsets are kept by the brokers"),
    (
        "group.protocol",
        "classic",
        "only the classic protocol is supported, with cooperative-sticky assignment",
    ),
];

fn items_max_default() -> NonZeroUsize {
    const { NonZeroUsize::new(1_000).expect("not zero") }
}

fn buffer_bytes_max_default() -> NonZeroUsize {
    const { NonZeroUsize::new(8 << 20).expect("not zero") }
}

impl KafkaConfig {
    /// A configuration with all defaults.
    pub fn new(group: impl Into<String>, brokers: impl Into<String>) -> Self {
        Self {
            group: group.into(),
            items_max: items_max_default(),
            buffer_bytes_max: buffer_bytes_max_default(),
            settings: BTreeMap::from([("bootstrap.servers".into(), Setting::Text(brokers.into()))]),
        }
    }

    /// What librdkafka is told.
    pub(super) fn client(&self) -> Result<ClientConfig, KafkaConfigError> {
        if self.group.trim().is_empty() {
            return Err(KafkaConfigError::Group);
        }
        let mut client = client(&DEFAULTS, &self.settings, &OWNED)?;
        let strategy = "partition.assignment.strategy";
        if client.get(strategy).is_some_and(|value| value.trim() != "cooperative-sticky") {
            return Err(KafkaConfigError::Owned {
                name: strategy.into(),
                reason: "only \"cooperative-sticky\" is supported: under the others each rebalance \
                         takes all partitions away and repeats what was in flight",
            });
        }
        client.set("group.id", &self.group);
        Ok(client)
    }

    /// Whether librdkafka would take the settings. Connects to nothing.
    pub fn validate(&self) -> Result<(), KafkaConfigError> {
        self.client()?
            .create_native_config()
            .map_err(|error| KafkaConfigError::Refused(error.to_string()))?;
        Ok(())
    }
}

/// What librdkafka is told: our defaults, then the user's settings, then what is ours alone.
pub(super) fn client(
    defaults: &[(&str, &str)],
    settings: &BTreeMap<String, Setting>,
    owned: &[(&str, &str, &'static str)],
) -> Result<ClientConfig, KafkaConfigError> {
    let mut client = ClientConfig::new();
    // What reaches a person is decided by the filter of the logs, not by librdkafka.
    client.set_log_level(RDKafkaLogLevel::Info);
    for (name, value) in defaults {
        client.set(*name, *value);
    }
    for (name, setting) in settings {
        if let Some((_, _, reason)) = owned.iter().find(|(owned, _, _)| owned == name) {
            return Err(KafkaConfigError::Owned { name: name.clone(), reason });
        }
        client.set(name, setting.resolve(name)?);
    }
    if !["bootstrap.servers", "metadata.broker.list"]
        .iter()
        .any(|name| client.get(name).is_some_and(|brokers| !brokers.trim().is_empty()))
    {
        return Err(KafkaConfigError::Brokers);
    }
    for (name, value, _) in owned {
        if !value.is_empty() {
            client.set(*name, *value);
        }
    }
    Ok(client)
}

/// Values can be secrets, so only names are shown.
impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaConfig")
            .field("group", &self.group)
            .field("items_max", &self.items_max)
            .field("buffer_bytes_max", &self.buffer_bytes_max)
            .field("settings", &self.settings.keys())
            .finish()
    }
}

impl Setting {
    fn resolve(&self, name: &str) -> Result<String, KafkaConfigError> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::Integer(number) => Ok(number.to_string()),
            Self::Boolean(value) => Ok(value.to_string()),
            Self::Env(EnvSetting { env }) => std::env::var(env)
                .map_err(|_| KafkaConfigError::Env { name: name.into(), env: env.clone() }),
            Self::File(FileSetting { file }) => {
                let text = std::fs::read_to_string(file).map_err(|source| {
                    KafkaConfigError::File { name: name.into(), file: file.clone(), source }
                })?;
                let line = text.strip_suffix('\n').unwrap_or(&text);
                Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> KafkaConfig {
        serde_json::from_str(json).unwrap()
    }

    fn refused(name: &str, value: &str) -> String {
        let mut config = KafkaConfig::new("g", "127.0.0.1:1");
        config.settings.insert(name.into(), Setting::Text(value.into()));
        config.client().unwrap_err().to_string()
    }

    #[test]
    fn settings_that_the_contract_rests_on_are_refused_with_the_reason() {
        for (name, _, reason) in OWNED {
            let message = refused(name, "true");
            assert!(message.contains(name) && message.contains(reason), "{message}");
        }
    }

    #[test]
    fn an_eager_strategy_is_refused_even_beside_the_cooperative_one() {
        assert!(refused("partition.assignment.strategy", "range").contains("cooperative-sticky"));
        assert!(
            refused("partition.assignment.strategy", "cooperative-sticky,range")
                .contains("partition.assignment.strategy")
        );
    }

    #[test]
    fn nothing_is_committed_stored_or_reset_by_librdkafka() {
        let client = KafkaConfig::new("g", "127.0.0.1:1").client().unwrap();
        assert_eq!(client.get("enable.auto.commit"), Some("false"));
        assert_eq!(client.get("enable.auto.offset.store"), Some("false"));
        assert_eq!(client.get("auto.offset.reset"), Some("error"));
        assert_eq!(client.get("group.id"), Some("g"));
        assert_eq!(client.get("allow.auto.create.topics"), Some("false"));
        assert_eq!(client.get("partition.assignment.strategy"), Some("cooperative-sticky"));
    }

    #[test]
    fn defaults_are_taken_by_librdkafka_and_can_be_overridden() {
        let config = config(
            r#"{"group": "g", "settings": {"bootstrap.servers": "127.0.0.1:1",
                "session.timeout.ms": 7000, "socket.keepalive.enable": false,
                "group.instance.id": "one", "security.protocol": "SASL_SSL",
                "sasl.mechanism": "SCRAM-SHA-512", "sasl.username": "u", "sasl.password": "p"}}"#,
        );
        config.validate().unwrap();
        let client = config.client().unwrap();
        assert_eq!(client.get("session.timeout.ms"), Some("7000"));
        assert_eq!(client.get("socket.keepalive.enable"), Some("false"));
    }

    #[test]
    fn what_librdkafka_does_not_know_is_refused_by_name() {
        let mut config = KafkaConfig::new("g", "127.0.0.1:1");
        config.settings.insert("sesion.timeout.ms".into(), Setting::Integer(1));
        assert!(config.validate().unwrap_err().to_string().contains("sesion.timeout.ms"));
    }

    #[test]
    fn missing_brokers_and_an_empty_group_are_said() {
        let none = config(r#"{"group": "g", "settings": {}}"#);
        assert!(none.client().unwrap_err().to_string().contains("bootstrap.servers"));
        let unnamed = KafkaConfig::new(" ", "127.0.0.1:1");
        assert!(unnamed.client().unwrap_err().to_string().contains("group"));
    }

    #[test]
    fn unknown_keys_are_refused() {
        let unknown = r#"{"group": "g", "settings": {}, "topic": "t"}"#;
        assert!(serde_json::from_str::<KafkaConfig>(unknown).is_err());
        let unknown = r#"{"group": "g", "settings": {"sasl.password": {"envv": "A"}}}"#;
        assert!(serde_json::from_str::<KafkaConfig>(unknown).is_err());
    }

    #[test]
    fn a_secret_comes_from_a_file_without_its_line_end_and_is_never_printed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), " hush \n").unwrap();
        let mut config = KafkaConfig::new("g", "127.0.0.1:1");
        config.settings.insert(
            "sasl.password".into(),
            Setting::File(FileSetting { file: file.path().to_owned() }),
        );
        config.settings.insert("sasl.username".into(), Setting::Text("visible".into()));
        assert_eq!(config.client().unwrap().get("sasl.password"), Some(" hush "));
        let printed = format!("{config:?}");
        assert!(printed.contains("sasl.password") && !printed.contains("visible"), "{printed}");
    }

    #[test]
    fn a_missing_variable_is_named() {
        let mut config = KafkaConfig::new("g", "127.0.0.1:1");
        let env = "TOMBSTREAM_NO_SUCH_VARIABLE".to_owned();
        config.settings.insert("sasl.password".into(), Setting::Env(EnvSetting { env }));
        let message = config.client().unwrap_err().to_string();
        assert!(message.contains("TOMBSTREAM_NO_SUCH_VARIABLE"), "{message}");
    }
}
