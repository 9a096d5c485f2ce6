//! The demo's own folder: what is in it, whose it is, what stays.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// Says that a folder is the demo's. It is locked while a demo runs there.
const MARKER: &str = ".tombstream-demo";
const MARK: &str = "This folder is `tombstream demo`'s own: the next one replaces what is in it.\n";
/// Where the server is, if not in the folder.
const ELSEWHERE: &str = "server: ";

/// What a demo makes there, and the next one replaces.
const CONFIG: &str = "tombstream.toml";
const LOG: &str = "tombstream.log";
const SERVER_LOG: &str = "postgres.log";
const URL: &str = "database.url";
const RECEIPTS: &str = "receipts.jsonl";
const REPORT: &str = "report.json";
const SERVER: &str = "server";
const OBJECTS: &str = "objects";
const INDEX: &str = "index";
const ALL: [&str; 9] = [CONFIG, LOG, SERVER_LOG, URL, RECEIPTS, REPORT, SERVER, OBJECTS, INDEX];
/// What is of no use once the demo has ended.
const PASSING: [&str; 4] = [URL, SERVER, OBJECTS, INDEX];

/// The folder, while a demo runs in it.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    marker: File,
}

impl Folder {
    /// Takes the folder, made if it is not there. Only an empty one, or a demo's, is taken.
    pub(super) fn take(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        std::fs::create_dir_all(path)
            .with_context(|| format!("the folder {shown} can't be made; --dir names it"))?;
        let path = path.canonicalize().with_context(|| format!("{shown} can't be found"))?;
        if path.to_str().is_none() {
            bail!("{shown} is not utf-8, as the configuration must be: name another with --dir");
        }
        let marker = path.join(MARKER);
        let is_ours = std::fs::symlink_metadata(&marker).is_ok_and(|marker| marker.is_file());
        let mut inside =
            std::fs::read_dir(&path).with_context(|| format!("{shown} can't be read"))?;
        if !is_ours && inside.next().is_some() {
            bail!(
                "{shown} holds what no demo has made, and would be replaced: name another folder \
                 with --dir"
            );
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut marker =
            options.open(&marker).with_context(|| format!("{shown} can't be written to"))?;
        match marker.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("another demo runs in {shown}: stop it, or name another folder with --dir")
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("{shown} can't be locked"));
            }
        }
        if marker.metadata()?.len() == 0 {
            marker.write_all(MARK.as_bytes()).with_context(|| format!("{shown} can't be used"))?;
        }
        Ok(Self { path, marker })
    }

    /// Where an earlier demo, that was killed, may have left its server.
    pub(super) fn left_behind(&mut self) -> anyhow::Result<Vec<PathBuf>> {
        let mut text = String::new();
        self.marker.rewind()?;
        (&self.marker).take(64 << 10).read_to_string(&mut text).context("the folder's marker")?;
        let elsewhere = text.lines().filter_map(|line| line.strip_prefix(ELSEWHERE));
        let mut places: Vec<PathBuf> = elsewhere.map(PathBuf::from).collect();
        places.push(self.server());
        Ok(places)
    }

    /// Notes that the server is not in the folder, or no more.
    pub(super) fn note_server(&mut self, elsewhere: Option<&Path>) -> anyhow::Result<()> {
        let mut text = MARK.to_owned();
        if let Some(place) = elsewhere {
            text.push_str(&format!("{ELSEWHERE}{}\n", place.display()));
        }
        self.marker.rewind()?;
        self.marker.set_len(0)?;
        self.marker.write_all(text.as_bytes()).context("the folder's marker")
    }

    /// Removes what an earlier demo made.
    pub(super) fn empty(&self) -> anyhow::Result<()> {
        ALL.into_iter().try_for_each(|name| remove(&self.path.join(name)))
    }

    /// Removes what is of no use without the server.
    pub(super) fn tidy(&self) -> anyhow::Result<()> {
        PASSING.into_iter().try_for_each(|name| remove(&self.path.join(name)))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn config(&self) -> PathBuf {
        self.path.join(CONFIG)
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path.join(LOG)
    }

    pub(super) fn server_log(&self) -> PathBuf {
        self.path.join(SERVER_LOG)
    }

    /// The database's address with its password, which the configuration names as a file.
    pub(super) fn url(&self) -> PathBuf {
        self.path.join(URL)
    }

    pub(super) fn receipts(&self) -> PathBuf {
        self.path.join(RECEIPTS)
    }

    pub(super) fn report(&self) -> PathBuf {
        self.path.join(REPORT)
    }

    pub(super) fn server(&self) -> PathBuf {
        self.path.join(SERVER)
    }

    pub(super) fn objects(&self) -> PathBuf {
        self.path.join(OBJECTS)
    }

    pub(super) fn index(&self) -> PathBuf {
        self.path.join(INDEX)
    }
}

/// Removes a file or a folder, if it is there. A link is removed, never followed.
pub(super) fn remove(path: &Path) -> anyhow::Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} can't be removed", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_somebody_else_is_refused_and_left_as_it_is() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("thesis.txt"), "words").unwrap();
        let said = Folder::take(place.path()).unwrap_err().to_string();
        assert!(said.contains("no demo has made"), "{said}");
        let names: Vec<_> = std::fs::read_dir(place.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "nothing was added");
    }

    #[test]
    fn a_demo_s_folder_is_taken_again_and_only_what_a_demo_makes_is_removed() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("new/demo");
        drop(Folder::take(&path).unwrap());
        std::fs::create_dir_all(path.join("objects/1")).unwrap();
        std::fs::write(path.join("objects/1/original"), "bytes").unwrap();
        std::fs::write(path.join("notes.txt"), "words").unwrap();
        Folder::take(&path).unwrap().empty().unwrap();
        assert!(!path.join("objects").exists());
        assert!(path.join("notes.txt").exists());
    }

    #[test]
    fn two_demos_do_not_share_a_folder() {
        let place = tempfile::tempdir().unwrap();
        let first = Folder::take(place.path()).unwrap();
        let said = Folder::take(place.path()).unwrap_err().to_string();
        assert!(said.contains("another demo runs in"), "{said}");
        drop(first);
        Folder::take(place.path()).unwrap();
    }

    #[test]
    fn a_server_that_was_put_elsewhere_is_found_again() {
        let place = tempfile::tempdir().unwrap();
        let mut folder = Folder::take(place.path()).unwrap();
        folder.note_server(Some(Path::new("/tmp/elsewhere"))).unwrap();
        drop(folder);
        let mut folder = Folder::take(place.path()).unwrap();
        let places = folder.left_behind().unwrap();
        assert_eq!(places, [PathBuf::from("/tmp/elsewhere"), folder.server()]);
        folder.note_server(None).unwrap();
        assert_eq!(folder.left_behind().unwrap(), [folder.server()]);
    }

    #[test]
    fn a_link_is_removed_and_what_it_points_to_stays() {
        let place = tempfile::tempdir().unwrap();
        let (target, link) = (place.path().join("target"), place.path().join("link"));
        std::fs::create_dir(&target).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        remove(&link).unwrap();
        assert!(target.exists() && !link.exists());
        remove(&link).unwrap();
    }
}
