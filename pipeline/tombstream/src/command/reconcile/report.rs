//! The report: a table for people, a line of JSON for each finding, or a row of Parquet.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use serde_json::json;
#[cfg(feature = "parquet")]
use tombstream_connectors::files::parquet::{Cell, ColumnKind, TableWriter};
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
    /// The same as a table, whose end tells that it is whole; what was compared is said on standard output.
    #[cfg(feature = "parquet")]
    Parquet {
        table: Box<TableWriter<File>>,
        part: PathBuf,
        path: PathBuf,
    },
}

/// The columns of a report in Parquet: the fields of its lines.
#[cfg(feature = "parquet")]
const COLUMNS: [(&str, ColumnKind); 8] = [
    ("kind", ColumnKind::Text),
    ("relation", ColumnKind::Text),
    ("key", ColumnKind::Text),
    ("store", ColumnKind::Text),
    ("address", ColumnKind::Text),
    ("deletion", ColumnKind::Integer),
    ("state", ColumnKind::Text),
    ("is_elsewhere", ColumnKind::Boolean),
];

impl Report {
    pub(crate) fn open(to: &str) -> anyhow::Result<Self> {
        if to == "table" {
            return Ok(Self::Table(BufWriter::new(io::stdout())));
        }
        let path = PathBuf::from(to);
        match path.extension().and_then(|end| end.to_str()) {
            Some("jsonl") => {}
            #[cfg(feature = "parquet")]
            Some("parquet") => {
                let part = path.with_extension("parquet.part");
                let file = File::create(&part)
                    .with_context(|| format!("--report: {} can't be written", part.display()))?;
                let table = Box::new(TableWriter::new(file, &COLUMNS)?);
                return Ok(Self::Parquet { table, part, path });
            }
            #[cfg(not(feature = "parquet"))]
            Some("parquet") => {
                bail!(
                    "--report {to}: this build writes no Parquet; name a file that ends in .jsonl"
                )
            }
            _ => bail!(
                "--report {to}: write `table`, or name a file that ends in .jsonl or .parquet"
            ),
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
            #[cfg(feature = "parquet")]
            Self::Parquet { table, .. } => {
                let key: Vec<&str> = finding.key.columns().collect();
                let (key, address) =
                    (serde_json::to_string(&key)?, serde_json::to_string(&finding.address)?);
                let row = [
                    Cell::Text(finding.kind.as_str()),
                    Cell::Text(&finding.relation),
                    Cell::Text(&key),
                    Cell::Text(&finding.store),
                    Cell::Text(&address),
                    finding.deletion.map_or(Cell::Null, |id| Cell::Integer(id.0)),
                    finding.state.map_or(Cell::Null, |state| Cell::Text(state.as_str())),
                    Cell::Boolean(finding.is_elsewhere),
                ];
                table.push(&row).map_err(io::Error::other)
            }
        }
    }

    /// Says what was compared, and gives a file its name.
    pub(super) fn close(self, tally: &Tally) -> anyhow::Result<()> {
        let mut out = BufWriter::new(io::stdout());
        let path = match &self {
            Self::Table(_) => None,
            Self::Lines { path, .. } => Some(path.clone()),
            #[cfg(feature = "parquet")]
            Self::Parquet { path, .. } => Some(path.clone()),
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
            #[cfg(feature = "parquet")]
            Self::Parquet { table, part, path } => {
                let named = || format!("the report {}", path.display());
                let file = table.close().with_context(named)?;
                let end = || {
                    file.sync_all()?;
                    std::fs::rename(&part, &path)
                };
                end().with_context(named)
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

    #[cfg(feature = "parquet")]
    #[test]
    fn a_table_of_parquet_has_its_name_only_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.parquet");
        let mut report = Report::open(path.to_str().unwrap()).unwrap();
        let finding = Finding {
            kind: Wrong::Zombie,
            relation: "notes".into(),
            relation_id: tombstream_model::RelationId(0),
            key: tombstream_model::Key::from_postgres(["a".to_owned(), "1".to_owned()]),
            store: "search".into(),
            address: Address::Object { bucket: "b".to_owned().into(), key: "k".to_owned() },
            deletion: None,
            state: None,
            is_elsewhere: false,
        };
        report.finding(&finding).unwrap();
        assert!(!path.exists());
        report.close(&Tally::default()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes.starts_with(b"PAR1") && bytes.ends_with(b"PAR1"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
