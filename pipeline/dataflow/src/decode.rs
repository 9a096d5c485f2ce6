//! Bytes to candidates; what can't be decoded becomes a dead letter.

use std::mem::take;
use std::sync::Arc;

use metrics::counter;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use tombstream_model::decode::{DecodeError, Decoded, Decoder, QuickDecoder, RowDecoder, Skipped};
use tombstream_model::wal::WalRow;
use tombstream_model::{
    Candidate, Cause, Change, DeadLetter, Event, Found as What, Key, Ledger, LetterForm,
    LetterLimits, Relation,
};

use crate::bridge::{Call, Epoch};
use crate::flow::LedgerParts;
use crate::health::Board;
use crate::metric;
use crate::plan::StageConfig;
use crate::retry::insist;
use crate::server::ServerClock;
use crate::source::{Chunk, Raw};
use crate::topic::Topics;

/// What decoding needs beside the bytes.
pub(crate) struct Decode {
    pub(crate) decoder: Decoder,
    pub(crate) server: ServerClock,
    pub(crate) relations: Arc<[Relation]>,
    pub(crate) topics: Arc<Topics>,
    pub(crate) board: Arc<Board>,
    pub(crate) letters: LetterLimits,
}

/// What one worker decodes with.
struct Decoders {
    events: QuickDecoder,
    rows: RowDecoder,
}

/// What a chunk gave.
#[derive(Default)]
struct Found {
    candidates: Vec<Candidate>,
    dead_letters: Vec<DeadLetter>,
    skipped: SkippedCounts,
}

/// Events of one topic that were decoded one after the other.
#[derive(Default)]
struct Run {
    topic: Option<Arc<str>>,
    decodable: Vec<bool>,
}

impl Decode {
    /// What `chunk` means, in the order of its events.
    fn decode(&self, chunk: Chunk, with: &mut Decoders, found: &mut Found) {
        let mut run = Run::default();
        match chunk.raw {
            Raw::Events(events) => {
                for event in events {
                    self.begin(chunk.source, event.topic(), &mut run);
                    let decoded = with.events.decode(&event, self.server.generation());
                    let failed = self.take(decoded, &mut run, found);
                    found.dead_letters.extend(failed.map(|error| self.letter(event, &error)));
                }
            }
            Raw::Rows(all) => {
                for row in all {
                    self.begin(chunk.source, &row.origin.topic, &mut run);
                    let failed = self.take(with.rows.decode(&row), &mut run, found);
                    found.dead_letters.extend(failed.map(|error| self.row_letter(row, &error)));
                }
            }
            Raw::Redriven(events) => {
                for event in events {
                    self.redrive(event, found);
                }
            }
        }
        self.note(chunk.source, &mut run);
        found.skipped.count();
    }

    /// Decodes a dead letter again. It counts neither for nor against its topic as that is now, and its
    /// position, which is as old as itself, overrides nothing: the claim looks at the row.
    fn redrive(&self, event: Event, found: &mut Found) {
        let decoded = self.decoder.decode(&event, self.server.generation());
        let result = if decoded.is_ok() { "decoded" } else { "undecodable" };
        counter!(metric::REDRIVEN, "topic" => event.topic().to_string(), "result" => result)
            .increment(1);
        match decoded {
            Ok(decoded) => {
                let candidate = self.candidate(decoded, &mut found.skipped);
                found
                    .candidates
                    .extend(candidate.map(|candidate| Candidate { position: None, ..candidate }));
            }
            Err(error) => found.dead_letters.push(DeadLetter::new(
                event,
                LetterForm::Message,
                error.to_string(),
                self.letters,
            )),
        }
    }

    fn letter(&self, event: Event, error: &DecodeError) -> DeadLetter {
        counter!(metric::DEAD_LETTERS, "topic" => event.topic().to_string()).increment(1);
        DeadLetter::new(event, LetterForm::Message, error.to_string(), self.letters)
    }

    /// A row of the log has its key inside the message.
    fn row_letter(&self, row: WalRow, error: &DecodeError) -> DeadLetter {
        counter!(metric::DEAD_LETTERS, "topic" => row.origin.topic.to_string()).increment(1);
        let event = Event { origin: row.origin, topic: None, key: None, value: Some(row.message) };
        DeadLetter::new(event, LetterForm::Row, error.to_string(), self.letters)
    }

    /// Ends the run of another topic.
    fn begin(&self, source: usize, topic: &Arc<str>, run: &mut Run) {
        if run.topic.as_ref() != Some(topic) {
            self.note(source, run);
            run.topic = Some(Arc::clone(topic));
        }
    }

    fn take(
        &self,
        decoded: Result<Decoded, DecodeError>,
        run: &mut Run,
        found: &mut Found,
    ) -> Option<DecodeError> {
        run.decodable.push(decoded.is_ok());
        match decoded {
            Ok(decoded) => {
                found.candidates.extend(self.candidate(decoded, &mut found.skipped));
                None
            }
            Err(error) => Some(error),
        }
    }

    /// A place in the log that the server has not written yet is another server's, or forged: it orders
    /// nothing (S4).
    fn believed(&self, change: Change) -> Change {
        let position =
            change.position.filter(|position| self.server.may_have_written(position.lsn));
        Change { position, ..change }
    }

    fn candidate(&self, decoded: Decoded, counts: &mut SkippedCounts) -> Option<Candidate> {
        match decoded {
            Decoded::Change(change) => self.believed(change).into_candidate(),
            Decoded::Truncate { relation: id, position } => {
                let relation = self.relations.get(usize::from(id.0))?;
                let lsn = position.map(|position| position.lsn.to_string());
                counter!(metric::TRUNCATES, "relation" => relation.name.to_string()).increment(1);
                tracing::error!(relation = &*relation.name, lsn, "relation truncated");
                self.board.truncated(&relation.name);
                Some(Candidate {
                    relation: id,
                    key: Key::from_postgres([]),
                    position,
                    cause: Cause::Event,
                    found: What::Truncated,
                    removed: None,
                })
            }
            Decoded::Skipped(skipped) => {
                counts.add(skipped);
                None
            }
        }
    }

    fn note(&self, source: usize, run: &mut Run) {
        if let Some(topic) = run.topic.take() {
            let count = run.decodable.len() as u64;
            counter!(metric::EVENTS, "topic" => topic.to_string()).increment(count);
            self.topics.note(source, &topic, &run.decodable);
            run.decodable.clear();
        }
    }
}

/// Irrelevant messages of a chunk by kind: most of a real topic, so they are counted once a chunk.
#[derive(Debug, Default)]
struct SkippedCounts([(&'static str, u64); 7]);

impl SkippedCounts {
    fn add(&mut self, skipped: Skipped) {
        let (place, kind) = match skipped {
            Skipped::Tombstone => (0, "tombstone"),
            Skipped::Heartbeat => (1, "heartbeat"),
            Skipped::Transaction => (2, "transaction"),
            Skipped::Message => (3, "message"),
            Skipped::OtherTable => (4, "other_table"),
            Skipped::Alive => (5, "alive"),
            Skipped::Keyless => (6, "keyless"),
        };
        self.0[place] = (kind, self.0[place].1 + 1);
    }

    fn count(&mut self) {
        for (kind, count) in std::mem::take(&mut self.0).iter().filter(|(_, count)| *count > 0) {
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
        let mut found = Found::default();
        let mut with = Decoders {
            events: QuickDecoder::new(decode.decoder.clone()),
            rows: RowDecoder::new(decode.decoder.clone()),
        };
        move |_| {
            let mut candidates_out = candidates_out.activate();
            let mut letters_out = letters_out.activate();
            input.for_each_stamp(|capability, batches| {
                for chunk in batches.flat_map(take) {
                    decode.decode(chunk, &mut with, &mut found);
                }
                candidates_out.session(&capability).give_container(&mut found.candidates);
                letters_out.session(&capability).give_container(&mut found.dead_letters);
                found.candidates.clear();
                found.dead_letters.clear();
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
