//! Random histories of the real ledger, on a real Postgres, in lockstep with the reference model.
//!
//! `TOMBSTREAM_PROOF_HISTORIES` says how many (10,000 where it says nothing), `TOMBSTREAM_PROOF_SEED` which ones
//! (a number; always the same ones where it says nothing). What failed once is in `regressions.jsonl`, one
//! history a line, and is tried first.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

mod database;
mod history;
mod lockstep;

use std::path::PathBuf;
use std::time::Instant;

use tombstream_proof::reference::Step;

use database::Database;
use history::histories;
use lockstep::{Disagreement, Lockstep};

/// How many histories go side by side: each step of all of them is a few statements.
const SIDE_BY_SIDE: usize = 10_000;

fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")),
        Err(_) => default,
    }
}

fn regressions() -> Vec<Vec<Step>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/live/regressions.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn agree(database: &Database, histories: &[Vec<Step>]) -> Result<(), Disagreement> {
    Lockstep::new(database, histories).await.run().await
}

/// Leaves out what the disagreement does not need: any step may be left out of any history. One that needs its
/// neighbours is shown as it is.
async fn shortest(database: &Database, mut found: Disagreement) -> Disagreement {
    let mut at = 0;
    while at < found.steps.len() {
        let mut steps = found.steps.clone();
        steps.remove(at);
        match agree(database, &[steps]).await {
            Ok(()) => at += 1,
            Err(shorter) => {
                found = shorter;
                at = 0;
            }
        }
    }
    found
}

#[tokio::test]
async fn what_failed_once_agrees_with_the_reference_model() {
    let database = Database::new().await;
    if let Err(found) = agree(&database, &regressions()).await {
        panic!("{found}");
    }
    database.drop().await;
}

/// A history that disagrees is made as short as it can be, alone in a run of its own, before it is shown.
#[tokio::test]
async fn random_histories_agree_with_the_reference_model() {
    let wanted = number("TOMBSTREAM_PROOF_HISTORIES", 10_000);
    let seed = number("TOMBSTREAM_PROOF_SEED", 1);
    let started = Instant::now();
    let mut done = 0;
    let mut steps = 0;
    let mut drawn = histories(seed);
    while done < wanted {
        // Nothing of the ledger can be removed by hand: what is done is left behind as a whole.
        let database = Database::new().await;
        let count = (wanted - done).min(SIDE_BY_SIDE as u64);
        let batch: Vec<Vec<Step>> = (0..count).map(|_| drawn()).collect();
        if let Err(found) = agree(&database, &batch).await {
            let found = shortest(&database, found).await;
            let line = serde_json::to_string(&found.steps).unwrap();
            panic!("seed {seed}: {found}\nfor regressions.jsonl:\n{line}");
        }
        steps += batch.iter().map(Vec::len).sum::<usize>();
        done += count;
        database.drop().await;
    }
    println!(
        "{done} histories, {steps} steps, all as the model has them, {:.0} s",
        started.elapsed().as_secs_f32()
    );
}
