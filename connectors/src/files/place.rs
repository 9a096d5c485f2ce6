//! Where the files are: a folder or a bucket, opened, listed and read block by block.

use std::fmt;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::object_store::path::Path;
use ::object_store::{
    ClientOptions, Error, GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt as _,
};
use bytes::Bytes;
use futures::StreamExt as _;

use super::config::{FilesConfig, FilesConfigError};
use super::unpack::Packing;
use crate::bucket::Kind;

/// Longest wait for a connection.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// Longest wait for a block, or for a page of a listing. A block takes a second where a megabyte does.
const REQUEST_WAIT: Duration = Duration::from_secs(30);

/// A folder, a bucket or a part of it.
#[derive(Clone)]
pub(super) struct Place {
    store: Arc<dyn ObjectStore>,
    /// What stands before the location in a file's name. It ends in a slash.
    base: String,
    /// What is listed, under the base. None: all of it.
    under: Option<Path>,
    /// The one file that is meant.
    only: Option<Path>,
    /// The local folder. The crate lists one that is gone as empty.
    folder: Option<PathBuf>,
    /// Which files are meant, by their names.
    packing: PackingOf,
}

/// The packing of a file of this name; none: it is none of ours.
pub(super) type PackingOf = fn(&str) -> Option<Packing>;

/// A file as it was listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its whole address. It never holds credentials.
    pub(super) name: Arc<str>,
    pub(super) location: Path,
    pub(super) packing: Packing,
    /// In bytes, as it is stored.
    pub(super) size: u64,
    /// Which version of it this is: another one has another.
    pub(super) version: String,
}

/// Bytes of a file.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) bytes: Bytes,
    /// Which version of the file they are of.
    pub(super) version: String,
}

/// Why a place did not give what was asked of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// The file was there, and is no more.
    #[error("{0} is gone")]
    Gone(String),
    /// It comes back by itself, or somebody lets us in.
    #[error("{what}")]
    Unavailable {
        what: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Fault {
    fn new(what: String, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Unavailable { what, source: Box::new(source) }
    }
}

/// Which version of an object this is. Where a store gives no tag of its own: its size and time.
fn version(meta: &ObjectMeta) -> String {
    match &meta.e_tag {
        Some(tag) => tag.clone(),
        None => format!("{}-{}", meta.size, meta.last_modified.timestamp_micros()),
    }
}

impl Place {
    /// Opens the store, for files of JSON Lines. Sends nothing.
    pub(super) fn open(config: &FilesConfig) -> Result<Self, FilesConfigError> {
        Self::open_of(config, Packing::of)
    }

    /// Opens the store, for files that `packing` knows. Sends nothing.
    pub(super) fn open_of(
        config: &FilesConfig,
        packing: PackingOf,
    ) -> Result<Self, FilesConfigError> {
        let wrong = || FilesConfigError::Path(config.path.clone());
        let Address { kind, bucket, path } = Address::read(&config.path).ok_or_else(wrong)?;
        let client =
            ClientOptions::new().with_connect_timeout(CONNECT_WAIT).with_timeout(REQUEST_WAIT);
        if kind == Kind::Folder {
            let (folder, only) = local(&config.path, path, packing)?;
            let base = format!("file://{}", folder.display());
            let store = kind.open(&base, &config.options, client)?;
            let base = format!("{base}/");
            return Ok(Self { store, base, under: None, only, folder: Some(folder), packing });
        }
        let store = kind.open(bucket, &config.options, client)?;
        let within = Self::within(store, bucket, path).ok_or_else(wrong)?;
        Ok(Self { packing, ..within })
    }

    /// A part of a bucket that is open. None: the path is none that the crate carries as it is.
    pub(super) fn within(store: Arc<dyn ObjectStore>, url: &str, path: &str) -> Option<Self> {
        let under = prefix(path)?;
        let (base, packing) = (format!("{url}/"), Packing::of as PackingOf);
        Some(Self { store, base, under, only: None, folder: None, packing })
    }

    /// What the names of all files here begin with.
    pub(super) fn shown(&self) -> String {
        let path = self.only.as_ref().or(self.under.as_ref());
        format!("{}{}", self.base, path.map_or("", AsRef::as_ref))
    }

    /// Whether a file of this name would be listed here.
    pub(super) fn holds(&self, name: &str) -> bool {
        let shown = self.shown();
        name.strip_prefix(&shown)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || shown.ends_with('/'))
    }

    fn entry(&self, meta: ObjectMeta) -> Option<Entry> {
        let location = meta.location.as_ref();
        let packing = (self.packing)(location.rsplit('/').next().unwrap_or_default())?;
        let name = format!("{}{location}", self.base).into();
        let version = version(&meta);
        Some(Entry { name, packing, size: meta.size, version, location: meta.location })
    }

    /// All files, in the order of their names.
    pub(super) async fn list(&self) -> Result<Vec<Entry>, Fault> {
        let failed = |error: Error| Fault::new(format!("{} can't be listed", self.shown()), error);
        if let Some(folder) = &self.folder {
            let there = self.within_time(tokio::fs::metadata(folder)).await?;
            let is_folder = there.map_err(|error| {
                let what = format!("the folder {} can't be read", folder.display());
                Fault::new(what, error)
            })?;
            if !is_folder.is_dir() {
                let what = format!("{} is no folder any more", folder.display());
                return Err(Fault::new(what, std::io::Error::from(ErrorKind::NotADirectory)));
            }
        }
        // An object whose whole name was given is no prefix of itself.
        let named = self.under.as_ref().filter(|path| (self.packing)(path.as_ref()).is_some());
        if let Some(one) = self.only.as_ref().or(named) {
            match self.within_time(self.store.head(one)).await? {
                Ok(meta) => return Ok(self.entry(meta).into_iter().collect()),
                Err(Error::NotFound { .. }) if self.only.is_none() => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let mut listed = self.store.list(self.under.as_ref());
        let mut entries = Vec::new();
        while let Some(meta) = self.within_time(listed.next()).await? {
            entries.extend(self.entry(meta.map_err(failed)?));
        }
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(entries)
    }

    /// The bytes of `range`, which is not empty.
    pub(super) async fn read(&self, entry: &Entry, range: Range<u64>) -> Result<Block, Fault> {
        let what = || format!("{} can't be read", entry.name);
        let length = range.end - range.start;
        let options = GetOptions { range: Some(range.into()), ..GetOptions::default() };
        let asked = async {
            let result = self.store.get_opts(&entry.location, options).await?;
            let version = version(&result.meta);
            Ok::<_, Error>(Block { bytes: result.bytes().await?, version })
        };
        match self.within_time(asked).await? {
            Ok(block) if block.bytes.len() as u64 == length => Ok(block),
            Ok(_) => Err(Fault::new(what(), std::io::Error::from(ErrorKind::UnexpectedEof))),
            Err(Error::NotFound { .. }) => Err(Fault::Gone(entry.name.to_string())),
            Err(error) => Err(Fault::new(what(), error)),
        }
    }

    /// Writes a file below the place, whole. It is durable when this returns: a bucket's answer says so, and a folder is
    /// told to be.
    #[cfg(feature = "parquet")]
    pub(super) async fn write(&self, name: &str, bytes: Bytes) -> Result<(), Fault> {
        let what = || format!("{}{name} can't be written", self.base);
        let whole = match &self.under {
            Some(under) => format!("{under}/{name}"),
            None => name.to_owned(),
        };
        let path = Path::parse(&whole).map_err(|error| Fault::new(what(), error))?;
        let put = self.within_time(self.store.put(&path, bytes.into())).await?;
        put.map_err(|error| Fault::new(what(), error))?;
        let Some(folder) = self.folder.clone() else { return Ok(()) };
        let file = folder.join(path.as_ref());
        let kept = tokio::task::spawn_blocking(move || {
            std::fs::File::open(&file)?.sync_all()?;
            // The names are durable with their folders.
            let within = file.ancestors().skip(1).take_while(|it| it.starts_with(&folder));
            within.map(std::fs::File::open).try_for_each(|opened| opened?.sync_all())
        });
        let kept = kept.await.map_err(|error| Fault::new(what(), error))?;
        kept.map_err(|error| Fault::new(what(), error))
    }

    async fn within_time<T>(&self, asked: impl Future<Output = T>) -> Result<T, Fault> {
        tokio::time::timeout(REQUEST_WAIT, asked).await.map_err(|elapsed| {
            Fault::new(format!("{} does not answer within {REQUEST_WAIT:?}", self.shown()), elapsed)
        })
    }
}

/// A path taken apart.
pub(super) struct Address<'a> {
    pub(super) kind: Kind,
    /// The bucket's url. Empty for a folder.
    bucket: &'a str,
    /// What is behind the bucket; a folder's whole path.
    path: &'a str,
}

impl<'a> Address<'a> {
    /// None: it is no path of files, whatever stands there.
    pub(super) fn read(whole: &'a str) -> Option<Self> {
        let (scheme, rest) = whole.split_once("://")?;
        let kind = Kind::of(scheme)?;
        if kind == Kind::Folder {
            let is_absolute = rest.starts_with('/') && rest.len() > 1;
            return is_absolute.then_some(Self { kind, bucket: "", path: rest });
        }
        let bucket = rest.split('/').next().unwrap_or_default();
        if bucket.is_empty() || rest.contains(['?', '#']) {
            return None;
        }
        let (bucket, path) = whole.split_at(scheme.len() + "://".len() + bucket.len());
        let path = path.strip_prefix('/').unwrap_or(path);
        prefix(path)?;
        Some(Self { kind, bucket, path })
    }
}

/// A prefix as the crate has it: the outer none is one that it would not carry as it is.
fn prefix(path: &str) -> Option<Option<Path>> {
    match path.strip_suffix('/').unwrap_or(path) {
        "" => Some(None),
        path => Path::parse(path).ok().filter(|parsed| parsed.as_ref() == path).map(Some),
    }
}

/// The folder of a local path, and the file in it, if it is one.
fn local(
    path: &str,
    rest: &str,
    packing: PackingOf,
) -> Result<(PathBuf, Option<Path>), FilesConfigError> {
    let whole = PathBuf::from(rest.trim_end_matches('/'));
    let there = std::fs::metadata(&whole)
        .map_err(|source| FilesConfigError::Missing { path: path.to_owned(), source })?;
    if there.is_dir() {
        return Ok((whole, None));
    }
    let name = whole.file_name().and_then(|name| name.to_str());
    let only = name.filter(|name| packing(name).is_some());
    match (whole.parent(), only.and_then(|name| Path::parse(name).ok())) {
        (Some(folder), Some(only)) => Ok((folder.to_owned(), Some(only))),
        _ => Err(FilesConfigError::Name(path.to_owned())),
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("shown", &self.shown()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use ::object_store::PutPayload;
    use ::object_store::memory::InMemory;

    use super::*;

    fn open(path: &str, options: &[(&str, &str)]) -> Result<Place, FilesConfigError> {
        let mut config = FilesConfig::new(path);
        config.options = options.iter().copied().collect();
        Place::open(&config)
    }

    #[test]
    fn each_kind_of_store_opens_without_a_request() {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path().display();
        assert_eq!(
            open(&format!("file://{here}/"), &[]).unwrap().shown(),
            format!("file://{here}/")
        );
        std::fs::write(folder.path().join("a.jsonl.gz"), "").unwrap();
        let file = format!("file://{here}/a.jsonl.gz");
        assert_eq!(open(&file, &[]).unwrap().shown(), file);
        let s3 = [("aws_region", "eu-central-1"), ("aws_endpoint", "http://127.0.0.1:1")];
        assert_eq!(open("s3://bucket/a/b/", &s3).unwrap().shown(), "s3://bucket/a/b");
        assert_eq!(open("s3://bucket", &s3).unwrap().shown(), "s3://bucket/");
        open("gs://bucket/a", &[("google_skip_signature", "true")]).unwrap();
        let account = [("azure_storage_account_name", "a"), ("azure_storage_account_key", "a2V5")];
        open("az://container/a", &account).unwrap();
        let azure = open("abfss://container@a.dfs.core.windows.net/a", &account[1..]).unwrap();
        assert_eq!(azure.shown(), "abfss://container@a.dfs.core.windows.net/a");
    }

    #[test]
    fn what_is_no_place_is_refused() {
        for path in [
            "",
            "/srv/archive",
            "file://",
            "file:///",
            "file://relative",
            "s3://",
            "s3:///a",
            "s3://bucket/a//b",
            "s3://bucket/a?b",
            "memory:///",
            "https://host/path",
        ] {
            let error = open(path, &[]).unwrap_err();
            assert!(matches!(error, FilesConfigError::Path(_)), "{path}: {error}");
        }
        let error = open("file:///no/such/folder", &[]).unwrap_err();
        assert!(matches!(error, FilesConfigError::Missing { .. }), "{error}");
        let file = tempfile::NamedTempFile::with_suffix(".csv").unwrap();
        let error = open(&format!("file://{}", file.path().display()), &[]).unwrap_err();
        assert!(matches!(error, FilesConfigError::Name(_)), "{error}");
        let error = open("s3://bucket", &[("unheard_of", "x")]).unwrap_err();
        assert!(matches!(error, FilesConfigError::Option(_)), "{error}");
    }

    fn names(entries: &[Entry]) -> Vec<&str> {
        entries.iter().map(|entry| &*entry.name).collect()
    }

    #[tokio::test]
    async fn files_come_in_the_order_of_their_names_and_others_do_not_come() {
        let store = Arc::new(InMemory::new());
        for name in
            ["b/2.jsonl", "b/1.ndjson.gz", "b/10.json.zst", "b/x.csv", "b2/a.jsonl", "a.jsonl"]
        {
            store.put(&name.into(), PutPayload::from_static(b"{}\n")).await.unwrap();
        }
        let place = |path| Place::within(Arc::clone(&store) as _, "memory://m", path).unwrap();
        let all = place("").list().await.unwrap();
        let expected = ["a.jsonl", "b/1.ndjson.gz", "b/10.json.zst", "b/2.jsonl", "b2/a.jsonl"];
        assert_eq!(names(&all), expected.map(|name| format!("memory://m/{name}")));
        let some = place("b").list().await.unwrap();
        assert_eq!(names(&some), names(&all[1..4]));
        assert_eq!(place("b/2.jsonl").list().await.unwrap(), all[3..4]);
        assert_eq!(place("none").list().await.unwrap(), []);
    }

    #[tokio::test]
    async fn odd_names_are_read_as_they_are_listed() {
        let folder = tempfile::tempdir().unwrap();
        let mut odd =
            ["a b.jsonl", "50%.jsonl", "a%20b.jsonl", "é#x.jsonl", "a+b&c.json", "~.jsonl"];
        odd.sort_unstable();
        std::fs::create_dir(folder.path().join("sub dir")).unwrap();
        for name in odd {
            std::fs::write(folder.path().join(name), name).unwrap();
            std::fs::write(folder.path().join("sub dir").join(name), name).unwrap();
        }
        let place = open(&format!("file://{}", folder.path().display()), &[]).unwrap();
        let entries = place.list().await.unwrap();
        assert_eq!(entries.len(), 12, "{entries:?}");
        for entry in entries {
            let block = place.read(&entry, 0..entry.size).await.unwrap();
            assert!(entry.name.ends_with(std::str::from_utf8(&block.bytes).unwrap()), "{entry:?}");
            assert_eq!(block.version, entry.version);
            // And when it is meant alone.
            let alone = open(&entry.name, &[]).unwrap();
            let [one] = &alone.list().await.unwrap()[..] else { panic!("{entry:?}") };
            assert_eq!((&one.name, &one.version), (&entry.name, &entry.version));
            assert_eq!(alone.read(one, 0..one.size).await.unwrap().bytes, block.bytes);
        }
    }

    #[tokio::test]
    async fn a_folder_that_is_gone_is_not_empty() {
        let folder = tempfile::tempdir().unwrap();
        let place = open(&format!("file://{}", folder.path().display()), &[]).unwrap();
        assert_eq!(place.list().await.unwrap(), []);
        drop(folder);
        assert!(matches!(place.list().await.unwrap_err(), Fault::Unavailable { .. }));
    }
}
