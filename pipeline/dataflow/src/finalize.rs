//! The ends of a deletion in this process: its row is removed with a receipt, or what is not
//! confirmed is recorded as owed.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::join_all;
use metrics::counter;
use tombstream_model::{Ending, Ledger, RelationId, Settled};

use crate::bridge::Call;
use crate::claim::relation_name;
use crate::flow::LedgerParts;
use crate::metric::{self, tally};
use crate::plan::StageConfig;
use crate::retry::insist;

/// Removes rows, one call of the ledger for each relation.
pub(crate) fn finalize<L: Ledger>(parts: LedgerParts<L>, config: StageConfig) -> Call<Settled, ()> {
    Arc::new(move |batch: Arc<[Settled]>, _| {
        let LedgerParts { ledger, relations, board } = parts.clone();
        let config = config.clone();
        Box::pin(async move {
            let mut groups: BTreeMap<RelationId, Vec<Settled>> = BTreeMap::new();
            for settled in batch.iter() {
                groups.entry(settled.claimed.relation).or_default().push(settled.clone());
            }
            let endings = join_all(groups.iter().map(|(relation, group)| {
                insist("finalize", &config, &board, || ledger.finalize(*relation, group))
            }));
            for ((relation, group), endings) in groups.iter().zip(endings.await) {
                let relation = relation_name(&relations, *relation);
                for (ending, count) in tally(endings.iter().map(spelled)) {
                    counter!(metric::FINALIZED, "relation" => relation.clone(), "ending" => ending)
                        .increment(count);
                }
                for (settled, ending) in group.iter().zip(endings) {
                    let deletion = settled.claimed.id;
                    match ending {
                        Ending::Finalized | Ending::FinalizedRowGone => {}
                        Ending::Later | Ending::Superseded | Ending::Fenced => {
                            tracing::debug!(relation, %deletion, ?ending, "not finalized");
                        }
                        Ending::LateRestore | Ending::Parked | Ending::Paused => {
                            tracing::warn!(relation, %deletion, ?ending, "not finalized");
                        }
                    }
                }
            }
            Vec::new()
        })
    })
}

/// Records what is owed, and hides that are done, so that the sweep drives it again and the frontier can move on.
pub(crate) fn owe<L: Ledger>(parts: LedgerParts<L>, config: StageConfig) -> Call<Settled, ()> {
    Arc::new(move |batch: Arc<[Settled]>, _| {
        let LedgerParts { ledger, relations, board } = parts.clone();
        let config = config.clone();
        Box::pin(async move {
            insist("owe", &config, &board, || ledger.owe(&batch)).await;
            for settled in batch.iter() {
                let relation = relation_name(&relations, settled.claimed.relation);
                let is_done = settled.claimed.is_hide && settled.has_all_confirmed();
                let name = if is_done { metric::HIDDEN } else { metric::OWED };
                counter!(name, "relation" => relation).increment(1);
            }
            Vec::new()
        })
    })
}

fn spelled(ending: &Ending) -> &'static str {
    match ending {
        Ending::Finalized => "finalized",
        Ending::FinalizedRowGone => "finalized_row_gone",
        Ending::Later => "later",
        Ending::Superseded => "superseded",
        Ending::LateRestore => "late_restore",
        Ending::Fenced => "fenced",
        Ending::Parked => "parked",
        Ending::Paused => "paused",
    }
}
