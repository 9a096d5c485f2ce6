//! `cargo xtask guards`: takes each guard of the contract out, one at a time, in a copy of the sources, and
//! sees whether its test fails. A test that can't fail guards nothing.

mod list;
mod tree;

use crate::services::{Service, Session, State};
use crate::shell;
use anyhow::{Context, Result, bail};
use clap::Args;
use list::{Guard, LINES, List, Target};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tree::Tree;

/// A test without its guard may wait for what never comes.
const TEST_MAX: Duration = Duration::from_secs(180);
/// The first build compiles all dependencies.
const BUILD_MAX: Duration = Duration::from_secs(3_600);

#[derive(Args)]
pub(crate) struct Options {
    /// Only guards whose name contains this; may be given several times
    #[arg(long)]
    only: Vec<String>,
    /// Only guards of this line of the contract, such as S1
    #[arg(long)]
    line: Option<String>,
    /// The servers' folder: what runs there is used, and left running
    #[arg(long)]
    services: Option<PathBuf>,
    /// Print the list, and try nothing
    #[arg(long)]
    list: bool,
}

/// What became of a guard's test.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It fails without the guard, as it should.
    Red,
    /// It passes without the guard.
    Green,
    /// The sources do not build without the guard: that says nothing.
    NoBuild,
    /// It ends neither way.
    Hangs,
    /// There is no test of that name, or it fails with the guard in place, too.
    NoTest,
}

impl Verdict {
    fn spelled(&self) -> &'static str {
        match self {
            Self::Red => "red",
            Self::Green => "GREEN: the test does not see that the guard is gone",
            Self::NoBuild => "does not build without the guard",
            Self::Hangs => "the test hangs without the guard",
            Self::NoTest => "the test does not pass with the guard",
        }
    }
}

pub(crate) async fn run(options: Options) -> Result<ExitCode> {
    tokio::task::spawn_blocking(move || all(&options)).await?
}

fn all(options: &Options) -> Result<ExitCode> {
    let list = List::read()?;
    let chosen: Vec<&Guard> =
        list.guards.iter().filter(|guard| is_chosen(options, guard)).collect();
    if chosen.is_empty() {
        bail!("no guard is meant; `cargo xtask guards --list` shows all");
    }
    if options.list {
        for guard in &chosen {
            println!("{}  {}  ({}, {})", guard.line, guard.name, guard.file, guard.test);
        }
        return Ok(ExitCode::SUCCESS);
    }
    // Before anything is built: a text that is not there is found at once.
    for guard in &chosen {
        guard.take_out(shell::root())?;
    }
    let targets: BTreeMap<&str, &Target> =
        chosen.iter().map(|guard| (&*guard.target, &list.targets[&guard.target])).collect();
    let servers: BTreeSet<Service> =
        targets.values().flat_map(|target| target.servers.iter().copied()).collect();
    let servers: Vec<Service> = servers.into_iter().collect();
    let mut session = None;
    let mut state = State::default();
    if !servers.is_empty() {
        let chosen = session.insert(Session::choose(options.services.clone(), &servers)?);
        state = chosen.start(&servers)?;
    }
    let trial = Trial { tree: Tree::copy()?, state };
    let started = Instant::now();
    let mut rows = Vec::new();
    for (name, target) in targets {
        let of_target: Vec<&Guard> =
            chosen.iter().copied().filter(|guard| guard.target == name).collect();
        trial.all_of(target, &of_target, &mut rows)?;
    }
    drop(session);
    Ok(report(&rows, started.elapsed()))
}

fn is_chosen(options: &Options, guard: &Guard) -> bool {
    let named =
        options.only.is_empty() || options.only.iter().any(|part| guard.name.contains(part));
    named && options.line.as_ref().is_none_or(|line| *line == guard.line)
}

struct Trial {
    tree: Tree,
    state: State,
}

/// A guard's line in the table.
struct Row<'a> {
    guard: &'a Guard,
    verdict: Verdict,
    took: Duration,
}

impl Trial {
    /// The guards of one test program, whose tests must all pass before anything is taken out.
    fn all_of<'a>(
        &self,
        target: &Target,
        guards: &[&'a Guard],
        rows: &mut Vec<Row<'a>>,
    ) -> Result<()> {
        eprintln!("guards: cargo test {}", target.args.join(" "));
        let log = self.log();
        if self.cargo(target, &["--no-run".to_owned()], BUILD_MAX)? != Some(true) {
            eprintln!("guards: it does not build with its guards:\n{}", shell::tail(&log, 20));
            rows.extend(guards.iter().map(|guard| Row {
                guard,
                verdict: Verdict::NoTest,
                took: Duration::ZERO,
            }));
            return Ok(());
        }
        for guard in guards {
            let began = Instant::now();
            let verdict = match self.test(target, guard)? {
                Verdict::Green => self.without(target, guard)?,
                _ => Verdict::NoTest,
            };
            eprintln!("guards: {}: {}", guard.name, verdict.spelled());
            rows.push(Row { guard, verdict, took: began.elapsed() });
        }
        Ok(())
    }

    fn without(&self, target: &Target, guard: &Guard) -> Result<Verdict> {
        // From the copy: the checkout may have gone on since.
        let whole = self.tree.read(&guard.file)?;
        self.tree.write(&guard.file, &guard.take_out(&self.tree.sources)?)?;
        let verdict = self.build_and_test(target, guard);
        self.tree.write(&guard.file, &whole)?;
        verdict
    }

    fn build_and_test(&self, target: &Target, guard: &Guard) -> Result<Verdict> {
        match self.cargo(target, &["--no-run".to_owned()], BUILD_MAX)? {
            Some(true) => self.test(target, guard),
            Some(false) => {
                eprintln!("{}", shell::tail(&self.log(), 20));
                Ok(Verdict::NoBuild)
            }
            None => Ok(Verdict::NoBuild),
        }
    }

    /// Runs the guard's test alone.
    fn test(&self, target: &Target, guard: &Guard) -> Result<Verdict> {
        let args = ["--".to_owned(), "--exact".to_owned(), guard.test.clone()];
        if self.cargo(target, &args, TEST_MAX)?.is_none() {
            return Ok(Verdict::Hangs);
        }
        Ok(read(&std::fs::read_to_string(self.log())?))
    }

    fn log(&self) -> PathBuf {
        self.tree.built.with_extension("log")
    }

    /// Whether `cargo test` ended well; none if it did not end in time.
    fn cargo(&self, target: &Target, args: &[String], wait_max: Duration) -> Result<Option<bool>> {
        let mut command = shell::cargo();
        command
            .current_dir(&self.tree.sources)
            .env("CARGO_TARGET_DIR", &self.tree.built)
            .envs(self.state.environment())
            .args(["test", "--locked"])
            .args(&target.args)
            .args(args);
        end_within(&mut command, &self.log(), wait_max)
    }
}

/// Runs a command with its output in `log`; one that takes too long is ended with all that it started.
fn end_within(command: &mut Command, log: &Path, wait_max: Duration) -> Result<Option<bool>> {
    let file = File::create(log).with_context(|| format!("can't write {}", log.display()))?;
    let errors = file.try_clone().context("can't share the log")?;
    command.stdin(Stdio::null()).stdout(file).stderr(errors).process_group(0);
    let mut child = command.spawn().context("can't run cargo test")?;
    let deadline = Instant::now() + wait_max;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        let interrupted = shell::check_interrupt();
        if interrupted.is_err() || Instant::now() > deadline {
            shell::end_group(child.id());
            child.wait()?;
            interrupted?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// What a test program says of the one test that it was asked for. Programs beside it run none.
fn read(output: &str) -> Verdict {
    let results = output.lines().filter_map(|line| line.strip_prefix("test result: "));
    let mut counts = (0, 0);
    for result in results {
        let count = |what: &str| -> u64 {
            let before = result.split_once(what).map_or("", |(before, _)| before);
            before.rsplit([' ', ';']).next().and_then(|text| text.parse().ok()).unwrap_or(0)
        };
        counts.0 += count(" passed");
        counts.1 += count(" failed");
    }
    match counts {
        (1, 0) => Verdict::Green,
        (0, 1) => Verdict::Red,
        _ => Verdict::NoTest,
    }
}

fn report(rows: &[Row<'_>], took: Duration) -> ExitCode {
    let width = rows.iter().map(|row| row.guard.name.len()).max().unwrap_or(0);
    for line in LINES {
        for row in rows.iter().filter(|row| row.guard.line == line) {
            let Row { guard, verdict, took } = row;
            println!(
                "{line}  {:width$}  {:>4.0} s  {}  ({})",
                guard.name,
                took.as_secs_f32(),
                verdict.spelled(),
                guard.test
            );
        }
    }
    let red = rows.iter().filter(|row| row.verdict == Verdict::Red).count();
    println!("{red} of {} guards are seen, {:.0} s", rows.len(), took.as_secs_f32());
    if red == rows.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_test_that_failed_is_red_and_everything_else_is_not() {
        let line = |passed, failed| {
            format!(
                "test result: x. {passed} passed; {failed} failed; 0 ignored; 0 measured; 9 filtered out\n"
            )
        };
        assert_eq!(read(&line(0, 1)), Verdict::Red);
        assert_eq!(read(&line(1, 0)), Verdict::Green);
        assert_eq!(read(&(line(0, 0) + &line(0, 1))), Verdict::Red);
        assert_eq!(read(&line(0, 0)), Verdict::NoTest);
        assert_eq!(read(&line(1, 1)), Verdict::NoTest);
        assert_eq!(read("error: could not compile"), Verdict::NoTest);
    }
}
