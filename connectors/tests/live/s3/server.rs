//! Buckets on the real server, filled and read in another way than through the sink.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::{StreamExt as _, stream};
use md5::{Digest as _, Md5};
use reqsign::aws::{Credential, RequestSigner, StaticCredentialProvider};
use reqsign::{Signer, default_context};
use sha2::Digest as _;
use tombstream_connectors::Secret;
use tombstream_connectors::s3::{S3Config, S3Credentials, S3Sink};
use tombstream_model::{Address, DeletionId, Fence, Sink as _, StoreId, Target, Verdict};

/// A bucket of this test's own.
pub(crate) struct Bucket {
    pub(crate) name: String,
    endpoint: String,
    client: reqwest::Client,
    signer: Signer<Credential>,
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: where is the S3 server?"))
}

/// What every test shares; the endpoint is the real server's.
pub(crate) fn config(bucket: &str) -> S3Config {
    let mut config = S3Config::new("us-east-1", bucket);
    config.endpoint = Some(variable("TOMBSTREAM_TEST_S3_ENDPOINT"));
    config.credentials = Some(S3Credentials {
        access_key_id: Secret::new(variable("TOMBSTREAM_TEST_S3_ACCESS_KEY")),
        secret_access_key: Secret::new(variable("TOMBSTREAM_TEST_S3_SECRET_KEY")),
        session_token: None,
    });
    config
}

pub(crate) fn target(address: Address) -> Target {
    Target {
        deletion: DeletionId(1),
        store: StoreId(0),
        address,
        fence: Fence { token: 1, until: Instant::now() + Duration::from_secs(300) },
        lsn: None,
    }
}

pub(crate) async fn verdicts(sink: &S3Sink, batch: &[Target]) -> Vec<Verdict> {
    let outcomes = sink.destroy(batch).await.unwrap();
    assert_eq!(outcomes.len(), batch.len());
    outcomes.iter().map(|outcome| outcome.verdict).collect()
}

/// What is stored under a key.
pub(crate) fn body(key: &str) -> Vec<u8> {
    format!("the copy at {key}").into_bytes()
}

fn encode(key: &str) -> String {
    key.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

impl Bucket {
    pub(crate) async fn new() -> Self {
        Self::with(&[]).await
    }

    /// With object lock, and so versioned.
    pub(crate) async fn locked() -> Self {
        Self::with(&[("x-amz-bucket-object-lock-enabled", "true")]).await
    }

    async fn with(headers: &[(&'static str, &str)]) -> Self {
        let provider = StaticCredentialProvider::new(
            &variable("TOMBSTREAM_TEST_S3_ACCESS_KEY"),
            &variable("TOMBSTREAM_TEST_S3_SECRET_KEY"),
        );
        let signer =
            Signer::new(default_context(), provider, RequestSigner::new("s3", "us-east-1"));
        let bucket = Self {
            name: format!("test-{}", uuid::Uuid::new_v4().simple()),
            endpoint: variable("TOMBSTREAM_TEST_S3_ENDPOINT"),
            client: reqwest::Client::new(),
            signer,
        };
        bucket.ask("PUT", "", vec![], headers).await;
        bucket
    }

    async fn ask(
        &self,
        method: &str,
        path: &str,
        body: Vec<u8>,
        headers: &[(&'static str, &str)],
    ) -> Vec<u8> {
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("{}/{}{path}", self.endpoint, self.name))
            .header("x-amz-content-sha256", hex::encode(sha2::Sha256::digest(&body)))
            .header("content-md5", BASE64_STANDARD.encode(Md5::digest(&body)));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (mut head, body) = request.body(body).unwrap().into_parts();
        self.signer.sign(&mut head, None).await.unwrap();
        let request = http::Request::from_parts(head, body).try_into().unwrap();
        let response = self.client.execute(request).await.unwrap();
        let status = response.status();
        let body = response.bytes().await.unwrap().to_vec();
        assert!(
            status.is_success(),
            "{method} {path}: {status} {}",
            String::from_utf8_lossy(&body)
        );
        body
    }

    pub(crate) async fn put(&self, key: &str) {
        self.put_bytes(key, body(key)).await;
    }

    pub(crate) async fn put_bytes(&self, key: &str, bytes: Vec<u8>) {
        self.ask("PUT", &format!("/{}", encode(key)), bytes, &[]).await;
    }

    /// Host and port of the server.
    pub(crate) fn address(&self) -> String {
        self.endpoint.trim_start_matches("http://").to_owned()
    }

    pub(crate) async fn put_all(&self, keys: &[String]) {
        let puts: Vec<_> = keys.iter().map(|key| self.put(key)).collect();
        stream::iter(puts).buffer_unordered(16).collect::<Vec<()>>().await;
    }

    pub(crate) async fn get(&self, key: &str) -> Vec<u8> {
        self.ask("GET", &format!("/{}", encode(key)), vec![], &[]).await
    }

    pub(crate) async fn delete(&self, key: &str) {
        self.ask("DELETE", &format!("/{}", encode(key)), vec![], &[]).await;
    }

    pub(crate) async fn set_versioning(&self, status: &str) {
        let body =
            format!("<VersioningConfiguration><Status>{status}</Status></VersioningConfiguration>");
        self.ask("PUT", "?versioning=", body.into_bytes(), &[]).await;
    }

    /// Every key of the bucket, read with a decoder of the test's own.
    pub(crate) async fn keys(&self) -> BTreeSet<String> {
        let mut keys = BTreeSet::new();
        let mut after = String::new();
        loop {
            let path = format!("?list-type=2&start-after={}", encode(&after).replace('/', "%2F"));
            let page = String::from_utf8(self.ask("GET", &path, vec![], &[]).await).unwrap();
            for part in page.split("<Key>").skip(1) {
                keys.insert(plain(part.split("</Key>").next().unwrap()));
            }
            if page.contains("<IsTruncated>false</IsTruncated>") {
                return keys;
            }
            after = keys.last().unwrap().clone();
        }
    }

    /// Every version and marker of the bucket: key, id, whether it is a marker.
    pub(crate) async fn versions(&self) -> Vec<(String, String, bool)> {
        let mut versions = Vec::new();
        let mut from = String::new();
        loop {
            let path = format!("?{from}max-keys=1000&versions=");
            let page = String::from_utf8(self.ask("GET", &path, vec![], &[]).await).unwrap();
            for (tag, is_marker) in [("<Version>", false), ("<DeleteMarker>", true)] {
                for part in page.split(tag).skip(1) {
                    let (key, id) = (inner(part, "Key"), inner(part, "VersionId"));
                    versions.push((plain(&key), id, is_marker));
                }
            }
            if page.contains("<IsTruncated>false</IsTruncated>") {
                return versions;
            }
            let key = encode(&plain(&inner(&page, "NextKeyMarker"))).replace('/', "%2F");
            let id = inner(&page, "NextVersionIdMarker");
            from = format!("key-marker={key}&version-id-marker={id}&");
        }
    }

    /// The newest version of a key.
    pub(crate) async fn newest(&self, key: &str) -> String {
        let versions = self.versions().await;
        versions.into_iter().find(|(of, _, _)| of == key).unwrap().1
    }

    pub(crate) async fn lock(&self, key: &str, version: &str, mode: &str, until: &str) {
        let body = format!(
            "<Retention><Mode>{mode}</Mode><RetainUntilDate>{until}</RetainUntilDate></Retention>"
        );
        let path = format!("/{}?retention=&versionId={version}", encode(key));
        self.ask("PUT", &path, body.into_bytes(), &[]).await;
    }

    pub(crate) async fn hold(&self, key: &str, version: &str, status: &str) {
        let body = format!("<LegalHold><Status>{status}</Status></LegalHold>");
        let path = format!("/{}?legal-hold=&versionId={version}", encode(key));
        self.ask("PUT", &path, body.into_bytes(), &[]).await;
    }

    /// Begins an upload, with one part.
    pub(crate) async fn begin_upload(&self, key: &str) {
        let path = format!("/{}?uploads=", encode(key));
        let begun = String::from_utf8(self.ask("POST", &path, vec![], &[]).await).unwrap();
        let path = format!("/{}?partNumber=1&uploadId={}", encode(key), inner(&begun, "UploadId"));
        self.ask("PUT", &path, body(key), &[]).await;
    }

    /// The keys of all unfinished uploads.
    pub(crate) async fn uploads(&self) -> Vec<String> {
        let page = self.ask("GET", "?max-uploads=1000&uploads=", vec![], &[]).await;
        let page = String::from_utf8(page).unwrap();
        assert!(page.contains("<IsTruncated>false</IsTruncated>"));
        page.split("<Upload>").skip(1).map(|part| plain(&inner(part, "Key"))).collect()
    }

    pub(crate) fn object(&self, key: &str) -> Target {
        target(Address::Object { bucket: self.name.as_str().into(), key: key.into() })
    }

    pub(crate) fn prefix(&self, prefix: &str) -> Target {
        target(Address::Prefix { bucket: self.name.as_str().into(), prefix: prefix.into() })
    }

    pub(crate) fn sink(&self) -> S3Sink {
        self.sink_with(|_| ())
    }

    pub(crate) fn sink_with(&self, change: impl FnOnce(&mut S3Config)) -> S3Sink {
        let mut config = config(&self.name);
        change(&mut config);
        S3Sink::new(config).unwrap()
    }
}

fn inner(text: &str, name: &str) -> String {
    let (start, end) = (format!("<{name}>"), format!("</{name}>"));
    text.split(&start).nth(1).and_then(|rest| rest.split(&end).next()).unwrap().to_owned()
}

fn plain(text: &str) -> String {
    text.replace("&#xA;", "\n")
        .replace("&#xD;", "\r")
        .replace("&#x9;", "\t")
        .replace("&#34;", "\"")
        .replace("&#39;", "'")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&")
}
