//! `[api]`: the REST interface, which speaks to nothing but Postgres.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use super::document::{Place, Section};

/// How the api is served.
#[derive(Clone, Debug)]
pub(crate) struct ApiSection {
    /// Where. Loopback: whoever opens it wider has to name the tokens.
    pub(crate) listen: SocketAddr,
    /// A file of `name sha256:…` lines: the bearer tokens, hashed. None: loopback only, and every
    /// flip is `anonymous`.
    pub(crate) tokens_file: Option<PathBuf>,
    pub(crate) tokens_place: Place,
    /// Largest request body in bytes. 64 KiB: a row of text columns, and no more.
    pub(crate) body_max: NonZeroUsize,
    /// Longest time of one request. 10 s: a flip is one statement.
    pub(crate) timeout: Duration,
    /// Whether flags that come at the same time share a statement. No: it helps only where many come at once.
    pub(crate) group_flags: bool,
}

impl ApiSection {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        let place = section.place("listen");
        let listen = section.or("listen", SocketAddr::from(([127, 0, 0, 1], 8080)));
        let written = section.has("tokens_file");
        let tokens_place = section.place("tokens_file");
        let tokens_file = section.get::<String>("tokens_file").map(PathBuf::from);
        if !listen.ip().to_canonical().is_loopback() && !written {
            section.problem(
                place,
                format!("{listen} is open to others, and nobody needs a token"),
                "write tokens_file = \"/etc/tombstream/tokens\" (`tombstream token NAME` prints \
                 its lines), or listen on 127.0.0.1",
            );
        }
        let body_max = NonZeroUsize::new(64 * 1024).expect("not zero");
        Self {
            listen,
            tokens_file,
            tokens_place,
            body_max: section.or("body_max", body_max),
            timeout: section.or("timeout", Duration::from_secs(10)),
            group_flags: section.or("group_flags", false),
        }
    }
}
