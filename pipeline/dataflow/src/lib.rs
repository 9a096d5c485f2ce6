//! The operators of Tombstream on timely dataflow.
//!
//! [`Pipeline`] says what a pipeline is made of, [`Pipeline::start`] runs it, [`Running`] says how
//! it is and stops it. Data moves one way:
//! ```text
//!  source ─▶ decode ─▶ dedupe ─▶ claim ─▶ sinks ─▶ settle ─▶ finalize ─▶ probe
//!    ▲                                                                     │
//!    └────── positions are committed once the frontier has passed ◀────────┘
//! ```

mod health;
pub mod metric;
mod plan;
mod port;
mod running;

pub use health::{Health, LedgerHealth, SourceHealth, StoreHealth};
pub use plan::{Config, Pipeline, StageConfig, StartError, Store, StoreConfig, Verify};
pub use port::{ErasedSink, ErasedSource};
pub use running::{RunError, Running, Stopped};
