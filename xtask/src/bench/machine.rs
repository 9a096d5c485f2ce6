//! The machine that figures are of, and whether it was quiet.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// A machine is quiet when less than this of its processors is used by others.
const QUIET: f64 = 0.1;
/// How long its use is looked at.
const LOOK: Duration = Duration::from_secs(3);

/// What the figures are of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Machine {
    pub(super) processors: usize,
    pub(super) model: String,
    pub(super) memory_gib: u64,
    pub(super) kernel: String,
}

impl Machine {
    pub(super) fn this() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
        };
        let kilobytes = field(&read("/proc/meminfo"), "MemTotal");
        let kilobytes =
            kilobytes.and_then(|text| text.split(' ').next()?.parse::<u64>().ok()).unwrap_or(0);
        Self {
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            model: field(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
            memory_gib: kilobytes / 1_048_576,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

/// The processors' time since the start, in ticks, as Linux counts it for all of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticks {
    all: u64,
    idle: u64,
    /// Taken by other machines on the same hardware.
    stolen: u64,
}

impl Ticks {
    pub(super) fn now() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/stat")
            .context("can't read /proc/stat: benches are measured on Linux only")?;
        Self::read(&text).context("/proc/stat has no line of all processors")
    }

    fn read(text: &str) -> Option<Self> {
        let line = text.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u64> =
            line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal; what guests use is in user already.
        let all = ticks.get(..8)?.iter().sum();
        Some(Self { all, idle: ticks[3] + ticks[4], stolen: ticks[7] })
    }

    /// Which share of the processors was used since `before`, and which was stolen.
    pub(super) fn since(self, before: Self) -> (f64, f64) {
        let all = (self.all - before.all).max(1) as f64;
        let used = 1.0 - (self.idle - before.idle) as f64 / all;
        (used, (self.stolen - before.stolen) as f64 / all)
    }
}

/// Waits until the machine is quiet, but not longer than `wait`; gives the share that is in use.
pub(super) fn quiet(wait: Duration) -> Result<f64> {
    let ends = Instant::now() + wait;
    loop {
        let before = Ticks::now()?;
        std::thread::sleep(LOOK);
        crate::shell::check_interrupt()?;
        let (used, _) = Ticks::now()?.since(before);
        if used < QUIET || Instant::now() >= ends {
            return Ok(used);
        }
    }
}

/// Whether figures taken after such use can be final.
pub(super) fn is_quiet(used: f64) -> bool {
    used < QUIET
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_is_what_is_neither_idle_nor_waiting_for_a_disk() {
        let before = Ticks::read("cpu  10 0 10 80 0 0 0 0 0 0\ncpu0 …").unwrap();
        let after = Ticks::read("cpu  30 0 20 130 10 0 0 10 5 0\ncpu0 …").unwrap();
        let (used, stolen) = after.since(before);
        assert!((used - 0.4).abs() < 1e-9 && (stolen - 0.1).abs() < 1e-9, "{used} {stolen}");
        assert!(Ticks::read("intr 1 2 3").is_none());
    }
}
