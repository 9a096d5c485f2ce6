//! The servers that benches run against, and names of one's own on them.

use anyhow::{Context as _, Result};
use sqlx::{AssertSqlSafe, PgPool};

/// A superuser's url.
pub(crate) fn postgres_url() -> Result<String> {
    setting("TOMBSTREAM_TEST_POSTGRES_URL", "postgres")
}

/// `host:port`.
pub(crate) fn kafka_brokers() -> Result<String> {
    setting("TOMBSTREAM_TEST_KAFKA_BROKERS", "kafka")
}

fn setting(name: &str, service: &str) -> Result<String> {
    std::env::var(name).with_context(|| {
        format!(
            "{name} is not set: `cargo xtask services up --only {service}`, then eval \"$(cargo xtask services \
             env)\""
        )
    })
}

/// A name that nothing else has.
pub(crate) fn new_name(prefix: &str) -> String {
    format!("{prefix}{}", &uuid::Uuid::new_v4().simple().to_string()[..8])
}

pub(crate) async fn execute(pool: &PgPool, sql: &str) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(pool)
        .await
        .map(drop)
        .with_context(|| sql.to_owned())
}
