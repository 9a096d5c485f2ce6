//! What is known of the server whose log the events are from, while it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use tombstream_model::{Generation, Lsn};

/// How far a server may have written since it was looked at. More than any disk takes between two looks.
const AHEAD_MAX: u64 = 1 << 40;

/// Which life of the log positions are from (S4), and how far it goes. Shared with whoever looks at the server
/// now and then; order only saves work, so that a look that is late does no harm.
#[derive(Clone, Debug)]
pub struct ServerClock(Arc<Seen>);

#[derive(Debug)]
struct Seen {
    generation: AtomicU32,
    written: AtomicU64,
}

impl Default for ServerClock {
    /// The first life, of which nothing is known.
    fn default() -> Self {
        let (generation, written) = (AtomicU32::new(0), AtomicU64::new(u64::MAX));
        Self(Arc::new(Seen { generation, written }))
    }
}

impl ServerClock {
    /// The server was looked at. Says whether it is another life of it than before.
    pub fn set(&self, generation: Generation, written: Lsn) -> bool {
        self.0.written.store(written.0, Ordering::Relaxed);
        self.0.generation.swap(generation.0, Ordering::Relaxed) != generation.0
    }

    pub(crate) fn generation(&self) -> Generation {
        Generation(self.0.generation.load(Ordering::Relaxed))
    }

    pub(crate) fn may_have_written(&self, lsn: Lsn) -> bool {
        lsn.0 <= self.0.written.load(Ordering::Relaxed).saturating_add(AHEAD_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_can_not_have_written_is_told() {
        let clock = ServerClock::default();
        assert!(clock.may_have_written(Lsn(u64::MAX)), "nothing is known");
        assert!(clock.set(Generation(1), Lsn(1_000)));
        assert!(!clock.set(Generation(1), Lsn(2_000)));
        assert!(clock.may_have_written(Lsn(2_000 + AHEAD_MAX)));
        assert!(!clock.may_have_written(Lsn(2_001 + AHEAD_MAX)));
        assert_eq!(clock.generation(), Generation(1));
    }
}
