//! Checks an export of receipts, and says how long that took and how much memory it needed: what `tombstream
//! receipts verify` does, without the rest of the binary.
//!
//! `cargo run --release -p tombstream-model --example check_export -- receipts.jsonl`

use std::io::BufRead as _;
use std::time::Instant;

use tombstream_model::ChainCheck;

fn main() {
    let name = std::env::args().nth(1).expect("the name of an export");
    let file = std::fs::File::open(&name).expect("an export");
    let (begun, mut check) = (Instant::now(), ChainCheck::default());
    let mut say = |problem| eprintln!("{problem}");
    for line in std::io::BufReader::new(file).lines() {
        check.line(&line.expect("lines of text"), &mut say);
    }
    check.finish(&mut say);
    let peak = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = peak.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or("no VmHWM").trim();
    println!("{:?} in {:.2} s, {peak}", check.counts(), begun.elapsed().as_secs_f64());
    std::process::exit(i32::from(check.counts().problems > 0));
}
