//! Postgres's programs, fetched where none are installed.
//!
//! They are those that the Java projects of zonky publish on Maven Central for tests: one archive a
//! platform, an xz-packed tar in a jar. The version and each archive's SHA-256 are written here, so that
//! nothing else is ever unpacked and run. The client is the one that the product has anyway; a crate
//! that does all of this (`postgresql_embedded`) brings two dozen others.

use std::fmt;
use std::io::{Cursor, Read as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

use super::account::Account;
use super::folder::remove;
use super::programs::{Programs, version};

/// Maven Central, or the mirror of it that the environment names.
const CENTRAL: &str = "https://repo1.maven.org/maven2";
const MIRROR: &str = "TOMBSTREAM_DEMO_MAVEN";
const VERSION: &str = "17.11.0";
/// Longest silence of the server.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Above the largest archive; what is longer is none of them.
const BYTES_MAX: usize = 128 << 20;

/// One platform's archive.
struct Archive {
    platform: &'static str,
    sha256: &'static str,
}

fn archive() -> Option<Archive> {
    let (platform, sha256) = match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => {
            ("linux-amd64", "0dd7b72b6f335b8ecfb355fa24c5781e8a93edd09880bb77eb52ebbf29b3e96d")
        }
        ("linux", "aarch64") => {
            ("linux-arm64v8", "8b042e0ea418b1927d95399207950da0734d27fe01e29503ade3bdc464ad4c2b")
        }
        ("macos", "x86_64") => {
            ("darwin-amd64", "d464ff178e9860ba204662ac23fa547504b7fd392392ff2fb92e3fd73b5bdb64")
        }
        ("macos", "aarch64") => {
            ("darwin-arm64v8", "a1c2786acb0c398f9b2d76806fc52f5dc8b222cbc8e9383a9b9702084daaf3a5")
        }
        _ => return None,
    };
    Some(Archive { platform, sha256 })
}

/// The fetched programs: those of the cache, or fetched into it.
pub(super) async fn programs(say: impl Fn(fmt::Arguments<'_>)) -> anyhow::Result<Programs> {
    let Some(archive) = archive() else {
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        bail!("there is no archive of Postgres for {os} on {arch}");
    };
    let home = cache()?.join(format!("{VERSION}-{}", &archive.sha256[..12]));
    if !home.join("bin/postgres").is_file() {
        let name = format!("embedded-postgres-binaries-{}", archive.platform);
        let central = std::env::var(MIRROR).unwrap_or_else(|_| CENTRAL.to_owned());
        let central = central.trim_end_matches('/');
        let url = format!("{central}/io/zonky/test/postgres/{name}/{VERSION}/{name}-{VERSION}.jar");
        say(format_args!("no Postgres is installed: fetching {VERSION} from {url}"));
        let bytes = download(&url).await.with_context(|| format!("{url} can't be fetched"))?;
        verify(&bytes, archive.sha256).with_context(|| format!("{url} is not used"))?;
        tokio::task::block_in_place(|| unpack(&bytes, &home))
            .with_context(|| format!("{url} can't be unpacked to {}", home.display()))?;
    }
    let folder = home.join("bin");
    match version(&folder.join("postgres")) {
        Some((_, version)) => Ok(Programs { folder, version }),
        None => bail!("{}/postgres does not run on this system", folder.display()),
    }
}

/// Where fetched programs are kept: where the server's user may run them.
fn cache() -> anyhow::Result<PathBuf> {
    let from = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let own = from("XDG_CACHE_HOME").or_else(|| Some(from("HOME")?.join(".cache")));
    let own = own.map(|cache| cache.join("tombstream"));
    let chosen = match (own, Account::choose()?) {
        (Some(own), None) => own,
        (Some(own), Some(account)) => {
            make(&own)?;
            if account.may_enter(&own)? { own } else { "/var/cache/tombstream".into() }
        }
        (None, Some(_)) => "/var/cache/tombstream".into(),
        (None, None) => bail!("set HOME or XDG_CACHE_HOME: what is fetched is kept below it"),
    };
    let postgres = chosen.join("postgres");
    make(&postgres)?;
    Ok(postgres)
}

fn make(folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("{} can't be made", folder.display()))
}

async fn download(url: &str) -> anyhow::Result<Vec<u8>> {
    let client = reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(10))
        .read_timeout(SILENCE_MAX)
        .build()?;
    let mut response = client.get(url).send().await?.error_for_status()?;
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > BYTES_MAX {
            bail!("the answer is longer than any of these archives");
        }
    }
    Ok(bytes)
}

/// Nothing is unpacked that is not, bit for bit, what was looked at when its hash was written here.
fn verify(bytes: &[u8], expected: &str) -> anyhow::Result<()> {
    let found: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    if found != expected {
        bail!("its SHA-256 is {found}, not {expected}");
    }
    Ok(())
}

/// Unpacks the archive beside `home`, and puts it there as a whole.
fn unpack(jar: &[u8], home: &Path) -> anyhow::Result<()> {
    let mut jar = zip::ZipArchive::new(Cursor::new(jar))?;
    let mut packed = Vec::new();
    for place in 0..jar.len() {
        let file = jar.by_index(place)?;
        if file.name()?.ends_with(".txz") {
            file.take(BYTES_MAX as u64).read_to_end(&mut packed)?;
        }
    }
    let part = home.with_extension(format!("part-{:016x}", rand::random::<u64>()));
    let unpacked = unpack_tar(&packed, &part).and_then(|()| {
        match std::fs::rename(&part, home) {
            // Another demo was faster.
            Err(_) if home.join("bin/postgres").is_file() => Ok(()),
            other => Ok(other?),
        }
    });
    remove(&part)?;
    unpacked
}

fn unpack_tar(packed: &[u8], part: &Path) -> anyhow::Result<()> {
    make(part)?;
    // Whatever the umask is: the server's user may be another one.
    std::fs::set_permissions(part, PermissionsExt::from_mode(0o755))?;
    let mut tar = tar::Archive::new(lzma_rust2::XzReader::new(packed, false));
    tar.set_preserve_permissions(true);
    tar.set_preserve_ownerships(false);
    tar.unpack(part)?;
    for folder in ["bin", "lib", "share"] {
        let folder = part.join(folder);
        if folder.is_dir() {
            std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o755))?;
        }
    }
    if !part.join("bin/postgres").is_file() {
        bail!("bin/postgres is not in it");
    }
    Ok(())
}
