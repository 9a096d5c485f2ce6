//! `[source.fluvio]`: topics of a Fluvio cluster. The client is in a build with the feature `fluvio` alone.

#[cfg(feature = "fluvio")]
use std::num::NonZeroU32;
use std::num::NonZeroUsize;

use super::document::{Place, Section};
use super::relation::RelationConfig;
#[cfg(not(feature = "fluvio"))]
use super::store::Anything;

/// The consumer of a Fluvio cluster.
#[derive(Clone, Debug)]
pub(crate) struct FluvioSection {
    pub(crate) place: Place,
    #[cfg(feature = "fluvio")]
    pub(crate) config: tombstream_connectors::fluvio::FluvioConfig,
}

/// What the section says, whether or not this build can do anything with it.
#[cfg_attr(not(feature = "fluvio"), allow(dead_code, reason = "read, so that its keys are known"))]
struct Written {
    place: Place,
    endpoint: Option<String>,
    /// The name of our offsets. The cluster keeps one for each consumer and partition.
    consumer: String,
    /// Most events that one poll brings. 1,000: two claims.
    items_max: NonZeroUsize,
    /// Bytes that were read and that the pipeline has not asked for yet. 8 MiB: several times a poll of
    /// events of 1 KiB; one answer for each partition comes on top.
    buffer_bytes_max: NonZeroUsize,
    local_addresses: bool,
    tls: Tls,
}

impl FluvioSection {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let count = |number| NonZeroUsize::new(number).expect("not zero");
        let fix = "write endpoint = \"host:9003\": the cluster's controller (SC)";
        let written = Written {
            place: section.here(),
            endpoint: section.need("endpoint", fix),
            consumer: section.or("consumer", "tombstream".to_owned()),
            items_max: section.or("items_max", count(1_000)),
            buffer_bytes_max: section.or("buffer_bytes_max", count(8 << 20)),
            local_addresses: section.or("local_addresses", false),
            tls: read_tls(section),
        };
        Self::made(section, written)
    }

    #[cfg(not(feature = "fluvio"))]
    fn made(section: &Section<'_, '_>, written: Written) -> Option<Self> {
        section.problem(
            written.place,
            "this build of tombstream reads no Fluvio",
            "build it with `cargo build --release --features fluvio`, or leave the section out",
        );
        None
    }

    #[cfg(feature = "fluvio")]
    fn made(section: &Section<'_, '_>, written: Written) -> Option<Self> {
        use tombstream_connectors::fluvio::{FluvioConfig, FluvioConfigError};

        let mut config = FluvioConfig::new(written.endpoint?, written.consumer);
        config.items_max = written.items_max;
        config.buffer_bytes_max = written.buffer_bytes_max;
        config.local_addresses = written.local_addresses;
        config.tls = tls(written.tls)?;
        let place = section.place("endpoint");
        let (place, what, fix) = match config.validate(&[]) {
            Ok(()) => return Some(Self { place: written.place, config }),
            Err(FluvioConfigError::Endpoint(endpoint)) => (
                place,
                format!("{endpoint:?} is no address"),
                "write the controller's (SC) host and port, as in \"host:9003\"".to_owned(),
            ),
            Err(FluvioConfigError::Consumer) => {
                (section.place("consumer"), "is empty".to_owned(), "name the consumer".to_owned())
            }
            Err(FluvioConfigError::Tls(error)) => (
                section.place("tls"),
                format!("can't be read: {error}"),
                "write the paths of three PEM files that this user may read".to_owned(),
            ),
            Err(
                error @ (FluvioConfigError::Topics
                | FluvioConfigError::Topic(_)
                | FluvioConfigError::Thread(_)),
            ) => (written.place, error.to_string(), "mend [source.fluvio]".to_owned()),
        };
        section.problem(place, what, fix);
        None
    }
}

/// The cluster that `[capture]` publishes to.
#[derive(Clone, Debug)]
pub(crate) struct FluvioTarget {
    #[cfg(feature = "fluvio")]
    pub(crate) config: tombstream_connectors::fluvio::FluvioPublisherConfig,
}

impl FluvioTarget {
    #[cfg(not(feature = "fluvio"))]
    pub(super) fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        section.rest::<Anything>();
        section.problem(
            section.here(),
            "this build of tombstream publishes to no Fluvio",
            "build it with `cargo build --release --features fluvio`, or leave the section out",
        );
        None
    }

    #[cfg(feature = "fluvio")]
    pub(super) fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        use tombstream_connectors::fluvio::{FluvioPublisherConfig, FluvioTopic};

        let fix = "write endpoint = \"host:9003\": the cluster's controller (SC)";
        let place = section.place("endpoint");
        let endpoint: Option<String> = section.need("endpoint", fix);
        let create = section.get("create_partitions").map(|partitions| FluvioTopic {
            partitions,
            replicas: section.or("create_replicas", NonZeroU32::new(1).expect("not zero")),
        });
        let local_addresses = section.or("local_addresses", false);
        let tls = tls(read_tls(section))?;
        let mut config = FluvioPublisherConfig::new(endpoint?);
        config.create = create;
        config.local_addresses = local_addresses;
        config.tls = tls;
        if let Err(error) = config.validate(&[]) {
            section.problem(place, error.to_string(), "mend [capture.fluvio]");
            return None;
        }
        Some(Self { config })
    }
}

/// The four texts of a section `tls`.
type Tls = Option<[Option<String>; 4]>;

fn read_tls(section: &mut Section<'_, '_>) -> Tls {
    section.table("tls", |tls| {
        let domain = "write the name in the controller's certificate";
        let file = "write the path of a PEM file: the cluster's TLS knows clients by certificate";
        [
            tls.need("domain", domain),
            tls.need("ca_file", file),
            tls.need("cert_file", file),
            tls.need("key_file", file),
        ]
    })
}

/// As the connector takes them; none if some are missing, which was said.
#[cfg(feature = "fluvio")]
fn tls(written: Tls) -> Option<Option<tombstream_connectors::fluvio::FluvioTls>> {
    match written {
        None => Some(None),
        Some([Some(domain), Some(ca_file), Some(cert_file), Some(key_file)]) => {
            let (ca_file, cert_file) = (ca_file.into(), cert_file.into());
            let key_file = key_file.into();
            Some(Some(tombstream_connectors::fluvio::FluvioTls {
                domain,
                ca_file,
                cert_file,
                key_file,
            }))
        }
        Some(_) => None,
    }
}

/// Topics that are read from Fluvio have names that Fluvio's topics can have.
#[cfg_attr(not(feature = "fluvio"), allow(unused_variables, reason = "there is no section then"))]
pub(super) fn names(
    section: &Section<'_, '_>,
    fluvio: Option<&FluvioSection>,
    relations: &[RelationConfig],
) {
    #[cfg(feature = "fluvio")]
    if let Some(fluvio) = fluvio {
        for (place, topic) in relations.iter().flat_map(|relation| &relation.topics) {
            if fluvio.config.validate(std::slice::from_ref(topic)).is_err() {
                section.problem(
                    place.clone(),
                    format!("no topic of Fluvio can be named {topic:?}"),
                    "write lower-case letters, digits and inner dashes, 63 at most, as in \
                     \"app-public-documents\"",
                );
            }
        }
    }
}
