//! Instruction counts by callgrind (`xtask/instructions.toml`), where valgrind is installed.

use crate::shell;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// How far a count may be from what it was, either way.
const SLACK: f64 = 0.1;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    #[serde(rename = "count")]
    counts: Vec<Count>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Count {
    name: String,
    package: String,
    /// Which of the package's test programs.
    target: Vec<String>,
    test: String,
    /// What is counted with all that it calls, as callgrind names it.
    function: String,
    /// How many items it handles.
    items: u64,
    /// Instructions for each, when it was counted last.
    was: f64,
}

pub(super) fn run() -> Result<Option<String>> {
    if !shell::has("valgrind") {
        let gap =
            "nothing was counted: valgrind is not on the path (Debian: apt-get install valgrind)";
        return Ok(Some(gap.to_owned()));
    }
    let path = shell::root().join("xtask/instructions.toml");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let list: List = toml::from_str(&text).with_context(|| path.display().to_string())?;
    let mut far = Vec::new();
    for count in &list.counts {
        shell::check_interrupt()?;
        let is = count.measure().with_context(|| count.name.clone())?;
        eprintln!("check: {}: {is:.0} instructions, were {:.0}", count.name, count.was);
        if is > count.was * (1.0 + SLACK) || is < count.was * (1.0 - SLACK) {
            far.push(format!("{}: {is:.0} instructions, were {:.0}", count.name, count.was));
        }
    }
    if !far.is_empty() {
        bail!("find out why, or write it down in xtask/instructions.toml:\n{}", far.join("\n"));
    }
    Ok(None)
}

impl Count {
    fn measure(&self) -> Result<f64> {
        let program = self.build()?;
        let out = shell::target()?.join("instructions.out");
        let mut command = Command::new("valgrind");
        command
            .args(["--tool=callgrind", "--collect-atstart=no"])
            .arg(format!("--toggle-collect={}", self.function))
            .arg(format!("--callgrind-out-file={}", out.display()))
            .arg(&program)
            .args(["--exact", &self.test, "--test-threads=1"]);
        let log = out.with_extension("log");
        shell::run_logged(&mut command, &log)?;
        if !std::fs::read_to_string(&log)?.contains("1 passed") {
            bail!("{} has no test {}", program.display(), self.test);
        }
        let all = total(&std::fs::read_to_string(&out)?).context("callgrind wrote no total")?;
        if all == 0 {
            bail!("nothing was counted: no function is called {}", self.function);
        }
        Ok(all as f64 / self.items as f64)
    }

    /// The test program, in release.
    fn build(&self) -> Result<PathBuf> {
        #[derive(Deserialize)]
        struct Built {
            executable: Option<PathBuf>,
        }
        let mut command = shell::cargo();
        command
            .args(["test", "--release", "--locked", "--no-run", "--package", &self.package])
            .args(&self.target)
            .args(["--message-format", "json-render-diagnostics"])
            .stderr(Stdio::inherit());
        let output = command.output().context("can't run cargo test")?;
        if !output.status.success() {
            bail!("{} does not build", self.package);
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let built = text.lines().filter_map(|line| serde_json::from_str::<Built>(line).ok());
        built.filter_map(|it| it.executable).next_back().context("cargo has built no test program")
    }
}

/// Callgrind's own sum.
fn total(out: &str) -> Option<u64> {
    let line = out
        .lines()
        .find_map(|line| line.strip_prefix("totals:").or_else(|| line.strip_prefix("summary:")))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callgrinds_sum_is_read() {
        assert_eq!(total("version: 1\nevents: Ir\nsummary: 1234\n\nfn=(1)\n"), Some(1234));
        assert_eq!(total("events: Ir\n"), None);
    }

    #[test]
    fn each_counted_test_and_function_is_there() {
        let root = shell::root();
        let text = std::fs::read_to_string(root.join("xtask/instructions.toml")).unwrap();
        let list: List = toml::from_str(&text).unwrap();
        let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
        let all =
            read("pipeline/model/tests/instructions.rs") + &read("pipeline/dataflow/src/dedupe.rs");
        for count in list.counts {
            let test = count.test.rsplit("::").next().unwrap();
            assert!(all.contains(&format!("fn {test}(")), "{test}");
            assert!(all.contains(&format!("fn {}(", count.function.trim_matches('*'))));
        }
    }
}
