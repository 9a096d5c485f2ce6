//! `reconcile` against a real Postgres, with orphans that go by approval. The store is a folder.

#![allow(clippy::unwrap_used, reason = "a test may panic, and so may what it is made of")]

mod support;

use sqlx::AssertSqlSafe;

use support::{Place, text};

const CONFIG: &str = r#"
[database]
url = { env = "NOTES_URL" }
[pipeline]
listen = "127.0.0.1:0"
transaction_timeout = "3s"
lease = "8s"
[store.copies]
kind = "object_store"
url = "file://FOLDER/copies"
timeout = "2s"
deadline = "4s"
[relation.notes]
table = "public.notes"
key = [{ column = "id", type = "bigint" }]
flag = { column = "gone", type = "timestamptz" }
key_reuse = "forbidden"
targets = [{ store = "copies", key = "{id}/original" }]
"#;

impl Place {
    async fn new() -> Self {
        let columns = "id bigint primary key, gone timestamptz";
        let envs = [("TOMBSTREAM_ACTOR", "test")];
        let place = Self::made_of(columns, CONFIG, &envs).await;
        place.migrate();
        place
    }

    async fn texts(&mut self, sql: &str) -> Vec<String> {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_all(&mut self.db).await.unwrap()
    }

    /// Writes a report, and gives its digest as it was printed.
    fn report(&self, file: &str) -> String {
        let compared = self.run(&["reconcile", "--settle", "10ms", "--report", file]);
        let said = text(&compared.stdout);
        let digest = said.trim_end().rsplit(' ').next().unwrap_or_default().to_owned();
        assert_eq!(digest.len(), 64, "{said}{}", text(&compared.stderr));
        digest
    }
}

const REPAIR: &[&str] =
    &["reconcile", "--settle", "10ms", "--repair", "orphans", "--of", "seen.jsonl", "--approve"];

/// What was approved and is an orphan still goes, with a receipt that says so. What got a row since, what is new, and what
/// the ledger has come to know, stays; another digest moves nothing.
#[tokio::test]
async fn orphans_go_by_approval_of_their_report_alone() {
    let mut place = Place::new().await;
    place.sql("insert into notes select n from generate_series(1, 3) n").await;
    (1..=3).for_each(|id| place.note(id));
    (11..=16).for_each(|id| place.note(id));
    let digest = place.report("seen.jsonl");
    let unapproved = place.run(&["reconcile", "--repair", "orphans"]);
    assert_eq!(unapproved.status.code(), Some(1));
    assert!(text(&unapproved.stderr).contains("--approve DIGEST"), "{}", text(&unapproved.stderr));
    let first = if digest.starts_with('0') { "1" } else { "0" };
    let other = place.run(&[REPAIR, &[&format!("{first}{}", &digest[1..])[..]]].concat());
    assert!(
        text(&other.stderr).contains("not the one that was approved"),
        "{}",
        text(&other.stderr)
    );
    assert!((11..=16).all(|id| place.copy(id).exists()));

    // 12 gets a row; 13 is a deletion that was restored; 17 is new; 16 goes by itself.
    place.sql("insert into notes values (12), (13)").await;
    place.sql("update notes set gone = now() - interval '1 hour' where id = 13").await;
    place.sql("update notes set gone = null where id = 13; delete from notes where id = 13").await;
    place.note(17);
    std::fs::remove_file(place.copy(16)).unwrap();
    let repaired = place.run(&[REPAIR, &[&digest[..]]].concat());
    let said = format!("{}{}", text(&repaired.stdout), text(&repaired.stderr));
    assert!(said.contains("6 orphans were approved, and 3 of them are orphans still"), "{said}");
    assert!(said.contains("repair: 3 keys, 3 of them finalized"), "{said}");
    assert_eq!(repaired.status.code(), Some(1), "what is left is wrong still: {said}");
    let gone: Vec<i64> = (1..=17).filter(|id| !place.copy(*id).exists()).collect();
    assert_eq!(gone, [4, 5, 6, 7, 8, 9, 10, 11, 14, 15, 16], "{said}");
    let receipts =
        "select key[1] from tombstream.receipt where cause = 'orphan' and row_gone order by 1";
    assert_eq!(place.texts(receipts).await, ["11", "14", "15"]);
    let orders = "select actor || ' ' || (detail ->> 'orphans') from tombstream.operator_order \
        where action = 'approve-orphans' and detail ->> 'report' = ";
    assert_eq!(place.texts(&format!("{orders}'{digest}'")).await, ["test 3"]);
    place.end().await;
}
