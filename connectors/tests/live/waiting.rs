//! What a deletion waits for: the grace of each store, the breaker, the moves that the database allows; and
//! hard deletes that are deletions.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor};

use tombstream_connectors::postgres::{
    FormerStore, Sweep, SweepConfig, Waived, install_relation, note_stores, waive_store,
};
use tombstream_model::{
    AddressTemplate, BreakerLimits, Candidate, Claimed, Ending, Found, Generation, Key, Ledger,
    Lsn, OnHardDelete, Outcome, Position, Records, Relation, Settled, Source, State, StoreId,
    TargetTemplate, Template, Verdict,
};

use crate::support::{DOCUMENTS, Database, all, candidates, documents, settled};

const MONTH: Duration = Duration::from_secs(30 * 86_400);

/// Hidden in the index at once, claimed after a month.
pub(crate) fn hiding() -> Relation {
    let mut relation = Relation { grace: MONTH, hide: Some(Duration::ZERO), ..documents() };
    relation.targets[1].is_hidden_first = true;
    relation
}

fn limited(limits: BreakerLimits) -> Relation {
    Relation { breaker: Some(limits), ..documents() }
}

const NO_LIMIT: BreakerLimits = BreakerLimits {
    claims_max: None,
    window: Duration::from_secs(3600),
    share_max: None,
    rate_max: None,
};

pub(crate) async fn flag(database: &Database, keys: &[Key]) {
    let ids: Vec<&str> = keys.iter().map(|key| key.columns().next().unwrap()).collect();
    sqlx::query(
        "update documents set deleted_at = clock_timestamp() where id = any($1::text[]::uuid[])",
    )
    .bind(ids)
    .execute(&database.pool)
    .await
    .unwrap();
}

async fn restore(database: &Database, key: &Key) {
    sqlx::query("update documents set deleted_at = null where id = $1::uuid")
        .bind(key.columns().next())
        .execute(&database.pool)
        .await
        .unwrap();
}

/// The month is over: flags, first sights, and nothing else.
pub(crate) async fn a_month_later(database: &Database) {
    database.pool.execute("alter table documents disable trigger user").await.unwrap();
    for sql in [
        "update documents set deleted_at = deleted_at - interval '31 days'",
        "update tombstream.deletion set first_seen = first_seen - interval '31 days' where closed_at is null",
        "alter table documents enable trigger user",
    ] {
        database.pool.execute(sql).await.unwrap();
    }
    install_relation(&database.pool, &documents()).await.unwrap();
}

pub(crate) async fn states(database: &Database) -> Vec<String> {
    sqlx::query_scalar("select state from tombstream.deletion order by id")
        .fetch_all(&database.pool)
        .await
        .unwrap()
}

pub(crate) fn removed(keys: &[Key]) -> Vec<Candidate> {
    let mut candidates = candidates(keys);
    for candidate in &mut candidates {
        let id = candidate.key.columns().next().map(Box::from);
        candidate.found = Found::Removed;
        candidate.removed = Some(vec![id].into());
    }
    candidates
}

fn sweep(database: &Database, relation: Relation) -> Sweep {
    let config = SweepConfig {
        interval: Duration::from_millis(10),
        page_max: 3,
        after: Duration::ZERO,
        rate_max: 1_000_000,
        prepared_statements: true,
    };
    Sweep::new(database.pool.clone(), [relation].into(), config)
}

/// What the next records are, waited for a moment.
async fn swept(sweep: &mut Sweep) -> Option<Records> {
    let next = tokio::time::timeout(Duration::from_millis(300), sweep.next()).await;
    next.ok().map(|polled| polled.unwrap().records)
}

#[tokio::test]
async fn the_database_allows_what_the_model_allows() {
    let database = Database::new().await;
    let mut seen = 0;
    for claimed in [false, true] {
        for from in State::ALL {
            let is_possible = match from {
                State::Pending | State::Hidden | State::Cancelled => !claimed,
                State::Claimed | State::Finalized | State::LateRestore => claimed,
                State::Parked | State::Superseded => true,
            };
            if !is_possible {
                continue;
            }
            for to in State::ALL {
                let mut transaction = database.pool.begin().await.unwrap();
                let hidden = [from, to].contains(&State::Hidden);
                let make = format!(
                    "insert into tombstream.deletion (relation, key, state, flag, targets, lease_token, \
                         claimed_at, hidden_at) \
                     values ('r', '{{k}}', '{}', 'f', '[]', 1, {}, {})",
                    if from.is_open() {
                        from.as_str()
                    } else {
                        ["pending", "claimed"][usize::from(claimed)]
                    },
                    if claimed { "now()" } else { "null" },
                    if hidden && !claimed { "now()" } else { "null" },
                );
                transaction.execute(AssertSqlSafe(make)).await.unwrap();
                let go = |state: State, closed: bool| {
                    format!(
                        "update tombstream.deletion set state = '{}'{}{}{}",
                        state.as_str(),
                        if closed { ", closed_at = now()" } else { "" },
                        if state == State::Claimed && !claimed {
                            ", claimed_at = now()"
                        } else {
                            ""
                        },
                        if state == State::Hidden {
                            ", hidden_at = coalesce(hidden_at, now())"
                        } else {
                            ""
                        },
                    )
                };
                if !from.is_open() {
                    let through = match from {
                        State::Cancelled | State::Superseded => from,
                        _ => State::Finalized,
                    };
                    let through = if claimed && from != State::Superseded { from } else { through };
                    transaction.execute(AssertSqlSafe(go(through, true))).await.unwrap();
                }
                if from == to && from.is_open() {
                    continue; // It stays where it is.
                }
                let close = !to.is_open() && from.is_open();
                let moved = transaction.execute(AssertSqlSafe(go(to, close))).await;
                let allowed = from.may_become(to, claimed);
                let said = moved.as_ref().err().map(ToString::to_string);
                assert_eq!(
                    moved.is_ok(),
                    allowed,
                    "{from:?} to {to:?}, claimed: {claimed}: {said:?}"
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 60, "{seen}");
    let born = database
        .pool
        .execute("insert into tombstream.deletion (relation, key, state, closed_at) values ('r', '{k}', 'cancelled', now())")
        .await;
    assert!(born.is_err(), "a deletion begins open");
    database.drop_database().await;
}

#[tokio::test]
async fn a_claim_can_not_be_unmade() {
    let database = Database::with_documents(true).await;
    let keys = database.insert(1, true).await;
    let claims = database.ledger(documents()).claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    assert_eq!(claims.len(), 1);
    for sql in [
        "update tombstream.deletion set claimed_at = null",
        "update tombstream.deletion set claimed_at = now() + interval '1 s'",
        "update tombstream.deletion set flag = 'another'",
        "update tombstream.deletion set key = '{other}'",
        "update tombstream.deletion set first_seen = now() + interval '1 day'",
    ] {
        assert!(database.pool.execute(sql).await.is_err(), "{sql}");
    }
    database.drop_database().await;
}

#[tokio::test]
async fn recoverable_copies_are_hidden_first_and_the_rest_is_claimed_a_month_later() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(hiding());
    let keys = database.insert(2, false).await;
    flag(&database, &keys).await;
    let hides = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    assert_eq!(hides.len(), 2);
    for hide in &hides {
        assert!(hide.is_hide);
        let stores: Vec<u16> = hide.targets.iter().map(|it| it.target.store.0).collect();
        assert_eq!(stores, [1], "nothing but the index");
    }
    assert_eq!(states(&database).await, ["hidden", "hidden"]);
    // Again: it is hidden already, and its lease is not another's.
    assert!(ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().is_empty());
    let done = all(hides, Verdict::Deleted);
    assert!(done.iter().all(|settled| !settled.is_confirmed()), "a hide is never finalized");
    ledger.owe(&done).await.unwrap();
    let open = "select count(*) from tombstream.deletion where lease_until is not null or due_at is not null";
    assert_eq!(database.count(open).await, 0, "done");
    assert_eq!(database.count("select count(*) from documents").await, 2);

    assert!(ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().is_empty(), "not yet");
    a_month_later(&database).await;
    let claims = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    assert_eq!(claims.len(), 2);
    for claimed in &claims {
        assert!(!claimed.is_hide);
        assert_eq!(
            claimed.targets.len(),
            2,
            "the index is asked again: it may have been filled since"
        );
        let hidden: Vec<bool> = claimed.targets.iter().map(|it| it.was_hidden).collect();
        assert_eq!(hidden, [false, true], "its absence is no evidence of a wrong template");
    }
    let endings = ledger.finalize(DOCUMENTS, &all(claims, Verdict::Deleted)).await.unwrap();
    assert_eq!(endings, [Ending::Finalized, Ending::Finalized]);
    database.drop_database().await;
}

#[tokio::test]
async fn a_hide_that_owes_is_taken_over_and_one_that_is_done_is_not() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(hiding());
    let keys = database.insert(3, false).await;
    flag(&database, &keys).await;
    let mut hides = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    let (died, owing, done) = (hides.remove(0), hides.remove(0), hides.remove(0));
    let (died, owing, done_id) = (died.id, owing, done.id);
    let owing_id = owing.id;
    ledger.owe(&[settled(owing, Verdict::Busy), settled(done, Verdict::Absent)]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    sqlx::query(
        "update tombstream.deletion set lease_until = now() - interval '1 s' where id = $1",
    )
    .bind(died.0)
    .execute(&database.pool)
    .await
    .unwrap();
    let mut sweep = sweep(&database, hiding());
    let mut open = Vec::new();
    while let Some(records) = swept(&mut sweep).await {
        if let Records::Open(ids) = records {
            open = ids;
            break;
        }
    }
    assert_eq!(open, [died, owing_id]);
    let taken = ledger.resume(&[died, owing_id, done_id]).await.unwrap();
    assert!(taken.iter().all(|hide| hide.is_hide && !hide.first_attempt));
    let mut ids: Vec<_> = taken.iter().map(|hide| hide.id).collect();
    ids.sort();
    assert_eq!(ids, [died, owing_id]);
    database.drop_database().await;
}

#[tokio::test]
async fn a_restore_of_a_hidden_row_succeeds_and_asks_for_its_copies_when_the_hide_has_ended() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(hiding());
    let keys = database.insert(1, false).await;
    flag(&database, &keys).await;
    let hide = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().remove(0);
    restore(&database, &keys[0]).await;
    assert_eq!(states(&database).await, ["cancelled"]);
    let ready = "select count(*) from tombstream.rehydrate where ready_at <= clock_timestamp()";
    assert_eq!(database.count("select count(*) from tombstream.rehydrate").await, 1);
    assert_eq!(database.count(ready).await, 0, "the hide is under way");
    // A takeover's token is another: its end says nothing of this one.
    let mut other = hide.clone();
    other.fence.token += 1;
    ledger.owe(&[settled(other, Verdict::Deleted)]).await.unwrap();
    assert_eq!(database.count(ready).await, 0);
    ledger.owe(&[settled(hide, Verdict::Deleted)]).await.unwrap();
    assert_eq!(database.count(ready).await, 1);
    assert_eq!(states(&database).await, ["cancelled"], "a closed deletion never changes");
    let targets: String = sqlx::query_scalar("select targets::text from tombstream.rehydrate")
        .fetch_one(&database.pool)
        .await
        .unwrap();
    assert!(targets.contains("\"search\"") && !targets.contains("\"originals\""), "{targets}");
    // A pending one was never hidden: nothing is asked for.
    let never = database.insert(1, false).await;
    flag(&database, &never).await;
    restore(&database, &never[0]).await;
    assert_eq!(database.count("select count(*) from tombstream.rehydrate").await, 1);
    database.drop_database().await;
}

#[tokio::test]
async fn a_hidden_row_that_is_restored_where_no_guard_is_asks_for_its_copies_too() {
    let database = Database::with_documents(false).await;
    let ledger = database.ledger(hiding());
    let keys = database.insert(2, true).await;
    let hides = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    restore(&database, &keys[0]).await;
    restore(&database, &keys[1]).await;
    // One is noticed by its takeover, the other by the sweep for what waits without a flagged row.
    let first = hides.iter().find(|hide| hide.key == keys[0]).unwrap().id;
    database.pool.execute("update tombstream.deletion set lease_until = null, due_at = now() where closed_at is null").await.unwrap();
    assert!(ledger.resume(&[first]).await.unwrap().is_empty());
    let mut orphans = candidates(&keys[1..]);
    orphans[0].found = Found::Removed;
    ledger.claim(DOCUMENTS, &orphans).await.unwrap();
    assert_eq!(states(&database).await, ["cancelled", "cancelled"]);
    assert_eq!(database.count("select count(*) from tombstream.rehydrate").await, 2);
    assert_eq!(database.count("select count(*) from documents where deleted_at is null").await, 2);
    database.drop_database().await;
}

#[tokio::test]
async fn rows_in_their_grace_have_no_ledger_row_and_are_hidden_by_the_sweep() {
    let database = Database::with_documents(true).await;
    let keys = database.insert(7, false).await;
    flag(&database, &keys).await;
    let waiting = Relation { grace: MONTH, ..documents() };
    let claims = database.ledger(waiting).claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    assert!(claims.is_empty());
    assert_eq!(database.count("select count(*) from tombstream.deletion").await, 0);

    let ledger = database.ledger(hiding());
    let mut sweep = sweep(&database, hiding());
    let mut hidden = 0;
    while let Some(records) = swept(&mut sweep).await {
        let Records::Candidates(candidates) = records else { panic!("{records:?}") };
        hidden += ledger.claim(DOCUMENTS, &candidates).await.unwrap().len();
    }
    assert_eq!(hidden, 7);
    // One more: found though the scan begins where it ended.
    let late = database.insert(1, false).await;
    flag(&database, &late).await;
    let Some(Records::Candidates(found)) = swept(&mut sweep).await else { panic!("nothing") };
    assert_eq!(found.iter().map(|it| &it.key).collect::<Vec<_>>(), [&late[0]]);
    database.drop_database().await;
}

#[tokio::test]
async fn a_row_that_is_inserted_with_an_old_flag_skips_no_grace() {
    let database = Database::with_documents(true).await;
    let id: String = sqlx::query_scalar(
        "insert into documents values (gen_random_uuid(), 'n', now(), now() - interval '1 year') \
         returning id::text",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    let keys = [Key::from_postgres([id])];
    let ledger = database.ledger(Relation { grace: MONTH, ..documents() });
    assert!(ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().is_empty());
    assert_eq!(states(&database).await, ["pending"]);
    a_month_later(&database).await;
    assert_eq!(ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().len(), 1);
    database.drop_database().await;
}

#[tokio::test]
async fn a_tripped_breaker_claims_no_more_and_keeps_what_came() {
    let database = Database::with_documents(true).await;
    let relation = limited(BreakerLimits { claims_max: Some(10), ..NO_LIMIT });
    let ledger = database.ledger(relation.clone());
    let keys = database.insert(12, true).await;
    let of = |range: std::ops::Range<usize>| candidates(&keys[range]);
    assert_eq!(ledger.claim(DOCUMENTS, &of(0..6)).await.unwrap().len(), 6);
    assert_eq!(ledger.claim(DOCUMENTS, &of(6..12)).await.unwrap().len(), 0, "all or none");
    let kept = "select count(*) from tombstream.deletion where state = 'pending' and kept_back_at is not null";
    assert_eq!(database.count(kept).await, 6);
    assert_eq!(
        database
            .count("select count(*) from tombstream.breaker where tripped_at is not null")
            .await,
        1
    );
    // Tripped it stays, also for what would have fitted.
    let more = database.insert(1, true).await;
    assert_eq!(ledger.claim(DOCUMENTS, &candidates(&more)).await.unwrap().len(), 0);
    assert_eq!(database.count(kept).await, 7);
    // The sweep does not bring it again and again.
    assert!(swept(&mut sweep(&database, relation)).await.is_none());
    // Approved: exactly those, and they spend nothing.
    for sql in [
        "update tombstream.deletion set approved_at = now() where kept_back_at is not null",
        "update tombstream.breaker set tripped_at = null, reason = null",
    ] {
        database.pool.execute(sql).await.unwrap();
    }
    assert_eq!(ledger.claim(DOCUMENTS, &of(6..12)).await.unwrap().len(), 6);
    let late = database.insert(5, true).await;
    assert_eq!(
        ledger.claim(DOCUMENTS, &candidates(&late)).await.unwrap().len(),
        0,
        "the window is not over"
    );
    // What is restored is free.
    restore(&database, &late[0]).await;
    assert_eq!(database.count("select count(*) from documents where deleted_at is null").await, 1);
    database.drop_database().await;
}

/// Parked for its address and kept back by the breaker, in either order: once the address is safe it waits for who
/// approves alone.
#[tokio::test]
async fn what_is_mended_while_the_breaker_keeps_it_back_goes_on_when_it_is_approved() {
    let database = Database::with_documents(true).await;
    let mut relation = documents();
    relation.targets.truncate(1);
    let AddressTemplate::Object { key, .. } = &mut relation.targets[0].address else {
        panic!("an object")
    };
    *key = Template::parse("{name}/{id}").unwrap();
    let free = database.ledger(relation.clone());
    let limits = BreakerLimits { claims_max: Some(0), ..NO_LIMIT };
    let spent = database.ledger(Relation { breaker: Some(limits), ..relation });
    let keys = candidates(&database.insert(1, true).await);
    let named = async |name: &str| {
        let sql = format!("update documents set name = '{name}'");
        database.pool.execute(AssertSqlSafe(sql)).await.unwrap();
    };
    let is_kept = "select count(*) from tombstream.deletion where state = 'pending' and reason is null \
        and kept_back_at is not null and approved_at is null";
    named("").await;
    assert!(free.claim(DOCUMENTS, &keys).await.unwrap().is_empty());
    assert_eq!(states(&database).await, ["parked"]);
    for _ in 0..2 {
        named("safe").await;
        assert!(spent.claim(DOCUMENTS, &keys).await.unwrap().is_empty());
        assert_eq!(database.count(is_kept).await, 1);
        named("").await;
        assert!(spent.claim(DOCUMENTS, &keys).await.unwrap().is_empty());
        assert_eq!(states(&database).await, ["parked"]);
    }
    named("safe").await;
    assert!(free.claim(DOCUMENTS, &keys).await.unwrap().is_empty(), "it waits for a person");
    assert_eq!(database.count(is_kept).await, 1);
    let approve =
        "update tombstream.deletion set approved_at = now() where kept_back_at is not null";
    database.pool.execute(approve).await.unwrap();
    assert_eq!(spent.claim(DOCUMENTS, &keys).await.unwrap().len(), 1);
    database.drop_database().await;
}

#[tokio::test]
async fn two_workers_do_not_overshoot_the_breaker() {
    let database = Database::with_documents(true).await;
    let relation = limited(BreakerLimits { claims_max: Some(300), ..NO_LIMIT });
    let keys = database.insert(2_000, true).await;
    let work = keys.chunks(40).enumerate().map(|(n, keys)| {
        let ledger =
            database.ledger_with(relation.clone(), |config| config.owner = format!("w{n}"));
        let candidates = candidates(keys);
        async move { ledger.claim(DOCUMENTS, &candidates).await.unwrap().len() }
    });
    let claimed: usize = futures::future::join_all(work).await.into_iter().sum();
    // Fewer than there are connections: all that ask at once would fit otherwise.
    assert_eq!(claimed, 280, "seven batches of 40 fit into 300");
    assert_eq!(
        database.count("select count(*) from tombstream.deletion where state = 'claimed'").await,
        280
    );
    database.drop_database().await;
}

/// What another has spent and not committed counts: it is waited for.
#[tokio::test]
async fn a_claim_waits_for_what_another_has_spent_and_not_committed() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(limited(BreakerLimits { claims_max: Some(60), ..NO_LIMIT }));
    let keys = database.insert(41, true).await;
    // The breaker's row is there, so that nobody waits for its making.
    assert_eq!(ledger.claim(DOCUMENTS, &candidates(&keys[40..])).await.unwrap().len(), 1);
    let mut other = database.pool.begin().await.unwrap();
    let spend = "select tombstream.spend('documents', 40, 60, '1 hour', null, null, '10 s')";
    let refused: Option<String> = sqlx::query_scalar(spend).fetch_one(&mut *other).await.unwrap();
    assert_eq!(refused, None);

    let batch = candidates(&keys[..40]);
    let commit = async {
        let waiting = "select count(*) from pg_stat_activity \
                       where datname = current_database() and wait_event_type = 'Lock'";
        while database.count(waiting).await == 0 {
            tokio::task::yield_now().await;
        }
        other.commit().await.unwrap();
    };
    let (claimed, ()) = tokio::join!(ledger.claim(DOCUMENTS, &batch), commit);

    assert!(claimed.unwrap().is_empty(), "81 do not fit into 60");
    database.drop_database().await;
}

#[tokio::test]
async fn a_share_of_the_rows_and_a_rate_trip_the_breaker_too() {
    for (limits, granted) in [
        // 2% of 10,000 rows.
        (BreakerLimits { share_max: Some(0.02), ..NO_LIMIT }, 200),
        // 12 a second, over ten seconds.
        (BreakerLimits { rate_max: Some(12), ..NO_LIMIT }, 120),
    ] {
        let database = Database::with_documents(true).await;
        let keys = database.insert(300, true).await;
        database.insert(9_700, false).await;
        database.pool.execute("analyze documents").await.unwrap();
        let ledger = database.ledger(limited(limits.clone()));
        let mut claimed = 0;
        for keys in keys.chunks(10) {
            claimed += ledger.claim(DOCUMENTS, &candidates(keys)).await.unwrap().len();
        }
        assert_eq!(claimed, granted, "{limits:?}");
        let reason: String = sqlx::query_scalar("select reason from tombstream.breaker")
            .fetch_one(&database.pool)
            .await
            .unwrap();
        assert!(reason.contains("_max"), "{reason}");
        database.drop_database().await;
    }
}

fn destroying() -> Relation {
    Relation { on_hard_delete: OnHardDelete::Destroy, ..documents() }
}

async fn with_destroying() -> Database {
    let database = Database::with_documents(false).await;
    install_relation(&database.pool, &destroying()).await.unwrap();
    database
}

pub(crate) async fn delete(database: &Database, keys: &[Key]) {
    for key in keys {
        sqlx::query("delete from documents where id = $1::uuid")
            .bind(key.columns().next())
            .execute(&database.pool)
            .await
            .unwrap();
    }
}

pub(crate) async fn insert(database: &Database, key: &Key) -> Result<(), sqlx::Error> {
    sqlx::query("insert into documents values ($1::uuid, 'again', now(), null)")
        .bind(key.columns().next())
        .execute(&database.pool)
        .await
        .map(|_| ())
}

#[tokio::test]
async fn a_hard_delete_is_a_deletion_where_it_is_said_to_be() {
    let database = with_destroying().await;
    let ledger = database.ledger(destroying());
    let keys = database.insert(3, false).await;
    delete(&database, &keys[..2]).await;
    let mut events = removed(&keys);
    events[1].removed = None; // Brought by the sweep: nothing tells of it.
    let claims = ledger.claim(DOCUMENTS, &events).await.unwrap();
    assert_eq!(claims.len(), 1, "the first; the third lives: {claims:?}");
    assert_eq!(claims[0].key, keys[0]);
    assert_eq!(claims[0].targets.len(), 2);
    // Again, and it is claimed already.
    assert!(ledger.claim(DOCUMENTS, &events).await.unwrap().is_empty());
    let endings = ledger.finalize(DOCUMENTS, &all(claims, Verdict::Deleted)).await.unwrap();
    assert_eq!(endings, [Ending::FinalizedRowGone]);
    // A replay of the event is of a life that is over.
    assert!(ledger.claim(DOCUMENTS, &events[..1]).await.unwrap().is_empty());
    assert_eq!(database.count("select count(*) from tombstream.receipt where row_gone").await, 1);
    assert_eq!(database.count("select count(*) from documents").await, 1);
    database.drop_database().await;
}

#[tokio::test]
async fn our_own_removal_is_no_hard_delete() {
    let database = with_destroying().await;
    let ledger = database.ledger(destroying());
    let keys = database.insert(1, true).await;
    let claims = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    ledger.finalize(DOCUMENTS, &all(claims, Verdict::Deleted)).await.unwrap();
    assert!(ledger.claim(DOCUMENTS, &removed(&keys)).await.unwrap().is_empty());
    assert_eq!(states(&database).await, ["finalized"]);
    database.drop_database().await;
}

#[tokio::test]
async fn no_row_comes_to_life_under_a_key_whose_copies_are_being_destroyed() {
    for level in ["read committed", "repeatable read", "serializable"] {
        let database = with_destroying().await;
        let ledger = database.ledger(destroying());
        let keys = database.insert(2, false).await;
        delete(&database, &keys).await;
        // Its snapshot is from before the claim.
        let mut late = database.pool.begin().await.unwrap();
        late.execute(AssertSqlSafe(format!("set transaction isolation level {level}")))
            .await
            .unwrap();
        late.execute("select count(*) from documents").await.unwrap();
        let claims = ledger.claim(DOCUMENTS, &removed(&keys[..1])).await.unwrap();
        assert_eq!(claims.len(), 1);
        let again = sqlx::query("insert into documents values ($1::uuid, 'again', now(), null)")
            .bind(keys[0].columns().next())
            .execute(&mut *late)
            .await
            .unwrap_err();
        let code = again.as_database_error().unwrap().code().unwrap().into_owned();
        let expected = if level == "read committed" { "TS001" } else { "40001" };
        assert_eq!(code, expected, "{level}: {again}");
        late.rollback().await.unwrap();
        // Under a key that moves there, too.
        let other = database.insert(1, false).await;
        let moved = sqlx::query("update documents set id = $1::uuid where id = $2::uuid")
            .bind(keys[0].columns().next())
            .bind(other[0].columns().next())
            .execute(&database.pool)
            .await;
        assert!(moved.is_err());
        // The other way round: an insert that is not committed keeps the claim away.
        let mut early = database.pool.begin().await.unwrap();
        sqlx::query("insert into documents values ($1::uuid, 'again', now(), null)")
            .bind(keys[1].columns().next())
            .execute(&mut *early)
            .await
            .unwrap();
        assert!(ledger.claim(DOCUMENTS, &removed(&keys[1..])).await.unwrap().is_empty());
        early.commit().await.unwrap();
        assert!(ledger.claim(DOCUMENTS, &removed(&keys[1..])).await.unwrap().is_empty());
        // Finalized, the key is free again.
        ledger.finalize(DOCUMENTS, &all(claims, Verdict::Deleted)).await.unwrap();
        insert(&database, &keys[0]).await.unwrap();
        database.drop_database().await;
    }
}

#[tokio::test]
async fn a_hard_delete_that_waits_is_brought_by_the_sweep_and_ends_when_the_key_is_used_again() {
    let database = with_destroying().await;
    let patient = Relation { grace: MONTH, ..destroying() };
    let ledger = database.ledger(patient.clone());
    let keys = database.insert(2, false).await;
    delete(&database, &keys).await;
    assert!(ledger.claim(DOCUMENTS, &removed(&keys)).await.unwrap().is_empty());
    assert_eq!(states(&database).await, ["pending", "pending"]);
    insert(&database, &keys[0]).await.unwrap();
    let mut seen = states(&database).await;
    seen.sort();
    assert_eq!(seen, ["pending", "superseded"]);
    let mut sweep = sweep(&database, patient);
    assert!(swept(&mut sweep).await.is_none());
    let age = "update tombstream.deletion set first_seen = first_seen - interval '31 days' where closed_at is null";
    database.pool.execute(age).await.unwrap();
    let Some(Records::Candidates(found)) = swept(&mut sweep).await else { panic!("nothing") };
    assert_eq!((found.len(), found[0].found), (1, Found::Removed));
    assert_eq!(ledger.claim(DOCUMENTS, &found).await.unwrap().len(), 1);
    database.drop_database().await;
}

#[tokio::test]
async fn a_row_that_left_its_key_was_not_deleted() {
    let database = with_destroying().await;
    let ledger = database.ledger(destroying());
    let keys = database.insert(1, false).await;
    let moved = Key::from_postgres([uuid::Uuid::new_v4().to_string()]);
    let to = |from: &Key, to: &Key| {
        let (from, to) = (from.columns().next().unwrap(), to.columns().next().unwrap());
        AssertSqlSafe(format!("update documents set id = '{to}' where id = '{from}'"))
    };
    database.pool.execute(to(&keys[0], &moved)).await.unwrap();
    // Debezium tells it as a delete of the old key and an insert of the new one.
    assert!(ledger.claim(DOCUMENTS, &removed(&keys)).await.unwrap().is_empty());
    assert!(states(&database).await.is_empty());
    // Used again and deleted: that is one.
    insert(&database, &keys[0]).await.unwrap();
    delete(&database, &keys).await;
    assert_eq!(ledger.claim(DOCUMENTS, &removed(&keys)).await.unwrap().len(), 1);
    database.drop_database().await;
}

/// The columns of a removed row are what they were under REPLICA IDENTITY FULL alone.
#[tokio::test]
async fn columns_beside_the_key_are_not_taken_from_an_event_that_may_not_know_them() {
    let database = with_destroying().await;
    let mut relation = destroying();
    relation.targets.truncate(1);
    let tombstream_model::AddressTemplate::Object { key, .. } = &mut relation.targets[0].address
    else {
        panic!("an object")
    };
    *key = tombstream_model::Template::parse("{name}/{id}").unwrap();
    let ledger = database.ledger(relation);
    let keys = database.insert(2, false).await;
    delete(&database, &keys).await;
    let event = |key: &Key| {
        let mut event = removed(std::slice::from_ref(key));
        event[0].removed = Some(vec![Some("n".into()), key.columns().next().map(Box::from)].into());
        event
    };
    let claims = ledger.claim(DOCUMENTS, &event(&keys[0])).await.unwrap();
    assert!(claims.is_empty(), "{claims:?}");
    assert_eq!(states(&database).await, ["parked"]);
    database.pool.execute("alter table documents replica identity full").await.unwrap();
    let claims: Vec<Claimed> = ledger.claim(DOCUMENTS, &event(&keys[1])).await.unwrap();
    assert_eq!(claims.len(), 1);
    database.drop_database().await;
}

/// A thousand deletions are open when one store is taken out of the configuration and another comes.
#[tokio::test]
async fn a_store_that_is_removed_needs_a_waiver_and_one_that_is_added_gets_its_part() {
    let database = Database::with_documents(true).await;
    let before = documents();
    let names =
        |names: &[&str]| names.iter().map(|name| Arc::from(*name)).collect::<Vec<Arc<str>>>();
    let first = names(&["originals", "search"]);
    let known = note_stores(&database.pool, std::slice::from_ref(&before), &first);
    assert!(known.await.unwrap().is_empty());
    let keys = database.insert(1_000, true).await;
    let ledger = database.ledger(before.clone());
    let mut claims = Vec::new();
    for keys in keys.chunks(500) {
        claims.extend(ledger.claim(DOCUMENTS, &candidates(keys)).await.unwrap());
    }
    let ids: Vec<_> = claims.iter().map(|claimed| claimed.id).collect();
    // The first 400 have confirmed the index and owe the originals; of 600 nothing is known.
    let mut owed = all(claims, Verdict::Busy);
    for settled in &mut owed[..400] {
        settled.outcomes[1] = Outcome::new(Verdict::Deleted, "gone");
    }
    ledger.owe(&owed).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;

    // The index is taken out, an archive comes.
    let mut after = documents();
    after.targets[1] = TargetTemplate {
        store: StoreId(1),
        address: AddressTemplate::Object {
            bucket: "archive".into(),
            key: Template::parse("{name}/{id}").unwrap(),
        },
        is_hidden_first: false,
    };
    let names = names(&["originals", "archive"]);
    let former = note_stores(&database.pool, std::slice::from_ref(&after), &names).await.unwrap();
    let expected =
        FormerStore { relation: "documents".to_owned(), store: "search".to_owned(), owed: 600 };
    assert_eq!(former, [expected]);
    let ledger =
        database.ledger_with(after.clone(), |config| config.stores[1].name = "archive".into());
    let mut taken = Vec::new();
    for ids in ids.chunks(100) {
        taken.extend(ledger.resume(ids).await.unwrap());
    }
    assert_eq!(taken.len(), 1_000);
    for claimed in &taken {
        let added = &claimed.targets[2].target;
        assert_eq!(added.store, StoreId(1), "resolved from the row");
        assert!(
            claimed.targets[1].target.store.0 > 1,
            "nobody is asked for what is not configured"
        );
    }
    // Everybody says it is gone; nobody can speak for the index.
    let settled: Vec<_> = taken
        .into_iter()
        .map(|claimed| {
            let outcome = |it: &tombstream_model::ClaimedTarget| match &it.confirmed {
                Some(confirmed) => confirmed.clone(),
                None if it.target.store.0 > 1 => Outcome::new(Verdict::Unknown, "not configured"),
                None => Outcome::new(Verdict::Deleted, "gone"),
            };
            let outcomes = claimed.targets.iter().map(outcome).collect();
            Settled { claimed: Arc::new(claimed), outcomes }
        })
        .collect();
    let (confirmed, owed): (Vec<_>, Vec<_>) = settled.into_iter().partition(Settled::is_confirmed);
    assert_eq!((confirmed.len(), owed.len()), (400, 600));
    ledger.finalize(DOCUMENTS, &confirmed).await.unwrap();
    ledger.owe(&owed).await.unwrap();
    let parked = "select count(*) from tombstream.deletion where state = 'parked' \
                  and reason like 'store search is not configured any more%'";
    assert_eq!(database.count(parked).await, 600);
    assert_eq!(database.count("select count(*) from documents").await, 600);

    let waived = waive_store(&database.pool, "documents", "search", "ann", "the cluster is gone")
        .await
        .unwrap();
    assert_eq!(waived, Waived { was_known: true, deletions: 600 });
    assert!(
        note_stores(&database.pool, std::slice::from_ref(&after), &names).await.unwrap().is_empty()
    );
    let mut again = Vec::new();
    for ids in ids.chunks(100) {
        again.extend(ledger.resume(ids).await.unwrap());
    }
    assert_eq!(again.len(), 600);
    assert!(again.iter().all(|it| it.targets.iter().all(|target| target.confirmed.is_some())));
    let done: Vec<_> = again
        .into_iter()
        .map(|claimed| {
            let outcomes = claimed.targets.iter().map(|it| it.confirmed.clone().unwrap()).collect();
            Settled { claimed: Arc::new(claimed), outcomes }
        })
        .collect();
    ledger.finalize(DOCUMENTS, &done).await.unwrap();
    assert_eq!(database.count("select count(*) from documents").await, 0);
    assert_eq!(database.count("select count(*) from tombstream.receipt").await, 1_000);
    let said = "select count(*) from tombstream.receipt where targets @> \
        '[{\"store\": \"search\", \"outcome\": {\"verdict\": \"waived\", \"said\": \"ann: the cluster is gone\"}}]'";
    assert_eq!(database.count(said).await, 600);
    database.drop_database().await;
}

/// Documents whose copies are under the name, too.
fn named() -> Relation {
    let mut relation = documents();
    let AddressTemplate::Object { key, .. } = &mut relation.targets[0].address else {
        panic!("an object")
    };
    *key = Template::parse("{name}/{id}").unwrap();
    relation
}

#[tokio::test]
async fn a_copy_that_was_left_behind_when_its_address_changed_goes_too() {
    let database = Database::with_documents(false).await;
    install_relation(&database.pool, &named()).await.unwrap();
    let keys = database.insert(2, false).await;
    for sql in [
        "update documents set name = 'first'",
        "update documents set name = 'second'",
        "update documents set name = ''",
        "update documents set uploaded_at = now()",
        "update documents set name = 'first'",
    ] {
        database.pool.execute(sql).await.unwrap();
    }
    flag(&database, &keys).await;
    let ledger = database.ledger(named());
    let claims = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    assert_eq!(claims.len(), 2);
    for claimed in &claims {
        let id = claimed.key.columns().next().unwrap();
        let mut objects: Vec<String> = claimed
            .targets
            .iter()
            .filter_map(|it| match &it.target.address {
                tombstream_model::Address::Object { key, .. } => Some(key.to_string()),
                _ => None,
            })
            .collect();
        objects.sort();
        let number = if claimed.key == keys[0] { "n1" } else { "n2" };
        let expected = [format!("first/{id}"), format!("{number}/{id}"), format!("second/{id}")];
        assert_eq!(objects, expected, "each once; the empty name never was an address");
        assert_eq!(claimed.targets.len(), 4, "the index once");
    }
    ledger.finalize(DOCUMENTS, &all(claims, Verdict::Deleted)).await.unwrap();
    assert_eq!(database.count("select count(*) from tombstream.former_address").await, 0);
    database.drop_database().await;
}

#[tokio::test]
async fn a_truncation_pauses_its_relation_once() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(documents());
    let truncated = |lsn: u64| {
        let position = Position { generation: Generation(0), lsn: Lsn(lsn), order: 0 };
        let key = Key::from_postgres([]);
        let mut candidate = candidates(&[key]).remove(0);
        (candidate.found, candidate.position) = (Found::Truncated, Some(position));
        candidate
    };
    ledger.claim(DOCUMENTS, &[truncated(7)]).await.unwrap();
    let keys = database.insert(1, true).await;
    assert!(ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().is_empty());
    let reason: String = sqlx::query_scalar("select reason from tombstream.pause")
        .fetch_one(&database.pool)
        .await
        .unwrap();
    assert_eq!(reason, "truncated");
    assert!(ledger.resume_relation(DOCUMENTS).await.unwrap().was_paused);
    // The same event, read again.
    ledger.claim(DOCUMENTS, &[truncated(7)]).await.unwrap();
    assert_eq!(ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().len(), 1);
    ledger.claim(DOCUMENTS, &[truncated(8)]).await.unwrap();
    assert_eq!(database.count("select count(*) from tombstream.pause").await, 1);
    database.drop_database().await;
}
