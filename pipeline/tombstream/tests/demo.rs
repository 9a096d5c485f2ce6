//! `tombstream demo`, run as a person runs it. It needs the programs of a Postgres server on this machine
//! (`cargo xtask test` installs them with its own), and /proc to see what is left behind.

#![allow(clippy::unwrap_used, reason = "a test may panic, and so may what it is made of")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything here may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

const NOTHING: [&Path; 0] = [];

/// A folder that everybody may enter, so that root's server can be in it.
fn place() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    place
}

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tombstream"));
    command.args(["demo", "--documents", "100", "--dir"]).arg(dir).args(args);
    command
}

fn demo(dir: &Path, args: &[&str]) -> Output {
    command(dir, args).output().unwrap()
}

fn tombstream(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tombstream")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The processes whose command line holds `what`.
fn processes(what: &Path) -> Vec<PathBuf> {
    let what = what.to_str().unwrap();
    let entries = fs::read_dir("/proc").unwrap().map_while(Result::ok);
    let found = entries.map(|entry| entry.path()).filter(|process| {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(what)
    });
    found.collect()
}

/// Where the api and the pipeline of a demo listened.
fn ports(dir: &Path) -> Vec<String> {
    let config = fs::read_to_string(dir.join("tombstream.toml")).unwrap();
    let listens = config.lines().filter_map(|line| line.strip_prefix("listen = "));
    listens.map(|listen| listen.trim_matches('"').to_owned()).collect()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map_while(Result::ok);
    let mut names: Vec<_> = entries.map(|it| it.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Reads what a demo says on stderr until it says `what`.
fn wait_for(demo: &mut Child, what: &str) -> BufReader<std::process::ChildStderr> {
    let mut said = BufReader::new(demo.stderr.take().unwrap());
    let mut line = String::new();
    while said.read_line(&mut line).unwrap() > 0 {
        if line.contains(what) {
            return said;
        }
        line.clear();
    }
    panic!("the demo ended without saying {what}");
}

fn signal(process: &Child, signal: &str) {
    let id = process.id().to_string();
    assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_main_job_is_done_and_nothing_is_left_behind() {
    let place = place();
    let dir = place.path().join("demo");
    let demo = demo(&dir, &["--json"]);
    assert_eq!(demo.status.code(), Some(0), "{}", text(&demo.stderr));
    let report: Value = serde_json::from_slice(&demo.stdout).unwrap();
    let numbers = ["documents", "flagged", "restored", "refused", "finalized"];
    let numbers = numbers.map(|name| report[name].as_u64().unwrap());
    assert_eq!(report["ok"], true);
    assert_eq!(numbers[..2], [100, 50]);
    assert_eq!(numbers[2] + numbers[3], 5, "a tenth was asked back: {report}");
    assert_eq!(numbers[4], 50 - numbers[2]);
    for store in ["rows", "objects", "index"] {
        assert_eq!(report["gone"][store], numbers[4], "{store}");
        assert_eq!(report["left"][store], 100 - numbers[4], "{store}");
    }
    assert!(report["flip_to_gone_ms"]["p50"].as_f64().unwrap() >= 1_000.0, "grace is kept");

    assert_eq!(
        names(&dir),
        [
            ".tombstream-demo",
            "postgres.log",
            "receipts.jsonl",
            "report.json",
            "tombstream.log",
            "tombstream.toml"
        ]
    );
    assert_eq!(processes(&dir), NOTHING);
    for port in ports(&dir) {
        assert!(TcpStream::connect(&port).is_err(), "{port} is still listened on");
    }
    let checked = tombstream(&["receipts", "verify", dir.join("receipts.jsonl").to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
    let said = text(&checked.stdout);
    assert!(said.contains(&format!(" {} receipts, ", numbers[4])), "{said}");
    assert!(said.ends_with("\nright\n"), "{said}");
    wrong_receipts_are_seen(&dir.join("receipts.jsonl"));
}

/// Each change to a good file is noticed. Its first receipt is the third line, behind a header and a block.
fn wrong_receipts_are_seen(good: &Path) {
    let lines: Vec<String> = fs::read_to_string(good).unwrap().lines().map(str::to_owned).collect();
    let changed = good.with_file_name("changed.jsonl");
    let said_of = |lines: &[String]| {
        fs::write(&changed, lines.join("\n") + "\n").unwrap();
        let checked = tombstream(&["receipts", "verify", changed.to_str().unwrap()]);
        assert_eq!(checked.status.code(), Some(1));
        text(&checked.stderr)
    };
    let first = |from: &str, to: &str| {
        let mut lines = lines.clone();
        assert!(lines[2].contains(from), "{}", lines[2]);
        lines[2] = lines[2].replacen(from, to, 1);
        lines
    };
    let said = said_of(&first("\"deleted\"", "\"unknown\""));
    assert!(said.contains("has not confirmed: unknown"), "{said}");
    let said = said_of(&first("\"finalized_at\":\"2", "\"finalized_at\":\"1"));
    assert!(said.contains("removed before it was claimed"), "{said}");
    let mut twice = lines.clone();
    twice.insert(3, lines[2].clone());
    assert!(said_of(&twice).contains("line 4: entry 1 comes after entry 1"));
    let mut swapped = lines.clone();
    swapped.swap(2, 3);
    assert!(said_of(&swapped).contains("line 4: entry 1 comes after entry 2"));
    let said = said_of(&lines[..lines.len() - 1]);
    assert!(said.contains("there is no closing line"), "{said}");
    fs::write(&changed, &lines.join("\n")[..lines[0].len() + 20]).unwrap();
    let cut = tombstream(&["receipts", "verify", changed.to_str().unwrap()]);
    assert!(text(&cut.stderr).contains("line 2 has no end"), "{}", text(&cut.stderr));
    fs::write(&changed, "").unwrap();
    let none = tombstream(&["receipts", "verify", changed.to_str().unwrap()]);
    assert_eq!(none.status.code(), Some(1));
    assert!(text(&none.stderr).contains("there is no closing line"));
}

#[test]
fn ctrl_c_at_any_moment_leaves_nothing_running() {
    for moment in ["starting PostgreSQL", "seeded", "flagging", "listing"] {
        let place = place();
        let dir = place.path().join("demo");
        let mut demo = command(&dir, &[]).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = wait_for(&mut demo, moment);
        signal(&demo, "-INT");
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        let ended = demo.wait().unwrap();
        // The last moment may be too late to stop anything.
        if ended.code() != Some(0) {
            assert_eq!(ended.code(), Some(1), "{moment}: {rest}");
            // While it ends by itself, a signal is one to leave at once.
            let said = match moment {
                "listing" if rest.contains("told to leave at once by SIGINT") => true,
                _ => rest.contains("stopped by SIGINT before it was done"),
            };
            assert!(said, "{moment}: {rest}");
        }
        assert_eq!(processes(&dir), NOTHING, "{moment}");
        let names = names(&dir);
        for passing in ["server", "objects", "index", "database.url"] {
            assert!(!names.iter().any(|name| name == passing), "{moment}: {names:?}");
        }
    }
}

#[test]
fn what_a_killed_demo_left_running_is_stopped_by_the_next() {
    let place = place();
    let dir = place.path().join("demo");
    let mut killed = command(&dir, &[]).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(&mut killed, "flagging");
    signal(&killed, "-KILL");
    killed.wait().unwrap();
    let left = processes(&dir);
    assert!(!left.is_empty(), "a killed demo stops nothing");
    let next = demo(&dir, &[]);
    assert_eq!(next.status.code(), Some(0), "{}", text(&next.stderr));
    assert_eq!(processes(&dir), NOTHING);
}

#[test]
fn kept_it_runs_until_ctrl_c_with_a_server_that_is_not_root_s() {
    let place = place();
    let dir = place.path().join("demo");
    let mut demo = command(&dir, &["--keep", "--json"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _said = wait_for(&mut demo, "still running, until Ctrl-C");
    let servers = processes(&dir.join("server"));
    assert!(!servers.is_empty());
    for server in servers {
        let owner = fs::metadata(&server).map(|server| server.uid());
        assert!(owner.is_ok_and(|owner| owner != 0), "Postgres would refuse");
    }
    let config = dir.join("tombstream.toml");
    let config = config.to_str().unwrap();
    let status = tombstream(&["--config", config, "status", "--json"]);
    assert!(text(&status.stdout).contains(r#""state":"finalized""#), "{}", text(&status.stderr));
    let live = tombstream(&["--config", config, "check", "--live"]);
    assert_eq!(live.status.code(), Some(0), "{}", text(&live.stdout));
    let exported = tombstream(&["--config", config, "receipts", "export"]);
    // The chain only grows: what closes receipts came meanwhile, behind all but the closing line.
    let before = text(&fs::read(dir.join("receipts.jsonl")).unwrap());
    let (before, _) = before.trim_end().rsplit_once('\n').unwrap();
    assert!(text(&exported.stdout).starts_with(before));
    for port in ports(&dir) {
        assert!(TcpStream::connect(&port).is_ok(), "{port}");
    }
    signal(&demo, "-INT");
    assert_eq!(demo.wait().unwrap().code(), Some(0));
    assert_eq!(processes(&dir), NOTHING);
    assert!(!dir.join("server").exists());
}

/// Root's own folders let no other user in, so the server's data is among the temporary ones.
#[test]
fn in_a_folder_that_only_root_may_enter_the_server_is_elsewhere_and_goes_too() {
    let place = tempfile::tempdir().unwrap();
    let temporary = self::place();
    let dir = place.path().join("demo");
    let demo = command(&dir, &["--json"]).env("TMPDIR", temporary.path()).output().unwrap();
    assert_eq!(demo.status.code(), Some(0), "{}", text(&demo.stderr));
    assert_eq!(names(temporary.path()), [""; 0]);
}

#[test]
fn without_a_postgres_it_says_what_to_install() {
    let place = place();
    let empty = place.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let demo = demo(&place.path().join("demo"), &["--postgres", empty.to_str().unwrap()]);
    assert_eq!(demo.status.code(), Some(1));
    let said = text(&demo.stderr);
    for part in [
        "error: no PostgreSQL server of version 14 or newer was found",
        "has no `initdb` and `postgres`",
        "apt-get install postgresql",
        "--postgres DIR",
    ] {
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn a_folder_of_somebody_else_is_refused_and_left_as_it_is() {
    let place = place();
    fs::write(place.path().join("thesis.txt"), "words").unwrap();
    let demo = demo(place.path(), &[]);
    assert_eq!(demo.status.code(), Some(1));
    assert!(text(&demo.stderr).contains("name another folder with --dir"), "{:?}", demo.stderr);
    assert_eq!(names(place.path()), ["thesis.txt"]);
}

/// Answers every request with `answer`.
fn serve(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/maven", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut stream = stream;
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut asked = BufReader::new(stream.try_clone().unwrap()).lines();
            while asked.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            stream.write_all(answer).ok();
        }
    });
    url
}

#[test]
fn what_is_fetched_and_is_not_the_archive_is_never_unpacked() {
    for (answer, expected) in [
        (
            &b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\ngarbage"[..],
            "is not used: its SHA-256 is",
        ),
        (&b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"[..], "can't be fetched"),
        (&b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\ncut"[..], "can't be fetched"),
    ] {
        let place = place();
        let cache = place.path().join("cache");
        let demo = command(&place.path().join("demo"), &["--postgres", "fetched"])
            .env("XDG_CACHE_HOME", &cache)
            .env("TOMBSTREAM_DEMO_MAVEN", serve(answer))
            .output()
            .unwrap();
        assert_eq!(demo.status.code(), Some(1));
        let said = text(&demo.stderr);
        assert!(said.contains(expected), "{said}");
        assert_eq!(names(&cache.join("tombstream/postgres")), [""; 0]);
    }
}

#[test]
fn two_demos_side_by_side_do_not_meet() {
    let place = place();
    let dirs = ["one", "two"].map(|name| place.path().join(name));
    let demos = dirs.each_ref().map(|dir| {
        command(dir, &["--json"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    });
    for mut demo in demos {
        until("a demo ends", || demo.try_wait().unwrap().is_some());
        assert_eq!(demo.wait().unwrap().code(), Some(0));
    }
    assert_eq!(processes(place.path()), NOTHING);
}
