//! What a deletion waits for, as the file says it: the grace of each target, and the breaker's limits.

use std::num::NonZeroUsize;
use std::time::Duration;

use tombstream_model::{BreakerLimits, TargetTemplate};

use super::document::{Place, Section};
use super::relation::RelationConfig;
use super::store::StoreConfig;
use super::value::Share;

/// `breaker = { … }`: how much may be claimed before an operator is asked.
pub(super) fn read_breaker(section: &mut Section<'_, '_>) -> Option<BreakerLimits> {
    let place = section.here();
    let count = |number: NonZeroUsize| number.get() as u64;
    let claims_max = section.get::<NonZeroUsize>("claims_max").map(count);
    // An hour: longer than it takes to notice a mistake, shorter than a day's ordinary work.
    let window = section.or("window", Duration::from_secs(3600));
    let share_place = section.place("share_max");
    let share_max = section.get::<Share>("share_max").map(|Share(share)| share);
    let rate_max = section.get::<NonZeroUsize>("rate_max").map(count);
    if share_max.is_some_and(|share| share <= 0.0 || share >= 1.0) {
        section.problem(
            share_place,
            "is no limit",
            "write a share above 0 and below 1, such as 0.01, or leave it out",
        );
        return None;
    }
    if window < Duration::from_secs(1) {
        section.problem(section.place("window"), "is shorter than a second", "write \"1h\"");
        return None;
    }
    if claims_max.is_none() && share_max.is_none() && rate_max.is_none() {
        section.problem(
            place,
            "has no limit",
            "write one of claims_max, share_max and rate_max, or leave breaker out",
        );
        return None;
    }
    Some(BreakerLimits { claims_max, window, share_max, rate_max })
}

/// When a relation's rows are claimed, and when their recoverable copies are hidden before. Marks the targets
/// that are.
///
/// The claim is the point of no return for all stores that can't be filled again, so it is taken at the
/// longest grace, and only what can be filled again may go before it.
pub(super) fn graces(
    section: &Section<'_, '_>,
    relation: &RelationConfig,
    stores: &[StoreConfig],
    targets: &mut [TargetTemplate],
) -> (Duration, Option<Duration>) {
    let of = |own: Option<Duration>| own.unwrap_or(relation.grace);
    let claim = relation.targets.iter().map(|target| of(target.grace)).max().unwrap_or_default();
    let text = |duration| humantime::format_duration(duration).to_string();
    let mut hide: Option<Duration> = None;
    for (target, template) in relation.targets.iter().zip(targets) {
        let grace = of(target.grace);
        if grace == claim {
            continue;
        }
        let place = Place { line: target.place.line, key: format!("{}.grace", target.place.key) };
        let store = stores.iter().find(|store| store.name == target.store);
        if store.is_some_and(|store| !store.is_recoverable) {
            section.problem(
                place,
                format!(
                    "{} is shorter than the longest grace ({}), and store {:?} is not recoverable: what \
                     goes there before the claim could not be restored",
                    text(grace),
                    text(claim),
                    target.store
                ),
                format!(
                    "write grace = {:?}, or recoverable = true in [store.{}] if something fills it again",
                    text(claim),
                    target.store
                ),
            );
        } else if hide.is_some_and(|hide| hide != grace) {
            section.problem(
                place,
                "is a third grace: copies go when the deletion is hidden, or when it is claimed",
                "give all recoverable stores of a relation that go before the claim the same grace",
            );
        }
        hide = Some(grace);
        template.is_hidden_first = true;
    }
    (claim, hide)
}
