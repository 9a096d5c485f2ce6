//! How far files were read, kept in the ledger's database.

use std::sync::Arc;

use tombstream_connectors::positions::{Position, Positions, PositionsError};
use tombstream_connectors::postgres::PgPositions;

use crate::support::Database;

fn position(next: u64, whole: Option<&str>) -> Position {
    Position { next, tail: format!("digest of {next}"), whole: whole.map(str::to_owned) }
}

async fn store(positions: &PgPositions, entries: &[(&str, Position)]) {
    let entries: Vec<(Arc<str>, Position)> =
        entries.iter().map(|(file, position)| ((*file).into(), position.clone())).collect();
    positions.store(&entries).await.unwrap();
}

#[tokio::test]
async fn what_was_kept_is_there_after_a_restart_and_nothing_goes_back() {
    let database = Database::new().await;
    for (pool, prepared) in
        [(database.pool.clone(), true), (database.behind_a_pooler().await, false)]
    {
        let name = format!("files-{prepared}");
        let open = || PgPositions::new(pool.clone(), &*name, prepared);
        assert!(open().load().await.unwrap().is_empty(), "another source's are not its own");
        let odd = "file:///it's a \"file\"\u{1f600}.jsonl";
        store(&open(), &[("b", position(10, None)), (odd, position(1, Some("v")))]).await;
        store(&open(), &[("b", position(20, None)), ("a", position(0, None))]).await;
        store(&open(), &[("b", position(15, Some("v"))), (odd, position(1, None))]).await;
        store(&open(), &[("a", position(0, Some("v")))]).await;
        let kept = open().load().await.unwrap();
        assert_eq!(kept["b"], position(20, None));
        assert_eq!(kept[odd], position(1, Some("v")));
        assert_eq!(kept["a"], position(0, Some("v")));
        assert_eq!(kept.len(), 3);
        // What a person is told to do does it.
        sqlx::raw_sql(sqlx::AssertSqlSafe(open().forgetting(odd))).execute(&pool).await.unwrap();
        assert_eq!(open().load().await.unwrap().len(), 2);
    }
    assert_eq!(database.count("select count(*) from tombstream.file_position").await, 4);
    database.drop_database().await;
}

#[tokio::test]
async fn without_a_ledger_positions_are_unavailable() {
    let database = Database::empty().await;
    let positions = PgPositions::new(database.pool.clone(), "files", true);
    let error = positions.load().await.unwrap_err();
    assert!(matches!(error, PositionsError::Unavailable(_)), "{error:?}");
    let new = [("a".into(), position(1, None))];
    positions.store(&new).await.unwrap_err();
    database.drop_database().await;
}
