//! What a process has used, as Linux counts it.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result};

/// One drain: seconds, and processor seconds of this process (and its child).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drained {
    pub(crate) wall: f64,
    pub(crate) processor: f64,
}

/// User and system time of a process, in seconds; Linux counts in 1/100 s.
pub(crate) fn processor_seconds(process: &str) -> f64 {
    fields(process).map_or(0.0, |fields| (fields[11] + fields[12]) / 100.0)
}

/// That of this process's children that have ended.
pub(crate) fn children_seconds() -> f64 {
    fields("self").map_or(0.0, |fields| (fields[13] + fields[14]) / 100.0)
}

fn fields(process: &str) -> Option<Vec<f64>> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some(fields.map(|field| field.parse().unwrap_or(0.0)).collect())
}

/// Of this process, in bytes: `VmRSS:` now, `VmHWM:` at most.
pub(crate) fn memory(what: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(what))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// What each thread of this process has used so far.
pub(crate) struct Threads(HashMap<u64, (String, f64)>);

impl Threads {
    pub(crate) fn now() -> Result<Self> {
        let mut all = HashMap::new();
        for entry in std::fs::read_dir("/proc/self/task").context("/proc/self/task")? {
            let entry = entry?;
            // A thread may end while it is looked at.
            let (Ok(name), Ok(used)) = (
                std::fs::read_to_string(entry.path().join("comm")),
                std::fs::read_to_string(entry.path().join("schedstat")),
            ) else {
                continue;
            };
            let id = entry.file_name().to_string_lossy().parse()?;
            let nanoseconds: f64 = used.split_whitespace().next().unwrap_or_default().parse()?;
            let name = name.trim().trim_end_matches(|it: char| it.is_ascii_digit() || it == '-');
            all.insert(id, (name.to_owned(), nanoseconds / 1e9));
        }
        Ok(Self(all))
    }

    /// Seconds by the threads' names, without their numbers, since `before`; the largest are told.
    pub(crate) fn since(&self, before: &Self) -> BTreeMap<String, f64> {
        let mut all = BTreeMap::new();
        for (id, (name, used)) in &self.0 {
            let used = used - before.0.get(id).map_or(0.0, |(_, used)| *used);
            *all.entry(name.clone()).or_insert(0.0) += used;
        }
        all.retain(|_, used| *used >= 0.01);
        all
    }
}

/// How long this thread was running, in seconds; Linux counts in nanoseconds.
pub(crate) fn running_seconds() -> Result<f64> {
    let file = "/proc/thread-self/schedstat";
    let text = std::fs::read_to_string(file).context(file)?;
    let running = text.split_whitespace().next().context("no time in schedstat")?;
    Ok(running.parse::<f64>()? / 1e9)
}

/// User and system time of this process, in seconds; Linux counts in nanoseconds.
pub(crate) fn own_processor_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
