//! The tables under care, as the configuration describes them.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{AddressTemplate, KeyKind};

/// A relation's place in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RelationId(pub u16);

/// A store's place in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StoreId(pub u16);

/// A Postgres table whose soft deletes Tombstream makes true.
#[derive(Clone, Debug)]
pub struct Relation {
    /// The name in routes, metrics and the ledger. It outlives renames of the table.
    pub name: Arc<str>,
    /// The Postgres schema, as stored in the catalogue (no quotes).
    pub schema: String,
    /// The table, as stored in the catalogue (no quotes). A partitioned table is named by its root.
    pub table: String,
    /// The columns of the key, at least one, unique together.
    pub key: Vec<KeyColumn>,
    /// The soft-delete column.
    pub flag: Flag,
    /// Where the copies of a row are. At least one.
    pub targets: Vec<TargetTemplate>,
    /// How long a flag must stand before the row may be claimed, by Postgres's clock: the longest grace
    /// of its targets.
    pub grace: Duration,
    /// How long a flag must stand before the copies of [`TargetTemplate::is_hidden_first`] are destroyed:
    /// shorter than `grace`. None: all go with the claim.
    pub hide: Option<Duration>,
    /// How much may be claimed before an operator is asked. None: as much as is flagged.
    pub breaker: Option<BreakerLimits>,
    /// What a hard delete of a living row means.
    pub on_hard_delete: OnHardDelete,
    /// Whether it was declared that no key is ever used again (S5).
    pub key_reuse_forbidden: bool,
    /// The Kafka topics that carry this relation's change events.
    pub topics: Vec<String>,
    /// Child tables that may be taken along by ON DELETE CASCADE or SET NULL, as `schema.table`.
    pub allow_cascade: Vec<String>,
}

/// A column of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyColumn {
    /// The column's name, as stored in the catalogue.
    pub name: String,
    /// Its type.
    pub kind: KeyKind,
}

/// The column that says whether a row is soft-deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// The column's name, as stored in the catalogue.
    pub column: String,
    /// Its type.
    pub kind: FlagKind,
}

/// What a flag's values mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlagKind {
    /// `timestamptz`: set when not null.
    TimestampTz,
    /// `timestamp` without zone: set when not null, read in this zone (an IANA name).
    Timestamp {
        /// The zone the application's values are in. There is no default.
        zone: String,
    },
    /// `boolean`: set when true.
    Boolean,
}

/// What a hard delete of an unflagged row means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnHardDelete {
    /// Nothing: whoever removed the row looks after its copies. The default (S5).
    #[default]
    Ignore,
    /// A deletion: its copies are destroyed. Needs a guard on the table's inserts, so that no row comes to
    /// life under a key whose copies are being destroyed.
    Destroy,
}

/// What trips a relation's breaker. What is asked beyond a limit is refused as a whole batch, and waits with all
/// that follows until an operator approves or rejects it.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerLimits {
    /// Most claims within any `window`.
    pub claims_max: Option<u64>,
    /// The stretch of time that `claims_max` and `share_max` are about.
    pub window: Duration,
    /// Largest share of the relation's rows, above 0 and below 1, that may be claimed within any `window`. The first
    /// [`SHARE_FROM`](Self::SHARE_FROM) claims are free, or a small table's every deletion would trip it.
    pub share_max: Option<f64>,
    /// Most claims a second, over any [`RATE_WINDOW`](Self::RATE_WINDOW).
    pub rate_max: Option<u64>,
}

impl BreakerLimits {
    /// The stretch of time over which `rate_max` is judged: a batch of claims is no rate.
    pub const RATE_WINDOW: Duration = Duration::from_secs(10);
    /// Claims within a window from which on `share_max` is judged. The ledger's `tombstream.spend` has it too.
    pub const SHARE_FROM: u64 = 100;
}

/// One template of an address in one store.
#[derive(Clone, Debug)]
pub struct TargetTemplate {
    /// Which store.
    pub store: StoreId,
    /// Where in it.
    pub address: AddressTemplate,
    /// Whether it is destroyed when the deletion is hidden, before the claim: its store can be filled again.
    pub is_hidden_first: bool,
}

impl Relation {
    /// The kinds of the key's columns, for [`crate::Key::new`].
    pub fn key_kinds(&self) -> impl ExactSizeIterator<Item = KeyKind> + '_ {
        self.key.iter().map(|column| column.kind)
    }

    /// The columns that the templates name, each once, in the order of first use.
    pub fn template_columns(&self) -> Vec<&str> {
        let mut columns = Vec::new();
        for column in self.targets.iter().flat_map(|target| target.address.columns()) {
            if !columns.contains(&column) {
                columns.push(column);
            }
        }
        columns
    }
}
