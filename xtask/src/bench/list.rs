//! The list of benches: `benches/benches.toml`.

use crate::services::Service;
use crate::shell;
use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;
use std::path::PathBuf;

/// The whole list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct List {
    #[serde(rename = "bench")]
    pub(super) benches: Vec<Bench>,
}

/// One bench: a subcommand of `tombstream-bench`, and what is read off its line.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bench {
    pub(super) name: String,
    /// The subcommand, where several benches share one.
    command: Option<String>,
    /// The measure's name.
    pub(super) measure: String,
    pub(super) title: String,
    /// What it is given, where a server's name in braces is its process's id.
    args: Vec<String>,
    /// What it is given beside, when only the bench itself is tried.
    quick: Vec<String>,
    pub(super) servers: Vec<Service>,
    /// Whether the servers' data are on a disk of memory.
    #[serde(default)]
    pub(super) in_memory: bool,
    /// The packages of its Python side, as pip's file of them, from the root.
    pub(super) python: Option<String>,
    /// The other side's program, as the folder of its Go module, from the root.
    pub(super) go: Option<String>,
    /// Ledger, `verify`, disk: what a figure means nothing without.
    pub(super) note: String,
    #[serde(rename = "figure")]
    pub(super) figures: Vec<Figure>,
}

/// A figure, and what is wanted of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Figure {
    /// Where it is in the line, with dots.
    pub(super) path: String,
    pub(super) what: String,
    pub(super) floor: Option<f64>,
    pub(super) goal: Option<f64>,
    #[serde(default)]
    pub(super) better: Better,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Better {
    #[default]
    More,
    Less,
}

impl List {
    pub(super) fn read() -> Result<Self> {
        let path = shell::root().join("benches/benches.toml");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("can't read {}", path.display()))?;
        toml::from_str(&text).with_context(|| path.display().to_string())
    }
}

impl Bench {
    /// The arguments after the program's name. `process` gives a server's process id.
    pub(super) fn arguments(
        &self,
        is_quick: bool,
        process: impl Fn(Service) -> Option<u32>,
    ) -> Vec<String> {
        let command = self.command.as_ref().unwrap_or(&self.name).clone();
        let mut all = vec![command, "--json".to_owned()];
        // Later ones win: the quick ones replace the same names.
        let given = match is_quick {
            true => merge(&self.args, &self.quick),
            false => self.args.clone(),
        };
        for argument in given {
            let of = self.servers.iter().find(|it| argument == format!("{{{}}}", it.name()));
            match of.map(|service| process(*service)) {
                None => all.push(argument),
                Some(Some(id)) => all.push(id.to_string()),
                // A container: its process is not ours to look at. The option goes with it.
                Some(None) => drop(all.pop()),
            }
        }
        all
    }

    /// Where its last result is kept.
    pub(super) fn result(&self) -> PathBuf {
        shell::root().join("benches/results").join(format!("{}.json", self.name))
    }
}

/// `given` with the options of `quick` in the place of those of the same name. Every option has a value.
fn merge(given: &[String], quick: &[String]) -> Vec<String> {
    let replaced = |name: &str| quick.chunks(2).any(|pair| pair[0] == name);
    let kept = given.chunks(2).filter(|pair| !replaced(&pair[0])).flatten();
    kept.chain(quick).cloned().collect()
}

/// A figure as it was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Measured {
    pub(super) median: f64,
    /// The least and the most of all rounds, where there were several.
    pub(super) spread: Option<(f64, f64)>,
}

impl Figure {
    /// Finds it in a bench's line.
    pub(super) fn find(&self, line: &Value) -> Option<Measured> {
        let at = self.path.split('.').try_fold(line, |at, name| at.get(name))?;
        if let Some(median) = at.as_f64() {
            return Some(Measured { median, spread: None });
        }
        let part = |name: &str| at.get(name)?.as_f64();
        Some(Measured { median: part("median")?, spread: Some((part("min")?, part("max")?)) })
    }

    /// What is said of it beside floor and goal.
    pub(super) fn verdict(&self, median: f64) -> &'static str {
        let reaches = |bound: f64| match self.better {
            Better::More => median >= bound,
            Better::Less => median <= bound,
        };
        match (self.floor, self.goal) {
            (None, None) => "",
            (_, Some(goal)) if reaches(goal) => "goal met",
            (Some(floor), _) if reaches(floor) => "floor met",
            (None, Some(_)) => "goal not met",
            _ => "**floor not met**",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::BTreeSet;

    fn figure(floor: Option<f64>, goal: Option<f64>, better: Better) -> Figure {
        Figure { path: "a.b".into(), what: String::new(), floor, goal, better }
    }

    #[test]
    fn the_list_is_read_and_each_name_is_of_one_bench() {
        let list = List::read().unwrap();
        let names: BTreeSet<&str> = list.benches.iter().map(|bench| &*bench.name).collect();
        assert_eq!(names.len(), list.benches.len());
        for bench in &list.benches {
            assert!(bench.args.len().is_multiple_of(2), "{}: an option has a value", bench.name);
            assert!(bench.quick.len().is_multiple_of(2), "{}: an option has a value", bench.name);
            let module = bench.go.as_ref().map(|go| shell::root().join(go).join("go.mod"));
            assert!(module.is_none_or(|it| it.is_file()), "{}: no module there", bench.name);
        }
    }

    #[test]
    fn a_figure_is_a_number_or_a_median_with_its_spread() {
        let figure = figure(None, None, Better::More);
        let one = figure.find(&json!({"a": {"b": 2.5}})).unwrap();
        assert_eq!(one, Measured { median: 2.5, spread: None });
        let many = figure.find(&json!({"a": {"b": {"median": 2.0, "min": 1.0, "max": 3.0}}}));
        assert_eq!(many.unwrap(), Measured { median: 2.0, spread: Some((1.0, 3.0)) });
        assert_eq!(figure.find(&json!({"a": {}})), None);
    }

    #[test]
    fn less_is_better_where_it_is_said_so() {
        let more = figure(Some(0.5), Some(0.8), Better::More);
        assert_eq!(more.verdict(0.4), "**floor not met**");
        assert_eq!(more.verdict(0.5), "floor met");
        assert_eq!(more.verdict(0.8), "goal met");
        let less = figure(Some(1.8), Some(1.2), Better::Less);
        assert_eq!(less.verdict(1.9), "**floor not met**");
        assert_eq!(less.verdict(1.3), "floor met");
        assert_eq!(less.verdict(1.2), "goal met");
    }

    #[test]
    fn a_quick_option_takes_the_place_of_the_same_one_and_a_server_that_of_its_process() {
        let bench = Bench {
            name: "drain".into(),
            command: None,
            measure: String::new(),
            title: String::new(),
            args: ["--events", "5", "--broker", "{kafka}"].map(str::to_owned).to_vec(),
            quick: ["--events", "1"].map(str::to_owned).to_vec(),
            servers: vec![Service::Kafka],
            in_memory: false,
            python: None,
            go: None,
            note: String::new(),
            figures: Vec::new(),
        };
        let whole = bench.arguments(false, |_| Some(7));
        assert_eq!(whole, ["drain", "--json", "--events", "5", "--broker", "7"]);
        let quick = bench.arguments(true, |_| None);
        assert_eq!(quick, ["drain", "--json", "--events", "1"]);
    }
}
