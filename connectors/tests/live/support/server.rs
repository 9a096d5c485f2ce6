//! A Postgres of its own for a test that changes the server itself: its settings, its log, its life.

use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sqlx::{ConnectOptions as _, Connection as _};

/// A server in a temporary folder. It is stopped and removed when dropped.
pub(crate) struct OwnServer {
    folder: tempfile::TempDir,
    programs: PathBuf,
    user: Option<(u32, u32)>,
    port: u16,
    process: Option<Child>,
}

impl OwnServer {
    /// A new server with `settings`, started.
    pub(crate) async fn new(settings: &str) -> Self {
        let programs = programs().await;
        let user = server_user();
        let folder = tempfile::Builder::new().prefix("tombstream-postgres-").tempdir().unwrap();
        if let Some((user, group)) = user {
            chown(folder.path(), Some(user), Some(group)).unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut server = Self { folder, programs, user, port, process: None };
        let password = server.write("password", "postgres");
        let made = server
            .command("initdb")
            .arg("-D")
            .arg(server.data())
            .args(["-U", "postgres", "--auth=scram-sha-256", "--no-sync", "--locale=C.UTF-8"])
            .arg(format!("--pwfile={}", password.display()))
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let key = server.write("server.key", include_str!("../tls/server.key"));
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        let certificate = server.write("server.pem", include_str!("../tls/server.pem"));
        server.write("ca.pem", include_str!("../tls/ca.pem"));
        let main = server.data().join("postgresql.conf");
        let mut text = std::fs::read_to_string(&main).unwrap();
        text.push_str(&format!(
            "\nlisten_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = ''\n\
             fsync = off\nwal_level = logical\nssl = on\nssl_key_file = '{}'\n\
             ssl_cert_file = '{}'\n{settings}\n",
            key.display(),
            certificate.display()
        ));
        std::fs::write(main, text).unwrap();
        server.start();
        server
    }

    /// A standby of this server, made of a base backup and promoted: the same database, another timeline,
    /// no slots.
    pub(crate) async fn promoted_standby(&self) -> Self {
        let folder = tempfile::Builder::new().prefix("tombstream-postgres-").tempdir().unwrap();
        if let Some((user, group)) = self.user {
            chown(folder.path(), Some(user), Some(group)).unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut standby =
            Self { folder, programs: self.programs.clone(), user: self.user, port, process: None };
        let copied = self
            .command("pg_basebackup")
            .args(["--dbname", &self.url(), "--wal-method", "stream", "--checkpoint", "fast"])
            .args(["--write-recovery-conf", "--no-sync", "--pgdata"])
            .arg(standby.data())
            .output()
            .unwrap();
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        let main = standby.data().join("postgresql.conf");
        let mut text = std::fs::read_to_string(&main).unwrap();
        text.push_str(&format!("\nport = {port}\n"));
        std::fs::write(main, text).unwrap();
        standby.start();
        let options: sqlx::postgres::PgConnectOptions = standby.url().parse().unwrap();
        let mut connection = options.connect().await.unwrap();
        let promoted: bool =
            sqlx::query_scalar("select pg_promote()").fetch_one(&mut connection).await.unwrap();
        assert!(promoted);
        connection.close().await.unwrap();
        standby
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The certificate of the authority that signed the server's.
    pub(crate) fn authority(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        if let Some((user, group)) = self.user {
            chown(&path, Some(user), Some(group)).unwrap();
        }
        path
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.current_dir("/").env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
        if let Some((user, group)) = self.user {
            command.uid(user).gid(group);
        }
        command
    }

    pub(crate) fn start(&mut self) {
        let begun = Instant::now();
        self.spawn();
        while !((self.log().contains("ready to accept connections")
            || self.log().contains("ready to accept read-only connections"))
            && TcpStream::connect(("127.0.0.1", self.port)).is_ok())
        {
            assert!(begun.elapsed() < Duration::from_secs(60), "{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
            // Processes of a server that was killed may still be ending: it refuses to start beside them.
            let ended = self.process.as_mut().is_some_and(|it| it.try_wait().unwrap().is_some());
            if ended && self.log().contains("pre-existing shared memory block") {
                self.spawn();
            }
        }
    }

    fn spawn(&mut self) {
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).stderr(log).stdout(Stdio::null());
        self.process = Some(command.spawn().unwrap());
    }

    /// `kill -9` of the whole server.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn url(&self) -> String {
        format!("postgresql://postgres:postgres@127.0.0.1:{}/postgres", self.port)
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        // Immediate shutdown: nothing of it is needed any more.
        let quit = Command::new("kill").args(["-QUIT", &process.id().to_string()]).status();
        if !quit.is_ok_and(|status| status.success()) || process.wait().is_err() {
            eprintln!("the test's own Postgres (pid {}) may be left", process.id());
        }
    }
}

/// Where the tests' server has its programs: the same are used here.
async fn programs() -> PathBuf {
    let url = std::env::var("TOMBSTREAM_TEST_POSTGRES_URL")
        .expect("TOMBSTREAM_TEST_POSTGRES_URL: `cargo xtask test` sets it");
    let options: sqlx::postgres::PgConnectOptions = url.parse().unwrap();
    let mut connection = options.connect().await.unwrap();
    let folder: String = sqlx::query_scalar("select setting from pg_config where name = 'BINDIR'")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    assert!(
        Path::new(&folder).join("initdb").is_file(),
        "the test server's programs are not on this machine ({folder}): run it natively"
    );
    folder.into()
}

/// A server does not run as root.
fn server_user() -> Option<(u32, u32)> {
    let id = |arguments: &[&str]| {
        let said = Command::new("id").args(arguments).output().unwrap();
        String::from_utf8(said.stdout).unwrap().trim().parse::<u32>().unwrap()
    };
    (id(&["-u"]) == 0).then(|| (id(&["-u", "postgres"]), id(&["-g", "postgres"])))
}
