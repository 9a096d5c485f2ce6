//! `[source.…]`: where events and flags are read.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use tombstream_connectors::{Secret, kafka, postgres};
use toml::de::DeValue;

use super::document::{Place, Section};
use super::files::FilesSection;
use super::fluvio::FluvioSection;
use super::secret::SecretRef;
use super::value::{Leaf, Wrong, describe};

/// The sources.
#[derive(Clone, Debug, Default)]
pub(crate) struct SourceConfig {
    /// Neither of them: the sweep alone finds the flags.
    pub(crate) kafka: Option<KafkaSection>,
    pub(crate) postgres: Option<PostgresSection>,
    pub(crate) files: Option<FilesSection>,
    pub(crate) fluvio: Option<FluvioSection>,
    pub(crate) sweep: SweepSection,
}

/// A replication slot, read straight from the log.
#[derive(Clone, Debug)]
pub(crate) struct PostgresSection {
    pub(crate) place: Place,
    /// Whether it has a url of its own, since a pooler can't stream. None: that of the database.
    pub(crate) url: Option<SecretRef>,
    /// The slot; each pipeline has its own, and its processes share it: one reads, others wait.
    pub(crate) slot: String,
    pub(crate) publication: String,
    /// Most rows that one poll brings. 1,000: two claims.
    pub(crate) items_max: NonZeroUsize,
    /// Most bytes that one poll brings, but for its last row. 8 MiB: wide rows stay bounded too.
    pub(crate) bytes_max: NonZeroUsize,
    /// How often a message of our own goes through the log. 10 s: it is a hundred bytes, shows the
    /// lag, and lets the server drop its log where nothing else is written. 0s switches it off.
    pub(crate) heartbeat: Duration,
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
    /// Most keys a second that it looks at. 20,000: a tenth of a core of Postgres's, and more than is
    /// claimed in a second.
    pub(crate) rate_max: NonZeroU32,
}

impl SourceConfig {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let written = section.has("kafka");
        let kafka = section.table("kafka", KafkaSection::read).flatten();
        let postgres = section.table("postgres", PostgresSection::read);
        let has_files = section.has("files");
        let files = section.table("files", FilesSection::read).flatten();
        let has_fluvio = section.has("fluvio");
        let fluvio = section.table("fluvio", FluvioSection::read).flatten();
        let sweep = section.table("sweep", SweepSection::read);
        let broken = (written && kafka.is_none())
            || (has_files && files.is_none())
            || (has_fluvio && fluvio.is_none());
        if broken {
            return None;
        }
        Some(Self { kafka, postgres, files, fluvio, sweep: sweep.unwrap_or_default() })
    }
}

impl PostgresSection {
    fn read(section: &mut Section<'_, '_>) -> Self {
        let name = || "tombstream".to_owned();
        let (slot_place, publication_place) = (section.place("slot"), section.place("publication"));
        let count = |number| NonZeroUsize::new(number).expect("not zero");
        let read = Self {
            place: section.here(),
            url: section.secret("url"),
            slot: section.or("slot", name()),
            publication: section.or("publication", name()),
            items_max: section.or("items_max", count(1_000)),
            bytes_max: section.or("bytes_max", count(8 << 20)),
            heartbeat: section.or("heartbeat", Duration::from_secs(10)),
        };
        bare_names(section, &read.slot, slot_place, &read.publication, publication_place);
        read
    }
}

impl Default for SweepSection {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            page_max: NonZeroU32::new(1_000).expect("not zero"),
            after: Duration::from_secs(30),
            rate_max: NonZeroU32::new(20_000).expect("not zero"),
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
            rate_max: section.or("rate_max", default.rate_max),
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
        judge_settings(section, &place, settings, "source.kafka", |settings| {
            let mut config = kafka::KafkaConfig::new(kafka.group.as_str(), "");
            config.settings = settings;
            config.validate()
        });
        Some(kafka)
    }
}

/// Says what the connector and librdkafka itself would refuse, one setting after the other. Secrets are
/// not read for it. `whose` section it is, for what concerns no single setting.
pub(super) fn judge_settings(
    section: &Section<'_, '_>,
    place: &Place,
    mut settings: Vec<(String, Place, Setting)>,
    whose: &str,
    validate: impl Fn(BTreeMap<String, kafka::Setting>) -> Result<(), kafka::KafkaConfigError>,
) {
    settings.retain(|(name, _, _)| name != "ssl.key.pem");
    loop {
        let text = |value: &Setting| match value {
            Setting::Plain(text) => text.clone(),
            Setting::Secret(_) => "unread".to_owned(),
        };
        let shown = settings
            .iter()
            .map(|(name, _, value)| (name.clone(), kafka::Setting::Text(text(value))))
            .collect();
        let Err(error) = validate(shown) else { return };
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
                format!("write \"bootstrap.servers\" = \"host:9092\" in [{whose}.settings]"),
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
                (None, error.to_string(), format!("mend [{whose}]"))
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

/// Says whether the names of a slot and a publication can be used; the connector knows.
pub(super) fn bare_names(
    section: &Section<'_, '_>,
    slot: &str,
    slot_place: Place,
    publication: &str,
    publication_place: Place,
) {
    let nowhere = Secret::new("postgresql://localhost/");
    let config = postgres::ReplicationConfig::new(nowhere, slot, publication);
    if let Err(error) = config.validate() {
        let place = match &error {
            postgres::ReplicationConfigError::Name { what: "slot", .. } => slot_place,
            _ => publication_place,
        };
        let Wrong { what, fix } = Wrong::split(&error.to_string(), "");
        section.problem(place, what, fix);
    }
}

pub(super) fn read_settings(section: &mut Section<'_, '_>) -> Vec<(String, Place, Setting)> {
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
