//! A Python with the packages that a bench's other side needs.

use crate::shell;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::Command;

/// The Python of an environment of its own, made the first time.
pub(super) fn with(requirements: &str) -> Result<PathBuf> {
    let path = shell::root().join(requirements);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    // Other packages, another environment.
    let home = shell::cache()?.join(format!("python-{}", shell::fingerprint(&text)));
    let python = home.join("bin/python");
    shell::locked("python", || {
        if home.join("done").is_file() {
            return Ok(());
        }
        if !shell::has("python3") {
            bail!("python3 is not on the path: it runs the other side of this bench");
        }
        let log = home.with_extension("log");
        let mut make = Command::new("python3");
        make.args(["-m", "venv"]).arg(&home);
        shell::run_logged(&mut make, &log)?;
        let mut install = Command::new(&python);
        install.args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(&path);
        shell::run_logged(&mut install, &log)?;
        std::fs::write(home.join("done"), "").context("can't write beside the environment")
    })?;
    Ok(python)
}
