//! Where reading starts, which marks may still be committed, and how far. No I/O.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tombstream_model::Mark;

/// Where the reading of a newly assigned partition starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the offset that the group committed.
    Committed(i64),
    /// At the beginning, since the group committed nothing.
    Beginning,
    /// At the beginning, since what the group committed is not in the log: events may be lost.
    OutOfRange {
        /// What the group committed.
        committed: i64,
        /// The first offset in the log.
        low: i64,
        /// The offset after the last one in the log.
        high: i64,
    },
}

impl Start {
    /// Decides by what the group committed and by what the partition's log holds.
    ///
    /// Invariant (S7): an offset that the log does not hold is never passed over in silence;
    /// `a_committed_offset_beyond_the_log_is_out_of_range`.
    pub fn decide(committed: Option<i64>, low: i64, high: i64) -> Self {
        match committed {
            None => Self::Beginning,
            // At `high` everything was read.
            Some(committed) if (low..=high).contains(&committed) => Self::Committed(committed),
            Some(committed) => Self::OutOfRange { committed, low, high },
        }
    }
}

/// Events that may be lost: what was committed is not in the log any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// What was committed, or what would have been read next.
    pub committed: i64,
    /// The first offset in the log.
    pub low: i64,
    /// The offset after the last one in the log.
    pub high: i64,
}

/// One offset to be committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Commit {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    pub(crate) assignment: u64,
    pub(crate) next: i64,
}

/// How a commit that was sent ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CommitAnswer {
    /// The group has it.
    Done,
    /// Not now: it is sent again.
    Again(String),
    /// Not with these credentials: it is sent again, and said.
    Denied(String),
}

/// The partitions that this process reads.
#[derive(Debug, Default)]
pub(crate) struct Assignments {
    topics: HashMap<Arc<str>, BTreeMap<i32, Assigned>>,
    /// The number of the newest assignment.
    newest: u64,
    in_flight: Option<Vec<Commit>>,
    /// How many commits were taken to be sent, and how many of them were answered.
    sent: u64,
    answered: u64,
    failed: Option<CommitAnswer>,
}

#[derive(Debug)]
struct Assigned {
    number: u64,
    /// What the group has.
    committed: Option<i64>,
    /// What the group shall have.
    wanted: Option<i64>,
    /// What is read next.
    next: Option<i64>,
}

impl Assigned {
    fn owes(&self) -> Option<i64> {
        self.wanted.filter(|wanted| self.committed.is_none_or(|committed| *wanted > committed))
    }
}

impl Assignments {
    /// Takes a partition in. Whatever an earlier assignment of it left is dead.
    pub(crate) fn assign(&mut self, topic: &str, partition: i32, start: Start) -> u64 {
        let at = match start {
            Start::Committed(offset) => Some(offset),
            // What the group has is not in the log, so a smaller offset may replace it.
            Start::Beginning | Start::OutOfRange { .. } => None,
        };
        self.newest += 1;
        let assigned = Assigned { number: self.newest, committed: at, wanted: None, next: at };
        let topic = match self.topics.get_key_value(topic) {
            Some((name, _)) => Arc::clone(name),
            None => Arc::from(topic),
        };
        self.topics.entry(topic).or_default().insert(partition, assigned);
        self.newest
    }

    /// Gives a partition up, and says what was handed in for it and is not with the group yet.
    pub(crate) fn revoke(&mut self, topic: &str, partition: i32) -> Option<Commit> {
        let (name, partitions) = self.topics.get_key_value(topic)?;
        let name = Arc::clone(name);
        let assigned = partitions.get(&partition)?;
        let (assignment, owes) = (assigned.number, assigned.owes());
        self.topics.get_mut(topic)?.remove(&partition);
        owes.map(|next| Commit { topic: name, partition, assignment, next })
    }

    /// Notes that an event was read, and says under which assignment.
    pub(crate) fn read(
        &mut self,
        topic: &str,
        partition: i32,
        offset: i64,
    ) -> Option<(Arc<str>, u64)> {
        let (name, number) = self.number(topic, partition)?;
        self.advance(topic, partition, number, offset + 1).then_some((name, number))
    }

    /// Whether an assignment of a partition still is the one that counts.
    pub(crate) fn is_alive(&self, topic: &str, partition: i32, assignment: u64) -> bool {
        self.get(topic, partition).is_some_and(|assigned| assigned.number == assignment)
    }

    /// The number of a partition's assignment, and the topic's name to keep.
    pub(crate) fn number(&self, topic: &str, partition: i32) -> Option<(Arc<str>, u64)> {
        let (name, partitions) = self.topics.get_key_value(topic)?;
        Some((Arc::clone(name), partitions.get(&partition)?.number))
    }

    /// Notes that everything before `next` was read under an assignment, if that is the one that counts.
    pub(crate) fn advance(&mut self, topic: &str, partition: i32, number: u64, next: i64) -> bool {
        let partitions = self.topics.get_mut(topic);
        let assigned = partitions.and_then(|partitions| partitions.get_mut(&partition));
        match assigned.filter(|assigned| assigned.number == number) {
            Some(assigned) => {
                assigned.next = Some(next);
                true
            }
            None => false,
        }
    }

    /// Every partition with what is read next of it.
    pub(crate) fn positions(&self) -> Vec<(Arc<str>, i32, Option<i64>)> {
        let mut positions = Vec::new();
        for (topic, partitions) in &self.topics {
            for (partition, assigned) in partitions {
                positions.push((Arc::clone(topic), *partition, assigned.next));
            }
        }
        positions
    }

    /// The partitions of a topic.
    pub(crate) fn partitions(&self, topic: &str) -> Vec<i32> {
        self.topics.get(topic).map(|all| all.keys().copied().collect()).unwrap_or_default()
    }

    /// How many events of a partition the group has not committed.
    pub(crate) fn lag(&self, topic: &str, partition: i32, low: i64, high: i64) -> Option<i64> {
        let assigned = self.get(topic, partition)?;
        // A watermark below zero is one that librdkafka does not know yet.
        (high >= 0).then(|| (high - assigned.committed.unwrap_or(low).max(low).max(0)).max(0))
    }

    /// Notes what shall be committed.
    ///
    /// Invariant (S7): marks of a dead assignment are ignored, and an assignment's offsets only
    /// grow; `a_mark_dies_with_its_assignment`, `a_commit_never_goes_back`.
    pub(crate) fn want(&mut self, marks: &[Mark]) {
        for mark in marks {
            let partitions = self.topics.get_mut(&*mark.topic);
            let assigned = partitions.and_then(|all| all.get_mut(&mark.partition));
            if let Some(assigned) = assigned
                && assigned.number == mark.assignment
                && assigned.wanted.is_none_or(|wanted| mark.next > wanted)
            {
                assigned.wanted = Some(mark.next);
            }
        }
    }

    /// Whether the group has all of `marks` that are not dead.
    pub(crate) fn has(&self, marks: &[Mark]) -> bool {
        marks.iter().all(|mark| {
            self.get(&mark.topic, mark.partition).is_none_or(|assigned| {
                assigned.number != mark.assignment
                    || assigned.committed.is_some_and(|committed| committed >= mark.next)
            })
        })
    }

    /// What is to be sent now. It counts as in flight until it is answered; none while another is.
    pub(crate) fn due(&mut self) -> Option<Vec<Commit>> {
        if self.in_flight.is_some() {
            return None;
        }
        let mut due = Vec::new();
        for (topic, partitions) in &self.topics {
            for (partition, assigned) in partitions {
                if let Some(next) = assigned.owes() {
                    due.push(Commit {
                        topic: Arc::clone(topic),
                        partition: *partition,
                        assignment: assigned.number,
                        next,
                    });
                }
            }
        }
        if due.is_empty() {
            return None;
        }
        self.sent += 1;
        self.in_flight = Some(due.clone());
        Some(due)
    }

    /// What is to be sent of one partition now, where partitions are committed one by one.
    pub(crate) fn due_of(&self, topic: &str, partition: i32) -> Option<Commit> {
        let (topic, partitions) = self.topics.get_key_value(topic)?;
        let assigned = partitions.get(&partition)?;
        let topic = Arc::clone(topic);
        let assignment = assigned.number;
        assigned.owes().map(|next| Commit { topic, partition, assignment, next })
    }

    /// Notes that the group has what was sent of one partition.
    pub(crate) fn committed(&mut self, commit: &Commit) {
        let partitions = self.topics.get_mut(&commit.topic);
        let assigned = partitions.and_then(|all| all.get_mut(&commit.partition));
        if let Some(assigned) = assigned
            && assigned.number == commit.assignment
        {
            assigned.committed = assigned.committed.max(Some(commit.next));
        }
    }

    /// A partition's assignment, and what is read next of it, if that is known.
    pub(crate) fn position(&self, topic: &str, partition: i32) -> Option<(u64, Option<i64>)> {
        self.get(topic, partition).map(|assigned| (assigned.number, assigned.next))
    }

    /// Whether anything is to be sent.
    pub(crate) fn owes(&self) -> bool {
        self.topics.values().flat_map(BTreeMap::values).any(|assigned| assigned.owes().is_some())
    }

    /// The number of the newest commit that was sent.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Takes the answer to what is in flight.
    pub(crate) fn answered(&mut self, answer: CommitAnswer) {
        let sent = self.in_flight.take().unwrap_or_default();
        self.answered = self.sent;
        if answer != CommitAnswer::Done {
            self.failed = Some(answer);
            return;
        }
        self.failed = None;
        for commit in sent {
            self.committed(&commit);
        }
    }

    /// How a commit sent after the one numbered `sent` ended, once one was answered.
    pub(crate) fn answer_after(&self, sent: u64) -> Option<CommitAnswer> {
        (self.answered > sent).then(|| self.failed.clone().unwrap_or(CommitAnswer::Done))
    }

    fn get(&self, topic: &str, partition: i32) -> Option<&Assigned> {
        self.topics.get(topic)?.get(&partition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(partition: i32, assignment: u64, next: i64) -> Mark {
        Mark { topic: "t".into(), partition, assignment, next }
    }

    fn sent(assignments: &mut Assignments) -> Vec<(i32, i64)> {
        let due = assignments.due().unwrap_or_default();
        due.iter().map(|commit| (commit.partition, commit.next)).collect()
    }

    #[test]
    fn a_group_without_offsets_starts_at_the_beginning() {
        assert_eq!(Start::decide(None, 5, 9), Start::Beginning);
    }

    #[test]
    fn a_committed_offset_in_the_log_is_where_reading_goes_on() {
        assert_eq!(Start::decide(Some(5), 5, 9), Start::Committed(5));
        assert_eq!(Start::decide(Some(9), 5, 9), Start::Committed(9));
        assert_eq!(Start::decide(Some(0), 0, 0), Start::Committed(0));
    }

    #[test]
    fn a_committed_offset_beyond_the_log_is_out_of_range() {
        let below = Start::OutOfRange { committed: 4, low: 5, high: 9 };
        assert_eq!(Start::decide(Some(4), 5, 9), below);
        let above = Start::OutOfRange { committed: 10, low: 5, high: 9 };
        assert_eq!(Start::decide(Some(10), 5, 9), above);
    }

    #[test]
    fn each_assignment_has_a_greater_number() {
        let mut assignments = Assignments::default();
        let first = assignments.assign("t", 0, Start::Beginning);
        assignments.revoke("t", 0);
        let second = assignments.assign("t", 0, Start::Beginning);
        assert!(second > first);
        assert!(assignments.is_alive("t", 0, second) && !assignments.is_alive("t", 0, first));
    }

    #[test]
    fn a_mark_dies_with_its_assignment() {
        let mut assignments = Assignments::default();
        let first = assignments.assign("t", 0, Start::Beginning);
        assignments.revoke("t", 0);
        assignments.want(&[mark(0, first, 7)]);
        assert_eq!(sent(&mut assignments), []);
        let second = assignments.assign("t", 0, Start::Beginning);
        assignments.want(&[mark(0, first, 7)]);
        assert_eq!(sent(&mut assignments), []);
        assert!(assignments.has(&[mark(0, first, 7)]));
        assignments.want(&[mark(0, second, 3)]);
        assert_eq!(sent(&mut assignments), [(0, 3)]);
    }

    #[test]
    fn a_commit_never_goes_back() {
        let mut assignments = Assignments::default();
        let number = assignments.assign("t", 0, Start::Committed(5));
        assignments.want(&[mark(0, number, 4)]);
        assert_eq!(sent(&mut assignments), []);
        assignments.want(&[mark(0, number, 9)]);
        assignments.want(&[mark(0, number, 8)]);
        assert_eq!(sent(&mut assignments), [(0, 9)]);
        assignments.answered(CommitAnswer::Done);
        assignments.want(&[mark(0, number, 9), mark(0, number, 6)]);
        assert_eq!(sent(&mut assignments), []);
    }

    #[test]
    fn after_an_offset_out_of_range_smaller_ones_are_committed() {
        let mut assignments = Assignments::default();
        let start = Start::OutOfRange { committed: 100, low: 0, high: 9 };
        let number = assignments.assign("t", 0, start);
        assignments.want(&[mark(0, number, 3)]);
        assert_eq!(sent(&mut assignments), [(0, 3)]);
    }

    #[test]
    fn what_comes_in_while_a_commit_is_in_flight_is_sent_after_it() {
        let mut assignments = Assignments::default();
        let number = assignments.assign("t", 0, Start::Beginning);
        assignments.want(&[mark(0, number, 1)]);
        assert_eq!(sent(&mut assignments), [(0, 1)]);
        assignments.want(&[mark(0, number, 5)]);
        assert_eq!(sent(&mut assignments), []);
        assignments.answered(CommitAnswer::Done);
        assert!(!assignments.has(&[mark(0, number, 5)]));
        assert_eq!(sent(&mut assignments), [(0, 5)]);
        assignments.answered(CommitAnswer::Done);
        assert!(assignments.has(&[mark(0, number, 5)]));
    }

    #[test]
    fn a_failed_commit_is_sent_again() {
        let mut assignments = Assignments::default();
        let number = assignments.assign("t", 0, Start::Beginning);
        assignments.want(&[mark(0, number, 1)]);
        assert_eq!(sent(&mut assignments), [(0, 1)]);
        assignments.answered(CommitAnswer::Again("rebalance in progress".into()));
        assert!(matches!(assignments.answer_after(0), Some(CommitAnswer::Again(_))));
        assert!(assignments.owes() && !assignments.has(&[mark(0, number, 1)]));
        assert_eq!(sent(&mut assignments), [(0, 1)]);
        assignments.answered(CommitAnswer::Done);
        assert_eq!(assignments.answer_after(1), Some(CommitAnswer::Done));
        assert_eq!(assignments.answer_after(assignments.sent()), None);
        assert!(!assignments.owes() && assignments.has(&[mark(0, number, 1)]));
    }

    #[test]
    fn a_revoked_partition_says_what_it_still_owes() {
        let mut assignments = Assignments::default();
        let number = assignments.assign("t", 0, Start::Committed(1));
        assignments.want(&[mark(0, number, 4)]);
        // In flight counts as owed: nobody knows yet whether the group has it.
        assert_eq!(sent(&mut assignments), [(0, 4)]);
        assert_eq!(assignments.revoke("t", 0).map(|commit| commit.next), Some(4));
        assert_eq!(assignments.revoke("t", 0), None);
        let again = assignments.assign("t", 0, Start::Committed(1));
        // The late answer belongs to the dead assignment.
        assignments.answered(CommitAnswer::Done);
        assert!(!assignments.has(&[mark(0, again, 4)]));
    }

    #[test]
    fn partitions_are_committed_one_by_one_where_that_is_how_it_goes() {
        let mut assignments = Assignments::default();
        let numbers = [0, 1].map(|partition| assignments.assign("t", partition, Start::Beginning));
        assert_eq!(assignments.position("t", 0), Some((numbers[0], None)));
        assert_eq!(assignments.position("t", 2), None);
        assignments.read("t", 0, 6);
        assert_eq!(assignments.position("t", 0), Some((numbers[0], Some(7))));
        assignments.want(&[mark(0, numbers[0], 7), mark(1, numbers[1], 9)]);
        let due = assignments.due_of("t", 0).unwrap();
        assert_eq!((due.partition, due.next), (0, 7));
        // Another partition's, one of before, and one of a dead assignment change nothing.
        assignments.committed(&Commit { next: 3, ..due.clone() });
        assignments.committed(&Commit { assignment: 77, ..due.clone() });
        assert_eq!(assignments.due_of("t", 0), Some(due.clone()));
        assignments.committed(&due);
        assert_eq!(assignments.due_of("t", 0), None);
        assert!(assignments.has(&[mark(0, numbers[0], 7)]));
        assert!(!assignments.has(&[mark(1, numbers[1], 9)]));
    }

    #[test]
    fn lag_is_measured_from_what_the_group_has() {
        let mut assignments = Assignments::default();
        let number = assignments.assign("t", 0, Start::Committed(4));
        assignments.read("t", 0, 8);
        assert_eq!(assignments.lag("t", 0, 0, 10), Some(6));
        assignments.want(&[mark(0, number, 9)]);
        assert_eq!(sent(&mut assignments), [(0, 9)]);
        assert_eq!(assignments.lag("t", 0, 0, 10), Some(6));
        assignments.answered(CommitAnswer::Done);
        assert_eq!(assignments.lag("t", 0, 0, 10), Some(1));
        assert_eq!(assignments.lag("t", 0, -1001, -1001), None);
        assert_eq!(assignments.lag("t", 1, 0, 10), None);
        assignments.assign("t", 1, Start::Beginning);
        assert_eq!(assignments.lag("t", 1, 3, 10), Some(7));
    }

    #[test]
    fn what_an_assignment_that_is_over_read_is_dropped() {
        let mut assignments = Assignments::default();
        let first = assignments.assign("t", 0, Start::Committed(100));
        assert_eq!(assignments.number("t", 0), Some((Arc::from("t"), first)));
        assert!(assignments.advance("t", 0, first, 105));
        // Given up and taken in again: the group is at 100 still, and that is read again.
        assignments.revoke("t", 0);
        assert!(!assignments.advance("t", 0, first, 106));
        let second = assignments.assign("t", 0, Start::Committed(100));
        assert!(!assignments.advance("t", 0, first, 106));
        assert_eq!(assignments.positions(), [(Arc::from("t"), 0, Some(100))]);
        assert!(assignments.advance("t", 0, second, 101));
        assert_eq!(assignments.positions(), [(Arc::from("t"), 0, Some(101))]);
        assert_eq!((assignments.number("t", 1), assignments.number("u", 0)), (None, None));
    }
}
