//! Bytes to candidates; what can't be decoded becomes a dead letter.

use std::mem::take;
use std::sync::Arc;

use metrics::counter;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use tombstream_model::decode::{Decoded, Decoder, Skipped};
use tombstream_model::{Candidate, DeadLetter, Event, Generation, Ledger, Relation};

use crate::bridge::{Call, Epoch};
use crate::flow::LedgerParts;
use crate::health::Board;
use crate::metric;
use crate::plan::StageConfig;
use crate::retry::insist;
use crate::source::Chunk;
use crate::topic::Topics;

/// What decoding needs beside the bytes.
pub(crate) struct Decode {
    pub(crate) decoder: Decoder,
    pub(crate) generation: Generation,
    pub(crate) relations: Arc<[Relation]>,
    pub(crate) topics: Arc<Topics>,
    pub(crate) board: Arc<Board>,
}

impl Decode {
    /// What `chunk` means, in the order of its events.
    fn decode(
        &self,
        chunk: Chunk,
        candidates: &mut Vec<Candidate>,
        dead_letters: &mut Vec<DeadLetter>,
    ) {
        let mut topic: Option<Arc<str>> = None;
        let mut decodable = Vec::with_capacity(chunk.events.len());
        let mut skipped = SkippedCounts::default();
        for event in chunk.events {
            if topic.as_ref() != Some(&event.origin.topic) {
                self.note(chunk.source, topic.take(), &mut decodable);
                topic = Some(Arc::clone(&event.origin.topic));
            }
            match self.decoder.decode(&event, self.generation) {
                Ok(decoded) => {
                    decodable.push(true);
                    candidates.extend(self.candidate(decoded, &mut skipped));
                }
                Err(error) => {
                    decodable.push(false);
                    let Event { origin, key, value } = event;
                    counter!(metric::DEAD_LETTERS, "topic" => origin.topic.to_string())
                        .increment(1);
                    dead_letters.push(DeadLetter { origin, reason: error.to_string(), key, value });
                }
            }
        }
        self.note(chunk.source, topic, &mut decodable);
        skipped.count();
    }

    fn candidate(&self, decoded: Decoded, counts: &mut SkippedCounts) -> Option<Candidate> {
        match decoded {
            Decoded::Change(change) => change.into_candidate(),
            Decoded::Truncate { relation, position } => {
                let relation = self.relations.get(usize::from(relation.0))?;
                let lsn = position.map(|position| position.lsn.to_string());
                counter!(metric::TRUNCATES, "relation" => relation.name.to_string()).increment(1);
                tracing::error!(relation = &*relation.name, lsn, "relation truncated");
                self.board.truncated(&relation.name);
                None
            }
            Decoded::Skipped(skipped) => {
                counts.add(skipped);
                None
            }
        }
    }

    fn note(&self, source: usize, topic: Option<Arc<str>>, decodable: &mut Vec<bool>) {
        if let Some(topic) = topic {
            let count = decodable.len() as u64;
            counter!(metric::EVENTS, "topic" => topic.to_string()).increment(count);
            self.topics.note(source, &topic, decodable);
            decodable.clear();
        }
    }
}

/// Irrelevant messages of a chunk by kind: most of a real topic, so they are counted once a chunk.
#[derive(Debug, Default)]
struct SkippedCounts([(&'static str, u64); 5]);

impl SkippedCounts {
    fn add(&mut self, skipped: Skipped) {
        let (place, kind) = match skipped {
            Skipped::Tombstone => (0, "tombstone"),
            Skipped::Heartbeat => (1, "heartbeat"),
            Skipped::Transaction => (2, "transaction"),
            Skipped::Message => (3, "message"),
            Skipped::OtherTable => (4, "other_table"),
        };
        self.0[place] = (kind, self.0[place].1 + 1);
    }

    fn count(&self) {
        for (kind, count) in self.0.iter().filter(|(_, count)| *count > 0) {
            counter!(metric::SKIPPED, "kind" => *kind).increment(*count);
        }
    }
}

/// The operator: candidates, and dead letters.
pub(crate) fn decode<'scope>(
    input: StreamVec<'scope, Epoch, Chunk>,
    decode: Decode,
) -> (StreamVec<'scope, Epoch, Candidate>, StreamVec<'scope, Epoch, DeadLetter>) {
    let mut builder = OperatorBuilder::new("decode".to_owned(), input.scope());
    let mut input = builder.new_input(input, Pipeline);
    let (candidates_out, candidates) = builder.new_output::<Vec<Candidate>>();
    let (letters_out, letters) = builder.new_output::<Vec<DeadLetter>>();
    let mut candidates_out = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(candidates_out);
    let mut letters_out = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(letters_out);

    builder.build(move |_| {
        let (mut found, mut dead) = (Vec::new(), Vec::new());
        move |_| {
            let mut candidates_out = candidates_out.activate();
            let mut letters_out = letters_out.activate();
            input.for_each_stamp(|capability, batches| {
                for chunk in batches.flat_map(take) {
                    decode.decode(chunk, &mut found, &mut dead);
                }
                candidates_out.session(&capability).give_container(&mut found);
                letters_out.session(&capability).give_container(&mut dead);
                found.clear();
                dead.clear();
            });
        }
    });
    (candidates, letters)
}

/// Keeps dead letters in the ledger.
pub(crate) fn bury<L: Ledger>(parts: LedgerParts<L>, config: StageConfig) -> Call<DeadLetter, ()> {
    Arc::new(move |batch: Arc<[DeadLetter]>, _| {
        let LedgerParts { ledger, board, .. } = parts.clone();
        let config = config.clone();
        Box::pin(async move {
            insist("bury", &config, &board, || ledger.bury(&batch)).await;
            Vec::new()
        })
    })
}
