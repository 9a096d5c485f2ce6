//! The api and the pipeline of one run, each a process of its own.

use super::say;
use super::settings::Ports;
use crate::services::Process;
use crate::shell;
use anyhow::{Context, Result, bail};
use reqwest::Client;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tombstream_e2e::{Program, Running};

/// Builds the binary and says where it is.
pub(super) fn build(release: bool) -> Result<PathBuf> {
    let mut command = shell::cargo();
    if release {
        // As it is shipped.
        command.args(["build", "--release", "--package", "tombstream", "--locked"]);
    } else {
        // With the workspace's features: the tests' build has most of it already.
        command.args(["build", "--workspace", "--bin", "tombstream", "--locked"]);
    }
    let status = shell::run_group(&mut command)?;
    if !status.success() {
        bail!("tombstream does not build");
    }
    let folder = if release { "release" } else { "debug" };
    Ok(shell::target()?.join(folder).join("tombstream"))
}

pub(super) struct Programs {
    program: Program,
    ports: Ports,
    client: Client,
    api: Option<Running>,
    pipeline: Option<Running>,
}

impl Programs {
    pub(super) fn new(program: Program, ports: Ports) -> Result<Self> {
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?;
        Ok(Self { program, ports, client, api: None, pipeline: None })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.program.folder
    }

    /// The api's address.
    pub(super) fn api(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.api)
    }

    pub(super) async fn migrate(&self) -> Result<()> {
        self.program.finish(&["migrate"]).await
    }

    pub(super) async fn start_api(&mut self) -> Result<()> {
        let ready = format!("{}/readyz", self.api());
        self.api = Some(self.program.start(&["api"], &ready).await?);
        Ok(())
    }

    pub(super) async fn start_pipeline(&mut self) -> Result<()> {
        let started = Instant::now();
        let healthy = format!("http://127.0.0.1:{}/healthz", self.ports.pipeline);
        self.pipeline = Some(self.program.start(&["run"], &healthy).await?);
        say(format_args!("the pipeline runs after {} ms", started.elapsed().as_millis()));
        Ok(())
    }

    /// `kill -9`, and no word before.
    pub(super) async fn kill_pipeline(&mut self) -> Result<()> {
        self.pipeline.take().context("the pipeline does not run")?.kill().await
    }

    /// An error when one of them ended by itself.
    pub(super) fn check(&mut self) -> Result<()> {
        self.api.iter_mut().chain(&mut self.pipeline).try_for_each(Running::check)
    }

    /// SIGTERM to both; they must leave in time and say that all went well.
    pub(super) async fn stop(&mut self) -> Result<()> {
        for running in [self.pipeline.take(), self.api.take()].into_iter().flatten() {
            let status = running.stop().await?;
            if !status.success() {
                bail!("stopped with {status}: see the logs in {}", self.folder().display());
            }
        }
        Ok(())
    }

    /// The pipeline's resident memory in bytes.
    pub(super) fn memory(&self) -> Option<u64> {
        Process::of(self.pipeline.as_ref()?.id()?)?.memory()
    }

    /// The lines of the pipeline's metrics that speak of lag, summed.
    pub(super) async fn lag(&self) -> Option<f64> {
        let url = format!("http://127.0.0.1:{}/metrics", self.ports.pipeline);
        let text = self.client.get(url).send().await.ok()?.text().await.ok()?;
        let lags = text
            .lines()
            .filter(|line| !line.starts_with('#') && line.contains("lag"))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        Some(lags.fold(0.0, |sum, lag| sum + lag)) // An empty sum() would be -0.
    }
}
