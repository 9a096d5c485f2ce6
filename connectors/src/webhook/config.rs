//! How a webhook is declared.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;

use super::sign::Signer;
use crate::Secret;

/// A store of kind `webhook`. Secrets are handed in resolved.
#[derive(Clone, Debug)]
pub struct WebhookConfig {
    /// Where deletions are posted to.
    pub url: String,
    /// Where looks are posted to. None: the service can't be asked whether a thing is there.
    pub look_url: Option<String>,
    /// Whether `http` is good enough beyond this machine. Keys of rows travel in the body.
    pub allow_http: bool,
    /// What the store is called, told with every deletion.
    pub store: String,
    /// Which of the service's things are meant; an address in any other is refused (S8).
    pub collection: String,
    /// What signs, the current one first; while a secret is exchanged, the former one too.
    pub secrets: Vec<Secret>,
    /// PEM of an authority that is not on the system's list.
    pub ca_file: Option<PathBuf>,
    /// Most deletions in one request. 100: a service that deletes them one by one, in ten
    /// milliseconds each, answers within a second.
    pub items_max: NonZeroUsize,
    /// Longest answer that is read. 1 MiB: a hundred verdicts are some 10 kB.
    pub answer_bytes_max: NonZeroUsize,
    /// Longest wait for a connection. 5 s: who has not answered by then will not.
    pub connect_timeout: Duration,
    /// Longest wait for an answer. 30 s are half of the default lease; a destroy never waits beyond
    /// its own.
    pub request_timeout: Duration,
}

/// What is wrong with a declaration. No message holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum WebhookConfigError {
    /// A URL that can't be used.
    #[error("{key} {problem}")]
    Url {
        /// Which.
        key: &'static str,
        /// Why.
        problem: &'static str,
    },
    /// A secret that can't sign.
    #[error("{0}")]
    Secret(&'static str),
    /// The authority's certificate can't be read.
    #[error("ca_file `{path}`: {problem}")]
    CaFile {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// No client can be made of it.
    #[error("no client")]
    Client(#[source] reqwest::Error),
}

impl WebhookConfig {
    /// One service with every default.
    pub fn new(url: impl Into<String>, collection: impl Into<String>, secret: Secret) -> Self {
        let count = |number| NonZeroUsize::new(number).expect("not zero");
        Self {
            url: url.into(),
            look_url: None,
            allow_http: false,
            store: String::new(),
            collection: collection.into(),
            secrets: vec![secret],
            ca_file: None,
            items_max: count(100),
            answer_bytes_max: count(1 << 20),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
        }
    }

    /// Checks what can be checked without the service.
    pub fn validate(&self) -> Result<(), WebhookConfigError> {
        let wrong = |key, problem| WebhookConfigError::Url { key, problem };
        let urls = [("url", Some(&self.url)), ("look_url", self.look_url.as_ref())];
        for (key, url) in urls.into_iter().filter_map(|(key, url)| Some((key, url?))) {
            url_problem(url, self.allow_http).map_or(Ok(()), |problem| Err(wrong(key, problem)))?;
        }
        Signer::new(&self.secrets).map(drop).map_err(WebhookConfigError::Secret)
    }
}

/// Why nothing is sent there; behind its colon, what to do.
///
/// Invariant (S9): what is signed and confirmed can't be read or answered by whoever is in between;
/// `plain_http_is_for_this_machine_alone`.
pub fn url_problem(url: &str, allow_http: bool) -> Option<&'static str> {
    let Ok(url) = Url::parse(url) else { return Some("is no url: write https://host/path") };
    if !url.username().is_empty() || url.password().is_some() {
        return Some("has credentials in it: requests are signed, leave them out");
    }
    if url.fragment().is_some() {
        return Some("has a fragment, which is never sent: leave it out");
    }
    match url.scheme() {
        "https" => None,
        "http" if allow_http || is_loopback(&url) => None,
        "http" => Some(
            "is plain http, where anybody on the way can read keys and answer \"deleted\": write \
             https, or allow_http = true within a network of your own",
        ),
        _ => Some("is neither https nor http"),
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn said(url: &str, secret: &str, allow_http: bool) -> Result<(), String> {
        let mut config = WebhookConfig::new(url, "contacts", Secret::new(secret));
        config.allow_http = allow_http;
        config.validate().map_err(|error| error.to_string())
    }

    #[test]
    fn plain_http_is_for_this_machine_alone() {
        for url in
            ["https://a/erase?x=1", "http://127.0.0.1:1/", "http://[::1]:1", "http://localhost"]
        {
            said(url, SECRET, false).unwrap();
        }
        for url in
            ["http://a/erase", "http://127.0.0.1.a/", "http://10.0.0.1/", "http://localhost.a"]
        {
            assert!(said(url, SECRET, false).unwrap_err().contains("plain http"), "{url}");
            said(url, SECRET, true).unwrap();
        }
    }

    #[test]
    fn what_is_no_place_to_post_to_is_refused_without_its_secrets() {
        for url in ["", "a/erase", "ftp://a/", "https://u:hunter2@a/", "https://a/#b"] {
            let said = said(url, SECRET, true).unwrap_err();
            assert!(said.starts_with("url ") && !said.contains("hunter2"), "{said}");
        }
        let mut config = WebhookConfig::new("https://a/", "contacts", Secret::new(SECRET));
        config.look_url = Some("http://a/".to_owned());
        assert!(config.validate().unwrap_err().to_string().starts_with("look_url is plain http"));
    }

    #[test]
    fn a_secret_that_cant_sign_is_refused_and_not_printed() {
        for secret in ["hunter2", "whsec_hunter2", "whsec_aHVudGVyMg==", "whsec_"] {
            let said = said("https://a/", secret, false).unwrap_err();
            assert!(said.contains("whsec_") && !said.contains("hunter2"), "{said}");
        }
        let config = WebhookConfig::new("https://a/", "contacts", Secret::new(SECRET));
        assert!(!format!("{config:?}").contains("MfKQ9r8"));
    }
}
