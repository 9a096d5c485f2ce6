//! The chain of receipts, read out of the ledger: all of it for an export, or one deletion's part with its proof.

use std::collections::VecDeque;

use super::statement::whole;
use sqlx::{PgConnection, PgPool, Postgres, Transaction};

use tombstream_model::{Block, DeletionId, Entry, Key, KeyedHash, Proof};

use super::entries::{EntriesError, block, entries, entries_of};
use super::seal::{leaves, sealing_in};

/// Blocks that are looked at at once, and the entries that are read with them: some megabytes.
const BLOCKS: i64 = 256;
const ENTRIES: i64 = 4_096;

const BEGIN: &str = "begin isolation level repeatable read read only";

/// All sealed blocks with their entries, of one snapshot.
#[derive(Debug)]
pub struct ReceiptExport {
    snapshot: Transaction<'static, Postgres>,
    /// The last block that was read, and its last entry.
    after: (i64, i64),
    read: VecDeque<(Block, Vec<Entry>)>,
}

impl ReceiptExport {
    /// Takes the snapshot.
    pub async fn begin(pool: &PgPool) -> Result<Self, sqlx::Error> {
        let snapshot = whole(pool, BEGIN).await?;
        Ok(Self { snapshot, after: (0, 0), read: VecDeque::new() })
    }

    /// The next block; none behind the last.
    pub async fn block(&mut self) -> Result<Option<(Block, Vec<Entry>)>, EntriesError> {
        if self.read.is_empty() {
            self.read_on().await?;
        }
        Ok(self.read.pop_front())
    }

    /// How many entries no block holds.
    pub async fn unsealed(&mut self) -> Result<i64, sqlx::Error> {
        Ok(sealing_in(&mut self.snapshot).await?.unsealed)
    }

    async fn read_on(&mut self) -> Result<(), EntriesError> {
        let rows = sqlx::query(
            "select * from tombstream.receipt_block where number > $1 order by number limit $2",
        )
        .persistent(false)
        .bind(self.after.0)
        .bind(BLOCKS)
        .fetch_all(&mut *self.snapshot)
        .await?;
        let mut blocks = rows.iter().map(block).collect::<Result<VecDeque<_>, _>>()?;
        let mut sum = 0;
        // At least one.
        let count = blocks.iter().take_while(|block| {
            let is_first = sum == 0;
            sum += block.entries;
            is_first || sum <= ENTRIES
        });
        blocks.truncate(count.count());
        let Some(last) = blocks.back() else { return Ok(()) };
        let (number, through) = (last.number, last.last);
        let found = entries(&mut self.snapshot, self.after.1, through, None).await?;
        self.after = (number, through);
        let mut found = found.into_iter().peekable();
        for block in blocks {
            let mut of = Vec::new();
            while let Some(entry) = found.next_if(|entry| entry.number <= block.last) {
                of.push(entry);
            }
            self.read.push_back((block, of));
        }
        Ok(())
    }
}

/// The entries of one deletion, each with the proof that it is in its block, as far as it is sealed.
pub async fn prove(pool: &PgPool, deletion: DeletionId) -> Result<Vec<Proof>, EntriesError> {
    let mut snapshot = whole(pool, BEGIN).await?;
    let mut proofs = Vec::new();
    for entry in entries_of(&mut snapshot, deletion.0).await? {
        proofs.push(proof(&mut snapshot, &entry).await?);
    }
    snapshot.rollback().await?;
    Ok(proofs)
}

async fn proof(connection: &mut PgConnection, entry: &Entry) -> Result<Proof, EntriesError> {
    // Its block, and the one before.
    let rows = sqlx::query(
        "(select * from tombstream.receipt_block where last_entry >= $1 order by last_entry limit 1) \
         union all \
         (select * from tombstream.receipt_block where last_entry < $1 order by last_entry desc limit 1)",
    )
    .persistent(false)
    .bind(entry.number)
    .fetch_all(&mut *connection)
    .await?;
    let blocks = rows.iter().map(block).collect::<Result<Vec<_>, _>>()?;
    let Some(block) = blocks.iter().find(|block| block.last >= entry.number) else {
        return Ok(Proof::unsealed(entry));
    };
    let before = blocks.iter().find(|block| block.last < entry.number);
    let after = before.map_or(0, |before| before.last);
    let all = entries(connection, after, block.last, None).await?;
    let index = all.iter().position(|it| it.number == entry.number);
    let index = index.ok_or(sqlx::Error::RowNotFound)?;
    Ok(Proof::sealed(entry, index, &leaves(&all), block))
}

/// The deletions of a key that have a receipt, the oldest first; by its keyed hash, too, if there is a secret.
pub async fn receipts_of(
    pool: &PgPool,
    relation: &str,
    key: &Key,
    keyed: Option<&KeyedHash>,
) -> Result<Vec<DeletionId>, sqlx::Error> {
    let mut transaction = whole(pool, BEGIN).await?;
    let columns: Vec<String> = key.columns().map(str::to_owned).collect();
    let found: Vec<i64> = sqlx::query_scalar(
        "select deletion_id from tombstream.receipt \
         where relation = $1 and (key = $2 or hashed and key = array[$3::text]) order by deletion_id",
    )
    .persistent(false)
    .bind(relation)
    .bind(columns)
    .bind(keyed.map(|keyed| keyed.key(relation, key).to_string()))
    .fetch_all(&mut *transaction)
    .await?;
    transaction.rollback().await?;
    Ok(found.into_iter().map(DeletionId).collect())
}
