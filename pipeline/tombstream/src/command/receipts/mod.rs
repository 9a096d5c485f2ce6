//! `tombstream receipts`: the evidence, read out of the ledger and checked without it. docs/receipts.md is
//! the format.
//!
//! Exit codes of `verify`: 0 all is right, 1 something is wrong or nothing is shown.

mod checked;
mod export;
mod find;
mod import;
mod lines;
mod verify;

use std::path::PathBuf;

use tombstream_model::Hash;

use super::Failure;
use super::hold::RowArg;
use crate::config::{Config, Needs, Problems};

pub(super) use checked::CheckedExport;
pub(crate) use export::export;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Seal what is not sealed yet, and print the whole chain, one line of JSON for each receipt.
    Export,
    /// Check an export or a proof, without any server, and say what is wrong with it.
    Verify(VerifyArgs),
    /// Bring a ledger that a restored backup set back up to an export, so that its chain goes on from there.
    Import(ImportArgs),
    /// Print the receipt of a deletion or of a row's deletions, each with the proof that it is in the chain.
    Find(FindArgs),
}

#[derive(Debug, clap::Args)]
struct VerifyArgs {
    /// The file, or - for standard input.
    file: PathBuf,
    /// A head that was kept elsewhere: it must be one of the chain's.
    #[arg(long, value_name = "HASH")]
    head: Option<Hash>,
    /// The file holds proofs, as `find` prints them.
    #[arg(long)]
    proof: bool,
}

#[derive(Debug, clap::Args)]
struct ImportArgs {
    /// The export. All of its chain is checked before anything is written.
    file: PathBuf,
    /// A head that was kept elsewhere: it must be one of the chain's.
    #[arg(long, value_name = "HASH")]
    head: Option<Hash>,
}

#[derive(Debug, clap::Args)]
struct FindArgs {
    /// The deletion's number, in place of a row.
    #[arg(long, value_name = "ID", conflicts_with_all = ["relation", "key"])]
    deletion: Option<i64>,
    /// The relation.
    #[arg(required_unless_present = "deletion", requires = "key")]
    relation: Option<String>,
    /// The key: one word for each of its columns. After -- if one begins with a dash.
    #[arg(requires = "relation", allow_negative_numbers = true, value_name = "KEY")]
    key: Vec<String>,
}

/// `load` reads the configuration; what only reads a file needs none.
pub(super) async fn receipts(
    args: Args,
    load: impl FnOnce(Needs) -> Result<Config, Problems>,
) -> Result<(), Failure> {
    match args.what {
        What::Export => Ok(export::to_stdout(&load(Needs::Database)?).await?),
        What::Verify(VerifyArgs { file, head, proof: true }) => verify::proofs(&file, head),
        What::Verify(VerifyArgs { file, head, proof: false }) => verify::export(&file, head),
        What::Import(ImportArgs { file, head }) => {
            Ok(import::import(&load(Needs::Database)?, &file, head).await?)
        }
        What::Find(FindArgs { deletion, relation, key }) => {
            let row = relation.map(|relation| RowArg { relation, key });
            find::find(&load(Needs::Receipts)?, deletion, row).await
        }
    }
}
