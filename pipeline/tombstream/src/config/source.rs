//! `[source.kafka]`, `[source.fluvio]` and `[source.sweep]`: where events and flags are read.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use tombstream_connectors::kafka;
use toml::de::DeValue;

use super::document::{Place, Section};
use super::fluvio::FluvioSection;
use super::secret::SecretRef;
use super::value::{Leaf, Wrong, describe};

/// The sources.
#[derive(Clone, Debug, Default)]
pub(crate) struct SourceConfig {
    /// None: the sweep alone finds the flags.
    pub(crate) kafka: Option<KafkaSection>,
    pub(crate) fluvio: Option<FluvioSection>,
    pub(crate) sweep: SweepSection,
}

/// The consumer. Everything but the group is librdkafka's.
#[derive(Clone, Debug)]
pub(crate) struct KafkaSection {
    pub(crate) place: Place,
    /// The consumer group; processes of one group share the partitions.
    pub(crate) group: String,
    /// Most events that one poll brings. 1,000: two claims.
    pub(crate) items_max: NonZeroUsize,
    /// Bytes that were read and that the pipeline has not asked for yet. 8 MiB: several times a
    /// poll of events of 1 KiB; librdkafka's own queue comes on top.
    pub(crate) buffer_bytes_max: NonZeroUsize,
    /// librdkafka's own settings.
    pub(crate) settings: Vec<(String, Setting)>,
}

/// A setting's value: as it is, or a secret.
#[derive(Clone, Debug)]
pub(crate) enum Setting {
    Plain(String),
    Secret(SecretRef),
}

/// The scan of the flag itself.
#[derive(Clone, Debug)]
pub(crate) struct SweepSection {
    /// How often it begins anew. 10 s: it bounds how late a lost event is made good.
    pub(crate) interval: Duration,
    /// Most keys of one page. 1,000: two batches of claims.
    pub(crate) page_max: NonZeroU32,
    /// How long a flag may stand before the sweep takes it. 30 s: events come first, so that both
    /// do not claim the same rows; without Kafka 0 would do.
    pub(crate) after: Duration,
}

impl SourceConfig {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let written = section.has("kafka");
        let kafka = section.table("kafka", KafkaSection::read).flatten();
        let written_fluvio = section.has("fluvio");
        let fluvio = section.table("fluvio", FluvioSection::read).flatten();
        let sweep = section.table("sweep", SweepSection::read);
        if (written && kafka.is_none()) || (written_fluvio && fluvio.is_none()) {
            return None;
        }
        Some(Self { kafka, fluvio, sweep: sweep.unwrap_or_default() })
    }
}

impl Default for SweepSection {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            page_max: NonZeroU32::new(1_000).expect("not zero"),
            after: Duration::from_secs(30),
        }
    }
}

impl SweepSection {
    fn read(section: &mut Section<'_, '_>) -> Self {
        let default = Self::default();
        let place = section.place("interval");
        let interval = section.or("interval", default.interval);
        if interval < Duration::from_millis(100) {
            section.problem(
                place,
                format!("{} would scan without a pause", humantime::format_duration(interval)),
                "write \"100ms\" or more; 10s is the default",
            );
        }
        Self {
            interval,
            page_max: section.or("page_max", default.page_max),
            after: section.or("after", default.after),
        }
    }
}

impl KafkaSection {
    fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let group = section.or("group", "tombstream".to_owned());
        let count = |number| NonZeroUsize::new(number).expect("not zero");
        let items_max = section.or("items_max", count(1_000));
        let buffer_bytes_max = section.or("buffer_bytes_max", count(8 << 20));
        let place = section.place("settings");
        let settings = section.table("settings", read_settings).unwrap_or_default();
        let kafka = Self {
            place: section.here(),
            group,
            items_max,
            buffer_bytes_max,
            settings: settings
                .iter()
                .map(|(name, _, value)| (name.clone(), value.clone()))
                .collect(),
        };
        kafka.judge(section, &place, settings);
        Some(kafka)
    }

    /// Says what the connector and librdkafka itself would refuse, one setting after the other.
    /// Secrets are not read for it.
    fn judge(
        &self,
        section: &Section<'_, '_>,
        place: &Place,
        mut settings: Vec<(String, Place, Setting)>,
    ) {
        settings.retain(|(name, _, _)| name != "ssl.key.pem");
        loop {
            let mut config = kafka::KafkaConfig::new(self.group.as_str(), "");
            config.settings = settings
                .iter()
                .map(|(name, _, value)| {
                    let text = match value {
                        Setting::Plain(text) => text.clone(),
                        Setting::Secret(_) => "unread".to_owned(),
                    };
                    (name.clone(), kafka::Setting::Text(text))
                })
                .collect();
            let Err(error) = config.validate() else { return };
            let concerned = |message: &str| {
                settings.iter().position(|(name, _, _)| message.contains(&format!("\"{name}\"")))
            };
            let (index, what, fix) = match &error {
                kafka::KafkaConfigError::Owned { name, reason } => (
                    settings.iter().position(|(other, _, _)| other == name),
                    "is set by Tombstream itself".to_owned(),
                    format!("leave it out: {reason}"),
                ),
                kafka::KafkaConfigError::Brokers => (
                    None,
                    "the brokers are not named".to_owned(),
                    "write \"bootstrap.servers\" = \"host:9092\" in [source.kafka.settings]".into(),
                ),
                kafka::KafkaConfigError::Refused(said) => (
                    concerned(said),
                    match said.contains("No such configuration property") {
                        true => "librdkafka has no such setting".to_owned(),
                        false => format!("librdkafka refuses it: {said}"),
                    },
                    "correct it; librdkafka's CONFIGURATION.md lists names and values".into(),
                ),
                kafka::KafkaConfigError::Group
                | kafka::KafkaConfigError::Topics
                | kafka::KafkaConfigError::Env { .. }
                | kafka::KafkaConfigError::File { .. } => {
                    (None, error.to_string(), "mend [source.kafka]".into())
                }
            };
            let Some(index) = index else {
                section.problem(place.clone(), what, fix);
                return;
            };
            let (_, place, _) = settings.remove(index);
            section.problem(place, what, fix);
        }
    }
}

fn read_settings(section: &mut Section<'_, '_>) -> Vec<(String, Place, Setting)> {
    let settings = section.rest::<Setting>();
    for (name, place, setting) in &settings {
        match setting {
            Setting::Plain(_) if holds_secret(name) => section.problem(
                place.clone(),
                "a secret must not be written here",
                "write { env = \"NAME\" } or { file = \"/path\" }",
            ),
            Setting::Plain(_) => {}
            Setting::Secret(secret) => section.note_secret(place.clone(), secret.clone()),
        }
    }
    settings
}

fn holds_secret(name: &str) -> bool {
    name.ends_with(".password") || name.ends_with(".secret") || name == "ssl.key.pem"
}

impl Leaf for Setting {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        match value {
            DeValue::String(text) => Ok(Self::Plain(text.as_ref().to_owned())),
            DeValue::Boolean(yes) => Ok(Self::Plain(yes.to_string())),
            DeValue::Integer(number) => Ok(Self::Plain(number.to_string())),
            DeValue::Float(number) => Ok(Self::Plain(number.to_string())),
            DeValue::Table(_) => SecretRef::read(value).map(Self::Secret),
            DeValue::Array(_) | DeValue::Datetime(_) => Err(Wrong::new(
                format!("must be a text, a number or a secret, found {}", describe(value)),
                "write the value as librdkafka's CONFIGURATION.md has it, in double quotes",
            )),
        }
    }
}
