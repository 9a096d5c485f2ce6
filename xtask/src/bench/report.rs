//! `docs/benchmarks.md`, made from the results alone.

use super::Outcome;
use super::list::{Bench, Figure, List, Measured};
use crate::shell;
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::path::PathBuf;

const BEGIN: &str =
    "<!-- Below: written by `cargo xtask bench --write`, from benches/results. -->\n";

pub(super) fn path() -> PathBuf {
    shell::root().join("docs/benchmarks.md")
}

/// The results that are kept, in the order of the list.
pub(super) fn kept(list: &List) -> Result<Vec<(&Bench, Outcome)>> {
    let mut all = Vec::new();
    for bench in &list.benches {
        let path = bench.result();
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        let outcome = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
        all.push((bench, outcome));
    }
    Ok(all)
}

/// The document with its written part made anew; what stands before it is kept.
pub(super) fn page(before: &str, results: &[(&Bench, Outcome)]) -> Result<String> {
    let (head, _) = before
        .split_once(BEGIN)
        .with_context(|| format!("docs/benchmarks.md has no line {BEGIN:?}"))?;
    let mut text = format!("{head}{BEGIN}\n{}", table(results));
    for (bench, outcome) in results {
        section(&mut text, bench, outcome);
    }
    Ok(text)
}

/// All figures, one a line.
pub(super) fn table(results: &[(&Bench, Outcome)]) -> String {
    let mut text =
        String::from("| | measure | measured | floor | goal | |\n|---|---|---|---|---|---|\n");
    for (bench, outcome) in results {
        for figure in &bench.figures {
            let found = figure.find(&outcome.result);
            let measured = found.map_or("nothing".to_owned(), spelled);
            let verdict = match found {
                _ if !outcome.is_final() => "not final",
                Some(found) => figure.verdict(found.median),
                None => "",
            };
            writeln!(
                text,
                "| {} | {}: {} | {measured} | {} | {} | {verdict} |",
                bench.measure,
                bench.name,
                figure.what,
                bound(figure, figure.floor),
                bound(figure, figure.goal),
            )
            .expect("a String takes all");
        }
    }
    text
}

/// One bench: what ran, on what, and its own line.
fn section(text: &mut String, bench: &Bench, outcome: &Outcome) {
    let Outcome { machine, .. } = outcome;
    let quiet = match outcome.is_final() {
        true => format!("quiet ({:.0}% in use)", outcome.used_before * 100.0),
        false if outcome.is_quick => "a quick try: nothing here is final".to_owned(),
        false => format!("**loaded** ({:.0}% in use): not final", outcome.used_before * 100.0),
    };
    write!(
        text,
        "\n## {}: {}\n\n{}.\n{}\n\n`{}`, {}, revision {}. The machine before: {quiet}; {:.0}% of its \
         processors were taken by others meanwhile. {} × {}, {} GiB, Linux {}.\n\n```json\n{}\n```\n",
        bench.measure,
        bench.name,
        bench.title,
        format_args!("{}.", bench.note.trim_end_matches('.')),
        outcome.command,
        outcome.date,
        outcome.revision,
        outcome.stolen * 100.0,
        machine.processors,
        machine.model,
        machine.memory_gib,
        machine.kernel,
        outcome.result,
    )
    .expect("a String takes all");
}

fn spelled(found: Measured) -> String {
    match found.spread {
        Some((min, max)) => {
            format!("{} ({} to {})", number(found.median), number(min), number(max))
        }
        None => number(found.median),
    }
}

fn bound(figure: &Figure, bound: Option<f64>) -> String {
    use super::list::Better;
    match (bound, figure.better) {
        (None, _) => String::new(),
        (Some(bound), Better::More) => format!("≥ {bound}"),
        (Some(bound), Better::Less) => format!("≤ {bound}"),
    }
}

/// Three digits that count.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_figure_of_the_document_is_typed_by_hand() {
        let list = List::read().unwrap();
        let page_now = std::fs::read_to_string(path()).unwrap();
        let made = page(&page_now, &kept(&list).unwrap()).unwrap();
        assert_eq!(page_now, made, "run `cargo xtask bench --write --only-docs`");
    }

    #[test]
    fn a_number_keeps_three_digits() {
        assert_eq!(
            [1234.5, 12.34, 1.234, 0.1234, 0.01234].map(number).join(" "),
            "1234 12.3 1.23 0.12 0.0123"
        );
    }
}
