//! `[rehydrate]`: a topic that is told which copies to make again, where a deletion was restored after its
//! recoverable copies were hidden.

use tombstream_connectors::kafka;

use super::document::Section;
use super::source::{Setting, judge_settings, read_settings};

/// Where notices are published. Without it they are in the ledger, and the api lists them.
#[derive(Clone, Debug)]
pub(crate) struct RehydrateSection {
    pub(crate) topic: String,
    /// librdkafka's settings of the producer.
    pub(crate) settings: Vec<(String, Setting)>,
}

impl RehydrateSection {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let topic = section.need("topic", "write topic = \"tombstream.rehydrate\"");
        let place = section.place("settings");
        let settings = section.table("settings", read_settings).unwrap_or_default();
        judge_settings(section, &place, settings.clone(), "rehydrate", |settings| {
            let mut config = kafka::KafkaPublisherConfig::new("");
            config.settings = settings;
            config.validate()
        });
        let settings = settings.into_iter().map(|(name, _, value)| (name, value)).collect();
        Some(Self { topic: topic?, settings })
    }
}
