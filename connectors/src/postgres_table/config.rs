//! How a table of another database is declared.

use std::num::{NonZeroU32, NonZeroUsize};
use std::str::FromStr as _;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

use crate::Secret;

/// A store of kind `postgres_table`. The URL is handed in resolved.
#[derive(Clone, Debug)]
pub struct PostgresTableConfig {
    /// `postgresql://user:password@host/database`. A pooler in transaction mode may stand in between.
    pub url: Secret,
    /// What addresses call the table; an address in any other is refused (S8).
    pub table: String,
    /// The table's schema, as the catalogue has it.
    pub schema: String,
    /// Its name there.
    pub name: String,
    /// Whether an address may mean several rows. False: more than one is a mistake, and stays.
    pub many: bool,
    /// Tables (`schema.table`) whose rows a deleted one may take along or change.
    pub allow_cascade: Vec<String>,
    /// Most connections. 4: as many batches as a worker has in flight.
    pub pool_max: NonZeroU32,
    /// Most addresses of one transaction. 1,000: some ten milliseconds of index look-ups.
    pub items_max: NonZeroUsize,
    /// Longest wait for a row that another transaction holds. 200 ms, as for finalizing: a batch shall not
    /// wait for one row.
    pub lock_timeout: Duration,
    /// Longest time of one statement. 10 s; a destroy never works beyond its lease.
    pub statement_timeout: Duration,
    /// Longest wait for a connection. 5 s.
    pub connect_timeout: Duration,
}

/// What is wrong with a declaration.
#[derive(Debug, thiserror::Error)]
pub enum PostgresTableConfigError {
    /// The URL. What the parser complains of may quote it, and so the password.
    #[error("url is no postgresql:// url")]
    Url,
}

impl PostgresTableConfig {
    /// One table with every default.
    pub fn new(url: Secret, schema: impl Into<String>, name: impl Into<String>) -> Self {
        let (schema, name) = (schema.into(), name.into());
        Self {
            url,
            table: format!("{schema}.{name}"),
            schema,
            name,
            many: false,
            allow_cascade: Vec::new(),
            pool_max: NonZeroU32::new(4).expect("four is not zero"),
            items_max: NonZeroUsize::new(1_000).expect("a thousand is not zero"),
            lock_timeout: Duration::from_millis(200),
            statement_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
        }
    }

    /// A pool that connects when it is asked. Statements have no names and no cache, nor does the start ask
    /// for what a pooler in transaction mode does not know.
    pub(super) fn open(&self) -> Result<PgPool, PostgresTableConfigError> {
        let options = PgConnectOptions::from_str(self.url.reveal())
            .map_err(|_| PostgresTableConfigError::Url)?
            .application_name("tombstream")
            .statement_cache_capacity(0)
            .extra_float_digits(None);
        Ok(PgPoolOptions::new()
            .max_connections(self.pool_max.get())
            .acquire_timeout(self.connect_timeout)
            .connect_lazy_with(options))
    }
}
