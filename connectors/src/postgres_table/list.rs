//! A table of another database, listed whole: of each set of columns by which rows are found, their values in every row.
//!
//! A cursor in one read-only transaction shows one snapshot, and ends where the snapshot does. The price is that the
//! transaction stays open for as long as the comparison reads. A row with nothing in one of the columns is at no address.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sqlx::{AssertSqlSafe, Executor as _, Postgres, Row as _, Transaction};
use tombstream_model::{Address, Listed, Listing, ListingError, ListingPart, SinkError};

use super::answer::Fault;
use super::catalogue;
use super::sink::PostgresTableSink;
use super::statement::ident;

/// Rows of a page: some hundred kilobytes.
const PAGE: usize = 2_000;

/// A table, as a listing.
#[derive(Clone)]
pub struct PostgresTableListing {
    sink: Arc<PostgresTableSink>,
    /// Each set of columns that templates name together.
    shapes: BTreeSet<Vec<String>>,
}

/// All rows, by one set of columns.
pub struct PostgresTablePart {
    table: Arc<str>,
    columns: Vec<String>,
    snapshot: Transaction<'static, Postgres>,
    has_ended: bool,
}

/// What a row-level policy hides is an error here, and no missing row (S6).
const BEGIN: &str = "begin isolation level repeatable read read only; set local row_security = off; \
    set local statement_timeout = '10min'; set local idle_in_transaction_session_timeout = 0";

impl PostgresTableListing {
    /// A listing by the sets of columns that templates name.
    pub fn new(
        sink: Arc<PostgresTableSink>,
        shapes: impl IntoIterator<Item = Vec<String>>,
    ) -> Self {
        Self { sink, shapes: shapes.into_iter().collect() }
    }
}

fn unavailable(error: sqlx::Error) -> ListingError {
    fault(error.into())
}

fn fault(fault: Fault) -> ListingError {
    match fault {
        Fault::Whole(error) => error.into(),
        Fault::Row(_, said) => SinkError::Denied(said).into(),
    }
}

impl Listing for PostgresTableListing {
    type Item = Listed;
    type Part = PostgresTablePart;

    async fn parts(&self, _: usize, _: &[Address]) -> Result<Vec<PostgresTablePart>, ListingError> {
        let config = &self.sink.config;
        let mut parts = Vec::new();
        for shape in &self.shapes {
            let mut snapshot = self.sink.pool.begin_with(BEGIN).await.map_err(unavailable)?;
            let table = catalogue::table(&mut snapshot, config).await.map_err(fault)?;
            let names: Vec<&str> = shape.iter().map(String::as_str).collect();
            // The types that an address may be of: of others a row's text may be another's.
            catalogue::columns(&mut snapshot, config, table, &names).await.map_err(fault)?;
            let list = |show: fn(String) -> String| {
                let columns = shape.iter().map(|name| show(ident(name)));
                columns.collect::<Vec<_>>().join(", ")
            };
            let there: Vec<String> =
                shape.iter().map(|name| format!("{} is not null", ident(name))).collect();
            // An address that means several rows is one place.
            let cursor = format!(
                "declare listed no scroll cursor for select {distinct}{columns} from {schema}.{name} where {there}",
                distinct = if config.many { "distinct " } else { "" },
                columns = list(|name| format!("{name}::text")),
                schema = ident(&config.schema),
                name = ident(&config.name),
                there = there.join(" and "),
            );
            snapshot
                .execute(sqlx::raw_sql(AssertSqlSafe(cursor))) // Identifiers quoted.
                .await
                .map_err(unavailable)?;
            parts.push(PostgresTablePart {
                table: config.table.as_str().into(),
                columns: shape.clone(),
                snapshot,
                has_ended: false,
            });
        }
        Ok(parts)
    }
}

impl ListingPart for PostgresTablePart {
    type Item = Listed;

    async fn next(&mut self) -> Result<Option<Vec<Listed>>, ListingError> {
        if self.has_ended {
            return Ok(None);
        }
        let fetch = AssertSqlSafe(format!("fetch forward {PAGE} from listed"));
        let rows = sqlx::query(fetch).persistent(false).fetch_all(&mut *self.snapshot).await;
        // What was fetched and did not arrive comes no second time: the run ends.
        let rows = rows.map_err(|error| {
            ListingError::NotWhole(format!(
                "it broke off: {}",
                SinkError::Unavailable(error.into())
            ))
        })?;
        // Invariant (S6): a fetch that succeeds and brings nothing is the snapshot's end;
        // `every_row_of_a_table_is_listed_once`.
        self.has_ended = rows.is_empty();
        let listed = rows.iter().map(|row| {
            let values = self.columns.iter().enumerate();
            let columns = values.map(|(n, name)| Ok((name.clone(), row.try_get(n)?)));
            let columns = columns.collect::<Result<BTreeMap<String, String>, sqlx::Error>>()?;
            let address = Address::Row { table: Arc::clone(&self.table), columns };
            Ok(Listed { address, fields: Vec::new() })
        });
        listed.collect::<Result<_, sqlx::Error>>().map(Some).map_err(unavailable)
    }
}
