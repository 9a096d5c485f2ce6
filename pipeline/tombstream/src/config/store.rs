//! `[store.NAME]`: the systems that hold copies.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::document::{Place, Section};
use super::postgres_table::PostgresTableSection;
use super::relation::is_name;
use super::secret::SecretRef;
use super::source::Setting;
use super::value::{Leaf, Share, Wrong, word};
use super::webhook::WebhookSection;

/// A store, whatever its kind.
#[derive(Clone, Debug)]
pub(crate) struct StoreConfig {
    pub(crate) name: String,
    pub(crate) kind: StoreKind,
    /// Whether something fills it again: its copies may go before the claim, and a restore asks for them
    /// (`rehydrate`). True for search indexes, false for all else.
    pub(crate) is_recoverable: bool,
    /// How a verdict is checked after the store answered (S6). `read_back` for search indexes, object
    /// stores, tables and webhooks that can be asked; `trust` for those that can't; `sample` for S3, whose
    /// answers are read key by key and probed before.
    pub(crate) verify: Verify,
    /// With `sample`: one target in how many is looked up. 100: ten of a full batch.
    pub(crate) sample_one_in: NonZeroU32,
    /// Beyond this share of copies that were not there a wrong template is suspected, and the
    /// relation pauses (S6). 0.5: most rows have their copies; 1 switches it off.
    pub(crate) absent_share_max: f64,
    /// Most targets of one batch; the kind has a maximum of its own. 1,000: what S3 takes; 100 for a
    /// webhook.
    pub(crate) batch_max: NonZeroUsize,
    /// Batches in flight, for each worker. 4: S3 and Elasticsearch answer faster side by side.
    pub(crate) in_flight_max: NonZeroUsize,
    /// Longest time of one attempt of a batch. 10 s: a bulk of 1,000 takes a second or two.
    pub(crate) timeout: Duration,
    /// Longest time of a batch with all its attempts; what is not confirmed by then is owed.
    /// 30 s: three attempts, and half of the default lease.
    pub(crate) deadline: Duration,
    pub(crate) deadline_place: Place,
    /// How long nothing but failures may come back before the store is marked down and everything
    /// for it is owed at once (L3). 30 s: longer than a failover of most stores.
    pub(crate) unavailable_after: Duration,
    /// How often one batch probes a store that is down. 5 s: soon noticed, hardly felt.
    pub(crate) probe_wait: Duration,
    /// Whether finalized keys are looked up again (`[audit]`). True: a store of which nobody can say that what
    /// is gone stays gone is what the audit is for. False for a webhook without `look_url`.
    pub(crate) audit: bool,
}

/// What a store is, and what only that kind needs.
#[derive(Clone, Debug)]
pub(crate) enum StoreKind {
    S3(S3Section),
    ObjectStore(ObjectStoreSection),
    Elasticsearch(ElasticsearchSection),
    Tantivy(TantivySection),
    Webhook(WebhookSection),
    PostgresTable(PostgresTableSection),
}

/// What copies in a store are, and so which targets name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holds {
    Objects,
    Documents,
    Items,
    Rows,
}

/// Objects in S3 or a server that speaks its protocol.
#[derive(Clone, Debug)]
pub(crate) struct S3Section {
    /// None: AWS's own for the region.
    pub(crate) endpoint: Option<String>,
    /// `us-east-1`: what servers other than AWS expect.
    pub(crate) region: String,
    pub(crate) bucket: String,
    /// Both or none. None: the environment's usual chain (instance profile, web identity).
    pub(crate) credentials: Option<S3Credentials>,
    /// Whether the bucket is in the path. With an endpoint of its own yes, for AWS no.
    pub(crate) path_style: bool,
    /// What every key begins with; anything else is parked (S8). None: the whole bucket.
    pub(crate) prefix: Option<String>,
    /// Whether a HEAD before each delete tells a deleted key from one that was never there. True:
    /// S3 answers both alike, and only this notices a wrong template (S6).
    pub(crate) probe: bool,
    /// Most such requests in flight for one batch. 32: ten times a single one's rate.
    pub(crate) probes_max: NonZeroUsize,
    /// What is erased of a versioned bucket. All versions: "deleted" on a receipt must mean gone (S6),
    /// and who wants less has to say so.
    pub(crate) erase: Erase,
    /// What shows that a request arrived whole. Auto: what the server demands.
    pub(crate) checksum: Checksum,
    /// Whether a delete names the ETag that was looked at (S5). Auto: where it costs nothing more.
    pub(crate) conditional: Conditional,
    /// Most keys a second of one prefix. 3,500: what S3 takes.
    pub(crate) rate_per_prefix: NonZeroU32,
    /// How many segments of a key, after `prefix`, make another prefix. 0: the rate is the bucket's.
    pub(crate) rate_depth: usize,
    /// Longest wait for a connection. 5 s.
    pub(crate) connect_timeout: Duration,
}

#[derive(Clone, Debug)]
pub(crate) struct S3Credentials {
    pub(crate) access_key_id: SecretRef,
    pub(crate) secret_access_key: SecretRef,
    pub(crate) session_token: Option<SecretRef>,
}

/// Objects in a folder, in Google Cloud Storage or in Azure.
#[derive(Clone, Debug)]
pub(crate) struct ObjectStoreSection {
    /// `file:///folder`, `gs://bucket`, `az://container`. Addresses and receipts name it as it is.
    pub(crate) url: String,
    /// What every key begins with; anything else is parked (S8). None: the whole store.
    pub(crate) prefix: Option<String>,
    /// Most requests in flight for one batch; each key is one or two. 32: these stores answer in
    /// tens of milliseconds and throttle in the thousands.
    pub(crate) requests_max: NonZeroUsize,
    /// Longest wait for a connection. 5 s.
    pub(crate) connect_timeout: Duration,
    /// The store's own options, such as `google_service_account_key`.
    pub(crate) options: Vec<(String, Setting)>,
}

/// Documents in Elasticsearch.
#[derive(Clone, Debug)]
pub(crate) struct ElasticsearchSection {
    /// The nodes, asked in turn.
    pub(crate) url: Vec<String>,
    /// An index, or an alias.
    pub(crate) index: String,
    pub(crate) credentials: Option<ElasticsearchCredentials>,
    /// What makes a delete conditional (S5). `seq_no`: right for every indexer; `lsn` only where
    /// the indexer writes LSNs as external versions.
    pub(crate) version: Version,
    /// PEM of the authority that signed the nodes' certificates. None: those the system knows.
    pub(crate) ca_file: Option<PathBuf>,
}

/// Documents in an index of the crate `tantivy`: a folder, and no server.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "embedded"), expect(dead_code, reason = "read, and refused"))]
pub(crate) struct TantivySection {
    /// The index's folder, absolute. Addresses and receipts name it as it is.
    pub(crate) path: String,
    /// The field that holds a document's id. `id`: what most call it.
    pub(crate) id_field: String,
    /// Whether segments with deleted documents are rewritten before a verdict. True: else what is
    /// deleted is found no more, and stays on the disk.
    pub(crate) purge: bool,
    /// Rest between two rewrites. 1 s: whoever feeds the index gets a turn, and the next rewrite
    /// serves all that was deleted meanwhile.
    pub(crate) purge_wait: Duration,
}

#[derive(Clone, Debug)]
pub(crate) enum ElasticsearchCredentials {
    Basic { username: String, password: SecretRef },
    ApiKey(SecretRef),
    Bearer(SecretRef),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verify {
    /// Every target is looked up afterwards.
    ReadBack,
    /// Some of every batch are.
    Sample,
    /// The store's answer is taken at its word.
    Trust,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    SeqNo,
    Lsn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Erase {
    /// Every version, every delete marker, every unfinished upload.
    AllVersions,
    /// What a read finds; the receipt says what remains.
    Current,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checksum {
    Auto,
    Crc32,
    Md5,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conditional {
    Auto,
    Never,
    Required,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    S3,
    ObjectStore,
    Elasticsearch,
    Tantivy,
    Webhook,
    PostgresTable,
}

impl StoreKind {
    /// The word of the file.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::S3(_) => "s3",
            Self::ObjectStore(_) => "object_store",
            Self::Elasticsearch(_) => "elasticsearch",
            Self::Tantivy(_) => "tantivy",
            Self::Webhook(_) => "webhook",
            Self::PostgresTable(_) => "postgres_table",
        }
    }

    /// What its copies are.
    pub(crate) fn holds(&self) -> Holds {
        match self {
            Self::S3(_) | Self::ObjectStore(_) => Holds::Objects,
            Self::Elasticsearch(_) | Self::Tantivy(_) => Holds::Documents,
            Self::Webhook(_) => Holds::Items,
            Self::PostgresTable(_) => Holds::Rows,
        }
    }

    /// Whether it tells the copy of a newer life of a key from the one that was claimed (S5).
    pub(crate) fn tells_lives_apart(&self) -> bool {
        match self {
            Self::S3(_)
            | Self::ObjectStore(_)
            | Self::Tantivy(_)
            | Self::Webhook(_)
            | Self::PostgresTable(_) => false,
            Self::Elasticsearch(_) => true,
        }
    }

    /// Whether anything can be looked up there.
    pub(crate) fn can_look(&self) -> bool {
        match self {
            Self::S3(_)
            | Self::ObjectStore(_)
            | Self::Elasticsearch(_)
            | Self::Tantivy(_)
            | Self::PostgresTable(_) => true,
            Self::Webhook(webhook) => webhook.look_url.is_some(),
        }
    }

    /// Whether all that is in it can be listed.
    pub(crate) fn can_list(&self) -> bool {
        match self {
            Self::S3(_)
            | Self::ObjectStore(_)
            | Self::Elasticsearch(_)
            | Self::Tantivy(_)
            | Self::PostgresTable(_) => true,
            Self::Webhook(_) => false,
        }
    }

    /// Whether documents may be routed.
    pub(crate) fn has_routing(&self) -> bool {
        match self {
            Self::S3(_)
            | Self::ObjectStore(_)
            | Self::Tantivy(_)
            | Self::Webhook(_)
            | Self::PostgresTable(_) => false,
            Self::Elasticsearch(_) => true,
        }
    }
}

impl StoreConfig {
    pub(super) fn read(name: &str, section: &mut Section<'_, '_>) -> Option<Self> {
        if !is_name(name) {
            section.problem(
                section.here(),
                format!("{name:?} is no name of a store"),
                "use lower-case letters, digits, - and _, beginning with a letter",
            );
        }
        let fix = "write kind = \"s3\", \"object_store\", \"elasticsearch\", \"tantivy\", \"webhook\" or \
                   \"postgres_table\"";
        let kind_place = section.place("kind");
        let kind: Option<Kind> = section.need("kind", fix);
        let count = |number| NonZeroUsize::new(number).expect("not zero");
        let verify_place = section.place("verify");
        let verify: Option<Verify> = section.get("verify");
        let recoverable: Option<bool> = section.get("recoverable");
        let Share(absent_share_max) = section.or("absent_share_max", Share(0.5));
        // A service that deletes its things one by one answers a hundred within a second.
        let usual_batch = if kind == Some(Kind::Webhook) { 100 } else { 1_000 };
        let batch_max = section.or("batch_max", count(usual_batch));
        let in_flight_max = section.or("in_flight_max", count(4));
        let sample_one_in = section.or("sample_one_in", NonZeroU32::new(100).expect("not zero"));
        let timeout_place = section.place("timeout");
        let timeout = section.or("timeout", Duration::from_secs(10));
        let deadline_place = section.place("deadline");
        let deadline = section.or("deadline", Duration::from_secs(30));
        let unavailable_after = section.or("unavailable_after", Duration::from_secs(30));
        let probe_wait = section.or("probe_wait", Duration::from_secs(5));
        let audit_place = section.place("audit");
        let audit: Option<bool> = section.get("audit");
        if timeout > deadline {
            section.problem(
                timeout_place,
                format!(
                    "one attempt ({}) may take longer than all of them ({})",
                    humantime::format_duration(timeout),
                    humantime::format_duration(deadline)
                ),
                "make timeout shorter than deadline",
            );
        }
        let (kind, usual) = match kind {
            Some(Kind::S3) => (S3Section::read(section).map(StoreKind::S3), Verify::Sample),
            Some(Kind::ObjectStore) => {
                let read = ObjectStoreSection::read(section);
                (read.map(StoreKind::ObjectStore), Verify::ReadBack)
            }
            Some(Kind::Elasticsearch) => {
                let read = ElasticsearchSection::read(section);
                (read.map(StoreKind::Elasticsearch), Verify::ReadBack)
            }
            Some(Kind::Tantivy) => {
                if cfg!(not(feature = "embedded")) {
                    section.problem(
                        kind_place,
                        "\"tantivy\" is not in this build of tombstream",
                        "build it with --features embedded (which is a default), or use another kind",
                    );
                }
                (TantivySection::read(section).map(StoreKind::Tantivy), Verify::ReadBack)
            }
            Some(Kind::Webhook) => {
                let read = WebhookSection::read(section);
                let usual = read.as_ref().map_or(Verify::Trust, WebhookSection::usual);
                if let Some(webhook) = &read {
                    webhook.vet(verify, verify_place, section);
                }
                (read.map(StoreKind::Webhook), usual)
            }
            Some(Kind::PostgresTable) => {
                let read = PostgresTableSection::read(section);
                (read.map(StoreKind::PostgresTable), Verify::ReadBack)
            }
            None => {
                // Which keys are known depends on the kind: none of them is called unknown.
                section.rest::<Anything>();
                return None;
            }
        };
        let kind = kind?;
        if audit == Some(true) && !kind.can_look() {
            section.problem(
                audit_place,
                "there is no look_url, so nothing could be looked up again",
                "write look_url, or leave audit out",
            );
        }
        Some(Self {
            name: name.to_owned(),
            audit: audit.unwrap_or(kind.can_look()),
            is_recoverable: recoverable.unwrap_or(kind.holds() == Holds::Documents),
            kind,
            verify: verify.unwrap_or(usual),
            sample_one_in,
            absent_share_max,
            batch_max,
            in_flight_max,
            timeout,
            deadline,
            deadline_place,
            unavailable_after,
            probe_wait,
        })
    }
}

impl S3Section {
    fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let endpoint = read_url(section, "endpoint");
        let region = section.or("region", "us-east-1".to_owned());
        let bucket = section.need("bucket", "name the bucket: bucket = \"documents\"");
        let lone = section.has("access_key_id") != section.has("secret_access_key");
        if lone {
            section.problem(
                section.here(),
                "has one half of its credentials",
                "write access_key_id and secret_access_key, or neither for the usual chain of \
                 the environment",
            );
        }
        let access_key_id = section.secret("access_key_id");
        let secret_access_key = section.secret("secret_access_key");
        let session_token = section.secret("session_token");
        let path_style = section.or("path_style", endpoint.is_some());
        let prefix = read_prefix(section);
        let probe = section.or("probe", true);
        let probes_max = section.or("probes_max", NonZeroUsize::new(32).expect("not zero"));
        let erase = section.or("erase", Erase::AllVersions);
        let checksum = section.or("checksum", Checksum::Auto);
        let conditional_place = section.place("conditional");
        let conditional = section.or("conditional", Conditional::Auto);
        let rate = NonZeroU32::new(3_500).expect("not zero");
        let rate_per_prefix = section.or("rate_per_prefix", rate);
        let rate_depth = section.or("rate_depth", 0);
        if conditional == Conditional::Required && !probe {
            section.problem(
                conditional_place,
                "needs the ETag of each object, and probe = false does not look",
                "leave out probe, or write conditional = \"never\"",
            );
        }
        let connect_timeout = section.or("connect_timeout", Duration::from_secs(5));
        let credentials = access_key_id.zip(secret_access_key).map(|(id, secret)| S3Credentials {
            access_key_id: id,
            secret_access_key: secret,
            session_token,
        });
        Some(Self {
            endpoint,
            region,
            bucket: bucket?,
            credentials,
            path_style,
            prefix,
            probe,
            probes_max,
            erase,
            checksum,
            conditional,
            rate_per_prefix,
            rate_depth,
            connect_timeout,
        })
    }
}

impl ObjectStoreSection {
    fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let fix = "write url = \"file:///folder\", \"gs://bucket\" or \"az://container\"";
        let read = section.need_at::<String>("url", fix);
        let prefix = read_prefix(section);
        let requests_max = section.or("requests_max", NonZeroUsize::new(32).expect("not zero"));
        let connect_timeout = section.or("connect_timeout", Duration::from_secs(5));
        let options = section.table("options", |options| {
            let mut read = Vec::new();
            for (name, place, setting) in options.rest::<Setting>() {
                if let Setting::Secret(secret) = &setting {
                    options.note_secret(place, secret.clone());
                }
                read.push((name, setting));
            }
            read
        });
        let (place, url) = read?;
        // A path behind the bucket would name another place than the one that is opened.
        let right = match url.split_once("://") {
            Some(("file", path)) => path.starts_with('/') && path.len() > 1,
            Some(("gs" | "az" | "azure" | "abfs" | "abfss", bucket)) => {
                !bucket.is_empty() && !bucket.trim_end_matches('/').contains(['/', '?', '#'])
            }
            _ => false,
        };
        if !right {
            let fix = format!("{fix}; a folder in a bucket is `prefix`, and S3 is kind = \"s3\"");
            section.problem(place, format!("{url:?} is no url of an object store"), fix);
            return None;
        }
        let options = options.unwrap_or_default();
        Some(Self { url, prefix, requests_max, connect_timeout, options })
    }
}

impl ElasticsearchSection {
    fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let url = read_urls(section);
        let place = section.place("index");
        let index: Option<String> =
            section.need("index", "name the index or alias: index = \"documents\"");
        if let Some(index) = index.as_ref().filter(|index| index.contains(['*', ',', '?', ' '])) {
            section.problem(
                place,
                format!("{index:?} may mean several indices"),
                "name one index or alias; wildcards are never sent",
            );
        }
        let username: Option<String> = section.get("username");
        let has_password = section.has("password");
        let password = section.secret("password");
        let api_key = section.secret("api_key");
        let bearer_token = section.secret("bearer_token");
        if username.is_some() != has_password {
            section.problem(
                section.here(),
                "has one half of its credentials",
                "write username and password, or an api_key, or a bearer_token, or none of them",
            );
        }
        let basic = username
            .zip(password)
            .map(|(username, password)| ElasticsearchCredentials::Basic { username, password });
        let mut credentials = [
            basic,
            api_key.map(ElasticsearchCredentials::ApiKey),
            bearer_token.map(ElasticsearchCredentials::Bearer),
        ]
        .into_iter()
        .flatten();
        let first = credentials.next();
        if credentials.next().is_some() {
            section.problem(
                section.here(),
                "has several kinds of credentials",
                "keep one: username and password, api_key, or bearer_token",
            );
        }
        let ca_file = section.get::<String>("ca_file").map(PathBuf::from);
        let credentials = first;
        let version = section.or("version", Version::SeqNo);
        Some(Self { url: url?, index: index?, credentials, version, ca_file })
    }
}

impl TantivySection {
    fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let fix = "name the index's folder: path = \"/srv/index\"";
        let path = section.need_at::<String>("path", fix);
        let id_field = section.or("id_field", "id".to_owned());
        let purge = section.or("purge", true);
        let purge_wait = section.or("purge_wait", Duration::from_secs(1));
        let (place, path) = path?;
        // A relative one is another folder for each process.
        if !path.starts_with('/') {
            let fix = format!("{fix}, from the root on");
            section.problem(place, format!("{path:?} is no absolute path"), fix);
            return None;
        }
        Some(Self { path, id_field, purge, purge_wait })
    }
}

/// A prefix that ends in the delimiter.
fn read_prefix(section: &mut Section<'_, '_>) -> Option<String> {
    let (place, prefix) = section.get_at::<String>("prefix")?;
    if !prefix.ends_with('/') {
        section.problem(
            place,
            format!("{prefix:?} does not end in /, so it also holds {prefix}0 and the like"),
            format!("write \"{prefix}/\""),
        );
    }
    Some(prefix)
}

/// An http url.
fn read_url(section: &mut Section<'_, '_>, key: &'static str) -> Option<String> {
    section.get::<HttpUrl>(key).map(|url| url.0)
}

/// One http url or an array of them.
fn read_urls(section: &mut Section<'_, '_>) -> Option<Vec<String>> {
    let urls: Option<Vec<HttpUrl>> = section.need("url", "write url = \"http://127.0.0.1:9200\"");
    urls.map(|urls| urls.into_iter().map(|url| url.0).collect())
}

struct HttpUrl(String);

impl Leaf for HttpUrl {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let url = String::read(value)?;
        let after = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        let authority = after.and_then(|rest| rest.split('/').next()).unwrap_or_default();
        if authority.contains('@') {
            return Err(Wrong::new(
                "a secret must not be written here",
                "leave user and password out of the url; they have keys of their own",
            ));
        }
        if authority.is_empty() {
            return Err(Wrong::new(
                format!("{url:?} is no http url"),
                "write \"http://host:port\" or \"https://host\"",
            ));
        }
        Ok(Self(url))
    }
}

impl Leaf for Vec<HttpUrl> {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        match value {
            DeValue::Array(items) if !items.is_empty() => {
                items.iter().map(|item| HttpUrl::read(item.get_ref())).collect()
            }
            one => HttpUrl::read(one).map(|url| vec![url]),
        }
    }
}

/// A value that nobody looks at.
pub(super) struct Anything;

impl Leaf for Anything {
    fn read(_: &DeValue<'_>) -> Result<Self, Wrong> {
        Ok(Self)
    }
}

impl Leaf for Kind {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let words = [
            ("s3", Self::S3),
            ("object_store", Self::ObjectStore),
            ("elasticsearch", Self::Elasticsearch),
            ("tantivy", Self::Tantivy),
            ("webhook", Self::Webhook),
            ("postgres_table", Self::PostgresTable),
        ];
        word(value, &words)
    }
}

impl Leaf for Verify {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let words =
            [("read_back", Self::ReadBack), ("sample", Self::Sample), ("trust", Self::Trust)];
        word(value, &words)
    }
}

impl Leaf for Version {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        word(value, &[("seq_no", Self::SeqNo), ("lsn", Self::Lsn)])
    }
}

impl Leaf for Erase {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        word(value, &[("all_versions", Self::AllVersions), ("current", Self::Current)])
    }
}

impl Leaf for Checksum {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        word(value, &[("auto", Self::Auto), ("crc32", Self::Crc32), ("md5", Self::Md5)])
    }
}

impl Leaf for Conditional {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let words = [("auto", Self::Auto), ("never", Self::Never), ("required", Self::Required)];
        word(value, &words)
    }
}
