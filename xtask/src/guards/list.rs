//! The list of guards: `xtask/guards.toml`.

use crate::services::Service;
use crate::shell;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Every line of the contract.
pub(super) const LINES: [&str; 13] =
    ["S1", "S2", "S3", "S4", "S5", "S6", "S7", "S8", "S9", "L1", "L2", "L3", "L4"];

/// The whole list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct List {
    pub(super) targets: BTreeMap<String, Target>,
    pub(super) guards: Vec<Guard>,
}

/// A test program.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Target {
    /// What `cargo test` is given.
    pub(super) args: Vec<String>,
    /// The servers that it needs.
    #[serde(default)]
    pub(super) servers: BTreeSet<Service>,
}

/// A guard, and how it is taken out.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Guard {
    pub(super) name: String,
    /// The line of the contract.
    pub(super) line: String,
    /// Where it is, from the root.
    pub(super) file: String,
    /// What is there, once …
    pub(super) text: String,
    /// … and what is put in its place.
    pub(super) with: String,
    /// The program whose test must fail.
    pub(super) target: String,
    /// The test, as its program names it.
    pub(super) test: String,
}

impl List {
    pub(super) fn read() -> Result<Self> {
        let path = shell::root().join("xtask/guards.toml");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("can't read {}", path.display()))?;
        let list: Self = toml::from_str(&text).with_context(|| format!("{}", path.display()))?;
        for guard in &list.guards {
            if !list.targets.contains_key(&guard.target) {
                bail!("guard \"{}\" names no target of the list: {}", guard.name, guard.target);
            }
        }
        Ok(list)
    }
}

impl Guard {
    /// The file under `root` without this guard. An error where the text is not found exactly once: the
    /// code has moved on, and the list must follow.
    pub(super) fn take_out(&self, root: &Path) -> Result<String> {
        let source = std::fs::read_to_string(root.join(&self.file))
            .with_context(|| format!("guard \"{}\": can't read {}", self.name, self.file))?;
        match source.matches(&self.text).count() {
            1 => Ok(source.replace(&self.text, &self.with)),
            found => bail!(
                "guard \"{}\": its text is {found} times in {}, and must be there once: {:?}",
                self.name,
                self.file,
                self.text
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_stands_once_in_its_file_and_something_else_takes_its_place() {
        for guard in List::read().unwrap().guards {
            guard.take_out(shell::root()).unwrap();
            assert_ne!(guard.text, guard.with, "{}", guard.name);
        }
    }

    #[test]
    fn every_line_of_the_contract_has_a_guard() {
        let guards = List::read().unwrap().guards;
        let lines: BTreeSet<&str> = guards.iter().map(|guard| &*guard.line).collect();
        assert_eq!(lines, BTreeSet::from(LINES));
        let names: BTreeSet<&str> = guards.iter().map(|guard| &*guard.name).collect();
        assert_eq!(names.len(), guards.len(), "each name is of one guard");
    }

    /// The sources of the workspace, all in one text.
    fn sources(folder: &Path, all: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
            if path.is_dir() && !hidden && !path.ends_with("target") {
                sources(&path, all);
            } else if path.extension().is_some_and(|end| end == "rs") {
                all.push_str(&std::fs::read_to_string(&path).unwrap());
            }
        }
    }

    #[test]
    fn every_test_that_must_fail_is_there() {
        let mut all = String::new();
        sources(shell::root(), &mut all);
        for guard in List::read().unwrap().guards {
            let test = guard.test.rsplit("::").next().unwrap();
            assert!(all.contains(&format!("fn {test}(")), "{test} of \"{}\"", guard.name);
        }
    }
}
