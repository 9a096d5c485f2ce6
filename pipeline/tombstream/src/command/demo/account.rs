//! Who runs the server: Postgres refuses root.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// Unprivileged users that may be there, the fitter first.
const NAMES: [&str; 2] = ["postgres", "nobody"];

/// Another user, which root runs the server as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: &'static str,
    pub(super) user: u32,
    pub(super) group: u32,
}

impl Account {
    /// None where we are not root: the server runs as ourselves.
    pub(super) fn choose() -> anyhow::Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        for name in NAMES {
            if let (Some(user), Some(group)) = (id("-u", name), id("-g", name)) {
                return Ok(Some(Self { name, user, group }));
            }
        }
        bail!(
            "Postgres does not run as root, and there is no user `postgres` or `nobody` to run it as: \
             start the demo as another user"
        )
    }

    /// Whether the user may enter `folder`, and so everything above it.
    pub(super) fn may_enter(&self, folder: &Path) -> anyhow::Result<bool> {
        use std::os::unix::process::CommandExt as _;
        let mut test = Command::new("test");
        test.arg("-x").arg(folder).current_dir("/").stdin(Stdio::null()).stderr(Stdio::null());
        let tested = test.uid(self.user).gid(self.group).status();
        let tested = tested.with_context(|| {
            format!(
                "nothing can be run as the user `{}`, and Postgres does not run as root: start the \
                 demo as another user",
                self.name
            )
        })?;
        Ok(tested.success())
    }

    /// Gives a file or a folder to the user.
    pub(super) fn give(&self, path: &Path) -> anyhow::Result<()> {
        std::os::unix::fs::chown(path, Some(self.user), Some(self.group))
            .with_context(|| format!("{} can't be given to `{}`", path.display(), self.name))
    }
}

/// A number of a user, wherever the system keeps its users.
fn id(which: &str, name: &str) -> Option<u32> {
    let output = Command::new("id").args([which, name]).stdin(Stdio::null()).output().ok()?;
    let number: u32 = String::from_utf8_lossy(&output.stdout).trim().parse().ok()?;
    (output.status.success() && number != 0).then_some(number)
}
