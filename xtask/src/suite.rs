//! `cargo xtask test`: the servers up, every test, the servers down, one line that counts.

use crate::services::{Service, Session, State};
use crate::shell;
use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Instant;

#[derive(Args)]
pub(crate) struct Options {
    /// Leave out the tests that need real servers
    #[arg(long)]
    no_live: bool,
    /// The servers' folder: what runs there is used, and left running [default: those of
    /// `services up` if they run, else new ones that are stopped and wiped at the end]
    #[arg(long)]
    services: Option<PathBuf>,
    /// Only tests whose name contains this
    filter: Option<String>,
    /// For the test programs themselves, such as `--nocapture`
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Tests against a server that nothing here can start: they run where its address is given.
struct Elsewhere {
    /// The target, which is one skipped test where there is no address.
    target: &'static str,
    /// What builds it, beside its package's `live`.
    features: &'static [&'static str],
    variable: &'static str,
    what: &'static str,
}

const ELSEWHERE: [Elsewhere; 1] = [Elsewhere {
    target: "live-fluvio",
    features: &["tombstream/fluvio", "tombstream-connectors/fluvio"],
    variable: "TOMBSTREAM_TEST_FLUVIO_ENDPOINT",
    what: "the controller of a Fluvio cluster on this machine, such as 127.0.0.1:9003",
}];

impl Elsewhere {
    fn is_given(&self) -> bool {
        std::env::var_os(self.variable).is_some_and(|address| !address.is_empty())
    }
}

/// What cargo test's closing lines add up to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Tally {
    /// Takes a line of cargo test's output in; only the closing ones count.
    ///
    /// `test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; …`
    fn take(&mut self, line: &str) {
        let Some((_, counts)) =
            line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for part in counts.split("; ") {
            let Some((number, what)) = part.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

pub(crate) async fn run(options: Options) -> Result<ExitCode> {
    tokio::task::spawn_blocking(move || all(&options)).await?
}

fn all(options: &Options) -> Result<ExitCode> {
    let started = Instant::now();
    if options.no_live {
        eprintln!("test: without the tests that need real servers");
        return cargo_test(options, &State::default(), &[]);
    }
    let mut features = live_features()?;
    let given = ELSEWHERE.iter().filter(|elsewhere| elsewhere.is_given());
    features.extend(given.flat_map(|given| given.features).map(|feature| (*feature).to_owned()));
    let session = Session::choose(options.services.clone(), &Service::ALL)?;
    // The build and the servers' start share the time; the build needs no server.
    let (built, state) = thread::scope(|scope| {
        let state = scope.spawn(|| session.start(&Service::ALL));
        let built = build(&features);
        (built, state.join().map_err(|_| anyhow::anyhow!("starting the servers panicked")))
    });
    let state = state??;
    built?;
    let code = cargo_test(options, &state, &features)?;
    drop(session);
    eprintln!("test: {:.0} s in all", started.elapsed().as_secs_f32());
    Ok(code)
}

fn build(features: &[String]) -> Result<()> {
    let mut command = command(features);
    command.arg("--no-run");
    let status = shell::run_group(&mut command)?;
    if status.success() { Ok(()) } else { bail!("the tests do not build") }
}

fn command(features: &[String]) -> Command {
    let mut command = shell::cargo();
    command.args(["test", "--workspace", "--no-fail-fast", "--locked"]);
    if !features.is_empty() {
        command.arg("--features").arg(features.join(","));
    }
    command
}

fn cargo_test(options: &Options, state: &State, features: &[String]) -> Result<ExitCode> {
    let mut command = command(features);
    command
        .args(&options.filter)
        .arg("--")
        .args(&options.rest)
        .envs(state.environment())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0);
    let mut child = command.spawn().context("can't run cargo test")?;
    let output = child.stdout.take().context("cargo test has an output")?;
    let reader = thread::spawn(move || {
        let mut tally = Tally::default();
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            println!("{line}");
            tally.take(&line);
        }
        tally
    });
    let status = shell::wait_group(&mut child)?;
    let mut tally =
        reader.join().map_err(|_| anyhow::anyhow!("reading the tests' output panicked"))?;
    if options.no_live {
        println!("The tests that need real servers did not run and are not counted.");
    } else {
        skip_elsewhere(&mut tally, Elsewhere::is_given);
    }
    println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed, tally.ignored);
    if !status.success() || tally.failed > 0 {
        return Ok(ExitCode::FAILURE);
    }
    if tally.passed == 0 {
        eprintln!("error: no test ran");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Counts what could not run, and says why.
fn skip_elsewhere(tally: &mut Tally, is_given: impl Fn(&Elsewhere) -> bool) {
    for missing in ELSEWHERE.iter().filter(|elsewhere| !is_given(elsewhere)) {
        println!(
            "Skipped as one: {} and the other tests of its feature. {} is not set to {}.",
            missing.target, missing.variable, missing.what
        );
        tally.ignored += 1;
    }
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    features: std::collections::BTreeMap<String, Vec<String>>,
}

/// `crate/live` for every crate of the workspace that has tests against real servers.
fn live_features() -> Result<Vec<String>> {
    let output = shell::cargo()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .stderr(Stdio::inherit())
        .output()
        .context("can't run cargo metadata")?;
    let metadata: Metadata = serde_json::from_slice(&output.stdout)
        .context("cargo metadata did not answer in its own form")?;
    Ok(metadata
        .packages
        .into_iter()
        .filter(|package| package.features.contains_key("live"))
        .map(|package| format!("{}/live", package.name))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_lines_of_all_programs_add_up_and_other_lines_do_not_count() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "9 passed; 9 failed",
            "test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.2s",
        ] {
            tally.take(line);
        }
        assert_eq!(tally, Tally { passed: 5, failed: 4, ignored: 1 });
    }

    #[test]
    fn a_target_whose_server_is_not_there_is_skipped_and_not_passed() {
        let mut tally = Tally { passed: 5, failed: 0, ignored: 2 };
        skip_elsewhere(&mut tally, |_| false);
        assert_eq!(tally, Tally { passed: 5, failed: 0, ignored: 3 });
        skip_elsewhere(&mut tally, |_| true);
        assert_eq!(tally, Tally { passed: 5, failed: 0, ignored: 3 });
    }
}
