//! Receipts of an export, brought back into a ledger that a restored backup set back: it is as whole as it was when the
//! export was made, and what it writes from now on follows the chain that others keep heads of.
//!
//! Owned here: blocks and entries, and the numbers that come after them. Left to others: whether the export can be
//! believed (the caller has checked its chain), and the rows that are back (`re_erase/`).
//!
//! One transaction: a ledger is brought up whole, or stays as it was.
//!
//! Invariant (S9): what is imported is read back out of the ledger and hashed again; its roots are those of the blocks, or
//! nothing stays; `an_export_brings_a_ledger_up_that_was_set_back_and_the_chain_goes_on`.

use serde_json::{Value, json};
use sqlx::{Executor, PgPool, Postgres, Transaction};

use tombstream_model::{Block, ExportLine, Hash, Tree};

use super::entries::{EntriesError, entries};
use super::re_erase::{ChainStanding, standing};
use super::seal::write_block;
use super::statement::{json as text, whole};

/// Entries of a statement: a few megabytes.
const PAGE: usize = 1_000;

/// Why an export can't be brought in. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The two are not one history.
    #[error(
        "this ledger has sealed receipts of its own behind block {common}, the last one that both have: two histories \
         can't be one. Keep the export beside it: `tombstream re-erase` takes it as it is"
    )]
    Forked {
        /// The last block that both have.
        common: i64,
    },
    /// It has entries that the export does not have.
    #[error(
        "this ledger has entries behind block {common} that the export has not: it went on by itself after the backup \
         was restored. Keep the export beside it: `tombstream re-erase` takes it as it is"
    )]
    WentOn {
        /// The last block that both have.
        common: i64,
    },
    /// Another process seals.
    #[error("another process seals receipts at this moment: stop `tombstream run`, and try again")]
    Sealing,
    /// The ledger could not be written or read.
    #[error("the ledger can't be written; run this as its owner, as `tombstream migrate` is")]
    Ledger(#[from] sqlx::Error),
    /// What was written can't be read back.
    #[error("what was imported can't be read back")]
    Entries(#[from] EntriesError),
}

/// What was brought in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Blocks.
    pub blocks: i64,
    /// Receipts that this ledger lacked.
    pub receipts: u64,
    /// What closes receipts.
    pub closed: u64,
    /// Deletions that were open in the backup, and are closed: their receipts say how they ended.
    pub superseded: u64,
}

/// An import that is under way.
#[derive(Debug)]
pub struct ReceiptImport {
    transaction: Transaction<'static, Postgres>,
    standing: ChainStanding,
    /// The last entry of the last block.
    last_entry: i64,
    deletion_max: i64,
    imported: Imported,
}

const BEGIN: &str = "begin isolation level read committed; set local lock_timeout = '10s'";

impl ReceiptImport {
    /// Begins one, of an export with these blocks' hashes. Nobody seals or finalizes until it ends.
    pub async fn begin(pool: &PgPool, blocks: &[Hash]) -> Result<Self, ImportError> {
        let mut transaction = whole(pool, BEGIN).await?;
        let alone = "select pg_try_advisory_xact_lock(hashtextextended('tombstream.seal', 0))";
        let is_alone: bool =
            sqlx::query_scalar(alone).persistent(false).fetch_one(&mut *transaction).await?;
        if !is_alone {
            return Err(ImportError::Sealing);
        }
        transaction
            .execute("lock table tombstream.receipt, tombstream.receipt_closed in share row exclusive mode")
            .await?;
        let standing = standing(&mut transaction, blocks).await?;
        let has_more = i64::try_from(blocks.len()).is_ok_and(|export| standing.common < export);
        if has_more && standing.common < standing.own {
            return Err(ImportError::Forked { common: standing.common });
        }
        let imported = Imported::default();
        let last_entry = standing.last_entry;
        Ok(Self { transaction, standing, last_entry, deletion_max: 0, imported })
    }

    /// Takes the next block with its entries; one that the ledger has is passed over.
    pub async fn block(&mut self, block: &Block, lines: &[ExportLine]) -> Result<(), ImportError> {
        if block.number <= self.standing.common {
            return Ok(());
        }
        let (mut receipts, mut closed) = (Vec::new(), Vec::new());
        for line in lines {
            match line {
                ExportLine::Receipt { entry, receipt, value } => {
                    self.deletion_max = self.deletion_max.max(receipt.deletion_id.0);
                    receipts.push(json!({ "entry": entry, "receipt": value }));
                }
                ExportLine::Closed { entry, closed: it } => {
                    closed.push(json!({ "entry": entry, "closed": it }));
                }
                ExportLine::Header | ExportLine::Block(_) | ExportLine::End(_) => {}
            }
        }
        self.imported.receipts += self.put(RECEIPTS, &receipts).await?;
        self.imported.closed += self.put(CLOSED, &closed).await?;
        self.imported.superseded += self.put(SUPERSEDE, &receipts).await?;
        let found = entries(&mut self.transaction, self.last_entry, block.last, None).await?;
        let mut tree = Tree::default();
        found.iter().for_each(|entry| tree.push(entry.leaf()));
        if tree.root() != Some(block.root) {
            return Err(ImportError::WentOn { common: self.standing.common });
        }
        write_block(&mut self.transaction, block).await?;
        self.imported.blocks += 1;
        self.last_entry = block.last;
        Ok(())
    }

    async fn put(&mut self, sql: &'static str, lines: &[Value]) -> Result<u64, sqlx::Error> {
        let mut count = 0;
        for page in lines.chunks(PAGE) {
            let done = sqlx::query(sql)
                .persistent(false)
                .bind(text(page)?)
                .execute(&mut *self.transaction)
                .await?;
            count += done.rows_affected();
        }
        Ok(count)
    }

    /// Makes it durable. What is written from now on has numbers behind all that the export has.
    pub async fn end(mut self) -> Result<Imported, ImportError> {
        if self.imported.blocks == 0 {
            self.transaction.rollback().await?;
            return Ok(self.imported);
        }
        let is_behind = "select exists (select from tombstream.receipt r where r.entry > $1) \
            or exists (select from tombstream.receipt_closed c where c.entry > $1)";
        let has_more: bool = sqlx::query_scalar(is_behind)
            .persistent(false)
            .bind(self.last_entry)
            .fetch_one(&mut *self.transaction)
            .await?;
        if has_more {
            return Err(ImportError::WentOn { common: self.standing.common });
        }
        for (sequence, least) in [
            ("'tombstream.receipt_entry'", self.last_entry),
            ("pg_get_serial_sequence('tombstream.deletion', 'id')", self.deletion_max),
        ] {
            let at = sqlx::AssertSqlSafe(format!(
                "select setval({sequence}, greatest($1, nextval({sequence})))"
            ));
            sqlx::query(at).persistent(false).bind(least).execute(&mut *self.transaction).await?;
        }
        self.transaction.commit().await?;
        Ok(self.imported)
    }
}

/// What the ledger wrote itself before the backup, and had not sealed, it has already.
const RECEIPTS: &str = "\
    insert into tombstream.receipt (deletion_id, relation, key, flag, flip_lsn, hidden_at, claimed_at, \
        finalized_at, transaction_id, row_gone, targets, waived, hashed, cause, entry, imported) \
    select (r ->> 'deletion_id')::bigint, r ->> 'relation', \
        array(select jsonb_array_elements_text(r -> 'key')), r ->> 'flag', (r ->> 'flip_lsn')::pg_lsn, \
        (r ->> 'hidden_at')::timestamptz, (r ->> 'claimed_at')::timestamptz, \
        (r ->> 'finalized_at')::timestamptz, (r ->> 'transaction_id')::xid8, (r ->> 'row_gone')::boolean, \
        r -> 'targets', coalesce(r -> 'waived', '{}'), coalesce((r ->> 'hashed')::boolean, false), \
        r ->> 'cause', (l ->> 'entry')::bigint, true \
    from jsonb_array_elements($1::jsonb) as l, lateral (select l -> 'receipt' as r) as it \
    on conflict (deletion_id) do nothing";

const CLOSED: &str = "\
    insert into tombstream.receipt_closed (deletion_id, removed_lsn, seen_at, entry) \
    select (c ->> 'deletion_id')::bigint, (c ->> 'removed_lsn')::pg_lsn, (c ->> 'seen_at')::timestamptz, \
        (l ->> 'entry')::bigint \
    from jsonb_array_elements($1::jsonb) as l, lateral (select l -> 'closed' as c) as it \
    on conflict (deletion_id) do nothing";

/// In the backup the deletion was open. It ended, and its number is that receipt's; a row that is back begins another one.
const SUPERSEDE: &str = "\
    update tombstream.deletion d set state = 'superseded', closed_at = clock_timestamp(), lease_until = null, \
        reason = 'restored out of a backup: its receipt was imported' \
    from jsonb_array_elements($1::jsonb) as l \
    where d.id = (l -> 'receipt' ->> 'deletion_id')::bigint and d.closed_at is null";
