//! A copy of the sources, in which guards are taken out: the checkout itself is never touched.

use crate::shell;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The copy, and what is built of it.
pub(super) struct Tree {
    pub(super) sources: PathBuf,
    pub(super) built: PathBuf,
}

impl Tree {
    /// Brings the copy up to date. What is the same keeps its time, so that little is built anew.
    pub(super) fn copy() -> Result<Self> {
        let folder = shell::target()?.join("guards");
        let tree = Self { sources: folder.join("sources"), built: folder.join("built") };
        let listed = listed()?;
        for path in &listed {
            let from = shell::root().join(path);
            // Deleted and not yet committed: git still lists it.
            let Ok(bytes) = std::fs::read(&from) else { continue };
            write(&tree.sources.join(path), &bytes)?;
        }
        remove_others(&tree.sources, &tree.sources, &listed)?;
        Ok(tree)
    }

    pub(super) fn write(&self, file: &str, text: &str) -> Result<()> {
        write(&self.sources.join(file), text.as_bytes())
    }

    pub(super) fn read(&self, file: &str) -> Result<String> {
        std::fs::read_to_string(self.sources.join(file))
            .with_context(|| format!("can't read the copy of {file}"))
    }
}

fn listed() -> Result<BTreeSet<PathBuf>> {
    let output = Command::new("git")
        .current_dir(shell::root())
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .context("can't run git")?;
    if !output.status.success() {
        bail!("git does not list the sources: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8(output.stdout).context("a source whose name is no text")?;
    Ok(text.split_terminator('\0').map(PathBuf::from).collect())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if std::fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    let folder = path.parent().context("a source is in a folder")?;
    let write = || {
        std::fs::create_dir_all(folder)?;
        std::fs::write(path, bytes)
    };
    write().with_context(|| format!("can't write {}", path.display()))
}

/// A file that is gone from the checkout would still be built.
fn remove_others(folder: &Path, root: &Path, listed: &BTreeSet<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(&path, root, listed)?;
        } else if path
            .strip_prefix(root)
            .is_ok_and(|path| !listed.contains(path) || !shell::root().join(path).exists())
        {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}
