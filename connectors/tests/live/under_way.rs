//! Hides that are under way while more happens to their rows.

use tombstream_connectors::postgres::install_relation;
use tombstream_model::{Ending, Ledger, OnHardDelete, Relation, Verdict};

use crate::support::{DOCUMENTS, Database, all, candidates};
use crate::waiting::{a_month_later, delete, flag, hiding, insert, removed, states};

async fn leases_are_over(database: &Database) {
    let sql = "update tombstream.deletion set lease_until = clock_timestamp() - interval '1 s' \
        where lease_until is not null and closed_at is null";
    sqlx::query(sql).execute(&database.pool).await.unwrap();
}

/// Its request may be under way for as long as its lease lasts: claimed and finalized meanwhile by another, the key could
/// have a new row by then, whose copies that request would destroy.
#[tokio::test]
async fn a_hide_that_is_under_way_is_over_before_its_deletion_is_claimed() {
    let database = Database::with_documents(true).await;
    let ledger = database.ledger(hiding());
    let keys = database.insert(2, false).await;
    flag(&database, &keys).await;
    let mut hides = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    a_month_later(&database).await;
    assert!(ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().is_empty());
    // One hide is answered, the other one's worker died.
    let answered = hides.remove(0);
    let key = answered.key.clone();
    ledger.owe(&all(vec![answered], Verdict::Deleted)).await.unwrap();
    let claims = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    assert_eq!(claims.iter().map(|it| &it.key).collect::<Vec<_>>(), [&key]);
    leases_are_over(&database).await;
    let claims = ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap();
    assert_eq!(claims.iter().map(|it| &it.key).collect::<Vec<_>>(), [&hides[0].key]);
    database.drop_database().await;
}

/// The same of a row that another hand removed, whether that is a deletion or not.
#[tokio::test]
async fn a_hide_that_is_under_way_is_over_before_its_removed_row_is_forgotten() {
    for on_hard_delete in [OnHardDelete::Destroy, OnHardDelete::Ignore] {
        let database = Database::with_documents(false).await;
        let relation = Relation { on_hard_delete, ..hiding() };
        install_relation(&database.pool, &relation).await.unwrap();
        let ledger = database.ledger(relation.clone());
        let keys = database.insert(1, false).await;
        flag(&database, &keys).await;
        assert_eq!(ledger.claim(DOCUMENTS, &candidates(&keys)).await.unwrap().len(), 1);
        delete(&database, &keys).await;
        a_month_later(&database).await;
        install_relation(&database.pool, &relation).await.unwrap();
        assert!(ledger.claim(DOCUMENTS, &removed(&keys)).await.unwrap().is_empty());
        assert_eq!(states(&database).await, ["hidden"], "{on_hard_delete:?}");
        leases_are_over(&database).await;
        let claims = ledger.claim(DOCUMENTS, &removed(&keys)).await.unwrap();
        if on_hard_delete == OnHardDelete::Ignore {
            assert!(claims.is_empty());
            assert_eq!(states(&database).await, ["cancelled"]);
        } else {
            let gone = ledger.finalize(DOCUMENTS, &all(claims, Verdict::Deleted)).await.unwrap();
            assert_eq!(gone, [Ending::FinalizedRowGone]);
        }
        insert(&database, &keys[0]).await.unwrap();
        database.drop_database().await;
    }
}
