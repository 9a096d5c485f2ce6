//! Attacks on the ledger: keys that are used anew, rows that another hand keeps or takes, poison.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor};

use tombstream_connectors::postgres::{Sweep, SweepConfig};
use tombstream_model::{
    AddressTemplate, Candidate, Ending, FlagKind, Found, Key, KeyKind, Ledger, Outcome, Records,
    Relation, Source, Template, Verdict,
};

use super::support::{DOCUMENTS, Database, candidates, documents, settled};

const HOUR: Duration = Duration::from_secs(3600);

fn patient() -> Relation {
    Relation { grace: HOUR, ..documents() }
}

fn boolean() -> Relation {
    let mut relation = documents();
    relation.flag.kind = FlagKind::Boolean;
    relation
}

/// One copy only, at `{name}`, which may be no safe address.
fn named() -> Relation {
    let mut relation = documents();
    relation.targets.truncate(1);
    relation.targets[0].address = AddressTemplate::Object {
        bucket: "documents".into(),
        key: Template::parse("{id}/{name}").unwrap(),
    };
    relation
}

fn sweep(database: &Database, relation: Relation) -> Sweep {
    let config = SweepConfig {
        interval: Duration::from_millis(1),
        page_max: 10,
        after: Duration::ZERO,
        rate_max: 1_000_000,
        prepared_statements: true,
    };
    Sweep::new(database.pool.clone(), Arc::from([relation]), config)
}

/// The first candidates that a sweep brings, if any comes within several rounds.
async fn swept(sweep: &mut Sweep) -> Option<Vec<Candidate>> {
    let candidates = async {
        loop {
            if let Records::Candidates(page) = sweep.next().await.unwrap().records {
                return page;
            }
        }
    };
    tokio::time::timeout(Duration::from_millis(500), candidates).await.ok()
}

async fn run(database: &Database, sql: &str, key: &Key) {
    sqlx::query(AssertSqlSafe(sql.to_owned()))
        .bind(key.columns().next())
        .execute(&database.pool)
        .await
        .unwrap();
}

async fn states(database: &Database) -> Vec<String> {
    sqlx::query_scalar("select state from tombstream.deletion order by id")
        .fetch_all(&database.pool)
        .await
        .unwrap()
}

async fn claim(database: &Database, relation: Relation, keys: &[Key]) -> usize {
    database.ledger(relation).claim(DOCUMENTS, &candidates(keys)).await.unwrap().len()
}

const BACK_DATE: &str =
    "update documents set deleted_at = now() - interval '1 year' where id = $1::uuid";
const AGE: &str = "update tombstream.deletion set first_seen = now() - interval '2 hours' where closed_at is null";
const REMOVE: &str = "delete from documents where id = $1::uuid";
const AGAIN: &str = "insert into documents values ($1::uuid, 'again')";

#[tokio::test]
async fn an_earlier_life_lends_its_first_sight_to_no_later_one() {
    let database = Database::with_documents(true).await;
    let keys = database.insert(1, false).await;
    run(&database, BACK_DATE, &keys[0]).await;
    database.pool.execute(AGE).await.unwrap();
    run(&database, REMOVE, &keys[0]).await;
    run(&database, AGAIN, &keys[0]).await;
    run(&database, BACK_DATE, &keys[0]).await;
    assert_eq!(claim(&database, patient(), &keys).await, 0, "grace runs anew for a new life");
    assert_eq!(states(&database).await, ["superseded", "pending"]);
    database.drop_database().await;
}

#[tokio::test]
async fn a_changed_key_takes_its_first_sight_along() {
    let database = Database::with_documents(true).await;
    let keys = database.insert(1, false).await;
    run(&database, BACK_DATE, &keys[0]).await;
    let moved = Key::from_postgres([uuid::Uuid::new_v4().to_string()]);
    let rename = format!("update documents set id = '{}'", moved.columns().next().unwrap());
    database.pool.execute(AssertSqlSafe(rename)).await.unwrap();
    assert_eq!(claim(&database, patient(), std::slice::from_ref(&moved)).await, 0);
    assert_eq!(states(&database).await, ["cancelled", "pending"]);
    database.pool.execute(AGE).await.unwrap();
    assert_eq!(claim(&database, patient(), &[moved]).await, 1);
    database.drop_database().await;
}

#[tokio::test]
async fn a_back_dated_flag_skips_no_grace_where_no_guard_vouches_for_it() {
    let database = Database::with_documents(false).await;
    let keys = database.insert(1, false).await;
    run(&database, BACK_DATE, &keys[0]).await;
    assert_eq!(claim(&database, patient(), &keys).await, 0);
    assert_eq!(states(&database).await, ["pending"], "first sight is written down");
    database.pool.execute(AGE).await.unwrap();
    assert_eq!(claim(&database, patient(), &keys).await, 1);
    database.drop_database().await;
}

#[tokio::test]
async fn the_newer_life_of_a_superseded_deletion_is_seen_now() {
    let database = Database::with_documents(true).await;
    let keys = database.insert(1, true).await;
    let ledger = database.ledger(documents());
    let claimed = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().remove(0);
    run(&database, REMOVE, &keys[0]).await;
    run(&database, AGAIN, &keys[0]).await;
    run(&database, BACK_DATE, &keys[0]).await;
    let endings = ledger.finalize(DOCUMENTS, &[settled(claimed, Verdict::Deleted)]).await.unwrap();
    assert_eq!(endings, [Ending::Superseded]);
    assert_eq!(claim(&database, patient(), &keys).await, 0, "the new life has its own grace");
    assert_eq!(states(&database).await, ["superseded", "pending"]);
    let evidence = "select count(*) from tombstream.deletion where state = 'superseded' \
                    and targets -> 1 -> 'outcome' ->> 'verdict' = 'deleted'";
    assert_eq!(database.count(evidence).await, 1, "what was confirmed stays written down");
    database.drop_database().await;
}

#[tokio::test]
async fn a_boolean_key_used_anew_is_not_removed_for_its_earlier_life() {
    let database = Database::new().await;
    let table = "create table documents (id uuid primary key, deleted_at boolean)";
    database.pool.execute(table).await.unwrap();
    tombstream_connectors::postgres::install_relation(&database.pool, &boolean()).await.unwrap();
    let keys = [Key::from_postgres([uuid::Uuid::new_v4().to_string()])];
    let set = "update documents set deleted_at = true where id = $1::uuid";
    run(&database, "insert into documents values ($1::uuid)", &keys[0]).await;
    run(&database, set, &keys[0]).await;
    let ledger = database.ledger(boolean());
    let claimed = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().remove(0);
    run(&database, REMOVE, &keys[0]).await;
    run(&database, "insert into documents values ($1::uuid)", &keys[0]).await;
    run(&database, set, &keys[0]).await;
    let endings = ledger.finalize(DOCUMENTS, &[settled(claimed, Verdict::Deleted)]).await.unwrap();
    assert_eq!(endings, [Ending::Fenced]);
    assert_eq!(database.count("select count(*) from documents").await, 1);
    assert_eq!(states(&database).await, ["superseded", "pending"]);
    database.drop_database().await;
}

#[tokio::test]
async fn a_key_used_anew_and_alive_stays_and_keeps_the_evidence() {
    let database = Database::with_documents(true).await;
    let keys = database.insert(1, true).await;
    let ledger = database.ledger(documents());
    let claimed = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().remove(0);
    run(&database, REMOVE, &keys[0]).await;
    run(&database, AGAIN, &keys[0]).await;
    let endings = ledger.finalize(DOCUMENTS, &[settled(claimed, Verdict::Deleted)]).await.unwrap();
    assert_eq!(endings, [Ending::LateRestore]);
    assert_eq!(database.count("select count(*) from documents").await, 1);
    let evidence = "select count(*) from tombstream.deletion where state = 'late_restore' \
                    and targets -> 0 -> 'outcome' ->> 'verdict' = 'deleted'";
    assert_eq!(database.count(evidence).await, 1);
    // Its next flag is a deletion of its own.
    run(&database, "update documents set deleted_at = now() where id = $1::uuid", &keys[0]).await;
    assert_eq!(claim(&database, documents(), &keys).await, 1);
    database.drop_database().await;
}

#[tokio::test]
async fn what_was_parked_for_its_address_keeps_no_later_life_from_its_claim() {
    for guard in [false, true] {
        let database = Database::with_documents(guard).await;
        let keys = database.insert(1, true).await;
        run(&database, "update documents set name = '..' where id = $1::uuid", &keys[0]).await;
        assert_eq!(claim(&database, named(), &keys).await, 0);
        assert_eq!(states(&database).await, ["parked"]);
        assert_eq!(swept(&mut sweep(&database, named())).await, None, "parked is not brought");
        run(&database, REMOVE, &keys[0]).await;
        run(&database, AGAIN, &keys[0]).await;
        run(&database, "update documents set deleted_at = now() where id = $1::uuid", &keys[0])
            .await;
        let found = swept(&mut sweep(&database, named())).await.expect("the sweep brings it");
        let ledger = database.ledger(named());
        assert_eq!(ledger.claim(DOCUMENTS, &found).await.unwrap().len(), 1, "guard: {guard}");
        assert_eq!(states(&database).await, ["superseded", "claimed"]);
        database.drop_database().await;
    }
}

#[tokio::test]
async fn what_a_store_refused_keeps_no_later_life_from_its_claim_or_its_restore() {
    for guard in [false, true] {
        let database = Database::with_documents(guard).await;
        let keys = database.insert(1, true).await;
        let ledger = database.ledger(documents());
        let claimed = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().remove(0);
        ledger.owe(&[settled(claimed, Verdict::Refused)]).await.unwrap();
        assert_eq!(states(&database).await, ["parked"]);
        run(&database, REMOVE, &keys[0]).await;
        // Inserted with its flag set, which fires no trigger on update.
        let flagged = "insert into documents values ($1::uuid, 'again', null, now())";
        run(&database, flagged, &keys[0]).await;
        run(&database, "update documents set deleted_at = null where id = $1::uuid", &keys[0])
            .await;
        run(&database, "update documents set deleted_at = now() where id = $1::uuid", &keys[0])
            .await;
        let found = swept(&mut sweep(&database, documents())).await.expect("the sweep brings it");
        assert_eq!(ledger.claim(DOCUMENTS, &found).await.unwrap().len(), 1, "guard: {guard}");
        assert_eq!(states(&database).await, ["superseded", "claimed"]);
        database.drop_database().await;
    }
}

#[tokio::test]
async fn a_parked_row_of_the_same_life_is_still_not_restorable_after_its_claim() {
    let database = Database::with_documents(true).await;
    let keys = database.insert(1, true).await;
    let ledger = database.ledger(documents());
    let claimed = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().remove(0);
    ledger.owe(&[settled(claimed, Verdict::Refused)]).await.unwrap();
    let error = database.pool.execute("update documents set deleted_at = null").await.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().code().unwrap(), "TS001");
    database.drop_database().await;
}

#[tokio::test]
async fn a_parked_row_whose_address_was_mended_is_claimed() {
    let database = Database::with_documents(true).await;
    let keys = database.insert(1, true).await;
    run(&database, "update documents set name = '..' where id = $1::uuid", &keys[0]).await;
    assert_eq!(claim(&database, named(), &keys).await, 0);
    run(&database, "update documents set name = 'fine' where id = $1::uuid", &keys[0]).await;
    assert_eq!(claim(&database, named(), &keys).await, 1, "the update's event brings it");
    database.drop_database().await;
}

#[tokio::test]
async fn a_pending_deletion_whose_row_another_hand_removed_is_closed() {
    let database = Database::with_documents(true).await;
    let keys = database.insert(1, false).await;
    run(&database, BACK_DATE, &keys[0]).await;
    run(&database, REMOVE, &keys[0]).await;
    let found = swept(&mut sweep(&database, patient())).await.expect("the sweep finds it");
    assert_eq!(found[0].found, Found::Removed);
    assert!(database.ledger(patient()).claim(DOCUMENTS, &found).await.unwrap().is_empty());
    assert_eq!(states(&database).await, ["cancelled"]);
    assert_eq!(swept(&mut sweep(&database, patient())).await, None);
    database.drop_database().await;
}

#[tokio::test]
async fn what_waits_is_not_brought_round_after_round() {
    let database = Database::with_documents(true).await;
    let keys = database.insert(2, false).await;
    run(&database, BACK_DATE, &keys[0]).await;
    assert_eq!(swept(&mut sweep(&database, patient())).await, None, "its grace runs");
    run(&database, BACK_DATE, &keys[1]).await;
    database.pool.execute(AGE).await.unwrap();
    database.hold(&keys[1]).await;
    let found = swept(&mut sweep(&database, patient())).await.unwrap();
    assert_eq!(found.len(), 1, "the held one is not brought");
    assert_eq!(found[0].key, keys[0]);
    database.drop_database().await;
}

#[tokio::test]
async fn a_row_that_a_trigger_keeps_is_parked_and_not_tried_for_ever() {
    let database = Database::with_documents(true).await;
    database
        .pool
        .execute(
            "create function keep() returns trigger language plpgsql as \
             $$ begin return null; end $$; \
             create trigger keep before delete on documents for each row execute function keep()",
        )
        .await
        .unwrap();
    let keys = database.insert(1, true).await;
    let ledger = database.ledger(documents());
    let claimed = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().remove(0);
    let endings = ledger.finalize(DOCUMENTS, &[settled(claimed, Verdict::Deleted)]).await.unwrap();
    assert_eq!(endings, [Ending::Parked]);
    let reason = "select count(*) from tombstream.deletion where state = 'parked' \
                  and reason like '%keeps the row%' and targets -> 0 -> 'outcome' is not null";
    assert_eq!(database.count(reason).await, 1);
    database.drop_database().await;
}

#[tokio::test]
async fn a_refusal_with_a_code_of_its_own_parks_one_row_and_holds_no_batch() {
    for raise in ["raise exception using errcode = 'ZZ001'", "update documents set name = 'kept'"] {
        let database = Database::with_documents(true).await;
        let keys = database.insert(20, true).await;
        let ledger = database.ledger(documents());
        let claimed = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
        let refuse = format!(
            "create function refuse() returns trigger language plpgsql as \
             $$ begin {raise} where id = old.id; return old; end $$; \
             create trigger refuse before delete on documents for each row \
             when (old.id = '{}') execute function refuse()",
            keys[7].columns().next().unwrap()
        );
        let refuse = if raise.starts_with("raise") {
            refuse.replace(" where id = old.id", "")
        } else {
            refuse
        };
        database.pool.execute(AssertSqlSafe(refuse)).await.unwrap();
        let batch: Vec<_> =
            claimed.into_iter().map(|claimed| settled(claimed, Verdict::Deleted)).collect();
        let endings = ledger.finalize(DOCUMENTS, &batch).await.unwrap();
        assert_eq!(endings.iter().filter(|ending| **ending == Ending::Finalized).count(), 19);
        assert_eq!(endings.iter().filter(|ending| **ending == Ending::Parked).count(), 1);
        database.drop_database().await;
    }
}

#[tokio::test]
async fn what_a_deferred_constraint_refuses_parks_one_row_and_holds_no_batch() {
    let database = Database::with_documents(true).await;
    let keys = database.insert(20, true).await;
    let child = "create table child (id uuid references documents (id) \
                 on delete no action deferrable initially deferred)";
    database.pool.execute(child).await.unwrap();
    run(&database, "insert into child values ($1::uuid)", &keys[7]).await;
    let ledger = database.ledger(documents());
    let claimed = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    let batch: Vec<_> =
        claimed.into_iter().map(|claimed| settled(claimed, Verdict::Deleted)).collect();
    let endings = ledger.finalize(DOCUMENTS, &batch).await.unwrap();
    assert_eq!(endings.iter().filter(|ending| **ending == Ending::Finalized).count(), 19);
    assert_eq!(endings.iter().filter(|ending| **ending == Ending::Parked).count(), 1);
    database.drop_database().await;
}

#[tokio::test]
async fn a_locked_child_delays_only_its_parent() {
    let database = Database::with_documents(true).await;
    let keys = database.insert(20, true).await;
    let child = "create table child (id uuid references documents (id) on delete cascade)";
    database.pool.execute(child).await.unwrap();
    run(&database, "insert into child values ($1::uuid)", &keys[7]).await;
    let ledger = database.ledger(documents());
    let claimed = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    let batch: Vec<_> =
        claimed.into_iter().map(|claimed| settled(claimed, Verdict::Deleted)).collect();
    let mut application = database.pool.begin().await.unwrap();
    application.execute("select 1 from child for update").await.unwrap();

    let finalize =
        tokio::time::timeout(Duration::from_secs(10), ledger.finalize(DOCUMENTS, &batch));
    let endings = finalize.await.expect("the batch waits for no application").unwrap();

    assert_eq!(endings.iter().filter(|ending| **ending == Ending::Finalized).count(), 19);
    assert_eq!(endings.iter().filter(|ending| **ending == Ending::Later).count(), 1);
    application.rollback().await.unwrap();
    let due = "select count(*) from tombstream.deletion where state = 'claimed' \
               and lease_until is null and due_at is not null";
    assert_eq!(database.count(due).await, 1, "the sweep brings it again");
    database.drop_database().await;
}

#[tokio::test]
async fn what_crosses_the_absent_share_is_not_finalized_whoever_finalizes_beside_it() {
    let database = Database::with_documents(true).await;
    let keys = database.insert(400, true).await;
    let ledger =
        database.ledger_with(documents(), |config| config.stores[0].absent_share_max = 0.5);
    let claimed = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    let mut batch: Vec<_> =
        claimed.into_iter().map(|claimed| settled(claimed, Verdict::Deleted)).collect();
    for settled in &mut batch {
        settled.outcomes[0] = Outcome::new(Verdict::Absent, "404");
    }
    let all = batch.chunks(40).map(|part| ledger.finalize(DOCUMENTS, part));
    let endings = futures::future::join_all(all).await;
    let gone = endings
        .into_iter()
        .flat_map(|endings| endings.unwrap())
        .filter(|ending| *ending == Ending::Finalized)
        .count();
    // Two parts of 40 are below the 100 from which on the share says something. They go, unless the
    // third has paused the relation before they are removed.
    assert!(gone <= 80, "{gone}");
    let left = database.count("select count(*) from documents").await;
    assert_eq!(left, 400 - i64::try_from(gone).unwrap());
    assert_eq!(database.count("select count(*) from tombstream.pause").await, 1);
    database.drop_database().await;
}

#[tokio::test]
async fn what_is_absent_after_a_lost_answer_pauses_nothing() {
    let database = Database::with_documents(true).await;
    let keys = database.insert(200, true).await;
    let ledger =
        database.ledger_with(documents(), |config| config.stores[0].absent_share_max = 0.5);
    let claimed = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    let mut batch: Vec<_> =
        claimed.into_iter().map(|claimed| settled(claimed, Verdict::Deleted)).collect();
    for settled in &mut batch {
        settled.outcomes[0] = Outcome::new(Verdict::Absent, "404");
        settled.outcomes[0].is_repeated = true;
    }
    let endings = ledger.finalize(DOCUMENTS, &batch).await.unwrap();
    assert_eq!(endings, vec![Ending::Finalized; 200]);
    assert_eq!(database.count("select count(*) from tombstream.pause").await, 0);
    database.drop_database().await;
}

#[tokio::test]
async fn a_zero_byte_in_an_answer_stops_nothing() {
    let database = Database::with_documents(true).await;
    let keys = database.insert(2, true).await;
    let ledger = database.ledger(documents());
    let mut claimed = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    let mut last = settled(claimed.remove(0), Verdict::Deleted);
    last.outcomes[0] = Outcome::new(Verdict::Deleted, "a\0b \\u0000");
    assert_eq!(ledger.finalize(DOCUMENTS, &[last]).await.unwrap(), [Ending::Finalized]);
    let mut owed = settled(claimed.remove(0), Verdict::Deleted);
    owed.outcomes[0] = Outcome::new(Verdict::Refused, "a\0b");
    ledger.owe(&[owed]).await.unwrap();
    assert_eq!(states(&database).await.iter().filter(|state| *state == "parked").count(), 1);
    database.drop_database().await;
}

#[tokio::test]
async fn a_flag_at_the_end_of_time_stops_no_batch() {
    let database = Database::new().await;
    let mut relation = patient();
    relation.flag.kind = FlagKind::Timestamp { zone: "America/New_York".to_owned() };
    let table = "create table documents (id uuid primary key, deleted_at timestamp)";
    database.pool.execute(table).await.unwrap();
    tombstream_connectors::postgres::install_relation(&database.pool, &relation).await.unwrap();
    let mut keys = Vec::new();
    for flag in ["294276-12-31 23:59:59", "infinity", "-infinity", "4713-01-01 BC", "2020-01-01"] {
        let key = Key::from_postgres([uuid::Uuid::new_v4().to_string()]);
        run(&database, "insert into documents values ($1::uuid)", &key).await;
        let set = format!("update documents set deleted_at = '{flag}' where id = $1::uuid");
        run(&database, &set, &key).await;
        keys.push(key);
    }
    database.pool.execute(AGE).await.unwrap();
    assert_eq!(claim(&database, relation, &keys).await, 3, "the past is due, the future is not");
    database.drop_database().await;
}

#[tokio::test]
async fn another_pipelines_deletions_are_left_to_it() {
    let database = Database::with_documents(true).await;
    let keys = database.insert(1, true).await;
    let ledger = database.ledger(documents());
    let claimed = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().remove(0);
    let id = claimed.id;
    ledger.owe(&[settled(claimed, Verdict::Unknown)]).await.unwrap();
    database
        .pool
        .execute("update tombstream.deletion set due_at = null where closed_at is null")
        .await
        .unwrap();
    let other = Relation { name: "others".into(), ..documents() };
    assert!(database.ledger(other).resume(&[id]).await.unwrap().is_empty());
    assert_eq!(ledger.resume(&[id]).await.unwrap().len(), 1, "nobody sits on its lease");
    database.drop_database().await;
}

#[tokio::test]
async fn a_key_too_long_for_the_ledger_delays_only_itself() {
    let database = Database::new().await;
    let table = "create table documents (id text primary key, deleted_at timestamptz)";
    database.pool.execute(table).await.unwrap();
    let mut relation = documents();
    relation.key[0].kind = KeyKind::Text;
    // Random, so that it is not compressed: the table's own index takes it, the ledger's does not.
    let long: String = (0..90).map(|_| uuid::Uuid::new_v4().simple().to_string()).collect();
    let keys =
        [&long[..2_000], &long[..2_680], "short"].map(|id| Key::from_postgres([id.to_owned()]));
    let now = "insert into documents values ($1, now())";
    for key in &keys {
        run(&database, now, key).await;
    }
    assert_eq!(claim(&database, relation, &keys).await, 1);
    let parked = "select count(*) from tombstream.deletion where state = 'parked'";
    assert_eq!(database.count(parked).await, 1, "no store takes 2,000 bytes, but the ledger does");
    database.drop_database().await;
}
