//! What brokers can do to a publisher, by librdkafka's own mock of them.

use std::time::Duration;

use bytes::Bytes;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message as _;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use tokio::time::timeout;
use tombstream_model::Disposition;

use super::super::config::Setting;
use super::*;

const BOUND: Duration = Duration::from_secs(60);

struct Brokers(MockCluster<'static, DefaultProducerContext>);

impl Brokers {
    fn new() -> Self {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 1, 1).unwrap();
        Self(cluster)
    }

    fn publisher(&self, settings: &[(&str, i64)]) -> KafkaPublisher {
        let mut config = KafkaPublisherConfig::new(self.0.bootstrap_servers());
        // The mock stores batches as they are; reading them back needs no codec this way.
        config.settings.insert("compression.type".into(), Setting::Text("none".into()));
        for (name, value) in settings {
            config.settings.insert((*name).into(), Setting::Integer(*value));
        }
        KafkaPublisher::new(config).unwrap()
    }

    /// The values in the topic, once there are `count`.
    fn values(&self, count: usize) -> Vec<String> {
        self.values_until(|values| values.len() == count)
    }

    /// The values in the topic, up to the first of which `whole` holds.
    fn values_until(&self, whole: impl Fn(&[String]) -> bool) -> Vec<String> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", self.0.bootstrap_servers())
            .set("group.id", "reader")
            .create()
            .unwrap();
        let mut all = TopicPartitionList::new();
        all.add_partition_offset("t", 0, Offset::Beginning).unwrap();
        consumer.assign(&all).unwrap();
        let mut values = Vec::new();
        while !whole(&values) {
            let message = consumer.poll(BOUND).expect("a message in time").unwrap();
            values.push(String::from_utf8(message.payload().unwrap().to_vec()).unwrap());
        }
        values
    }
}

fn batch(range: std::ops::Range<usize>) -> Vec<Message> {
    let value = |number: usize| Some(Bytes::from(number.to_string()));
    let key = Some(Bytes::from_static(b"k"));
    range.map(|it| Message { topic: "t".into(), key: key.clone(), value: value(it) }).collect()
}

async fn publish(publisher: &KafkaPublisher, batch: Vec<Message>) -> Result<(), PublishError> {
    timeout(BOUND, publisher.publish(batch)).await.expect("publishing ends in time")
}

fn said(error: &PublishError) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_error_that_ends_the_producer_the_same_batch_is_taken_by_a_new_one() {
    let brokers = Brokers::new();
    let publisher = brokers.publisher(&[]);
    let denied = RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
    brokers.0.request_errors(RDKafkaApiKey::InitProducerId, &[denied]);
    let error = publish(&publisher, batch(0..10)).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Retry);
    assert!(said(&error).contains("made anew"), "{}", said(&error));
    publish(&publisher, batch(0..10)).await.unwrap();
    let numbers: Vec<String> = (0..10).map(|it| it.to_string()).collect();
    assert_eq!(brokers.values(10), numbers);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_is_unavailable_and_its_batch_comes_in_order_afterwards() {
    let brokers = Brokers::new();
    let publisher = brokers.publisher(&[("message.timeout.ms", 1_000)]);
    // The first connection may take longer than that on a busy machine. What timed out may be there.
    while publish(&publisher, batch(0..5)).await.is_err() {}
    brokers.0.broker_down(-1).unwrap();
    let error = publish(&publisher, batch(5..10)).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Retry);
    assert!(said(&error).contains("in time"), "{}", said(&error));
    brokers.0.broker_up(-1).unwrap();
    while publish(&publisher, batch(5..10)).await.is_err() {}
    let numbers: Vec<String> = (0..10).map(|it| it.to_string()).collect();
    let values = brokers.values_until(|values| values.ends_with(&numbers[5..]));
    assert_eq!(values[..5], numbers[..5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_that_pass_are_not_told() {
    let brokers = Brokers::new();
    let publisher = brokers.publisher(&[]);
    use RDKafkaRespErr as Code;
    let passing = [
        Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        Code::RD_KAFKA_RESP_ERR__TRANSPORT,
        Code::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
    ];
    brokers.0.request_errors(RDKafkaApiKey::Produce, &passing);
    publish(&publisher, batch(0..20)).await.unwrap();
    let numbers: Vec<String> = (0..20).map(|it| it.to_string()).collect();
    assert_eq!(brokers.values(20), numbers);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_missing_is_named_and_works_once_it_is_given() {
    let brokers = Brokers::new();
    let publisher = brokers.publisher(&[("topic.metadata.refresh.interval.ms", 200)]);
    let denied = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    brokers.0.request_errors(RDKafkaApiKey::Produce, &[denied]);
    let error = publish(&publisher, batch(0..10)).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Retry);
    assert!(said(&error).contains("allow Write"), "{}", said(&error));
    // librdkafka refuses by itself until it has asked for the topic again.
    let taken = async { while publish(&publisher, batch(0..10)).await.is_err() {} };
    timeout(BOUND, taken).await.unwrap();
    assert_eq!(brokers.values(10).len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_large_halts_and_nothing_behind_it_is_sent() {
    let brokers = Brokers::new();
    let publisher = brokers.publisher(&[("message.max.bytes", 2_000)]);
    let mut all = batch(0..3);
    all[1].value = Some(Bytes::from(vec![b'x'; 3_000]));
    let error = publish(&publisher, all).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Halt);
    assert!(error.to_string().contains("3001 bytes for topic t"), "{error}");
    publish(&publisher, batch(3..4)).await.unwrap();
    assert_eq!(brokers.values(2), ["0", "3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_larger_than_the_queue_passes_through_it() {
    let brokers = Brokers::new();
    let publisher = brokers.publisher(&[("queue.buffering.max.messages", 10)]);
    let (one, other) =
        tokio::join!(publish(&publisher, batch(0..500)), publish(&publisher, batch(500..1_000)));
    one.unwrap();
    other.unwrap();
    let mut numbers: Vec<usize> =
        brokers.values(1_000).iter().map(|it| it.parse().unwrap()).collect();
    let (low, high): (Vec<usize>, Vec<usize>) = numbers.iter().partition(|it| **it < 500);
    assert!(low.is_sorted() && high.is_sorted());
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..1_000));
}

#[tokio::test]
async fn a_name_that_no_topic_can_have_halts() {
    let publisher = KafkaPublisher::new(KafkaPublisherConfig::new("127.0.0.1:1")).unwrap();
    let message = Message { topic: "a\0b".into(), key: None, value: None };
    let error = publish(&publisher, vec![message]).await.unwrap_err();
    assert_eq!(error.disposition(), Disposition::Halt);
}
