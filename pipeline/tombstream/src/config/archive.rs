//! `[archive]`: change events of flagged rows, kept as Parquet, so that a replay depends on no topic's retention.

use std::num::NonZeroU32;
use std::time::Duration;

use super::document::Section;
use super::files::read_place;
use super::source::Setting;

/// Where they are written, and when a file is closed.
#[derive(Clone, Debug)]
pub(crate) struct ArchiveSection {
    /// `file:///folder`, `s3://bucket/folder`, `gs://bucket/folder`, `az://container/folder`.
    pub(crate) path: String,
    /// How old the oldest event is that waits for a file. 10 m: six files an hour for each relation; until then
    /// it is in the ledger.
    pub(crate) close_after: Duration,
    /// Most events of a file, which closes it earlier. 100,000: ten megabytes of memory.
    pub(crate) rows_max: NonZeroU32,
    /// The store's own options, such as `aws_endpoint`.
    pub(crate) options: Vec<(String, Setting)>,
}

impl ArchiveSection {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let place = read_place(section);
        let after_place = section.place("close_after");
        let close_after = section.or("close_after", Duration::from_secs(600));
        if close_after < Duration::from_secs(1) {
            section.problem(
                after_place,
                format!("{} makes a file of every event", humantime::format_duration(close_after)),
                "write \"1s\" or more; 10m is the default",
            );
        }
        let rows_max = section.or("rows_max", NonZeroU32::new(100_000).expect("not zero"));
        if cfg!(not(feature = "parquet")) {
            section.problem(
                section.here(),
                "this build of tombstream writes no Parquet",
                "build it with the feature parquet, a default one, or leave the section out",
            );
        }
        let (path, options) = place?;
        Some(Self { path, close_after, rows_max, options })
    }
}
