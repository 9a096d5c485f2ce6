//! `kind = "postgres_table"`: rows of a table in another database.

use std::num::NonZeroU32;
use std::time::Duration;

use super::document::Section;
use super::relation::Table;
use super::secret::SecretRef;

/// Which table, and what a delete there may do.
#[derive(Clone, Debug)]
pub(crate) struct PostgresTableSection {
    /// A secret as a whole, since a password is in it.
    pub(crate) url: SecretRef,
    pub(crate) table: Table,
    /// Whether an address may mean several rows. False: then more than one is a mistake, and stays.
    pub(crate) many: bool,
    /// Tables whose rows a deleted one may take along or change. Empty: none.
    pub(crate) allow_cascade: Vec<String>,
    /// Most connections. 4: as many as the default of `in_flight_max`.
    pub(crate) pool_max: NonZeroU32,
    /// Longest wait for a row that another transaction holds. 200 ms, as for finalizing.
    pub(crate) lock_timeout: Duration,
    /// Longest wait for a connection. 5 s.
    pub(crate) connect_timeout: Duration,
}

impl PostgresTableSection {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        if !section.has("url") {
            let fix =
                "write url = { env = \"REPORTING_URL\" }: postgresql://user:password@host/database";
            section.problem(section.place("url"), "missing", fix);
        }
        let url = section.secret("url");
        let table = section.need("table", "write table = \"public.document_copies\"");
        let many = section.or("many", false);
        let allow_cascade = section.or("allow_cascade", Vec::new());
        let pool_max = section.or("pool_max", NonZeroU32::new(4).expect("not zero"));
        let lock_timeout = section.or("lock_timeout", Duration::from_millis(200));
        let connect_timeout = section.or("connect_timeout", Duration::from_secs(5));
        Some(Self {
            url: url?,
            table: table?,
            many,
            allow_cascade,
            pool_max,
            lock_timeout,
            connect_timeout,
        })
    }

    /// What addresses and receipts call it.
    pub(crate) fn shown(&self) -> String {
        format!("{}.{}", self.table.schema, self.table.name)
    }
}
