//! The servers that benches run against, and names of one's own on them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use sqlx::{AssertSqlSafe, PgPool};
use tombstream_connectors::Secret;
use tombstream_connectors::s3::S3Credentials;
use tombstream_e2e::Servers;

/// A superuser's url.
pub(crate) fn postgres_url() -> Result<String> {
    setting("TOMBSTREAM_TEST_POSTGRES_URL", "postgres")
}

/// `host:port`.
pub(crate) fn kafka_brokers() -> Result<String> {
    setting("TOMBSTREAM_TEST_KAFKA_BROKERS", "kafka")
}

pub(crate) fn elasticsearch_url() -> Result<String> {
    setting("TOMBSTREAM_TEST_ELASTICSEARCH_URL", "elasticsearch")
}

pub(crate) fn s3_endpoint() -> Result<String> {
    setting("TOMBSTREAM_TEST_S3_ENDPOINT", "s3")
}

/// Who asks the S3 server, and what signs.
pub(crate) fn s3_keys() -> Result<(String, String)> {
    let key = |name| setting(name, "s3");
    Ok((key("TOMBSTREAM_TEST_S3_ACCESS_KEY")?, key("TOMBSTREAM_TEST_S3_SECRET_KEY")?))
}

/// The same, as the connector wants them.
pub(crate) fn s3_credentials() -> Result<S3Credentials> {
    let (id, secret) = s3_keys()?;
    Ok(S3Credentials {
        access_key_id: Secret::new(id),
        secret_access_key: Secret::new(secret),
        session_token: None,
    })
}

/// The stores alone: addresses of the other servers are left empty.
pub(crate) fn stores() -> Result<Servers> {
    let (s3_access_key, s3_secret_key) = s3_keys()?;
    Ok(Servers {
        postgres: String::new(),
        kafka: String::new(),
        connect: String::new(),
        elasticsearch: elasticsearch_url()?,
        s3: s3_endpoint()?,
        s3_access_key,
        s3_secret_key,
        postgres_from_connect: (String::new(), 0),
    })
}

/// All but Connect.
pub(crate) fn all() -> Result<Servers> {
    Ok(Servers { postgres: postgres_url()?, kafka: kafka_brokers()?, ..stores()? })
}

fn setting(name: &str, service: &str) -> Result<String> {
    std::env::var(name).with_context(|| {
        format!(
            "{name} is not set: `cargo xtask services up --only {service}`, then eval \"$(cargo xtask services \
             env)\""
        )
    })
}

/// The file system that a folder lies on, as Linux calls it: `tmpfs`, `ext4`. None where it is not told.
pub(crate) fn file_system(folder: &Path) -> Option<String> {
    let folder = folder.canonicalize().ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let of = |line: &str| {
        let mut words = line.split(' ').skip(1);
        let (place, kind) = (PathBuf::from(words.next()?), words.next()?.to_owned());
        folder.starts_with(&place).then_some((place, kind))
    };
    // The last of several on one place hides those before it.
    let deepest = mounts.lines().filter_map(of).max_by_key(|(place, _)| place.as_os_str().len());
    deepest.map(|(_, kind)| kind)
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
