//! The demo's Postgres: made, started, stopped.
//!
//! It listens on the loopback address alone, with a random password (sent as it is, since it never leaves
//! this machine: SCRAM would cost more than a flip), and keeps nothing safe from a power cut: `fsync` is off, since a demo's data is gone with it anyway. Its processes are a group of
//! their own, so that Ctrl-C reaches the demo first, which then stops it in order.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::process::{Child, Command};

use super::account::Account;
use super::folder::{Folder, remove};
use super::programs::Programs;

/// A machine under load takes seconds; what takes longer does not start at all.
const START_MAX: Duration = Duration::from_secs(60);
/// A fast shutdown takes some hundred milliseconds.
const STOP_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Another process may take the port between our look and the server's.
const PORTS_MAX: u32 = 3;
const DATABASE: &str = "demo";

/// The server of this process, for the panic hook: a release build aborts, and drops nothing.
static RUNNING: Mutex<Option<Pid>> = Mutex::new(None);

/// A running server. Dropped without [`Server::stop`] it is ended at once.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    /// With its password.
    pub(super) url: String,
}

/// Where the server's files are.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    account: Option<Account>,
}

impl Place {
    /// Makes it: in the demo's folder, or, where root's folders let no other user in, among the
    /// temporary ones.
    pub(super) fn make(folder: &mut Folder, account: Option<Account>) -> anyhow::Result<Self> {
        let mut path = folder.server();
        if let Some(account) = &account
            && !account.may_enter(folder.path())?
        {
            let name = format!("tombstream-demo-{:016x}", rand::random::<u64>());
            path = std::env::temp_dir().join(name);
            if !account.may_enter(&std::env::temp_dir())? {
                bail!(
                    "Postgres does not run as root, and the user `{}` may enter neither {} nor {}: \
                     name a folder with --dir that everybody may enter",
                    account.name,
                    folder.path().display(),
                    std::env::temp_dir().display()
                );
            }
            folder.note_server(Some(&path))?;
        }
        // It must be new: among the temporary folders another user could have put a link.
        let made = std::fs::create_dir(&path);
        made.with_context(|| format!("{} can't be made", path.display()))?;
        let place = Self { path, account };
        std::fs::set_permissions(&place.path, PermissionsExt::from_mode(0o700))?;
        place.give(&place.path)?;
        Ok(place)
    }

    fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    fn give(&self, path: &Path) -> anyhow::Result<()> {
        self.account.as_ref().map_or(Ok(()), |account| account.give(path))
    }

    pub(super) fn remove(&self) -> anyhow::Result<()> {
        remove(&self.path)
    }

    /// One of Postgres's programs, as its user, its words in the log.
    fn command(&self, programs: &Programs, name: &str, log: &File) -> anyhow::Result<Command> {
        let mut command = Command::new(programs.folder.join(name));
        for (variable, _) in std::env::vars_os() {
            if variable.to_str().is_some_and(|name| name.starts_with("PG")) {
                command.env_remove(variable);
            }
        }
        command
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .current_dir(&self.path)
            .process_group(0)
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?);
        if let Some(account) = &self.account {
            command.uid(account.user).gid(account.group);
        }
        Ok(command)
    }
}

impl Server {
    /// Makes a cluster and starts it.
    pub(super) async fn start(
        place: Place,
        programs: &Programs,
        log: &Path,
    ) -> anyhow::Result<Self> {
        let password = format!("{:032x}", rand::random::<u128>());
        let file = OpenOptions::new().create(true).append(true).open(log);
        let file = file.with_context(|| format!("{} can't be written", log.display()))?;
        init(&place, programs, &password, &file, log).await?;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let port = free_port()?;
            let url = format!(
                "postgresql://postgres:{password}@127.0.0.1:{port}/{DATABASE}?sslmode=disable"
            );
            let child = place
                .command(programs, "postgres", &file)?
                .arg("-D")
                .arg(place.data())
                .args(settings(port).iter().flat_map(|setting| ["-c", setting]))
                .spawn()
                .context("Postgres can't be started")?;
            remember(child.id());
            let mut server = Self { child, url };
            match server.until_ready(log).await {
                Ok(()) => return Ok(server),
                Err(_) if attempts < PORTS_MAX && tail(log).contains("could not bind") => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until it takes connections, and makes the demo's database.
    async fn until_ready(&mut self, log: &Path) -> anyhow::Result<()> {
        let options: sqlx::postgres::PgConnectOptions = self.url.parse()?;
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                remember(None);
                bail!("Postgres ended as it started ({status}); it said:\n{}", tail(log));
            }
            match options.clone().database("postgres").connect().await {
                Ok(mut connection) => {
                    let create = sqlx::AssertSqlSafe(format!("create database {DATABASE}"));
                    sqlx::raw_sql(create).execute(&mut connection).await?;
                    connection.close().await?;
                    return Ok(());
                }
                Err(error) if begun.elapsed() > START_MAX => {
                    let said = tail(log);
                    return Err(error).with_context(|| {
                        format!("Postgres takes no connection; it said:\n{said}")
                    });
                }
                Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Whether it ended by itself.
    pub(super) fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks it to end at once but in order, then less politely.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        let mut stopped = false;
        for signal in [Signal::INT, Signal::QUIT] {
            if let Some(pid) = pid(self.child.id()) {
                // One that has ended meanwhile needs no signal.
                kill_process(pid, signal).ok();
            }
            if tokio::time::timeout(STOP_MAX, self.child.wait()).await.is_ok() {
                stopped = true;
                break;
            }
        }
        if !stopped {
            self.child.kill().await.context("Postgres does not end")?;
        }
        remember(None);
        Ok(())
    }
}

impl Drop for Server {
    /// Killing the first of its processes outright would leave the others to find out by themselves.
    fn drop(&mut self) {
        let Some(pid) = pid(self.child.id()) else { return };
        kill_process(pid, Signal::QUIT).ok();
        let begun = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && begun.elapsed() < Duration::from_secs(2)
        {
            std::thread::sleep(LOOK_EVERY);
        }
        remember(None);
    }
}

/// Ends what a demo that was killed has left running at `place`, and removes its files.
pub(super) fn end_left_behind(place: &Path) -> anyhow::Result<()> {
    let data = place.join("data");
    let text = std::fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let left =
        text.lines().next().and_then(|line| line.trim().parse().ok()).and_then(Pid::from_raw);
    if let Some(left) = left
        && is_server(left, &data)
    {
        kill_process(left, Signal::INT).ok();
        let begun = Instant::now();
        while test_kill_process(left).is_ok() {
            if begun.elapsed() > STOP_MAX {
                let number = left.as_raw_pid();
                bail!("an earlier demo's Postgres (process {number}) does not end: kill it");
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
    remove(place)
}

/// Whether a process is the server of `data`: numbers of processes are used again.
fn is_server(process: Pid, data: &Path) -> bool {
    let number = process.as_raw_pid();
    let line = std::fs::read(format!("/proc/{number}/cmdline")).or_else(|_| {
        let number = number.to_string();
        let output = std::process::Command::new("ps").args(["-o", "args=", "-p", &number]).output();
        output.map(|output| output.stdout)
    });
    let line = line.map(|line| String::from_utf8_lossy(&line).into_owned()).unwrap_or_default();
    line.contains("postgres") && line.contains(&*data.to_string_lossy())
}

/// Stops the server when anything panics: in a release build nothing else would.
pub(super) fn stop_on_panic() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        let running = RUNNING.lock().map(|running| *running).unwrap_or_default();
        if let Some(pid) = running {
            kill_process(pid, Signal::INT).ok();
        }
    }));
}

fn remember(id: Option<u32>) {
    if let Ok(mut running) = RUNNING.lock() {
        *running = pid(id);
    }
}

fn pid(id: Option<u32>) -> Option<Pid> {
    Pid::from_raw(i32::try_from(id?).ok()?)
}

async fn init(
    place: &Place,
    programs: &Programs,
    password: &str,
    file: &File,
    log: &Path,
) -> anyhow::Result<()> {
    let secret = place.path.join("password");
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&secret)
        .and_then(|mut file| file.write_all(password.as_bytes()))
        .context("the password's file can't be written")?;
    place.give(&secret)?;
    let mut child = place
        .command(programs, "initdb", file)?
        .arg("-D")
        .arg(place.data())
        .args(["-U", "postgres", "-A", "password", "-E", "UTF8", "--locale=C", "--no-sync"])
        .arg(format!("--pwfile={}", secret.display()))
        .spawn()
        .with_context(|| format!("{}/initdb can't be run", programs.folder.display()))?;
    // It starts processes of its own, which must not outlive a demo that is stopped meanwhile.
    let group = Group(pid(child.id()));
    let status = child.wait().await?;
    std::mem::forget(group);
    if !status.success() {
        bail!("initdb failed ({status}); it said:\n{}", tail(log));
    }
    remove(&secret)
}

/// A group of processes: dropped, they are killed.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            kill_process_group(group, Signal::KILL).ok();
        }
    }
}

fn settings(port: u16) -> [String; 13] {
    [
        "listen_addresses=127.0.0.1".into(),
        format!("port={port}"),
        "unix_socket_directories=".into(),
        "wal_level=logical".into(),
        "max_wal_senders=4".into(),
        "max_replication_slots=4".into(),
        "max_connections=60".into(),
        "shared_buffers=32MB".into(),
        "fsync=off".into(),
        "synchronous_commit=off".into(),
        "full_page_writes=off".into(),
        "logging_collector=off".into(),
        "timezone=UTC".into(),
    ]
}

/// A port that is free now.
pub(super) fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port is free")?;
    Ok(listener.local_addr()?.port())
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}
