//! `[capture]`: the log's changes published to a broker, as Debezium would: `tombstream capture`.

use std::net::SocketAddr;
use std::time::Duration;

use tombstream_connectors::{Secret, kafka, postgres};

use super::document::{Place, Section};
use super::fluvio::FluvioTarget;
use super::secret::SecretRef;
use super::source::{Setting, bare_names, read_settings};

/// What is captured, and where it goes.
#[derive(Clone, Debug)]
pub(crate) struct CaptureSection {
    /// None: that of the database.
    pub(crate) url: Option<SecretRef>,
    /// The slot: another than the pipeline's own.
    pub(crate) slot: String,
    /// All tables of it are captured; `check --fix` makes it with those of the relations.
    pub(crate) publication: String,
    /// The first part of every topic's name, and the server's name in the envelopes.
    pub(crate) topic_prefix: String,
    /// Whether rows that are there when the slot is made are published too, as Debezium does.
    pub(crate) snapshot: bool,
    /// Where /metrics, /healthz and /readyz are served.
    pub(crate) listen: SocketAddr,
    /// How often a message of our own goes through the log, as in `[source.postgres]`.
    pub(crate) heartbeat: Duration,
    pub(crate) broker: Broker,
}

/// Where changes are published to.
#[derive(Clone, Debug)]
pub(crate) enum Broker {
    /// librdkafka's settings.
    Kafka(Vec<(String, Setting)>),
    Fluvio(FluvioTarget),
}

impl Broker {
    /// What stands between the parts of a topic's name: Fluvio's names have no dots.
    pub(crate) fn separator(&self) -> char {
        match self {
            Self::Kafka(_) => '.',
            Self::Fluvio(_) => '-',
        }
    }
}

impl CaptureSection {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let here = section.here();
        let slot_place = section.place("slot");
        let publication_place = section.place("publication");
        let name = || "tombstream_capture".to_owned();
        let url = section.secret("url");
        let slot = section.or("slot", name());
        let publication = section.or("publication", name());
        bare_names(section, &slot, slot_place, &publication, publication_place);
        let prefix_fix = "write the first part of the topics' names: topic_prefix = \"app\"";
        let prefix_place = section.place("topic_prefix");
        let topic_prefix: Option<String> = section.need("topic_prefix", prefix_fix);
        if let Some(prefix) = &topic_prefix
            && !prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        {
            section.problem(
                prefix_place,
                format!("{prefix:?} can't be part of a topic's name"),
                "use letters, digits, dots, - and _",
            );
        }
        let snapshot = section.or("snapshot", true);
        let listen = section.or("listen", SocketAddr::from(([127, 0, 0, 1], 8082)));
        let heartbeat = section.or("heartbeat", Duration::from_secs(10));
        let kafka = section.table("kafka", |kafka| {
            let place = kafka.place("settings");
            let settings = kafka.table("settings", read_settings).unwrap_or_default();
            judge(kafka, &place, settings.clone());
            settings.into_iter().map(|(name, _, value)| (name, value)).collect()
        });
        let has_fluvio = section.has("fluvio");
        let fluvio = section.table("fluvio", FluvioTarget::read).flatten();
        let broker = match (kafka, fluvio) {
            (Some(kafka), None) if !has_fluvio => Some(Broker::Kafka(kafka)),
            (None, Some(fluvio)) => Some(Broker::Fluvio(fluvio)),
            (Some(_), _) => {
                section.problem(here, "says two brokers", "keep one: kafka or fluvio");
                None
            }
            (None, None) => {
                let fix =
                    "add [capture.kafka.settings] with \"bootstrap.servers\", or [capture.fluvio]";
                if !has_fluvio {
                    section.problem(here, "says no broker", fix);
                }
                None
            }
        };
        Some(Self {
            url,
            slot,
            publication,
            topic_prefix: topic_prefix?,
            snapshot,
            listen,
            heartbeat,
            broker: broker?,
        })
    }

    /// As the connector takes it.
    pub(crate) fn replication(&self, url: Secret) -> postgres::ReplicationConfig {
        let mut config = postgres::ReplicationConfig::new(url, &*self.slot, &*self.publication);
        config.heartbeat = self.heartbeat;
        config.snapshot = self.snapshot;
        config
    }
}

/// Says what the connector and librdkafka would refuse, one setting after the other.
fn judge(section: &Section<'_, '_>, place: &Place, settings: Vec<(String, Place, Setting)>) {
    super::source::judge_settings(section, place, settings, "capture.kafka", |settings| {
        let mut config = kafka::KafkaPublisherConfig::new("");
        config.settings = settings;
        config.validate()
    });
}
