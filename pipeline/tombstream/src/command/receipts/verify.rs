//! `receipts verify`: files of receipts, checked line by line.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context as _, anyhow};
use tombstream_model::{ChainCheck, Counts, Hash, Proof, ReceiptProblem};

use super::lines::Lines;
use crate::command::Failure;

/// Problems that are said one by one.
const SAID_MAX: u64 = 20;

pub(super) fn export(file: &Path, head: Option<Hash>) -> Result<(), Failure> {
    let mut check = ChainCheck::with_head(head);
    let mut said = 0;
    let mut say = |problem: ReceiptProblem| {
        said += 1;
        if said <= SAID_MAX {
            eprintln!("{problem}");
        }
    };
    lines(file, |line| check.line(&String::from_utf8_lossy(line), &mut say))?;
    check.finish(&mut say);
    let Counts { blocks, entries, closed, problems } = check.counts();
    if problems > SAID_MAX {
        eprintln!("… {problems} in all");
    }
    let tally = check.tally();
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
    let receipts = entries - closed;
    println!(
        "{blocks} blocks, {receipts} receipts, {closed} of them closed by the removal in the log"
    );
    if let Some(unsealed) = check.unsealed().filter(|unsealed| *unsealed > 0) {
        println!("{unsealed} entries were not sealed yet, and are not here");
    }
    if let Some(head) = check.head() {
        println!("head {head}");
    }
    if let Some(block) = check.found_at() {
        println!("the kept head is block {block}; {} blocks came after it", blocks - block);
    }
    println!("{}", ChainCheck::NOT_SHOWN);
    if problems > 0 {
        println!("WRONG: {problems} problems");
        return Err(Failure::Said);
    }
    if receipts == 0 {
        let name = file.display();
        return Err(Failure::Other(anyhow!("{name} holds no receipt: nothing is shown")));
    }
    println!("right");
    Ok(())
}

pub(super) fn proofs(file: &Path, head: Option<Hash>) -> Result<(), Failure> {
    let (mut number, mut wrong) = (0_u64, 0_u64);
    lines(file, |line| {
        number += 1;
        match Proof::check(&String::from_utf8_lossy(line)) {
            Ok((block, deletion)) if head.is_none_or(|head| head == block.hash) => {
                println!(
                    "line {number}: deletion {deletion}: in block {} of {}, sealed {}",
                    block.number,
                    block.hash,
                    block.sealed_at.to_rfc3339()
                );
            }
            Ok((block, deletion)) => {
                wrong += 1;
                eprintln!(
                    "line {number}: deletion {deletion}: in block {} of {}, and that is another head",
                    block.number, block.hash
                );
            }
            Err(error) => {
                wrong += 1;
                eprintln!("line {number}: {error}");
            }
        }
    })?;
    if number == 0 {
        return Err(Failure::Other(anyhow!("{} holds no proof", file.display())));
    }
    println!("not shown: that the block is one of the chain; compare its hash with an export's");
    if wrong > 0 { Err(Failure::Said) } else { Ok(()) }
}

/// Reads a file's lines, without their ends.
fn lines(file: &Path, take: impl FnMut(&[u8])) -> anyhow::Result<()> {
    let name = file.display();
    if file == Path::new("-") {
        return read(std::io::stdin().lock(), take);
    }
    let opened = File::open(file).with_context(|| format!("{name} can't be opened"))?;
    read(BufReader::with_capacity(1 << 18, opened), take)
        .with_context(|| format!("{name} can't be read"))
}

fn read(lines: impl BufRead, mut take: impl FnMut(&[u8])) -> anyhow::Result<()> {
    let mut lines = Lines::of(lines);
    while let Some(line) = lines.next()? {
        take(line);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_an_end_is_a_cut_file() {
        let said = read(&b"{}\n{}"[..], |_| {}).unwrap_err().to_string();
        assert!(said.starts_with("line 2 has no end"), "{said}");
    }

    #[test]
    fn each_line_is_taken() {
        let mut all = Vec::new();
        read(&b"{}\n\n\xff\n"[..], |line| all.push(line.to_vec())).unwrap();
        assert_eq!(all, [&b"{}"[..], b"", b"\xff"]);
    }
}
