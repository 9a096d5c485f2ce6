//! How far the run is: told by those who flag, read by those who disturb and wait.

use super::flags::Fate;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

pub(super) struct Progress {
    pub(super) documents: usize,
    pub(super) to_flag: usize,
    flagged: AtomicUsize,
    restored: AtomicUsize,
    done: AtomicBool,
}

impl Progress {
    pub(super) fn new(documents: usize, to_flag: usize) -> Self {
        Self {
            documents,
            to_flag,
            flagged: AtomicUsize::new(0),
            restored: AtomicUsize::new(0),
            done: AtomicBool::new(false),
        }
    }

    pub(super) fn flagged(&self, fate: Fate) {
        self.flagged.fetch_add(1, Ordering::Relaxed);
        if fate == Fate::Restored {
            self.restored.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn all_flagged(&self) {
        self.done.store(true, Ordering::Release);
    }

    /// How many clients were told that theirs is flagged.
    pub(super) fn count(&self) -> usize {
        self.flagged.load(Ordering::Relaxed)
    }

    /// How many rows stay, once no more flags come.
    pub(super) fn rows_at_the_end(&self) -> Option<usize> {
        let done = self.done.load(Ordering::Acquire);
        done.then(|| self.documents + self.restored.load(Ordering::Relaxed) - self.count())
    }
}
