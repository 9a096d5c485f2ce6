//! `receipts export`: seals, then writes the chain as lines of JSON.

use std::io::{BufWriter, Write};
use std::time::Duration;

use anyhow::Context as _;
use sqlx::PgPool;
use tombstream_connectors::postgres::{ReceiptExport, Sealer};
use tombstream_model::{End, Hash, Receipt, export_header};

use crate::command::chain;
use crate::config::Config;
use crate::wiring;

/// How long an open transaction is waited for, which may have written receipts. `run` seals them later.
const SEAL_MAX: Duration = Duration::from_secs(5);

pub(super) async fn to_stdout(config: &Config) -> anyhow::Result<()> {
    let pool = wiring::connect_ledger(&config.database, "tombstream-receipts").await?;
    let mut lines = BufWriter::new(std::io::stdout());
    let end = export(&pool, &mut lines, |_| {}).await?;
    lines.flush().context("standard output")?;
    eprintln!(
        "{} blocks, {} entries; keep this elsewhere: head {}",
        end.blocks, end.entries, end.head
    );
    if end.unsealed > 0 {
        eprintln!(
            "{} entries are not sealed yet, and so not in the export: an earlier transaction is open",
            end.unsealed
        );
    }
    Ok(())
}

/// Seals what can be sealed, writes all blocks to `lines`, and shows each receipt to `see`.
pub(crate) async fn export(
    pool: &PgPool,
    lines: &mut impl Write,
    mut see: impl FnMut(Receipt),
) -> anyhow::Result<End> {
    let unread = "the receipts can't be read; is the ledger migrated (`tombstream migrate`)?";
    // Who may read only exports what is sealed.
    if let Err(error) = Sealer::new(pool.clone()).all(SEAL_MAX).await {
        eprintln!("nothing more was sealed: {}", chain(&error));
    }
    let mut export = ReceiptExport::begin(pool).await.context(unread)?;
    let mut write = |text: &str| {
        let written = lines.write_all(text.as_bytes()).and_then(|()| lines.write_all(b"\n"));
        written.context("the receipts can't be written")
    };
    write(&export_header())?;
    let (mut blocks, mut entries, mut head) = (0, 0, Hash::ZERO);
    while let Some((block, of)) = export.block().await.context(unread)? {
        write(&block.text())?;
        for entry in &of {
            write(entry.text())?;
            if let Some(receipt) = entry.as_receipt() {
                see(receipt);
            }
        }
        blocks += 1;
        entries += i64::try_from(of.len()).context("more entries than can be counted")?;
        head = block.hash;
    }
    let end = End::new(blocks, entries, head, export.unsealed().await.context(unread)?);
    write(&end.text())?;
    Ok(end)
}
