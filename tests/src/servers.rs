//! Where the servers are.

use anyhow::{Context, Result};

/// The addresses of the real servers.
#[derive(Debug, Clone)]
pub struct Servers {
    pub postgres: String,
    pub kafka: String,
    pub connect: String,
    pub elasticsearch: String,
    pub s3: String,
    pub s3_access_key: String,
    pub s3_secret_key: String,
    /// Host and port of Postgres as Connect sees it: not ours when both are in containers.
    pub postgres_from_connect: (String, u16),
}

impl Servers {
    /// From the variables that `cargo xtask test` sets; an error names the one that is missing.
    pub fn from_env() -> Result<Self> {
        let read = |name: &str| {
            std::env::var(name)
                .with_context(|| format!("{name} is not set: run `cargo xtask test`"))
        };
        let postgres = read("TOMBSTREAM_TEST_POSTGRES_URL")?;
        let seen = std::env::var("TOMBSTREAM_TEST_POSTGRES_FROM_CONNECT");
        let seen = seen.or_else(|_| host_and_port(&postgres))?;
        let (host, port) = seen.rsplit_once(':').context("a Postgres address without a port")?;
        let postgres_from_connect = (host.to_owned(), port.parse().context("Postgres's port")?);
        Ok(Self {
            postgres,
            kafka: read("TOMBSTREAM_TEST_KAFKA_BROKERS")?,
            connect: read("TOMBSTREAM_TEST_CONNECT_URL")?,
            elasticsearch: read("TOMBSTREAM_TEST_ELASTICSEARCH_URL")?,
            s3: read("TOMBSTREAM_TEST_S3_ENDPOINT")?,
            s3_access_key: read("TOMBSTREAM_TEST_S3_ACCESS_KEY")?,
            s3_secret_key: read("TOMBSTREAM_TEST_S3_SECRET_KEY")?,
            postgres_from_connect,
        })
    }
}

fn host_and_port(url: &str) -> Result<String> {
    let after = url.rsplit_once('@').context("a Postgres address without a user")?.1;
    Ok(after.split('/').next().unwrap_or(after).to_owned())
}
