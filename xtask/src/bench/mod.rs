//! `cargo xtask bench`: what Tombstream costs, beside what anybody could use instead.
//!
//! Each bench is a subcommand of `tombstream-bench`, which runs both sides in turn and prints one line of
//! JSON. Here the servers are started, the machine is waited for until it is quiet, and the lines become
//! `docs/benchmarks.md`.

mod durable;
mod list;
mod machine;
mod python;
mod report;

use crate::services::{Service, Session, State};
use crate::{go, shell};
use anyhow::{Context, Result, bail};
use clap::Args;
use durable::Durable;
use list::{Bench, List};
use machine::{Machine, Ticks};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// A disk of memory, where Linux has one.
const MEMORY: &str = "/dev/shm";

#[derive(Args)]
pub(crate) struct Options {
    /// Which benches [default: all]
    names: Vec<String>,
    /// Print a line of JSON for each
    #[arg(long)]
    json: bool,
    /// Small and short: tries the benches, and measures nothing
    #[arg(long)]
    quick: bool,
    /// Keep the results in benches/results, and write docs/benchmarks.md from them
    #[arg(long)]
    write: bool,
    /// With --write: measure nothing, write the document from what is kept
    #[arg(long, requires = "write")]
    only_docs: bool,
    /// How long to wait until the machine is quiet, in seconds; what is measured on a loaded one is not final
    #[arg(long, value_name = "SECS", default_value_t = 60)]
    wait: u64,
    /// The servers' folder: what runs there is used, and left running [default: those of
    /// `services up` if they run, else new ones that are stopped and wiped at the end]
    #[arg(long)]
    services: Option<PathBuf>,
    /// Print the list, and measure nothing
    #[arg(long)]
    list: bool,
}

/// What a bench brought, and what it was brought by.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Outcome {
    name: String,
    command: String,
    date: String,
    revision: String,
    machine: Machine,
    /// Which share of the processors was in use before it began.
    used_before: f64,
    /// Which share of them was taken by other machines while it ran.
    stolen: f64,
    is_quick: bool,
    /// Its own line.
    result: Value,
}

impl Outcome {
    /// A loaded machine and a quick try prove nothing.
    fn is_final(&self) -> bool {
        !self.is_quick && machine::is_quiet(self.used_before)
    }
}

pub(crate) async fn run(options: Options) -> Result<ExitCode> {
    tokio::task::spawn_blocking(move || all(&options)).await?
}

fn all(options: &Options) -> Result<ExitCode> {
    let list = List::read()?;
    if let Some(name) =
        options.names.iter().find(|name| list.benches.iter().all(|it| it.name != **name))
    {
        bail!("there is no bench {name}; `cargo xtask bench --list` shows all");
    }
    let is_chosen =
        |bench: &&Bench| options.names.is_empty() || options.names.contains(&bench.name);
    let chosen: Vec<&Bench> = list.benches.iter().filter(is_chosen).collect();
    if options.list {
        for bench in chosen {
            println!("{}  {}  {}", bench.measure, bench.name, bench.title);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut failed = false;
    if !options.only_docs {
        let programs = build()?;
        let mut outcomes = Vec::new();
        for bench in chosen {
            shell::check_interrupt()?;
            match measure(options, bench, &programs) {
                Ok(outcome) => {
                    if options.json {
                        println!("{}", serde_json::to_string(&outcome)?);
                    }
                    if options.write {
                        keep(bench, &outcome)?;
                    }
                    outcomes.push((bench, outcome));
                }
                Err(error) => {
                    failed = true;
                    eprintln!("bench {}: {error:#}", bench.name);
                }
            }
        }
        if !options.json {
            println!("{}", report::table(&outcomes));
        }
    }
    if options.write {
        let path = report::path();
        let before = std::fs::read_to_string(&path)
            .with_context(|| format!("can't read {}", path.display()))?;
        let page = report::page(&before, &report::kept(&list)?)?;
        std::fs::write(&path, page).with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Where the built programs are: the benches and the product, together, so that what both need is built once.
fn build() -> Result<PathBuf> {
    let mut command = shell::cargo();
    command.args(["build", "--release", "--locked"]);
    command.args(["--package", "tombstream-bench", "--package", "tombstream"]);
    if !shell::run_group(&mut command)?.success() {
        bail!("the benches do not build");
    }
    Ok(shell::target()?.join("release"))
}

fn measure(options: &Options, bench: &Bench, programs: &Path) -> Result<Outcome> {
    // Before the machine has to be quiet: building it takes minutes.
    let peer = bench.go.as_deref().map(go::of_module).transpose()?;
    let session = session(options, bench)?;
    let state = match bench.servers.is_empty() {
        true => State::default(),
        false => session.start(&bench.servers)?,
    };
    let durable = Durable::make(&state)?;
    let process = |service: Service| Some(state.servers.get(&service)?.process?.id);
    let arguments = bench.arguments(options.quick, process);
    let wait = Duration::from_secs(if options.quick { 0 } else { options.wait });
    let used_before = machine::quiet(wait)?;
    if !options.quick && !machine::is_quiet(used_before) {
        eprintln!(
            "bench {}: the machine is loaded ({:.0}% in use): not final",
            bench.name,
            used_before * 100.0
        );
    }
    let command = format!("tombstream-bench {}", arguments.join(" "));
    eprintln!("bench {}: {command}", bench.name);
    let before = Ticks::now()?;
    let mut program = Command::new(programs.join("tombstream-bench"));
    program.args(&arguments).current_dir(shell::root()).envs(state.environment());
    if let Some(data) = state.data.get(&Service::S3) {
        program.env("S3_DATA_DIR", data);
    }
    if let Some(requirements) = &bench.python {
        program.env("TOMBSTREAM_BENCH_PYTHON", python::with(requirements)?);
    }
    if let Some(peer) = peer {
        program.env("TOMBSTREAM_BENCH_PEER", peer);
    }
    let line = line(&mut program)?;
    let (_, stolen) = Ticks::now()?.since(before);
    drop(durable);
    drop(session);
    let found = bench.figures.iter().find(|figure| figure.find(&line).is_none());
    if let Some(missing) = found {
        bail!("its line has no figure {}: {line}", missing.path);
    }
    Ok(Outcome {
        name: bench.name.clone(),
        command,
        date: tool("date", &["-u", "+%F"]),
        revision: revision(),
        machine: Machine::this(),
        used_before,
        stolen,
        is_quick: options.quick,
        result: line,
    })
}

fn session(options: &Options, bench: &Bench) -> Result<Session> {
    if !bench.in_memory {
        return Session::choose(options.services.clone(), &bench.servers);
    }
    if !Path::new(MEMORY).is_dir() {
        bail!("it measures servers whose disk is memory, and there is no {MEMORY}");
    }
    Ok(Session::of_its_own(Path::new(MEMORY).join("tombstream-bench")))
}

/// Runs the bench and gives the one line that it prints.
fn line(command: &mut Command) -> Result<Value> {
    use std::os::unix::process::CommandExt as _;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
    let mut child = command.spawn().context("can't run tombstream-bench")?;
    let output = child.stdout.take().context("it has an output")?;
    let reader = std::thread::spawn(move || std::io::read_to_string(output));
    let status = shell::wait_group(&mut child)?;
    let text = reader.join().map_err(|_| anyhow::anyhow!("reading its output panicked"))??;
    if !status.success() {
        bail!("it failed: {status}");
    }
    let last = text.lines().last().context("it printed nothing")?;
    serde_json::from_str(last).with_context(|| format!("it did not print JSON: {last}"))
}

fn keep(bench: &Bench, outcome: &Outcome) -> Result<()> {
    let path = bench.result();
    let mut text = serde_json::to_string_pretty(outcome)?;
    text.push('\n');
    std::fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))
}

/// The checkout's revision, and whether its code is another. What benches write is no code.
fn revision() -> String {
    let revision = tool("git", &["rev-parse", "--short", "HEAD"]);
    let code = ["status", "--porcelain", "--", ".", ":!docs", ":!benches/results"];
    match &*tool("git", &code) {
        "unknown" => revision,
        _ => format!("{revision}, changed"),
    }
}

/// The first line that a tool prints; "unknown" where it is not there.
fn tool(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).current_dir(shell::root()).output();
    let text = output.ok().filter(|it| it.status.success()).map(|it| it.stdout);
    let text = text.and_then(|it| String::from_utf8(it).ok()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}
