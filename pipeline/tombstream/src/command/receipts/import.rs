//! `receipts import`: a ledger that a restored backup set back is brought up to an export.

use std::path::Path;

use anyhow::Context as _;
use tombstream_connectors::postgres::{ImportError, ReceiptImport};
use tombstream_model::Hash;

use super::checked::CheckedExport;
use crate::config::Config;
use crate::wiring;

pub(super) async fn import(config: &Config, file: &Path, head: Option<Hash>) -> anyhow::Result<()> {
    let export = CheckedExport::open(file, head, None)?;
    let pool = wiring::connect_ledger(&config.database, "tombstream-receipts").await?;
    let mut import = ReceiptImport::begin(&pool, &export.blocks).await.map_err(advise)?;
    let mut blocks = export.blocks()?;
    while let Some((block, entries)) = blocks.next()? {
        import.block(&block, &entries).await.map_err(advise)?;
    }
    let imported = import.end().await.map_err(advise)?;
    if imported.blocks == 0 {
        println!("the ledger has all of the export: nothing is imported");
        return Ok(());
    }
    println!(
        "{} blocks, {} receipts and {} closings imported; the chain goes on from head {}",
        imported.blocks, imported.receipts, imported.closed, export.end.head
    );
    if imported.superseded > 0 {
        println!(
            "{} deletions that were open in the backup are closed: their receipts say how they ended",
            imported.superseded
        );
    }
    println!("rows of these receipts may be back: tombstream re-erase");
    Ok(())
}

fn advise(error: ImportError) -> anyhow::Error {
    Err::<(), _>(error).context("nothing was imported").expect_err("it is one")
}
