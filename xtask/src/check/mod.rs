//! `cargo xtask check`: everything about the sources that needs no server.
//!
//! All steps run, though one fails, so that one run shows all there is to mend.

mod compose;
mod deny;
mod instructions;

use crate::shell;
use anyhow::{Result, bail};
use std::process::{Command, ExitCode};
use std::time::Instant;

/// A step says what it could not check; an error is a finding.
type Step = fn() -> Result<Option<String>>;

const STEPS: [(&str, Step); 6] = [
    ("format", format),
    ("lints", lints),
    ("docs", docs),
    ("licences and boundaries", deny::run),
    ("compose.yaml", compose::run),
    ("instructions", instructions::run),
];

pub(crate) async fn run() -> Result<ExitCode> {
    tokio::task::spawn_blocking(all).await?
}

fn all() -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    let mut lines = Vec::new();
    for (name, step) in STEPS {
        shell::check_interrupt()?;
        let started = Instant::now();
        let line = match step() {
            Ok(None) => format!("{name}: ok"),
            Ok(Some(gap)) => format!("{name}: ok, but {gap}"),
            Err(error) => {
                code = ExitCode::FAILURE;
                format!("{name}: FAILED: {error:#}")
            }
        };
        let line = format!("check: {line} ({:.0} s)", started.elapsed().as_secs_f32());
        eprintln!("{line}");
        lines.push(line);
    }
    println!("{}", lines.join("\n"));
    Ok(code)
}

fn format() -> Result<Option<String>> {
    cargo(&["fmt", "--all", "--check"], &[])
}

fn lints() -> Result<Option<String>> {
    let args = ["clippy", "--workspace", "--all-targets", "--all-features", "--locked", "--"];
    cargo(&[&args[..], &["-D", "warnings"]].concat(), &[])
}

fn docs() -> Result<Option<String>> {
    let args = ["doc", "--workspace", "--no-deps", "--all-features", "--locked"];
    cargo(&args, &[("RUSTDOCFLAGS", "-D warnings")])
}

fn cargo(args: &[&str], variables: &[(&str, &str)]) -> Result<Option<String>> {
    let mut command = shell::cargo();
    command.args(args).envs(variables.iter().copied());
    run_shown(&mut command)?;
    Ok(None)
}

/// Runs a tool whose output the caller sees.
fn run_shown(command: &mut Command) -> Result<()> {
    let name = shell::spoken(command);
    eprintln!("check: {name}");
    let status = shell::run_group(command)?;
    if status.success() { Ok(()) } else { bail!("{name} ({status})") }
}
