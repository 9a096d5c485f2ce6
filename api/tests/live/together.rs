//! Flags that come at the same time and share a statement.

use std::time::Duration;

use axum::http::StatusCode;
use futures::future::join_all;
use tombstream_api::ApiConfig;
use tombstream_model::{FlagKind, KeyKind};

use crate::harness::{App, api, relation};

const THINGS: &str = "create table things (
        part text, id bigint, name text, gone timestamptz, primary key (part, id));
    insert into things select 'a/b', n, 'thing ' || n from generate_series(1, 200) n;
    update things set gone = '2026-01-01' where id <= 10";

async fn app(ddl: &str) -> App {
    let key = [("part", KeyKind::Text), ("id", KeyKind::Bigint)];
    let things = relation("things", &key, ("gone", FlagKind::TimestampTz));
    let relations = vec![api(things, "things", &["part", "id"], None)];
    App::with(ddl, ApiConfig { relations, group_flags: true, ..ApiConfig::default() }).await
}

fn path(id: usize) -> String {
    format!("/things/a%2Fb/{id}")
}

#[tokio::test]
async fn each_has_its_own_answer_after_a_commit_that_they_share() {
    let app = app(THINGS).await;
    // Of each of the first twenty two at once; the last twenty are not there.
    let ids: Vec<usize> = (1..=20).chain(1..=220).collect();
    let paths: Vec<String> = ids.iter().map(|id| path(*id)).collect();
    let answers = join_all(paths.iter().map(|path| app.delete(path))).await;
    for (id, answer) in ids.iter().zip(&answers) {
        let expected = if *id <= 200 { StatusCode::ACCEPTED } else { StatusCode::NOT_FOUND };
        assert_eq!(answer.status, expected, "{id}: {answer:?}");
        if *id <= 200 {
            assert_eq!(answer.json()["id"][1], *id);
        }
    }
    let count = async |what: &str| app.db.text(what).await.unwrap().parse::<usize>().unwrap();
    assert_eq!(count("select count(*) from things where gone is null").await, 0);
    let kept = "select count(*) from things where gone = '2026-01-01'";
    assert_eq!(count(kept).await, 10, "a flag keeps its value");
    assert_eq!(app.flips().await.len(), 190, "each flag is noted once");
    let commits = count("select count(distinct xmin::text) from things where id > 10").await;
    assert!(commits < 95, "{commits} transactions for 190 flags");
}

#[tokio::test]
async fn locked_rows_make_nobody_else_wait() {
    let app = app(THINGS).await;
    let mut application = app.db.pool.begin().await.unwrap();
    let lock = "select from things where id between 50 and 53 for update";
    sqlx::query(lock).execute(&mut *application).await.unwrap();
    // More of them than statements are in flight: each would hold up a turn.
    let locked: Vec<String> = (50..=53).map(path).collect();
    let others: Vec<String> = (100..=140).map(path).collect();
    let locked = join_all(locked.iter().map(|path| app.delete(path)));
    let others = async {
        let all = join_all(others.iter().map(|path| app.delete(path)));
        let all = tokio::time::timeout(Duration::from_secs(5), all).await;
        for answer in all.expect("others wait for locks that are not theirs") {
            assert_eq!(answer.status, 202, "{answer:?}");
        }
        let flagged = "select count(*) from things where id between 50 and 53 and gone is not null";
        assert_eq!(
            app.db.text(flagged).await.as_deref(),
            Some("0"),
            "nobody has taken a lock away"
        );
        application.rollback().await.unwrap();
    };
    let (locked, ()) = tokio::join!(locked, others);
    for answer in locked {
        assert_eq!(answer.status, 202, "{answer:?}");
    }
    assert_eq!(app.flips().await.len(), 45);
}

#[tokio::test]
async fn a_row_that_a_trigger_refuses_fails_alone() {
    let ddl = format!(
        "{THINGS};
        create function refuse() returns trigger language plpgsql as $$ begin
            if new.id = 77 then raise exception 'not this one' using errcode = 'check_violation'; end if;
            if new.id = 78 then return null; end if;
            return new;
        end $$;
        create trigger refuse before update on things for each row execute function refuse()"
    );
    let app = app(&ddl).await;
    let paths: Vec<String> = (61..=100).map(path).collect();
    let answers = join_all(paths.iter().map(|path| app.delete(path))).await;
    for (id, answer) in (61..).zip(answers) {
        match id {
            77 => assert!(answer.status.is_client_error(), "{answer:?}"),
            78 => assert_eq!(answer.problem(409), "conflict"),
            _ => assert_eq!(answer.status, 202, "{id}: {answer:?}"),
        }
    }
    assert_eq!(app.flips().await.len(), 38);
}
