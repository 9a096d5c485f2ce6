//! What `tombstream run` says when it can't start: what is wrong, where, and what to do.

use crate::scene::{SWEEP, Scene};
use anyhow::Result;
use tombstream_e2e::{Program, free_port};

const TABLES: &str = "create table documents (id bigint primary key, deleted_at timestamptz)";

const RELATION: &str = r#"
[relation.documents]
table = "public.documents"
key = [{ column = "id", type = "bigint" }]
flag = { column = "deleted_at", type = "timestamptz" }
key_reuse = "forbidden"
targets = [{ store = "originals", key = "{id}/original" }]
"#;

/// The exit code and all that it said; no secret is in it.
async fn run(program: &Program) -> Result<(Option<i32>, String)> {
    let output = program.output(&["run"]).await?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    println!("{said}");
    assert!(!said.contains("not-the-password"), "a secret was printed: {said}");
    Ok((output.status.code(), said))
}

fn with_url(program: &Program, url: &str) -> Program {
    let mut program = program.clone();
    program.variables.retain(|(name, _)| *name != "DATABASE_URL");
    program.variables.push(("DATABASE_URL", url.to_owned()));
    program
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_can_not_start_says_what_and_where_and_what_to_do() -> Result<()> {
    let scene = Scene::make("start", TABLES).await?;
    let program = scene.program(&scene.config("", "", &format!("{SWEEP}{RELATION}")))?;

    let (code, said) = run(&program).await?;
    assert_eq!(code, Some(1), "an unmigrated ledger: {said}");
    assert!(said.contains("the ledger is not migrated: run `tombstream migrate`"), "{said}");

    let mut unset = program.clone();
    unset.variables.retain(|(name, _)| *name != "AWS_SECRET_ACCESS_KEY");
    let (code, said) = run(&unset).await?;
    assert_eq!(code, Some(2), "a missing variable: {said}");
    assert!(said.contains("store.originals.secret_access_key"), "{said}");
    assert!(said.contains("AWS_SECRET_ACCESS_KEY") && said.contains("fix: "), "{said}");

    // Nobody listens there.
    let closed = free_port()?;
    let url = format!("postgresql://postgres:not-the-password@127.0.0.1:{closed}/app");
    let (code, said) = run(&with_url(&program, &url)).await?;
    assert_eq!(code, Some(1), "no server: {said}");
    let place = format!("the database at 127.0.0.1:{closed} can't be reached");
    assert!(said.contains(&place) && said.contains("refused"), "{said}");
    assert!(said.contains("is database.url right, and does it listen?"), "{said}");

    // A role of one's own, so that nothing else depends on its password.
    let role = format!("{}_role", scene.name);
    let make = format!("create role {role} login password 'the-right-one'");
    sqlx::query(sqlx::AssertSqlSafe(make)).execute(scene.pool()).await?;
    let address = scene.database.url().rsplit_once('@').map_or("", |(_, address)| address);
    let url = format!("postgresql://{role}:not-the-password@{address}");
    let (code, said) = run(&with_url(&program, &url)).await?;
    assert_eq!(code, Some(1), "a wrong password: {said}");
    assert!(said.contains("password authentication failed for user"), "{said}");
    assert!(said.contains(&role), "{said}");
    let drop = format!("drop role {role}");
    sqlx::query(sqlx::AssertSqlSafe(drop)).execute(scene.pool()).await?;
    scene.remove().await
}
