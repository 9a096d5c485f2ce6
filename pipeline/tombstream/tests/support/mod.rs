//! A database, a folder and a configuration of a test's own, and the binary run on them.

#![allow(dead_code, reason = "not every target needs all of it")]

use std::process::{Child, Command, Output};
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
