//! The report: a table for people, or a line of JSON for each finding.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use serde_json::json;
use tombstream_dataflow::reconcile::{Finding, Tally, Wrong};
use tombstream_model::Address;

use super::approval::digest;
use super::summary;

/// A report that is being written.
pub(crate) enum Report {
    Table(BufWriter<io::Stdout>),
    /// Written beside its name, which it gets when it is whole.
    Lines {
        lines: BufWriter<File>,
        part: PathBuf,
        path: PathBuf,
    },
}

impl Report {
    pub(crate) fn open(to: &str) -> anyhow::Result<Self> {
        if to == "table" {
            return Ok(Self::Table(BufWriter::new(io::stdout())));
        }
        let path = PathBuf::from(to);
        match path.extension().and_then(|end| end.to_str()) {
            Some("jsonl") => {}
            Some("parquet") => {
                bail!("--report {to}: Parquet is not written yet; name a file that ends in .jsonl")
            }
            _ => bail!("--report {to}: write `table`, or name a file that ends in .jsonl"),
        }
        let part = path.with_extension("jsonl.part");
        let lines = File::create(&part)
            .with_context(|| format!("--report: {} can't be written", part.display()))?;
        Ok(Self::Lines { lines: BufWriter::new(lines), part, path })
    }

    pub(crate) fn finding(&mut self, finding: &Finding) -> io::Result<()> {
        match self {
            Self::Table(table) => writeln!(
                table,
                "{:<9}  {}  {}  {}: {}{}",
                finding.kind.as_str(),
                finding.relation,
                finding.key,
                finding.store,
                place(&finding.address),
                match (finding.deletion, finding.state) {
                    (Some(id), Some(state)) => format!("  (deletion {id}, {})", state.as_str()),
                    _ => String::new(),
                },
            ),
            Self::Lines { lines, .. } => {
                serde_json::to_writer(&mut *lines, finding)?;
                lines.write_all(b"\n")
            }
        }
    }

    /// Says what was compared, and gives a file its name.
    pub(super) fn close(self, tally: &Tally) -> anyhow::Result<()> {
        let mut out = BufWriter::new(io::stdout());
        let path = match &self {
            Self::Table(_) => None,
            Self::Lines { path, .. } => Some(path.clone()),
        };
        self.end(tally)?;
        writeln!(out, "{}", summary(tally)).context("standard output")?;
        if let Some(path) = path {
            let digest = digest(&path).with_context(|| format!("the report {}", path.display()))?;
            writeln!(out, "{}: written; its digest is {digest}", path.display())
                .context("standard output")?;
        }
        out.flush().context("standard output")
    }

    /// Gives a file its name.
    pub(crate) fn end(self, tally: &Tally) -> anyhow::Result<()> {
        match self {
            Self::Table(mut table) => table.flush().context("standard output"),
            Self::Lines { mut lines, part, path } => {
                let named = || format!("the report {}", path.display());
                let end = |lines: &mut BufWriter<File>| {
                    serde_json::to_writer(&mut *lines, &last(tally))?;
                    lines.write_all(b"\n")?;
                    lines.flush()?;
                    lines.get_ref().sync_all()?;
                    std::fs::rename(&part, &path)
                };
                end(&mut lines).with_context(named)
            }
        }
    }
}

/// How many of each kind there are, by the names that the last line has.
pub(crate) fn counts(tally: &Tally) -> serde_json::Map<String, serde_json::Value> {
    let count = |kind: &Wrong| tally.found.get(kind).copied().unwrap_or(0);
    Wrong::ALL.iter().map(|kind| (plural(*kind).to_owned(), count(kind).into())).collect()
}

/// The last line: a report without it is not whole.
fn last(tally: &Tally) -> serde_json::Value {
    let count = |kind: Wrong| tally.found.get(&kind).copied().unwrap_or(0);
    let stores = tally.stores.iter().map(|store| {
        json!({
            "store": store.name,
            "copies": store.copies,
            "expected": store.expected,
            "elsewhere": store.elsewhere,
            "unclear": store.unclear,
        })
    });
    json!({
        "kind": "summary",
        "stragglers": count(Wrong::Straggler),
        "zombies": count(Wrong::Zombie),
        "orphans": count(Wrong::Orphan),
        "missing": count(Wrong::Missing),
        "rows": tally.rows,
        "unaddressed": tally.unaddressed,
        "deletions": tally.deletions,
        "suspects": tally.suspects,
        "stores": stores.collect::<Vec<_>>(),
        "spilled_bytes": tally.spilled_bytes,
        "compared_s": tally.compared_in.as_secs_f64(),
        "looked_s": tally.looked_in.as_secs_f64(),
    })
}

pub(super) fn plural(kind: Wrong) -> &'static str {
    match kind {
        Wrong::Straggler => "stragglers",
        Wrong::Zombie => "zombies",
        Wrong::Orphan => "orphans",
        Wrong::Missing => "missing",
    }
}

/// An address on one line. What would break the line is escaped.
fn place(address: &Address) -> String {
    let routed = |routing: &Option<String>| {
        routing.as_ref().map(|routing| format!(" (routing {routing})")).unwrap_or_default()
    };
    let text = match address {
        Address::Object { bucket, key } => format!("{bucket}/{key}"),
        Address::Prefix { bucket, prefix } => format!("{bucket}/{prefix}*"),
        Address::Document { index, id, routing } => format!("{index}/{id}{}", routed(routing)),
        Address::Field { index, field, value, routing } => {
            format!("{index}/{field}={value}{}", routed(routing))
        }
        Address::Item { collection, id } => format!("{collection}/{id}"),
        Address::Row { table, columns } => {
            let columns = columns.iter().map(|(name, value)| format!("{name}={value}"));
            format!("{table}/{}", columns.collect::<Vec<_>>().join(","))
        }
    };
    text.escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_table_or_lines_of_json() {
        let refused = |to: &str| Report::open(to).err().map(|error| error.to_string());
        assert!(refused("table").is_none());
        assert!(refused("out.parquet").unwrap().contains("not written yet"));
        assert!(refused("out.csv").unwrap().contains(".jsonl"));
    }

    #[test]
    fn a_file_has_its_name_only_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl");
        let report = Report::open(path.to_str().unwrap()).unwrap();
        assert!(!path.exists());
        report.close(&Tally::default()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let last: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!((&last["kind"], &last["missing"]), (&json!("summary"), &json!(0)));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
