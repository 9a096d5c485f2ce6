//! The real servers that tests and development run against.
//!
//! Owned here: which servers there are, in which order they start, and that what was started is
//! stopped again, by process id and start time. Through Docker compose where an engine answers,
//! else from package registries (Maven, Go, Debian). Nothing here knows what the servers are for.

pub(crate) mod cli;
mod compose;
mod connect;
mod elasticsearch;
mod java;
mod kafka;
mod ports;
mod postgres;
mod process;
mod s3;
mod session;
mod state;

pub(crate) use process::Process;
pub(crate) use session::Session;
pub(crate) use state::State;

use crate::shell;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use state::{Engine, Server};
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

/// One of the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Service {
    Postgres,
    Kafka,
    Connect,
    Elasticsearch,
    S3,
}

impl Service {
    pub(crate) const ALL: [Self; 5] =
        [Self::Postgres, Self::Kafka, Self::Connect, Self::Elasticsearch, Self::S3];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Kafka => "kafka",
            Self::Connect => "connect",
            Self::Elasticsearch => "elasticsearch",
            Self::S3 => "s3",
        }
    }

    /// How many ports it listens on; the first is the one that clients use.
    const fn ports(self) -> usize {
        match self {
            Self::Postgres | Self::Connect | Self::S3 => 1,
            Self::Kafka | Self::Elasticsearch => 2,
        }
    }
}

/// The default folder of the servers' state.
pub(crate) fn default_dir() -> PathBuf {
    shell::root().join("target/services")
}

/// Starts what does not run yet and returns once all of it is ready.
///
/// An error or an interrupt stops what this call has started, and nothing else.
pub(crate) fn up(dir: &Path, only: &[Service]) -> Result<State> {
    std::fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
    let dir = &dir.canonicalize()?;
    let _lock = lock(dir)?;
    let wanted = with_needs(only);
    let mut state = State::load(dir)?;
    state.forget_ended();
    let missing: Vec<Service> =
        wanted.iter().copied().filter(|service| !state.runs(*service)).collect();
    if missing.is_empty() {
        return Ok(state);
    }
    if state.servers.is_empty() {
        state.engine = if compose::answers() { Engine::Compose } else { Engine::Native };
    }
    ports::assign(&mut state, &missing)?;
    state.save(dir)?;
    let started = Instant::now();
    let done = match state.engine {
        Engine::Compose => compose::up(dir, &mut state, &missing),
        Engine::Native => native_up(dir, &mut state, &missing),
    };
    state.save(dir)?;
    if let Err(error) = done {
        eprintln!("services: not all came up, stopping those that this call started");
        stop(dir, &mut state, &missing)?;
        state.save(dir)?;
        return Err(error);
    }
    eprintln!("services: {} ready in {:.1} s", missing.len(), started.elapsed().as_secs_f32());
    Ok(state)
}

/// Stops the servers of that folder, by process id; with `wipe` their data go too.
pub(crate) fn down(dir: &Path, only: &[Service], wipe: bool) -> Result<()> {
    let Ok(dir) = &dir.canonicalize() else { return Ok(()) };
    let _lock = lock(dir)?;
    let mut state = State::load(dir)?;
    let chosen: Vec<Service> = if only.is_empty() { Service::ALL.to_vec() } else { only.to_vec() };
    stop(dir, &mut state, &chosen)?;
    if wipe {
        if state.engine == Engine::Compose {
            compose::wipe(dir)?;
        }
        for service in chosen {
            if let Some(data) = state.data.remove(&service) {
                remove(&data)?;
            }
        }
    }
    state.save(dir)
}

/// Connect is nothing without Kafka.
fn with_needs(only: &[Service]) -> BTreeSet<Service> {
    let mut wanted: BTreeSet<Service> =
        if only.is_empty() { Service::ALL.into() } else { only.iter().copied().collect() };
    if wanted.contains(&Service::Connect) {
        wanted.insert(Service::Kafka);
    }
    wanted
}

fn native_up(dir: &Path, state: &mut State, missing: &[Service]) -> Result<()> {
    if !cfg!(target_os = "linux") {
        bail!(
            "no Docker engine answers, and starting the servers without one works on Linux only: \
             start Docker, or run this on Linux"
        );
    }
    let plan = state.clone();
    let plan = &plan;
    let kafka_is_missing = missing.contains(&Service::Kafka);
    let (sent, ended) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        for service in missing.iter().copied() {
            if service == Service::Connect && kafka_is_missing {
                continue; // Starts in Kafka's thread, once that is ready.
            }
            let sent = sent.clone();
            scope.spawn(move || {
                let mut done = start(service, dir, plan);
                let follows = service == Service::Kafka && missing.contains(&Service::Connect);
                if follows && done.is_ok() {
                    sent.send((service, done)).expect("the receiver outlives the scope");
                    done = start(Service::Connect, dir, plan);
                    sent.send((Service::Connect, done)).expect("the receiver outlives the scope");
                } else {
                    sent.send((service, done)).expect("the receiver outlives the scope");
                }
            });
        }
    });
    drop(sent);
    let mut failures = Vec::new();
    for (service, done) in ended {
        match done {
            Ok(server) => {
                if let Some(data) = &server.data {
                    state.data.insert(service, data.clone());
                }
                state.servers.insert(service, server);
            }
            Err(error) => failures.push(format!("{}: {error:#}", service.name())),
        }
    }
    if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("\n")) }
}

fn start(service: Service, dir: &Path, plan: &State) -> Result<Server> {
    shell::check_interrupt()?;
    let home = dir.join(service.name());
    std::fs::create_dir_all(&home).with_context(|| format!("can't make {}", home.display()))?;
    let ports = plan.ports.get(&service).context("a port was assigned before")?;
    let started = Instant::now();
    let server = match service {
        Service::Postgres => postgres::start(&home, ports[0]),
        Service::Kafka => kafka::start(&home, ports[0], ports[1]),
        Service::Connect => {
            let kafka = plan.ports.get(&Service::Kafka).context("connect starts after kafka")?;
            connect::start(&home, ports[0], kafka[0])
        }
        Service::Elasticsearch => elasticsearch::start(&home, ports[0], ports[1]),
        Service::S3 => s3::start(&home, ports[0]),
    }?;
    eprintln!(
        "services: {} ready on 127.0.0.1:{} after {:.1} s",
        service.name(),
        ports[0],
        started.elapsed().as_secs_f32()
    );
    Ok(server)
}

/// Connect goes first: it would log a storm of errors about a missing broker.
fn stop(dir: &Path, state: &mut State, services: &[Service]) -> Result<()> {
    if state.engine == Engine::Compose {
        return compose::stop(dir, state, services);
    }
    let mut chosen: Vec<Service> = services.to_vec();
    chosen.sort_by_key(|service| *service != Service::Connect);
    for service in &chosen {
        if let Some(server) = state.servers.get(service)
            && let Some(process) = server.process
        {
            process.ask_to_end(*service == Service::Postgres);
        }
    }
    for service in &chosen {
        if let Some(server) = state.servers.remove(service)
            && let Some(process) = server.process
        {
            process.wait_for_end();
            eprintln!("services: {} stopped", service.name());
        }
    }
    Ok(())
}

fn lock(dir: &Path) -> Result<File> {
    let lock = File::create(dir.join(".lock"))
        .with_context(|| format!("can't write in {}", dir.display()))?;
    lock.lock().context("can't lock the services' folder")?;
    Ok(lock)
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("can't remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
