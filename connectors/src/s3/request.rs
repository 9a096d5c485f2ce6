//! What goes over the wire: raw keys, percent-encoded or escaped, in signed requests.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use md5::{Digest as _, Md5};
use reqsign::aws::{
    Credential, DefaultCredentialProvider, RequestSigner, StaticCredentialProvider,
};
use reqsign::{ErrorKind, Signer, default_context};
use reqwest::header::RETRY_AFTER;
use reqwest::{Client, Method, redirect, retry};
use sha2::{Digest as _, Sha256};
use tombstream_model::SinkError;

use super::answer::Reply;
use super::config::{S3Config, S3ConfigError};
use super::listing::Marker;
use super::xml;

/// A thousand keys of 1,024 bytes, each of them escaped, fit; nothing that S3 answers is longer.
const BODY_MAX: usize = 16 << 20;

/// Makes, signs and sends requests.
#[derive(Debug)]
pub(super) struct Requests {
    client: Client,
    signer: Signer<Credential>,
    scheme: String,
    authority: String,
    path_style: bool,
    timeout: Duration,
}

/// What a delete names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Object<'a> {
    pub(super) key: &'a str,
    pub(super) version: Option<&'a str>,
    /// Deletes nothing else than this.
    pub(super) etag: Option<&'a str>,
}

/// What shows that a body arrived whole. The signature covers a SHA-256 of it anyway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Digest {
    Md5,
    Crc32,
}

/// A request that is signed and not sent yet.
#[derive(Debug)]
pub(super) struct Signed(reqwest::Request);

impl Requests {
    pub(super) fn new(config: &S3Config) -> Result<Self, S3ConfigError> {
        let (scheme, authority) = match &config.endpoint {
            Some(endpoint) => endpoint_parts(endpoint)?,
            None => ("https".into(), format!("s3.{}.amazonaws.com", config.region)),
        };
        // Retries belong to the layers above; a redirect would be signed for another place.
        let client = Client::builder()
            .http1_only()
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .connect_timeout(config.connect_timeout)
            .build()
            .map_err(S3ConfigError::Client)?;
        let by = RequestSigner::new("s3", &config.region);
        let signer = match &config.credentials {
            Some(credentials) => {
                let mut provider = StaticCredentialProvider::new(
                    credentials.access_key_id.reveal(),
                    credentials.secret_access_key.reveal(),
                );
                if let Some(token) = &credentials.session_token {
                    provider = provider.with_session_token(token.reveal());
                }
                Signer::new(default_context(), provider, by)
            }
            None => Signer::new(default_context(), DefaultCredentialProvider::new(), by),
        };
        let path_style = config.is_path_style();
        for bucket in config.declared() {
            let url = format!("{scheme}://{bucket}.{authority}/");
            if !path_style && reqwest::Url::parse(&url).is_err() {
                return Err(S3ConfigError::Host(authority));
            }
        }
        Ok(Self { client, signer, scheme, authority, path_style, timeout: config.request_timeout })
    }

    /// `DeleteObjects`, never quiet: an empty answer must not look like success.
    pub(super) async fn delete_objects(
        &self,
        bucket: &str,
        objects: &[Object<'_>],
        digest: Digest,
    ) -> Result<Signed, SinkError> {
        let body = delete_body(objects);
        let digest = match digest {
            Digest::Md5 => ("content-md5", BASE64_STANDARD.encode(Md5::digest(&body))),
            Digest::Crc32 => {
                let sum = crc32fast::hash(&body).to_be_bytes();
                ("x-amz-checksum-crc32", BASE64_STANDARD.encode(sum))
            }
        };
        self.sign(Method::POST, bucket, "", "delete=", body, Some(digest)).await
    }

    /// `DeleteObject`, for servers that take no more at a time.
    pub(super) async fn delete_object(
        &self,
        bucket: &str,
        object: &Object<'_>,
    ) -> Result<Signed, SinkError> {
        let query = version_query(object.version);
        let condition = object.etag.map(|etag| ("if-match", etag.to_owned()));
        self.sign(Method::DELETE, bucket, object.key, &query, vec![], condition).await
    }

    /// Writes an empty object: what conditions are tried on.
    pub(super) async fn put_empty(&self, bucket: &str, key: &str) -> Result<Reply, SinkError> {
        self.ask(Method::PUT, bucket, key, "").await
    }

    /// `AbortMultipartUpload`.
    pub(super) async fn abort(
        &self,
        bucket: &str,
        key: &str,
        upload: &str,
    ) -> Result<Signed, SinkError> {
        let query = format!("uploadId={}", encode(upload, b""));
        self.sign(Method::DELETE, bucket, key, &query, vec![], None).await
    }

    /// Until when and how a version is locked.
    pub(super) async fn retention(
        &self,
        bucket: &str,
        key: &str,
        version: Option<&str>,
    ) -> Result<Reply, SinkError> {
        let version = version_query(version);
        self.ask(Method::GET, bucket, key, join("retention=", &version).as_str()).await
    }

    /// Whether a version is under legal hold.
    pub(super) async fn legal_hold(
        &self,
        bucket: &str,
        key: &str,
        version: Option<&str>,
    ) -> Result<Reply, SinkError> {
        let version = version_query(version);
        self.ask(Method::GET, bucket, key, join("legal-hold=", &version).as_str()).await
    }

    pub(super) async fn head(&self, bucket: &str, key: &str) -> Result<Reply, SinkError> {
        self.ask(Method::HEAD, bucket, key, "").await
    }

    /// The first `count` objects whose keys begin with `prefix`.
    pub(super) async fn list(
        &self,
        bucket: &str,
        prefix: &str,
        count: usize,
    ) -> Result<Reply, SinkError> {
        self.list_page(bucket, prefix, count, None, None).await
    }

    /// A page of objects whose keys begin with `prefix`: behind the key `after`, or going on by the token of
    /// the page before.
    pub(super) async fn list_page(
        &self,
        bucket: &str,
        prefix: &str,
        count: usize,
        after: Option<&str>,
        token: Option<&str>,
    ) -> Result<Reply, SinkError> {
        // In the order of the alphabet, as the signature wants it.
        let mut query = String::new();
        if let Some(token) = token {
            query = format!("continuation-token={}&", encode(token, b""));
        }
        query += &format!(
            "encoding-type=url&list-type=2&max-keys={count}&prefix={}",
            encode(prefix, b"")
        );
        if let Some(after) = after.filter(|_| token.is_none()) {
            query += &format!("&start-after={}", encode(after, b""));
        }
        self.ask(Method::GET, bucket, "", &query).await
    }

    /// A page of versions, markers among them, of keys that begin with `prefix`.
    pub(super) async fn list_versions(
        &self,
        bucket: &str,
        prefix: &str,
        from: &Marker,
        count: usize,
    ) -> Result<Reply, SinkError> {
        let names = ["max-keys", "version-id-marker", "versions"];
        self.list_marked(bucket, prefix, from, count, names).await
    }

    /// A page of unfinished uploads of keys that begin with `prefix`.
    pub(super) async fn list_uploads(
        &self,
        bucket: &str,
        prefix: &str,
        from: &Marker,
        count: usize,
    ) -> Result<Reply, SinkError> {
        let names = ["max-uploads", "upload-id-marker", "uploads"];
        self.list_marked(bucket, prefix, from, count, names).await
    }

    /// A page that goes on behind a key and an id of it. The alphabet, as the signature wants it, has the three
    /// names in this order, and puts `key-marker` before and `prefix` behind the first.
    async fn list_marked(
        &self,
        bucket: &str,
        prefix: &str,
        from: &Marker,
        count: usize,
        [max, id_marker, what]: [&str; 3],
    ) -> Result<Reply, SinkError> {
        let mut query = "encoding-type=url".to_owned();
        if !from.key.is_empty() {
            query = join(&query, &format!("key-marker={}", encode(&from.key, b"")));
        }
        query = join(&query, &format!("{max}={count}&prefix={}", encode(prefix, b"")));
        if !from.id.is_empty() {
            query = join(&query, &format!("{id_marker}={}", encode(&from.id, b"")));
        }
        self.ask(Method::GET, bucket, "", &join(&query, &format!("{what}="))).await
    }

    pub(super) async fn versioning(&self, bucket: &str) -> Result<Reply, SinkError> {
        self.ask(Method::GET, bucket, "", "versioning=").await
    }

    pub(super) async fn object_lock(&self, bucket: &str) -> Result<Reply, SinkError> {
        self.ask(Method::GET, bucket, "", "object-lock=").await
    }

    async fn ask(
        &self,
        method: Method,
        bucket: &str,
        key: &str,
        query: &str,
    ) -> Result<Reply, SinkError> {
        let signed = self.sign(method, bucket, key, query, Vec::new(), None).await?;
        self.send(signed, None).await
    }

    async fn sign(
        &self,
        method: Method,
        bucket: &str,
        key: &str,
        query: &str,
        body: Vec<u8>,
        header: Option<(&'static str, String)>,
    ) -> Result<Signed, SinkError> {
        let internal = |why: String| SinkError::Protocol(format!("no such request: {why}"));
        let key = encode(key, b"/");
        let (authority, path) = match self.path_style {
            true => (self.authority.clone(), format!("/{bucket}/{key}")),
            false => (format!("{bucket}.{}", self.authority), format!("/{key}")),
        };
        let mark = if query.is_empty() { "" } else { "?" };
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("{}://{authority}{path}{mark}{query}", self.scheme))
            .header("x-amz-content-sha256", hex::encode(Sha256::digest(&body)));
        if !body.is_empty() {
            request = request.header("content-type", "application/xml");
        }
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let request = request.body(body).map_err(|error| internal(error.to_string()))?;
        let (mut head, body) = request.into_parts();
        self.signer.sign(&mut head, None).await.map_err(unsigned)?;
        let request = http::Request::from_parts(head, body);
        let request =
            reqwest::Request::try_from(request).map_err(|error| internal(error.to_string()))?;
        // Invariant (S8): the key goes out as it is. URLs are normalised on the way (`a/../b`),
        // and what was normalised is another key; `dot_segments_are_never_sent`.
        if request.url().path() != path {
            return Err(internal("its path would be normalised".into()));
        }
        Ok(Signed(request))
    }

    /// Sends and reads the whole answer, waiting no longer than `until`.
    pub(super) async fn send(
        &self,
        Signed(mut request): Signed,
        until: Option<Instant>,
    ) -> Result<Reply, SinkError> {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        *request.timeout_mut() = Some(left.map_or(self.timeout, |left| left.min(self.timeout)));
        let mut response = self.client.execute(request).await.map_err(unavailable)?;
        let header =
            |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let seconds = header(RETRY_AFTER.as_str()).and_then(|text| text.trim().parse().ok());
        let mut reply = Reply {
            status: response.status().as_u16(),
            retry_after: seconds.map(Duration::from_secs),
            delete_marker: header("x-amz-delete-marker") == Some("true"),
            etag: header("etag").map(str::to_owned),
            body: Vec::new(),
        };
        while let Some(chunk) = response.chunk().await.map_err(unavailable)? {
            if reply.body.len() + chunk.len() > BODY_MAX {
                return Err(SinkError::Protocol("an answer that is too long".into()));
            }
            reply.body.extend_from_slice(&chunk);
        }
        Ok(reply)
    }
}

/// The error says where the request went, and that has a key in it.
fn unavailable(error: reqwest::Error) -> SinkError {
    SinkError::Unavailable(Box::new(error.without_url()))
}

fn unsigned(error: reqsign::Error) -> SinkError {
    match error.kind() {
        ErrorKind::CredentialInvalid | ErrorKind::PermissionDenied | ErrorKind::ConfigInvalid => {
            SinkError::Denied(format!("no credentials: {error}"))
        }
        ErrorKind::RateLimited => SinkError::Throttled { retry_after: None },
        _ => SinkError::Unavailable(Box::new(error)),
    }
}

fn endpoint_parts(endpoint: &str) -> Result<(String, String), S3ConfigError> {
    let wrong = || S3ConfigError::Endpoint(endpoint.to_owned());
    let (scheme, rest) = endpoint.split_once("://").ok_or_else(wrong)?;
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let parsed = reqwest::Url::parse(endpoint).map_err(|_| wrong())?;
    let plain = parsed.path() == "/"
        && parsed.query().is_none()
        && parsed.fragment().is_none()
        && parsed.username().is_empty()
        && parsed.password().is_none()
        && parsed.host_str().is_some_and(|host| authority.starts_with(host));
    match scheme {
        "http" | "https" if plain => Ok((scheme.to_owned(), authority.to_owned())),
        _ => Err(wrong()),
    }
}

fn delete_body(objects: &[Object<'_>]) -> Vec<u8> {
    let long: usize = objects.iter().map(|object| object.key.len() + 120).sum();
    let mut body = String::with_capacity(64 + long);
    body.push_str("<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for object in objects {
        body.push_str("<Object><Key>");
        xml::escape(object.key, &mut body);
        body.push_str("</Key>");
        for (name, text) in [("VersionId", object.version), ("ETag", object.etag)] {
            if let Some(text) = text {
                write!(body, "<{name}>").expect("a string takes all");
                xml::escape(text, &mut body);
                write!(body, "</{name}>").expect("a string takes all");
            }
        }
        body.push_str("</Object>");
    }
    body.push_str("</Delete>");
    body.into_bytes()
}

fn version_query(version: Option<&str>) -> String {
    version.map_or(String::new(), |version| format!("versionId={}", encode(version, b"")))
}

/// Two parts of a query, in the order of the alphabet, as the signature wants them.
fn join(first: &str, second: &str) -> String {
    let mark = if first.is_empty() || second.is_empty() { "" } else { "&" };
    format!("{first}{mark}{second}")
}

/// Percent-encodes byte for byte, all but what RFC 3986 calls unreserved and `keep`.
fn encode(text: &str, keep: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep.contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(DIGITS[usize::from(byte >> 4)]));
            out.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::config::S3Credentials;
    use super::*;
    use crate::Secret;

    fn requests(path_style: bool) -> Requests {
        let mut config = S3Config::new("us-east-1", "documents");
        config.endpoint = Some("http://store:9000".into());
        config.path_style = Some(path_style);
        config.credentials = Some(S3Credentials {
            access_key_id: Secret::new("id"),
            secret_access_key: Secret::new("secret"),
            session_token: None,
        });
        Requests::new(&config).unwrap()
    }

    #[tokio::test]
    async fn a_key_stands_in_the_path_byte_for_byte() {
        for (key, path) in [
            ("foo//bar", "/documents/foo//bar"),
            ("/lead", "/documents//lead"),
            ("dir/", "/documents/dir/"),
            ("a+b c", "/documents/a%2Bb%20c"),
            ("50%25", "/documents/50%2525"),
            ("q\"'&<>?#", "/documents/q%22%27%26%3C%3E%3F%23"),
            ("cr\rnl\n", "/documents/cr%0Dnl%0A"),
            ("😀", "/documents/%F0%9F%98%80"),
            ("e\u{301}", "/documents/e%CC%81"),
            ("a\\b|c^`{}", "/documents/a%5Cb%7Cc%5E%60%7B%7D"),
        ] {
            let signed =
                requests(true).sign(Method::HEAD, "documents", key, "", vec![], None).await;
            assert_eq!(signed.unwrap().0.url().path(), path);
        }
        let signed = requests(false).sign(Method::HEAD, "documents", "a/b", "", vec![], None).await;
        let url = signed.unwrap().0.url().to_string();
        assert_eq!(url, "http://documents.store:9000/a/b");
    }

    #[tokio::test]
    async fn dot_segments_are_never_sent() {
        for key in ["a/../b", "../b", "./a", "a/.", "a/..", ".."] {
            let signed =
                requests(true).sign(Method::HEAD, "documents", key, "", vec![], None).await;
            assert!(matches!(signed.unwrap_err(), SinkError::Protocol(_)), "{key}");
        }
    }

    #[test]
    fn a_delete_is_verbose_and_escapes_its_keys() {
        let object = |key| Object { key, version: None, etag: None };
        let named = Object { key: "d", version: Some("v<1"), etag: Some("\"e\"") };
        let body = delete_body(&[object("a&b"), object("c\r\n"), named]);
        let body = String::from_utf8(body).unwrap();
        assert!(body.contains("<Object><Key>a&amp;b</Key></Object>"));
        assert!(body.contains("<Object><Key>c&#13;&#10;</Key></Object>"));
        assert!(body.contains(
            "<Key>d</Key><VersionId>v&lt;1</VersionId><ETag>&quot;e&quot;</ETag></Object>"
        ));
        assert!(!body.contains("Quiet"));
    }

    #[test]
    fn an_address_can_not_have_buckets_before_it() {
        let mut config = S3Config::new("us-east-1", "documents");
        config.endpoint = Some("http://127.0.0.1:9000".into());
        config.path_style = Some(false);
        assert!(matches!(Requests::new(&config).unwrap_err(), S3ConfigError::Host(_)));
    }

    #[test]
    fn an_endpoint_is_a_scheme_and_a_host() {
        assert_eq!(
            endpoint_parts("https://s3.example.org:9000/").unwrap(),
            ("https".into(), "s3.example.org:9000".into())
        );
        for wrong in [
            "s3.example.org",
            "ftp://host",
            "http://",
            "http://host/path",
            "http://host?x",
            "http://who:secret@host",
            "http://host#x",
        ] {
            assert!(endpoint_parts(wrong).is_err(), "{wrong}");
        }
    }
}
