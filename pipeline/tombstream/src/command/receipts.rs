//! `tombstream receipts`: the evidence, read out of the ledger and checked without it.

use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Read as _, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use sqlx::PgPool;
use tombstream_connectors::postgres::ReceiptExport;
use tombstream_model::{Receipt, ReceiptCheck};

use super::Failure;
use crate::config::{Config, Problems};
use crate::wiring;

/// Longest line that is read: far above a receipt's, far below a machine's memory.
const LINE_MAX: u64 = 16 << 20;
/// Problems that are said one by one.
const SAID_MAX: u64 = 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Print every receipt, one line of JSON each, in the order of the deletions.
    Export,
    /// Read such lines, without any server, and say what is wrong with them.
    Verify {
        /// The file, or - for standard input.
        file: PathBuf,
    },
}

/// `load` reads the configuration; what only reads a file needs none.
pub(super) async fn receipts(
    args: Args,
    load: impl FnOnce() -> Result<Config, Problems>,
) -> Result<(), Failure> {
    match args.what {
        What::Export => {
            let config = load()?;
            let pool = wiring::connect_ledger(&config.database, "tombstream-receipts").await?;
            let mut lines = BufWriter::new(std::io::stdout());
            export(&pool, &mut lines, |_| {}).await?;
            lines.flush().context("standard output")?;
            Ok(())
        }
        What::Verify { file } => verify(&file),
    }
}

/// Writes all receipts to `lines`, and shows each to `see`.
pub(super) async fn export(
    pool: &PgPool,
    lines: &mut impl Write,
    mut see: impl FnMut(Receipt),
) -> anyhow::Result<()> {
    let unread = "the receipts can't be read; is the ledger migrated (`tombstream migrate`)?";
    let mut export = ReceiptExport::begin(pool).await.context(unread)?;
    loop {
        let page = export.page().await.context(unread)?;
        if page.is_empty() {
            return Ok(());
        }
        for receipt in page {
            serde_json::to_writer(&mut *lines, &receipt).context("a receipt can't be written")?;
            lines.write_all(b"\n").context("a receipt can't be written")?;
            see(receipt);
        }
    }
}

fn verify(file: &Path) -> Result<(), Failure> {
    let mut check = ReceiptCheck::default();
    let name = file.display();
    let wrong = if file == Path::new("-") {
        read(std::io::stdin().lock(), &mut check)
    } else {
        let opened = File::open(file).with_context(|| format!("{name} can't be opened"))?;
        read(BufReader::new(opened), &mut check)
    };
    let wrong = wrong.with_context(|| format!("{name} can't be read"))?;
    let tally = check.tally();
    let good: u64 = tally.receipts.values().sum();
    for (relation, count) in &tally.receipts {
        println!("{relation}: {count} receipts");
    }
    for (store, verdicts) in &tally.targets {
        let counts: Vec<String> =
            verdicts.iter().map(|(verdict, count)| format!("{count} {verdict}")).collect();
        println!("store {store}: {}", counts.join(", "));
    }
    if tally.rows_gone > 0 {
        println!("rows that another hand had removed: {}", tally.rows_gone);
    }
    if let Some((first, last)) = tally.span {
        println!("rows removed from {} to {}", first.to_rfc3339(), last.to_rfc3339());
    }
    println!("{good} good, {wrong} wrong");
    println!("{}", ReceiptCheck::NOT_SHOWN);
    if wrong > 0 {
        return Err(Failure::Said);
    }
    if good == 0 {
        return Err(Failure::Other(anyhow::anyhow!("{name} holds no receipt: nothing is shown")));
    }
    Ok(())
}

/// Reads all lines, and counts those that are wrong.
fn read(mut lines: impl std::io::BufRead, check: &mut ReceiptCheck) -> anyhow::Result<u64> {
    let (mut number, mut wrong) = (0_u64, 0_u64);
    let mut line = Vec::new();
    loop {
        line.clear();
        if lines.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        number += 1;
        if line.pop_if(|end| *end == b'\n').is_none() {
            bail!("line {number} has no end: the file was cut, or is no list of receipts");
        }
        let text = String::from_utf8_lossy(&line);
        if let Err(problem) = check.line(&text) {
            wrong += 1;
            if wrong <= SAID_MAX {
                eprintln!("{problem}");
            }
        }
    }
    if wrong > SAID_MAX {
        eprintln!("… {wrong} in all");
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_an_end_is_a_cut_file() {
        let mut check = ReceiptCheck::default();
        let said = read(&b"{}\n{}"[..], &mut check).unwrap_err().to_string();
        assert!(said.starts_with("line 2 has no end"), "{said}");
    }

    #[test]
    fn each_wrong_line_counts() {
        assert_eq!(read(&b"{}\n\n\xff\n"[..], &mut ReceiptCheck::default()).unwrap(), 3);
        assert_eq!(read(&b""[..], &mut ReceiptCheck::default()).unwrap(), 0);
    }
}
