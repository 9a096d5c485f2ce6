//! The tests' Postgres does not wait for its disk. A bench's does, as everybody's should.

use crate::services::{Service, State};
use anyhow::{Context, Result};
use sqlx::{Connection, PgConnection};
use tokio::runtime::Handle;

const ON: &str = "alter system set fsync = on; alter system set synchronous_commit = on";
const AS_BEFORE: &str = "alter system reset fsync; alter system reset synchronous_commit";

/// Until it is dropped, the server waits for its disk.
pub(super) struct Durable {
    url: String,
}

impl Durable {
    /// None where no Postgres runs.
    pub(super) fn make(state: &State) -> Result<Option<Self>> {
        if !state.runs(Service::Postgres) {
            return Ok(None);
        }
        let url = state.environment().into_iter().find(|it| it.0 == "TOMBSTREAM_TEST_POSTGRES_URL");
        let url = url.context("Postgres runs and has no address")?.1;
        set(&url, ON)?;
        Ok(Some(Self { url }))
    }
}

impl Drop for Durable {
    fn drop(&mut self) {
        if let Err(error) = set(&self.url, AS_BEFORE) {
            eprintln!("bench: Postgres keeps its settings: {error:#}");
        }
    }
}

/// Each statement alone: `alter system` takes no transaction.
fn set(url: &str, statements: &'static str) -> Result<()> {
    Handle::current().block_on(async {
        let mut server = PgConnection::connect(url).await.context("can't reach Postgres")?;
        for statement in statements.split("; ").chain(["select pg_reload_conf()"]) {
            sqlx::raw_sql(statement).execute(&mut server).await.context(statement)?;
        }
        Ok(())
    })
}
