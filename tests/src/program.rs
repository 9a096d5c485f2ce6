//! The product's own processes: `tombstream run`, `api` and the commands that end by themselves.

use anyhow::{Context, Result, bail};
use reqwest::Client;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::OpenOptions;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

const READY_MAX: Duration = Duration::from_secs(60);
const STOP_MAX: Duration = Duration::from_secs(30);

/// The built binary with one configuration file; logs go to `folder`.
#[derive(Debug, Clone)]
pub struct Program {
    pub binary: PathBuf,
    pub folder: PathBuf,
    pub config: PathBuf,
    /// Secrets and the like, which the configuration names by variable.
    pub variables: Vec<(&'static str, String)>,
}

/// A process of it. Dropping it kills it.
pub struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Writes `config` to a folder of its own below cargo's target, and takes the binary that was
    /// built beside the running test.
    pub fn beside_test(
        name: &str,
        config: &str,
        variables: Vec<(&'static str, String)>,
    ) -> Result<Self> {
        // target/debug/deps/test → target/debug/tombstream
        let test = std::env::current_exe().context("a test has a program")?;
        let built = test.parent().and_then(Path::parent).context("a test lies in deps")?;
        let binary = built.join("tombstream");
        if !binary.is_file() {
            bail!(
                "{} is not built: run `cargo build -p tombstream`, or `cargo xtask test`, which \
                 builds it first",
                binary.display()
            );
        }
        let target = built.parent().context("a profile lies in the target folder")?;
        Self::at(binary, target.join("e2e").join(name), config, variables)
    }

    /// The same with a binary and a folder of one's own.
    pub fn at(
        binary: PathBuf,
        folder: PathBuf,
        config: &str,
        variables: Vec<(&'static str, String)>,
    ) -> Result<Self> {
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("can't make {}", folder.display()))?;
        let file = folder.join("tombstream.toml");
        std::fs::write(&file, config).with_context(|| format!("can't write {}", file.display()))?;
        Ok(Self { binary, folder, config: file, variables })
    }

    /// Runs a command that ends by itself, such as `migrate`; an error holds what it said.
    pub async fn finish(&self, arguments: &[&str]) -> Result<()> {
        let mut running = self.spawn(arguments)?;
        let status = running.child.wait().await?;
        if status.success() {
            return Ok(());
        }
        bail!("`tombstream {}`: {status}\n{}", arguments.join(" "), running.end_of_log())
    }

    /// Runs a command that ends by itself, however it ends: its exit code and all it said.
    pub async fn output(&self, arguments: &[&str]) -> Result<Output> {
        self.output_within(READY_MAX, arguments).await
    }

    /// The same of a command that may take longer.
    pub async fn output_within(&self, patience: Duration, arguments: &[&str]) -> Result<Output> {
        let output = self.command(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
        match tokio::time::timeout(patience, output).await {
            Ok(output) => output.with_context(|| format!("can't run {}", self.binary.display())),
            Err(_) => {
                bail!("`tombstream {}` did not end within {patience:?}", arguments.join(" "))
            }
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .arg("--config")
            .arg(&self.config)
            .envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts a command that stays, and waits until `url` is answered well.
    pub async fn start(&self, arguments: &[&str], url: &str) -> Result<Running> {
        let client = Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
        let mut running = self.spawn(arguments)?;
        let started = Instant::now();
        loop {
            running.check().context("while starting")?;
            if let Ok(response) = client.get(url).send().await
                && response.status().is_success()
            {
                return Ok(running);
            }
            if started.elapsed() > READY_MAX {
                let log = running.end_of_log();
                bail!("`tombstream {}` is not ready after {READY_MAX:?}:\n{log}", running.name);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn spawn(&self, arguments: &[&str]) -> Result<Running> {
        let name = arguments.first().context("a command has a name")?;
        let path = self.folder.join(format!("{name}.log"));
        let log = OpenOptions::new().create(true).append(true).open(&path)?;
        let child = self
            .command(arguments)
            .stdin(Stdio::null())
            .stderr(log.try_clone()?)
            .stdout(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("can't run {}", self.binary.display()))?;
        Ok(Running { name: arguments.join(" "), child, log: path })
    }
}

impl Running {
    /// An error when it ended by itself.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                bail!("`tombstream {}` ended ({status}):\n{}", self.name, self.end_of_log())
            }
        }
    }

    /// None once it has ended.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// `kill -9`, and no word before.
    pub async fn kill(mut self) -> Result<()> {
        self.child.kill().await.with_context(|| format!("can't kill `tombstream {}`", self.name))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let id = id.with_context(|| format!("`tombstream {}` has ended", self.name))?;
        Ok(kill_process(id, signal)?)
    }

    /// SIGTERM, and the wait for its end.
    pub async fn stop(mut self) -> Result<ExitStatus> {
        self.check()?;
        self.signal(Signal::TERM)?;
        match tokio::time::timeout(STOP_MAX, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!("`tombstream {}` did not stop within {STOP_MAX:?}", self.name),
        }
    }

    /// All that it has logged.
    pub fn log(&self) -> Result<String> {
        std::fs::read_to_string(&self.log).with_context(|| format!("{}", self.log.display()))
    }

    /// The last lines of its log.
    pub fn end_of_log(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }
}

/// A port that is free now.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port is free")?;
    Ok(listener.local_addr()?.port())
}
