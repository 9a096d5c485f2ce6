//! `kind = "webhook"`: a service of somebody else's that deletes when it is asked to.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use tombstream_connectors::webhook::url_problem;

use super::document::{Place, Section};
use super::secret::SecretRef;
use super::store::Verify;

/// Where a service is asked, and how it knows who asks.
#[derive(Clone, Debug)]
pub(crate) struct WebhookSection {
    pub(crate) url: String,
    /// Where it is asked whether a thing is there. None: its word is all there is.
    pub(crate) look_url: Option<String>,
    /// Whether http is good enough beyond this machine. False: keys travel in the body.
    pub(crate) allow_http: bool,
    /// Which of its things are meant: `contacts`. Addresses and receipts name it as it is.
    pub(crate) collection: String,
    pub(crate) secret: SecretRef,
    /// The secret before, while the service still knows that one alone.
    pub(crate) previous_secret: Option<SecretRef>,
    /// PEM of the authority that signed its certificate. None: those the system knows.
    pub(crate) ca_file: Option<PathBuf>,
    /// Longest answer that is read, in bytes. 1 MiB: a hundred verdicts are some 10 kB.
    pub(crate) answer_bytes_max: NonZeroUsize,
    /// Longest wait for a connection. 5 s.
    pub(crate) connect_timeout: Duration,
}

impl WebhookSection {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let fix = "write url = \"https://crm.example.com/erase\"";
        let url = section.need_at::<String>("url", fix);
        let look_url = section.get_at::<String>("look_url");
        let allow_http = section.or("allow_http", false);
        let collection =
            section.need("collection", "name the service's things: collection = \"contacts\"");
        for (place, url) in [&url, &look_url].into_iter().flatten() {
            if let Some(problem) = url_problem(url, allow_http) {
                // The text is not repeated: it may hold a token.
                let (what, fix) = problem.split_once(": ").unwrap_or((problem, fix));
                section.problem(place.clone(), what, fix);
            }
        }
        if !section.has("secret") {
            section.problem(
                section.place("secret"),
                "missing",
                "write secret = { env = \"CRM_SECRET\" }; its text is whsec_ and the base64 of 24 to 64 \
                 bytes, which the service knows, too",
            );
        }
        let secret = section.secret("secret");
        let previous_secret = section.secret("previous_secret");
        let ca_file = section.get::<String>("ca_file").map(PathBuf::from);
        let answer_bytes_max =
            section.or("answer_bytes_max", NonZeroUsize::new(1 << 20).expect("not zero"));
        let connect_timeout = section.or("connect_timeout", Duration::from_secs(5));
        Some(Self {
            url: url?.1,
            look_url: look_url.map(|(_, url)| url),
            allow_http,
            collection: collection?,
            secret: secret?,
            previous_secret,
            ca_file,
            answer_bytes_max,
            connect_timeout,
        })
    }

    /// How a verdict is checked if nobody says.
    pub(super) fn usual(&self) -> Verify {
        if self.look_url.is_some() { Verify::ReadBack } else { Verify::Trust }
    }

    /// Without a look nothing can be looked up: no verdict would ever be confirmed.
    pub(super) fn vet(&self, verify: Option<Verify>, place: Place, section: &Section<'_, '_>) {
        if self.look_url.is_none() && verify.is_some_and(|verify| verify != Verify::Trust) {
            section.problem(
                place,
                "there is no look_url, so nothing could be looked up and nothing confirmed",
                "write look_url, or verify = \"trust\": the receipts then say that the service's word \
                 was taken",
            );
        }
    }
}
