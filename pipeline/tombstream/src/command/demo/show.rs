//! What is seen while it happens: bars on a terminal, lines elsewhere. All of it on stderr.

use std::fmt;
use std::io::IsTerminal as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::drive::Fate;
use super::report::Counts;

/// How often lines are written where there are no bars.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Speaks to whoever started the demo.
#[derive(Debug)]
pub(super) struct Show {
    bars: Option<MultiProgress>,
}

/// How far the flags and the deletions are.
#[derive(Debug)]
pub(super) struct Progress {
    documents: usize,
    flagged: AtomicUsize,
    restored: AtomicUsize,
    all_flagged: AtomicBool,
    bars: Option<[ProgressBar; 5]>,
    told: Mutex<Instant>,
}

impl Show {
    pub(super) fn new() -> Self {
        Self { bars: std::io::stderr().is_terminal().then(MultiProgress::new) }
    }

    pub(super) fn say(&self, text: fmt::Arguments<'_>) {
        match &self.bars {
            Some(bars) => bars.suspend(|| eprintln!("{text}")),
            None => eprintln!("demo: {text}"),
        }
    }

    /// The bars of the main part.
    pub(super) fn progress(&self, documents: usize, to_flag: usize, to_restore: usize) -> Progress {
        let goes = to_flag - to_restore;
        let bars = self.bars.as_ref().map(|all| {
            [
                ("flagged", to_flag),
                ("restored", to_restore),
                ("objects gone", goes),
                ("index gone", goes),
                ("rows gone", goes),
            ]
            .map(|(name, length)| {
                let bar = all.add(ProgressBar::new(length as u64)).with_style(style());
                bar.with_prefix(name)
            })
        });
        Progress {
            documents,
            flagged: AtomicUsize::new(0),
            restored: AtomicUsize::new(0),
            all_flagged: AtomicBool::new(false),
            bars,
            told: Mutex::new(Instant::now()),
        }
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix:>14} {bar:40} {human_pos:>7} of {human_len}")
        .expect("the template is whole")
        .progress_chars("━╸ ")
}

impl Progress {
    /// A client was told so of one document.
    pub(super) fn flagged(&self, fate: Fate) {
        let flagged = self.flagged.fetch_add(1, Ordering::Relaxed) + 1;
        let mut restored = self.restored.load(Ordering::Relaxed);
        if fate == Fate::Restored {
            restored = self.restored.fetch_add(1, Ordering::Relaxed) + 1;
        }
        if let Some(bars) = &self.bars {
            bars[0].set_position(flagged as u64);
            bars[1].set_position(restored as u64);
        }
    }

    pub(super) fn all_flagged(&self) {
        self.all_flagged.store(true, Ordering::Release);
    }

    /// How many of each stay, once no more flags come.
    pub(super) fn stay(&self) -> Option<usize> {
        let done = self.all_flagged.load(Ordering::Acquire);
        let (flagged, restored) =
            (self.flagged.load(Ordering::Relaxed), self.restored.load(Ordering::Relaxed));
        done.then(|| self.documents + restored - flagged)
    }

    /// Shows what is left of each.
    pub(super) fn left(&self, show: &Show, left: Counts) {
        let gone = |left: usize| self.documents.saturating_sub(left);
        let (rows, objects, index) = (gone(left.rows), gone(left.objects), gone(left.index));
        if let Some(bars) = &self.bars {
            for (bar, gone) in bars[2..].iter().zip([objects, index, rows]) {
                bar.set_position(gone as u64);
            }
            return;
        }
        let due = self.told.lock().is_ok_and(|mut told| {
            let due = told.elapsed() >= TELL_EVERY;
            if due {
                *told = Instant::now();
            }
            due
        });
        if due {
            let flagged = self.flagged.load(Ordering::Relaxed);
            let restored = self.restored.load(Ordering::Relaxed);
            show.say(format_args!(
                "{flagged} flagged, {restored} restored; gone: {objects} objects, {index} of the \
                 index, {rows} rows"
            ));
        }
    }

    /// Leaves the bars as they are.
    pub(super) fn end(&self) {
        for bar in self.bars.iter().flatten() {
            bar.abandon();
        }
    }
}
