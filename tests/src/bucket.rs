//! A bucket on the real S3 server, by plain signed requests.

use crate::Servers;
use anyhow::{Context, Result, bail};
use futures::stream::{self, StreamExt, TryStreamExt};
use reqsign::aws::{Credential, RequestSigner, StaticCredentialProvider};
use reqsign::{Context as SigningContext, Signer};
use reqwest::{Client, Method, Response, StatusCode};
use std::collections::HashMap;

/// Requests at a time: the server is one process on this machine.
const AT_ONCE: usize = 32;

/// The region that the test server says it is in.
const REGION: &str = "us-east-1";

/// A bucket of one's own. Keys go out percent-encoded and come back unescaped, by code of its own.
pub struct Bucket {
    client: Client,
    signer: Signer<Credential>,
    endpoint: String,
    name: String,
}

impl Bucket {
    /// Makes it. The name follows S3's rules: `_` is written `-`.
    pub async fn make(servers: &Servers, name: &str) -> Result<Self> {
        let bucket = Self::named(servers, name)?;
        bucket.send(Method::PUT, "", Vec::new()).await?;
        Ok(bucket)
    }

    /// Makes one whose objects can be locked, and which is versioned therefore.
    pub async fn make_locking(servers: &Servers, name: &str) -> Result<Self> {
        let bucket = Self::named(servers, name)?;
        let header = Some(("x-amz-bucket-object-lock-enabled", "true"));
        bucket.send_with(Method::PUT, "", Vec::new(), header).await?;
        Ok(bucket)
    }

    fn named(servers: &Servers, name: &str) -> Result<Self> {
        let signer = Signer::new(
            SigningContext::new(),
            StaticCredentialProvider::new(&servers.s3_access_key, &servers.s3_secret_key),
            RequestSigner::new("s3", REGION),
        );
        Ok(Self {
            client: Client::builder().no_proxy().build()?,
            signer,
            endpoint: servers.s3.clone(),
            name: name.replace('_', "-"),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Stores all these objects.
    pub async fn put(&self, objects: impl Iterator<Item = (String, Vec<u8>)>) -> Result<()> {
        stream::iter(objects)
            .map(|(key, object)| async move { self.send(Method::PUT, &encode(&key), object).await })
            .buffer_unordered(AT_ONCE)
            .try_for_each(|_| async { Ok(()) })
            .await
    }

    /// Puts an object's newest version under legal hold, or releases it.
    pub async fn hold(&self, key: &str, held: bool) -> Result<()> {
        // The server wants the body's MD5, and there are only two of them.
        let (status, md5) = match held {
            true => ("ON", "oK1+ndJbG6HuGA87LDxznw=="),
            false => ("OFF", "An8G3mv4SfhAibzslQjGDw=="),
        };
        let body = format!("<LegalHold><Status>{status}</Status></LegalHold>");
        let path = format!("{}?legal-hold=", encode(key));
        let header = Some(("content-md5", md5));
        self.send_with(Method::PUT, &path, body.into_bytes(), header).await?;
        Ok(())
    }

    /// How many versions and delete markers there are, up to a thousand.
    pub async fn versions(&self) -> Result<usize> {
        let page = self.send(Method::GET, "?versions=&max-keys=1000", Vec::new()).await?;
        Ok(elements(&page.text().await?, "VersionId").count())
    }

    /// All keys, page by page.
    pub async fn keys(&self) -> Result<Vec<String>> {
        let mut keys: Vec<String> = Vec::new();
        loop {
            let mut query = "?list-type=2&max-keys=1000".to_owned();
            if let Some(last) = keys.last() {
                query.push_str(&format!("&start-after={}", encode(last).replace('/', "%2F")));
            }
            let page = self.send(Method::GET, &query, Vec::new()).await?.text().await?;
            let before = keys.len();
            keys.extend(elements(&page, "Key").map(plain));
            match elements(&page, "IsTruncated").next() {
                Some("true") if keys.len() > before => {}
                Some("false") => return Ok(keys),
                _ => bail!("a listing that is none: {page}"),
            }
        }
    }

    /// All objects, whole.
    pub async fn list(&self) -> Result<HashMap<String, Vec<u8>>> {
        stream::iter(self.keys().await?)
            .map(|key| async move {
                let path = encode(&key);
                let object = self.send(Method::GET, &path, Vec::new()).await?.bytes().await?;
                Ok((key, object.to_vec()))
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    /// Removes it with all that is in it.
    pub async fn remove(&self) -> Result<()> {
        stream::iter(self.keys().await?)
            .map(|key| async move { self.send(Method::DELETE, &encode(&key), Vec::new()).await })
            .buffer_unordered(AT_ONCE)
            .try_for_each(|_| async { Ok(()) })
            .await?;
        self.send(Method::DELETE, "", Vec::new()).await?;
        Ok(())
    }

    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Response> {
        self.send_with(method, path, body, None).await
    }

    async fn send_with(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        header: Option<(&str, &str)>,
    ) -> Result<Response> {
        let uri = format!("{}/{}/{path}", self.endpoint, self.name);
        let uri = uri.replace("/?", "?");
        let mut request = http::Request::builder().method(method.clone()).uri(uri);
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let request = request.body(body)?;
        let (mut parts, body) = request.into_parts();
        self.signer.sign(&mut parts, None).await.context("can't sign a request")?;
        let request = http::Request::from_parts(parts, body);
        let response = self.client.execute(request.try_into()?).await?;
        let status = response.status();
        if status.is_success() || (method == Method::PUT && status == StatusCode::CONFLICT) {
            return Ok(response);
        }
        bail!("{method} {}/{path}: {status} {}", self.name, response.text().await?)
    }
}

/// A key as a path: the slash stays.
fn encode(key: &str) -> String {
    key.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// What XML's escapes stand for; the ampersand is the last.
fn plain(text: &str) -> String {
    [
        ("&#xA;", "\n"),
        ("&#xD;", "\r"),
        ("&#x9;", "\t"),
        ("&#34;", "\""),
        ("&quot;", "\""),
        ("&#39;", "'"),
        ("&apos;", "'"),
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&amp;", "&"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (escaped, meant)| text.replace(escaped, meant))
}

/// The texts of all elements of that name, as they are written.
fn elements<'a>(xml: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let mut rest = xml;
    std::iter::from_fn(move || {
        let start = rest.find(&open)? + open.len();
        let end = start + rest[start..].find(&close)?;
        let text = &rest[start..end];
        rest = &rest[end..];
        Some(text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_a_listing_is_found() {
        let page = "<R><IsTruncated>false</IsTruncated><Contents><Key>a/original</Key></Contents>\
                    <Contents><Key>b/original</Key><Size>1</Size></Contents></R>";
        assert_eq!(elements(page, "Key").collect::<Vec<_>>(), ["a/original", "b/original"]);
        assert_eq!(elements(page, "IsTruncated").next(), Some("false"));
        assert_eq!(elements(page, "None").next(), None);
    }

    #[test]
    fn odd_keys_go_out_encoded_and_come_back_as_they_were() {
        assert_eq!(encode("a/b-1.x"), "a/b-1.x");
        assert_eq!(encode("50%/a b+\u{e9}"), "50%25/a%20b%2B%C3%A9");
        assert_eq!(plain("&amp;lt;&#xA;&lt;&#34;"), "&lt;\n<\"");
    }
}
