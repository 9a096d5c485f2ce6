//! Exports of receipts: whole ones pass, by this crate and by `docs/verify_receipts.py`; of what was done to
//! others everything is found, by both.

#![allow(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tombstream_model::{
    Block, ChainCheck, Closed, DeletionId, End, Entry, Hash, Lsn, Proof, ProofError, Tree,
    export_header,
};

/// How many exports are spoiled. `TOMBSTREAM_MUTATIONS` asks for more.
const MUTATIONS: u64 = 1_000;

/// Numbers that look random and are the same in each run (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

fn receipt(id: i64, salt: &str) -> Value {
    let hashed = id % 5 == 0;
    let hash = Hash::leaf(id.to_string().as_bytes());
    let address = |plain: Value| if hashed { json!({ "hashed": hash }) } else { plain };
    let mut receipt = json!({
        "deletion_id": id,
        "relation": "documents",
        "key": if hashed { json!([hash]) } else { json!([format!("kéy \u{1}\"\\\u{1f600}{salt}{id}")]) },
        "flag": "2026-03-01 10:00:00.25+00",
        "flip_lsn": if id % 3 == 0 { Value::Null } else { json!(format!("16/{id:X}")) },
        "claimed_at": "2026-03-01T10:00:01Z",
        "finalized_at": "2026-03-01T10:00:02.123456Z",
        "transaction_id": (id + 4_000).to_string(),
        "row_gone": id % 7 == 0,
        "targets": [
            {"store": "objects",
             "address": address(json!({"kind": "object", "bucket": "b", "key": format!("{id}/é")})),
             "outcome": {"verdict": "deleted", "said": "deleted", "verified": "read_back",
                         "at": "2026-03-01T10:00:01.5Z"}},
            {"store": "index",
             "address": address(json!({"kind": "document", "index": "i", "id": id.to_string(), "routing": null})),
             "outcome": {"verdict": "absent", "said": "not found", "verified": "sample"}},
        ],
    });
    if hashed {
        receipt["hashed"] = true.into();
    }
    receipt
}

/// The lines of an export of blocks with so many entries. Every fourth entry closes an earlier receipt.
fn export(sizes: &[usize], salt: &str) -> Vec<String> {
    let mut lines = vec![export_header()];
    let (mut number, mut previous, mut all) = (0, None, 0);
    for size in sizes {
        let (mut tree, mut entries) = (Tree::default(), Vec::new());
        for _ in 0..*size {
            number += 2;
            let entry = match number % 8 {
                0 => Entry::closed(number, &closed(number - 2)),
                _ => Entry::receipt(number, &receipt(number, salt)),
            };
            let entry = entry.unwrap();
            tree.push(entry.leaf());
            entries.push(entry.text().to_owned());
        }
        let at = "2026-03-01T10:00:03Z".parse().unwrap();
        let block = Block::seal(previous.as_ref(), &tree, number, at).unwrap();
        lines.push(block.text());
        lines.append(&mut entries);
        all += *size as i64;
        previous = Some(block);
    }
    let head = previous.map_or(Hash::ZERO, |block| block.hash);
    lines.push(End::new(sizes.len() as i64, all, head, 3).text());
    lines
}

fn closed(id: i64) -> Closed {
    let seen_at = "2026-03-01T10:00:02.5Z".parse().unwrap();
    Closed { deletion_id: DeletionId(id), removed_lsn: Lsn(0x16_0000_0000).to_string(), seen_at }
}

fn check(lines: &[String], head: Option<Hash>) -> (ChainCheck, Vec<String>) {
    let mut check = ChainCheck::with_head(head);
    let mut said = Vec::new();
    for line in lines {
        check.line(line, &mut |problem| said.push(problem.to_string()));
    }
    check.finish(&mut |problem| said.push(problem.to_string()));
    assert_eq!(check.counts().problems, said.len() as u64);
    (check, said)
}

fn wrong(lines: &[String]) -> Vec<String> {
    check(lines, None).1
}

fn block_of(line: &str) -> Option<Block> {
    let value: Value = serde_json::from_str(line).ok()?;
    serde_json::from_value(value.get("block")?.clone()).ok()
}

/// Numbers of the lines that are no header, block or closing line.
fn entries(lines: &[String]) -> Vec<usize> {
    (0..lines.len()).filter(|n| lines[*n].contains("\"entry\":")).collect()
}

#[test]
fn a_whole_export_passes_and_is_counted() {
    let lines = export(&[5, 1, 64, 7], "");
    let (checked, said) = check(&lines, None);
    assert_eq!(said, [""; 0]);
    let counts = checked.counts();
    assert_eq!((counts.blocks, counts.entries, counts.closed), (4, 77, 19));
    assert_eq!(checked.tally().receipts["documents"], 58);
    assert_eq!(checked.unsealed(), Some(3));
    let (none, said) = check(&export(&[], ""), None);
    assert_eq!((none.counts().entries, said), (0, vec![]));
    // The head of any of its blocks is found, and no other.
    for (n, block) in lines.iter().filter_map(|line| block_of(line)).enumerate() {
        let (checked, said) = check(&lines, Some(block.hash));
        assert_eq!((checked.found_at(), said), (Some(n as i64 + 1), vec![]));
    }
    let other = check(&lines, Some(Hash::leaf(b"x"))).1;
    assert!(other[0].contains("is of none of these blocks"), "{other:?}");
}

#[test]
fn how_a_line_is_written_does_not_matter() {
    let spaced: Vec<String> = export(&[3, 4], "")
        .iter()
        .map(|line| {
            let value: Value = serde_json::from_str(line).unwrap();
            format!(" {}", serde_json::to_string_pretty(&value).unwrap().replace('\n', " "))
        })
        .collect();
    assert_eq!(wrong(&spaced), [""; 0]);
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let lines = export(&[5, 6, 7], "");
    let with = |change: &dyn Fn(&mut Vec<String>)| {
        let mut lines = lines.clone();
        change(&mut lines);
        wrong(&lines)
    };
    // Line 1 is the header, 2 a block, 3 to 7 its entries, 8 the next block.
    let changed = with(&|lines| lines[9] = lines[9].replace("\"b\"", "\"c\""));
    assert_eq!(changed.len(), 1, "{changed:?}");
    assert!(changed[0].starts_with("line 15: block 2 (deletions 12 to 22, from line 8 on): its entries do not give its root"), "{changed:?}");
    let dropped = with(&|lines| drop(lines.remove(9)));
    assert!(dropped[1].contains("says that it has 6 entries, and has 5"), "{dropped:?}");
    let moved = with(&|lines| lines.swap(8, 9));
    assert!(moved[0].starts_with("line 10: entry 12 comes after entry 14"), "{moved:?}");
    let block = with(&|lines| drop(lines.drain(7..14)));
    assert!(block[0].contains("block 3 comes after block 1"), "{block:?}");
    let cut = with(&|lines| lines.truncate(12));
    assert!(cut.last().unwrap().contains("there is no closing line"), "{cut:?}");
    let unconfirmed = with(&|lines| lines[3] = lines[3].replace("\"absent\"", "\"busy\""));
    assert!(unconfirmed[0].contains("line 4: deletion 4: store index has not confirmed: busy"));
    let headless = with(&|lines| drop(lines.remove(0)));
    assert!(headless[0].contains("the first line does not say"), "{headless:?}");
    assert!(wrong(&["".into()])[0].contains("line 1: not a line of an export"));
    let twice = with(&|lines| {
        lines[3] = lines[3].replacen("\"row_gone\":", "\"row_gone\":true,\"row_gone\":", 1)
    });
    assert!(twice[0].contains("duplicate field"), "{twice:?}");
}

#[test]
fn a_second_receipt_and_a_closing_of_none_are_seen_though_they_are_sealed() {
    let sealed = |entries: &[Entry]| {
        let mut tree = Tree::default();
        entries.iter().for_each(|entry| tree.push(entry.leaf()));
        let last = entries.last().unwrap().number;
        let at = "2026-03-01T10:00:03Z".parse().unwrap();
        let block = Block::seal(None, &tree, last, at).unwrap();
        let mut lines = vec![export_header(), block.text()];
        lines.extend(entries.iter().map(|entry| entry.text().to_owned()));
        lines.push(End::new(1, entries.len() as i64, block.hash, 0).text());
        wrong(&lines)
    };
    let receipt = |number, id| Entry::receipt(number, &receipt(id, "")).unwrap();
    let closed = |number, id| Entry::closed(number, &closed(id)).unwrap();
    assert_eq!(sealed(&[receipt(1, 7), receipt(2, 8), closed(3, 7)]), [""; 0]);
    let twice = sealed(&[receipt(1, 7), receipt(2, 7)]);
    assert_eq!(twice, ["line 4: a second receipt of deletion 7"]);
    let again = sealed(&[receipt(1, 7), closed(2, 7), closed(3, 7)]);
    assert_eq!(again, ["line 5: deletion 7 is closed a second time"]);
    let none = sealed(&[closed(1, 9), receipt(2, 9)]);
    assert_eq!(none, ["line 3: deletion 9 is closed, and its receipt does not stand before"]);
}

#[test]
fn a_proof_holds_for_its_entry_and_for_no_other() {
    for size in [1, 2, 7, 8] {
        let entries: Vec<Entry> =
            (1..=size).map(|id| Entry::receipt(id, &receipt(id, "")).unwrap()).collect();
        let leaves: Vec<Hash> = entries.iter().map(Entry::leaf).collect();
        let mut tree = Tree::default();
        leaves.iter().for_each(|leaf| tree.push(*leaf));
        let at = "2026-03-01T10:00:03Z".parse().unwrap();
        let block = Block::seal(None, &tree, size, at).unwrap();
        for (index, entry) in entries.iter().enumerate() {
            let proof = Proof::sealed(entry, index, &leaves, &block).text();
            let (shown, deletion) = Proof::check(&proof).unwrap();
            assert_eq!((&shown, deletion), (&block, DeletionId(entry.number)));
            let broken = proof.replace("\"row_gone\":false", "\"row_gone\":true");
            if broken != proof {
                assert!(matches!(Proof::check(&broken), Err(ProofError::Entry(1))));
            }
            let broken = proof.replace("10:00:03Z", "10:00:04Z");
            assert!(matches!(Proof::check(&broken), Err(ProofError::Block(1))));
            let other = Proof::sealed(entry, (index + 1) % entries.len(), &leaves, &block);
            assert_eq!(Proof::check(&other.text()).is_ok(), size == 1);
        }
        let unsealed = Proof::unsealed(&entries[0]).text();
        assert!(matches!(Proof::check(&unsealed), Err(ProofError::Unsealed)));
    }
    assert!(matches!(Proof::check("{}"), Err(ProofError::Not(_))));
}

/// What can be done to an export. Those of the second kind seal what they leave: only a head that was kept
/// elsewhere shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Byte,
    Value,
    Dropped,
    Twice,
    Moved,
    Cut,
    CutBefore,
    Foreign,
    OneSealed,
    CutAndSealed,
    ChangedAndSealed,
}

const KINDS: [Kind; 11] = [
    Kind::Byte,
    Kind::Value,
    Kind::Dropped,
    Kind::Twice,
    Kind::Moved,
    Kind::Cut,
    Kind::CutBefore,
    Kind::Foreign,
    Kind::OneSealed,
    Kind::CutAndSealed,
    Kind::ChangedAndSealed,
];

impl Kind {
    fn needs_a_head(self) -> bool {
        matches!(self, Self::CutAndSealed | Self::ChangedAndSealed)
    }
}

fn mutated(kind: Kind, good: &[String], other: &[String], random: &mut Random) -> Vec<String> {
    let mut lines = good.to_vec();
    let last = lines.len() - 1;
    let at = random.below(lines.len());
    match kind {
        Kind::Byte => {
            // One letter for another, wherever it is: an object's name, a digit, a bracket.
            let places: Vec<usize> =
                (0..lines[at].len()).filter(|n| lines[at].as_bytes()[*n].is_ascii()).collect();
            let place = places[random.below(places.len())];
            let letters = b"0123456789abcdefXYZ\"{}[]:,.-";
            let old = lines[at].as_bytes()[place];
            let letter = (0..).map(|_| letters[random.below(letters.len())]).find(|it| *it != old);
            lines[at].replace_range(place..=place, &char::from(letter.unwrap()).to_string());
        }
        Kind::Value => {
            let mut value: Value = serde_json::from_str(&lines[at]).unwrap();
            change(&mut value, random);
            lines[at] = value.to_string();
        }
        Kind::Dropped => drop(lines.remove(at)),
        Kind::Twice => lines.insert(random.below(lines.len() + 1), good[at].clone()),
        Kind::Moved => {
            let line = lines.remove(at);
            let to = (at + 1 + random.below(last)) % (last + 1);
            lines.insert(to, line);
        }
        Kind::Cut => lines.truncate(1 + random.below(last)),
        Kind::CutBefore => drop(lines.drain(1 + random.below(last - 1)..last)),
        Kind::Foreign => {
            // A receipt of the same number, of another chain.
            let entries = entries(&lines);
            let receipts: Vec<usize> =
                entries.into_iter().filter(|n| lines[*n] != other[*n]).collect();
            let at = receipts[random.below(receipts.len())];
            lines[at].clone_from(&other[at]);
        }
        Kind::OneSealed => {
            // Any but the last: the next one tells.
            let blocks: Vec<usize> =
                (0..lines.len()).filter(|n| block_of(&lines[*n]).is_some()).collect();
            let at = blocks[random.below(blocks.len() - 1)];
            let block = block_of(&lines[at]).unwrap();
            let changed = at + 1 + random.below(block.entries as usize);
            lines[changed] = lines[changed].replace("2026-", "2025-");
            let before = lines[..at].iter().rev().find_map(|line| block_of(line));
            lines[at] = sealed(before.as_ref(), &block, &lines[at + 1..]).text();
        }
        Kind::CutAndSealed => {
            let blocks: Vec<usize> =
                (0..lines.len()).filter(|n| block_of(&lines[*n]).is_some()).collect();
            lines.truncate(blocks[random.below(blocks.len())]);
            seal_end(&mut lines);
        }
        Kind::ChangedAndSealed => {
            let entries = entries(&lines);
            let at = entries[random.below(entries.len())];
            lines[at] = lines[at].replace("2026-", "2025-");
            seal_all(&mut lines);
        }
    }
    lines
}

/// Changes one value somewhere in `value`.
fn change(value: &mut Value, random: &mut Random) {
    match value {
        Value::Null => *value = "x".into(),
        Value::Bool(is) => *is = !*is,
        Value::Number(number) => *value = (number.as_i64().unwrap() + 1).into(),
        Value::String(text) => text.push('0'),
        Value::Array(items) => {
            let at = random.below(items.len());
            change(&mut items[at], random);
        }
        Value::Object(members) => {
            let at = random.below(members.len());
            change(members.values_mut().nth(at).unwrap(), random);
        }
    }
}

/// Writes the closing line that fits what is there.
fn seal_end(lines: &mut Vec<String>) {
    let blocks: Vec<Block> = lines.iter().filter_map(|line| block_of(line)).collect();
    let entries = entries(lines).len() as i64;
    let head = blocks.last().map_or(Hash::ZERO, |block| block.hash);
    lines.push(End::new(blocks.len() as i64, entries, head, 3).text());
}

/// `block`, sealed again over its entries as they are now.
fn sealed(previous: Option<&Block>, block: &Block, entries: &[String]) -> Block {
    let mut tree = Tree::default();
    for line in &entries[..block.entries as usize] {
        tree.push(Hash::leaf(line.as_bytes()));
    }
    Block::seal(previous, &tree, block.last, block.sealed_at).unwrap()
}

/// Seals every block again, as the ledger's owner could.
fn seal_all(lines: &mut Vec<String>) {
    lines.pop();
    let mut previous: Option<Block> = None;
    for at in 0..lines.len() {
        let Some(block) = block_of(&lines[at]) else { continue };
        let sealed = sealed(previous.as_ref(), &block, &lines[at + 1..]);
        lines[at] = sealed.text();
        previous = Some(sealed);
    }
    seal_end(lines);
}

fn verify_py(arguments: &[&str], files: &[PathBuf]) -> Vec<bool> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/verify_receipts.py");
    let ran = Command::new("python3").arg(script).args(arguments).args(files).output();
    let ran = ran.expect("python3 is needed for this test: install it");
    let said = String::from_utf8(ran.stdout).unwrap();
    let right: Vec<bool> = said
        .lines()
        .map(|line| {
            assert!(line.contains(": right: ") != line.contains(": WRONG: "), "{line}");
            line.contains(": right: ")
        })
        .collect();
    assert_eq!(right.len(), files.len(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(ran.status.code(), Some(i32::from(right.contains(&false))));
    right
}

#[test]
fn of_a_thousand_mutations_all_are_found() {
    let count = std::env::var("TOMBSTREAM_MUTATIONS").map_or(MUTATIONS, |it| it.parse().unwrap());
    let (good, other) = (export(&[5, 1, 12, 9], ""), export(&[5, 1, 12, 9], "other "));
    let head = good.iter().rev().find_map(|line| block_of(line)).unwrap().hash;
    assert_eq!(wrong(&good), [""; 0]);
    assert_eq!(wrong(&other), [""; 0]);
    let folder = std::env::temp_dir().join(format!("tombstream-chain-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let write = |name: String, lines: &[String]| {
        let path = folder.join(name);
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
        path
    };
    let mut random = Random(20_260_301);
    let (mut alone, mut with_head, mut found) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..count {
        let kind = KINDS[n as usize % KINDS.len()];
        let lines = mutated(kind, &good, &other, &mut random);
        assert_ne!(lines, good, "{n}: {kind:?} changes nothing");
        let kept = kind.needs_a_head().then_some(head);
        let said = check(&lines, kept).1;
        assert!(!said.is_empty(), "{n}: {kind:?} is not found:\n{}", lines.join("\n"));
        found.push(kind);
        if kind.needs_a_head() {
            assert_eq!(wrong(&lines), [""; 0], "{kind:?} is whole but for the head");
            with_head.push(write(format!("{n}"), &lines));
        } else {
            alone.push(write(format!("{n}"), &lines));
        }
    }
    let good = write("good".to_owned(), &good);
    let head = head.to_string();
    // The stranger's verifier, on the same files.
    assert!(verify_py(&[], &alone).iter().all(|right| !right));
    assert!(verify_py(&["--head", &head], &with_head).iter().all(|right| !right));
    assert!(verify_py(&[], &with_head).iter().all(|right| *right));
    assert_eq!(verify_py(&["--head", &head], &[good]), [true]);
    std::fs::remove_dir_all(&folder).unwrap();
    let each: Vec<usize> =
        KINDS.iter().map(|kind| found.iter().filter(|it| *it == kind).count()).collect();
    println!("{count} mutations, all found by both: {KINDS:?} {each:?}");
}

#[test]
fn the_stranger_s_verifier_reads_proofs_too() {
    let entries: Vec<Entry> =
        (1..=11).map(|id| Entry::receipt(id, &receipt(id, "")).unwrap()).collect();
    let leaves: Vec<Hash> = entries.iter().map(Entry::leaf).collect();
    let mut tree = Tree::default();
    leaves.iter().for_each(|leaf| tree.push(*leaf));
    let at = "2026-03-01T10:00:03Z".parse().unwrap();
    let block = Block::seal(None, &tree, 11, at).unwrap();
    let folder = std::env::temp_dir().join(format!("tombstream-proofs-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for (index, entry) in entries.iter().enumerate() {
        let proof = Proof::sealed(entry, index, &leaves, &block).text();
        let wrong = Proof::sealed(entry, (index + 1) % 11, &leaves, &block).text();
        good.push(folder.join(format!("good-{index}")));
        bad.push(folder.join(format!("bad-{index}")));
        std::fs::write(&good[index], proof + "\n").unwrap();
        std::fs::write(&bad[index], wrong + "\n").unwrap();
    }
    bad.push(folder.join("unsealed"));
    std::fs::write(&bad[11], Proof::unsealed(&entries[0]).text() + "\n").unwrap();
    assert!(verify_py(&["--proof"], &good).iter().all(|right| *right));
    assert!(verify_py(&["--proof"], &bad).iter().all(|right| !right));
    std::fs::remove_dir_all(&folder).unwrap();
}
