//! Postgres: the relations' database, and Tombstream's ledger in it.
//!
//! Owned here: the ledger ([`PgLedger`]: claim, resume, finalize, owe, bury), the sweep of the flag
//! itself ([`Sweep`]), the source that reads the log ([`PostgresSource`]), the guard triggers and indexes that a relation gets ([`install_relation`]), and
//! what operators ask of the ledger. Left to others: who decides when (the dataflow), and flipping
//! flags (the api).
//!
//! Lock order everywhere: relation row, ledger row, counter row. Every batch takes its rows in key
//! order with `skip locked`; what it skips is left to the sweep.
//!
//! Every statement works behind a pooler in transaction mode, too: see the module `statement`.

mod absent;
mod again;
mod archive;
mod arrival;
mod audit;
mod backfill;
mod breaker;
mod bury;
mod check;
mod claim;
mod correct;
mod decide;
mod entries;
mod export;
mod filter;
mod finalize;
mod generation;
mod guard;
mod import;
mod job;
mod ledger;
mod letters;
mod listing;
mod migrate;
mod moved;
mod owe;
mod plan;
mod pool;
mod positions;
mod re_erase;
mod rehydrate;
mod removed;
mod replay;
mod replication;
mod resume;
mod roles;
mod schedule;
mod seal;
mod statement;
mod status;
mod stores;
mod sweep;
mod table;
mod tally;
mod tidy;
mod version;
mod zombies;

pub use archive::{ArchivePage, ArchiveQueue, Unarchived};
pub use audit::{Audit, AuditConfig, AuditError, AuditRound, AuditSpan, AuditTally};
pub use backfill::{Backfill, BackfillConfig, BackfillSpec, Progress, job_owner};
pub use check::{Finding, Severity, check, check_ledger, guards, references};
pub use correct::Resumed;
pub use entries::EntriesError;
pub use export::{ReceiptExport, prove, receipts_of};
pub use filter::{FUNCTIONS as FILTER_FUNCTIONS, FilterError};
pub use generation::SeenServer;
pub use guard::{InstallError, install_relation, relation_sql};
pub use import::{ImportError, Imported, ReceiptImport};
pub use job::{Job, JobError, JobRow, forget_job, jobs};
pub use ledger::{LedgerConfig, LedgerStore, PgLedger};
pub use letters::{Letters, Redrive, Redriven, order_redrive};
pub use listing::{DeletionListing, DeletionPart, PgRegistry, RowListing, RowPart, listings};
pub use migrate::{MigrateFailure, migrate};
pub use plan::{Planned, PlannedAges, PlannedBreaker, PlannedRows, PlannedStore, plan};
pub use pool::{connect, for_a_pooler};
pub use positions::PgPositions;
pub use re_erase::{
    ChainStanding, Ending as ReEraseEnding, Erased, ReErase, ReEraseConfig, ReEraseError,
    ReEraseSpec, RowBack, rows_back,
};
pub use rehydrate::{RehydrateError, publish_rehydrations};
pub use replay::{Bygone, ReplayLedger, Replayed};
pub use replication::{
    Gap, GapReason, Makes, PostgresSource, PrimaryKeys, ReplicationConfig, ReplicationConfigError,
    Scope, check_capture, fix_capture, read_snapshot,
};
pub use roles::{
    API_ROLE, ApiRights, PIPELINE_ROLE, check_rights, relation_role_sql, role_sql, run_role_sql,
};
pub use schedule::{ScheduleRow, ScheduledResult, ScheduledTurn, schedules, take_turn};
pub use seal::{SealError, Sealer, Sealing, Turn, sealing};
pub use status::{
    AuditStatus, DeadLetterRow, OwedStore, PausedRelation, RelationStatus, Status, WaitingRelation,
    dead_letter, dead_letters, status, waiting,
};
pub use stores::{FormerStore, Waived, note_stores, waive_store};
pub use sweep::{Sweep, SweepBell, SweepConfig};
pub use tally::{Count, TalliedLedger, Tally};
pub use tidy::{Retention, Tidied, tidy};
pub use version::{LedgerVersion, check_version};
pub use zombies::{Zombie, ZombiesOpened, open_zombies, order_orphans};
