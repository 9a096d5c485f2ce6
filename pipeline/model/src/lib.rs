//! What Tombstream talks about, and the ports through which it talks.
//!
//! A [`Relation`] is a Postgres table under care. A [`Change`] says what an event means for one of
//! its rows; what may lead to a deletion becomes a [`Candidate`]. The [`Ledger`] claims candidates
//! and gives [`Claimed`] deletions, each with its [`Target`]s: one [`Address`] in one store. A
//! [`Sink`] destroys targets and answers with [`Outcome`]s; joined they are a [`Settled`] deletion,
//! which the ledger finalizes.
//!
//! This crate knows no runtime, no dataflow and no client library. What needs one implements a port.

#![warn(missing_docs)]

mod address;
mod canonical;
mod chain;
mod change;
pub mod decode;
mod deletion;
pub mod encode;
mod export;
mod key;
mod keyed;
mod ledger;
mod letter;
mod listing;
mod merkle;
mod position;
mod publisher;
mod receipt;
mod relation;
mod sink;
mod source;
mod verify;
pub mod wal;

pub use address::{Address, AddressError, AddressTemplate, Row, Template, TemplateError};
pub use canonical::NotCanonical;
pub use chain::{Block, Closed, End, Entry, Proof, ProofError, export_header};
pub use change::{Candidate, Cause, Change, FlagState, FlagValue, Found, Op, RemovedRow};
pub use deletion::{DeletionCause, DeletionId, State, Verdict};
pub use export::ExportLine;
pub use key::{Key, KeyError, KeyKind};
pub use keyed::KeyedHash;
pub use ledger::{
    Claimed, ClaimedTarget, Disposition, Ending, Fence, Ledger, LedgerError, Settled,
};
pub use letter::{DeadLetter, Kept, LetterForm, LetterLimits};
pub use listing::{
    Listed, ListedDeletion, ListedRow, Listing, ListingError, ListingPart, Now, Registry, Standing,
};
pub use merkle::{Hash, ParseHashError, Tree};
pub use position::{Generation, Lsn, ParseLsnError, Position};
pub use publisher::{Message, PublishError, Publisher};
pub use receipt::{
    HashedAddress, Receipt, ReceiptAddress, ReceiptProblem, ReceiptTally, ReceiptTarget, Waiver,
};
pub use relation::{
    BreakerLimits, Flag, FlagKind, KeyColumn, OnHardDelete, Relation, RelationId, StoreId,
    TargetTemplate,
};
pub use sink::{Outcome, Presence, Sink, SinkError, Target, Verification};
pub use source::{Event, Mark, Origin, Polled, Records, Source, SourceError};
pub use verify::{ChainCheck, Counts};
