//! PostgreSQL from the system's packages, ready for logical replication.
//!
//! Durability is off: the servers are for tests. A server refuses to run as root, so as root it
//! runs as the user `postgres`, with its data where that user can reach them.

use super::process::Launch;
use super::state::Server;
use crate::shell;
use anyhow::{Context, Result, bail};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const PASSWORD: &str = "postgres";

pub(super) fn url(port: u16) -> String {
    format!("postgresql://postgres:{PASSWORD}@127.0.0.1:{port}/postgres")
}

pub(super) fn start(home: &Path, port: u16) -> Result<Server> {
    let programs = install(home)?;
    let user = server_user()?;
    let place = reachable(home, user)?;
    let data = place.join("data");
    if !data.join("PG_VERSION").is_file() {
        init(&programs, &place, &data, user)?;
    }
    std::fs::write(data.join("tombstream.conf"), settings(port))
        .context("can't write Postgres's settings")?;
    let log = home.join("postgres.log");
    let process = Launch {
        name: "postgres",
        program: &programs.join("postgres"),
        args: vec!["-D".into(), data.clone().into()],
        variables: vec![("LC_ALL", "C.UTF-8".into())],
        folder: &place,
        log: log.clone(),
        user,
    }
    .start(|| {
        // It says so itself once it takes connections; the port alone opens earlier.
        shell::tail(&log, 200).contains("database system is ready to accept connections")
            && TcpStream::connect(("127.0.0.1", port)).is_ok()
    })?;
    Ok(Server { process: Some(process), data: Some(place), log: Some(log) })
}

fn settings(port: u16) -> String {
    format!(
        "listen_addresses = '127.0.0.1'\n\
         port = {port}\n\
         unix_socket_directories = ''\n\
         wal_level = logical\n\
         max_replication_slots = 40\n\
         max_wal_senders = 40\n\
         max_connections = 300\n\
         wal_sender_timeout = 0\n\
         shared_buffers = 128MB\n\
         fsync = off\n\
         synchronous_commit = off\n\
         full_page_writes = off\n\
         logging_collector = off\n\
         timezone = 'UTC'\n\
         log_timezone = 'UTC'\n"
    )
}

fn init(programs: &Path, place: &Path, data: &Path, user: Option<(u32, u32)>) -> Result<()> {
    // A first run that broke off leaves half a cluster.
    super::remove(data)?;
    let password = place.join("password");
    std::fs::write(&password, PASSWORD).context("can't write the password's file")?;
    let mut command = Command::new(programs.join("initdb"));
    command
        .arg("-D")
        .arg(data)
        .args(["-U", "postgres", "--auth=scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8"])
        .arg("--no-sync")
        .arg(format!("--pwfile={}", password.display()))
        .current_dir(place);
    if let Some((user, group)) = user {
        command.uid(user).gid(group);
    }
    shell::run_logged(&mut command, &place.join("initdb.log"))?;
    let main = data.join("postgresql.conf");
    let mut text = std::fs::read_to_string(&main).context("initdb left no settings")?;
    text.push_str("include 'tombstream.conf'\n");
    std::fs::write(&main, text).context("can't write Postgres's settings")
}

/// The folder of the newest server's programs; as root on Debian its package is installed if missing.
fn install(home: &Path) -> Result<PathBuf> {
    if let Some(programs) = find() {
        return Ok(programs);
    }
    let advice = "no PostgreSQL server was found under /usr/lib/postgresql or on the path: it holds \
                  the relations and the ledger (Debian: apt-get install postgresql)";
    if !rustix::process::geteuid().is_root() || !shell::has("apt-get") {
        bail!(advice);
    }
    shell::locked("postgres", || {
        if find().is_some() {
            return Ok(());
        }
        eprintln!("services: installing the Debian package postgresql");
        let log = home.join("install.log");
        shell::run_logged(Command::new("apt-get").args(["update", "-qq"]), &log)?;
        // Its own cluster is not wanted: ours has a place and settings of its own.
        std::fs::create_dir_all("/etc/postgresql-common/createcluster.d").ok();
        std::fs::write(
            "/etc/postgresql-common/createcluster.d/tombstream.conf",
            "create_main_cluster = false\n",
        )
        .ok();
        let mut command = Command::new("apt-get");
        command
            .args(["install", "-y", "-qq", "--no-install-recommends", "postgresql"])
            .env("DEBIAN_FRONTEND", "noninteractive");
        shell::run_logged(&mut command, &log)
    })?;
    find().context(advice)
}

fn find() -> Option<PathBuf> {
    let packaged = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|folder| folder.join("bin/postgres").is_file())
        .max_by_key(|folder| folder.file_name()?.to_string_lossy().parse::<u32>().ok());
    match packaged {
        Some(folder) => Some(folder.join("bin")),
        None => Some(shell::find("postgres")?.parent()?.to_owned()),
    }
}

/// User and group of `postgres` when we are root, else None: the server runs as ourselves.
fn server_user() -> Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let id = |what: &str| {
        shell::answer("id", [what, "postgres"], Duration::from_secs(5))
            .and_then(|said| said.trim().parse().ok())
            .context("a Postgres server does not run as root, and there is no user `postgres`")
    };
    Ok(Some((id("-u")?, id("-g")?)))
}

/// A folder that the server's user may use: `home`, or one in the temporary folder.
fn reachable(home: &Path, user: Option<(u32, u32)>) -> Result<PathBuf> {
    let Some((user, group)) = user else { return Ok(home.to_owned()) };
    let seen = Command::new("test")
        .arg("-x")
        .arg(home)
        .uid(user)
        .gid(group)
        .current_dir("/")
        .stderr(Stdio::null())
        .status()
        .context("can't run test")?
        .success();
    let place = if seen {
        home.to_owned()
    } else {
        let name = shell::fingerprint(&home.to_string_lossy());
        std::env::temp_dir().join(format!("tombstream-postgres-{name}"))
    };
    std::fs::create_dir_all(&place).with_context(|| format!("can't make {}", place.display()))?;
    std::os::unix::fs::chown(&place, Some(user), Some(group))
        .with_context(|| format!("can't give {} to its user", place.display()))?;
    Ok(place)
}
