//! What an error says of a message that was not published. No I/O.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tombstream_model::{Message, PublishError};

use super::super::context::KafkaFault;

/// Decides what can be done about a message that was not taken.
///
/// Denied credentials and missing topics are "unavailable", not fatal: what a person mends at the
/// broker works without a restart, and until then the log of the database keeps the changes.
pub(super) fn judge(error: KafkaError, message: &Message, heard: Option<String>) -> PublishError {
    let topic = &message.topic;
    let unavailable = |reason: String| {
        PublishError::Unavailable(Box::new(KafkaFault { reason, source: error.clone() }))
    };
    if matches!(error, KafkaError::Nul(_)) {
        return PublishError::Fatal(format!("no topic can be named {topic:?}"));
    }
    match error.rdkafka_error_code() {
        Some(
            RDKafkaErrorCode::MessageSizeTooLarge
            | RDKafkaErrorCode::MessageBatchTooLarge
            | RDKafkaErrorCode::InvalidMessageSize,
        ) => {
            let length = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, |it| it.len());
            let bytes = length(&message.key) + length(&message.value);
            PublishError::Fatal(format!(
                "a message of {bytes} bytes for topic {topic} is too large: raise \
                 `message.max.bytes` in the settings and `max.message.bytes` of the topic"
            ))
        }
        Some(RDKafkaErrorCode::InvalidRecord) => PublishError::Fatal(format!(
            "the broker refuses a message for topic {topic} as invalid: a compacted topic takes no \
             message without a key"
        )),
        Some(RDKafkaErrorCode::InvalidTopic) => {
            PublishError::Fatal(format!("no topic can be named {topic:?}"))
        }
        Some(
            RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownPartition,
        ) => unavailable(format!(
            "topic {topic} does not exist: create it, or set allow.auto.create.topics to true in \
             the settings"
        )),
        Some(
            RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed,
        ) => unavailable(format!(
            "the user may not write to topic {topic}: allow Write and Describe on it (and \
             IdempotentWrite on a cluster before 3.0)"
        )),
        Some(
            RDKafkaErrorCode::NotEnoughReplicas | RDKafkaErrorCode::NotEnoughReplicasAfterAppend,
        ) => unavailable(format!(
            "topic {topic} has fewer in-sync replicas than its min.insync.replicas asks for"
        )),
        Some(RDKafkaErrorCode::MessageTimedOut) => unavailable(match heard {
            Some(heard) => format!("no broker took a message for topic {topic} in time: {heard}"),
            None => format!("no broker took a message for topic {topic} in time"),
        }),
        _ => unavailable(match heard {
            Some(heard) => format!("a message for topic {topic} was not taken: {heard}"),
            None => format!("a message for topic {topic} was not taken"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use bytes::Bytes;
    use tombstream_model::Disposition;

    use super::*;

    fn judged(code: RDKafkaErrorCode) -> (Disposition, String) {
        let message = Message {
            topic: "app.documents".into(),
            key: None,
            value: Some(Bytes::from("secret")),
        };
        let error = judge(KafkaError::MessageProduction(code), &message, Some("heard".into()));
        let said = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        assert!(said.contains("app.documents") && !said.contains("secret"), "{said}");
        (error.disposition(), said)
    }

    #[test]
    fn what_the_broker_can_be_mended_for_is_tried_again_and_the_rest_halts() {
        use RDKafkaErrorCode as Code;
        for code in [
            Code::UnknownTopic,
            Code::UnknownTopicOrPartition,
            Code::TopicAuthorizationFailed,
            Code::ClusterAuthorizationFailed,
            Code::NotEnoughReplicas,
            Code::MessageTimedOut,
            Code::PurgeQueue,
            Code::QueueFull,
        ] {
            assert_eq!(judged(code).0, Disposition::Retry, "{code:?}");
        }
        for code in [Code::MessageSizeTooLarge, Code::InvalidRecord, Code::InvalidTopic] {
            assert_eq!(judged(code).0, Disposition::Halt, "{code:?}");
        }
    }

    #[test]
    fn what_is_said_names_what_to_do() {
        let said = |code| judged(code).1;
        assert!(said(RDKafkaErrorCode::MessageSizeTooLarge).contains("6 bytes"));
        assert!(said(RDKafkaErrorCode::UnknownTopic).contains("create it"));
        assert!(said(RDKafkaErrorCode::TopicAuthorizationFailed).contains("allow Write"));
        assert!(said(RDKafkaErrorCode::MessageTimedOut).contains("in time: heard"));
    }
}
