//! A database, a folder and a configuration of a test's own, and the binary run on them.

#![allow(dead_code, reason = "not every target needs all of it")]

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection};

/// A database with `public.notes` and a folder of its own, both gone with the test.
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) admin: PgConnection,
    pub(crate) db: PgConnection,
    pub(crate) url: String,
    envs: Vec<(&'static str, &'static str)>,
}

impl Place {
    /// `columns` of the table; FOLDER and NAME stand in `config` for the folder and the database's name, and
    /// its url is in NOTES_URL.
    pub(crate) async fn made_of(
        columns: &str,
        config: &str,
        envs: &[(&'static str, &'static str)],
    ) -> Self {
        let server: PgConnectOptions = std::env::var("TOMBSTREAM_TEST_POSTGRES_URL")
            .expect("set TOMBSTREAM_TEST_POSTGRES_URL; `cargo xtask services env` prints it")
            .parse()
            .unwrap();
        let name = format!("binary_{:016x}", rand::random::<u64>());
        let mut admin = server.connect().await.unwrap();
        let create = AssertSqlSafe(format!("create database {name}"));
        sqlx::query(create).execute(&mut admin).await.unwrap();
        let options = server.clone().database(&name);
        let url = options.to_url_lossy().to_string();
        let mut db = options.connect().await.unwrap();
        let table = AssertSqlSafe(format!("create table public.notes ({columns})"));
        sqlx::raw_sql(table).execute(&mut db).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("copies")).unwrap();
        let path = folder.path().display().to_string();
        let config = config.replace("FOLDER", &path).replace("NAME", &name);
        std::fs::write(folder.path().join("tombstream.toml"), config).unwrap();
        Self { name, folder, admin, db, url, envs: envs.to_vec() }
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tombstream"));
        command.current_dir(self.folder.path()).args(args).env("NOTES_URL", &self.url);
        command.envs(self.envs.iter().copied());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Migrates the ledger, and must succeed.
    pub(crate) fn migrate(&self) {
        let migrated = self.run(&["migrate"]);
        assert!(migrated.status.success(), "{}", text(&migrated.stderr));
    }

    /// `tombstream run` as a process of its own, which says nothing.
    pub(crate) fn begin(&self) -> Child {
        self.command(&["run"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    pub(crate) async fn sql(&mut self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut self.db).await.unwrap();
    }

    /// The one number that a query gives.
    pub(crate) async fn count(&mut self, sql: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut self.db).await.unwrap()
    }

    /// Makes the copy of a note.
    pub(crate) fn note(&self, id: i64) {
        std::fs::create_dir_all(self.copy(id).parent().unwrap()).unwrap();
        std::fs::write(self.copy(id), "bytes").unwrap();
    }

    /// Where the copy of a note is.
    pub(crate) fn copy(&self, id: i64) -> std::path::PathBuf {
        self.folder.path().join(format!("copies/{id}/original"))
    }

    pub(crate) async fn end(mut self) {
        self.db.close().await.unwrap();
        let drop = AssertSqlSafe(format!("drop database {} with (force)", self.name));
        sqlx::query(drop).execute(&mut self.admin).await.unwrap();
    }
}

/// A configuration of `public.notes`, whose copies are in the folder. Its lease and deadlines are short, so that what a
/// killed process had claimed is soon another's.
pub(crate) struct Notes<'a> {
    /// Where `run` listens; 0 is any port.
    pub(crate) port: u16,
    pub(crate) absent_share_max: f64,
    pub(crate) grace: &'a str,
}

impl Default for Notes<'_> {
    fn default() -> Self {
        Self { port: 0, absent_share_max: 1.0, grace: "0s" }
    }
}

impl Notes<'_> {
    pub(crate) fn config(&self) -> String {
        let Self { port, absent_share_max, grace } = self;
        format!(
            r#"
[database]
url = {{ env = "NOTES_URL" }}
[pipeline]
listen = "127.0.0.1:{port}"
transaction_timeout = "3s"
lease = "8s"
[source.sweep]
interval = "100ms"
after = "0s"
[store.copies]
kind = "object_store"
url = "file://FOLDER/copies"
timeout = "2s"
deadline = "4s"
absent_share_max = {absent_share_max:?}
[relation.notes]
table = "public.notes"
key = [{{ column = "id", type = "bigint" }}]
flag = {{ column = "gone", type = "timestamptz" }}
key_reuse = "forbidden"
grace = "{grace}"
targets = [{{ store = "copies", key = "{{id}}/original" }}]
"#
        )
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn terminate(process: &Child) {
    let id = process.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
}

/// Waits, `patience` at most.
pub(crate) async fn until_within(
    patience: Duration,
    what: &str,
    mut done: impl AsyncFnMut() -> bool,
) {
    let begun = Instant::now();
    while !done().await {
        assert!(begun.elapsed() < patience, "waited too long: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
