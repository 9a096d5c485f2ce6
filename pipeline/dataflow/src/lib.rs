//! The operators of Tombstream on timely dataflow.
//!
//! [`Pipeline`] says what a pipeline is made of, [`Pipeline::start`] runs it, [`Running`] says how
//! it is and stops it. Data moves one way:
//! ```text
//!  source ─▶ decode ─▶ dedupe ─▶ claim ─▶ sinks ─▶ settle ─▶ finalize ─▶ probe
//!    ▲                                                                     │
//!    └────── positions are committed once the frontier has passed ◀────────┘
//! ```

mod breaker;
mod bridge;
mod claim;
mod decode;
mod dedupe;
mod finalize;
mod flow;
mod health;
mod intake;
mod layers;
pub mod metric;
mod plan;
mod port;
mod progress;
pub mod reconcile;
mod retry;
mod running;
mod server;
mod settle;
mod sink;
mod source;
mod spread;
mod stage;
mod topic;

use timely::dataflow::Scope;
use timely::dataflow::operators::{Concat, Concatenate, OkErr, Probe, probe};
use tombstream_model::Ledger;

use bridge::{Epoch, FeedReceiver};
use flow::Flow;
pub use health::{Health, LedgerHealth, SourceHealth, StoreHealth};
pub use plan::{Config, Pipeline, StageConfig, StartError, Store, StoreConfig, Verify};
pub use port::{ErasedSink, ErasedSource};
pub use running::{RunError, Running, Stopped, Unfinished};
pub use server::ServerClock;
use stage::Coming;

/// One worker's flow, top to bottom.
pub(crate) fn assemble<L: Ledger>(
    scope: Scope<'_, Epoch>,
    feed: FeedReceiver,
    flow: &Flow<L>,
) -> probe::Handle<Epoch> {
    let read = source::source(scope, feed);
    let (candidates, dead_letters) = decode::decode(read.events, flow.decode());
    let buried = flow.bury().over(dead_letters);

    let candidates =
        dedupe::dedupe(candidates.concat(read.candidates), flow.config.dedupe_keys_max);
    let coming = Coming::default();
    let candidates = spread::spread(candidates);
    let claimed = flow.claim(&coming).over(candidates).concat(flow.resume().over(read.open));

    let said = flow.stores.iter().zip(&flow.keepers).map(|(store, keeper)| {
        flow.destroy(store, keeper, &coming).over(sink::due(claimed.clone(), store.id))
    });
    let said = scope.concatenate(said.collect::<Vec<_>>());

    let settled = settle::settle(claimed, said, flow.stores.len());
    let (confirmed, owed) =
        settled.ok_err(|settled| if settled.is_confirmed() { Ok(settled) } else { Err(settled) });
    let finalized = flow.finalize().over(confirmed);
    let owed = flow.owe().over(owed);

    scope.concatenate([buried, finalized, owed]).probe().0
}
