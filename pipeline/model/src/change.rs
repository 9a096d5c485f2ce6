//! What an event says of one row.

use serde::{Deserialize, Serialize};

use crate::{Key, Position, RelationId};

/// What a decoded message says of one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Whose row.
    pub relation: RelationId,
    /// Which row.
    pub key: Key,
    /// What happened.
    pub op: Op,
    /// The flag before, where the envelope says it (it needs REPLICA IDENTITY FULL).
    pub before: FlagState,
    /// The flag after. [`FlagState::Unknown`] for a delete.
    pub after: FlagState,
    /// Where in the log, unless the event has no LSN (incremental snapshots) or is a snapshot read:
    /// those add candidates and override nothing (S4).
    pub position: Option<Position>,
    /// Of a delete, where [`OnHardDelete::Destroy`](crate::OnHardDelete) asks for it: the row as it was.
    pub removed: Option<RemovedRow>,
}

/// What an event told of a removed row: the columns that the templates name, in the order of
/// [`Relation::template_columns`](crate::Relation::template_columns); none is not known. Under a replica identity
/// that is not FULL the columns beside the key may be anything: whoever uses them asks the table which it has.
pub type RemovedRow = Box<[Option<Box<str>>]>;

/// What happened to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// A snapshot read.
    Read,
    /// An insert.
    Create,
    /// An update.
    Update,
    /// A hard delete.
    Delete,
}

/// What an event says of the flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlagState {
    /// The event does not say.
    Unknown,
    /// Alive.
    Unset,
    /// Soft-deleted.
    Set(FlagValue),
}

/// A flag's value as the event spells it. Never decides anything: the claim reads the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlagValue {
    /// Microseconds since 1970-01-01 00:00, in UTC or (without zone) as the clock on the wall.
    Micros(i64),
    /// Postgres's `infinity`.
    Infinity,
    /// Postgres's `-infinity`.
    NegativeInfinity,
    /// A boolean flag.
    True,
}

/// A key that the claim shall look at. It says nothing of the row: the claim reads that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Whose row.
    pub relation: RelationId,
    /// Which row.
    pub key: Key,
    /// Where in the log, if an event with an LSN brought it.
    pub position: Option<Position>,
    /// Who brought it.
    pub cause: Cause,
    /// What was found.
    pub found: Found,
    /// Of a removed row: what the event told of it.
    pub removed: Option<RemovedRow>,
}

/// Who brought a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// A change event.
    Event,
    /// The scan of the flag itself.
    Sweep,
}

/// What a candidate is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Found {
    /// A set flag.
    Flagged,
    /// The row is gone: a hard delete, or the echo of Tombstream's own.
    Removed,
    /// All rows of the relation are gone at once. The key has no columns.
    Truncated,
}

impl Change {
    /// The candidate that this change gives, if it can lead to a claim.
    pub fn into_candidate(self) -> Option<Candidate> {
        let found = match (self.op, self.after) {
            (Op::Delete, _) => Found::Removed,
            (Op::Read | Op::Create | Op::Update, FlagState::Set(_)) => Found::Flagged,
            // A TOASTed or absent flag proves nothing, so the claim has to look.
            (Op::Read | Op::Create | Op::Update, FlagState::Unknown) => Found::Flagged,
            (Op::Read | Op::Create | Op::Update, FlagState::Unset) => return None,
        };
        Some(Candidate {
            relation: self.relation,
            key: self.key,
            position: self.position,
            cause: Cause::Event,
            found,
            removed: self.removed,
        })
    }
}
