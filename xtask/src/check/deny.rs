//! cargo-deny: licences, and which crate may use which (`deny.toml`).

use super::run_shown;
use crate::shell;
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Command;

const VERSION: &str = "0.20.2";

pub(super) fn run() -> Result<Option<String>> {
    let mut command = Command::new(install()?);
    command
        .args(["--locked", "--all-features", "check", "--hide-inclusion-graph"])
        .args(["bans", "licenses", "sources"])
        .current_dir(shell::root());
    run_shown(&mut command)?;
    Ok(Some("advisories are not looked up: that needs the network".to_owned()))
}

fn install() -> Result<PathBuf> {
    let home = shell::cache()?.join(format!("cargo-deny-{VERSION}"));
    let program = home.join("bin/cargo-deny");
    shell::locked("cargo-deny", || {
        if program.is_file() {
            return Ok(());
        }
        eprintln!("check: installing cargo-deny {VERSION}, some minutes the first time");
        let mut command = shell::cargo();
        command
            .args(["install", "cargo-deny", "--locked", "--debug", "--no-default-features"])
            .args(["--version", VERSION, "--root"])
            .arg(&home)
            // Its build is thrown away, and must not take part in ours.
            .env("CARGO_TARGET_DIR", home.join("build"))
            .env("CARGO_PROFILE_DEV_DEBUG", "false");
        shell::run_logged(&mut command, &home.with_extension("log"))?;
        std::fs::remove_dir_all(home.join("build")).context("can't remove cargo-deny's build")
    })?;
    Ok(program)
}
