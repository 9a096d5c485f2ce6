//! `compose.yaml` is valid: by `docker compose config`, or by the library that compose reads it with.

use super::run_shown;
use crate::{go, shell};
use anyhow::Result;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

const MODULE: &str = "github.com/compose-spec/compose-go/v2/cmd";
const VERSION: &str = "v2.9.1";

pub(super) fn run() -> Result<Option<String>> {
    if shell::answer("docker", ["compose", "version"], Duration::from_secs(10)).is_some() {
        let mut command = Command::new("docker");
        command.args(["compose", "--file", "compose.yaml", "config", "--quiet"]);
        run_shown(command.current_dir(shell::root()))?;
        return Ok(None);
    }
    if !shell::has("go") {
        return Ok(Some("it was NOT validated: neither docker compose nor go is here".to_owned()));
    }
    let mut command = Command::new(install()?);
    command.arg("compose.yaml").current_dir(shell::root()).stdout(Stdio::null());
    run_shown(&mut command)?;
    Ok(Some("checked by compose-go alone, since docker compose is not here".to_owned()))
}

fn install() -> Result<PathBuf> {
    go::program("compose-go", VERSION, "cmd", |go, folder| {
        go.args(["install", &format!("{MODULE}@{VERSION}")]).env("GOBIN", folder);
    })
}
