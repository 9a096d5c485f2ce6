//! `services.json`: which servers run, where, and which ports they were given.

use super::process::Process;
use super::{Service, postgres, s3};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tombstream_e2e::Servers;

/// Who runs the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Engine {
    Compose,
    #[default]
    Native,
}

/// One running server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Server {
    /// None for a container.
    pub(crate) process: Option<Process>,
    /// What `down --wipe` removes.
    pub(crate) data: Option<PathBuf>,
    pub(crate) log: Option<PathBuf>,
}

/// All of one folder's servers.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) engine: Engine,
    pub(crate) servers: BTreeMap<Service, Server>,
    /// Kept over a stop, so that data that name a port stay right.
    pub(crate) ports: BTreeMap<Service, Vec<u16>>,
    pub(crate) data: BTreeMap<Service, PathBuf>,
}

impl State {
    pub(crate) fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("services.json");
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| {
                format!("{} is damaged: stop its servers by hand and remove it", path.display())
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("can't read {}", path.display())),
        }
    }

    pub(crate) fn save(&self, dir: &Path) -> Result<()> {
        let path = dir.join("services.json");
        let mut shown = serde_json::to_value(self)?;
        shown["environment"] = serde_json::to_value(
            self.environment().into_iter().collect::<BTreeMap<&str, String>>(),
        )?;
        // Written aside and renamed: a reader never sees half of it.
        let aside = dir.join("services.json.new");
        std::fs::write(&aside, serde_json::to_vec_pretty(&shown)?)
            .and_then(|()| std::fs::rename(&aside, &path))
            .with_context(|| format!("can't write {}", path.display()))
    }

    /// Whether it runs: for a process of ours, by process id and start time.
    pub(crate) fn runs(&self, service: Service) -> bool {
        self.servers
            .get(&service)
            .is_some_and(|server| server.process.is_none_or(|process| process.is_alive()))
    }

    pub(crate) fn forget_ended(&mut self) {
        self.servers.retain(|_, server| server.process.is_none_or(|process| process.is_alive()));
    }

    fn port(&self, service: Service) -> Option<u16> {
        self.servers.get(&service)?;
        self.ports.get(&service)?.first().copied()
    }

    /// The addresses of the servers that are `needed`, those of others empty; an error names one that
    /// does not run.
    pub(crate) fn addresses(&self, needed: &[Service]) -> Result<Servers> {
        let port = |service: Service| {
            self.port(service).with_context(|| {
                format!("{} does not run: `cargo xtask services up`", service.name())
            })
        };
        let if_needed =
            |service: Service, address: fn(u16) -> String| match needed.contains(&service) {
                true => port(service).map(address),
                false => Ok(String::new()),
            };
        let postgres_port = port(Service::Postgres)?;
        Ok(Servers {
            postgres: postgres::url(postgres_port),
            kafka: if_needed(Service::Kafka, |port| format!("127.0.0.1:{port}"))?,
            connect: if_needed(Service::Connect, http)?,
            elasticsearch: http(port(Service::Elasticsearch)?),
            s3: http(port(Service::S3)?),
            s3_access_key: s3::ACCESS_KEY.to_owned(),
            s3_secret_key: s3::SECRET_KEY.to_owned(),
            postgres_from_connect: match self.engine {
                Engine::Compose => ("postgres".to_owned(), 5432),
                Engine::Native => ("127.0.0.1".to_owned(), postgres_port),
            },
        })
    }

    /// What tests read: the addresses of the servers that run.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let mut variables = Vec::new();
        if let Some(port) = self.port(Service::Postgres) {
            variables.push(("TOMBSTREAM_TEST_POSTGRES_URL", postgres::url(port)));
            if self.engine == Engine::Compose {
                let inside = "postgres:5432".to_owned();
                variables.push(("TOMBSTREAM_TEST_POSTGRES_FROM_CONNECT", inside));
            }
        }
        if let Some(port) = self.port(Service::Kafka) {
            variables.push(("TOMBSTREAM_TEST_KAFKA_BROKERS", format!("127.0.0.1:{port}")));
        }
        if let Some(port) = self.port(Service::Connect) {
            variables.push(("TOMBSTREAM_TEST_CONNECT_URL", http(port)));
        }
        if let Some(port) = self.port(Service::Elasticsearch) {
            variables.push(("TOMBSTREAM_TEST_ELASTICSEARCH_URL", http(port)));
        }
        if let Some(port) = self.port(Service::S3) {
            variables.push(("TOMBSTREAM_TEST_S3_ENDPOINT", http(port)));
            variables.push(("TOMBSTREAM_TEST_S3_ACCESS_KEY", s3::ACCESS_KEY.to_owned()));
            variables.push(("TOMBSTREAM_TEST_S3_SECRET_KEY", s3::SECRET_KEY.to_owned()));
        }
        variables
    }
}

fn http(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}
