//! What is kept of a change event when it is archived: enough to look at its row again, and nothing of what was in it.
//!
//! Outside of the connectors' folders, since one of them collects these and another writes and reads them.

use chrono::{DateTime, Utc};
use tombstream_model::{Found, Lsn};

/// An event that could lead to a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedEvent {
    /// The relation's name. It outlives its place in the configuration.
    pub relation: String,
    /// The texts of the key's columns.
    pub key: Vec<String>,
    /// A set flag, or a removed row.
    pub found: Found,
    /// Where in the log, if the event said so, and which life of the log that was.
    pub position: Option<(u32, Lsn)>,
    /// When it was given to the claim, by Postgres's clock.
    pub at: DateTime<Utc>,
}

/// How the archive spells what an event is about.
pub(crate) const KINDS: [(Found, &str); 3] =
    [(Found::Flagged, "flagged"), (Found::Removed, "removed"), (Found::Truncated, "truncated")];

/// The spelling of `found`.
pub(crate) fn kind(found: Found) -> &'static str {
    KINDS.iter().find(|(known, _)| *known == found).map_or("flagged", |(_, name)| name)
}

/// What `text` spells.
pub(crate) fn found(text: &str) -> Option<Found> {
    KINDS.iter().find(|(_, name)| *name == text).map(|(found, _)| *found)
}
