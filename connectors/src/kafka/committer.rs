//! The thread that commits: one commit after the other, each waited for.
//!
//! librdkafka tells the answer to an asynchronous commit to a callback that the Rust binding never
//! registers, so commits are synchronous, and have a thread to wait in.

use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use metrics::counter;
use rdkafka::consumer::base_consumer::BaseConsumer;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tracing::{debug, warn};

use super::context::{Context, Shared};
use crate::log::{Commit, CommitAnswer};

const COMMITS: &str = "tombstream_kafka_commits_total";

/// How long a commit that failed waits before it is sent again.
const AGAIN: Duration = Duration::from_millis(250);

/// Commits what is handed in until reading stops.
pub(super) fn run(consumer: &Weak<BaseConsumer<Context>>, shared: &Arc<Shared>) {
    while !shared.is_stopping() {
        let mut failed = false;
        if let Some(consumer) = consumer.upgrade() {
            failed = turn(&consumer, shared);
        }
        let state = shared.lock();
        if !shared.is_stopping() && (failed || !state.assignments.owes()) {
            drop(
                shared
                    .due
                    .wait_timeout(state, if failed { AGAIN } else { Duration::from_secs(1) })
                    .unwrap_or_else(PoisonError::into_inner),
            );
        }
    }
}

/// Commits what is due, if anything is, and says whether that failed.
fn turn(consumer: &BaseConsumer<Context>, shared: &Shared) -> bool {
    // Held until the answer is in: a partition is given up after it, never in the middle of it, so
    // that a late commit can't overwrite one of the next owner.
    let _committing = shared.committing();
    let Some(due) = shared.lock().assignments.due() else { return false };
    let answer = send(consumer, &due);
    let failed = answer != CommitAnswer::Done;
    shared.lock().assignments.answered(answer);
    shared.answered.notify_one();
    failed
}

/// Sends a commit and waits for the answer.
pub(super) fn send(consumer: &BaseConsumer<Context>, commits: &[Commit]) -> CommitAnswer {
    let mut list = TopicPartitionList::new();
    for commit in commits {
        list.add_partition_offset(&commit.topic, commit.partition, Offset::Offset(commit.next))
            .expect("an offset that was read is representable");
    }
    let answer = match consumer.commit(&list, CommitMode::Sync) {
        Ok(()) => CommitAnswer::Done,
        Err(error) => judge(&error),
    };
    match &answer {
        CommitAnswer::Done => counter!(COMMITS, "result" => "done").increment(1),
        CommitAnswer::Again(reason) => {
            counter!(COMMITS, "result" => "again").increment(1);
            debug!(reason, "commit did not succeed");
        }
        CommitAnswer::Denied(reason) => {
            counter!(COMMITS, "result" => "denied").increment(1);
            warn!(reason, "commit denied");
        }
    }
    answer
}

/// What can be done about a commit that failed.
///
/// A rebalance or a new generation is no fault: what the partition's next owner reads again is
/// harmless, and what is still ours is committed with the next try.
fn judge(error: &KafkaError) -> CommitAnswer {
    match error.rdkafka_error_code() {
        Some(
            RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
            | RDKafkaErrorCode::Authentication
            | RDKafkaErrorCode::SaslAuthenticationFailed,
        ) => CommitAnswer::Denied(error.to_string()),
        _ => CommitAnswer::Again(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rebalance_is_no_reason_to_stop_and_a_denial_is_said() {
        for code in [
            RDKafkaErrorCode::IllegalGeneration,
            RDKafkaErrorCode::RebalanceInProgress,
            RDKafkaErrorCode::UnknownMemberId,
            RDKafkaErrorCode::NotCoordinator,
            RDKafkaErrorCode::OperationTimedOut,
        ] {
            let answer = judge(&KafkaError::ConsumerCommit(code));
            assert!(matches!(answer, CommitAnswer::Again(_)), "{code:?}");
        }
        let denied = KafkaError::ConsumerCommit(RDKafkaErrorCode::GroupAuthorizationFailed);
        assert!(matches!(judge(&denied), CommitAnswer::Denied(_)));
    }
}
