//! Asks the ledger for the right to destroy: candidates are claimed, open deletions taken over.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::future::join_all;
use metrics::counter;
use tombstream_model::{Candidate, Cause, Claimed, DeletionId, Ledger, Relation, RelationId};

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
/// brought the same one.
///
/// What the event told stays told: that there was one (the archive keeps it), where in the log, and the row
/// that was removed; `tests::what_an_event_told_is_kept_whoever_came_first`.
fn by_relation(batch: &[Candidate]) -> BTreeMap<RelationId, Vec<Candidate>> {
    let mut groups: BTreeMap<RelationId, Vec<Candidate>> = BTreeMap::new();
    let mut places = HashMap::new();
    for candidate in batch {
        let group = groups.entry(candidate.relation).or_default();
        let id = (candidate.relation, &candidate.key, candidate.found as u8);
        match places.entry(id) {
            Entry::Vacant(place) => {
                place.insert(group.len());
                group.push(candidate.clone());
            }
            Entry::Occupied(place) => {
                let kept = &mut group[*place.get()];
                kept.position = kept.position.max(candidate.position);
                if candidate.cause == Cause::Event {
                    kept.cause = Cause::Event;
                }
                if kept.removed.is_none() {
                    kept.removed.clone_from(&candidate.removed);
                }
            }
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

#[cfg(test)]
mod tests {
    use tombstream_model::{Candidate, Cause, Found, Generation, Key, Lsn, Position, RelationId};

    use super::by_relation;

    fn candidate(relation: u16, key: &str, found: Found) -> Candidate {
        Candidate {
            relation: RelationId(relation),
            key: Key::from_postgres([key.to_owned()]),
            position: None,
            cause: Cause::Sweep,
            found,
            removed: None,
        }
    }

    fn told(swept: &Candidate, lsn: u64, row: Option<&str>) -> Candidate {
        Candidate {
            position: Some(Position { generation: Generation(1), lsn: Lsn(lsn), order: 0 }),
            cause: Cause::Event,
            removed: row.map(|value| [Some(value.into())].into()),
            ..swept.clone()
        }
    }

    #[test]
    fn what_an_event_told_is_kept_whoever_came_first() {
        let flagged = candidate(0, "1", Found::Flagged);
        let removed = candidate(0, "1", Found::Removed);
        let events = [told(&flagged, 7, None), told(&removed, 9, Some("a"))];
        let swept = [flagged, removed];
        for batch in [[&swept[..], &events[..]].concat(), [&events[..], &swept[..]].concat()] {
            assert_eq!(by_relation(&batch)[&RelationId(0)], events);
        }
    }

    #[test]
    fn a_key_is_asked_for_once_by_its_newest_position_and_relations_apart() {
        let (one, other) = (candidate(0, "1", Found::Flagged), candidate(1, "1", Found::Flagged));
        let batch = [told(&one, 9, None), other.clone(), told(&one, 7, None), other.clone()];
        let groups = by_relation(&batch);
        assert_eq!(groups[&RelationId(0)], [told(&one, 9, None)]);
        assert_eq!(groups[&RelationId(1)], [other]);
    }
}
