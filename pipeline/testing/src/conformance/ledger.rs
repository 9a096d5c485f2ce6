//! What a [`Ledger`] must do, whatever is behind it. What only a database can get wrong (locks,
//! isolation, races) is tested where the database is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tombstream_model::{
    Candidate, Claimed, DeadLetter, Ending, Event, Ledger, LetterForm, LetterLimits, Origin,
    Outcome, Settled, Verdict,
};

/// A ledger with a relation that the checks can fill. Its rows have at least one target, and their
/// grace is over at once.
pub trait LedgerFixture: Send + Sync {
    /// The ledger.
    type Ledger: Ledger;

    /// The ledger.
    fn ledger(&self) -> &Self::Ledger;

    /// Makes a row whose key is made of this number, and gives a candidate for it.
    fn row(&self, number: usize, flagged: bool) -> impl Future<Output = Candidate> + Send;

    /// Sets or unsets the flag of a row behind the ledger's back (no trigger refuses it).
    fn flag(&self, row: &Candidate, flagged: bool) -> impl Future<Output = ()> + Send;

    /// Removes a row behind the ledger's back.
    fn remove(&self, row: &Candidate) -> impl Future<Output = ()> + Send;

    /// Whether the row is there.
    fn exists(&self, row: &Candidate) -> impl Future<Output = bool> + Send;

    /// Makes deletions that owe something due now.
    fn make_due(&self) -> impl Future<Output = ()> + Send;

    /// How many dead letters of this topic are kept.
    fn buried(&self, topic: &str) -> impl Future<Output = usize> + Send;
}

/// Runs every check of this module.
pub async fn all<F: LedgerFixture>(fixture: &F) {
    only_flagged_rows_are_claimed(fixture).await;
    a_row_is_claimed_once(fixture).await;
    what_is_confirmed_is_removed(fixture).await;
    finalizing_twice_removes_nothing_more(fixture).await;
    a_row_that_came_back_is_not_removed(fixture).await;
    a_row_that_is_gone_is_finalized_as_such(fixture).await;
    what_is_owed_comes_back_with_a_newer_token(fixture).await;
    an_older_owner_is_fenced(fixture).await;
    a_dead_letter_is_kept_once(fixture).await;
    empty_batches_are_harmless(fixture).await;
}

/// A living row, a row that is not there, and a flagged one (S1).
pub async fn only_flagged_rows_are_claimed<F: LedgerFixture>(fixture: &F) {
    let living = fixture.row(number(), false).await;
    let gone = fixture.row(number(), true).await;
    fixture.remove(&gone).await;
    let flagged = fixture.row(number(), true).await;
    let claimed = claim(fixture, &[living.clone(), gone, flagged.clone()]).await;
    assert_eq!(claimed.len(), 1);
    assert_eq!(claimed[0].key, flagged.key);
    assert!(claimed[0].fence.holds(), "a claim comes with time to act");
    assert!(claimed[0].first_attempt);
    assert!(!claimed[0].targets.is_empty());
    assert!(claimed[0].targets.iter().all(|it| it.confirmed.is_none()));
    assert!(claimed[0].targets.iter().all(|it| it.target.deletion == claimed[0].id));
    assert!(fixture.exists(&living).await);
    assert!(fixture.exists(&flagged).await, "a claim removes nothing");
}

/// While a deletion is open its key is not claimed again.
pub async fn a_row_is_claimed_once<F: LedgerFixture>(fixture: &F) {
    let row = fixture.row(number(), true).await;
    assert_eq!(claim(fixture, std::slice::from_ref(&row)).await.len(), 1);
    assert_eq!(claim(fixture, std::slice::from_ref(&row)).await.len(), 0);
}

/// The row goes with its receipt.
pub async fn what_is_confirmed_is_removed<F: LedgerFixture>(fixture: &F) {
    let rows = [fixture.row(number(), true).await, fixture.row(number(), true).await];
    let settled: Vec<Settled> =
        claim(fixture, &rows).await.into_iter().map(|it| settle(it, Verdict::Deleted)).collect();
    assert_eq!(settled.len(), 2);
    assert_eq!(finalize(fixture, &settled).await, [Ending::Finalized, Ending::Finalized]);
    for row in &rows {
        assert!(!fixture.exists(row).await);
    }
}

/// The same request again, as after a lost answer.
pub async fn finalizing_twice_removes_nothing_more<F: LedgerFixture>(fixture: &F) {
    let row = fixture.row(number(), true).await;
    let claimed = one(claim(fixture, std::slice::from_ref(&row)).await);
    let settled = [settle(claimed, Verdict::Absent)];
    assert_eq!(finalize(fixture, &settled).await, [Ending::Finalized]);
    let again = finalize(fixture, &settled).await;
    assert!(
        matches!(again[..], [Ending::Fenced | Ending::Finalized | Ending::FinalizedRowGone]),
        "{again:?}"
    );
}

/// S3: what the claim checked is checked again.
pub async fn a_row_that_came_back_is_not_removed<F: LedgerFixture>(fixture: &F) {
    let row = fixture.row(number(), true).await;
    let claimed = one(claim(fixture, std::slice::from_ref(&row)).await);
    fixture.flag(&row, false).await;
    let endings = finalize(fixture, &[settle(claimed, Verdict::Deleted)]).await;
    assert_eq!(endings, [Ending::LateRestore]);
    assert!(fixture.exists(&row).await);
}

/// S3: locked and gone are told apart.
pub async fn a_row_that_is_gone_is_finalized_as_such<F: LedgerFixture>(fixture: &F) {
    let row = fixture.row(number(), true).await;
    let claimed = one(claim(fixture, std::slice::from_ref(&row)).await);
    fixture.remove(&row).await;
    let endings = finalize(fixture, &[settle(claimed, Verdict::Deleted)]).await;
    assert_eq!(endings, [Ending::FinalizedRowGone]);
}

/// What a store confirmed is not due again; what it did not is.
pub async fn what_is_owed_comes_back_with_a_newer_token<F: LedgerFixture>(fixture: &F) {
    let row = fixture.row(number(), true).await;
    let claimed = one(claim(fixture, std::slice::from_ref(&row)).await);
    let (id, token) = (claimed.id, claimed.fence.token);
    let mut settled = settle(claimed, Verdict::Deleted);
    settled.outcomes[0] = Outcome::new(Verdict::Unknown, "no answer");
    fixture.ledger().owe(&[settled]).await.expect("a ledger that answers");
    assert!(fixture.exists(&row).await);
    fixture.make_due().await;
    let again = one(fixture.ledger().resume(&[id]).await.expect("a ledger that answers"));
    assert_eq!(again.id, id);
    assert!(again.fence.token > token, "a takeover has a newer token");
    assert!(!again.first_attempt, "a takeover is no evidence of a wrong template");
    assert_eq!(again.targets[0].confirmed, None);
    for target in &again.targets[1..] {
        let verdict = target.confirmed.as_ref().map(|outcome| outcome.verdict);
        assert_eq!(verdict, Some(Verdict::Deleted));
    }
    assert_eq!(finalize(fixture, &[settle(again, Verdict::Deleted)]).await, [Ending::Finalized]);
    assert!(!fixture.exists(&row).await);
}

/// A claim that another took over removes nothing, and its verdicts count for nothing.
pub async fn an_older_owner_is_fenced<F: LedgerFixture>(fixture: &F) {
    let row = fixture.row(number(), true).await;
    let old = one(claim(fixture, std::slice::from_ref(&row)).await);
    let owed = settle(old.clone(), Verdict::Unknown);
    fixture.ledger().owe(&[owed]).await.expect("a ledger that answers");
    fixture.make_due().await;
    let new = one(fixture.ledger().resume(&[old.id]).await.expect("a ledger that answers"));
    assert_eq!(finalize(fixture, &[settle(old.clone(), Verdict::Deleted)]).await, [Ending::Fenced]);
    assert!(fixture.exists(&row).await);
    // Nor does what it owes end the new owner's lease.
    let late = settle(old, Verdict::Unknown);
    fixture.ledger().owe(&[late]).await.expect("a ledger that answers");
    assert_eq!(finalize(fixture, &[settle(new, Verdict::Deleted)]).await, [Ending::Finalized]);
}

/// The same message twice, in one batch or two, is kept once; messages are told apart by where they
/// stood.
pub async fn a_dead_letter_is_kept_once<F: LedgerFixture>(fixture: &F) {
    let topic = format!("dead-{}", number());
    let letter = |offset| {
        let event = Event {
            origin: Origin { topic: topic.as_str().into(), partition: 3, offset },
            topic: None,
            key: Some(vec![0, 159, 146, 150].into()),
            value: None,
        };
        let limits = LetterLimits::default();
        DeadLetter::new(event, LetterForm::Message, "not json".to_owned(), limits)
    };
    for batch in [vec![letter(1), letter(2)], vec![letter(2), letter(3), letter(3)]] {
        fixture.ledger().bury(&batch).await.expect("a ledger that answers");
    }
    assert_eq!(fixture.buried(&topic).await, 3);
}

/// No work, no error.
pub async fn empty_batches_are_harmless<F: LedgerFixture>(fixture: &F) {
    let relation = fixture.row(number(), false).await.relation;
    let ledger = fixture.ledger();
    assert_eq!(ledger.claim(relation, &[]).await.expect("a ledger that answers"), []);
    assert_eq!(ledger.resume(&[]).await.expect("a ledger that answers"), []);
    assert_eq!(ledger.finalize(relation, &[]).await.expect("a ledger that answers"), []);
    ledger.owe(&[]).await.expect("a ledger that answers");
    ledger.bury(&[]).await.expect("a ledger that answers");
}

async fn claim<F: LedgerFixture>(fixture: &F, batch: &[Candidate]) -> Vec<Claimed> {
    let claimed = fixture.ledger().claim(batch[0].relation, batch).await;
    claimed.expect("a ledger that answers")
}

async fn finalize<F: LedgerFixture>(fixture: &F, batch: &[Settled]) -> Vec<Ending> {
    let endings = fixture.ledger().finalize(batch[0].claimed.relation, batch).await;
    endings.expect("a ledger that answers")
}

/// The deletion with this verdict for each target.
fn settle(claimed: Claimed, verdict: Verdict) -> Settled {
    let outcomes = claimed.targets.iter().map(|_| Outcome::new(verdict, "said")).collect();
    Settled { claimed: Arc::new(claimed), outcomes }
}

fn one(mut claimed: Vec<Claimed>) -> Claimed {
    assert_eq!(claimed.len(), 1, "exactly this one");
    claimed.remove(0)
}

fn number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
