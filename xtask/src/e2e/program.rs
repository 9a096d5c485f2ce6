//! The product's own processes: `tombstream migrate`, `api` and `run`.

use super::say;
use super::settings::Settings;
use crate::services::{Process, S3_ACCESS_KEY, S3_SECRET_KEY};
use crate::shell;
use anyhow::{Context, Result, bail};
use reqwest::Client;
use rustix::process::Signal;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

const READY_MAX: Duration = Duration::from_secs(60);
const STOP_MAX: Duration = Duration::from_secs(30);

/// Builds the binary and says where it is.
pub(super) fn build(release: bool) -> Result<PathBuf> {
    let mut command = shell::cargo();
    command.args(["build", "--package", "tombstream", "--locked"]);
    if release {
        command.arg("--release");
    }
    let status = shell::run_group(&mut command)?;
    if !status.success() {
        bail!("tombstream does not build");
    }
    let folder = if release { "release" } else { "debug" };
    Ok(shell::target()?.join(folder).join("tombstream"))
}

pub(super) struct Programs {
    binary: PathBuf,
    settings: Settings,
    database: String,
    client: Client,
    api: Option<Child>,
    pipeline: Option<Child>,
}

impl Programs {
    pub(super) fn new(binary: PathBuf, settings: Settings, database: String) -> Self {
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(5));
        Self {
            binary,
            settings,
            database,
            client: client.build().expect("a client without TLS settings can be made"),
            api: None,
            pipeline: None,
        }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.settings.folder
    }

    /// The api's address.
    pub(super) fn api(&self) -> String {
        format!("http://127.0.0.1:{}", self.settings.api_port)
    }

    pub(super) async fn migrate(&self) -> Result<()> {
        let mut child = self.command("migrate")?.spawn().context("can't run tombstream")?;
        let status = child.wait().await?;
        if status.success() { Ok(()) } else { bail!("migrate: {status}\n{}", self.log("migrate")) }
    }

    pub(super) async fn start_api(&mut self) -> Result<()> {
        let mut child = self.command("api")?.spawn().context("can't run tombstream")?;
        self.wait_ready("api", &mut child, self.settings.api_port, "/readyz").await?;
        self.api = Some(child);
        Ok(())
    }

    pub(super) async fn start_pipeline(&mut self) -> Result<()> {
        let mut child = self.command("run")?.spawn().context("can't run tombstream")?;
        self.wait_ready("run", &mut child, self.settings.pipeline_port, "/healthz").await?;
        self.pipeline = Some(child);
        Ok(())
    }

    /// `kill -9`, and no word before.
    pub(super) async fn kill_pipeline(&mut self) -> Result<()> {
        let mut pipeline = self.pipeline.take().context("the pipeline does not run")?;
        pipeline.kill().await.context("can't kill the pipeline")
    }

    /// An error when one of them ended by itself.
    pub(super) fn check(&mut self) -> Result<()> {
        for (name, child) in [("api", &mut self.api), ("run", &mut self.pipeline)] {
            if let Some(child) = child
                && let Some(status) = child.try_wait()?
            {
                let log = shell::tail(&self.settings.folder.join(format!("{name}.log")), 25);
                bail!("`tombstream {name}` ended by itself ({status}):\n{log}");
            }
        }
        Ok(())
    }

    /// SIGTERM to both; they must leave in time and say that all went well.
    pub(super) async fn stop(&mut self) -> Result<()> {
        self.check()?;
        for (name, child) in [("run", self.pipeline.take()), ("api", self.api.take())] {
            let Some(mut child) = child else { continue };
            if let Some(process) = child.id().and_then(Process::of) {
                process.signal(Signal::TERM);
            }
            let Ok(status) = tokio::time::timeout(STOP_MAX, child.wait()).await else {
                bail!("`tombstream {name}` did not stop within {STOP_MAX:?}");
            };
            let status = status?;
            if !status.success() {
                bail!("`tombstream {name}` stopped with {status}:\n{}", self.log(name));
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
        let url = format!("http://127.0.0.1:{}/metrics", self.settings.pipeline_port);
        let text = self.client.get(url).send().await.ok()?.text().await.ok()?;
        let lags = text
            .lines()
            .filter(|line| !line.starts_with('#') && line.contains("lag"))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        Some(lags.sum())
    }

    fn command(&self, name: &str) -> Result<Command> {
        let path = self.settings.folder.join(format!("{name}.log"));
        let log = OpenOptions::new().create(true).append(true).open(&path)?;
        let mut command = Command::new(&self.binary);
        command
            .arg(name)
            .arg("--config")
            .arg(&self.settings.file)
            .env("DATABASE_URL", &self.database)
            .env("AWS_ACCESS_KEY_ID", S3_ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", S3_SECRET_KEY)
            .stdin(Stdio::null())
            .stderr(log.try_clone()?)
            .stdout(log)
            .process_group(0)
            .kill_on_drop(true);
        Ok(command)
    }

    fn log(&self, name: &str) -> String {
        shell::tail(&self.settings.folder.join(format!("{name}.log")), 25)
    }

    async fn wait_ready(&self, name: &str, child: &mut Child, port: u16, path: &str) -> Result<()> {
        let url = format!("http://127.0.0.1:{port}{path}");
        let started = Instant::now();
        loop {
            shell::check_interrupt()?;
            if let Some(status) = child.try_wait()? {
                bail!("`tombstream {name}` ended while starting ({status}):\n{}", self.log(name));
            }
            if let Ok(response) = self.client.get(&url).send().await
                && response.status().is_success()
            {
                let took = started.elapsed().as_millis();
                say(format_args!("`tombstream {name}` runs after {took} ms"));
                return Ok(());
            }
            if started.elapsed() > READY_MAX {
                bail!("`tombstream {name}` is not ready after {READY_MAX:?}:\n{}", self.log(name));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
