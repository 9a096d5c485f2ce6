//! The documents' objects, by plain signed requests: a second pair of eyes beside the connector.

use super::document::Document;
use crate::services::{S3_ACCESS_KEY, S3_REGION, S3_SECRET_KEY};
use anyhow::{Context, Result, bail};
use futures::stream::{self, StreamExt, TryStreamExt};
use reqsign::aws::{Credential, RequestSigner, StaticCredentialProvider};
use reqsign::{Context as SigningContext, Signer};
use reqwest::{Client, Method, Response, StatusCode};
use std::collections::HashMap;

/// Requests at a time: the server is one process on this machine.
const AT_ONCE: usize = 32;

pub(super) struct Bucket {
    client: Client,
    signer: Signer<Credential>,
    endpoint: String,
    name: String,
}

impl Bucket {
    pub(super) async fn make(endpoint: &str, name: &str) -> Result<Self> {
        let signer = Signer::new(
            SigningContext::new(),
            StaticCredentialProvider::new(S3_ACCESS_KEY, S3_SECRET_KEY),
            RequestSigner::new("s3", S3_REGION),
        );
        let bucket = Self {
            client: Client::builder().no_proxy().build()?,
            signer,
            endpoint: endpoint.to_owned(),
            name: name.to_owned(),
        };
        bucket.send(Method::PUT, "", Vec::new()).await?;
        Ok(bucket)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) async fn seed(&self, documents: &[Document]) -> Result<()> {
        stream::iter(documents)
            .map(|document| async move {
                self.send(Method::PUT, &document.object_key(), document.object()).await
            })
            .buffer_unordered(AT_ONCE)
            .try_for_each(|_| async { Ok(()) })
            .await
    }

    /// All keys, page by page.
    pub(super) async fn keys(&self) -> Result<Vec<String>> {
        let mut keys: Vec<String> = Vec::new();
        loop {
            let mut query = "?list-type=2&max-keys=1000".to_owned();
            if let Some(last) = keys.last() {
                // Ours are ids and words: the slash is all there is to escape.
                query.push_str(&format!("&start-after={}", last.replace('/', "%2F")));
            }
            let page = self.send(Method::GET, &query, Vec::new()).await?.text().await?;
            let before = keys.len();
            keys.extend(elements(&page, "Key").map(str::to_owned));
            match elements(&page, "IsTruncated").next() {
                Some("true") if keys.len() > before => {}
                Some("false") => return Ok(keys),
                _ => bail!("a listing that is none: {page}"),
            }
        }
    }

    /// All objects, whole.
    pub(super) async fn list(&self) -> Result<HashMap<String, Vec<u8>>> {
        stream::iter(self.keys().await?)
            .map(|key| async move {
                let object = self.send(Method::GET, &key, Vec::new()).await?.bytes().await?;
                Ok((key, object.to_vec()))
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    pub(super) async fn remove(&self) -> Result<()> {
        stream::iter(self.keys().await?)
            .map(|key| async move { self.send(Method::DELETE, &key, Vec::new()).await })
            .buffer_unordered(AT_ONCE)
            .try_for_each(|_| async { Ok(()) })
            .await?;
        self.send(Method::DELETE, "", Vec::new()).await?;
        Ok(())
    }

    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Response> {
        let uri = format!("{}/{}/{path}", self.endpoint, self.name);
        let uri = uri.replace("/?", "?");
        let request = http::Request::builder().method(method.clone()).uri(uri).body(body)?;
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

/// The texts of all elements of that name. Ours hold nothing that XML escapes.
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
}
