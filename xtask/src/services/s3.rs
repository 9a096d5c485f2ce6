//! An S3 server: Versity S3 Gateway over a folder, built from the Go module proxy.

use super::process::{self, Launch};
use super::state::Server;
use crate::go;
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub(super) const ACCESS_KEY: &str = "testaccess";
pub(super) const SECRET_KEY: &str = "testsecretkey";
const REGION: &str = "us-east-1";
const MODULE: &str = "github.com/versity/versitygw/cmd/versitygw";
const VERSION: &str = "v1.8.0";

pub(super) fn start(home: &Path, port: u16) -> Result<Server> {
    let program = install()?;
    let data = home.join("data");
    let folder = |name: &str| -> Result<OsString> {
        let path = data.join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("can't make {}", path.display()))?;
        Ok(path.into())
    };
    let mut args: Vec<OsString> =
        ["--quiet", "--keep-alive", "--region", REGION, "--health", "/health"]
            .iter()
            .map(OsString::from)
            .collect();
    args.extend(["--port".into(), format!("127.0.0.1:{port}").into()]);
    args.extend(["--iam-dir".into(), folder("users")?, "posix".into()]);
    args.extend(["--versioning-dir".into(), folder("versions")?, folder("objects")?]);
    let log = home.join("s3.log");
    let process = Launch {
        name: "s3",
        program: &program,
        args,
        variables: vec![
            ("ROOT_ACCESS_KEY", ACCESS_KEY.into()),
            ("ROOT_SECRET_KEY", SECRET_KEY.into()),
        ],
        folder: home,
        log: log.clone(),
        user: None,
    }
    .start(|| process::answers(port, "/health"))?;
    Ok(Server { process: Some(process), data: Some(data), log: Some(log) })
}

fn install() -> Result<PathBuf> {
    go::program("versitygw", VERSION, "versitygw", |go, folder| {
        go.args(["install", "-ldflags", "-s -w", &format!("{MODULE}@{VERSION}")]);
        go.env("GOBIN", folder);
    })
}
