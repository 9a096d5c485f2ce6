//! The configuration file as it was written: every value with its place, every mistake collected.
//!
//! A mistake does not end the reading: whoever mends a file wants to see all of them. What a key
//! means is left to the sections' own files.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::secret::SecretRef;
use super::value::{Leaf, Wrong};

/// Where in the file, and which key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// From 1; 0 for the file as a whole.
    pub(crate) line: usize,
    /// The key's path, such as `store.originals.bucket`; empty for the file as a whole.
    pub(crate) key: String,
}

/// One mistake: where, what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) place: Place,
    pub(crate) what: String,
    pub(crate) fix: String,
}

/// Every mistake of one file, in the order of its lines.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problems {
    pub(crate) file: String,
    pub(crate) list: Vec<Problem>,
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Problem { place, what, fix }) in self.list.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            match place.line {
                0 => write!(f, "{}: ", self.file)?,
                line => write!(f, "{}:{line}: ", self.file)?,
            }
            if !place.key.is_empty() {
                write!(f, "`{}`: ", place.key)?;
            }
            write!(f, "{what}\n    fix: {fix}")?;
        }
        Ok(())
    }
}

/// What the reading of one file has found so far.
#[derive(Debug)]
pub(crate) struct Document {
    /// Where each line begins, in bytes.
    lines: Vec<usize>,
    problems: RefCell<Vec<Problem>>,
    secrets: RefCell<Vec<(Place, SecretRef)>>,
}

impl Document {
    /// Reads `text` with `read`. What the syntax alone makes impossible is said first and alone,
    /// since everything after it would be guessed.
    pub(crate) fn read<T>(
        text: &str,
        read: impl FnOnce(&mut Section<'_, '_>) -> T,
    ) -> (T, Vec<Problem>, Vec<(Place, SecretRef)>) {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1));
        let document = Document {
            lines: lines.collect(),
            problems: RefCell::default(),
            secrets: RefCell::default(),
        };
        let (root, errors) = DeTable::parse_recoverable(text);
        let mut section = document.section(String::new(), 1, root.into_inner());
        let value = read(&mut section);
        section.finish();
        let mut problems = document.problems.into_inner();
        if !errors.is_empty() {
            problems = errors.iter().map(|error| syntax(&document.lines, error)).collect();
            // One broken value gives several errors; the first says it best.
            problems.dedup_by_key(|problem| problem.place.line);
        }
        problems.sort_by(|one, other| one.place.cmp(&other.place));
        problems.dedup();
        (value, problems, document.secrets.into_inner())
    }

    fn section<'d, 't>(&'d self, path: String, line: usize, table: DeTable<'t>) -> Section<'d, 't> {
        let entries = table
            .into_iter()
            .map(|(key, value)| {
                let line = line_of(&self.lines, key.span());
                (key.into_inner().into_owned(), Entry { line, value })
            })
            .collect();
        Section { document: self, path, line, entries, known: Vec::new() }
    }
}

fn line_of(lines: &[usize], span: Range<usize>) -> usize {
    lines.partition_point(|start| *start <= span.start)
}

fn syntax(lines: &[usize], error: &toml::de::Error) -> Problem {
    let line = error.span().map_or(1, |span| line_of(lines, span));
    Problem {
        place: Place { line, key: String::new() },
        what: format!("not toml: {}", error.message().replace('\n', ", ")),
        fix: "mend this line first; what follows it was not looked at".into(),
    }
}

#[derive(Debug)]
struct Entry<'t> {
    line: usize,
    value: Spanned<DeValue<'t>>,
}

/// A table of the file. What nobody asked for is an unknown key.
#[derive(Debug)]
pub(crate) struct Section<'d, 't> {
    document: &'d Document,
    path: String,
    line: usize,
    entries: BTreeMap<String, Entry<'t>>,
    known: Vec<&'static str>,
}

impl<'d, 't> Section<'d, 't> {
    /// The place of `key`, or of the table if it has no such key.
    pub(crate) fn place(&self, key: &str) -> Place {
        let line = self.entries.get(key).map_or(self.line, |entry| entry.line);
        Place { line, key: self.join(key) }
    }

    /// The place of the table itself.
    pub(crate) fn here(&self) -> Place {
        Place { line: self.line, key: self.path.clone() }
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    pub(crate) fn problem(&self, place: Place, what: impl Into<String>, fix: impl Into<String>) {
        let problem = Problem { place, what: what.into(), fix: fix.into() };
        self.document.problems.borrow_mut().push(problem);
    }

    fn wrong(&self, place: Place, wrong: Wrong) {
        self.problem(place, wrong.what, wrong.fix);
    }

    /// The path of `key` in this table.
    pub(crate) fn join(&self, key: &str) -> String {
        match (self.path.as_str(), key) {
            ("", key) => key.to_owned(),
            (path, key) if key.contains('.') => format!("{path}.\"{key}\""),
            (path, key) => format!("{path}.{key}"),
        }
    }

    fn take(&mut self, key: &'static str) -> Option<(Place, Spanned<DeValue<'t>>)> {
        self.known.push(key);
        let place = self.place(key);
        self.entries.remove(key).map(|entry| (place, entry.value))
    }

    /// The value of `key`, if it is there and right.
    pub(crate) fn get<T: Leaf>(&mut self, key: &'static str) -> Option<T> {
        self.get_at(key).map(|(_, value)| value)
    }

    /// The value of `key` and its place, if it is there and right.
    pub(crate) fn get_at<T: Leaf>(&mut self, key: &'static str) -> Option<(Place, T)> {
        let (place, value) = self.take(key)?;
        match T::read(value.get_ref()) {
            Ok(value) => Some((place, value)),
            Err(wrong) => {
                self.wrong(place, wrong);
                None
            }
        }
    }

    /// The value of `key`, or `default` if the key is not there.
    pub(crate) fn or<T: Leaf>(&mut self, key: &'static str, default: T) -> T {
        self.get(key).unwrap_or(default)
    }

    /// The value of `key`, which must be there; `fix` says what to write.
    pub(crate) fn need<T: Leaf>(&mut self, key: &'static str, fix: &str) -> Option<T> {
        self.need_at(key, fix).map(|(_, value)| value)
    }

    /// The value of `key`, which must be there, and its place.
    pub(crate) fn need_at<T: Leaf>(&mut self, key: &'static str, fix: &str) -> Option<(Place, T)> {
        if !self.has(key) {
            self.known.push(key);
            self.problem(self.place(key), "missing", fix);
            return None;
        }
        self.get_at(key)
    }

    /// The secret that `key` points to. Whether it is there is checked apart, since not every
    /// command needs every secret.
    pub(crate) fn secret(&mut self, key: &'static str) -> Option<SecretRef> {
        let (place, secret) = self.get_at::<SecretRef>(key)?;
        self.document.secrets.borrow_mut().push((place, secret.clone()));
        Some(secret)
    }

    /// The table `key`, read by `read`.
    pub(crate) fn table<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Section<'d, 't>) -> T,
    ) -> Option<T> {
        let (place, value) = self.take(key)?;
        self.enter(place, value.into_inner(), read)
    }

    /// What `read` makes of a table that is not there: its defaults.
    pub(crate) fn absent<T>(&self, read: impl FnOnce(&mut Section<'d, 't>) -> T) -> T {
        read(&mut self.document.section(String::new(), 1, DeTable::new()))
    }

    /// Every table in the table `key`, with its name.
    pub(crate) fn tables<T>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&str, &mut Section<'d, 't>) -> T,
    ) -> Vec<(String, Option<T>)> {
        let read_all = |all: &mut Section<'d, 't>| {
            let entries = std::mem::take(&mut all.entries);
            let each = entries.into_iter().map(|(name, entry)| {
                let place = Place { line: entry.line, key: all.join(&name) };
                let value =
                    all.enter(place, entry.value.into_inner(), |section| read(&name, section));
                (name, value)
            });
            each.collect()
        };
        self.table(key, read_all).unwrap_or_default()
    }

    /// Every table of the array `key`.
    pub(crate) fn list<T>(
        &mut self,
        key: &'static str,
        mut read: impl FnMut(&mut Section<'d, 't>) -> T,
    ) -> Vec<T> {
        let Some((place, value)) = self.take(key) else { return Vec::new() };
        let DeValue::Array(items) = value.into_inner() else {
            self.problem(place, "must be an array of tables", "write [{ … }, { … }]");
            return Vec::new();
        };
        let mut read_all = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            let line = line_of(&self.document.lines, item.span());
            let place = Place { line, key: format!("{}[{index}]", place.key) };
            read_all.extend(self.enter(place, item.into_inner(), &mut read));
        }
        read_all
    }

    /// Every remaining entry, for tables whose keys are not Tombstream's.
    pub(crate) fn rest<T: Leaf>(&mut self) -> Vec<(String, Place, T)> {
        let mut rest = Vec::new();
        for (name, entry) in std::mem::take(&mut self.entries) {
            let place = Place { line: entry.line, key: self.join(&name) };
            match T::read(entry.value.get_ref()) {
                Ok(value) => rest.push((name, place, value)),
                Err(wrong) => self.wrong(place, wrong),
            }
        }
        rest
    }

    /// Notes that the secret at `place` is needed.
    pub(crate) fn note_secret(&self, place: Place, secret: SecretRef) {
        self.document.secrets.borrow_mut().push((place, secret));
    }

    fn enter<T>(
        &self,
        place: Place,
        value: DeValue<'t>,
        read: impl FnOnce(&mut Section<'d, 't>) -> T,
    ) -> Option<T> {
        let DeValue::Table(table) = value else {
            let what = format!("must be a table, found {}", super::value::describe(&value));
            self.problem(place, what, "write a table: { key = value } or a [section] of its own");
            return None;
        };
        let mut section = self.document.section(place.key, place.line, table);
        let value = read(&mut section);
        section.finish();
        Some(value)
    }

    /// Refuses what nobody asked for.
    fn finish(self) {
        for (name, entry) in &self.entries {
            let place = Place { line: entry.line, key: self.join(name) };
            self.problem(place, "unknown key", nearest(name, &self.known));
        }
    }
}

/// The known name that `name` was probably meant to be; else all of them.
pub(crate) fn nearest(name: &str, known: &[&str]) -> String {
    let best = known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .max_by(|one, other| one.0.total_cmp(&other.0));
    match best {
        Some((likeness, candidate)) if likeness > 0.8 => format!("did you mean `{candidate}`?"),
        _ => format!("known here: {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_found_with_its_line_and_key() {
        let text = "wokers = 1\n\n[store.one]\nport = \"x\"\n[store.two]\n";
        let (_, problems, _) = Document::read(text, |root| {
            root.or("workers", 2_usize);
            root.tables("store", |_, store| store.need::<bool>("port", "write port = true"));
        });
        let said = Problems { file: "f.toml".into(), list: problems }.to_string();
        assert_eq!(
            said,
            "f.toml:1: `wokers`: unknown key\n    fix: did you mean `workers`?\n\
             f.toml:4: `store.one.port`: must be true or false, found \"x\"\n    \
             fix: write true or false without quotes\n\
             f.toml:5: `store.two.port`: missing\n    fix: write port = true"
        );
    }

    #[test]
    fn broken_syntax_is_said_alone_with_its_line() {
        let (_, problems, _) = Document::read("a = 1\nb = = 2\n", |_| ());
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].place.line, 2);
        assert!(problems[0].what.starts_with("not toml: "), "{}", problems[0].what);
    }
}
