//! A server's process: started apart from ours, known by id and start time, stopped by both.

use crate::shell;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const READY_MAX: Duration = Duration::from_secs(180);
const END_MAX: Duration = Duration::from_secs(30);

/// A process that we started. The start time tells it from a later one with the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) id: u32,
    /// In clock ticks since the machine's start.
    born: u64,
}

/// What to start.
pub(super) struct Launch<'a> {
    pub(super) name: &'static str,
    pub(super) program: &'a Path,
    pub(super) args: Vec<OsString>,
    pub(super) variables: Vec<(&'static str, OsString)>,
    pub(super) folder: &'a Path,
    pub(super) log: PathBuf,
    /// User and group, for a server that refuses to be root.
    pub(super) user: Option<(u32, u32)>,
}

impl Launch<'_> {
    /// Starts it and waits until `ready`; a server that does not come up is stopped.
    pub(super) fn start(self, ready: impl Fn() -> bool) -> Result<Process> {
        let log = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .open(&self.log)
            .with_context(|| format!("can't write {}", self.log.display()))?;
        let errors = log.try_clone().context("can't share the log")?;
        let mut command = Command::new(self.program);
        command
            .args(&self.args)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .current_dir(self.folder)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0); // A Ctrl-C in our terminal is not for the servers.
        if let Some((user, group)) = self.user {
            command.uid(user).gid(group);
        }
        let child =
            command.spawn().with_context(|| format!("can't run {}", self.program.display()))?;
        let process = Process::of(child.id()).with_context(|| {
            format!("{} ended at once:\n{}", self.name, shell::tail(&self.log, 15))
        })?;
        self.wait(process, ready).inspect_err(|_| process.stop())?;
        Ok(process)
    }

    fn wait(&self, process: Process, ready: impl Fn() -> bool) -> Result<()> {
        let started = Instant::now();
        loop {
            if ready() {
                return Ok(());
            }
            shell::check_interrupt()?;
            if !process.is_alive() {
                bail!("ended while starting:\n{}", shell::tail(&self.log, 25));
            }
            if started.elapsed() > READY_MAX {
                bail!("not ready after {READY_MAX:?}:\n{}", shell::tail(&self.log, 25));
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Process {
    /// The process that has this id now.
    pub(crate) fn of(id: u32) -> Option<Self> {
        Some(Self { id, born: born(id)? })
    }

    /// Alive, and the one that was started: not a later process with its id.
    pub(crate) fn is_alive(self) -> bool {
        born(self.id) == Some(self.born)
    }

    pub(crate) fn signal(self, signal: Signal) {
        if self.is_alive()
            && let Some(pid) = i32::try_from(self.id).ok().and_then(Pid::from_raw)
        {
            // It may end between the look and the signal.
            kill_process(pid, signal).ok();
        }
    }

    /// SIGTERM; for Postgres SIGINT, which does not wait for clients to leave.
    pub(super) fn ask_to_end(self, is_postgres: bool) {
        self.signal(Signal::CONT); // A frozen one would not hear it.
        self.signal(if is_postgres { Signal::INT } else { Signal::TERM });
    }

    /// Waits for the end, and kills what does not end in time.
    pub(super) fn wait_for_end(self) {
        let asked = Instant::now();
        while self.is_alive() {
            if asked.elapsed() > END_MAX {
                self.signal(Signal::KILL);
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn stop(self) {
        self.ask_to_end(false);
        self.wait_for_end();
    }

    /// Processor time that it has used so far, its threads' included, in seconds.
    pub(crate) fn processor_seconds(self) -> Option<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id)).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |place: usize| fields.get(place)?.parse::<f64>().ok();
        // User and system time, in ticks of 1/100 s wherever Linux runs.
        Some((ticks(11)? + ticks(12)?) / 100.0)
    }

    /// Its resident memory in bytes.
    pub(crate) fn memory(self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id)).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
    }
}

/// The start time of a live process; a zombie is not alive.
fn born(id: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The second field is the name in brackets, which may itself hold blanks and brackets.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if fields.first() == Some(&"Z") { None } else { fields.get(19)?.parse().ok() }
}

/// Whether a GET of this path on loopback is answered with 200.
pub(super) fn answers(port: u16, path: &str) -> bool {
    get(port, path).is_some_and(|answer| answer.split(' ').nth(1) == Some("200"))
}

fn get(port: u16, path: &str) -> Option<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(3))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_a_reused_id_is_not_ours() {
        let ours = Process::of(std::process::id()).unwrap();
        assert!(ours.is_alive());
        assert!(!Process { born: ours.born + 1, ..ours }.is_alive());
    }

    #[test]
    fn an_ended_process_is_not_alive_though_nobody_has_reaped_it() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        process.stop();
        assert!(!process.is_alive());
        child.wait().unwrap();
    }
}
