//! A connection to one SPU, the server that holds partitions.
//!
//! Fluvio's own consumer can commit what it has handed out and nothing else: "the last record that was
//! yielded". Ours commits what the pipeline's frontier has passed, which is behind that. So the
//! requests are sent here, over Fluvio's own socket and schema.
//!
//! Each partition has a connection of its own: a request that is given up half-way leaves the
//! connection useless, and then only its own partition reads anew.

use std::collections::HashMap;

use fluvio::config::TlsPolicy;
use fluvio::dataplane::record::{RawRecords, RecordSet, ReplicaKey};
use fluvio::{FluvioClusterConfig, Isolation};
use fluvio_socket::{
    AsyncResponse, ClientConfig, MultiplexerSocket, SerialFrame, VersionedSerialSocket,
};
use fluvio_spu_schema::produce::{DefaultProduceRequest, ProduceResponse};
use fluvio_spu_schema::server::consumer_offset::{
    FetchConsumerOffsetsRequest, UpdateConsumerOffsetRequest,
};
use fluvio_spu_schema::server::fetch_offset::FetchOffsetsRequest;
use fluvio_spu_schema::server::stream_fetch::{DefaultStreamFetchRequest, OFFSET_MANAGEMENT_API};
use fluvio_spu_schema::server::update_offset::{OffsetUpdate, UpdateOffsetsRequest};

use super::fault::{Fault, within};

/// Where an SPU listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// `host:port`.
    pub(super) endpoint: String,
    /// Its name in the cluster, which its certificate has before the domain.
    pub(super) name: String,
}

/// Answers of a partition's stream.
pub(super) type Answers = AsyncResponse<DefaultStreamFetchRequest>;

/// A connection.
pub(super) struct Spu {
    socket: VersionedSerialSocket,
}

impl Spu {
    pub(super) async fn connect(
        cluster: &FluvioClusterConfig,
        address: &Address,
    ) -> Result<Self, Fault> {
        let what = || format!("spu {} at {}", address.name, address.endpoint);
        let connect = async {
            let mut own = cluster.clone();
            own.endpoint.clone_from(&address.endpoint);
            let config = ClientConfig::try_from(own);
            let mut config = config.map_err(|error| Fault::connection(what(), error))?;
            if cluster.tls != TlsPolicy::Disabled {
                config = config.with_prefix_sni_domain(&address.name);
            }
            config.set_client_id("tombstream");
            let versioned = config.connect().await;
            let versioned = versioned.map_err(|error| Fault::connection(what(), error))?;
            let (socket, config, versions) = versioned.split();
            let socket = MultiplexerSocket::shared(socket);
            Ok(Self { socket: VersionedSerialSocket::new(socket, config, versions) })
        };
        within(what, connect).await
    }

    fn what(&self, question: &str) -> String {
        format!("{question} at {}", self.socket.config().addr())
    }

    /// Whether the connection is known to be over.
    pub(super) fn is_stale(&self) -> bool {
        self.socket.is_stale()
    }

    async fn ask<R>(&self, question: &str, request: R) -> Result<R::Response, Fault>
    where
        R: fluvio::dataplane::api::Request + Send + Sync,
    {
        let answer = async {
            let answer = self.socket.send_receive(request).await;
            answer.map_err(|error| Fault::connection(self.what(question), error))
        };
        within(|| self.what(question), answer).await
    }

    /// The first offset of a partition's log, and the one after the last that all replicas have.
    pub(super) async fn range(&self, topic: &str, partition: u32) -> Result<(i64, i64), Fault> {
        let question = format!("offsets of {topic}-{partition}");
        let request = FetchOffsetsRequest::new(topic.to_owned(), partition);
        let found = self.ask(&question, request).await?;
        let key = ReplicaKey::new(topic, partition);
        let Some(found) = found.find_partition(&key) else {
            return Err(Fault::broken(self.what(&question), "not in the answer"));
        };
        Fault::check(found.error_code, || self.what(&question))?;
        Ok((found.start_offset, found.last_stable_offset))
    }

    /// What is read next of each partition that `consumer` committed. Only the SPU that leads the
    /// topic of consumers' offsets answers this.
    pub(super) async fn committed(
        &self,
        consumer: &str,
    ) -> Result<HashMap<(String, u32), i64>, Fault> {
        let question = "consumer offsets";
        let request = FetchConsumerOffsetsRequest::with_opts(None, Some(consumer.to_owned()));
        let found = self.ask(question, request).await?;
        Fault::check(found.error_code, || self.what(question))?;
        let own = found.consumers.into_iter().filter(|found| found.consumer_id == consumer);
        // What is kept is the last offset that was processed.
        Ok(own.map(|found| (found.replica_id.split(), found.offset + 1)).collect())
    }

    /// Opens a partition's stream. It sends one answer after another, each once the one before it is
    /// acknowledged, and an empty log sends none.
    pub(super) async fn stream(
        &self,
        topic: &str,
        partition: u32,
        from: i64,
        bytes_max: i32,
        consumer: &str,
    ) -> Result<Answers, Fault> {
        let what = || self.what(&format!("stream of {topic}-{partition}"));
        let request = DefaultStreamFetchRequest::builder()
            .topic(topic)
            .partition(partition)
            .fetch_offset(from)
            // What some replicas lack could be gone after the leader died, and its offset another's.
            .isolation(Isolation::ReadCommitted)
            .max_bytes(bytes_max)
            .consumer_id(Some(consumer.to_owned()))
            .build();
        let request = request.map_err(|error| Fault::broken(what(), error.to_string()))?;
        let version = self.socket.lookup_version::<DefaultStreamFetchRequest>();
        let Some(version) = version.filter(|version| *version >= OFFSET_MANAGEMENT_API) else {
            let why = "this cluster keeps no offsets of consumers: Fluvio 0.11.6 or newer does";
            return Err(Fault::broken(what(), why));
        };
        let request = self.socket.new_request(request, Some(version));
        let open = async {
            let opened = self.socket.create_stream(request, 10).await;
            opened.map_err(|error| Fault::connection(what(), error))
        };
        within(what, open).await
    }

    /// Acknowledges what a stream brought, so that it brings more from `next` on.
    pub(super) async fn acknowledge(&self, session: u32, next: i64) -> Result<(), Fault> {
        let question = "an acknowledgement";
        let offsets = vec![OffsetUpdate { offset: next, session_id: session }];
        let answer = self.ask(question, UpdateOffsetsRequest { offsets }).await?;
        for status in answer.status {
            Fault::check(status.error, || self.what(question))?;
        }
        Ok(())
    }

    /// Commits everything of a stream's partition before `next`.
    pub(super) async fn commit(&self, session: u32, next: i64) -> Result<(), Fault> {
        let question = "a commit";
        let request = UpdateConsumerOffsetRequest::new(next - 1, session);
        let answer = self.ask(question, request).await?;
        Fault::check(answer.error_code, || self.what(question))
    }

    /// Hands records over, and waits until all in-sync replicas have them.
    pub(super) async fn produce(
        &self,
        question: &str,
        request: DefaultProduceRequest,
    ) -> Result<ProduceResponse, Fault> {
        self.ask(question, request).await
    }
}

/// The records of an answer.
pub(super) type Raw = RecordSet<RawRecords>;
