//! The logins of a run: the api and the pipeline may do no more than their roles let them.

use anyhow::{Context, Result};
use sqlx::AssertSqlSafe;
use sqlx::ConnectOptions as _;
use sqlx::postgres::PgConnectOptions;
use std::str::FromStr;
use tombstream_e2e::{Database, Program};

pub(super) struct Logins {
    api: String,
    pipeline: String,
}

impl Logins {
    pub(super) fn new(name: &str) -> Self {
        Self { api: format!("{name}_api"), pipeline: format!("{name}_run") }
    }

    /// Makes them, once the roles are there. The pipeline's may open a slot, too.
    pub(super) async fn make(&self, database: &Database) -> Result<()> {
        let Self { api, pipeline } = self;
        let sql = format!(
            "create role \"{api}\" login password 'e2e'; grant tombstream_api to \"{api}\"; \
             create role \"{pipeline}\" login replication password 'e2e'; \
             grant tombstream_pipeline to \"{pipeline}\""
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(database.pool()).await.context("the logins")?;
        Ok(())
    }

    /// After the database: what they were granted is gone with it.
    pub(super) async fn remove(&self, server_url: &str) -> Result<()> {
        let mut server = PgConnectOptions::from_str(server_url)?.connect().await?;
        for login in [&self.api, &self.pipeline] {
            let sql = format!("drop role if exists \"{login}\"");
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut server).await?;
        }
        Ok(())
    }

    /// `program` as the api's login.
    pub(super) fn api(&self, program: &Program) -> Result<Program> {
        as_login(program, &self.api)
    }

    /// `program` as the pipeline's login.
    pub(super) fn pipeline(&self, program: &Program) -> Result<Program> {
        as_login(program, &self.pipeline)
    }
}

fn as_login(program: &Program, login: &str) -> Result<Program> {
    let mut program = program.clone();
    for (name, value) in &mut program.variables {
        if *name == "DATABASE_URL" {
            let options = PgConnectOptions::from_str(value)?.username(login).password("e2e");
            *value = options.to_url_lossy().to_string();
        }
    }
    Ok(program)
}
