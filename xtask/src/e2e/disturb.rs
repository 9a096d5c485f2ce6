//! What goes wrong during a run, on purpose; and the wait for its end.

use super::programs::Programs;
use super::watch::Progress;
use super::{Options, Stage, say};
use crate::services::{Process, Service, State};
use anyhow::{Context, Result};
use rustix::process::Signal;
use std::time::{Duration, Instant};
use tombstream_e2e::Bucket;

const LOOK_EVERY: Duration = Duration::from_millis(50);
const TELL_EVERY: Duration = Duration::from_secs(5);
/// Above a lease (60 s) with the sweep that finds its end, and above the sweep's own patience.
const STILL_MAX: Duration = Duration::from_secs(180);

/// What became of the wait.
pub(super) struct Ended {
    pub(super) killed: u32,
    /// False when nothing moved for too long.
    pub(super) all_gone: bool,
}

/// Disturbs as the options say, until all rows are gone that should be.
pub(super) async fn all(
    stage: &Stage<'_>,
    programs: &mut Programs,
    progress: &Progress,
) -> Result<Ended> {
    let Stage { options, state, table, bucket, feed, .. } = stage;
    let mut killed = 0;
    let mut slot_dropped = false;
    let mut freeze = Freeze::planned(options, state)?;
    let (mut last_gone, mut moved, mut told) = (0, Instant::now(), Instant::now());
    loop {
        programs.check()?;
        let rows = table.count().await?;
        let gone = progress.documents.saturating_sub(rows);
        if progress.rows_at_the_end().is_some_and(|end| rows <= end) {
            return Ok(Ended { killed, all_gone: true });
        }
        if killed < options.kill && gone >= threshold(options, progress, killed) {
            programs.kill_pipeline().await?;
            killed += 1;
            say(format_args!(
                "killed the pipeline, {gone} rows gone ({killed} of {})",
                options.kill
            ));
            programs.start_pipeline().await?;
        }
        if options.drop_slot && !slot_dropped && progress.count() >= progress.to_flag / 2 {
            feed.drop_slot(programs, &table.database).await?;
            slot_dropped = true;
            say(format_args!("dropped the slot at {} flags, {gone} rows gone", progress.count()));
        }
        freeze.look(progress.count() >= progress.to_flag / 10);
        if gone != last_gone || freeze.is_on() || progress.rows_at_the_end().is_none() {
            (last_gone, moved) = (gone, Instant::now());
        }
        if moved.elapsed() > STILL_MAX {
            say(format_args!("no row went for {STILL_MAX:?}: giving up"));
            return Ok(Ended { killed, all_gone: false });
        }
        if told.elapsed() > TELL_EVERY {
            told = Instant::now();
            tell(options, bucket, programs, progress, gone, &freeze).await?;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// After how many gone rows the next kill is due: evenly spread, the last one well before the end.
fn threshold(options: &Options, progress: &Progress, killed: u32) -> usize {
    let expected = progress.to_flag as f64 * (1.0 - options.restore);
    (expected * f64::from(killed + 1) / f64::from(options.kill + 1) * 0.9) as usize
}

async fn tell(
    options: &Options,
    bucket: &Bucket,
    programs: &Programs,
    progress: &Progress,
    gone: usize,
    freeze: &Freeze,
) -> Result<()> {
    let memory = programs.memory().unwrap_or_default() / 1_000_000;
    let lag = programs.lag().await.map_or("unknown".to_owned(), |lag| lag.to_string());
    let mut line =
        format!("{} flagged, {gone} rows gone, lag {lag}, {memory} MB", progress.count());
    if options.store_stop > 0 {
        // How far the other store gets while one is frozen.
        let objects = progress.documents.saturating_sub(bucket.keys().await?.len());
        line.push_str(&format!(", {objects} objects gone"));
    }
    if freeze.is_on() {
        line.push_str(", elasticsearch frozen");
    }
    say(format_args!("{line}"));
    Ok(())
}

/// Elasticsearch frozen for a while.
enum Freeze {
    Planned { process: Process, lasts: Duration },
    On { frozen: Frozen, until: Instant },
    Over,
}

impl Freeze {
    fn planned(options: &Options, state: &State) -> Result<Self> {
        if options.store_stop == 0 {
            return Ok(Self::Over);
        }
        let process = state
            .servers
            .get(&Service::Elasticsearch)
            .and_then(|server| server.process)
            .context("--store-stop needs an Elasticsearch that is no container")?;
        Ok(Self::Planned { process, lasts: Duration::from_secs(options.store_stop) })
    }

    fn is_on(&self) -> bool {
        matches!(self, Self::On { .. })
    }

    fn look(&mut self, is_time: bool) {
        match self {
            Self::Planned { process, lasts } if is_time => {
                say(format_args!("froze elasticsearch for {lasts:?}"));
                let until = Instant::now() + *lasts;
                *self = Self::On { frozen: Frozen::new(*process), until };
            }
            Self::On { frozen, until } if Instant::now() >= *until => {
                say(format_args!("elasticsearch (pid {}) goes on", frozen.0.id));
                *self = Self::Over;
            }
            Self::Planned { .. } | Self::On { .. } | Self::Over => {}
        }
    }
}

/// A frozen process: it thaws when this is dropped, however the run ends.
struct Frozen(Process);

impl Frozen {
    fn new(process: Process) -> Self {
        process.signal(Signal::STOP);
        Self(process)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.0.signal(Signal::CONT);
    }
}
