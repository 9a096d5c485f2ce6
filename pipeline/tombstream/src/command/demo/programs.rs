//! Postgres's programs: where on this machine they are.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::bail;

use super::fetch;

/// What Tombstream needs at least: `create or replace trigger`.
const MAJOR_MIN: u32 = 14;

/// The programs of one installed Postgres.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Programs {
    /// The folder with `initdb` and `postgres`.
    pub(super) folder: PathBuf,
    /// As `postgres --version` says it: `15.18`.
    pub(super) version: String,
}

/// Which Postgres is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// What is on this machine.
    Installed,
    /// What is fetched, though one may be on this machine.
    Fetched,
    /// The programs in a folder.
    Folder(PathBuf),
}

impl FromStr for Wanted {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "installed" => Self::Installed,
            "fetched" => Self::Fetched,
            folder => Self::Folder(folder.into()),
        })
    }
}

/// Finds the programs that are wanted, or else those of this machine, or fetches some.
pub(super) async fn programs(
    wanted: Option<&Wanted>,
    say: impl Fn(fmt::Arguments<'_>),
) -> anyhow::Result<Programs> {
    match wanted {
        Some(Wanted::Fetched) => fetch::programs(say).await,
        Some(Wanted::Folder(folder)) => look(std::slice::from_ref(folder))
            .map_err(|looked| anyhow::anyhow!("{}", missing(&looked))),
        Some(Wanted::Installed) => {
            look(&places()).map_err(|looked| anyhow::anyhow!("{}", missing(&looked)))
        }
        None => match look(&places()) {
            Ok(programs) => Ok(programs),
            Err(looked) => match fetch::programs(say).await {
                Ok(programs) => Ok(programs),
                Err(error) => bail!("{}; fetching one failed: {error:#}", missing(&looked)),
            },
        },
    }
}

/// What is missing, and how it is installed.
fn missing(looked: &[String]) -> String {
    let looked = if looked.is_empty() {
        "there is no `postgres` on the path or in the usual places".to_owned()
    } else {
        looked.join(", ")
    };
    format!(
        "no PostgreSQL server of version {MAJOR_MIN} or newer was found ({looked}): install one \
         (Debian, Ubuntu: apt-get install postgresql; Fedora: dnf install postgresql-server; macOS: \
         brew install postgresql@17), or name the folder of its programs with --postgres DIR"
    )
}

/// The first of `places` that has what is needed; or what was found instead.
fn look(places: &[PathBuf]) -> Result<Programs, Vec<String>> {
    let mut looked = Vec::new();
    for folder in places {
        let shown = folder.display();
        if !["initdb", "postgres"].iter().all(|name| folder.join(name).is_file()) {
            if places.len() == 1 {
                looked.push(format!("{shown} has no `initdb` and `postgres`"));
            }
            continue;
        }
        match version(&folder.join("postgres")) {
            Some((major, version)) if major >= MAJOR_MIN => {
                return Ok(Programs { folder: folder.clone(), version });
            }
            Some((_, version)) => looked.push(format!("{shown} has {version}")),
            None => looked.push(format!("{shown}/postgres does not run")),
        }
    }
    Err(looked)
}

/// What a program says its version is. `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`
pub(super) fn version(postgres: &Path) -> Option<(u32, String)> {
    let output = Command::new(postgres).arg("--version").output().ok()?;
    parse(&String::from_utf8_lossy(&output.stdout))
}

fn parse(said: &str) -> Option<(u32, String)> {
    let version = said.split("(PostgreSQL) ").nth(1)?.split_whitespace().next()?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    Some((digits.parse().ok()?, version.to_owned()))
}

/// Where a server's programs may be, the likeliest first.
fn places() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        let said = String::from_utf8_lossy(&output.stdout);
        places.extend(Some(PathBuf::from(said.trim())));
    }
    // Debian's; the PostgreSQL project's for Red Hat; by hand; Homebrew's two; Postgres.app's.
    places.extend(newest(Path::new("/usr/lib/postgresql"), ""));
    places.extend(newest(Path::new("/usr"), "pgsql-"));
    places.push("/usr/local/pgsql/bin".into());
    for homebrew in ["/opt/homebrew/opt", "/usr/local/opt", "/home/linuxbrew/.linuxbrew/opt"] {
        places.extend(newest(Path::new(homebrew), "postgresql@"));
    }
    places.extend(newest(Path::new("/Applications/Postgres.app/Contents/Versions"), ""));
    places.retain(|place| place.is_absolute());
    places
}

/// The folders `prefixNUMBER/bin` of `parent`, the highest number first.
fn newest(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let number = |name: &OsStr| name.to_str()?.strip_prefix(prefix)?.parse::<u32>().ok();
    let entries = std::fs::read_dir(parent).into_iter().flatten().filter_map(Result::ok);
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| Some((number(&entry.file_name())?, entry.path().join("bin"))))
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, folder)| folder).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn fake(folder: &Path, says: &str) {
        std::fs::create_dir_all(folder).unwrap();
        for name in ["initdb", "postgres"] {
            let program = folder.join(name);
            std::fs::write(&program, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
            std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        }
    }

    #[test]
    fn the_newest_of_several_versions_comes_first() {
        let place = tempfile::tempdir().unwrap();
        for name in ["9", "14", "100", "none", "16"] {
            std::fs::create_dir(place.path().join(name)).unwrap();
        }
        let found = newest(place.path(), "");
        let numbers: Vec<_> = found
            .iter()
            .map(|bin| bin.parent().unwrap().file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(numbers, ["100", "16", "14", "9"]);
        assert!(newest(&place.path().join("nowhere"), "").is_empty());
    }

    #[test]
    fn an_old_server_is_passed_over_and_named() {
        let place = tempfile::tempdir().unwrap();
        let (old, new) = (place.path().join("old"), place.path().join("new"));
        fake(&old, "postgres (PostgreSQL) 13.9");
        let said = missing(&look(&[place.path().join("none"), old.clone()]).unwrap_err());
        assert!(said.contains("old has 13.9"), "{said}");
        assert!(said.contains("apt-get install postgresql"), "{said}");
        fake(&new, "postgres (PostgreSQL) 17beta1");
        let found = look(&[old, new.clone()]).unwrap();
        assert_eq!(found, Programs { folder: new, version: "17beta1".into() });
    }

    #[test]
    fn versions_are_read_as_they_are_packaged() {
        let debian = "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n";
        assert_eq!(parse(debian), Some((15, "15.18".into())));
        assert_eq!(parse("postgres (PostgreSQL) 18devel\n"), Some((18, "18devel".into())));
        for text in ["", "psql 15", "postgres (PostgreSQL) ", "postgres (PostgreSQL) x"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
