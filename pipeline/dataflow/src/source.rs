//! The operator through which everything enters: it gives what the intake feeds to its worker.

use std::rc::Rc;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{Scope, StreamVec};
use tombstream_model::wal::WalRow;
use tombstream_model::{Candidate, DeletionId, Event, Records};

use crate::bridge::{Epoch, Fed, Feed, FeedReceiver};

/// What was read together and has to be decoded, and which source read it.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    pub(crate) source: usize,
    pub(crate) raw: Raw,
}

/// What has to be decoded.
#[derive(Clone, Debug)]
pub(crate) enum Raw {
    Events(Vec<Event>),
    Rows(Vec<WalRow>),
    Redriven(Vec<Event>),
}

/// What a worker reads.
pub(crate) struct Read<'scope> {
    /// To be decoded.
    pub(crate) events: StreamVec<'scope, Epoch, Chunk>,
    /// To be claimed.
    pub(crate) candidates: StreamVec<'scope, Epoch, Candidate>,
    /// To be taken over.
    pub(crate) open: StreamVec<'scope, Epoch, DeletionId>,
}

/// Records that are given before other operators get their turn.
const FUEL: usize = 4_096;

/// The operator. It is woken by the feed, and by itself only while it knows that there is more.
pub(crate) fn source<'scope>(scope: Scope<'scope, Epoch>, mut feed: FeedReceiver) -> Read<'scope> {
    let worker = scope.worker();
    let mut builder = OperatorBuilder::new("source".to_owned(), scope);
    let info = builder.operator_info();
    let (events_out, events) = builder.new_output::<Vec<Chunk>>();
    let (candidates_out, candidates) = builder.new_output::<Vec<Candidate>>();
    let (open_out, open) = builder.new_output::<Vec<DeletionId>>();
    let mut events_out = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(events_out);
    let mut candidates_out = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(candidates_out);
    let mut open_out = OutputBuilder::<_, CapacityContainerBuilder<_>>::from(open_out);

    builder.build(move |capabilities| {
        let activator = worker.activator_for(Rc::clone(&info.address));
        feed.wakes(worker.sync_activator_for(info.address.to_vec()));
        activator.activate();
        let mut held: Vec<Capability<Epoch>> = capabilities;
        move |_| {
            let mut events_out = events_out.activate();
            let mut candidates_out = candidates_out.activate();
            let mut open_out = open_out.activate();
            let mut fuel = FUEL;
            while !held.is_empty() {
                match feed.receive() {
                    Fed::Nothing => break,
                    Fed::Closed => held.clear(),
                    Fed::Something(Feed::Advance(epoch)) => {
                        held.iter_mut().for_each(|capability| capability.downgrade(&epoch));
                    }
                    Fed::Something(Feed::Records { source, records }) => {
                        fuel = fuel.saturating_sub(records.len());
                        match records {
                            Records::Events(events) => {
                                let raw = Raw::Events(events);
                                events_out.session(&held[0]).give(Chunk { source, raw });
                            }
                            Records::Rows(rows) => {
                                let raw = Raw::Rows(rows);
                                events_out.session(&held[0]).give(Chunk { source, raw });
                            }
                            Records::Redriven(events) => {
                                let raw = Raw::Redriven(events);
                                events_out.session(&held[0]).give(Chunk { source, raw });
                            }
                            Records::Candidates(mut candidates) => {
                                candidates_out.session(&held[1]).give_container(&mut candidates);
                            }
                            Records::Open(mut open) => {
                                open_out.session(&held[2]).give_container(&mut open);
                            }
                        }
                        if fuel == 0 {
                            activator.activate();
                            break;
                        }
                    }
                }
            }
        }
    });
    Read { events, candidates, open }
}
