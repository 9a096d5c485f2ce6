//! What a [`Sink`] must do, whatever store is behind it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tombstream_model::{Outcome, Presence, Sink, Target, Verdict};

/// A sink with a store behind it that the checks can fill.
///
/// The names that the checks give are short, plain and different within the process. A fixture adds
/// what makes them its own (a bucket, an index, a random prefix). The fences of the targets it makes
/// must hold for at least a minute.
pub trait SinkFixture: Send + Sync {
    /// The sink.
    type Sink: Sink;

    /// The sink.
    fn sink(&self) -> &Self::Sink;

    /// Makes a copy, and gives the target that destroys it.
    fn put(&self, name: &str) -> impl Future<Output = Target> + Send;

    /// A target whose copy never existed.
    fn never(&self, name: &str) -> impl Future<Output = Target> + Send;

    /// Whether the target's copy is in the store, asked in another way than through the sink.
    fn exists(&self, target: &Target) -> impl Future<Output = bool> + Send;
}

/// Runs every check of this module.
pub async fn all<F: SinkFixture>(fixture: &F) {
    an_empty_batch_is_answered(fixture).await;
    a_copy_is_destroyed(fixture).await;
    an_absent_copy_is_absent(fixture).await;
    destroying_twice_is_harmless(fixture).await;
    outcomes_come_in_the_order_of_the_targets(fixture).await;
    what_is_not_in_the_batch_stays(fixture).await;
    a_target_whose_fence_is_over_is_not_touched(fixture).await;
    a_target_twice_in_a_batch_is_answered_twice(fixture).await;
    looking_changes_nothing(fixture).await;
    looks_come_in_the_order_of_the_targets(fixture).await;
    a_full_batch_is_taken(fixture).await;
}

/// No targets, no outcomes, no error.
pub async fn an_empty_batch_is_answered<F: SinkFixture>(fixture: &F) {
    assert_eq!(destroy(fixture, &[]).await.len(), 0, "an empty batch has outcomes");
    assert_eq!(look(fixture, &[]).await.len(), 0, "an empty batch has presences");
}

/// A copy that is there is gone afterwards, and the sink says so.
pub async fn a_copy_is_destroyed<F: SinkFixture>(fixture: &F) {
    let target = fixture.put(&name("destroyed")).await;
    assert!(fixture.exists(&target).await, "the fixture made no copy");
    let outcomes = destroy(fixture, std::slice::from_ref(&target)).await;
    assert_eq!(outcomes[0].verdict, Verdict::Deleted, "said: {}", outcomes[0].said);
    assert!(!fixture.exists(&target).await, "deleted, it said, but the copy is there");
    assert_eq!(look(fixture, &[target]).await, [Presence::Absent]);
}

/// A copy that never was is `Absent`: the share of these tells a wrong template (S6).
pub async fn an_absent_copy_is_absent<F: SinkFixture>(fixture: &F) {
    let target = fixture.never(&name("absent")).await;
    let outcomes = destroy(fixture, std::slice::from_ref(&target)).await;
    assert_eq!(outcomes[0].verdict, Verdict::Absent, "said: {}", outcomes[0].said);
    assert_eq!(look(fixture, &[target]).await, [Presence::Absent]);
}

/// The second time everything is confirmed again, and nothing is an error.
pub async fn destroying_twice_is_harmless<F: SinkFixture>(fixture: &F) {
    let batch = [fixture.put(&name("twice")).await, fixture.put(&name("twice")).await];
    for time in ["first", "second"] {
        for outcome in destroy(fixture, &batch).await {
            assert!(
                outcome.verdict.is_confirmed(),
                "the {time} time it is {:?}: {}",
                outcome.verdict,
                outcome.said
            );
        }
    }
    for target in &batch {
        assert!(!fixture.exists(target).await, "the copy is there after two destroys");
    }
}

/// Copies that are there, that never were and that must not be touched, mixed.
pub async fn outcomes_come_in_the_order_of_the_targets<F: SinkFixture>(fixture: &F) {
    let batch = [
        fixture.put(&name("order")).await,
        fixture.never(&name("order")).await,
        over(fixture.put(&name("order")).await),
        fixture.put(&name("order")).await,
        over(fixture.never(&name("order")).await),
        fixture.never(&name("order")).await,
        fixture.put(&name("order")).await,
    ];
    let verdicts: Vec<Verdict> =
        destroy(fixture, &batch).await.iter().map(|outcome| outcome.verdict).collect();
    let expected = [
        Verdict::Deleted,
        Verdict::Absent,
        Verdict::Busy,
        Verdict::Deleted,
        Verdict::Busy,
        Verdict::Absent,
        Verdict::Deleted,
    ];
    assert_eq!(verdicts, expected);
}

/// A neighbour whose name begins with the target's, and one of another name, stay (S8).
pub async fn what_is_not_in_the_batch_stays<F: SinkFixture>(fixture: &F) {
    let stem = name("stays");
    let target = fixture.put(&stem).await;
    let neighbours = [fixture.put(&format!("{stem}x")).await, fixture.put(&name("stays")).await];
    let outcomes = destroy(fixture, &[target]).await;
    assert_eq!(outcomes[0].verdict, Verdict::Deleted, "said: {}", outcomes[0].said);
    for neighbour in &neighbours {
        assert!(fixture.exists(neighbour).await, "{:?} went along", neighbour.address);
    }
}

/// No request for a target is sent once its fence is over (S1); the others of its batch go on.
pub async fn a_target_whose_fence_is_over_is_not_touched<F: SinkFixture>(fixture: &F) {
    let late = over(fixture.put(&name("fence")).await);
    let timely = fixture.put(&name("fence")).await;
    let outcomes = destroy(fixture, &[late.clone(), timely.clone()]).await;
    assert_eq!(outcomes[0].verdict, Verdict::Busy, "said: {}", outcomes[0].said);
    assert!(fixture.exists(&late).await, "destroyed although its fence was over");
    assert_eq!(outcomes[1].verdict, Verdict::Deleted, "said: {}", outcomes[1].said);
    assert!(!fixture.exists(&timely).await, "the other of the batch was not destroyed");
}

/// Two deletions may have the same address.
pub async fn a_target_twice_in_a_batch_is_answered_twice<F: SinkFixture>(fixture: &F) {
    let target = fixture.put(&name("double")).await;
    let outcomes = destroy(fixture, &[target.clone(), target.clone()]).await;
    for outcome in &outcomes {
        assert!(
            matches!(
                outcome.verdict,
                Verdict::Deleted | Verdict::Absent | Verdict::Busy | Verdict::Unknown
            ),
            "{:?}: {}",
            outcome.verdict,
            outcome.said
        );
    }
    assert!(!fixture.exists(&target).await, "the copy is there");
}

/// Looking finds what is there, and leaves it there.
pub async fn looking_changes_nothing<F: SinkFixture>(fixture: &F) {
    let there = fixture.put(&name("look")).await;
    let never = fixture.never(&name("look")).await;
    for _ in 0..2 {
        let found = look(fixture, &[there.clone(), never.clone()]).await;
        assert_eq!(found, [Presence::Present, Presence::Absent]);
        assert!(fixture.exists(&there).await, "the look removed the copy");
        assert!(!fixture.exists(&never).await, "the look made a copy");
    }
}

/// As for outcomes.
pub async fn looks_come_in_the_order_of_the_targets<F: SinkFixture>(fixture: &F) {
    let batch = [
        fixture.never(&name("looks")).await,
        fixture.put(&name("looks")).await,
        fixture.put(&name("looks")).await,
        fixture.never(&name("looks")).await,
        fixture.put(&name("looks")).await,
    ];
    let expected = [
        Presence::Absent,
        Presence::Present,
        Presence::Present,
        Presence::Absent,
        Presence::Present,
    ];
    assert_eq!(look(fixture, &batch).await, expected);
}

/// A batch of `batch_max` targets (at most 1,000 are tried) is taken in one call.
pub async fn a_full_batch_is_taken<F: SinkFixture>(fixture: &F) {
    let count = fixture.sink().batch_max().min(1_000);
    assert!(count > 0, "batch_max is zero");
    let mut batch = vec![fixture.put(&name("full")).await];
    while batch.len() < count - 1 {
        batch.push(fixture.never(&name("full")).await);
    }
    if batch.len() < count {
        batch.push(fixture.put(&name("full")).await);
    }
    for (target, outcome) in batch.iter().zip(destroy(fixture, &batch).await) {
        assert!(outcome.verdict.is_confirmed(), "{:?}: {outcome:?}", target.address);
    }
    assert_eq!(look(fixture, &batch).await, vec![Presence::Absent; count]);
}

async fn destroy<F: SinkFixture>(fixture: &F, batch: &[Target]) -> Vec<Outcome> {
    let outcomes = fixture.sink().destroy(batch).await.expect("the store answers");
    assert_eq!(outcomes.len(), batch.len(), "not an outcome for each target");
    outcomes
}

async fn look<F: SinkFixture>(fixture: &F, batch: &[Target]) -> Vec<Presence> {
    let found = fixture.sink().look(batch).await.expect("the store answers");
    assert_eq!(found.len(), batch.len(), "not a presence for each target");
    found
}

/// The same target, its fence over.
fn over(mut target: Target) -> Target {
    target.fence.until = Instant::now();
    target
}

fn name(of: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{of}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
