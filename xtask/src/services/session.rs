//! The servers of one command: stopped and wiped when it ends, unless they ran before.

use super::{Service, State};
use crate::shell;
use anyhow::Result;
use std::path::PathBuf;

/// Servers in use. What this started goes when it is dropped.
pub(crate) struct Session {
    dir: PathBuf,
    starts: bool,
    keeps: bool,
}

impl Session {
    /// The servers of a folder that the user named; else those of `services up`, if all of
    /// `needed` run; else some of our own, not yet started.
    pub(crate) fn choose(given: Option<PathBuf>, needed: &[Service]) -> Result<Self> {
        if let Some(dir) = given {
            return Ok(Self { dir, starts: false, keeps: true });
        }
        let usual = super::default_dir();
        let state = State::load(&usual)?;
        if needed.iter().all(|service| state.runs(*service)) {
            eprintln!("services: using those of {}", usual.display());
            return Ok(Self { dir: usual, starts: false, keeps: true });
        }
        Ok(Self::of_its_own(shell::root().join("target/services-own")))
    }

    /// Servers in a folder of this command's own, not yet started.
    pub(crate) fn of_its_own(dir: PathBuf) -> Self {
        Self { dir, starts: true, keeps: false }
    }

    /// Their state; starts those that do not run yet.
    pub(crate) fn start(&self, needed: &[Service]) -> Result<State> {
        super::up(&self.dir, needed)
    }

    /// Leaves them running.
    pub(crate) fn keep(&mut self) {
        if !self.keeps {
            self.keeps = true;
            eprintln!(
                "services: left running: cargo xtask services down --wipe --dir {}",
                self.dir.display()
            );
        }
    }

    /// Whether all data go with the servers, so that nothing needs to be cleaned up.
    pub(crate) fn is_thrown_away(&self) -> bool {
        self.starts && !self.keeps
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.keeps
            && let Err(error) = super::down(&self.dir, &[], true)
        {
            eprintln!("services: not all were stopped: {error:#}");
        }
    }
}
