//! `[database]`: the relations' Postgres, in which the ledger is the schema `tombstream`.

use std::num::NonZeroU32;

use super::document::Section;
use super::secret::SecretRef;

/// How Postgres is reached.
#[derive(Clone, Debug)]
pub(crate) struct DatabaseConfig {
    /// A connection URL. It usually holds a password, so it is a secret as a whole.
    pub(crate) url: SecretRef,
    /// Most connections of this process. 8: claims, finalizing transactions, the sweep and the
    /// health check of two workers run side by side without waiting for each other.
    pub(crate) pool_max: NonZeroU32,
    /// Whether statements are prepared on the server. True saves planning; pgbouncer in
    /// transaction mode needs false.
    pub(crate) prepared_statements: bool,
}

impl DatabaseConfig {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let fix = "write url = { env = \"DATABASE_URL\" }";
        if !section.has("url") {
            section.need::<SecretRef>("url", fix);
        }
        let url = section.secret("url");
        let pool_max = section.or("pool_max", NonZeroU32::new(8).expect("not zero"));
        let prepared_statements = section.or("prepared_statements", true);
        Some(Self { url: url?, pool_max, prepared_statements })
    }
}
