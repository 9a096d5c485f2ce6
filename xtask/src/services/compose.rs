//! The same servers as containers of `compose.yaml`, where a Docker engine answers.

use super::state::{Server, State};
use super::{Service, s3};
use crate::shell;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Whether an engine and the compose plug-in are there.
pub(super) fn answers() -> bool {
    shell::answer("docker", ["info"], ANSWER_MAX).is_some()
        && shell::answer("docker", ["compose", "version"], ANSWER_MAX).is_some()
}

pub(super) fn up(dir: &Path, state: &mut State, services: &[Service]) -> Result<()> {
    // Recorded first: a start that fails half-way is stopped by the caller.
    for service in services {
        state.servers.insert(*service, Server { process: None, data: None, log: None });
    }
    run(dir, state, &["up", "--detach", "--wait"], services)
}

pub(super) fn stop(dir: &Path, state: &mut State, services: &[Service]) -> Result<()> {
    let running: Vec<Service> =
        services.iter().copied().filter(|service| state.servers.contains_key(service)).collect();
    if running.is_empty() {
        return Ok(());
    }
    run(dir, state, &["stop"], &running)?;
    state.servers.retain(|service, _| !running.contains(service));
    Ok(())
}

pub(super) fn wipe(dir: &Path) -> Result<()> {
    run(dir, &State::default(), &["down", "--volumes"], &[])
}

fn run(dir: &Path, state: &State, args: &[&str], services: &[Service]) -> Result<()> {
    let mut command = Command::new("docker");
    command
        .args(["compose", "--project-name"])
        .arg(format!("tombstream-{}", shell::fingerprint(&dir.to_string_lossy())))
        .arg("--file")
        .arg(shell::root().join("compose.yaml"))
        .args(args)
        .args(services.iter().map(|service| service.name()))
        .env("TOMBSTREAM_S3_ACCESS_KEY", s3::ACCESS_KEY)
        .env("TOMBSTREAM_S3_SECRET_KEY", s3::SECRET_KEY);
    for (service, ports) in &state.ports {
        let name = format!("TOMBSTREAM_{}_PORT", service.name().to_uppercase());
        command.env(name, ports.first().context("a service has a port")?.to_string());
    }
    let status = command.status().context("can't run docker")?;
    if !status.success() {
        bail!("docker compose {} failed ({status})", args.join(" "));
    }
    Ok(())
}
