//! What the cluster's controller (SC) knows: which partitions there are, and which SPU leads each.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use fluvio::dataplane::{Decoder, Encoder};
use fluvio::metadata::AdminSpec;
use fluvio::metadata::objects::{ListRequest, Metadata};
use fluvio::metadata::partition::PartitionSpec;
use fluvio::metadata::spu::SpuSpec;
use fluvio::metadata::topic::{CompressionAlgorithm, ReplicaSpec, TopicReplicaParam, TopicSpec};
use fluvio::{Fluvio, FluvioAdmin, FluvioClusterConfig};

use super::config::FluvioTopic;
use super::fault::{Fault, within};
use super::spu::Address;

/// The topic whose only partition has the consumers' offsets.
const CONSUMER_OFFSETS: (&str, u32) = ("consumer-offset", 0);

/// A connection to the controller.
pub(super) struct Cluster {
    endpoint: String,
    local_addresses: bool,
    /// The platform's version, as it says.
    pub(super) version: String,
    /// Kept, since the admin is a part of it.
    _client: Fluvio,
    admin: FluvioAdmin,
}

/// Where everything is.
#[derive(Debug, Default)]
pub(super) struct Layout {
    /// The partitions of the topics that were asked for.
    pub(super) topics: BTreeMap<Arc<str>, Topic>,
    /// Who answers for consumers' offsets; none if there is no such topic.
    pub(super) offsets: Option<Address>,
}

/// A topic that exists.
#[derive(Debug)]
pub(super) struct Topic {
    /// The leader of each partition; none while it has none.
    pub(super) leaders: BTreeMap<u32, Option<Address>>,
    /// What its batches must be compressed with.
    pub(super) compression: CompressionAlgorithm,
}

impl Cluster {
    pub(super) async fn connect(config: &FluvioClusterConfig) -> Result<Self, Fault> {
        let endpoint = config.endpoint.clone();
        let what = || format!("the controller at {endpoint}");
        let connect = async {
            let client = Fluvio::connect_with_config(config).await;
            let client = client.map_err(|error| Fault::connection(what(), error))?;
            let admin = client.admin().await;
            let version = client.platform_version().to_string();
            let (endpoint, local_addresses) = (endpoint.clone(), config.use_spu_local_address);
            Ok(Self { endpoint, local_addresses, version, _client: client, admin })
        };
        within(what, connect).await
    }

    fn what(&self, question: &str) -> String {
        format!("{question} at the controller {}", self.endpoint)
    }

    /// Everything of a kind: what the cluster made for itself, or what it was told to make.
    async fn all<S>(&self, system: bool) -> Result<Vec<Metadata<S>>, Fault>
    where
        S: AdminSpec,
        S::Status: Encoder + Decoder + std::fmt::Debug,
    {
        let request = ListRequest::new(Vec::new(), false).system(system);
        let all = self.admin.list_with_config::<S, String>(request).await;
        all.map_err(|error| Fault::connection(self.what(S::LABEL), error))
    }

    /// Looks up where the partitions of `topics` are, and who keeps consumers' offsets.
    pub(super) async fn layout<'a>(
        &self,
        topics: impl IntoIterator<Item = &'a Arc<str>>,
    ) -> Result<Layout, Fault> {
        let look = async {
            let specs: HashMap<_, _> = self
                .all::<TopicSpec>(false)
                .await?
                .into_iter()
                .map(|it| (it.name, it.spec))
                .collect();
            let spus: HashMap<_, _> = self
                .all::<SpuSpec>(false)
                .await?
                .into_iter()
                .map(|it| {
                    let endpoint = address(&it.spec, self.local_addresses);
                    (it.spec.id, Address { endpoint, name: it.name })
                })
                .collect();
            // A partition is named after its topic: `app-documents-0`.
            let mut partitions = self.all::<PartitionSpec>(false).await?;
            partitions.extend(self.all::<PartitionSpec>(true).await?);
            let leaders: HashMap<String, Option<Address>> = partitions
                .into_iter()
                .map(|it| (it.name, spus.get(&it.spec.leader).cloned()))
                .collect();
            let leader = |topic: &str, partition: u32| {
                leaders.get(&format!("{topic}-{partition}")).cloned().flatten()
            };
            let mut layout = Layout {
                topics: BTreeMap::new(),
                offsets: leader(CONSUMER_OFFSETS.0, CONSUMER_OFFSETS.1),
            };
            for topic in topics {
                let Some(spec) = specs.get(&**topic) else { continue };
                let partitions = 0..spec.partitions();
                let topic_found = Topic {
                    leaders: partitions.map(|it| (it, leader(topic, it))).collect(),
                    compression: spec.get_compression_type().clone(),
                };
                layout.topics.insert(Arc::clone(topic), topic_found);
            }
            Ok(layout)
        };
        within(|| self.what("topics, partitions and spus"), look).await
    }

    /// Makes a topic.
    pub(super) async fn create(&self, name: &str, with: &FluvioTopic) -> Result<(), Fault> {
        let what = || self.what(&format!("making topic {name}"));
        let replicas = TopicReplicaParam::new(with.partitions.get(), with.replicas.get(), false);
        let spec = TopicSpec::from(ReplicaSpec::Computed(replicas));
        let create = async {
            let made = self.admin.create(name.to_owned(), false, spec).await;
            made.map_err(|error| Fault::connection(what(), error))
        };
        within(what, create).await
    }
}

/// Where an SPU listens for us.
fn address(spu: &SpuSpec, local: bool) -> String {
    match &spu.public_endpoint_local {
        Some(endpoint) if local => format!("{}:{}", endpoint.host, endpoint.port),
        Some(_) | None => spu.public_endpoint.addr(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_inside_is_taken_where_it_is_asked_for_and_there() {
        let mut spu = SpuSpec::new_public_addr(5001, 30_004, "203.0.113.7".into());
        assert_eq!(address(&spu, true), "203.0.113.7:30004");
        let inside = SpuSpec::new_private_addr(5001, 9_005, "fluvio-spu-main-0".into());
        spu.public_endpoint_local = Some(inside.private_endpoint);
        assert_eq!(address(&spu, true), "fluvio-spu-main-0:9005");
        assert_eq!(address(&spu, false), "203.0.113.7:30004");
    }
}
