//! What every command needs of the machine: folders, child processes, the interrupt.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Turns SIGINT and SIGTERM into a flag, so that what was started is stopped in order.
pub(crate) fn listen_for_interrupts() {
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let mut signals = signal(kind).expect("the runtime's signal driver is on");
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                INTERRUPTED.store(true, Ordering::Relaxed);
            }
        });
    }
}

/// An error once the user has asked to stop.
pub(crate) fn check_interrupt() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) { bail!("interrupted") } else { Ok(()) }
}

/// Waits until the user asks to stop.
pub(crate) async fn interrupted() -> anyhow::Error {
    loop {
        if let Err(error) = check_interrupt() {
            return error;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The root of the checkout.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace")
}

/// Where installed servers and tools are kept, for all clones of one user.
pub(crate) fn cache() -> Result<PathBuf> {
    let home = std::env::var_os("HOME").context("HOME is not set: it says where the cache is")?;
    let cache = Path::new(&home).join(".cache/tombstream");
    std::fs::create_dir_all(&cache).with_context(|| format!("can't make {}", cache.display()))?;
    Ok(cache)
}

/// Runs `install` under a lock of that name, so that two clones do not install the same at once.
pub(crate) fn locked<T>(name: &str, install: impl FnOnce() -> Result<T>) -> Result<T> {
    let path = cache()?.join(format!("{name}.lock"));
    let lock = File::create(&path).with_context(|| format!("can't make {}", path.display()))?;
    lock.lock().with_context(|| format!("can't lock {}", path.display()))?;
    install()
}

/// Whether a program of that name is on the path.
pub(crate) fn has(program: &str) -> bool {
    find(program).is_some()
}

/// The program of that name on the path.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

/// What a program prints to both its outputs, if it ends well within `wait_max`.
pub(crate) fn answer<I, S>(
    program: impl AsRef<OsStr>,
    args: I,
    wait_max: Duration,
) -> Option<String>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    let deadline = Instant::now() + wait_max;
    loop {
        match child.try_wait().ok()? {
            Some(_) => break,
            None if Instant::now() > deadline => {
                child.kill().ok()?;
                child.wait().ok()?;
                return None;
            }
            None => thread::sleep(Duration::from_millis(10)),
        }
    }
    let output = child.wait_with_output().ok()?;
    if !output.status.success() {
        return None;
    }
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Some(text)
}

/// Runs a tool to its end with its output in `log`; an interrupt ends it.
pub(crate) fn run_logged(command: &mut Command, log: &Path) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let file = File::create(log).with_context(|| format!("can't write {}", log.display()))?;
    let errors = file.try_clone().context("can't share the log")?;
    command.stdin(Stdio::null()).stdout(file).stderr(errors).process_group(0);
    let mut child = command.spawn().with_context(|| format!("can't run {name}"))?;
    let status = wait_group(&mut child)?;
    if status.success() {
        return Ok(());
    }
    bail!("{name} failed ({status}), the end of {}:\n{}", log.display(), tail(log, 15))
}

/// Ends a process group that one of our commands leads.
pub(crate) fn end_group(leader: u32) {
    if let Some(pid) = i32::try_from(leader).ok().and_then(Pid::from_raw) {
        // It may have ended by itself meanwhile.
        kill_process_group(pid, Signal::TERM).ok();
    }
}

/// The last lines of a file.
pub(crate) fn tail(path: &Path, lines_max: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(lines_max)..].join("\n")
}

/// A short name for a text, the same in every run.
pub(crate) fn fingerprint(text: &str) -> String {
    // FNV-1a: stable over releases of Rust, unlike the standard library's hasher.
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")[..10].to_owned()
}

/// The cargo that runs us, in the root of the checkout.
pub(crate) fn cargo() -> Command {
    let mut command =
        Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(root());
    // What cargo tells its own child about xtask is not for the crates that this one builds.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// The command as one would type it.
pub(crate) fn spoken(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words: Vec<_> = std::iter::once(program)
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    words.join(" ")
}

/// Runs a command to its end; an interrupt ends it and all that it started.
pub(crate) fn run_group(command: &mut Command) -> Result<ExitStatus> {
    let name = spoken(command);
    let child = command.stdin(Stdio::null()).process_group(0).spawn();
    let mut child = child.with_context(|| format!("can't run {name}"))?;
    wait_group(&mut child)
}

/// Waits for a command that leads a group; an interrupt ends the group.
pub(crate) fn wait_group(child: &mut Child) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if let Err(error) = check_interrupt() {
            end_group(child.id());
            child.wait()?;
            return Err(error);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Cargo's folder for what it builds.
pub(crate) fn target() -> Result<PathBuf> {
    #[derive(serde::Deserialize)]
    struct Metadata {
        target_directory: PathBuf,
    }
    let output = cargo().args(["metadata", "--no-deps", "--format-version", "1"]).output()?;
    let metadata: Metadata = serde_json::from_slice(&output.stdout)
        .context("cargo metadata did not answer in its own form")?;
    Ok(metadata.target_directory)
}
