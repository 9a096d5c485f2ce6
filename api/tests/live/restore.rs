//! Restores: won or refused, never half (S2).

use std::time::Duration;

use sqlx::{Connection, PgConnection};

use crate::harness::{App, ask, send};

const ID: &str = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
const PATH: &str = "/documents/a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
const RESTORE: &str = "/documents/a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11/restore";
const CLAIM: &str = "insert into tombstream.deletion
        (relation, key, state, flag, targets, lease_token, claimed_at)
    values ('documents', '{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}', 'claimed', 'x', '[]', 1, now())";

async fn with_row(deleted_at: &str) -> App {
    let app = App::documents().await;
    let insert = format!("insert into documents values ('{ID}', 'x', now(), {deleted_at})");
    app.db.run(&insert).await;
    app
}

async fn open(app: &App, state: &str) {
    let hidden = if state == "hidden" { "now()" } else { "null" };
    let sql = format!(
        "insert into tombstream.deletion (relation, key, state, hidden_at, targets)
         values ('documents', '{{{ID}}}', '{state}', {hidden}, '[]')"
    );
    app.db.run(&sql).await;
}

async fn is_flagged(app: &App) -> bool {
    app.db.text("select deleted_at is not null from documents").await.as_deref() == Some("true")
}

async fn states(app: &App) -> String {
    let sql = "select coalesce(string_agg(state, ' ' order by id), '') from tombstream.deletion";
    app.db.text(sql).await.unwrap()
}

#[tokio::test]
async fn before_the_claim_a_restore_cancels() {
    for state in ["pending", "hidden", "parked"] {
        let app = with_row("now()").await;
        open(&app, state).await;
        let restored = app.post(RESTORE).await;
        assert_eq!(restored.status, 200, "{state}: {restored:?}");
        assert_eq!(restored.json()["id"], ID);
        assert!(restored.json()["deleted_at"].is_null());
        assert!(!is_flagged(&app).await);
        assert_eq!(states(&app).await, "cancelled");

        let again = app.post(RESTORE).await;
        assert_eq!((again.status.as_u16(), &again.text), (200, &restored.text));
        assert_eq!(app.flips().await, [format!("restore anonymous {{{ID}}}")]);
    }
}

#[tokio::test]
async fn a_living_row_is_restored_already() {
    let app = with_row("null").await;
    assert_eq!(app.post(RESTORE).await.status, 200);
    assert!(app.flips().await.is_empty());
}

#[tokio::test]
async fn after_the_claim_a_restore_is_refused_and_changes_nothing() {
    let app = with_row("now()").await;
    app.db.run(CLAIM).await;
    assert_eq!(app.post(RESTORE).await.problem(409), "claimed");
    app.db.run("update tombstream.deletion set state = 'parked'").await;
    assert_eq!(app.post(RESTORE).await.problem(409), "claimed");
    assert!(is_flagged(&app).await);
    assert_eq!(states(&app).await, "parked");
    app.db.run("delete from documents").await;
    app.db.run("update tombstream.deletion set state = 'claimed'").await;
    app.db.run("update tombstream.deletion set state = 'finalized', closed_at = now()").await;
    assert_eq!(app.post(RESTORE).await.problem(409), "claimed");
    assert!(app.flips().await.is_empty());
}

/// A row that plain SQL revived after the claim, where no trigger refused it: its copies go.
#[tokio::test]
async fn a_living_row_under_a_claim_is_not_called_restored() {
    let app = with_row("null").await;
    app.db.run(CLAIM).await;
    assert_eq!(app.post(RESTORE).await.problem(409), "claimed");
}

#[tokio::test]
async fn a_deletion_of_an_earlier_life_refuses_nothing() {
    let app = with_row("now()").await;
    for state in ["finalized", "superseded", "late_restore"] {
        app.db.run(CLAIM).await;
        let close = format!(
            "update tombstream.deletion set state = '{state}', closed_at = now() where closed_at is null"
        );
        app.db.run(&close).await;
    }
    assert_eq!(app.post(RESTORE).await.status, 200);
    assert_eq!(states(&app).await, "finalized superseded late_restore");
}

/// The claim holds the row when the restore comes, and commits while it waits: what the restore
/// decides by must be newer than its lock, whatever isolation the database has by default.
#[tokio::test]
async fn a_restore_that_waited_for_a_claim_is_refused() {
    for isolation in ["read committed", "repeatable read", "serializable"] {
        let app = with_row("now()").await;
        app.db.isolate(isolation).await;
        let mut claimer = PgConnection::connect_with(&app.db.options).await.unwrap();
        let mut claim = claimer.begin_with("begin isolation level read committed").await.unwrap();
        let lock = "select from documents for no key update";
        sqlx::raw_sql(lock).execute(&mut *claim).await.unwrap();
        let router = app.router.clone();
        let restore = tokio::spawn(async move { send(&router, ask("POST", RESTORE)).await });
        app.db.somebody_waits().await;
        sqlx::raw_sql(CLAIM).execute(&mut *claim).await.unwrap();
        claim.commit().await.unwrap();
        assert_eq!(restore.await.unwrap().problem(409), "claimed", "{isolation}");
        assert!(is_flagged(&app).await);
        assert_eq!(states(&app).await, "claimed");
    }
}

/// The other way round: who restores first wins, and the claim's `skip locked` sees a locked row.
#[tokio::test]
async fn flips_restores_and_claims_at_once_end_alive_or_claimed() {
    let app = App::documents().await;
    app.db.run("insert into documents (name) select 'x' from generate_series(1, 150)").await;
    let ids: Vec<String> =
        sqlx::query_scalar("select id::text from documents").fetch_all(&app.db.pool).await.unwrap();
    let claims = {
        let options = app.db.options.clone();
        let ids = ids.clone();
        tokio::spawn(async move {
            let mut claimer = PgConnection::connect_with(&options).await.unwrap();
            for id in ids {
                let mut claim = claimer.begin().await.unwrap();
                let lock = "select from documents where id = $1::text::uuid
                    for no key update skip locked";
                let locked = sqlx::query(lock).bind(&id).fetch_optional(&mut *claim).await.unwrap();
                if locked.is_some() {
                    let claimed = "insert into tombstream.deletion
                            (relation, key, state, flag, targets, lease_token, claimed_at)
                        select 'documents', array[id::text], 'claimed', 'x', '[]', 1, now()
                        from documents where id = $1::text::uuid and deleted_at is not null";
                    sqlx::query(claimed).bind(&id).execute(&mut *claim).await.unwrap();
                }
                claim.commit().await.unwrap();
            }
        })
    };
    let (mut restored, mut refused) = (0, 0);
    for id in &ids {
        let (router, path) = (app.router.clone(), format!("/documents/{id}"));
        let flag = tokio::spawn(async move { send(&router, ask("DELETE", &path)).await.status });
        let answer = app.post(&format!("/documents/{id}/restore")).await;
        assert_eq!(flag.await.unwrap(), 202);
        match answer.status.as_u16() {
            200 => restored += 1,
            409 => refused += 1,
            _ => panic!("{answer:?}"),
        }
    }
    claims.await.unwrap();
    assert_eq!(restored + refused, ids.len());
    let torn =
        "select count(*) from documents r join tombstream.deletion d on d.key = array[r.id::text]
        where d.state = 'claimed' and r.deleted_at is null";
    assert_eq!(app.db.text(torn).await.unwrap(), "0", "alive and claimed");
}

#[tokio::test]
async fn the_guard_triggers_refusal_is_409() {
    let app = with_row("now()").await;
    app.db
        .run(
            "create function refuse() returns trigger language plpgsql as $$
         begin raise exception 'secret' using errcode = 'TS001'; end $$;
         create trigger refuse before update on documents for each row execute function refuse()",
        )
        .await;
    let refused = app.post(RESTORE).await;
    assert_eq!(refused.problem(409), "claimed");
    assert!(!refused.text.contains("secret"));
}

/// A guard that writes the deletion's ledger row itself, as S2 has it.
#[tokio::test]
async fn a_guard_that_cancels_itself_is_no_trouble() {
    let app = with_row("now()").await;
    app.db
        .run(
            "create function guard() returns trigger language plpgsql security definer
             set search_path = '' as $$
         declare found_state text;
         begin
             insert into tombstream.deletion as d (relation, key, state)
             values ('documents', array[old.id::text], 'pending')
             on conflict (relation, key) where state in ('pending', 'hidden', 'claimed', 'parked')
             do update set attempts = d.attempts returning d.state into found_state;
             if found_state = 'claimed' then
                 raise exception 'claimed' using errcode = 'TS001';
             end if;
             update tombstream.deletion set state = 'cancelled', closed_at = now()
             where relation = 'documents' and key = array[old.id::text] and closed_at is null;
             return new;
         end $$;
         create trigger guard before update on documents for each row
             when (old.deleted_at is not null and new.deleted_at is null) execute function guard();
         alter table documents enable always trigger guard",
        )
        .await;
    open(&app, "pending").await;
    assert_eq!(app.post(RESTORE).await.status, 200);
    assert_eq!(states(&app).await, "cancelled");
    assert_eq!(app.delete(PATH).await.status, 202);
    app.db.run(CLAIM).await;
    assert_eq!(app.post(RESTORE).await.problem(409), "claimed");
    assert!(is_flagged(&app).await);
}

#[tokio::test]
async fn a_trigger_that_keeps_the_row_is_not_hidden() {
    let app = with_row("null").await;
    app.db.run(
        "create function keep() returns trigger language plpgsql as $$ begin return null; end $$;
         create trigger keep before update on documents for each row execute function keep()",
    ).await;
    assert_eq!(app.delete(PATH).await.problem(409), "conflict");
    app.db
        .run(
            "alter table documents disable trigger keep; update documents set deleted_at = now();
         alter table documents enable trigger keep",
        )
        .await;
    assert_eq!(app.post(RESTORE).await.problem(409), "conflict");
    app.db
        .run(
            "create or replace function keep() returns trigger language plpgsql as $$
         begin new.deleted_at = old.deleted_at; return new; end $$",
        )
        .await;
    assert_eq!(app.post(RESTORE).await.problem(409), "conflict");
    assert!(is_flagged(&app).await);
    assert!(app.flips().await.is_empty());
}

#[tokio::test]
async fn a_caller_who_goes_away_takes_no_later_flag_along() {
    let app = with_row("now()").await;
    let insert = "insert into documents select gen_random_uuid(), 'y' from generate_series(1, 200)";
    app.db.run(insert).await;
    let ids: Vec<String> = sqlx::query_scalar("select id::text from documents where name = 'y'")
        .fetch_all(&app.db.pool)
        .await
        .unwrap();
    // One request after the other, so that all have one connection.
    app.post(RESTORE).await;
    for (id, n) in ids.iter().zip(0..) {
        // Given up anywhere between its first statement and its last, longer each time.
        let restore = send(&app.router, ask("POST", RESTORE));
        drop(tokio::time::timeout(Duration::from_micros(n * 10), restore).await);
        let flagged = app.delete(&format!("/documents/{id}")).await;
        assert_eq!(flagged.status, 202, "{flagged:?}");
        let sql = format!("select deleted_at is not null from documents where id = '{id}'");
        assert_eq!(app.db.text(&sql).await.as_deref(), Some("true"), "answered, and not durable");
    }
}
