//! The api and the pipeline of one run, each a process of its own.

use super::logins::Logins;
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
    /// As the tables' owner: it migrates, makes slots, captures.
    program: Program,
    as_api: Program,
    as_pipeline: Program,
    ports: Ports,
    client: Client,
    api: Option<Running>,
    pipeline: Option<Running>,
    capture: Option<Running>,
    /// Processor time of pipelines that were killed.
    ended_s: f64,
}

impl Programs {
    pub(super) fn new(program: Program, logins: &Logins, ports: Ports) -> Result<Self> {
        let (as_api, as_pipeline) = (logins.api(&program)?, logins.pipeline(&program)?);
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?;
        Ok(Self {
            program,
            as_api,
            as_pipeline,
            ports,
            client,
            api: None,
            pipeline: None,
            capture: None,
            ended_s: 0.0,
        })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.program.folder
    }

    /// The api's address.
    pub(super) fn api(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.api)
    }

    pub(super) async fn migrate(&self) -> Result<()> {
        self.program.finish(&["migrate", "--roles"]).await
    }

    pub(super) async fn start_api(&mut self) -> Result<()> {
        let ready = format!("{}/readyz", self.api());
        self.api = Some(self.as_api.start(&["api"], &ready).await?);
        Ok(())
    }

    pub(super) async fn start_pipeline(&mut self) -> Result<()> {
        let started = Instant::now();
        let healthy = format!("http://127.0.0.1:{}/healthz", self.ports.pipeline);
        self.pipeline = Some(self.as_pipeline.start(&["run"], &healthy).await?);
        say(format_args!("the pipeline runs after {} ms", started.elapsed().as_millis()));
        Ok(())
    }

    /// Makes the publication and the slot.
    pub(super) async fn fix(&self) -> Result<()> {
        self.program.finish(&["check", "--fix"]).await
    }

    pub(super) async fn start_capture(&mut self) -> Result<()> {
        let healthy = format!("http://127.0.0.1:{}/healthz", self.ports.capture);
        self.capture = Some(self.program.start(&["capture"], &healthy).await?);
        Ok(())
    }

    pub(super) async fn kill_capture(&mut self) -> Result<()> {
        self.capture.take().context("the capture does not run")?.kill().await
    }

    /// Processor time of the pipeline so far, in seconds.
    pub(super) fn pipeline_seconds(&self) -> f64 {
        self.ended_s + seconds(self.pipeline.as_ref())
    }

    /// Processor time of the capture so far, in seconds.
    pub(super) fn capture_seconds(&self) -> f64 {
        seconds(self.capture.as_ref())
    }

    /// `kill -9`, and no word before.
    pub(super) async fn kill_pipeline(&mut self) -> Result<()> {
        self.ended_s = self.pipeline_seconds();
        self.pipeline.take().context("the pipeline does not run")?.kill().await
    }

    /// An error when one of them ended by itself.
    pub(super) fn check(&mut self) -> Result<()> {
        let all = self.api.iter_mut().chain(&mut self.pipeline).chain(&mut self.capture);
        all.into_iter().try_for_each(Running::check)
    }

    /// SIGTERM to all; they must leave in time and say that all went well.
    pub(super) async fn stop(&mut self) -> Result<()> {
        let all = [self.capture.take(), self.pipeline.take(), self.api.take()];
        for running in all.into_iter().flatten() {
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

fn seconds(running: Option<&Running>) -> f64 {
    let process = running.and_then(Running::id).and_then(Process::of);
    process.and_then(Process::processor_seconds).unwrap_or_default()
}
