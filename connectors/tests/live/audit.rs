//! The audit: what came back is found once and destroyed again, what is alive is left, and what could not be told
//! is not taken for gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::Executor;

use tombstream_connectors::postgres::{
    Audit, AuditConfig, AuditError, AuditSpan, AuditTally, PgLedger, Sweep, SweepConfig,
    install_relation,
};
use tombstream_model::{
    Address, Candidate, Claimed, Ending, Key, Ledger, OnHardDelete, Presence, Records, Relation,
    Sink, SinkError, Source, StoreId, Target, Template, Verdict,
};
use tombstream_testing::memory::{MemorySink, Mood};

use super::support::{DOCUMENTS, Database, all, candidates, documents};

const ORIGINALS: StoreId = StoreId(0);
const SEARCH: StoreId = StoreId(1);
const LAG: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(2);

/// No key is ever used again.
fn once() -> Relation {
    Relation { key_reuse_forbidden: true, ..documents() }
}

fn guarded() -> Relation {
    Relation { on_hard_delete: OnHardDelete::Destroy, ..documents() }
}

async fn with(relation: &Relation) -> Database {
    let database = Database::with_documents(false).await;
    install_relation(&database.pool, relation).await.unwrap();
    database
}

fn audit(database: &Database, relation: Relation, change: impl FnOnce(&mut AuditConfig)) -> Audit {
    let mut config = AuditConfig::new("test".to_owned(), vec![LAG]);
    config.rate_max = 1_000_000;
    config.wait = Duration::ZERO;
    config.again_wait = (Duration::ZERO, Duration::ZERO);
    config.page_max = 7;
    change(&mut config);
    let stores = vec!["originals".into(), "search".into()];
    Audit::new(database.pool.clone(), [relation].into(), stores, config)
}

/// Rounds until so many targets were looked at: what was closed just now may not be readable yet.
async fn rounds<S: Sink>(audit: &Audit, store: StoreId, sink: &S, looks: u64) -> AuditTally {
    let mut all = AuditTally::default();
    let began = Instant::now();
    while all.looked < looks {
        assert!(began.elapsed() < Duration::from_secs(60), "{looks} are not looked at: {all:?}");
        let round = audit.round(store, sink, PATIENCE).await.unwrap();
        all.looked += round.tally.looked;
        all.resurrected += round.tally.resurrected;
        all.parked += round.tally.parked;
        all.known += round.tally.known;
        all.reused += round.tally.reused;
        all.unclear += round.tally.unclear;
        all.unknown += round.tally.unknown;
    }
    all
}

fn id(key: &Key) -> &str {
    key.columns().next().unwrap()
}

fn original(key: &Key) -> Address {
    Address::Object { bucket: "documents".into(), key: format!("{}/original", id(key)) }
}

fn document(key: &Key) -> Address {
    Address::Document { index: "documents".into(), id: id(key).to_owned(), routing: None }
}

/// Rows that are flagged, claimed and finalized.
async fn finalized(database: &Database, ledger: &PgLedger, rows: usize) -> Vec<Key> {
    let keys = database.insert(rows, true).await;
    let claims = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    let endings = ledger.finalize(DOCUMENTS, &all(claims, Verdict::Deleted)).await.unwrap();
    assert_eq!(endings, vec![Ending::Finalized; rows]);
    keys
}

/// What a sweep brings of rows that are gone, as candidates.
async fn swept(database: &Database, relation: Relation) -> Vec<Candidate> {
    let config = SweepConfig {
        interval: Duration::from_millis(10),
        page_max: 1_000,
        after: Duration::ZERO,
        rate_max: 1_000_000,
        prepared_statements: true,
    };
    let mut sweep = Sweep::new(database.pool.clone(), [relation].into(), config);
    match tokio::time::timeout(Duration::from_secs(2), sweep.next()).await {
        Ok(polled) => match polled.unwrap().records {
            Records::Candidates(candidates) => candidates,
            other => panic!("{other:?}"),
        },
        Err(_) => Vec::new(),
    }
}

async fn claimed(database: &Database, relation: Relation) -> Vec<Claimed> {
    let candidates = swept(database, relation.clone()).await;
    database.ledger(relation).claim(DOCUMENTS, &candidates).await.unwrap()
}

async fn insert(database: &Database, key: &Key) -> Result<(), sqlx::Error> {
    let insert = sqlx::query("insert into documents values ($1::uuid, 'again', now(), null)");
    insert.bind(id(key)).execute(&database.pool).await.map(drop)
}

const AGAIN: &str = "select count(*) from tombstream.deletion where cause = 'resurrected'";

#[tokio::test]
async fn what_came_back_is_found_once_and_destroyed_again() {
    let database = with(&once()).await;
    let ledger = database.ledger(once());
    let keys = finalized(&database, &ledger, 20).await;
    let (objects, index) = (MemorySink::default(), MemorySink::default());
    keys[..5].iter().for_each(|key| objects.put(original(key)));
    keys[3..6].iter().for_each(|key| index.put(document(key)));
    let audit = audit(&database, once(), |_| {});
    let seen = rounds(&audit, ORIGINALS, &objects, 20).await;
    assert_eq!(seen, AuditTally { looked: 20, resurrected: 5, ..AuditTally::default() });
    let seen = rounds(&audit, SEARCH, &index, 20).await;
    assert_eq!(seen, AuditTally { looked: 20, resurrected: 3, ..AuditTally::default() });
    assert_eq!(database.count(AGAIN).await, 6, "a key's copies are one deletion");
    // Nothing was destroyed: that is the claim's.
    assert!(objects.requests().is_empty() && index.requests().is_empty());

    let claims = claimed(&database, once()).await;
    assert_eq!(claims.len(), 6);
    let targets: usize = claims.iter().map(|claim| claim.targets.len()).sum();
    assert_eq!(targets, 8, "where it was found, and nowhere else");
    assert!(claims.iter().all(|claim| !claim.first_attempt), "no evidence of a wrong template");
    let endings = ledger.finalize(DOCUMENTS, &all(claims, Verdict::Deleted)).await.unwrap();
    assert_eq!(endings, vec![Ending::FinalizedRowGone; 6]);
    let receipts =
        "select count(*) from tombstream.receipt where cause = 'resurrected' and row_gone";
    assert_eq!(database.count(receipts).await, 6);
    let flags = "select count(*) from tombstream.receipt where cause = 'flag'";
    assert_eq!(database.count(flags).await, 20);

    // The pass goes on with what was closed since, and with nothing else.
    let objects = MemorySink::default();
    let seen = rounds(&audit, ORIGINALS, &objects, 5).await;
    assert_eq!(seen, AuditTally { looked: 5, ..AuditTally::default() });
    database.drop_database().await;
}

#[tokio::test]
async fn what_is_taken_over_again_is_driven_where_it_was_found_and_nowhere_else() {
    let database = with(&once()).await;
    let ledger = database.ledger(once());
    let keys = finalized(&database, &ledger, 2).await;
    let objects = MemorySink::default();
    keys.iter().for_each(|key| objects.put(original(key)));
    let audit = audit(&database, once(), |_| {});
    assert_eq!(rounds(&audit, ORIGINALS, &objects, 2).await.resurrected, 2);
    let claims = claimed(&database, once()).await;
    let ids: Vec<_> = claims.iter().map(|claim| claim.id).collect();
    ledger.owe(&all(claims, Verdict::Unknown)).await.unwrap();
    let began = Instant::now();
    let mut again = Vec::new();
    while again.len() < 2 {
        assert!(began.elapsed() < Duration::from_secs(60), "they are taken over");
        again.extend(ledger.resume(&ids).await.unwrap());
    }
    assert!(again.iter().all(|claim| claim.targets.len() == 1), "{again:?}");
    database.drop_database().await;
}

#[tokio::test]
async fn a_copy_that_is_found_while_another_is_being_claimed_is_not_lost() {
    let database = with(&once()).await;
    let keys = finalized(&database, &database.ledger(once()), 1).await;
    let objects = MemorySink::default();
    objects.put(original(&keys[0]));
    let audit = audit(&database, once(), |_| {});
    assert_eq!(rounds(&audit, ORIGINALS, &objects, 1).await.resurrected, 1);
    let candidates = swept(&database, once()).await;
    // The audit of the index adds its copy while the claim is between its look and its lock.
    let mut other = database.pool.begin().await.unwrap();
    let added = "update tombstream.deletion set targets = targets || '[{\"store\": \"search\", \
        \"address\": {\"kind\": \"document\", \"index\": \"documents\", \"id\": \"x\", \"routing\": null}}]' \
        where cause = 'resurrected'";
    other.execute(added).await.unwrap();
    let ledger = database.ledger(once());
    let claim = tokio::spawn(async move { ledger.claim(DOCUMENTS, &candidates).await.unwrap() });
    let waits = "select count(*) from pg_stat_activity \
                 where datname = current_database() and wait_event_type = 'Lock'";
    let began = Instant::now();
    while database.count(waits).await == 0 {
        assert!(began.elapsed() < Duration::from_secs(60), "the claim waits for the row");
    }
    other.commit().await.unwrap();
    let claims = claim.await.unwrap();
    assert_eq!(claims[0].targets.len(), 2, "{claims:?}");
    database.drop_database().await;
}

#[tokio::test]
async fn what_is_destroyed_again_neither_waits_a_grace_nor_spends_a_budget() {
    let relation = Relation {
        grace: Duration::from_secs(86_400),
        breaker: Some(tombstream_model::BreakerLimits {
            claims_max: Some(1),
            window: Duration::from_secs(3_600),
            share_max: None,
            rate_max: None,
        }),
        ..once()
    };
    let database = with(&once()).await;
    let keys = finalized(&database, &database.ledger(once()), 3).await;
    let objects = MemorySink::default();
    keys.iter().for_each(|key| objects.put(original(key)));
    let patient =
        audit(&database, relation.clone(), |config| config.wait = Duration::from_secs(60));
    assert_eq!(rounds(&patient, ORIGINALS, &objects, 3).await.resurrected, 3);
    assert!(claimed(&database, relation.clone()).await.is_empty(), "it rests for a minute");
    let later = "update tombstream.deletion set due_at = now() where cause = 'resurrected'";
    database.pool.execute(later).await.unwrap();
    assert_eq!(claimed(&database, relation).await.len(), 3);
    assert_eq!(database.count("select count(*) from tombstream.breaker_spent").await, 0);
    database.drop_database().await;
}

#[tokio::test]
async fn a_key_that_is_used_anew_keeps_its_copies() {
    let database = with(&guarded()).await;
    let keys = finalized(&database, &database.ledger(guarded()), 4).await;
    let objects = MemorySink::default();
    keys.iter().for_each(|key| objects.put(original(key)));
    insert(&database, &keys[0]).await.unwrap();
    insert(&database, &keys[1]).await.unwrap();
    let audit = audit(&database, guarded(), |_| {});
    let seen = rounds(&audit, ORIGINALS, &objects, 4).await;
    assert_eq!((seen.resurrected, seen.reused), (2, 2));
    assert_eq!(database.count(AGAIN).await, 2);
    // Used between the look and the claim: the arrival ends what was written down.
    insert(&database, &keys[2]).await.unwrap();
    let claims = claimed(&database, guarded()).await;
    assert_eq!(claims.iter().map(|claim| &claim.key).collect::<Vec<_>>(), [&keys[3]]);
    // Used while its copy is being destroyed: refused until that is done.
    let refused = insert(&database, &keys[3]).await.unwrap_err();
    let code = refused.as_database_error().unwrap().code().unwrap().into_owned();
    assert_eq!(code, "TS001");
    let ledger = database.ledger(guarded());
    ledger.finalize(DOCUMENTS, &all(claims, Verdict::Deleted)).await.unwrap();
    insert(&database, &keys[3]).await.unwrap();
    database.drop_database().await;
}

#[tokio::test]
async fn without_the_guard_over_arriving_rows_what_is_found_is_parked() {
    let database = with(&documents()).await;
    let keys = finalized(&database, &database.ledger(documents()), 2).await;
    let objects = MemorySink::default();
    keys.iter().for_each(|key| objects.put(original(key)));
    let audit = audit(&database, documents(), |_| {});
    assert_eq!(rounds(&audit, ORIGINALS, &objects, 2).await.resurrected, 2);
    assert!(claimed(&database, documents()).await.is_empty());
    let why = "select count(*) from tombstream.deletion where state = 'parked' \
               and reason like '%key_reuse = \"forbidden\"%' and jsonb_array_length(targets) = 1";
    assert_eq!(database.count(why).await, 2);
    // Declared, and let go on.
    let retry =
        "update tombstream.deletion set state = 'pending', reason = null where state = 'parked'";
    database.pool.execute(retry).await.unwrap();
    assert_eq!(claimed(&database, once()).await.len(), 2);
    database.drop_database().await;
}

#[tokio::test]
async fn an_address_that_the_templates_do_not_give_is_parked() {
    let database = with(&once()).await;
    let keys = finalized(&database, &database.ledger(once()), 3).await;
    let objects = MemorySink::default();
    keys.iter().for_each(|key| objects.put(original(key)));
    // Since then the relation has got another template: another row's copy may be where this one's was.
    let mut moved = once();
    if let tombstream_model::AddressTemplate::Object { key, .. } = &mut moved.targets[0].address {
        *key = Template::parse("{id}/v2").unwrap();
    }
    let audit = audit(&database, moved.clone(), |_| {});
    let seen = rounds(&audit, ORIGINALS, &objects, 3).await;
    assert_eq!((seen.resurrected, seen.parked), (3, 3));
    assert!(claimed(&database, moved).await.is_empty());
    let why = "select count(*) from tombstream.deletion where state = 'parked' \
               and reason like '%another row%'";
    assert_eq!(database.count(why).await, 3);
    database.drop_database().await;
}

#[tokio::test]
async fn a_deletion_that_is_committed_late_is_not_passed_by() {
    let database = with(&once()).await;
    let ledger = database.ledger(once());
    let keys = database.insert(1, true).await;
    let claims = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    // Another process finalizes it and its commit hangs, for a standby say.
    let mut late = database.pool.begin().await.unwrap();
    sqlx::query(
        "update tombstream.deletion set state = 'finalized', closed_at = clock_timestamp(), \
             targets = jsonb_set(targets, '{0,outcome}', \
                 '{\"verdict\": \"deleted\", \"said\": \"\", \"verified\": \"trust\"}') \
         where id = $1",
    )
    .bind(claims[0].id.0)
    .execute(&mut *late)
    .await
    .unwrap();
    late.execute("delete from documents").await.unwrap();
    let others = finalized(&database, &ledger, 3).await;
    let objects = MemorySink::default();
    keys.iter().chain(&others).for_each(|key| objects.put(original(key)));
    let audit = audit(&database, once(), |_| {});
    for _ in 0..5 {
        audit.round(ORIGINALS, &objects, PATIENCE).await.unwrap();
    }
    late.commit().await.unwrap();
    let looked = objects.looks().iter().map(|look| look.len() as u64).sum::<u64>();
    rounds(&audit, ORIGINALS, &objects, 4 - looked).await;
    assert_eq!(database.count(AGAIN).await, 4, "the late one, too");
    database.drop_database().await;
}

/// A store that is looked at so many times, and then never answers.
struct Stops {
    sink: Arc<MemorySink>,
    left: std::sync::atomic::AtomicUsize,
}

impl Sink for Stops {
    async fn destroy(&self, _: &[Target]) -> Result<Vec<tombstream_model::Outcome>, SinkError> {
        unreachable!("an audit destroys nothing")
    }

    async fn look(&self, batch: &[Target]) -> Result<Vec<Presence>, SinkError> {
        use std::sync::atomic::Ordering::Relaxed;
        if self.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_err() {
            std::future::pending::<()>().await;
        }
        self.sink.look(batch).await
    }

    fn batch_max(&self) -> usize {
        self.sink.batch_max()
    }
}

#[tokio::test]
async fn an_auditor_that_is_killed_misses_nothing_and_finds_nothing_twice() {
    let database = with(&once()).await;
    let keys = finalized(&database, &database.ledger(once()), 60).await;
    let objects = MemorySink::shared(1_000);
    keys.iter().step_by(3).for_each(|key| objects.put(original(key)));
    let short = |config: &mut AuditConfig| config.lease = Duration::from_millis(300);
    let began = Instant::now();
    let mut killed = 0;
    // Again and again: each has looked at two pages, and dies while it looks at a third.
    let done = "select coalesce(sum(looked), 0)::bigint from tombstream.audit_pass";
    while database.count(done).await < 40 {
        assert!(began.elapsed() < Duration::from_secs(60), "it gets on");
        let audit = audit(&database, once(), short);
        let stops = Stops { sink: Arc::clone(&objects), left: 2.into() };
        let round = audit.round(ORIGINALS, &stops, Duration::from_secs(60));
        killed +=
            usize::from(tokio::time::timeout(Duration::from_millis(200), round).await.is_err());
    }
    assert!(killed >= 2, "{killed}");
    let audit = audit(&database, once(), short);
    let left = 60 - u64::try_from(database.count(done).await).unwrap();
    rounds(&audit, ORIGINALS, &*objects, left).await;
    assert_eq!(database.count(done).await, 60, "each page counts once");
    assert_eq!(database.count(AGAIN).await, 20);
    let found = "select sum(resurrected)::bigint from tombstream.audit_pass";
    assert_eq!(database.count(found).await, 20);
    database.drop_database().await;
}

#[tokio::test]
async fn one_process_is_at_a_part_and_what_another_has_taken_over_is_not_written() {
    let database = with(&once()).await;
    let keys = finalized(&database, &database.ledger(once()), 3).await;
    let objects = Arc::new(MemorySink::default());
    keys.iter().for_each(|key| objects.put(original(key)));
    let slow = Arc::new(audit(&database, once(), |config| config.lease = Duration::from_millis(1)));
    let quick = audit(&database, once(), |_| {});
    // The first one's looks hang until its lease is over and the second has done the work.
    objects.set_mood(Mood::Hanging);
    let (first, sink) = (Arc::clone(&slow), Arc::clone(&objects));
    let first = tokio::spawn(async move {
        loop {
            let round = first.round(ORIGINALS, &*sink, Duration::from_secs(60)).await.unwrap();
            if sink.looks().len() > 1 {
                return round.tally;
            }
        }
    });
    let began = Instant::now();
    while objects.looks().is_empty() {
        assert!(began.elapsed() < Duration::from_secs(60), "the first one looks");
        tokio::task::yield_now().await;
    }
    let helper = MemorySink::default();
    keys.iter().for_each(|key| helper.put(original(key)));
    assert_eq!(rounds(&quick, ORIGINALS, &helper, 3).await.resurrected, 3);
    objects.set_mood(Mood::Well);
    drop(objects.look(&[]).await);
    first.await.unwrap();
    let looked = "select sum(looked)::bigint from tombstream.audit_pass";
    assert_eq!(database.count(looked).await, 3);
    assert_eq!(database.count(AGAIN).await, 3);
    database.drop_database().await;
}

#[tokio::test]
async fn a_store_that_is_down_keeps_its_pass_and_no_other() {
    let database = with(&once()).await;
    let keys = finalized(&database, &database.ledger(once()), 20).await;
    let (objects, index) = (MemorySink::default(), MemorySink::default());
    keys.iter().for_each(|key| objects.put(original(key)));
    let audit = audit(&database, once(), |_| {});
    for mood in [Mood::Unavailable, Mood::Denied, Mood::Throttled(None)] {
        objects.set_mood(mood.clone());
        let began = Instant::now();
        let failed = loop {
            assert!(began.elapsed() < Duration::from_secs(60), "{mood:?} is said");
            if let Err(failed) = audit.round(ORIGINALS, &objects, PATIENCE).await {
                break failed;
            }
        };
        assert!(matches!(failed, AuditError::Store { .. }), "{failed:?}");
    }
    let stopped = "select count(*) from tombstream.audit_pass where store = 'originals' \
                   and looked = 0 and failure is not null and lease_until is null";
    assert_eq!(database.count(stopped).await, 1);
    assert_eq!(database.count("select count(*) from tombstream.audit_again").await, 0);
    assert_eq!(rounds(&audit, SEARCH, &index, 20).await.looked, 20);
    objects.set_mood(Mood::Well);
    assert_eq!(rounds(&audit, ORIGINALS, &objects, 20).await.resurrected, 20);
    database.drop_database().await;
}

/// A store in which one look can't tell, for a while, and one index is not there.
struct Unclear {
    sink: Arc<MemorySink>,
    unclear: Address,
    poison: Address,
    is_well: std::sync::atomic::AtomicBool,
}

impl Sink for Unclear {
    async fn destroy(&self, _: &[Target]) -> Result<Vec<tombstream_model::Outcome>, SinkError> {
        unreachable!("an audit destroys nothing")
    }

    async fn look(&self, batch: &[Target]) -> Result<Vec<Presence>, SinkError> {
        let found = self.sink.look(batch).await?;
        if self.is_well.load(std::sync::atomic::Ordering::Relaxed) {
            return Ok(found);
        }
        if batch.iter().any(|target| target.address == self.poison) {
            return Err(SinkError::Protocol("an answer that nobody understands".to_owned()));
        }
        let unclear = |target: &Target| target.address == self.unclear;
        let seen = batch.iter().zip(found);
        Ok(seen.map(|(target, it)| if unclear(target) { Presence::Unknown } else { it }).collect())
    }

    fn batch_max(&self) -> usize {
        self.sink.batch_max()
    }
}

#[tokio::test]
async fn what_can_not_be_looked_at_is_not_gone() {
    let database = with(&once()).await;
    let keys = finalized(&database, &database.ledger(once()), 20).await;
    let sink = MemorySink::shared(1_000);
    keys.iter().for_each(|key| sink.put(original(key)));
    let unclear = Unclear {
        sink: Arc::clone(&sink),
        unclear: original(&keys[4]),
        poison: original(&keys[11]),
        is_well: false.into(),
    };
    let audit = audit(&database, once(), |_| {});
    let seen = rounds(&audit, ORIGINALS, &unclear, 20).await;
    assert_eq!(seen.resurrected, 18, "two keys delay only themselves: {seen:?}");
    let open = "select count(*) from tombstream.audit_again";
    assert_eq!(database.count(open).await, 2);
    // It is looked at again, and after some time people are told.
    let told = "select count(*) from tombstream.audit_again where unknown_at is not null";
    let began = Instant::now();
    while database.count(told).await < 2 {
        assert!(began.elapsed() < Duration::from_secs(60), "people are told");
        let round = audit.round(ORIGINALS, &unclear, PATIENCE).await.unwrap();
        assert_eq!(round.tally.resurrected, 0);
    }
    let unknown = "select unknown from tombstream.audit_pass where store = 'originals'";
    assert_eq!(database.count(unknown).await, 2, "once each");
    unclear.is_well.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(rounds(&audit, ORIGINALS, &unclear, 2).await.resurrected, 2);
    assert_eq!(database.count(open).await, 0);
    assert_eq!(database.count(AGAIN).await, 20);
    database.drop_database().await;
}

#[tokio::test]
async fn an_audit_by_hand_looks_at_all_of_a_span_and_leaves_the_passes() {
    let database = with(&once()).await;
    let keys = finalized(&database, &database.ledger(once()), 20).await;
    let objects = MemorySink::default();
    keys[..4].iter().for_each(|key| objects.put(original(key)));
    // Of these a person has said that they need no proof: nobody ever showed that they are gone.
    let waived = database.insert(2, true).await;
    let ledger = database.ledger(once());
    let claims = ledger.claim(DOCUMENTS, &candidates(&waived)).await.unwrap();
    ledger.finalize(DOCUMENTS, &all(claims, Verdict::Waived)).await.unwrap();
    waived.iter().for_each(|key| objects.put(original(key)));
    // Part of it is in the archive.
    let month = "select tombstream.archive_closed('0', 8)";
    database.pool.execute(month).await.unwrap();
    let audit = audit(&database, once(), |_| {});
    let span = AuditSpan { since: None, lag: Duration::ZERO };
    let hand = || audit.once("documents", ORIGINALS, &objects, (PATIENCE, span), |_| {});
    let first = AuditTally { looked: 20, resurrected: 4, ..AuditTally::default() };
    assert_eq!(hand().await.unwrap(), first);
    let second = AuditTally { looked: 20, known: 4, ..AuditTally::default() };
    assert_eq!(hand().await.unwrap(), second, "it is being destroyed already");
    assert_eq!(database.count("select count(*) from tombstream.audit_pass").await, 0);
    let now = AuditSpan { since: Some(chrono::Utc::now() + chrono::TimeDelta::hours(1)), ..span };
    let none = audit.once("documents", ORIGINALS, &objects, (PATIENCE, now), |_| {}).await;
    assert_eq!(none.unwrap(), AuditTally::default());
    database.drop_database().await;
}
