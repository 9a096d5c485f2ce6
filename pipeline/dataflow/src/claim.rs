//! Asks the ledger for the right to destroy: candidates are claimed, open deletions taken over.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use futures::future::join_all;
use metrics::counter;
use tombstream_model::{Candidate, Claimed, DeletionId, Ledger, Relation, RelationId};

use crate::bridge::Call;
use crate::flow::LedgerParts;
use crate::metric::{self, tally};
use crate::plan::StageConfig;
use crate::retry::insist;

/// Claims candidates, one call of the ledger for each relation.
pub(crate) fn claim<L: Ledger>(
    parts: LedgerParts<L>,
    config: StageConfig,
) -> Call<Candidate, Arc<Claimed>> {
    Arc::new(move |batch: Arc<[Candidate]>, _| {
        let LedgerParts { ledger, relations, board } = parts.clone();
        let config = config.clone();
        Box::pin(async move {
            let groups = by_relation(&batch);
            // Side by side, so that a relation with locks or faults of its own delays the others'
            // answers only.
            let claimed = join_all(groups.iter().map(|(relation, group)| {
                insist("claim", &config, &board, || ledger.claim(*relation, group))
            }));
            let claimed: Vec<_> = claimed.await.into_iter().flatten().map(Arc::new).collect();
            count(metric::CLAIMS, &relations, &claimed);
            claimed
        })
    })
}

/// Takes over deletions that are open in the ledger.
pub(crate) fn resume<L: Ledger>(
    parts: LedgerParts<L>,
    config: StageConfig,
) -> Call<DeletionId, Arc<Claimed>> {
    Arc::new(move |batch: Arc<[DeletionId]>, _| {
        let LedgerParts { ledger, relations, board } = parts.clone();
        let config = config.clone();
        Box::pin(async move {
            let claimed = insist("resume", &config, &board, || ledger.resume(&batch)).await;
            let claimed: Vec<_> = claimed.into_iter().map(Arc::new).collect();
            count(metric::RESUMES, &relations, &claimed);
            claimed
        })
    })
}

/// The batch by relation, each key (and what was found of it) once: an event and the sweep may have
/// brought the same one. The first is kept, with the position of any.
fn by_relation(batch: &[Candidate]) -> BTreeMap<RelationId, Vec<Candidate>> {
    let mut groups: BTreeMap<RelationId, Vec<Candidate>> = BTreeMap::new();
    let mut seen = HashSet::new();
    for candidate in batch {
        let group = groups.entry(candidate.relation).or_default();
        if seen.insert((candidate.relation, &candidate.key, candidate.found as u8)) {
            group.push(candidate.clone());
        } else if candidate.position.is_some()
            && let Some(kept) = group
                .iter_mut()
                .find(|kept| kept.key == candidate.key && kept.found == candidate.found)
        {
            kept.position = kept.position.max(candidate.position);
        }
    }
    groups
}

/// Counts deletions by relation.
fn count(name: &'static str, relations: &[Relation], claimed: &[Arc<Claimed>]) {
    for (relation, count) in tally(claimed.iter().map(|claimed| claimed.relation)) {
        counter!(name, "relation" => relation_name(relations, relation)).increment(count);
    }
}

/// The relation's name, for metrics.
pub(crate) fn relation_name(relations: &[Relation], id: RelationId) -> String {
    relations.get(usize::from(id.0)).map_or_else(|| id.0.to_string(), |it| it.name.to_string())
}
