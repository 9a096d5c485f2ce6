//! A backfill: which rows it brings, where it goes on, and what stands in its way.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::{AssertSqlSafe, Executor as _};

use tombstream_connectors::postgres::{
    Backfill, BackfillConfig, BackfillSpec, Count, FILTER_FUNCTIONS, JobError, TalliedLedger,
    Tally, forget_job, job_owner, jobs,
};
use tombstream_model::{
    FlagKind, Key, Ledger as _, Mark, Polled, Records, Relation, Source as _, SourceError, Verdict,
};

use super::support::{DOCUMENTS, Database, all, candidates, documents};

const PATIENCE: Duration = Duration::from_secs(60);

fn spec() -> BackfillSpec {
    BackfillSpec { relation: "documents".into(), from: None, to: None, filter: None }
}

fn config() -> BackfillConfig {
    BackfillConfig {
        range_rows: 50,
        page_max: 7,
        readers: 3,
        ..BackfillConfig::new(Duration::from_secs(60))
    }
}

async fn open_with(
    database: &Database,
    relation: &Relation,
    spec: &BackfillSpec,
    config: BackfillConfig,
) -> Result<Backfill, JobError> {
    let tally = Arc::new(Tally::default());
    let pool = database.pool.clone();
    Backfill::open(pool, (DOCUMENTS, relation), ("old", spec), "test/1", config, tally).await
}

async fn open(database: &Database) -> Backfill {
    open_with(database, &documents(), &spec(), config()).await.unwrap()
}

async fn next(backfill: &mut Backfill) -> Result<Polled, SourceError> {
    tokio::time::timeout(PATIENCE, backfill.next()).await.expect("it comes in time")
}

fn keys(polled: &Polled) -> Vec<Key> {
    match &polled.records {
        Records::Candidates(page) => page.iter().map(|candidate| candidate.key.clone()).collect(),
        other => panic!("{other:?}"),
    }
}

/// Everything until the source has ended, each page committed.
async fn read(backfill: &mut Backfill) -> Vec<Key> {
    let mut all = Vec::new();
    while !backfill.has_ended() {
        let polled = next(backfill).await.unwrap();
        all.extend(keys(&polled));
        backfill.commit(polled.marks).await.unwrap();
    }
    all
}

/// Nobody has to wait for a lease that its process let go.
async fn let_go(database: &Database) {
    database.pool.execute("update tombstream.job set lease_until = null").await.unwrap();
}

fn sorted(keys: impl IntoIterator<Item = Key>) -> Vec<Key> {
    let mut keys: Vec<Key> = keys.into_iter().collect();
    keys.sort();
    keys
}

#[tokio::test]
async fn every_flagged_row_is_brought_once_however_it_was_flagged() {
    for (column, kind, value) in [
        ("timestamptz", FlagKind::TimestampTz, "'2026-01-01'::timestamptz"),
        ("timestamptz", FlagKind::TimestampTz, "now() - n * interval '1 hour'"),
        (
            "timestamp",
            FlagKind::Timestamp { zone: "Asia/Tokyo".to_owned() },
            "now() at time zone 'Asia/Tokyo' - interval '1 second'",
        ),
        ("boolean", FlagKind::Boolean, "true"),
    ] {
        let database = Database::new().await;
        let sql = format!(
            "create table documents (id uuid primary key default gen_random_uuid(), n int, deleted_at {column}); \
             insert into documents (n, deleted_at) select n, {value} from generate_series(1, 333) n; \
             insert into documents (n) select n from generate_series(1, 100) n"
        );
        database.pool.execute(AssertSqlSafe(sql)).await.unwrap();
        let mut relation = documents();
        relation.flag.kind = kind;
        let mut backfill = open_with(&database, &relation, &spec(), config()).await.unwrap();
        assert_eq!(backfill.progress().total, 333);
        let brought = read(&mut backfill).await;
        assert_eq!(brought.len(), 333, "{column} {value}");
        assert_eq!(brought.into_iter().collect::<HashSet<_>>().len(), 333);
        assert_eq!(backfill.progress().looked_at(), 333);
        assert_eq!(database.count("select count(*) from tombstream.job_range").await, 7);
        assert_eq!(
            database.count("select count(*) from tombstream.job_range where not is_done").await,
            0
        );
        database.drop_database().await;
    }
}

/// The heart of it: pages that were not committed come again, and no other.
#[tokio::test]
async fn a_job_goes_on_behind_what_is_durable() {
    let database = Database::with_documents(true).await;
    let flagged = database.insert(400, true).await;
    let mut durable = HashSet::new();
    let mut rounds = 0;
    loop {
        let mut backfill = open(&database).await;
        let mut marks: Vec<Mark> = Vec::new();
        let mut pages: Vec<(Mark, Vec<Key>)> = Vec::new();
        while !backfill.has_ended() && pages.len() < 9 {
            let polled = next(&mut backfill).await.unwrap();
            for key in keys(&polled) {
                assert!(!durable.contains(&key), "brought again: {key}");
            }
            pages.extend(polled.marks.first().cloned().map(|mark| (mark, keys(&polled))));
            marks.extend(polled.marks);
        }
        // The frontier has passed two of three; of a range all before its mark is durable.
        let passed = &marks[..marks.len() * 2 / 3];
        backfill.commit(passed.to_vec()).await.unwrap();
        for (mark, keys) in pages {
            let is_durable = |it: &Mark| it.partition == mark.partition && it.next >= mark.next;
            if passed.iter().any(is_durable) {
                durable.extend(keys);
            }
        }
        drop(backfill);
        let_go(&database).await;
        rounds += 1;
        if passed.is_empty() || rounds > 60 {
            break;
        }
    }
    assert!(rounds > 3, "{rounds}");
    let mut backfill = open(&database).await;
    durable.extend(read(&mut backfill).await);
    assert_eq!(durable.len(), flagged.len());
    assert_eq!(sorted(durable), sorted(flagged));
    database.drop_database().await;
}

#[tokio::test]
async fn a_name_is_run_by_one_process_and_the_second_hears_by_whom() {
    let database = Database::with_documents(true).await;
    database.insert(5, true).await;
    let first = open(&database).await;
    let second = open_with(&database, &documents(), &spec(), config()).await.unwrap_err();
    assert!(second.to_string().contains("job old is run by test/1"), "{second}");
    let forget = forget_job(&database.pool, "old").await.unwrap_err();
    assert!(matches!(forget, JobError::Taken { .. }), "{forget}");
    // It dies: its lease is waited for.
    drop(first);
    let mut third = open(&database).await;
    assert_eq!(read(&mut third).await.len(), 5);
    third.job().end(&BTreeMap::new(), None).await.unwrap();
    let fourth = open_with(&database, &documents(), &spec(), config()).await.unwrap_err();
    assert!(matches!(fourth, JobError::Done { .. }), "{fourth}");
    assert!(forget_job(&database.pool, "old").await.unwrap());
    assert!(!forget_job(&database.pool, "old").await.unwrap());
    assert_eq!(database.count("select count(*) from tombstream.job_range").await, 0);
    database.drop_database().await;
}

#[tokio::test]
async fn a_name_stands_for_one_question() {
    let database = Database::with_documents(true).await;
    drop(open(&database).await);
    let_go(&database).await;
    let other = BackfillSpec { filter: Some("name = 'n1'".into()), ..spec() };
    let error = open_with(&database, &documents(), &other, config()).await.unwrap_err();
    assert!(error.to_string().contains("tombstream jobs forget old"), "{error}");
    database.drop_database().await;
}

#[tokio::test]
async fn a_process_whose_name_another_took_moves_nothing() {
    let database = Database::with_documents(true).await;
    database.insert(20, true).await;
    let mut first = open(&database).await;
    let polled = next(&mut first).await.unwrap();
    let_go(&database).await;
    let second = open(&database).await;
    let error = first.commit(polled.marks).await.unwrap_err();
    assert!(
        matches!(&error, SourceError::Fatal(said) if said.contains("another process")),
        "{error}"
    );
    assert_eq!(
        database
            .count("select coalesce(sum(looked_at), 0)::bigint from tombstream.job_range")
            .await,
        0
    );
    assert!(first.job().end(&BTreeMap::new(), None).await.is_err());
    drop(second);
    database.drop_database().await;
}

/// A mark of another life of the job counts for nothing.
#[tokio::test]
async fn marks_of_an_earlier_process_are_not_committed() {
    let database = Database::with_documents(true).await;
    database.insert(20, true).await;
    let mut first = open(&database).await;
    let polled = next(&mut first).await.unwrap();
    drop(first);
    let_go(&database).await;
    let mut second = open(&database).await;
    let _ = next(&mut second).await.unwrap();
    second.commit(polled.marks).await.unwrap();
    assert_eq!(
        database
            .count("select coalesce(sum(looked_at), 0)::bigint from tombstream.job_range")
            .await,
        0
    );
    database.drop_database().await;
}

#[tokio::test]
async fn a_span_and_a_filter_bring_their_rows_alone() {
    let database = Database::with_documents(false).await;
    let sql = "insert into documents select gen_random_uuid(), 'n' || n, null, \
                   '2026-01-01'::timestamptz + n * interval '1 day' from generate_series(0, 99) n";
    database.pool.execute(sql).await.unwrap();
    let spec = BackfillSpec {
        from: Some("2026-01-11T00:00:00Z".parse().unwrap()),
        to: Some("2026-01-31T00:00:00Z".parse().unwrap()),
        filter: Some("name ~ '[05]$' and not name = 'n15'".into()),
        ..spec()
    };
    let mut backfill = open_with(&database, &documents(), &spec, config()).await.unwrap();
    assert_eq!(backfill.progress().total, 20);
    assert_eq!(read(&mut backfill).await.len(), 3); // n10, n20, n25
    assert_eq!(backfill.progress().looked_at(), 20);
    database.drop_database().await;
}

/// What is flagged after the job was begun is live traffic, or a job would never end.
#[tokio::test]
async fn what_is_flagged_later_is_not_the_jobs() {
    let database = Database::with_documents(false).await;
    database.insert(3, true).await;
    let first = open(&database).await;
    database.insert(30, true).await;
    drop(first);
    let_go(&database).await;
    assert_eq!(read(&mut open(&database).await).await.len(), 3);
    database.drop_database().await;
}

/// What Postgres has to say is said before anything is written.
#[tokio::test]
async fn a_filter_that_postgres_does_not_understand_is_refused() {
    let database = Database::with_documents(false).await;
    let evil = "create function public.lower(text, integer) returns boolean language plpgsql as \
                    $$ begin delete from documents; return true; end $$; \
                create function public.evil(uuid, uuid) returns boolean language plpgsql as \
                    $$ begin delete from documents; return true; end $$; \
                create operator public.%% (leftarg = uuid, rightarg = uuid, function = public.evil); \
                create operator public.+ (leftarg = uuid, rightarg = uuid, function = public.evil)";
    database.pool.execute(evil).await.unwrap();
    database.insert(3, true).await;
    for (filter, why) in [
        ("name", "must be type boolean"),
        ("name = 1", "operator does not exist"),
        ("id = 'x'", "invalid input syntax"),
        ("no_column = 1", "does not have"),
        // Functions and operators of other schemas are not seen.
        ("lower(name, 1)", "does not exist"),
        ("id + id", "operator does not exist"),
        ("id %% id", ""),
        ("true; delete from documents", "ends before"),
    ] {
        let spec = BackfillSpec { filter: Some(filter.into()), ..spec() };
        let error = open_with(&database, &documents(), &spec, config()).await.unwrap_err();
        let said = error.to_string();
        assert!(matches!(error, JobError::Refused(_)) && said.contains(why), "{filter}: {said}");
    }
    assert_eq!(database.count("select count(*) from documents").await, 3);
    assert_eq!(database.count("select count(*) from tombstream.job").await, 0);
    database.drop_database().await;
}

/// A column's own type may bring functions of its own; they run where nothing can be written.
#[tokio::test]
async fn a_filter_runs_where_nothing_can_be_written() {
    let database = Database::new().await;
    let sql = "create table notes (id bigint); \
               create table documents (id uuid primary key, deleted_at timestamptz, kind text); \
               create type public.kind as enum ('a', 'b'); \
               create function public.spelled(public.kind) returns text language plpgsql as \
                   $$ begin insert into public.notes values (1); return 'a'; end $$; \
               create cast (public.kind as text) with function public.spelled(public.kind) as implicit; \
               alter table documents alter kind type public.kind using kind::public.kind; \
               insert into documents values (gen_random_uuid(), now(), 'a')";
    database.pool.execute(sql).await.unwrap();
    let spec = BackfillSpec { filter: Some("kind::text = 'a'".into()), ..spec() };
    let mut backfill = open_with(&database, &documents(), &spec, config()).await.unwrap();
    let error = next(&mut backfill).await.unwrap_err();
    let said = format!("{error:?}");
    assert!(said.contains("read-only transaction"), "{said}");
    assert_eq!(database.count("select count(*) from notes").await, 0);
    database.drop_database().await;
}

#[tokio::test]
async fn a_row_on_which_the_filter_fails_is_said_and_not_tried_for_ever() {
    let database = Database::with_documents(false).await;
    database.insert(3, true).await;
    let spec = BackfillSpec { filter: Some("1 / (length(name) - 2) = 1".into()), ..spec() };
    let mut backfill = open_with(&database, &documents(), &spec, config()).await.unwrap();
    let error = next(&mut backfill).await.unwrap_err();
    assert!(
        matches!(&error, SourceError::Fatal(said) if said.contains("division by zero")),
        "{error:?}"
    );
    database.drop_database().await;
}

#[tokio::test]
async fn every_function_of_a_filter_is_there_and_not_volatile() {
    let database = Database::new().await;
    for name in FILTER_FUNCTIONS {
        let volatile: Option<bool> = sqlx::query_scalar(
            "select bool_or(p.provolatile = 'v' or p.prokind <> 'f' or p.proretset) \
             from pg_catalog.pg_proc p where p.proname = $1 and p.pronamespace = 'pg_catalog'::regnamespace",
        )
        .bind(name)
        .fetch_one(&database.pool)
        .await
        .unwrap();
        assert_eq!(volatile, Some(false), "{name}");
    }
    database.drop_database().await;
}

#[tokio::test]
async fn a_paused_relation_and_a_tripped_breaker_stop_the_job() {
    let database = Database::with_documents(true).await;
    database.insert(30, true).await;
    for (sql, why, mend) in [
        (
            "insert into tombstream.pause (relation, reason) values ('documents', 'absent')",
            "relation documents is paused: absent",
            "delete from tombstream.pause",
        ),
        (
            "insert into tombstream.breaker (relation, tripped_at, reason) values ('documents', now(), 'much')",
            "the breaker of documents is tripped: much",
            "delete from tombstream.breaker",
        ),
    ] {
        database.pool.execute(sql).await.unwrap();
        let mut backfill = open(&database).await;
        let error = next(&mut backfill).await.unwrap_err();
        assert!(matches!(&error, SourceError::Fatal(said) if said.contains(why)), "{error}");
        drop(backfill);
        let_go(&database).await;
        database.pool.execute(mend).await.unwrap();
    }
    assert_eq!(read(&mut open(&database).await).await.len(), 30);
    database.drop_database().await;
}

#[tokio::test]
async fn a_rate_bounds_the_rows_of_a_second() {
    let database = Database::with_documents(true).await;
    database.insert(300, true).await;
    let config = BackfillConfig { rate_max: Some(100), page_max: 1_000, ..config() };
    let mut backfill = open_with(&database, &documents(), &spec(), config).await.unwrap();
    let begun = Instant::now();
    assert_eq!(read(&mut backfill).await.len(), 300);
    // The first page of at most a second's worth goes at once.
    assert!(begun.elapsed() >= Duration::from_millis(1_900), "{:?}", begun.elapsed());
    database.drop_database().await;
}

/// A claim of live traffic that is under way for long: stores or the database are busy.
#[tokio::test]
async fn a_job_gives_way_while_live_deletions_are_slow() {
    let database = Database::with_documents(true).await;
    let live = database.insert(1, true).await;
    let claimed = database.ledger(documents()).claim(DOCUMENTS, &candidates(&live)).await.unwrap();
    database
        .pool
        .execute("update tombstream.deletion set lease_until = clock_timestamp() + interval '50 seconds'")
        .await
        .unwrap();
    let old = database.insert(20, true).await;
    let mut backfill = open(&database).await;
    let early = tokio::time::timeout(Duration::from_secs(2), backfill.next()).await;
    assert!(early.is_err(), "{early:?}");
    assert!(backfill.progress().gave_way() >= Duration::from_secs(1));
    let settled = all(claimed, Verdict::Deleted);
    database.ledger(documents()).finalize(DOCUMENTS, &settled).await.unwrap();
    // The live one was read before it was gone; the claim knows.
    let brought = sorted(read(&mut backfill).await);
    assert!(old.iter().all(|key| brought.contains(key)), "{brought:?}");
    database.drop_database().await;
}

/// A process of the job died with claims: the next one takes them over when their lease is over, and what is live
/// traffic's stays with it.
#[tokio::test]
async fn what_a_dead_process_of_the_job_claimed_is_taken_over_at_the_end() {
    let database = Database::with_documents(true).await;
    let keys = database.insert(3, true).await;
    let lease = Duration::from_secs(2);
    let of = |owner: &str| {
        let owner = owner.to_owned();
        database.ledger_with(documents(), |config| {
            config.owner = owner;
            config.lease = lease;
        })
    };
    let dead = of(&job_owner("test/0", "old"));
    let claimed = dead.claim(DOCUMENTS, &candidates(&keys[..2])).await.unwrap();
    let other = of(&job_owner("test/0", "another"));
    other.claim(DOCUMENTS, &candidates(&keys[2..])).await.unwrap();
    let config = BackfillConfig { lease, ..config() };
    let mut backfill = open_with(&database, &documents(), &spec(), config).await.unwrap();
    let mut open = Vec::new();
    let ledger = of(&job_owner("test/1", "old"));
    while !backfill.has_ended() {
        if let Records::Open(ids) = next(&mut backfill).await.unwrap().records {
            open.extend(ids.clone());
            let resumed = ledger.resume(&ids).await.unwrap();
            ledger.finalize(DOCUMENTS, &all(resumed, Verdict::Deleted)).await.unwrap();
        }
    }
    open.sort();
    let mut expected: Vec<_> = claimed.iter().map(|it| it.id).collect();
    expected.sort();
    assert_eq!(open, expected);
    assert_eq!(database.count("select count(*) from documents").await, 1);
    database.drop_database().await;
}

#[tokio::test]
async fn each_row_that_is_not_claimed_is_counted_for_what_it_is() {
    let database = Database::with_documents(true).await;
    let relation = Relation { grace: Duration::from_secs(3600), ..documents() };
    let key = database.insert(7, true).await;
    let old = "update documents set deleted_at = now() - interval '2 hours'";
    // As rows that have been flagged for long.
    let behind = format!(
        "alter table documents disable trigger user; {old} where id <> '{}'; \
         do $$ declare name text; begin for name in select tgname from pg_trigger \
             where tgrelid = 'documents'::regclass and not tgisinternal loop \
             execute format('alter table documents enable always trigger %I', name); end loop; end $$",
        key[0]
    );
    database.pool.execute(AssertSqlSafe(behind)).await.unwrap();
    let other = database.ledger(relation.clone());
    other.claim(DOCUMENTS, &candidates(&key[1..2])).await.unwrap();
    database.hold(&key[2]).await;
    let change = |sql: String| {
        let pool = database.pool.clone();
        async move { pool.execute(AssertSqlSafe(sql)).await.unwrap() }
    };
    change(format!("update documents set deleted_at = null where id = '{}'", key[3])).await;
    change(format!("delete from documents where id = '{}'", key[4])).await;
    let mut lock = database.pool.begin().await.unwrap();
    let sql = format!("select from documents where id = '{}' for update", key[5]);
    lock.execute(AssertSqlSafe(sql)).await.unwrap();

    let tally = Arc::new(Tally::default());
    let ledger = database.ledger(relation.clone());
    let ledger = TalliedLedger::new(ledger, &[relation], Arc::clone(&tally));
    let claimed = ledger.claim(DOCUMENTS, &candidates(&key)).await.unwrap();
    let settled = all(claimed, Verdict::Deleted);
    ledger.finalize(DOCUMENTS, &settled).await.unwrap();
    lock.rollback().await.unwrap();
    let expected =
        ["waiting", "underway", "held", "cancelled", "gone", "locked", "claimed", "finalized"];
    let expected: BTreeMap<String, u64> = expected.map(|name| (name.to_owned(), 1)).into();
    assert_eq!(tally.counts(), expected);
    assert_eq!(tally.get(Count::Claimed), 1);
    database.drop_database().await;
}

#[tokio::test]
async fn jobs_tell_how_far_they_are() {
    let database = Database::with_documents(true).await;
    database.insert(60, true).await;
    let mut backfill = open(&database).await;
    let polled = next(&mut backfill).await.unwrap();
    backfill.commit(polled.marks).await.unwrap();
    let job = jobs(&database.pool, Some("old")).await.unwrap().remove(0);
    assert_eq!((job.total, job.looked_at, job.is_run), (Some(60), 7, true));
    assert_eq!(json!(job.counts), json!({ "matched": 7 }));
    backfill.job().end(&BTreeMap::from([("claimed".into(), 3)]), Some("enough")).await.unwrap();
    let job = jobs(&database.pool, None).await.unwrap().remove(0);
    assert_eq!((&*job.state, job.reason.as_deref()), ("stopped", Some("enough")));
    // Counts of processes add up.
    let again = open(&database).await;
    again.job().end(&BTreeMap::from([("claimed".into(), 4)]), None).await.unwrap();
    let job = jobs(&database.pool, None).await.unwrap().remove(0);
    assert_eq!((&*job.state, job.counts["claimed"]), ("done", 7));
    database.drop_database().await;
}
