//! The sealer: entries that no transaction can come before any more go into a block.
//!
//! The finalizer is not serialised for it: receipts take numbers of a sequence, and a block is what stands
//! between two numbers. A number may be taken and its receipt not be visible yet; so the sealer notes how far
//! the numbers are, takes a transaction id of its own behind them, and seals up to there once every
//! transaction with a lower id has ended. One process at a time, by an advisory lock.

use std::time::Duration;

use sqlx::{PgConnection, PgPool, Row as _};

use tombstream_model::{Block, Entry, Hash, NotCanonical, Tree};

use super::entries::{block, entries};
use super::statement::{BEGIN, whole};

/// How often it is looked whether earlier transactions have ended.
const LOOK: Duration = Duration::from_millis(20);

/// Seals what can be sealed.
#[derive(Debug)]
pub struct Sealer {
    pool: PgPool,
    noted: Option<Noted>,
}

/// How far the numbers were, and a transaction id that is behind all that had taken one.
#[derive(Debug)]
struct Noted {
    through: i64,
    transaction: String,
}

/// What one turn did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// So many entries were sealed in a block; there may be more.
    Sealed(i64),
    /// There is nothing to seal.
    Nothing,
    /// An earlier transaction is open: what it may have written comes first.
    Waits,
    /// Another process is at it.
    Another,
}

/// Why nothing could be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The ledger could not be read or written.
    #[error("the ledger's receipts can't be read, or its blocks not written")]
    Ledger(#[from] sqlx::Error),
    /// A receipt holds what can't be spelled in one way.
    #[error("a receipt can't be hashed")]
    Entry(#[from] NotCanonical),
    /// The sequence was set back, as on a copy made by logical replication.
    #[error(
        "the sequence tombstream.receipt_entry stands at {at}, behind what is sealed up to {sealed}: its next \
         receipts would not be seen; run `select setval('tombstream.receipt_entry', {sealed})` as its owner"
    )]
    Behind {
        /// Where the sequence is.
        at: i64,
        /// The last sealed entry's number.
        sealed: i64,
    },
}

impl Sealer {
    /// Most entries of a block: some megabytes while it is sealed, and twelve hashes of a proof.
    pub const BLOCK_MAX: i64 = 4_096;

    /// A sealer over `pool`. What it has noted is its own, so it is kept from turn to turn.
    pub fn new(pool: PgPool) -> Self {
        Self { pool, noted: None }
    }

    /// Seals one block, if there is what to seal.
    pub async fn turn(&mut self) -> Result<Turn, SealError> {
        let mut transaction = whole(&self.pool, BEGIN).await?;
        let turn = self.in_transaction(&mut transaction).await?;
        match turn {
            Turn::Sealed(_) => transaction.commit().await?,
            Turn::Nothing | Turn::Waits | Turn::Another => transaction.rollback().await?,
        }
        Ok(turn)
    }

    /// Seals all that was written before this was called, and gives how many entries those were. An open
    /// transaction is waited for, but not longer than `wait`: then the rest stays unsealed.
    pub async fn all(&mut self, wait: Duration) -> Result<i64, SealError> {
        let ends = tokio::time::Instant::now() + wait;
        let mut sealed = 0;
        loop {
            match self.turn().await? {
                Turn::Sealed(entries) => sealed += entries,
                Turn::Nothing => return Ok(sealed),
                Turn::Waits | Turn::Another if tokio::time::Instant::now() >= ends => {
                    return Ok(sealed);
                }
                Turn::Waits | Turn::Another => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Invariant (S9): a block is sealed only behind every transaction that may still write an entry before
    /// its last; `connectors/tests/live/receipts.rs::an_entry_that_is_not_committed_is_waited_for`.
    async fn in_transaction(&mut self, connection: &mut PgConnection) -> Result<Turn, SealError> {
        let alone = "select pg_try_advisory_xact_lock(hashtextextended('tombstream.seal', 0))";
        if !one::<bool>(connection, alone).await? {
            return Ok(Turn::Another);
        }
        let previous = last_block(connection).await?;
        let sealed = previous.as_ref().map_or(0, |block| block.last);
        self.noted.take_if(|noted| noted.through <= sealed);
        if self.noted.is_none() {
            let at = "select case when is_called then last_value else 0 end \
                from tombstream.receipt_entry";
            let at: i64 = one(connection, at).await?;
            if at < sealed {
                return Err(SealError::Behind { at, sealed });
            }
            if at == sealed {
                return Ok(Turn::Nothing);
            }
            // Behind the numbers: whoever had taken one has a lower id.
            let transaction = one(connection, "select pg_current_xact_id()::text").await?;
            self.noted = Some(Noted { through: at, transaction });
        }
        let Some(noted) = &self.noted else { return Ok(Turn::Nothing) };
        let have_ended: bool =
            sqlx::query_scalar("select pg_snapshot_xmin(pg_current_snapshot()) >= $1::text::xid8")
                .persistent(false)
                .bind(&noted.transaction)
                .fetch_one(&mut *connection)
                .await?;
        if !have_ended {
            return Ok(Turn::Waits);
        }
        let found = entries(connection, sealed, noted.through, Some(Self::BLOCK_MAX)).await?;
        if found.len() < usize::try_from(Self::BLOCK_MAX).unwrap_or(usize::MAX) {
            self.noted = None;
        }
        let Some(last) = found.last() else {
            // Numbers that were taken and rolled back: nothing will ever be there.
            return Ok(Turn::Nothing);
        };
        let mut tree = Tree::default();
        found.iter().for_each(|entry| tree.push(entry.leaf()));
        let sealed_at = one(connection, "select clock_timestamp()").await?;
        let sealed = Block::seal(previous.as_ref(), &tree, last.number, sealed_at);
        let sealed = sealed.expect("it has a leaf");
        write_block(connection, &sealed).await?;
        Ok(Turn::Sealed(sealed.entries))
    }
}

async fn one<T>(connection: &mut PgConnection, sql: &'static str) -> Result<T, sqlx::Error>
where
    (T,): for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow>,
    T: Send + Unpin,
{
    sqlx::query_scalar(sql).persistent(false).fetch_one(connection).await
}

async fn last_block(connection: &mut PgConnection) -> Result<Option<Block>, sqlx::Error> {
    let last = "select * from tombstream.receipt_block order by number desc limit 1";
    let row = sqlx::query(last).persistent(false).fetch_optional(connection).await?;
    row.as_ref().map(block).transpose()
}

/// Writes a block down.
pub(super) async fn write_block(
    connection: &mut PgConnection,
    block: &Block,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into tombstream.receipt_block \
             (number, previous, entries, last_entry, root, sealed_at, hash) \
         values ($1, $2, $3, $4, $5, $6, $7)",
    )
    .persistent(false)
    .bind(block.number)
    .bind(&block.previous.0[..])
    .bind(block.entries)
    .bind(block.last)
    .bind(&block.root.0[..])
    .bind(block.sealed_at)
    .bind(&block.hash.0[..])
    .execute(connection)
    .await?;
    Ok(())
}

/// How far sealing is.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Sealing {
    /// Entries that are in no block yet.
    pub unsealed: i64,
    /// The last block's number.
    pub blocks: i64,
    /// Its hash: the chain's head.
    pub head: Option<Hash>,
    /// Seconds since it was sealed.
    pub age_seconds: Option<f64>,
    /// Seconds since the oldest unsealed receipt was written; none if there is none.
    pub waits_seconds: Option<f64>,
}

/// How far sealing is, by one statement.
pub(super) async fn sealing_in(connection: &mut PgConnection) -> Result<Sealing, sqlx::Error> {
    let row = sqlx::query(
        "with last as ( \
             select number, hash, last_entry, sealed_at from tombstream.receipt_block \
             order by number desc limit 1 \
         ), \
         behind as (select coalesce((select last_entry from last), 0) as entry) \
         select (select count(*) from tombstream.receipt r, behind b where r.entry > b.entry) \
                 + (select count(*) from tombstream.receipt_closed c, behind b where c.entry > b.entry), \
             coalesce((select number from last), 0), (select hash from last), \
             (select extract(epoch from clock_timestamp() - sealed_at)::float8 from last), \
             (select extract(epoch from clock_timestamp() - r.finalized_at)::float8 \
                 from tombstream.receipt r, behind b where r.entry > b.entry order by r.entry limit 1)",
    )
    .persistent(false)
    .fetch_one(connection)
    .await?;
    let head: Option<Vec<u8>> = row.try_get(2)?;
    Ok(Sealing {
        unsealed: row.try_get(0)?,
        blocks: row.try_get(1)?,
        head: head.map(|head| super::entries::hash(&head)).transpose()?,
        age_seconds: row.try_get(3)?,
        waits_seconds: row.try_get(4)?,
    })
}

/// How far sealing is.
pub async fn sealing(pool: &PgPool) -> Result<Sealing, sqlx::Error> {
    let mut transaction = whole(pool, BEGIN).await?;
    let sealing = sealing_in(&mut transaction).await?;
    transaction.rollback().await?;
    Ok(sealing)
}

/// The leaves of some entries, for a proof.
pub(super) fn leaves(entries: &[Entry]) -> Vec<Hash> {
    entries.iter().map(Entry::leaf).collect()
}
