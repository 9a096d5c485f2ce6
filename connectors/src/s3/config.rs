//! What the S3 sink has to be told.

use std::collections::BTreeSet;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use serde::Deserialize;

use crate::Secret;

/// A store of kind `s3`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Config {
    /// Where the server is, such as `"http://127.0.0.1:9000"`; without it, AWS itself.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The region that requests are signed for. Default `us-east-1`: what servers other than AWS
    /// expect unless they were told otherwise.
    #[serde(default = "default_region")]
    pub region: String,
    /// The bucket that holds the copies.
    pub bucket: String,
    /// Further buckets that addresses may name. An address in any other bucket is refused (S8).
    #[serde(default)]
    pub buckets: Vec<String>,
    /// What every key must begin with. Default empty: the whole bucket is Tombstream's to judge.
    #[serde(default)]
    pub prefix: String,
    /// `http://host/bucket/key` instead of `http://bucket.host/key`. Default: true where an endpoint
    /// is given (few of those servers have a wildcard name), false for AWS.
    #[serde(default)]
    pub path_style: Option<bool>,
    /// Most keys in one request. Default 1,000: the most that S3 takes.
    #[serde(default)]
    pub keys_max: KeysMax,
    /// How a deleted key is told from one that was never there. Default `head`.
    #[serde(default)]
    pub probe: Probe,
    /// What is erased of a versioned bucket. Default `all_versions`.
    #[serde(default)]
    pub erase: Erase,
    /// What proves to the server that a request arrived whole. Default `auto`.
    #[serde(default)]
    pub checksum: Checksum,
    /// Whether a delete names the `ETag` that was looked at. Default `auto`.
    #[serde(default)]
    pub conditional: Conditional,
    /// Most keys a second of one prefix, versions counted. Default 3,500: what S3 takes.
    #[serde(default = "default_rate")]
    pub rate_per_prefix: NonZeroU32,
    /// How many segments of a key, after `prefix`, make it another prefix. Default 0: the rate is the
    /// bucket's, since S3 divides a bucket only once it is busy, and does not say where.
    #[serde(default)]
    pub rate_depth: usize,
    /// Most requests in flight for one batch while it is probed or looked up. Default 32: a store
    /// that takes 20 ms to answer probes a thousand keys in 0.6 s. On loopback 4 to 128 are alike.
    #[serde(default = "default_in_flight")]
    pub in_flight_max: NonZeroUsize,
    /// Longest wait for a connection. Default `"5s"`.
    #[serde(default = "default_connect", with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Longest wait for a whole answer. Default `"30s"`: half of the default lease, and far more
    /// than a thousand keys take on a slow disk. A destroy never waits beyond its lease.
    #[serde(default = "default_request", with = "humantime_serde")]
    pub request_timeout: Duration,
    /// The credentials, resolved by whoever reads the configuration. Without them the usual chain:
    /// environment, profile, web identity, container, instance.
    #[serde(skip)]
    pub credentials: Option<S3Credentials>,
}

/// What is erased of a versioned bucket. Of an unversioned one it is the object in both cases.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Erase {
    /// Every version, every delete marker and every unfinished upload of a key, listed again until
    /// nothing is left; unfinished uploads in unversioned buckets, too. The default: "deleted" on a
    /// receipt must mean gone (S6), and who wants less has to say so.
    #[default]
    AllVersions,
    /// The version that a read finds. Older ones stay behind a delete marker, and the receipt says
    /// how many.
    Current,
}

/// What proves to the server that the body of a `DeleteObjects` arrived whole; it demands one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Checksum {
    /// `Content-MD5`, which every server knows, until one refuses it; from then on CRC32.
    #[default]
    Auto,
    /// `x-amz-checksum-crc32`.
    Crc32,
    /// `Content-MD5`.
    Md5,
}

/// Whether the delete of an object without versions names the `ETag` that the probe saw, so that
/// bytes written in between stay (S5). An `ETag` is no version: the same bytes have the same one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Conditional {
    /// Where the server enforces it in a `DeleteObjects`, which costs nothing more. Learned from the first
    /// object that is to go anyway.
    #[default]
    Auto,
    /// Nowhere.
    Never,
    /// Everywhere: object by object where the server enforces it only there, and an error where it does
    /// not enforce it at all. Learned from an object that is written for it.
    Required,
}

/// How a deleted key is told from one that was never there: S3 answers both alike.
///
/// Listing instead gains nothing: keys of one batch share no prefix, so it is a request for each key
/// as well. A thousand took 0.8 to 1.6 s on a busy loopback gateway, a thousand HEADs 0.6 to 1.2 s
/// (the delete itself about 1 s), and AWS charges more for a listing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Probe {
    /// A HEAD for each key before its delete. The default, since a wrong template makes every copy
    /// absent, and only this notices (S6). It needs `s3:GetObject` and `s3:ListBucket`.
    #[default]
    Head,
    /// No look: every key that the store confirms counts as deleted, and the outcome says that it was not
    /// probed. Saves a request for each key where `absent_share_max` is switched off anyway.
    None,
}

/// Most keys in one request: 1 to 1,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "usize")]
pub struct KeysMax(usize);

/// A pair of keys, and the token of temporary ones.
#[derive(Debug, Clone)]
pub struct S3Credentials {
    /// Who asks.
    pub access_key_id: Secret,
    /// What signs.
    pub secret_access_key: Secret,
    /// Comes with temporary credentials.
    pub session_token: Option<Secret>,
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum S3ConfigError {
    /// The endpoint.
    #[error("endpoint `{0}` is not of the form http://host[:port] or https://host[:port]")]
    Endpoint(String),
    /// An endpoint that takes no bucket's name before it.
    #[error("a bucket's name can't stand before `{0}`: set path_style = true")]
    Host(String),
    /// A bucket.
    #[error("bucket `{0}` is not a bucket's name: 3 to 63 of a-z, 0-9, `.`, `-` and `_`")]
    Bucket(String),
    /// Conditions without anything to compare with.
    #[error("conditional = \"required\" needs probe = true, which reads the ETag")]
    Blind,
    /// The region.
    #[error("region `{0}` is not a region's name, such as us-east-1")]
    Region(String),
    /// A credential that is empty or could not stand in a header.
    #[error("`{0}` is empty or has characters that no credential has")]
    Credential(&'static str),
    /// The HTTP client can't be made, for example for want of root certificates.
    #[error("no http client")]
    Client(#[source] reqwest::Error),
}

impl S3Config {
    /// The defaults for one bucket on AWS.
    pub fn new(region: impl Into<String>, bucket: impl Into<String>) -> Self {
        Self {
            endpoint: None,
            region: region.into(),
            bucket: bucket.into(),
            buckets: Vec::new(),
            prefix: String::new(),
            path_style: None,
            keys_max: KeysMax::default(),
            probe: Probe::default(),
            erase: Erase::default(),
            checksum: Checksum::default(),
            conditional: Conditional::default(),
            rate_per_prefix: default_rate(),
            rate_depth: 0,
            in_flight_max: default_in_flight(),
            connect_timeout: default_connect(),
            request_timeout: default_request(),
            credentials: None,
        }
    }

    /// Every bucket that an address may name.
    pub(super) fn declared(&self) -> BTreeSet<String> {
        std::iter::once(&self.bucket).chain(&self.buckets).cloned().collect()
    }

    /// Whether the bucket stands in the path.
    pub(super) fn is_path_style(&self) -> bool {
        self.path_style.unwrap_or(self.endpoint.is_some())
    }

    /// Refuses what could not work or could reach elsewhere.
    pub(super) fn check(&self) -> Result<(), S3ConfigError> {
        for bucket in self.declared() {
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
            if !(3..=63).contains(&bucket.len())
                || !bucket.bytes().all(plain)
                || !bucket.bytes().any(|b| b != b'.')
            {
                return Err(S3ConfigError::Bucket(bucket));
            }
        }
        if self.conditional == Conditional::Required && self.probe == Probe::None {
            return Err(S3ConfigError::Blind);
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if self.region.is_empty() || !self.region.bytes().all(plain) {
            return Err(S3ConfigError::Region(self.region.clone()));
        }
        if let Some(credentials) = &self.credentials {
            let token = credentials.session_token.as_ref();
            let parts = [
                ("access_key_id", Some(&credentials.access_key_id)),
                ("secret_access_key", Some(&credentials.secret_access_key)),
                ("session_token", token),
            ];
            for (name, secret) in parts {
                if secret.is_some_and(|s| {
                    s.reveal().is_empty() || !s.reveal().bytes().all(|b| b.is_ascii_graphic())
                }) {
                    return Err(S3ConfigError::Credential(name));
                }
            }
        }
        Ok(())
    }
}

impl KeysMax {
    /// The number.
    pub fn get(self) -> usize {
        self.0
    }
}

impl Default for KeysMax {
    fn default() -> Self {
        Self(1000)
    }
}

impl TryFrom<usize> for KeysMax {
    type Error = &'static str;

    fn try_from(number: usize) -> Result<Self, Self::Error> {
        match number {
            1..=1000 => Ok(Self(number)),
            _ => Err("keys_max must be 1 to 1000, the most that S3 takes in one request"),
        }
    }
}

fn default_region() -> String {
    "us-east-1".into()
}

fn default_rate() -> NonZeroU32 {
    NonZeroU32::new(3500).expect("3,500 is not zero")
}

fn default_in_flight() -> NonZeroUsize {
    NonZeroUsize::new(32).expect("32 is not zero")
}

fn default_connect() -> Duration {
    Duration::from_secs(5)
}

fn default_request() -> Duration {
    Duration::from_secs(30)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn parse(value: Value) -> Result<S3Config, serde_json::Error> {
        from_value(value)
    }

    #[test]
    fn a_bucket_alone_is_a_configuration() {
        let config = parse(json!({"bucket": "documents"})).unwrap();
        assert_eq!((config.keys_max.get(), config.probe), (1000, Probe::Head));
        assert_eq!((config.erase, config.rate_per_prefix.get()), (Erase::AllVersions, 3500));
        assert!(!config.is_path_style());
        config.check().unwrap();
        let config = parse(json!({"bucket": "documents", "endpoint": "http://x:1"})).unwrap();
        assert!(config.is_path_style());
    }

    #[test]
    fn unknown_keys_and_impossible_numbers_do_not_parse() {
        for (wrong, why) in [
            (json!({"bucket": "b", "buket": "b"}), "unknown field `buket`"),
            (json!({"bucket": "b", "keys_max": 0}), "1 to 1000"),
            (json!({"bucket": "b", "keys_max": 1001}), "1 to 1000"),
            (json!({"bucket": "b", "probe": "list"}), "unknown variant `list`"),
            (json!({"bucket": "b", "erase": "newest"}), "unknown variant `newest`"),
            (json!({"bucket": "b", "rate_per_prefix": 0}), "nonzero"),
            (json!({"bucket": "b", "in_flight_max": 0}), "nonzero"),
            (json!({"bucket": "b", "credentials": {}}), "unknown field `credentials`"),
        ] {
            let error = parse(wrong).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn what_could_reach_elsewhere_is_refused() {
        for bucket in ["", "ab", "..", "...", "a/b", "a?b", "über", "a b c"] {
            let error = S3Config::new("us-east-1", bucket).check().unwrap_err();
            assert!(matches!(error, S3ConfigError::Bucket(_)), "{bucket}");
        }
        let error = S3Config::new("us east", "documents").check().unwrap_err();
        assert!(matches!(error, S3ConfigError::Region(_)));
    }

    #[test]
    fn a_secret_is_not_printed() {
        let mut config = S3Config::new("us-east-1", "documents");
        config.credentials = Some(S3Credentials {
            access_key_id: Secret::new("who-asks"),
            secret_access_key: Secret::new("what-signs"),
            session_token: Some(Secret::new("for-a-while")),
        });
        let text = format!("{config:?}");
        for secret in ["who-asks", "what-signs", "for-a-while"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}
