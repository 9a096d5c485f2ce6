//! Java: which one serves, and jars from Maven Central.

use crate::shell;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const ANSWER_MAX: Duration = Duration::from_secs(20);

/// The first Java of at least that version: TOMBSTREAM_JAVA_HOME, JAVA_HOME, the path, the usual folders.
pub(super) fn find(version_min: u32, purpose: &str) -> Result<PathBuf> {
    for home in ["TOMBSTREAM_JAVA_HOME", "JAVA_HOME"].iter().filter_map(std::env::var_os) {
        let java = Path::new(&home).join("bin/java");
        if version(&java) >= version_min {
            return Ok(java);
        }
    }
    if let Some(java) = shell::find("java").filter(|java| version(java) >= version_min) {
        return Ok(java);
    }
    let mut folders = vec![PathBuf::from("/usr/lib/jvm")];
    if let Some(home) = std::env::var_os("HOME") {
        folders.push(Path::new(&home).join(".sdkman/candidates/java"));
    }
    let newest = folders
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin/java")))
        .filter(|java| java.is_file())
        .map(|java| (version(&java), java))
        .filter(|(version, _)| *version >= version_min)
        .max_by_key(|(version, _)| *version);
    let Some((_, java)) = newest else {
        bail!(
            "{purpose} needs a JDK of version {version_min} or newer and none was found: install \
             one (Debian: openjdk-{version_min}-jdk or temurin-{version_min}-jdk), or say where it \
             is with TOMBSTREAM_JAVA_HOME"
        );
    };
    Ok(java)
}

/// 17, 25, …; 0 for what is no Java.
fn version(java: &Path) -> u32 {
    shell::answer(java, ["-version"], ANSWER_MAX)
        .and_then(|said| {
            said.split_once("version \"")?.1.split(['.', '"', '-', '+']).next()?.parse().ok()
        })
        .unwrap_or(0)
}

/// The runtime jars of a pom and all that it depends on: fetched once for all clones.
pub(super) fn jars(name: &str, pom: &Path) -> Result<PathBuf> {
    let text =
        std::fs::read_to_string(pom).with_context(|| format!("can't read {}", pom.display()))?;
    let jars = shell::cache()?.join("jars").join(format!("{name}-{}", shell::fingerprint(&text)));
    if jars.is_dir() {
        return Ok(jars);
    }
    shell::locked(&format!("jars-{name}"), || {
        if jars.is_dir() {
            return Ok(jars.clone());
        }
        if !shell::has("mvn") {
            bail!(
                "mvn is not on the path: it fetches {name}'s jars (Debian: apt-get install maven)"
            );
        }
        eprintln!("services: fetching the jars of {name}");
        // Moved into place when complete: a folder of that name is always whole. Maven writes
        // beside the pom, so it gets a copy.
        let aside = jars.with_extension("new");
        super::remove(&aside)?;
        let fetched = aside.join("jars");
        std::fs::create_dir_all(&fetched)
            .with_context(|| format!("can't make {}", fetched.display()))?;
        std::fs::write(aside.join("pom.xml"), &text).context("can't copy the pom")?;
        let mut command = Command::new("mvn");
        command
            .args(["-B", "-ntp", "-f"])
            .arg(aside.join("pom.xml"))
            .arg("org.apache.maven.plugins:maven-dependency-plugin:2.8:copy-dependencies")
            .arg("-DincludeScope=runtime")
            .arg(format!("-DoutputDirectory={}", fetched.display()));
        shell::run_logged(&mut command, &aside.join("fetch.log"))?;
        std::fs::rename(&fetched, &jars).context("can't move the jars into place")?;
        super::remove(&aside)?;
        Ok(jars.clone())
    })
}

/// All jars of a folder, in the order of their names.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut jars: Vec<PathBuf> = std::fs::read_dir(folder)
        .with_context(|| format!("can't read {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "jar"))
        .collect();
    jars.sort();
    Ok(jars)
}

/// A file of `deploy/services`.
pub(super) fn material(path: &str) -> PathBuf {
    shell::root().join("deploy/services").join(path)
}
