//! Programs that are built from Go into the cache, once for each version.

use crate::shell;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The program `file` of that name and version. `build` adds to `go` what puts it into the folder that it is given.
pub(crate) fn program(
    name: &str,
    version: &str,
    file: &str,
    build: impl FnOnce(&mut Command, &Path),
) -> Result<PathBuf> {
    let folder = shell::cache()?.join(format!("{name}-{version}"));
    let program = folder.join(file);
    if program.is_file() {
        return Ok(program);
    }
    shell::locked(name, || {
        if program.is_file() {
            return Ok(());
        }
        if !shell::has("go") {
            bail!("go is not on the path: it builds {name} (Debian: apt-get install golang)");
        }
        eprintln!("go: building {name} {version}, some minutes the first time");
        let aside = folder.with_extension("new");
        std::fs::create_dir_all(&aside)
            .with_context(|| format!("can't make {}", aside.display()))?;
        let mut command = Command::new("go");
        build(&mut command, &aside);
        shell::run_logged(&mut command, &aside.join("build.log"))?;
        std::fs::rename(&aside, &folder)
            .with_context(|| format!("can't move {name} into its place"))
    })?;
    Ok(program)
}

/// The program of a module of this repository, by its folder from the root. Its name is the folder's.
pub(crate) fn of_module(folder: &str) -> Result<PathBuf> {
    let path = shell::root().join(folder);
    let name = path.file_name().and_then(|it| it.to_str()).context("a module has a folder")?;
    let mut text = String::new();
    for file in ["go.mod", "go.sum", "main.go"] {
        let path = path.join(file);
        text += &std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    }
    // Other code or other modules, another program.
    program(name, &shell::fingerprint(&text), name, |go, aside| {
        go.args(["build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o"]);
        go.arg(aside.join(name)).arg(".").current_dir(&path);
    })
}
