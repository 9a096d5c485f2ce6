//! `[ledger]` and `[dead_letters]`: how long, and how much, the ledger keeps.

use std::num::NonZeroUsize;
use std::time::Duration;

use tombstream_connectors::postgres::Retention;
use tombstream_model::LetterLimits;

use super::document::Section;

/// How long closed deletions are kept where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LedgerSection {
    pub(crate) retention: Retention,
}

impl LedgerSection {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        // 7 d: what people ask about is of this week, and the archive answers for the rest.
        let closed_keep = section.or("closed_keep", Duration::from_secs(7 * 86_400));
        let place = section.place("archive_keep");
        let archive_keep = section.get::<Duration>("archive_keep");
        if archive_keep.is_some_and(|keep| keep < closed_keep.max(Duration::from_secs(1))) {
            section.problem(
                place,
                "shorter than closed_keep",
                "make it the longer one, or leave it out: the archive is then kept for ever",
            );
        }
        Self { retention: Retention { closed_keep, archive_keep } }
    }
}

/// How much of a dead letter is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeadLettersSection {
    pub(crate) limits: LetterLimits,
}

impl DeadLettersSection {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        let default = LetterLimits::default();
        let bytes_max = NonZeroUsize::new(default.bytes_max).expect("not zero");
        let bytes_max = section.or("bytes_max", bytes_max).get();
        let redact = section.or("redact", default.redact);
        Self { limits: LetterLimits { bytes_max, redact } }
    }
}
