//! Objects in S3: `DeleteObjects` that were built and signed beforehand, and the sink.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use md5::{Digest as _, Md5};
use reqsign::Signer;
use reqsign::aws::{Credential, RequestSigner, StaticCredentialProvider};
use reqwest::{Client, Request, redirect, retry};
use sha2::{Digest as _, Sha256};
use tombstream_connectors::s3::{Probe, S3Sink};
use tombstream_dataflow::{Store, Verify};
use tombstream_e2e::{Bucket, Servers};
use tombstream_model::{Address, Key};

use super::{BATCH, Scene, send_all, store_of};
use crate::cpu::Drained;
use crate::server;

pub(super) struct Objects {
    servers: Servers,
    bucket: Bucket,
    /// With the settings of the sink's own.
    client: Client,
    signer: Signer<Credential>,
}

impl Objects {
    pub(super) async fn make() -> Result<Self> {
        let servers = server::stores()?;
        let bucket = Bucket::make(&servers, &server::new_name("bench-")).await?;
        let client = Client::builder()
            .http1_only()
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(30))
            .build()?;
        let signer = Signer::new(
            reqsign::default_context(),
            StaticCredentialProvider::new(&servers.s3_access_key, &servers.s3_secret_key),
            RequestSigner::new("s3", server::S3_REGION),
        );
        Ok(Self { servers, bucket, client, signer })
    }

    async fn signed(&self, ids: &[String]) -> Result<Request> {
        let mut body = "<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">".to_owned();
        for id in ids {
            body += &format!("<Object><Key>{}</Key></Object>", key(id));
        }
        body += "</Delete>";
        let request = http::Request::builder()
            .method("POST")
            .uri(format!("{}/{}/?delete=", self.servers.s3, self.bucket.name()))
            .header("content-type", "application/xml")
            .header("content-md5", BASE64_STANDARD.encode(Md5::digest(&body)))
            .header("x-amz-content-sha256", hex::encode(Sha256::digest(&body)))
            .body(())?;
        let (mut head, ()) = request.into_parts();
        self.signer.sign(&mut head, None).await.context("can't sign a request")?;
        Ok(Request::try_from(http::Request::from_parts(head, body))?)
    }

    async fn send(&self, request: Request) -> Result<()> {
        let answer = self.client.execute(request).await?;
        let (status, body) = (answer.status(), answer.bytes().await?);
        let has_error = memmem(&body, b"<Error>");
        ensure!(status.is_success() && !has_error, "DeleteObjects: {status}, errors: {has_error}");
        Ok(())
    }
}

/// As the example's template makes it.
fn key(id: &str) -> String {
    format!("{id}/original")
}

fn memmem(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

impl Scene for Objects {
    fn ways(&self) -> &'static [&'static str] {
        &["default", "trust", "trust_unprobed"]
    }

    async fn fill(&self, ids: &[String]) -> Result<()> {
        self.bucket.put(ids.iter().map(|id| (key(id), b"original".to_vec()))).await
    }

    async fn must_be_empty(&self) -> Result<()> {
        let left = self.bucket.keys().await?.len();
        ensure!(left == 0, "{left} objects are left");
        Ok(())
    }

    async fn tight_loop(&self, ids: &[String], in_flight: usize) -> Result<Drained> {
        let mut requests = Vec::new();
        for some in ids.chunks(BATCH) {
            requests.push(self.signed(some).await?);
        }
        send_all(requests, in_flight, |request| self.send(request)).await
    }

    fn copy(&self) -> Box<dyn Fn(&Key) -> Address + Send + Sync> {
        let bucket: Arc<str> = self.bucket.name().into();
        Box::new(move |id| Address::Object {
            bucket: Arc::clone(&bucket),
            key: key(&id.to_string()),
        })
    }

    fn store(&self, way: &str) -> Result<Store> {
        let mut config = server::s3_config(self.bucket.name())?;
        let verify = match way {
            "default" => Verify::Sample { one_in: 100 },
            _ => Verify::Trust,
        };
        if way == "trust_unprobed" {
            config.probe = Probe::None;
        }
        Ok(store_of("originals", S3Sink::new(config)?, verify))
    }

    async fn remove(self) -> Result<()> {
        self.bucket.remove().await
    }
}
