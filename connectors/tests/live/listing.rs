//! Rows and deletions as the comparison lists them: each once, and due exactly where the claim would take them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sqlx::Executor as _;

use tombstream_connectors::postgres::{
    DeletionListing, PgRegistry, RowListing, Zombie, ZombiesOpened, listings, open_zombies,
};
use tombstream_model::{
    Address, DeletionCause, Key, Ledger as _, ListedDeletion, ListedRow, Listing, ListingPart as _,
    Registry as _, Relation, Standing, State, Verdict,
};

use super::support::{DOCUMENTS, Database, all, candidates, documents};

fn sides(database: &Database, relation: Relation) -> (RowListing, DeletionListing, PgRegistry) {
    let stores = ["originals".into(), "search".into()];
    listings(database.pool.clone(), Arc::from([relation]), &stores, true)
}

async fn whole<L: Listing>(listing: &L, parts: usize) -> (usize, Vec<L::Item>) {
    let parts = listing.parts(parts, &[]).await.unwrap();
    let count = parts.len();
    let mut items = Vec::new();
    for mut part in parts {
        while let Some(page) = part.next().await.unwrap() {
            items.extend(page);
        }
        assert!(part.next().await.unwrap().is_none(), "it has ended for good");
    }
    (count, items)
}

fn keys(rows: &[ListedRow]) -> BTreeSet<Key> {
    let keys: BTreeSet<Key> = rows.iter().map(|row| row.key.clone()).collect();
    assert_eq!(keys.len(), rows.len(), "each once");
    keys
}

#[tokio::test]
async fn every_row_is_listed_once_however_the_table_is_cut() {
    let database = Database::with_documents(true).await;
    let inserted: BTreeSet<Key> = database.insert(6_100, false).await.into_iter().collect();
    database.pool.execute("analyze documents").await.unwrap();
    let (rows, _, registry) = sides(&database, documents());
    for parts in [1, 3, 8] {
        let (count, listed) = whole(&rows, parts).await;
        assert_eq!(keys(&listed), inserted);
        assert!(count == parts, "{count} of {parts}");
    }
    let (_, listed) = whole(&rows, 2).await;
    let first = listed.first().unwrap();
    assert_eq!(first.columns, [Some(first.key.to_string())]);
    let sample = registry.sample(DOCUMENTS, 500).await.unwrap();
    assert!(sample.len() > 50, "{}", sample.len());
    database.drop_database().await;
}

#[tokio::test]
async fn a_key_of_several_columns_is_cut_too() {
    let database = Database::new().await;
    let make = "create table documents (a text, b bigint, deleted_at timestamptz, primary key (a, b)); \
                insert into documents select 'a' || n % 13, n from generate_series(1, 5000) n; analyze documents";
    database.pool.execute(make).await.unwrap();
    let mut relation = documents();
    let column = |name: &str, kind| tombstream_model::KeyColumn { name: name.to_owned(), kind };
    relation.key = vec![
        column("a", tombstream_model::KeyKind::Text),
        column("b", tombstream_model::KeyKind::Bigint),
    ];
    relation.targets.clear();
    let (rows, _, _) = sides(&database, relation);
    let (count, listed) = whole(&rows, 4).await;
    assert_eq!((count, keys(&listed).len()), (4, 5_000));
    database.drop_database().await;
}

/// The listing's rules are the claim's, written a second time: what is told to be due is what a claim takes.
#[tokio::test]
async fn a_row_is_due_where_the_claim_would_take_it() {
    for guard in [true, false] {
        let database = Database::with_documents(guard).await;
        let mut relation = documents();
        relation.grace = Duration::from_secs(3_600);
        let rows = database.insert(60, false).await;
        let of = |from: usize, to: usize| -> Vec<String> {
            rows[from..to].iter().map(ToString::to_string).collect()
        };
        let flag =
            "update documents set deleted_at = now() - $2::interval where id = any($1::uuid[])";
        for (keys, since) in [(of(10, 40), "2 hours"), (of(40, 50), "1 minute")] {
            sqlx::query(flag).bind(keys).bind(since).execute(&database.pool).await.unwrap();
        }
        // Half of what is old was also seen long ago; the rest, where no guard is, has never been seen.
        sqlx::query(
            "insert into tombstream.deletion (relation, key, state, first_seen) \
             select 'documents', array[k], 'pending', now() - interval '3 hours' from unnest($1::text[]) k \
             on conflict (relation, key) where state in ('pending', 'hidden', 'claimed', 'parked') \
             do update set first_seen = excluded.first_seen",
        )
        .bind(of(10, 30))
        .execute(&database.pool)
        .await
        .unwrap();
        for key in &rows[20..25] {
            database.hold(key).await;
        }
        let kept = "update tombstream.deletion set kept_back_at = now() where key[1] = any($1)";
        sqlx::query(kept).bind(of(25, 28)).execute(&database.pool).await.unwrap();

        let (listing, _, registry) = sides(&database, relation.clone());
        let (_, listed) = whole(&listing, 1).await;
        let by = |standing| -> BTreeSet<Key> {
            let of = listed.iter().filter(|row| row.standing == standing);
            of.map(|row| row.key.clone()).collect()
        };
        assert_eq!(by(Standing::Alive).len(), 20);
        let due = by(Standing::Due);
        assert!(due.len() >= 12 && due.len() < 40, "{}", due.len());

        // A flag of an hour's window is not settled yet, whoever asks.
        let now = registry.now(DOCUMENTS, &rows, Duration::from_secs(3 * 3_600)).await.unwrap();
        assert!(now.rows.iter().all(|row| row.standing != Standing::Due));
        assert_eq!(now.rows.len(), rows.len());

        let ledger = database.ledger(relation.clone());
        let claimed = ledger.claim(DOCUMENTS, &candidates(&rows)).await.unwrap();
        let claimed: BTreeSet<Key> = claimed.into_iter().map(|it| it.key).collect();
        assert_eq!(claimed, due, "guard: {guard}");

        // A paused relation claims nothing, so nothing of it is due.
        let pause = "insert into tombstream.pause (relation, reason) values ('documents', 'test')";
        database.pool.execute(pause).await.unwrap();
        let (_, listed) = whole(&listing, 1).await;
        assert!(listed.iter().all(|row| row.standing < Standing::HideDue));
        database.drop_database().await;
    }
}

#[tokio::test]
async fn a_row_is_to_be_hidden_before_it_is_due() {
    let database = Database::with_documents(true).await;
    let mut relation = documents();
    relation.grace = Duration::from_secs(3_600);
    relation.hide = Some(Duration::from_secs(60));
    let rows = database.insert(3, false).await;
    for (key, since) in rows.iter().zip(["10 seconds", "10 minutes", "2 hours"]) {
        let flag = "update documents set deleted_at = now() - $2::interval where id = $1::uuid";
        sqlx::query(flag).bind(key.to_string()).bind(since).execute(&database.pool).await.unwrap();
    }
    // The guard notes a back-dated flag at first sight; these were seen in time.
    let seen = "update tombstream.deletion set first_seen = now() - interval '1 day'";
    database.pool.execute(seen).await.unwrap();
    let (listing, _, _) = sides(&database, relation);
    let (_, listed) = whole(&listing, 1).await;
    let standing: BTreeMap<&Key, Standing> =
        listed.iter().map(|row| (&row.key, row.standing)).collect();
    let expected = [Standing::Waiting, Standing::HideDue, Standing::Due];
    assert_eq!(standing, rows.iter().zip(expected).collect());
    database.drop_database().await;
}

#[tokio::test]
async fn a_deletion_is_known_wherever_it_is_kept() {
    let database = Database::with_documents(true).await;
    let rows = database.insert(4, true).await;
    let ledger = database.ledger(documents());
    let claimed = ledger.claim(DOCUMENTS, &candidates(&rows)).await.unwrap();
    let (open, closed): (Vec<_>, Vec<_>) =
        claimed.into_iter().partition(|claimed| claimed.key == rows[0]);
    assert_eq!((open.len(), closed.len()), (1, 3));
    ledger.finalize(DOCUMENTS, &all(closed, Verdict::Deleted)).await.unwrap();
    // One stays, one goes to the archive, and of one nothing is left but its receipt.
    for (place, keep) in
        [(2, "insert into tombstream.deletion_archive select * from taken"), (3, "")]
    {
        let taken = "with taken as (delete from tombstream.deletion where key[1] = $1 returning *)";
        let keep = if keep.is_empty() { "select from taken" } else { keep };
        let month = "select tombstream.archive_closed(interval '100 years', 1)";
        database.pool.execute(month).await.unwrap();
        let partition = "create table if not exists tombstream.deletion_archive_test \
             partition of tombstream.deletion_archive default";
        database.pool.execute(partition).await.unwrap();
        sqlx::query(sqlx::AssertSqlSafe(format!("{taken} {keep}")))
            .bind(rows[place].to_string())
            .execute(&database.pool)
            .await
            .unwrap();
    }
    let (_, deletions, registry) = sides(&database, documents());
    let expected: BTreeMap<Key, State> = rows
        .iter()
        .map(|key| {
            let is_open = key == &rows[0];
            (key.clone(), if is_open { State::Claimed } else { State::Finalized })
        })
        .collect();
    let told = |listed: &[ListedDeletion]| -> BTreeMap<Key, State> {
        assert!(listed.iter().all(|it| it.addresses.len() == 2), "{listed:?}");
        listed.iter().map(|it| (it.key.clone(), it.state)).collect()
    };
    for parts in [1, 4] {
        let (_, listed) = whole(&deletions, parts).await;
        assert_eq!((told(&listed), listed.len()), (expected.clone(), 4));
    }
    let now = registry.now(DOCUMENTS, &rows, Duration::from_secs(60)).await.unwrap();
    assert_eq!((told(&now.deletions), now.deletions.len(), now.rows.len()), (expected, 4, 1));
    assert!(now.deletions.iter().all(|it| !it.is_settled), "all moved within the window");
    let now = registry.now(DOCUMENTS, &rows, Duration::ZERO).await.unwrap();
    assert!(now.deletions.iter().all(|it| it.is_settled));
    database.drop_database().await;
}

/// What no template gives to this key may be another row's copy by now.
#[tokio::test]
async fn a_zombie_at_a_place_that_no_template_leads_to_is_parked() {
    let database = Database::with_documents(true).await;
    let alive = database.insert(1, false).await;
    let gone = |n: u128| Key::from_postgres([uuid::Uuid::from_u128(n).to_string()]);
    let zombie = |key: &Key, is_elsewhere| {
        let object = format!("{key}/original");
        let address = Address::Object { bucket: "documents".into(), key: object };
        Zombie { key: key.clone(), targets: vec![("originals".to_owned(), address)], is_elsewhere }
    };
    let batch = [zombie(&alive[0], false), zombie(&gone(1), false), zombie(&gone(2), true)];
    let opened = open_zombies(&database.pool, &documents(), &batch, DeletionCause::Resurrected)
        .await
        .unwrap();
    assert_eq!(opened, ZombiesOpened { opened: 2, parked: 1, reused: 1, waits: 0 });
    let states: Vec<(String, Option<String>)> =
        sqlx::query_as("select state, reason from tombstream.deletion order by key")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    assert_eq!(states[0], ("pending".to_owned(), None));
    assert_eq!(states[1].0, "parked");
    assert!(states[1].1.as_deref().unwrap_or_default().contains("another row's"));
    assert_eq!(states.len(), 2, "the key that has a row is left alone");
    database.drop_database().await;
}
