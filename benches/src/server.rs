//! The servers that benches run against, and names of one's own on them.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, PgPool};
use tokio::process::Command;
use tombstream_connectors::Secret;
use tombstream_connectors::s3::{S3Config, S3Credentials};
use tombstream_e2e::Servers;

/// What the S3 server says that it is.
pub(crate) const S3_REGION: &str = "us-east-1";

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
fn s3_credentials() -> Result<S3Credentials> {
    let (id, secret) = s3_keys()?;
    Ok(S3Credentials {
        access_key_id: Secret::new(id),
        secret_access_key: Secret::new(secret),
        session_token: None,
    })
}

/// Beyond what any server takes: what is measured is not the pace that is kept for AWS.
const RATE: u32 = 10_000_000;

/// That server's bucket, as the connector wants it told, and no pace kept.
pub(crate) fn s3_config(bucket: &str) -> Result<S3Config> {
    let mut config = S3Config::new(S3_REGION, bucket);
    config.endpoint = Some(s3_endpoint()?);
    config.credentials = Some(s3_credentials()?);
    config.rate_per_prefix = RATE.try_into()?;
    Ok(config)
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

/// A program of the server's own, such as pgbench, that will connect to the database `at`.
pub(crate) async fn program(pool: &PgPool, at: &PgConnectOptions, name: &str) -> Result<Command> {
    let folder: String = sqlx::query_scalar("select setting from pg_config where name = 'BINDIR'")
        .fetch_one(pool)
        .await?;
    let mut command = Command::new(PathBuf::from(folder).join(name));
    command
        .env("PGHOST", at.get_host())
        .env("PGPORT", at.get_port().to_string())
        .env("PGUSER", at.get_username())
        .env("PGDATABASE", at.get_database().unwrap_or_default())
        .env("PGPASSWORD", at.to_url_lossy().password().unwrap_or_default())
        .stdin(Stdio::null());
    Ok(command)
}
